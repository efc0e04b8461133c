//! The client port: routes and layers, nothing else.

pub mod body;
pub mod completions;
pub mod connect;
pub mod error;
pub mod headers;
pub mod models;
pub mod multipart;
pub mod read;
pub mod record;
pub mod route;
pub mod scan;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::future::RouteFuture;
use axum::routing::{get, post};
use hyper::body::Incoming;
use modelrelay_protocol::wellknown::{CONNECT_PATH, HEALTH_PATH};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};
use tower_service::Service;

use self::error::RelayError;
use self::headers::RequestId;
use self::route::{Api, ApiRoute};
use crate::app::Relay;

/// The client port: its routes, with CORS headers where the settings name origins.
#[derive(Clone, Debug)]
pub struct ClientPort {
    relay: Arc<Relay>,
    plain: Router,
    shared: Router,
}

/// Returns the service of the client port.
pub fn service(relay: Arc<Relay>) -> ClientPort {
    let settings = relay.settings.clone();
    let named = AllowOrigin::predicate(move |origin, _| {
        let settings = settings.load();
        settings
            .config
            .cors
            .origins
            .iter()
            .any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
    });
    // Browsers do not count `authorization` among `*`, so the headers that were asked for are named.
    let cors = CorsLayer::new()
        .allow_origin(named)
        .allow_methods(Any)
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(Any);
    let plain = router(relay.clone());
    ClientPort { relay, shared: plain.clone().layer(cors), plain }
}

impl Service<http::Request<Incoming>> for ClientPort {
    type Response = Response;
    type Error = Infallible;
    type Future = RouteFuture<Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> RouteFuture<Infallible> {
        let origins = &self.relay.settings.load().config.cors.origins;
        if origins.is_empty() { self.plain.call(request) } else { self.shared.call(request) }
    }
}

/// Returns the routes of the client port.
fn router(relay: Arc<Relay>) -> Router {
    let mut router = Router::new();
    for api_route in ApiRoute::ALL {
        let serve = move |State(relay): State<Arc<Relay>>, request: Request| {
            completions::serve(relay, api_route, request)
        };
        router = router.route(api_route.path(), post(serve));
    }
    router
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route(CONNECT_PATH, get(connect::serve))
        .route(HEALTH_PATH, get(health))
        .method_not_allowed_fallback(not_found)
        .fallback(not_found)
        .with_state(relay)
}

async fn health() -> ([(http::HeaderName, &'static str); 1], &'static str) {
    ([(http::header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#)
}

async fn not_found(request: Request) -> Response {
    let request_id = RequestId::of(request.headers());
    RelayError::RouteNotFound.response(Api::of_path(request.uri().path()), &request_id)
}
