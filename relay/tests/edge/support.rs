//! A router behind the edge that does what the tests ask for, and a client that speaks in bytes.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request};
use axum::response::Response;
use axum::routing::{any, get, post};
use futures_util::StreamExt;
use http::{StatusCode, header};
use modelrelay_relay::edge::{Edge, EdgeIo, EdgeLimits, PeerAddr, Shutdown};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// No wait in these tests is longer, and none should come near it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const GET: &[u8] = b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n";
pub(crate) const HANG: &[u8] = b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n";

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future).await.expect("it should have happened by now")
}

/// What the service did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Hanging,
    Dropped,
}

struct SayDropped(mpsc::Sender<Seen>);

impl Drop for SayDropped {
    fn drop(&mut self) {
        let _ = self.0.try_send(Seen::Dropped);
    }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) connections: TaskTracker,
    pub(crate) edge: JoinHandle<()>,
    pub(crate) seen: mpsc::Receiver<Seen>,
    /// Each message makes `/stream` send a chunk, or break off.
    pub(crate) chunks: mpsc::Sender<io::Result<Bytes>>,
}

pub(crate) async fn start(limits: EdgeLimits) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, connections) = (Shutdown::default(), TaskTracker::new());
    let (saw, seen) = mpsc::channel(16);
    let (chunks, receiver) = mpsc::channel(16);
    let router = router(saw, receiver);
    let edge = Edge::new(listener, limits).run(router, shutdown.clone(), connections.clone());
    let edge = connections.spawn(edge);
    Running { address, shutdown, connections, edge, seen, chunks }
}

pub(crate) fn router(saw: mpsc::Sender<Seen>, chunks: mpsc::Receiver<io::Result<Bytes>>) -> Router {
    let chunks = std::sync::Arc::new(std::sync::Mutex::new(Some(chunks)));
    let hang = move || {
        let saw = saw.clone();
        async move {
            let guard = SayDropped(saw.clone());
            saw.send(Seen::Hanging).await.unwrap();
            pending::<()>().await;
            drop(guard);
        }
    };
    let stream = move || {
        let receiver = chunks.lock().unwrap().take().expect("asked for once");
        let chunks =
            futures_util::stream::unfold(receiver, async |mut chunks| Some((chunks.recv().await?, chunks)));
        async move { Body::from_stream(chunks.fuse()) }
    };
    Router::new()
        .route("/echo", any(async |body: Bytes| body))
        .route("/peer", get(async |Extension(PeerAddr(peer)): Extension<PeerAddr>| peer.to_string()))
        .route("/early", post(async || StatusCode::PAYLOAD_TOO_LARGE))
        .route("/hang", any(hang))
        .route("/stream", get(stream))
        .route("/upgrade", get(upgrade))
}

/// Leaves HTTP and sends everything back.
async fn upgrade(request: Request) -> Response {
    let upgraded = hyper::upgrade::on(request);
    // The test waits for what this sends; nothing else owns it.
    tokio::spawn(async move {
        let (mut stream, read) = EdgeIo::reclaim(upgraded.await.unwrap()).expect("it is the edge's");
        stream.write_all(&read).await.unwrap();
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "echo")
        .body(Body::empty())
        .unwrap()
}

impl Running {
    pub(crate) async fn connect(&self) -> Client {
        Client { stream: soon(TcpStream::connect(self.address)).await.unwrap(), read: Vec::new() }
    }

    pub(crate) async fn saw(&mut self) -> Seen {
        soon(self.seen.recv()).await.unwrap()
    }

    /// Makes the body of `/stream` complete.
    pub(crate) fn end_stream(&mut self) {
        self.chunks = mpsc::channel(1).0;
    }

    /// Ends everything and checks that nothing is left.
    pub(crate) async fn end(self) {
        self.shutdown.force.cancel();
        soon(self.edge).await.unwrap();
        self.connections.close();
        soon(self.connections.wait()).await;
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) read: Vec<u8>,
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        soon(self.stream.write_all(bytes)).await.unwrap();
    }

    /// Reads one response whose body has a length.
    pub(crate) async fn response(&mut self) -> (String, Vec<u8>) {
        let head_end = self.read_until(|read| find(read, b"\r\n\r\n").map(|at| at + 4)).await;
        let head = String::from_utf8(self.read.drain(..head_end).collect()).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |n| n.parse().unwrap());
        self.read_until(|read| (read.len() >= length).then_some(length)).await;
        (head, self.read.drain(..length).collect())
    }

    pub(crate) async fn read_until(&mut self, done: impl Fn(&[u8]) -> Option<usize>) -> usize {
        loop {
            if let Some(length) = done(&self.read) {
                return length;
            }
            let read = soon(self.stream.read_buf(&mut self.read)).await.unwrap();
            assert!(read > 0, "closed after {}", self.read.escape_ascii());
        }
    }

    /// Sends a request and checks that it is answered.
    pub(crate) async fn exchange(&mut self) -> String {
        self.send(GET).await;
        let (head, _) = self.response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        head
    }

    /// Reads all there is to come, up to the end of the stream.
    pub(crate) async fn rest(&mut self) -> String {
        soon(self.stream.read_to_end(&mut self.read)).await.unwrap();
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }
}

pub(crate) fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

pub(crate) fn bare(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
}
