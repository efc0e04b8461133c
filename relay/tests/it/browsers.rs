//! Pages of other origins, and clients that speak HTTP/2.

#![allow(clippy::disallowed_methods, reason = "tasks belong to the handles that abort them")]

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::{CHAT, OurWorker, TestRelay, V1Worker, chat, request, soon};

const PAGE: &str = "https://chat.example.com";

fn preflight(origin: &str) -> http::Request<Full<Bytes>> {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    request("OPTIONS", CHAT, &headers, "")
}

#[tokio::test]
async fn other_origins_are_refused_unless_the_settings_name_them() {
    let closed = TestRelay::start("").await;
    let answer = closed.send(preflight(PAGE)).await;
    assert_eq!((answer.status(), answer.header("access-control-allow-origin")), (404, None));
    let open = TestRelay::start(&format!("cors: {{ origins: [\"{PAGE}\"] }}\n")).await;
    let answer = open.send(preflight(PAGE)).await;
    assert_eq!((answer.status(), answer.header("access-control-allow-origin")), (200, Some(PAGE)));
    // Not covered by `*`.
    let allowed = answer.header("access-control-allow-headers").unwrap();
    assert!(allowed.split(',').any(|name| name.trim() == "authorization"), "{allowed}");
    let other = open.send(preflight("https://evil.example.com")).await;
    assert_eq!(other.header("access-control-allow-origin"), None);
    // Errors are readable for the page as well, and the operations port knows nothing of it.
    let answer = open.send(request("POST", CHAT, &[("origin", PAGE)], "{")).await;
    assert_eq!((answer.status(), answer.header("access-control-allow-origin")), (400, Some(PAGE)));
    let answer = open.operate("GET", "/admin/v1/workers", &[("origin", PAGE)]).await;
    assert_eq!((answer.status(), answer.header("access-control-allow-origin")), (200, None));
}

#[tokio::test]
async fn http_2_carries_streams_breaks_and_cancels_side_by_side() {
    let relay = TestRelay::start("").await;
    let mut plain = V1Worker::join(&relay, &["plain"], 1).await;
    let mut ours = OurWorker::join(&relay, &["ours"], 1).await;
    let stream = TcpStream::connect(relay.client).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let ask = |model: &str| {
        let body = Full::new(Bytes::from(chat(model, true)));
        let request = http::Request::post(format!("http://{}{CHAT}", relay.client)).body(body).unwrap();
        let mut sender = sender.clone();
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(
            async move { sender.send_request(request).await },
        ))
    };
    let (broken, whole) = (ask("plain"), ask("ours"));
    let taken = plain.request().await;
    plain.chunk(&taken, "data: 1\n\n").await;
    let (id, ..) = ours.request().await;
    ours.begin(id, 200, &[("content-type", "text/event-stream")], b"data: 1\n\n").await;
    let broken = soon("a head", broken).await.unwrap().unwrap();
    let whole = soon("a head", whole).await.unwrap().unwrap();
    assert!(broken.headers().contains_key("x-request-id"));
    drop(plain);
    let error = soon("a broken body", async {
        let mut body = broken.into_body();
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("a clean end"),
            }
        }
    })
    .await;
    assert!(!error.is_timeout());
    ours.data(id, b"data: 2\n\n").await;
    ours.end(id).await;
    let body = soon("a whole body", whole.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(body, "data: 1\n\ndata: 2\n\n");
    // One stream is reset; the connection stays.
    let leaver = ask("ours");
    let (id, ..) = ours.request().await;
    drop(leaver);
    ours.cancelled(id).await;
    ours.frame(modelrelay_protocol::codec::encode_cancelled(id, true)).await;
    assert!(!connection.is_finished());
    relay.settled().await;
}
