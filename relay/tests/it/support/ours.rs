//! A worker that speaks our extensions, frame by frame.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use modelrelay_protocol::codec::{self, FailureCode, RelayFrame, RequestHead, StreamId};
use modelrelay_protocol::frame::TokenCounts;
use modelrelay_relay::scheduler::WorkerView;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::v1::{V1Worker, closed};
use super::{TestRelay, eventually, soon};

/// The headers of a short answer.
pub const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

/// A registered worker with all extensions.
pub struct OurWorker {
    pub socket: WebSocketStream<TcpStream>,
    pub ack: Value,
}

/// What the relay sent.
#[derive(Debug)]
pub enum FromRelay {
    Message(Value),
    Frame(RelayFrame),
}

impl OurWorker {
    /// A worker that lends all its slots at once.
    pub async fn join(relay: &TestRelay, models: &[&str], slots: u32) -> Self {
        let mut worker = Self::join_as(relay, &Self::register(models, slots)).await;
        worker.grant(relay, slots).await;
        worker
    }

    pub async fn join_named(relay: &TestRelay, name: &str, models: &[&str], slots: u32) -> Self {
        let mut register = Self::register(models, slots);
        register["worker_name"] = json!(name);
        let mut worker = Self::join_as(relay, &register).await;
        worker.grant(relay, slots).await;
        worker
    }

    pub fn register(models: &[&str], slots: u32) -> Value {
        json!({
            "type": "register", "worker_name": "ours", "models": models, "max_concurrent": slots,
            "protocol_version": "2026-04-bridge-v1",
            "extensions": ["streams.v1", "slots.v1", "goaway.v1", "load.v1"],
        })
    }

    /// A worker that has lent nothing yet.
    pub async fn join_as(relay: &TestRelay, register: &Value) -> Self {
        Self::join_with(relay, register, None).await
    }

    pub async fn join_with(relay: &TestRelay, register: &Value, secret: Option<&str>) -> Self {
        let V1Worker { socket, ack } = V1Worker::join_with(relay, register, secret).await;
        Self { socket, ack }
    }

    /// Lends slots and waits until the relay knows.
    pub async fn grant(&mut self, relay: &TestRelay, n: u32) {
        let known = |worker: &Self| worker.view(relay).map_or(0, |view| view.free + view.load);
        let before = known(self);
        self.send(json!({ "type": "grant", "n": n })).await;
        eventually("the slots are lent", || (known(self) == before + n).then_some(())).await;
    }

    /// Slots that the relay may still use here.
    pub fn lent(&self, relay: &TestRelay) -> u32 {
        self.view(relay).map_or(0, |view| view.free)
    }

    fn view(&self, relay: &TestRelay) -> Option<WorkerView> {
        let id: u64 = self.ack["worker_id"].as_str().unwrap().trim_start_matches('w').parse().unwrap();
        let now = tokio::time::Instant::now().into_std();
        let snapshot = relay.relay.dispatcher.with_scheduler(|scheduler| scheduler.snapshot(now));
        snapshot.workers.into_iter().find(|worker| worker.worker.0 == id)
    }

    pub async fn send(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    pub async fn frame(&mut self, frame: Bytes) {
        self.socket.send(Message::Binary(frame)).await.unwrap();
    }

    pub async fn receive(&mut self) -> FromRelay {
        match soon("something for the worker", self.socket.next()).await {
            Some(Ok(Message::Text(text))) => FromRelay::Message(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Binary(bytes))) => FromRelay::Frame(codec::decode_relay_frame(bytes).unwrap()),
            other => panic!("neither message nor frame: {other:?}"),
        }
    }

    pub async fn message(&mut self) -> Value {
        match self.receive().await {
            FromRelay::Message(message) => message,
            FromRelay::Frame(frame) => panic!("not a message: {frame:?}"),
        }
    }

    pub async fn next_frame(&mut self) -> RelayFrame {
        match self.receive().await {
            FromRelay::Frame(frame) => frame,
            FromRelay::Message(message) => panic!("not a frame: {message}"),
        }
    }

    /// The next request, with what of its body came along.
    pub async fn request(&mut self) -> (StreamId, RequestHead, Bytes) {
        match self.next_frame().await {
            RelayFrame::Request { stream, head, body, .. } => (stream, head, body),
            other => panic!("not a request: {other:?}"),
        }
    }

    /// The next frame, which has to cancel this request.
    pub async fn cancelled(&mut self, stream: StreamId) {
        let frame = self.next_frame().await;
        assert!(matches!(frame, RelayFrame::Cancel { stream: s, .. } if s == stream), "{frame:?}");
    }

    /// Head and first part of an answer.
    pub async fn begin(&mut self, stream: StreamId, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        self.frame(response(stream, Some((status, headers)), body, false, None)).await;
    }

    pub async fn data(&mut self, stream: StreamId, body: &[u8]) {
        self.frame(codec::encode_response_data(stream, body)).await;
    }

    /// The end of an answer; the slot is lent again.
    pub async fn end(&mut self, stream: StreamId) {
        self.frame(response(stream, None, b"", true, None)).await;
    }

    /// A whole answer in one frame; the slot is lent again.
    pub async fn answer(&mut self, stream: StreamId, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        self.frame(response(stream, Some((status, headers)), body, true, None)).await;
    }

    pub async fn fail(&mut self, stream: StreamId, code: FailureCode) {
        self.frame(codec::encode_failed(stream, code, "because", true)).await;
    }

    pub async fn closed(&mut self) -> Option<CloseFrame> {
        closed(&mut self.socket).await
    }
}

/// Part of an answer; a last part lends the slot again.
pub fn response(
    stream: StreamId,
    head: Option<(u16, &[(&str, &str)])>,
    body: &[u8],
    end: bool,
    usage: Option<TokenCounts>,
) -> Bytes {
    let head = head.map(|(status, headers)| {
        (status, headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    });
    codec::encode_response(stream, head, body, end, usage, end).unwrap()
}
