//! A plain v1 worker: every frame is written by hand.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::{TestRelay, eventually, soon};

/// A registered worker.
pub struct V1Worker {
    pub socket: WebSocketStream<TcpStream>,
    pub ack: Value,
}

/// A request for the upgrade, to which headers may be added.
pub fn upgrade(address: SocketAddr, query: &str) -> http::request::Builder {
    http::Request::builder()
        .uri(format!("ws://{address}/v1/worker/connect{query}"))
        .header("host", address.to_string())
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
}

impl V1Worker {
    /// Connects without registering.
    pub async fn dial(address: SocketAddr, secret: Option<&str>) -> WebSocketStream<TcpStream> {
        let mut request = upgrade(address, "?provider=local");
        if let Some(secret) = secret {
            request = request.header("x-worker-secret", secret);
        }
        Self::dial_with(address, request).await.0
    }

    /// Connects with a request of one's own; gives the headers of the answer as well.
    pub async fn dial_with(
        address: SocketAddr,
        request: http::request::Builder,
    ) -> (WebSocketStream<TcpStream>, http::HeaderMap) {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (socket, answer) =
            soon("an upgrade", tokio_tungstenite::client_async(request.body(()).unwrap(), stream))
                .await
                .unwrap();
        (socket, answer.headers().clone())
    }

    pub async fn join(relay: &TestRelay, models: &[&str], slots: u32) -> Self {
        Self::join_named(relay, "v1", models, slots).await
    }

    pub async fn join_named(relay: &TestRelay, name: &str, models: &[&str], slots: u32) -> Self {
        let register =
            json!({ "type": "register", "worker_name": name, "models": models, "max_concurrent": slots });
        Self::join_as(relay, &register).await
    }

    pub async fn join_as(relay: &TestRelay, register: &Value) -> Self {
        Self::join_with(relay, register, None).await
    }

    pub async fn join_with(relay: &TestRelay, register: &Value, secret: Option<&str>) -> Self {
        let socket = Self::dial(relay.client, secret).await;
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

    /// The next message, which has to cancel this request.
    pub async fn cancelled(&mut self, request: &Value) -> Value {
        let message = self.receive().await;
        assert_eq!(message["type"], "cancel", "{message}");
        assert_eq!(message["request_id"], request["request_id"]);
        message["reason"].clone()
    }

    /// How the relay closed the session.
    pub async fn closed(&mut self) -> Option<CloseFrame> {
        closed(&mut self.socket).await
    }

    pub async fn complete(&mut self, request: &Value, status: u16, body: &str) {
        self.send(completion(request, status, body)).await;
    }

    pub async fn chunk(&mut self, request: &Value, chunk: &str) {
        self.send(json!({ "type": "response_chunk", "request_id": request["request_id"], "chunk": chunk }))
            .await;
    }
}

/// What a v1 worker sends when an answer is whole.
pub fn completion(request: &Value, status: u16, body: &str) -> Value {
    json!({
        "type": "response_complete", "request_id": request["request_id"], "status_code": status,
        "headers": { "content-type": "application/json" }, "body": body,
    })
}

/// How the relay closed a connection; none when it broke off without a word.
pub async fn closed(socket: &mut WebSocketStream<TcpStream>) -> Option<CloseFrame> {
    loop {
        match soon("a close", socket.next()).await {
            Some(Ok(Message::Close(frame))) => return frame,
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}
