//! A worker's end of its connection to a relay, written by hand: as little of the protocol as a load needs.

use futures_util::{FutureExt, SinkExt, StreamExt};
use http::HeaderValue;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::report::Failure;
use crate::target::Target;

/// What a worker says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registration<'a> {
    pub(crate) name: &'a str,
    pub(crate) model: &'a str,
    pub(crate) slots: u32,
    /// Announces what the project's own worker announces, and lends its slots, instead of plain v1.
    pub(crate) extended: bool,
}

/// A worker connection; dropping it closes the socket without a word, as a killed worker does.
#[derive(Debug)]
pub(crate) struct Session {
    socket: WebSocketStream<TcpStream>,
}

/// Thousands of these are open at once, and little ever comes.
const BUFFER_BYTES: usize = 4 * 1024;

impl Session {
    /// Connects without registering.
    pub(crate) async fn connect(target: &Target, secret: &str) -> Result<Self, Failure> {
        let socket = TcpStream::connect(target.addr).await.map_err(|_| Failure::Connect)?;
        socket.set_nodelay(true).map_err(|_| Failure::Connect)?;
        let mut request = target.connect_url().into_client_request().map_err(|_| Failure::Connect)?;
        let secret = HeaderValue::from_str(secret).map_err(|_| Failure::Connect)?;
        request.headers_mut().insert("x-worker-secret", secret);
        let config = WebSocketConfig::default().read_buffer_size(BUFFER_BYTES).write_buffer_size(0);
        let (socket, _) =
            client_async_with_config(request, socket, Some(config)).await.map_err(|_| Failure::Status)?;
        Ok(Self { socket })
    }

    /// Registers and waits for the answer.
    pub(crate) async fn register(&mut self, registration: Registration<'_>) -> Result<(), Failure> {
        self.announce(registration).await?;
        let answer = self.next().await?;
        if answer["type"] != "register_ack" {
            return Err(Failure::Mismatch);
        }
        let Registration { slots, extended, .. } = registration;
        if extended {
            self.send(&json!({"type": "grant", "n": slots})).await?;
        }
        Ok(())
    }

    /// Registers without waiting.
    pub(crate) async fn announce(&mut self, registration: Registration<'_>) -> Result<(), Failure> {
        let Registration { name, model, slots, extended } = registration;
        let mut register = json!({
            "type": "register", "worker_name": name, "models": [model], "max_concurrent": slots, "current_load": 0,
        });
        if extended {
            register["extensions"] = json!(["streams.v1", "slots.v1", "goaway.v1", "load.v1"]);
            register["instance"] = name.into();
            register["request_window_bytes"] = (256 * 1024).into();
        }
        self.send(&register).await
    }

    pub(crate) async fn send(&mut self, message: &Value) -> Result<(), Failure> {
        self.socket.send(Message::text(message.to_string())).await.map_err(|_| Failure::Broken)
    }

    /// Returns the next message that is no ping; pings are answered.
    pub(crate) async fn next(&mut self) -> Result<Value, Failure> {
        loop {
            match self.socket.next().await {
                None | Some(Err(_) | Ok(Message::Close(_))) => return Err(Failure::Broken),
                Some(Ok(Message::Text(text))) => {
                    let message: Value = serde_json::from_str(&text).map_err(|_| Failure::Garbage)?;
                    if message["type"] != "ping" {
                        return Ok(message);
                    }
                    let echo = &message["timestamp_unix_ms"];
                    self.send(&json!({"type": "pong", "current_load": 0, "timestamp_unix_ms": echo})).await?;
                }
                // Nothing here ever asks for a binary frame, and the library answers its own pings.
                Some(Ok(Message::Binary(_))) => return Err(Failure::Garbage),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            }
        }
    }

    /// Returns the id of the next request.
    pub(crate) async fn request(&mut self) -> Result<Value, Failure> {
        loop {
            let mut message = self.next().await?;
            if message["type"] == "request" {
                return Ok(message["request_id"].take());
            }
        }
    }

    /// Answers a request that asked for no stream.
    pub(crate) async fn answer(&mut self, request: &Value, body: &str) -> Result<(), Failure> {
        let headers = json!({"content-type": "application/json"});
        self.send(&json!({
            "type": "response_complete", "request_id": request, "status_code": 200, "headers": headers, "body": body,
        }))
        .await
    }

    /// Returns whether a cancel of this request has come, without waiting.
    pub(crate) fn is_cancelled(&mut self, request: &Value) -> Result<bool, Failure> {
        while let Some(message) = self.next().now_or_never() {
            let message = message?;
            if message["type"] == "cancel" && message["request_id"] == *request {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
