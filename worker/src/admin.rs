//! The operations port: `/livez`, `/readyz`, `/metrics`, and below `/admin/v1` what an operator asks of a running worker.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, WWW_AUTHENTICATE};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use modelrelay_protocol::wellknown::{ADMIN_PREFIX, LIVEZ_PATH, METRICS_PATH, READYZ_PATH};
use prometheus::TextEncoder;
use serde::Serialize;
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;

use crate::app::Core;
use crate::settings::sha256;

/// Requests that crossed the announcement of a pause have arrived after this time.
const PAUSE_SETTLES: Duration = Duration::from_secs(1);

/// Serves until the task is dropped.
pub(crate) async fn serve(listener: TcpListener, core: Arc<Core>) {
    let is_loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let admin = Router::new()
        .route("/status", get(status))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .layer(axum::middleware::from_fn_with_state((Arc::clone(&core), is_loopback), authorize));
    let router = Router::new()
        .route(LIVEZ_PATH, get(|| async { "ok" }))
        .route(READYZ_PATH, get(readyz))
        .route(METRICS_PATH, get(metrics))
        .nest(ADMIN_PREFIX, admin)
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
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The admin API needs the bearer token of the settings, or a loopback listener when the settings have none.
async fn authorize(
    State((core, is_loopback)): State<(Arc<Core>, bool)>,
    request: Request,
    next: Next,
) -> Response {
    let hash = core.live.borrow().admin;
    let allowed = match hash {
        Some(hash) => {
            bearer_token(request.headers()).is_some_and(|token| bool::from(sha256(token).0.ct_eq(&hash.0)))
        }
        None => is_loopback && is_local_name(request.headers()),
    };
    if allowed {
        return next.run(request).await;
    }
    let message = "the admin API needs `authorization: Bearer TOKEN`; the token's SHA-256 is admin.sha256 in the settings\n";
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], message).into_response()
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// A page in a browser on this machine must not reach the API under a name of its own (DNS rebinding).
fn is_local_name(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[derive(Serialize)]
struct Status {
    name: String,
    instance: String,
    /// Which settings file is in force.
    revision: String,
    /// The begin of the SHA-256 of the worker secret in force.
    credential: Option<String>,
    draining: bool,
    paused: bool,
    /// Paused, and nothing runs or can still come.
    idle: bool,
    running: u32,
    slots: u32,
    /// What is advertised now.
    models: Vec<String>,
    backend: BackendStatus,
}

#[derive(Serialize)]
struct BackendStatus {
    healthy: bool,
    reason: Option<String>,
    /// What it serves, advertised or not.
    models: Vec<String>,
}

async fn status(State(core): State<Arc<Core>>) -> Json<Status> {
    Json(status_of(&core))
}

async fn pause(State(core): State<Arc<Core>>) -> Json<Status> {
    core.pause();
    Json(status_of(&core))
}

async fn resume(State(core): State<Arc<Core>>) -> Json<Status> {
    core.resume();
    Json(status_of(&core))
}

fn status_of(core: &Core) -> Status {
    let state = core.state.borrow().clone();
    let running = core.capacity.running();
    Status {
        name: core.name.clone(),
        instance: core.instance.clone(),
        revision: core.live.borrow().revision.clone(),
        credential: core.secret().map(|secret| sha256(secret.expose()).to_hex()[..16].to_owned()),
        draining: core.drain.is_cancelled(),
        paused: state.paused.is_some(),
        idle: running == 0 && state.paused.is_some_and(|since| since.elapsed() >= PAUSE_SETTLES),
        running,
        slots: core.capacity.slots(),
        models: core.models_shown(),
        backend: BackendStatus {
            healthy: state.report.healthy,
            reason: state.report.reason,
            models: state.models,
        },
    }
}
