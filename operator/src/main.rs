//! The operator as a program.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use kube::{Client, Config};
use modelrelay_operator::api::schema;
use modelrelay_operator::cli::{Cli, Command, RunArgs};
use modelrelay_operator::controller::Operator;
use modelrelay_operator::lease::{Elector, LeaseSettings};
use modelrelay_operator::metrics::Metrics;
use modelrelay_operator::{check, connection, ops};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Crd) => print_crds(),
        Some(Command::Check { url, timeout_seconds }) => answers(url, Duration::from_secs(timeout_seconds)),
        None => run(&cli.run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_crds() -> anyhow::Result<()> {
    match std::io::stdout().write_all(schema::crds_yaml().as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("print the CRDs"),
    }
}

fn answers(url: http::Uri, limit: Duration) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(check::until_success(url, limit))?)
}

fn run(args: &RunArgs) -> anyhow::Result<()> {
    log();
    let provider = rustls::crypto::ring::default_provider();
    // It fails when one is installed already, which serves as well.
    let _ = provider.install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args))
}

/// JSON when not on a terminal.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        lines.init();
    } else {
        lines.json().flatten_event(true).init();
    }
}

async fn serve(args: &RunArgs) -> anyhow::Result<()> {
    let client = client().await?;
    let metrics = Metrics::new();
    let stop = stop_on_signals()?;
    let listener = ops::bind(args.ops_listen)
        .await
        .with_context(|| format!("bind the operations port {}", args.ops_listen))?;
    info!(operations = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "Operator runs");
    let elector = Elector::new(client.clone(), lease(args));
    let work = || async {
        let _leading = metrics.leading();
        Operator::new(client.clone(), args.options(), metrics.clone()).run(stop.clone()).await;
    };
    tokio::select! {
        _ = elector.run(&stop, work) => Ok(()),
        served = ops::serve(listener, metrics.clone(), CancellationToken::new()) => served.context("serve the operations port"),
    }
}

/// Connects to the cluster that the pod runs in, or to that of the kubeconfig.
async fn client() -> anyhow::Result<Client> {
    let config = Config::infer().await.context("find the API server")?;
    Client::try_from(connection::patient(config)).context("prepare the connection to the API server")
}

fn lease(args: &RunArgs) -> LeaseSettings {
    // The suffix tells the processes of one pod, or of one machine, apart.
    let host = args.pod_name.clone().or_else(|| std::env::var("HOSTNAME").ok());
    let identity =
        format!("{}_{:08x}", host.unwrap_or_else(|| String::from("operator")), rand::random::<u32>());
    LeaseSettings {
        namespace: args.own_namespace(),
        name: args.lease_name.clone(),
        identity,
        duration: LeaseSettings::DURATION,
    }
}

/// Returns a token that SIGTERM and SIGINT cancel.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    // Lives as long as the process: it has nothing to finish.
    #[expect(clippy::disallowed_methods, reason = "ends with the runtime, and nobody waits for it")]
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("Stopping");
        stopped.cancel();
    });
    Ok(stop)
}
