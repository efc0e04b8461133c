//! `cargo xtask demo`: one real engine, one relay, one worker, one answer.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::clock::Stopwatch;
use crate::parts::Part;
use crate::process::{self, Running};
use crate::progress::Step;
use crate::{clock, workspace};

mod chat;

const MODEL: &str = "gemma-3-270m";
const QUESTION: &str = "What is a relay race?";
const LOAD_LIMIT: Duration = Duration::from_secs(120);
const START_LIMIT: Duration = Duration::from_secs(30);

/// What the user can choose.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// End after the answer.
    #[arg(long)]
    pub(crate) once: bool,
    /// Use an OpenAI-compatible engine that runs already, for instance http://127.0.0.1:11434.
    #[arg(long, value_name = "URL", conflicts_with = "model_file")]
    pub(crate) backend_url: Option<String>,
    /// Serve this GGUF file instead of Gemma 3 270M.
    #[arg(long, value_name = "PATH")]
    pub(crate) model_file: Option<PathBuf>,
}

/// How the relay and the worker are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// With optimisations, as users run them.
    Release,
    /// As the tests built them already.
    Dev,
}

/// Runs the demo until it is over or the user wants to stop.
///
/// # Errors
/// When a part cannot be had, does not start, or gives no answer.
pub(crate) fn run(options: &Options, profile: Profile) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("modelrelay-demo-").tempdir().context("create a folder")?;
    // Ended in the order they stand in: nobody is left with a connection to something that is gone.
    let mut running = Vec::new();
    let backend_url = match &options.backend_url {
        Some(url) => url.clone(),
        None => start_engine(options.model_file.as_deref(), folder.path(), &mut running)?,
    };
    let binaries = build(profile)?;
    let relay_url = start_relay_and_worker(&binaries, &backend_url, folder.path(), &mut running)?;

    let step = Step::begin("Waiting until the worker offers a model");
    let model = process::wait_ready("a model at the relay", START_LIMIT, &mut running, || {
        chat::first_model(&relay_url)
    })?;
    step.done();
    println!("\nasking {model} through the relay: {QUESTION}\n");
    answer(&relay_url, &model)?;
    if options.once {
        return Ok(());
    }
    print!("{}", instructions(&relay_url, &model));
    stay_up(&mut running)
}

fn answer(relay_url: &str, model: &str) -> Result<()> {
    let watch = Stopwatch::start();
    let mut first = None;
    let chunks = chat::stream(relay_url, model, QUESTION, |text| {
        first.get_or_insert_with(|| watch.elapsed());
        let mut out = io::stdout();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("print the answer")
    })?;
    let Some(first) = first else { bail!("the engine's answer is empty") };
    let (first, total) = (first.as_millis(), watch.elapsed().as_millis());
    println!("\n\n{chunks} chunks of text: the first after {first} ms, the last after {total} ms");
    Ok(())
}

fn build(profile: Profile) -> Result<PathBuf> {
    if profile == Profile::Dev {
        return Ok(workspace::binaries("debug"));
    }
    eprintln!("Building the relay and the worker; optimised, so the first time takes minutes …");
    let mut cargo =
        workspace::cargo(["build", "--release", "-p", "modelrelay-relay", "-p", "modelrelay-worker"]);
    process::run("cargo build", &mut cargo)?;
    Ok(workspace::binaries("release"))
}

fn start_engine(model_file: Option<&Path>, folder: &Path, running: &mut Vec<Running>) -> Result<String> {
    let program = Part::LlamaServer.path()?;
    let port = free_port()?.to_string();
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--port", &port, "--parallel", "4", "--ctx-size", "8192"]);
    match model_file {
        Some(path) => command.arg("--model").arg(path),
        // A base model: it only continues text, so the template shows it questions with answers, and
        // the next question that it would make up ends the answer.
        None => command
            .arg("--model")
            .arg(Part::Model.path()?)
            .args(["--alias", MODEL, "--jinja", "--chat-template-file"])
            .arg(workspace::sources().join("demo/chat.jinja"))
            .args(["--reverse-prompt", "Question:"]),
    };
    let step = Step::begin("Starting llama-server and loading the model");
    running.push(Running::start_logged("llama-server", &mut command, &folder.join("llama-server.log"))?);
    let url = format!("http://127.0.0.1:{port}");
    process::wait_ready("llama-server's health", LOAD_LIMIT, running, || {
        chat::answers(&format!("{url}/health"))
    })?;
    step.done();
    Ok(url)
}

fn start_relay_and_worker(
    binaries: &Path,
    backend_url: &str,
    folder: &Path,
    running: &mut Vec<Running>,
) -> Result<String> {
    let secret = folder.join("worker-secret");
    write_secret(&secret)?;
    let (port, operations) = (free_port()?, free_port()?);
    let mut relay = Command::new(binaries.join("modelrelay-relay"));
    relay.args([
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--ops-listen",
        &format!("127.0.0.1:{operations}"),
    ]);
    relay.arg("--worker-secret-file").arg(&secret);
    let step = Step::begin("Starting the relay and the worker");
    running.insert(
        0,
        Running::start_logged("the relay", without_settings(&mut relay), &folder.join("relay.log"))?,
    );
    let url = format!("http://127.0.0.1:{port}");
    process::wait_ready("the relay's health", START_LIMIT, &mut running[..1], || {
        chat::answers(&format!("{url}/health"))
    })?;

    let mut worker = Command::new(binaries.join("modelrelay-worker"));
    worker.args([
        "--relay-url",
        &url,
        "--backend-url",
        backend_url,
        "--name",
        "demo",
        "--max-concurrency",
        "4",
    ]);
    worker.arg("--worker-secret-file").arg(&secret);
    running.insert(
        0,
        Running::start_logged("the worker", without_settings(&mut worker), &folder.join("worker.log"))?,
    );
    step.done();
    Ok(url)
}

/// Keeps settings that the user's shell may hold for other relays and workers out of the demo.
fn without_settings(command: &mut Command) -> &mut Command {
    for name in ["CONFIG_FILE", "WORKER_SECRET", "PROXY_URL", "RELAY_URL", "MODELS", "PROVIDER_NAME"] {
        command.env_remove(name);
    }
    command
}

fn write_secret(path: &Path) -> Result<()> {
    let mut random = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .context("read random bytes")?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).context("write the worker secret")
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr().context("read the free port")?.port())
}

fn stay_up(running: &mut [Running]) -> Result<()> {
    let day = Duration::from_secs(24 * 3600);
    let stopped = clock::poll("Ctrl-C", Duration::from_millis(200), day, || {
        // The signal that stops the demo ends the children as well.
        let alive = running.iter_mut().try_for_each(Running::check_alive);
        if process::interrupted() { Ok(Some(())) } else { alive.map(|()| None) }
    });
    eprintln!("\nstopping …");
    stopped
}

fn instructions(url: &str, model: &str) -> String {
    format!(
        r#"
The relay listens on {url}; it takes requests without a key. Press Ctrl-C to stop.

  OpenAI, for instance OPENAI_BASE_URL={url}/v1:
    curl -N {url}/v1/chat/completions -H 'content-type: application/json' \
      -d '{{"model":"{model}","stream":true,"max_tokens":100,"messages":[{{"role":"user","content":"What is a ship?"}}]}}'

  Anthropic, for instance ANTHROPIC_BASE_URL={url}:
    curl -N {url}/v1/messages -H 'content-type: application/json' -H 'anthropic-version: 2023-06-01' \
      -d '{{"model":"{model}","stream":true,"max_tokens":100,"messages":[{{"role":"user","content":"What is a ship?"}}]}}'

"#
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn worker_secret_is_long_different_each_time_and_only_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        write_secret(&one).unwrap();
        write_secret(&two).unwrap();
        assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&one).unwrap().len(), 64);
        assert_ne!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    }
}
