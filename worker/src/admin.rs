//! The operations port: `/livez`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use modelrelay_protocol::wellknown::{LIVEZ_PATH, METRICS_PATH, READYZ_PATH};
use prometheus::TextEncoder;
use tokio::net::TcpListener;

use crate::app::Core;

/// Serves until the task is dropped.
pub(crate) async fn serve(listener: TcpListener, core: Arc<Core>) {
    let router = Router::new()
        .route(LIVEZ_PATH, get(|| async { "ok" }))
        .route(READYZ_PATH, get(readyz))
        .route(METRICS_PATH, get(metrics))
        .with_state(core);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "The operations port closed");
    }
}

/// Ready means connected to a relay, whatever the backend does: a pod is not restarted for its engine's sake.
async fn readyz(State(core): State<Arc<Core>>) -> Response {
    if core.drain.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining").into_response();
    }
    if !core.metrics.any_connected() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not connected to any relay").into_response();
    }
    "ok".into_response()
}

async fn metrics(State(core): State<Arc<Core>>) -> Response {
    core.note_slots();
    match TextEncoder::new().encode_to_string(&core.metrics.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
