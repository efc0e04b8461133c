//! The operations port: health, metrics, and what an operator asks of a running relay.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use modelrelay_protocol::wellknown::{ADMIN_PREFIX, LIVEZ_PATH, METRICS_PATH, READYZ_PATH};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::info;

use crate::app::Relay;
use crate::keys::{bearer_token, token_matches};

/// Returns the routes of the operations port. Health and metrics are open; the rest needs the bearer token of the
/// settings, or a loopback listener when the settings have none.
pub fn router(relay: Arc<Relay>) -> Router {
    let admin = Router::new()
        .route("/workers", get(workers))
        .route("/queue", get(queue))
        .route("/requests", get(requests))
        .route("/config", get(config))
        .route("/drain", post(drain))
        .layer(axum::middleware::from_fn_with_state(relay.clone(), authorize));
    Router::new()
        .route(LIVEZ_PATH, get(async || "ok\n"))
        .route(READYZ_PATH, get(readyz))
        .route(METRICS_PATH, get(metrics))
        .nest(ADMIN_PREFIX, admin)
        .with_state(relay)
}

async fn authorize(State(relay): State<Arc<Relay>>, request: Request, next: Next) -> Response {
    let settings = relay.settings.load_full();
    let allowed = match &settings.config.admin.sha256 {
        Some(hash) => token_matches(bearer_token(request.headers()), hash),
        None => settings.config.ops_listen.ip().is_loopback() && is_local_name(request.headers()),
    };
    if allowed {
        return next.run(request).await;
    }
    let message = "the admin API needs `authorization: Bearer TOKEN`; the token's SHA-256 is admin.sha256 in the settings\n";
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], message).into_response()
}

/// A page in a browser on this machine must not reach the API under a name of its own (DNS rebinding).
fn is_local_name(headers: &HeaderMap) -> bool {
    let host = headers.get(http::header::HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host();
    name.eq_ignore_ascii_case("localhost")
        || name
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

async fn readyz(State(relay): State<Arc<Relay>>) -> Response {
    if relay.drain.refuses_workers() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    if !relay.is_settled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "no worker has found this relay yet\n").into_response();
    }
    "ok\n".into_response()
}

async fn metrics(State(relay): State<Arc<Relay>>) -> Response {
    let settings = relay.settings.load_full();
    let most = settings.config.queue.max_requests as usize;
    let text = relay.metrics.render(&relay.dispatcher, &relay.bodies, most);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[derive(Serialize)]
struct WorkerRow {
    id: u64,
    name: Arc<str>,
    /// Tells processes of the same name apart, and is the same at every relay; absent for v1 workers.
    instance: Option<String>,
    pool: Arc<str>,
    namespace: Option<Arc<str>>,
    labels: std::collections::BTreeMap<String, String>,
    remote: String,
    software: Option<String>,
    protocol: &'static str,
    models: Vec<Arc<str>>,
    slots: u32,
    free: u32,
    running: usize,
    state: &'static str,
    reason: Option<String>,
    round_trip_ms: Option<f64>,
    connected_seconds: u64,
    engine: Option<Value>,
}

async fn workers(State(relay): State<Arc<Relay>>) -> Json<Vec<WorkerRow>> {
    let snapshot = relay.dispatcher.with_scheduler(|scheduler| scheduler.snapshot(Instant::now().into_std()));
    let rows = relay.dispatcher.sessions().into_iter().map(|session| {
        let live = session.live();
        let seen = snapshot.workers.iter().find(|worker| worker.worker == session.id);
        WorkerRow {
            id: session.id.0,
            name: session.name.clone(),
            instance: session.instance.clone(),
            pool: session.credential.pool.clone(),
            namespace: session.credential.namespace.clone(),
            labels: session.entry().labels.clone(),
            remote: session.remote.to_string(),
            software: session.software.clone(),
            protocol: if session.is_ours() { "extended" } else { "v1" },
            slots: session.slots,
            free: seen.map_or(0, |worker| worker.free),
            running: session.running(),
            state: match () {
                () if live.draining => "draining",
                () if live.models.is_empty() => "not_ready",
                () => "ready",
            },
            models: live.models,
            reason: live.load.as_ref().and_then(|load| load.reason.clone()),
            round_trip_ms: live.round_trip.map(|time| time.as_secs_f64() * 1000.0),
            connected_seconds: session.since.elapsed().as_secs(),
            engine: live.load.and_then(|load| serde_json::to_value(load).ok()),
        }
    });
    Json(rows.collect())
}

async fn queue(State(relay): State<Arc<Relay>>) -> Json<Value> {
    let snapshot = relay.dispatcher.with_scheduler(|scheduler| scheduler.snapshot(Instant::now().into_std()));
    let queues: Vec<Value> = snapshot
        .queues
        .iter()
        .map(|queue| {
            json!({
                "model": queue.model,
                "length": queue.length,
                "bytes": queue.bytes,
                "oldest_ms": queue.oldest.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
                "workers": queue.workers,
            })
        })
        .collect();
    Json(json!({ "queues": queues, "body_bytes_held": relay.bodies.held() }))
}

async fn requests(State(relay): State<Arc<Relay>>) -> Response {
    Json(relay.dispatcher.requests()).into_response()
}

async fn config(State(relay): State<Arc<Relay>>) -> Json<Value> {
    let settings = relay.settings.load_full();
    let report = relay.settings.report();
    Json(json!({
        "revision": settings.revision,
        "ignored": settings.ignored,
        "problem": report.problem,
        "config": settings.config.shown(),
    }))
}

async fn drain(State(relay): State<Arc<Relay>>) -> (StatusCode, Json<Value>) {
    info!("A drain was asked for");
    relay.drain_requested.cancel();
    (StatusCode::ACCEPTED, Json(json!({ "draining": true })))
}
