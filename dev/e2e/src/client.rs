//! Clients: requests for the stub, connections that can be dropped at any moment, and answers part by part.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use dev_load::StreamCheck;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::soon;

/// OpenAI's chat route.
pub const CHAT: &str = "/v1/chat/completions";
/// Anthropic's chat route.
pub const MESSAGES: &str = "/v1/messages";

/// Returns a chat request's body for the model `m`, with what the stub is to do.
pub fn chat(stream: bool, stub: &Value) -> String {
    chat_for("m", stream, stub)
}

/// Returns a chat request's body for a model, with what the stub is to do.
pub fn chat_for(model: &str, stream: bool, stub: &Value) -> String {
    let messages = json!([{"role": "user", "content": "hello"}]);
    json!({"model": model, "stream": stream, "max_tokens": 10, "messages": messages, "stub": stub})
        .to_string()
}

/// Returns a `POST` request with a JSON body.
pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("host", "localhost").header("content-type", "application/json");
    request.body(Full::new(body.into())).unwrap()
}

/// Returns a `GET` request.
pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "localhost").body(Full::default()).unwrap()
}

/// Sends a request on a connection of its own and waits for the head of its answer.
pub async fn ask(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    soon("an answer", try_ask(address, request)).await.unwrap()
}

/// The same, for tests in which that may fail.
///
/// # Errors
/// There is no connection, or it breaks before there is an answer.
pub async fn try_ask(address: SocketAddr, request: Request<Full<Bytes>>) -> io::Result<Answer> {
    Client::connect(address).await?.send(request).await
}

/// A task that ends with whoever owns it.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One connection, closed when it and its answers are dropped.
#[derive(Debug)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    connection: Arc<Connection>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(async move {
            // How it ended is seen at the request and the answer.
            let _ = connection.await;
        });
        Ok(Self { sender, connection: Arc::new(Connection(connection)) })
    }

    /// Sends the next request.
    ///
    /// # Errors
    /// The connection breaks before there is an answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> io::Result<Answer> {
        self.sender.ready().await.map_err(io::Error::other)?;
        let response = self.sender.send_request(request).await.map_err(io::Error::other)?;
        let (head, body) = response.into_parts();
        Ok(Answer { head, body, _connection: self.connection.clone() })
    }
}

/// A request whose answer is waited for elsewhere. Dropping it hangs up.
#[derive(Debug)]
pub struct Asked(JoinHandle<io::Result<Answer>>);

impl Asked {
    /// Sends a request on a connection of its own.
    pub fn new(address: SocketAddr, request: Request<Full<Bytes>>) -> Self {
        Self(tokio::spawn(try_ask(address, request)))
    }

    /// Waits for the head of the answer.
    pub async fn answer(mut self) -> Answer {
        soon("an answer", &mut self.0).await.unwrap().unwrap()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How a body ended that had to be an event stream of the stub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Every byte came, and nothing else; this many data events.
    Whole(u32),
    /// The transfer broke off; what came before that.
    Broken(Vec<u8>),
    /// It ended well and is not what was sent.
    Wrong(String),
}

/// An answer whose body is still to be read. Dropping it hangs up, unless its [`Client`] is kept.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: http::response::Parts,
    body: Incoming,
    _connection: Arc<Connection>,
}

impl Answer {
    /// Returns the status.
    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    /// Returns a header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Returns the name of the worker that answers.
    pub fn worker(&self) -> &str {
        self.header("x-modelrelay-worker").expect("the relay names the worker")
    }

    /// Waits for the next part of the body; `None` is a clean end.
    ///
    /// # Errors
    /// The transfer broke off.
    pub async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.body.frame().await? {
                Err(error) => return Some(Err(error)),
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
            }
        }
    }

    /// Waits for some of the body, whose transfer has to go on.
    pub async fn part(&mut self) -> Bytes {
        soon("a part of the body", self.next()).await.expect("the body goes on").unwrap()
    }

    /// Reads the whole body.
    pub async fn bytes(mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(part) = soon("more of the body", self.next()).await {
            all.extend_from_slice(&part.unwrap());
        }
        all
    }

    /// Reads the whole body as JSON.
    pub async fn json(self) -> Value {
        serde_json::from_slice(&self.bytes().await).unwrap()
    }

    /// Reads the whole body as an error; returns status and code.
    pub async fn error(self) -> (u16, String) {
        let status = self.status();
        let body = self.json().await;
        (status, body["error"]["code"].as_str().unwrap_or_else(|| panic!("{status} {body}")).to_owned())
    }

    /// Reads the whole body as an event stream of the stub and checks every byte.
    pub async fn stream(self) -> Ended {
        self.timed_stream().await.0
    }

    /// The same, with the times at which the stub wrote the events, in microseconds since the epoch.
    pub async fn timed_stream(mut self) -> (Ended, Vec<u64>) {
        let (mut all, mut check, mut times) = (Vec::new(), StreamCheck::default(), Vec::new());
        loop {
            match soon("more of the stream", self.next()).await {
                Some(Ok(part)) => {
                    check.feed(&part, |at| times.push(at));
                    all.extend_from_slice(&part);
                }
                Some(Err(_)) => return (Ended::Broken(all), times),
                None => {
                    let whole = check.finish();
                    return (whole.map_or_else(|fault| Ended::Wrong(fault.to_string()), Ended::Whole), times);
                }
            }
        }
    }

    /// Reads what comes before the transfer breaks off, which it has to.
    pub async fn broken(mut self) -> String {
        let mut all = Vec::new();
        loop {
            match soon("the end of the transfer", self.next()).await {
                Some(Ok(part)) => all.extend_from_slice(&part),
                Some(Err(_)) => return String::from_utf8_lossy(&all).into_owned(),
                None => panic!("a clean end after {:?}", String::from_utf8_lossy(&all)),
            }
        }
    }
}
