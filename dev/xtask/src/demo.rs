//! `cargo xtask demo`: one real engine, one relay, one worker, one answer.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::clock::Stopwatch;
use crate::parts::Part;
use crate::process::{self, Running};
use crate::progress::Step;
use crate::stack::{self, Stack};
use crate::{chat, clock, workspace};

mod cluster;

const MODEL: &str = "gemma-3-270m";
const QUESTION: &str = "What is a relay race?";
const LOAD_LIMIT: Duration = Duration::from_secs(120);

/// What the user can choose.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// End after the answer.
    #[arg(long)]
    pub(crate) once: bool,
    /// Start a Kubernetes with one node, and have the operator run the engine, relays and a worker on it; takes root.
    #[arg(long, conflicts_with_all = ["backend_url", "model_file"])]
    pub(crate) cluster: bool,
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
    if options.cluster {
        return cluster::run(options, profile);
    }
    let folder = tempfile::Builder::new().prefix("modelrelay-demo-").tempdir().context("create a folder")?;
    // Ended in the order they stand in: nobody is left with a connection to something that is gone.
    let mut running = Vec::new();
    let backend_url = match &options.backend_url {
        Some(url) => url.clone(),
        None => start_engine(options.model_file.as_deref(), folder.path(), &mut running)?,
    };
    let binaries = build(profile)?;
    let step = Step::begin("Starting the relay and the worker");
    let stack = Stack { binaries: &binaries, folder: folder.path(), slots: 4 };
    let relay_url = stack.start_relay(&mut running)?;
    stack.start_worker(&relay_url, &backend_url, &mut running)?;
    let model = process::wait_ready("a model at the relay", stack::START_LIMIT, &mut running, || {
        chat::first_model(&relay_url)
    })?;
    step.done();
    println!("\nasking {model} through the relay: {QUESTION}\n");
    answer(&relay_url, &model, Stopwatch::start())?;
    if options.once {
        return Ok(());
    }
    println!("\nThe relay listens on {relay_url}; it takes requests without a key. Press Ctrl-C to stop.");
    print!("{}", requests(&relay_url, &model));
    stay_up(&mut running)
}

/// Asks the demo's question, shows the answer as it comes, and returns when its first piece came on a watch.
fn answer(relay_url: &str, model: &str, since: Stopwatch) -> Result<Duration> {
    let watch = Stopwatch::start();
    let mut first = None;
    let chunks = chat::stream(relay_url, model, QUESTION, |text| {
        first.get_or_insert_with(|| (watch.elapsed(), since.elapsed()));
        let mut out = io::stdout();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("print the answer")
    })?;
    let Some((first, since)) = first else { bail!("the engine's answer is empty") };
    let (first, total) = (first.as_millis(), watch.elapsed().as_millis());
    println!("\n\n{chunks} chunks of text: the first after {first} ms, the last after {total} ms");
    Ok(since)
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
    let port = stack::free_port()?.to_string();
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

fn requests(url: &str, model: &str) -> String {
    format!(
        r#"
  OpenAI, for instance OPENAI_BASE_URL={url}/v1:
    curl -N {url}/v1/chat/completions -H 'content-type: application/json' \
      -d '{{"model":"{model}","stream":true,"max_tokens":100,"messages":[{{"role":"user","content":"What is a ship?"}}]}}'

  Anthropic, for instance ANTHROPIC_BASE_URL={url}:
    curl -N {url}/v1/messages -H 'content-type: application/json' -H 'anthropic-version: 2023-06-01' \
      -d '{{"model":"{model}","stream":true,"max_tokens":100,"messages":[{{"role":"user","content":"What is a ship?"}}]}}'

"#
    )
}
