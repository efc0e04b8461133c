//! The operations port: `/livez`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use modelrelay_protocol::wellknown::{LIVEZ_PATH, METRICS_PATH, READYZ_PATH};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Serves until `stop`. Standing by is being ready: a rollout must not wait for the lease.
///
/// # Errors
/// The port cannot be served.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route(LIVEZ_PATH, get(async || "ok\n"))
        .route(READYZ_PATH, get(async || "ok\n"))
        .route(METRICS_PATH, get(scrape))
        .with_state(metrics);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], metrics.render()).into_response()
}
