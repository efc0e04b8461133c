//! The relay as a program: signals, and the runtime around [`app`].

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;

use modelrelay_relay::settings::Live;
use modelrelay_relay::{app, cli};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Gives memory back: what a burst of streams needed is the system's again within seconds.
#[cfg(not(windows))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main(|live, given| {
        let processors = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = given.map_or_else(|| threads(processors()), NonZeroUsize::get);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(threads).enable_all().build()?.block_on(serve(live))
    })
}

/// Chooses the number of threads that serve: half the processors, at least one.
///
/// One thread carries tens of thousands of requests a second. Each further one costs wake-ups between them for every
/// request, and takes processors from whatever runs beside the relay.
fn threads(processors: usize) -> usize {
    (processors / 2).max(1)
}

async fn serve(live: Arc<Live>) -> anyhow::Result<()> {
    let bound = app::bind(live).await?;
    info!(
        client = %bound.client_address()?,
        operations = %bound.operations_address()?,
        version = env!("CARGO_PKG_VERSION"),
        "Relay listens"
    );
    let (stop, force) = (CancellationToken::new(), CancellationToken::new());
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let signals = async {
        // The first asks for a drain, the second ends it.
        for token in [&stop, &force] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = bound.run(stop.clone(), force.clone()) => {}
        () = signals => {}
    }
    Ok(())
}
