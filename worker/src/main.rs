//! The worker's program: arguments, signals, exit status.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use modelrelay_worker::app::Worker;
use modelrelay_worker::cli::Flags;
use modelrelay_worker::settings::{Settings, Source};
use modelrelay_worker::telemetry;
use tracing::{error, info};

/// Gives memory back: what a burst of streams needed is the system's again within seconds.
#[cfg(not(windows))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Between looks at the files. Their folders may be swapped by symbolic links, so the content is compared.
const LOOK_EVERY: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let flags = Flags::parse();
    let check_only = flags.check_config;
    let source = Source::of_process(flags);
    if check_only {
        return match source.load() {
            Ok(_) => {
                println!("the settings are valid");
                ExitCode::SUCCESS
            }
            Err(error) => bad_settings(&error),
        };
    }
    telemetry::init();
    let settings = match source.load() {
        Ok(settings) => settings,
        Err(error) => return bad_settings(&error),
    };
    // Fails only when one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // One thread moves more than any engine makes, and spares each request the wake-ups between several.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let files = Files::of(&source, &settings);
            let worker = Worker::start(settings).await?;
            run(worker, &source, files).await
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "Cannot run");
            ExitCode::FAILURE
        }
    }
}

fn bad_settings(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("modelrelay-worker: {error}");
    ExitCode::from(2)
}

/// Runs until a signal; a second one ends at once.
async fn run(worker: Worker, source: &Source, files: Files) -> anyhow::Result<()> {
    let mut signals = signals::Signals::new()?;
    tokio::select! {
        name = signals.next() => info!(signal = name, "Signal received"),
        () = follow(&worker, source, files) => {}
    }
    tokio::select! {
        () = worker.shutdown() => {}
        name = signals.next() => info!(signal = name, "Second signal received, ending at once"),
    }
    Ok(())
}

/// The files that settings were read from.
struct Files(Vec<PathBuf>);

impl Files {
    /// The settings file and the one that holds the secret.
    fn of(source: &Source, settings: &Settings) -> Self {
        Self(source.file().into_iter().chain(settings.config.worker_secret_file.clone()).collect())
    }

    async fn read(&self) -> Vec<Option<Vec<u8>>> {
        let mut contents = Vec::new();
        for path in &self.0 {
            contents.push(tokio::fs::read(path).await.ok());
        }
        contents
    }
}

/// Puts changed settings in force until it is dropped.
async fn follow(worker: &Worker, source: &Source, mut files: Files) {
    // The first look always reads the settings again: the files may have changed since the start read them.
    let mut seen = Vec::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = files.read().await;
        if now == seen {
            continue;
        }
        seen = now;
        match source.load() {
            Ok(settings) => {
                files = Files::of(source, &settings);
                worker.reload(settings);
            }
            Err(error) => {
                error!(%error, "The changed settings cannot be used; the old ones stay in force");
                worker.reload_failed();
            }
        }
    }
}

#[cfg(unix)]
mod signals {
    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// The signals that ask a process to leave.
    pub(super) struct Signals {
        terminate: Signal,
        interrupt: Signal,
    }

    impl Signals {
        pub(super) fn new() -> std::io::Result<Self> {
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        }

        pub(super) async fn next(&mut self) -> &'static str {
            tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            }
        }
    }
}

#[cfg(not(unix))]
mod signals {
    /// The signal that asks a process to leave.
    pub(super) struct Signals;

    impl Signals {
        pub(super) fn new() -> std::io::Result<Self> {
            Ok(Self)
        }

        pub(super) async fn next(&mut self) -> &'static str {
            match tokio::signal::ctrl_c().await {
                Ok(()) => "Ctrl-C",
                Err(_) => std::future::pending().await,
            }
        }
    }
}
