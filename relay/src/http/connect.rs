//! The route on which workers dial in.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::header::{CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{StatusCode, Uri};
use modelrelay_protocol::wellknown::{WORKER_SECRET_QUERY, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::debug;

use super::error::RelayError;
use super::headers::RequestId;
use super::route::Api;
use crate::app::Relay;
use crate::edge::{EdgeIo, PeerAddr};
use crate::session::accept::{self, Arrival};

/// `GET /v1/worker/connect`
///
/// A worker without a right secret is upgraded as well and closed with 1008 afterwards: v1 workers take an HTTP status
/// for a network error.
pub async fn serve(State(relay): State<Arc<Relay>>, mut request: Request) -> Response {
    let headers = request.headers();
    let Some(accept_key) = accept_key(headers) else {
        let error = RelayError::invalid("this path is for workers: connect with a WebSocket client", None);
        return error.response(Api::OpenAi, &RequestId::of(headers));
    };
    let secret = presented_secret(headers, request.uri());
    let replicas = relay.settings.replicas().get();
    let arrival = Arrival {
        credential: relay.settings.load().credentials.authenticate(secret.as_deref()),
        remote: request
            .extensions()
            .get::<PeerAddr>()
            .map_or_else(|| std::net::SocketAddr::from(([0, 0, 0, 0], 0)), |peer| peer.0),
        replicas,
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let tasks = relay.sessions.clone();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept_key);
    headers.insert(header::REPLICA, relay.replica_header.clone());
    headers.insert(header::REPLICAS, HeaderValue::from(replicas));
    tasks.spawn(async move {
        match upgrade.await.map(EdgeIo::reclaim) {
            Ok(Ok((stream, read))) => accept::run(relay, stream, read, arrival).await,
            Ok(Err(_)) => debug!("A worker's connection is not one of the edge's"),
            Err(error) => debug!(%error, "A worker's upgrade broke off"),
        }
    });
    response
}

/// Returns the answer to a WebSocket handshake (RFC 6455, 4.2.1), `None` when the request is none.
fn accept_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let has = |name, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(wanted)))
    };
    let upgrades = has(CONNECTION, "upgrade") && has(UPGRADE, "websocket");
    let version = has(http::header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| upgrades && version)?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()
}

/// The header wins over the query.
fn presented_secret(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let from_header = headers.get(header::WORKER_SECRET).and_then(|value| value.to_str().ok());
    from_header.map(str::to_owned).or_else(|| {
        form_urlencoded::parse(uri.query()?.as_bytes())
            .find(|(name, _)| name == WORKER_SECRET_QUERY)
            .map(|(_, value)| value.into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_wins_over_the_query() {
        let uri: Uri = "/v1/worker/connect?provider=local&worker_secret=a%2Bb".parse().unwrap();
        let mut headers = HeaderMap::new();
        assert_eq!(presented_secret(&headers, &uri).as_deref(), Some("a+b"));
        headers.insert(header::WORKER_SECRET, HeaderValue::from_static("c"));
        assert_eq!(presented_secret(&headers, &uri).as_deref(), Some("c"));
        assert_eq!(presented_secret(&HeaderMap::new(), &"/v1/worker/connect".parse().unwrap()), None);
    }
}
