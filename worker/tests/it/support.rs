//! A scripted relay, backends that answer with exact bytes, and a worker under test.

use std::future::Future;
use std::time::Duration;

use dev_backend::Backend;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue};
use modelrelay_protocol::codec::{RequestMeta, StreamId, WorkerFrame, decode_worker_frame, encode_request};
use modelrelay_protocol::config::WorkerConfig;
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use modelrelay_worker::ProxyRules;
use modelrelay_worker::app::Worker;
use modelrelay_worker::settings::{Secret, Settings};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message};

/// No step of a test takes longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Waits for something with a deadline.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// A relay that does what a test says.
pub(crate) struct Relay {
    listener: TcpListener,
}

impl Relay {
    pub(crate) async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap())
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    pub(crate) async fn accept_tcp(&self) -> TcpStream {
        within("a connection", self.listener.accept()).await.unwrap().0
    }

    /// Takes the next worker's upgrade.
    pub(crate) async fn accept(&self) -> Session {
        Session::upgrade(self.accept_tcp().await).await
    }

    /// Takes the next upgrade as one of several replicas behind this address.
    pub(crate) async fn accept_as(&self, replica: &str, replicas: u32) -> Session {
        let headers =
            [("x-modelrelay-replica", replica.to_owned()), ("x-modelrelay-replicas", replicas.to_string())];
        Session::upgrade_with(self.accept_tcp().await, &headers).await
    }

    /// Takes the next worker as one of several replicas, with all extensions.
    pub(crate) async fn hold_as(&self, replica: &str, replicas: u32) -> Session {
        let mut session = self.accept_as(replica, replicas).await;
        session.acknowledge(DEFAULT_WINDOW_BYTES).await;
        session
    }

    /// Fails when somebody has dialled that was not taken.
    pub(crate) async fn nobody_waits(&self) {
        let nobody =
            std::future::poll_fn(|cx| std::task::Poll::Ready(self.listener.poll_accept(cx).is_pending()));
        assert!(nobody.await, "somebody dials");
    }

    /// Takes the next worker as a plain v1 relay does.
    pub(crate) async fn accept_v1(&self) -> (Session, Value) {
        let mut session = self.accept().await;
        let register = session.text("register").await;
        let models = &register["models"];
        session.send(json!({ "type": "register_ack", "worker_id": "w", "models": models })).await;
        (session, register)
    }

    /// Takes the next worker with all extensions and this window; eats what a worker says first.
    pub(crate) async fn accept_streams(&self, window: u32) -> Session {
        let mut session = self.accept().await;
        session.acknowledge(window).await;
        session
    }
}

/// Anything a WebSocket can run over.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// The relay's end of a connection.
pub(crate) struct Session {
    socket: WebSocketStream<Box<dyn Io>>,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    /// The names of all messages that came, in order.
    pub(crate) types: Vec<String>,
}

impl Session {
    pub(crate) async fn upgrade(io: impl Io + 'static) -> Self {
        Self::upgrade_with(io, &[]).await
    }

    /// Upgrades with more headers in the answer.
    pub(crate) async fn upgrade_with(io: impl Io + 'static, more: &[(&'static str, String)]) -> Self {
        let (mut target, mut headers) = (String::new(), HeaderMap::new());
        #[allow(clippy::result_large_err, reason = "the library's signature")]
        let callback = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            for (name, value) in more {
                response.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
            }
            target = request.uri().to_string();
            headers = request.headers().clone();
            Ok(response)
        };
        let io: Box<dyn Io> = Box::new(io);
        let socket = within("an upgrade", tokio_tungstenite::accept_hdr_async(io, callback)).await.unwrap();
        Self { socket, target, headers, types: Vec::new() }
    }

    /// Answers the registration with all extensions but pleas, and returns it.
    pub(crate) async fn acknowledge(&mut self, window: u32) -> Value {
        self.acknowledge_with(window, &["streams.v1", "slots.v1", "goaway.v1", "load.v1"]).await
    }

    /// Answers the registration with these extensions, and returns it.
    pub(crate) async fn acknowledge_with(&mut self, window: u32, extensions: &[&str]) -> Value {
        let register = self.text("register").await;
        let ack = json!({
            "type": "register_ack", "worker_id": "w", "models": register["models"],
            "extensions": extensions, "response_window_bytes": window,
        });
        self.send(ack).await;
        register
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.send_raw(Message::text(message.to_string())).await;
    }

    pub(crate) async fn send_frame(&mut self, frame: Bytes) {
        self.send_raw(Message::Binary(frame)).await;
    }

    pub(crate) async fn send_raw(&mut self, message: Message) {
        within("room to send", self.socket.send(message)).await.unwrap();
    }

    /// Returns the next message but pings.
    pub(crate) async fn next(&mut self) -> Message {
        within("a message", self.next_unlimited()).await
    }

    /// The caller sets the limit: pings would otherwise renew it for ever.
    async fn next_unlimited(&mut self) -> Message {
        loop {
            let message = self.socket.next().await.expect("the worker left").unwrap();
            if let Message::Text(text) = &message {
                let value: Value = serde_json::from_str(text).unwrap();
                self.types.push(value["type"].as_str().unwrap().to_owned());
            }
            if !message.is_ping() && !message.is_pong() {
                return message;
            }
        }
    }

    /// Returns the next text message of this type; other text is skipped, but no binary frame.
    pub(crate) async fn text(&mut self, wanted: &str) -> Value {
        let found = async {
            loop {
                let message = self.next_unlimited().await;
                let Message::Text(text) = message else { panic!("expected {wanted}, got {message:?}") };
                let value: Value = serde_json::from_str(&text).unwrap();
                if value["type"] == wanted {
                    return value;
                }
            }
        };
        within(wanted, found).await
    }

    /// Waits for a recall, whatever comes before it, and returns how many.
    pub(crate) async fn recall(&mut self) -> u64 {
        let found = async {
            loop {
                let Message::Text(text) = self.next_unlimited().await else { continue };
                let value: Value = serde_json::from_str(&text).unwrap();
                if value["type"] == "recall" {
                    return value["n"].as_u64().unwrap();
                }
            }
        };
        within("a recall", found).await
    }

    /// Waits for an update that announces these models.
    pub(crate) async fn models(&mut self, wanted: &[&str]) {
        while self.text("models_update").await["models"] != json!(wanted) {}
    }

    /// Returns the next binary frame; text is skipped.
    pub(crate) async fn frame(&mut self) -> WorkerFrame {
        let found = async {
            loop {
                match self.next_unlimited().await {
                    Message::Binary(bytes) => return decode_worker_frame(bytes).unwrap(),
                    Message::Text(_) => {}
                    other => panic!("expected a frame, got {other:?}"),
                }
            }
        };
        within("a frame", found).await
    }

    /// Fails unless the worker leaves before it says anything.
    pub(crate) async fn left_unregistered(&mut self) {
        let first = within("a goodbye", self.socket.next()).await;
        assert!(matches!(first, None | Some(Err(_) | Ok(Message::Close(_)))), "{first:?}");
    }

    /// Waits for the close frame.
    pub(crate) async fn closed(&mut self) -> CloseFrame {
        let found = async {
            loop {
                if let Message::Close(frame) = self.next_unlimited().await {
                    return frame.unwrap();
                }
            }
        };
        within("a close frame", found).await
    }

    /// Answers pings until the worker has nothing more to say about what came before: no frame overtakes this.
    pub(crate) async fn settle(&mut self) {
        self.send(json!({ "type": "ping", "timestamp_unix_ms": 424_242 })).await;
        while self.text("pong").await["timestamp_unix_ms"] != 424_242 {}
    }

    /// Sends a request whose body is whole in its first frame.
    pub(crate) async fn request(&mut self, stream: u32, body: &Value) {
        self.request_with(stream, &[("content-type", "application/json")], body.to_string().as_bytes()).await;
    }

    pub(crate) async fn request_with(&mut self, stream: u32, headers: &[(&str, &str)], body: &[u8]) {
        self.begin_request(stream, headers, body, body.len() as u64, true).await;
    }

    pub(crate) async fn begin_request(
        &mut self,
        stream: u32,
        headers: &[(&str, &str)],
        body: &[u8],
        body_bytes: u64,
        end: bool,
    ) {
        let meta = RequestMeta { body_bytes, streaming: true, model: "m", path: "/v1/chat/completions" };
        let pairs = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        self.send_frame(encode_request(StreamId(stream), meta, pairs, body, end).unwrap()).await;
    }

    /// Collects one response whole: status, headers, body, and whether its slot was lent again.
    pub(crate) async fn response(&mut self, wanted: u32) -> Answer {
        let mut answer = Answer::default();
        loop {
            answer.frames += 1;
            match self.frame().await {
                WorkerFrame::Response(stream, part) => {
                    assert_eq!(stream, StreamId(wanted));
                    if let Some(head) = part.head {
                        answer.status = head.status;
                        for (name, value) in head.headers.iter() {
                            let name = HeaderName::from_bytes(&name).unwrap();
                            answer.headers.append(name, HeaderValue::from_maybe_shared(value).unwrap());
                        }
                    }
                    answer.body.extend_from_slice(&part.body);
                    if part.end {
                        answer.usage = part.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens));
                        answer.regrant = part.regrant;
                        return answer;
                    }
                }
                other => panic!("expected a response, got {other:?}"),
            }
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) usage: Option<(Option<u32>, Option<u32>)>,
    pub(crate) regrant: bool,
    pub(crate) frames: usize,
}

/// Settings for a worker with a relay and a backend, and models given so that no discovery is needed.
pub(crate) fn config(relay: &str, backend: &str) -> WorkerConfig {
    let mut config = WorkerConfig { relay_urls: vec![relay.to_owned()], ..WorkerConfig::default() };
    config.backend_url = backend.to_owned();
    config.models = vec![String::from("m")];
    config.max_concurrency = 4;
    config.name = Some(String::from("under-test"));
    config.health.interval_seconds = 1;
    config
}

/// Starts a worker without proxies.
pub(crate) async fn worker(config: WorkerConfig) -> Worker {
    worker_with(config, ProxyRules::default()).await
}

pub(crate) async fn worker_with(config: WorkerConfig, proxies: ProxyRules) -> Worker {
    // Fails only when another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = Settings::new(config, Some(Secret::new("s3cret")), proxies).unwrap();
    Worker::start(settings).await.unwrap()
}

/// The stub, a relay, and a worker between them that has registered with all extensions.
pub(crate) async fn connected(window: u32) -> (Backend, Relay, Session, Worker) {
    let backend = Backend::start(dev_backend::Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let worker = worker(config(&relay.url(), &backend.url())).await;
    let mut session = relay.accept_streams(window).await;
    session.models(&["m"]).await;
    (backend, relay, session, worker)
}

/// A backend that answers each request with the same bytes, written at once, and keeps the connection.
pub(crate) struct RawBackend {
    pub(crate) url: String,
    /// Dropping it closes every connection.
    _task: tokio::task::JoinSet<()>,
}

impl RawBackend {
    pub(crate) async fn start(answer: impl Into<Vec<u8>>) -> Self {
        Self::in_pieces(vec![answer.into()]).await
    }

    /// Writes the pieces one by one, with a pause that separates reads.
    pub(crate) async fn in_pieces(pieces: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut tcp, _)) = listener.accept().await {
                let pieces = pieces.clone();
                connections.spawn(async move {
                    tcp.set_nodelay(true).unwrap();
                    while let Some(head) = read_request(&mut tcp).await {
                        if head.starts_with("get") {
                            let _ =
                                tcp.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
                            continue;
                        }
                        for (index, piece) in pieces.iter().enumerate() {
                            if index > 0 {
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                            let _ = tcp.write_all(piece).await;
                        }
                    }
                });
            }
        });
        Self { url, _task: tasks }
    }
}

/// Reads a request with its body and returns its head.
pub(crate) async fn read_request(tcp: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap()];
    tcp.read_exact(&mut body).await.ok()?;
    Some(head)
}
