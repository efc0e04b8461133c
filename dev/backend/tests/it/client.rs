//! A raw HTTP client that shows exactly what came off the socket.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No wait in these tests takes longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What came until the connection ended.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    /// How the connection ended: `None` in good order, else the error.
    pub(crate) error: Option<io::ErrorKind>,
}

/// An answer taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its end.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (other, value) = line.split_once(": ")?;
            other.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        assert!(self.complete, "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Whether the body is the one that the header `x-stub-crc32` speaks of.
    pub(crate) fn is_exact(&self) -> bool {
        self.header("x-stub-crc32") == Some(crc32fast::hash(&self.body).to_string().as_str())
    }
}

pub(crate) async fn open(addr: SocketAddr, request: &[u8]) -> TcpStream {
    let mut socket = timeout(DEADLINE, TcpStream::connect(addr)).await.unwrap().unwrap();
    socket.write_all(request).await.unwrap();
    socket
}

/// Reads until the connection ends.
pub(crate) async fn receive(mut socket: TcpStream) -> Received {
    let mut bytes = Vec::new();
    let error =
        timeout(DEADLINE, socket.read_to_end(&mut bytes)).await.expect("the stub ends the connection").err();
    Received { bytes, error: error.map(|error| error.kind()) }
}

/// Reads until the text occurs.
pub(crate) async fn read_until(socket: &mut TcpStream, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
        let read = timeout(DEADLINE, socket.read_buf(&mut bytes)).await.expect("bytes in time").unwrap();
        assert_ne!(read, 0, "ended before {text:?}: {}", String::from_utf8_lossy(&bytes));
    }
    bytes
}

pub(crate) fn post(path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: stub\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    format!("{request}\r\n{body}").into_bytes()
}

/// A chat request whose `stub` member is `script`.
pub(crate) fn chat(script: &str, stream: bool) -> Vec<u8> {
    post("/v1/chat/completions", &[], &format!(r#"{{"model":"m","stream":{stream},"stub":{script}}}"#))
}

pub(crate) async fn ask(addr: SocketAddr, request: &[u8]) -> Answer {
    let received = receive(open(addr, request).await).await;
    assert_eq!(received.error, None);
    parse(&received.bytes)
}

pub(crate) async fn fetch(addr: SocketAddr, path: &str) -> Answer {
    ask(addr, format!("GET {path} HTTP/1.1\r\nhost: stub\r\nconnection: close\r\n\r\n").as_bytes()).await
}

pub(crate) fn parse(bytes: &[u8]) -> Answer {
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head") + 4;
    let head = String::from_utf8(bytes[..split].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer { status, head, body: bytes[split..].to_vec(), complete: true };
    if answer.header("transfer-encoding") == Some("chunked") {
        (answer.body, answer.complete) = unchunk(&answer.body);
    } else if let Some(length) = answer.header("content-length") {
        answer.complete = length.parse() == Ok(answer.body.len());
    }
    answer
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(rest) {
        let size = size as usize;
        let piece = &rest[start..rest.len().min(start + size)];
        body.extend_from_slice(piece);
        rest = &rest[start + piece.len()..];
        if piece.len() < size {
            return (body, false);
        }
        rest = rest.strip_prefix(b"\r\n").unwrap_or(rest);
        if size == 0 {
            return (body, rest.is_empty());
        }
    }
    (body, false)
}
