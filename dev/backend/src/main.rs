//! The stub backend as a process.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use dev_backend::{Backend, Config, Flavour};
use tokio::signal::unix::{SignalKind, signal};

/// A stub OpenAI and Anthropic backend.
#[derive(Debug, Parser)]
#[command(name = "dev-backend")]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Models to serve, with commas between; an empty list serves any name.
    #[arg(long, value_delimiter = ',', default_value = "m")]
    models: Vec<String>,
    /// Engine to resemble: openai, llama-server, ollama or vllm.
    #[arg(long, default_value = "openai")]
    flavour: Flavour,
    /// Slots to report.
    #[arg(long, default_value_t = 4)]
    slots: u32,
    /// What requests get that ask for nothing else, as JSON.
    #[arg(long, default_value = "{}")]
    script: String,
    /// File to write the address to when ready.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Threads to serve with; all cores unless given.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = arguments.threads {
        runtime.worker_threads(threads.max(1));
    }
    runtime.enable_all().build()?.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { listen, models, flavour, slots, script, ready_file, threads: _ } = arguments;
    let models = models.into_iter().filter(|model| !model.is_empty()).collect();
    let script = serde_json::from_str(&script).context("--script")?;
    let config = Config { listen, models, flavour, script, slots, keep_requests: 0 };
    // Handlers first: a signal sent as soon as the address is known must end the process in good order.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let backend = Backend::start(config).await.with_context(|| format!("listen on {listen}"))?;
    writeln!(std::io::stdout(), "{}", backend.url()).context("print the address")?;
    if let Some(file) = ready_file {
        std::fs::write(&file, backend.addr.to_string())
            .with_context(|| format!("write {}", file.display()))?;
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    backend.shutdown().await;
    Ok(())
}
