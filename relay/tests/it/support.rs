//! A relay on ports of its own, plain v1 workers written by hand, and clients that see bytes.

#![allow(dead_code, reason = "not every test uses every part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use modelrelay_protocol::config::RelayConfig;
use modelrelay_relay::app::{self, Relay};
use modelrelay_relay::settings::Live;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_util::sync::CancellationToken;

/// What a test waits for at most.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Fails the test instead of hanging.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("did not happen in time: {what}"),
    }
}

/// Waits until `look` gives something.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
}

/// A relay in this process.
pub struct TestRelay {
    pub client: SocketAddr,
    pub operations: SocketAddr,
    pub relay: Arc<Relay>,
    pub stop: CancellationToken,
    pub force: CancellationToken,
    pub task: JoinHandle<()>,
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestRelay {
    pub async fn start(yaml: &str) -> Self {
        let text = format!("listen: 127.0.0.1:0\nopsListen: 127.0.0.1:0\n{yaml}");
        let config = RelayConfig::parse_strictly(&text).unwrap();
        Self::with(Live::fixed(config).unwrap()).await
    }

    pub async fn with(live: Arc<Live>) -> Self {
        let bound = app::bind(live).await.unwrap();
        let (client, operations) = (bound.client_address().unwrap(), bound.operations_address().unwrap());
        let relay = bound.relay();
        let (stop, force) = (CancellationToken::new(), CancellationToken::new());
        #[allow(clippy::disallowed_methods, reason = "owned by this value")]
        let task = tokio::spawn(bound.run(stop.clone(), force.clone()));
        Self { client, operations, relay, stop, force, task }
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(request("POST", path, &[], body)).await
    }

    pub async fn send(&self, request: http::Request<Full<Bytes>>) -> Answer {
        soon("an answer", Client::connect(self.client).await.send(request)).await
    }

    /// Returns what the admin API says.
    pub async fn admin(&self, path: &str) -> Value {
        let mut client = Client::connect(self.operations).await;
        let answer = soon("admin", client.send(request("GET", path, &[], ""))).await;
        serde_json::from_slice(&answer.body().await.unwrap()).unwrap()
    }

    pub async fn metrics(&self) -> String {
        let mut client = Client::connect(self.operations).await;
        let answer = soon("metrics", client.send(request("GET", "/metrics", &[], ""))).await;
        String::from_utf8(answer.body().await.unwrap().to_vec()).unwrap()
    }

    /// Waits until this many requests wait in the queue.
    pub async fn queued(&self, n: usize) {
        eventually(&format!("{n} in the queue"), || {
            let waiting = self.relay.dispatcher.with_scheduler(|scheduler| scheduler.counts().waiting);
            (waiting == n).then_some(())
        })
        .await;
    }

    /// Waits until nothing waits, runs or is held.
    pub async fn settled(&self) {
        eventually("nothing is left over", || {
            let idle = self.relay.dispatcher.is_idle() && self.relay.bodies.held() == 0;
            let sessions = self.relay.dispatcher.sessions();
            (idle && sessions.iter().all(|session| session.running() == 0)).then_some(())
        })
        .await;
    }
}

pub fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> http::Request<Full<Bytes>> {
    let mut builder = http::Request::builder().method(method).uri(path).header("host", "relay");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::new(body.into())).unwrap()
}

pub fn chat(model: &str, stream: bool) -> String {
    json!({ "model": model, "stream": stream, "messages": [] }).to_string()
}

/// One client connection.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        #[allow(clippy::disallowed_methods, reason = "owned by this value")]
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { sender, connection }
    }

    pub async fn send(&mut self, request: http::Request<Full<Bytes>>) -> Answer {
        let response = self.sender.send_request(request).await.unwrap();
        let (head, body) = response.into_parts();
        Answer { head, incoming: body, connection: Some(self.connection.abort_handle()) }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // An answer that is still read keeps its connection; see `Answer`.
    }
}

/// A response whose body is still to be read. Dropping it hangs up.
pub struct Answer {
    pub head: http::response::Parts,
    incoming: Incoming,
    connection: Option<tokio::task::AbortHandle>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.abort();
        }
    }
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The next part of the body as it arrives; `None` at a clean end.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let frame = soon("a chunk", self.incoming.frame()).await?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    /// The whole body.
    pub async fn body(mut self) -> Result<Bytes, hyper::Error> {
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(all.into())
    }

    /// What came before the body broke off.
    pub async fn broken_body(mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.chunk().await {
                Some(Ok(chunk)) => all.extend_from_slice(&chunk),
                Some(Err(_)) => return all,
                None => panic!("the body ended cleanly after {:?}", String::from_utf8_lossy(&all)),
            }
        }
    }

    pub async fn json(self) -> Value {
        serde_json::from_slice(&self.body().await.unwrap()).unwrap()
    }

    pub async fn code(self) -> String {
        self.json().await["error"]["code"].as_str().unwrap().to_owned()
    }
}

/// A plain v1 worker: frames are written by hand.
pub struct V1Worker {
    socket: WebSocketStream<TcpStream>,
    pub ack: Value,
}

impl V1Worker {
    pub async fn dial(address: SocketAddr, secret: Option<&str>) -> WebSocketStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut request = http::Request::builder()
            .uri(format!("ws://{address}/v1/worker/connect?provider=local"))
            .header("host", address.to_string())
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        if let Some(secret) = secret {
            request = request.header("x-worker-secret", secret);
        }
        let (socket, _) = tokio_tungstenite::client_async(request.body(()).unwrap(), stream).await.unwrap();
        socket
    }

    pub async fn join(relay: &TestRelay, models: &[&str], slots: u32) -> Self {
        let register =
            json!({ "type": "register", "worker_name": "v1", "models": models, "max_concurrent": slots });
        Self::join_as(relay, &register).await
    }

    pub async fn join_as(relay: &TestRelay, register: &Value) -> Self {
        let socket = Self::dial(relay.client, None).await;
        let mut worker = Self { socket, ack: Value::Null };
        worker.send(register.clone()).await;
        worker.ack = worker.receive().await;
        assert_eq!(worker.ack["type"], "register_ack");
        let id: u64 = worker.ack["worker_id"].as_str().unwrap().trim_start_matches('w').parse().unwrap();
        eventually("the worker has joined", || {
            relay.relay.dispatcher.sessions().iter().any(|session| session.id.0 == id).then_some(())
        })
        .await;
        worker
    }

    pub async fn send(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    /// Sends several messages in one piece.
    pub async fn send_together(&mut self, messages: &[Value]) {
        for message in messages {
            self.socket.feed(Message::text(message.to_string())).await.unwrap();
        }
        self.socket.flush().await.unwrap();
    }

    pub async fn send_raw(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// The next message, whatever it is.
    pub async fn receive(&mut self) -> Value {
        match soon("a message to the worker", self.socket.next()).await {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
            other => panic!("not a message: {other:?}"),
        }
    }

    /// The next message, which has to be a request.
    pub async fn request(&mut self) -> Value {
        let message = self.receive().await;
        assert_eq!(message["type"], "request", "{message}");
        message
    }

    /// How the relay closed the session.
    pub async fn closed(&mut self) -> Option<CloseFrame> {
        loop {
            match soon("a close", self.socket.next()).await {
                Some(Ok(Message::Close(frame))) => return frame,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    pub async fn complete(&mut self, request: &Value, status: u16, body: &str) {
        self.send(json!({
            "type": "response_complete", "request_id": request["request_id"], "status_code": status,
            "headers": { "content-type": "application/json", "content-length": "9999", "transfer-encoding": "chunked" },
            "body": body,
        }))
        .await;
    }

    pub async fn chunk(&mut self, request: &Value, chunk: &str) {
        self.send(json!({ "type": "response_chunk", "request_id": request["request_id"], "chunk": chunk }))
            .await;
    }
}
