//! Clients that speak HTTP/2 from the first byte.

use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use modelrelay_relay::edge::EdgeLimits;
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use crate::support::{Running, Seen, soon, start};

pub(crate) type H2Client = SendRequest<Empty<Bytes>>;

pub(crate) async fn h2_client(relay: &Running) -> H2Client {
    h2_connection(relay).await.0
}

/// The task ends with the connection.
async fn h2_connection(relay: &Running) -> (H2Client, JoinHandle<()>) {
    let stream = relay.connect().await.stream;
    let (client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = relay.connections.spawn(async move {
        let _ = connection.await;
    });
    (client, connection)
}

pub(crate) fn h2_get(relay: &Running, path: &str) -> http::Request<Empty<Bytes>> {
    http::Request::get(format!("http://{}{path}", relay.address)).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn http_2_is_served_by_prior_knowledge() {
    let mut relay = start(EdgeLimits::default()).await;
    let mut client = h2_client(&relay).await;
    for _ in 0..3 {
        let response = soon(client.send_request(h2_get(&relay, "/peer"))).await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.starts_with(b"127.0.0.1:"), "{body:?}");
    }
    // A request that the client gives up is dropped.
    let hanging = client.send_request(h2_get(&relay, "/hang"));
    assert_eq!(relay.saw().await, Seen::Hanging);
    drop(hanging);
    assert_eq!(relay.saw().await, Seen::Dropped);
    relay.end().await;
}

#[tokio::test]
async fn draining_sends_http_2_clients_away_after_their_requests() {
    let mut relay = start(EdgeLimits::default()).await;
    let mut client = h2_client(&relay).await;
    let response = soon(client.send_request(h2_get(&relay, "/stream"))).await.unwrap();
    relay.shutdown.drain.cancel();
    soon(async { while client.send_request(h2_get(&relay, "/peer")).await.is_ok() {} }).await;
    relay.chunks.send(Ok("last".into())).await.unwrap();
    relay.end_stream();
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "last");
    relay.end().await;
}

#[tokio::test]
async fn an_idle_http_2_connection_ends() {
    let limits = EdgeLimits { idle_timeout: Duration::from_millis(100), ..EdgeLimits::default() };
    let relay = start(limits).await;
    let (mut client, connection) = h2_connection(&relay).await;
    soon(client.send_request(h2_get(&relay, "/peer"))).await.unwrap();
    soon(connection).await.unwrap();
    // One that never says more than its preface ends too.
    let mut silent = relay.connect().await;
    silent.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    soon(silent.stream.read_to_end(&mut silent.read)).await.ok();
    relay.end().await;
}
