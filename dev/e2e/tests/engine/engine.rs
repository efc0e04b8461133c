//! The engine, and the parts that it needs.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use dev_e2e::client::{get, try_ask};
use dev_e2e::process::Program;
use dev_e2e::stack::{Relay, worker, worker_config};
use modelrelay_worker::app::Worker;
use tokio::time::{sleep, timeout};

/// Loading a model on a machine that does other things takes this long at most.
const LOADED_WITHIN: Duration = Duration::from_secs(60);

/// Returns a part that `cargo xtask test` provides; without it the test cannot run.
pub(crate) fn part(variable: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let text = format!("SKIPPED: a test of the real engine needs {variable}; `cargo xtask test` sets it");
    assert!(std::env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "{text}");
    // Not by a macro: what those print is shown for failed tests only.
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
    None
}

/// Which model the engine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    /// Random weights: thousands of tokens, quickly.
    Tiny,
    /// Gemma 3 270M: follows a pattern well enough to call tools.
    Small,
}

/// A running engine.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
}

impl Engine {
    /// Starts an engine with two slots; returns none when a part is missing.
    pub(crate) async fn start(model: Model) -> Option<Self> {
        let server = part("MODELRELAY_LLAMA_SERVER")?;
        let file = part(if model == Model::Tiny { "MODELRELAY_TINY_MODEL" } else { "MODELRELAY_MODEL" })?;
        let mut command = Command::new(server);
        // One thread: more of them spin while they wait for one another, which other tests would feel.
        command.args(["--host", "127.0.0.1", "--alias", "engine", "--parallel", "2", "--ctx-size", "16384"]);
        command.args(["--threads", "1", "--embeddings", "--pooling", "mean", "--model"]).arg(file);
        // Answers would tell how much of the prompt was known from the last time.
        command.arg("--no-cache-prompt");
        if model == Model::Small {
            // A base model goes on with a pattern, so the template shows it some; the next question ends an answer.
            let template = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engine/tools.jinja");
            command.args(["--jinja", "--chat-template-file", template, "--reverse-prompt", "Question:"]);
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        command.args(["--port", &port.to_string()]);
        let program = Program::start_command("llama-server", &mut command, |_, _| {});
        let engine = Self { program, address: SocketAddr::from(([127, 0, 0, 1], port)) };
        engine.loaded().await;
        Some(engine)
    }

    async fn loaded(&self) {
        let loaded = async {
            while !matches!(try_ask(self.address, get("/health")).await, Ok(answer) if answer.status() == 200)
            {
                sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(timeout(LOADED_WITHIN, loaded).await.is_ok(), "not loaded:\n{}", self.program.log());
    }

    /// Returns how many of its slots work.
    pub(crate) async fn busy(&self) -> usize {
        let slots = dev_e2e::client::ask(self.address, get("/slots")).await.json().await;
        slots.as_array().unwrap().iter().filter(|slot| slot["is_processing"] == true).count()
    }
}

/// A relay, and a worker between it and the backend, ready.
pub(crate) async fn serve(backend: SocketAddr, slots: u32) -> (Relay, Worker) {
    let relay = Relay::start("queue: {noWorkerTimeoutSeconds: 1}\n").await;
    let worker = worker(worker_config("worker", &[relay.url()], &format!("http://{backend}"), slots)).await;
    relay.ops.idle_workers(&["worker"]).await;
    (relay, worker)
}
