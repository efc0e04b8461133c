//! Clients: one that speaks HTTP and can leave, and one that sees every byte.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::soon;

pub fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> http::Request<Full<Bytes>> {
    let mut builder = http::Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        builder = builder.header("host", "localhost");
    }
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::new(body.into())).unwrap()
}

/// A connection that is closed when its last user is dropped.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One client connection.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    connection: Arc<Connection>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { sender, connection: Arc::new(Connection(connection)) }
    }

    /// Sends the next request on this connection.
    pub async fn send(&mut self, request: http::Request<Full<Bytes>>) -> Answer {
        self.sender.ready().await.unwrap();
        let response = self.sender.send_request(request).await.unwrap();
        let (head, incoming) = response.into_parts();
        Answer { head, incoming, connection: self.connection.clone() }
    }
}

/// A request that is on its way. Dropping it hangs up.
pub struct Asked(JoinHandle<Answer>);

impl Asked {
    pub fn new(address: SocketAddr, request: http::Request<Full<Bytes>>) -> Self {
        Self(tokio::spawn(async move { Client::connect(address).await.send(request).await }))
    }

    pub async fn answer(mut self) -> Answer {
        soon("an answer", &mut self.0).await.unwrap()
    }

    pub fn is_answered(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A response whose body is still to be read. Dropping it hangs up, unless its [`Client`] is kept.
pub struct Answer {
    pub head: http::response::Parts,
    incoming: Incoming,
    #[allow(dead_code, reason = "keeps the connection open")]
    connection: Arc<Connection>,
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

    /// Reads until as many bytes are there, or more.
    pub async fn at_least(&mut self, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            all.extend_from_slice(&self.chunk().await.expect("the body goes on").unwrap());
        }
        all
    }

    /// The whole body.
    pub async fn body(mut self) -> Result<Bytes, hyper::Error> {
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(all.into())
    }

    /// The whole body, which has to be text.
    pub async fn text(self) -> String {
        String::from_utf8(self.body().await.unwrap().to_vec()).unwrap()
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

    /// The status and the code of an error in OpenAI's shape.
    pub async fn error(self) -> (u16, String) {
        let status = self.status();
        let body = self.json().await;
        (status, body["error"]["code"].as_str().unwrap().to_owned())
    }
}

/// A client that writes and reads bytes.
pub struct RawClient(pub TcpStream);

impl RawClient {
    pub async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    pub async fn post(&mut self, path: &str, body: &str) {
        let length = body.len();
        self.write(format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await;
    }

    /// Reads until the text is there.
    pub async fn until(&mut self, wanted: &str) -> String {
        let mut all = Vec::new();
        soon(wanted, async {
            while !String::from_utf8_lossy(&all).contains(wanted) {
                let n = self.0.read_buf(&mut all).await.unwrap();
                assert!(n > 0, "closed before {wanted:?}: {}", String::from_utf8_lossy(&all));
            }
        })
        .await;
        String::from_utf8(all).unwrap()
    }

    /// Everything that comes until the relay closes or resets the connection.
    pub async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        soon("the end of the connection", async {
            while matches!(self.0.read_buf(&mut all).await, Ok(1..)) {}
        })
        .await;
        String::from_utf8(all).unwrap()
    }
}
