//! The relay as a program: signals, and the runtime around [`app`].

use std::process::ExitCode;
use std::sync::Arc;

use modelrelay_relay::settings::Live;
use modelrelay_relay::{app, cli};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main(|live| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(serve(live))
    })
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
