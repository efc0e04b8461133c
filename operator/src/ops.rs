//! The operations port: `/livez`, `/readyz` and `/metrics`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
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

/// Binds the port. `[::]` stands for every address of the pod, also where the node's kernel has no IPv6.
///
/// # Errors
/// The address is taken, or none of the pod's.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Serves until `stop`. Standing by is being ready: a rollout must not wait for the lease.
///
/// # Errors
/// The port cannot be served.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, stop: CancellationToken) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_includes_those_of_ipv4_and_what_is_taken_stays_refused() {
        let listener = bind((Ipv6Addr::UNSPECIFIED, 0).into()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let error = bind((Ipv6Addr::UNSPECIFIED, port).into()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
