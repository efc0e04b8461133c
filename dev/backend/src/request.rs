//! Reads requests off a socket: the head with `httparse`, the body by its length or its chunks.

use std::io;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::ReadHalf;

const MAX_HEAD_BYTES: usize = 256 * 1024;
const MAX_HEADERS: usize = 128;
const MAX_BODY_BYTES: u64 = 1 << 30;
const READ_BYTES: usize = 8 * 1024;
const SKIP_BYTES: usize = 256 * 1024;

/// Why no request could be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The client is gone, between two requests or inside one.
    Closed,
    /// The bytes are not a request.
    Malformed(&'static str),
}

impl From<io::Error> for ReadError {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// A request's head, kept as the bytes that came.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    bytes: Bytes,
    method: Range<usize>,
    target: Range<usize>,
    headers: Vec<(Range<usize>, Range<usize>)>,
    /// An HTTP/1.0 client cannot read chunks.
    pub(crate) old: bool,
}

impl Head {
    pub(crate) fn method(&self) -> &str {
        str(&self.bytes[self.method.clone()])
    }

    /// Path and query, as they came.
    pub(crate) fn target(&self) -> &str {
        str(&self.bytes[self.target.clone()])
    }

    pub(crate) fn path(&self) -> &str {
        self.target().split('?').next().unwrap_or_default()
    }

    pub(crate) fn query(&self) -> &str {
        self.target().split_once('?').map_or("", |(_, query)| query)
    }

    pub(crate) fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.headers.iter().map(|(name, value)| (str(&self.bytes[name.clone()]), &self.bytes[value.clone()]))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|(other, _)| self.bytes[other.clone()].eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| &self.bytes[value.clone()])
    }

    fn header_has(&self, name: &str, token: &str) -> bool {
        self.header(name).is_some_and(|value| {
            value
                .split(|byte| *byte == b',')
                .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        })
    }

    pub(crate) fn expects_continue(&self) -> bool {
        self.header_has("expect", "100-continue")
    }

    /// Whether the connection serves another request afterwards.
    pub(crate) fn keeps_alive(&self) -> bool {
        if self.old {
            self.header_has("connection", "keep-alive")
        } else {
            !self.header_has("connection", "close")
        }
    }

    pub(crate) fn skips_body(&self) -> bool {
        self.header("x-stub-skip-body").is_some_and(|value| value == b"true")
    }
}

/// A header name or request target; `httparse` lets nothing but ASCII through for the first and UTF-8 for the second.
fn str(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// A request's body.
#[derive(Debug, Default, Clone)]
pub(crate) struct Body {
    /// Empty when the request asked not to keep it.
    pub(crate) bytes: Bytes,
    pub(crate) length: u64,
    pub(crate) crc32: u32,
}

/// Bytes that were read and not yet used.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    buffer: BytesMut,
}

impl Inbound {
    async fn more(&mut self, socket: &mut ReadHalf<'_>, at_most: usize) -> Result<(), ReadError> {
        self.buffer.reserve(at_most);
        match socket.read_buf(&mut self.buffer).await? {
            0 => Err(ReadError::Closed),
            _ => Ok(()),
        }
    }

    /// Reads the next head.
    pub(crate) async fn head(&mut self, socket: &mut ReadHalf<'_>) -> Result<Head, ReadError> {
        loop {
            if !self.buffer.is_empty()
                && let Some(head) = self.parse_head()?
            {
                return Ok(head);
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(ReadError::Malformed("head too large"));
            }
            self.more(socket, READ_BYTES).await?;
        }
    }

    fn parse_head(&mut self) -> Result<Option<Head>, ReadError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let length = match request.parse(&self.buffer) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(ReadError::Malformed("not an HTTP/1 head")),
        };
        let base = self.buffer.as_ptr() as usize;
        let range = |part: &[u8]| {
            let start = part.as_ptr() as usize - base;
            start..start + part.len()
        };
        let method = range(request.method.unwrap_or_default().as_bytes());
        let target = range(request.path.unwrap_or_default().as_bytes());
        let old = request.version == Some(0);
        let headers = request
            .headers
            .iter()
            .map(|header| (range(header.name.as_bytes()), range(header.value)))
            .collect();
        let bytes = self.buffer.split_to(length).freeze();
        Ok(Some(Head { bytes, method, target, headers, old }))
    }

    /// Reads the body that `head` announces.
    pub(crate) async fn body(&mut self, socket: &mut ReadHalf<'_>, head: &Head) -> Result<Body, ReadError> {
        let mut sink = Sink { keep: !head.skips_body(), ..Sink::default() };
        if head.header_has("transfer-encoding", "chunked") {
            self.chunks(socket, &mut sink).await?;
        } else if let Some(length) = head.header("content-length") {
            let length =
                str(length).parse().map_err(|_| ReadError::Malformed("content-length is no number"))?;
            if length > MAX_BODY_BYTES {
                return Err(ReadError::Malformed("body too large"));
            }
            self.exactly(socket, length, &mut sink).await?;
        }
        Ok(Body { bytes: sink.kept.freeze(), length: sink.length, crc32: sink.crc.finalize() })
    }

    async fn exactly(
        &mut self,
        socket: &mut ReadHalf<'_>,
        length: u64,
        sink: &mut Sink,
    ) -> Result<(), ReadError> {
        // A body that came whole is cut from the buffer without a copy.
        if sink.length == 0 && length <= self.buffer.len() as u64 {
            sink.take(self.buffer.split_to(length as usize));
            return Ok(());
        }
        if sink.keep {
            sink.kept.reserve(length as usize);
        }
        let mut left = length;
        while left > 0 {
            if self.buffer.is_empty() {
                self.more(socket, left.clamp(READ_BYTES as u64, SKIP_BYTES as u64) as usize).await?;
            }
            let part = left.min(self.buffer.len() as u64) as usize;
            sink.copy(&self.buffer[..part]);
            self.buffer.advance(part);
            left -= part as u64;
        }
        Ok(())
    }

    async fn chunks(&mut self, socket: &mut ReadHalf<'_>, sink: &mut Sink) -> Result<(), ReadError> {
        loop {
            let size = loop {
                match httparse::parse_chunk_size(&self.buffer) {
                    Ok(httparse::Status::Complete((used, size))) => {
                        self.buffer.advance(used);
                        break size;
                    }
                    Ok(httparse::Status::Partial) => self.more(socket, READ_BYTES).await?,
                    Err(_) => return Err(ReadError::Malformed("bad chunk size")),
                }
            };
            if size == 0 {
                return self.trailers(socket).await;
            }
            if sink.length.saturating_add(size) > MAX_BODY_BYTES {
                return Err(ReadError::Malformed("body too large"));
            }
            self.exactly(socket, size, sink).await?;
            if self.line(socket).await? != 0 {
                return Err(ReadError::Malformed("chunk longer than its size"));
            }
        }
    }

    async fn trailers(&mut self, socket: &mut ReadHalf<'_>) -> Result<(), ReadError> {
        while self.line(socket).await? > 0 {}
        Ok(())
    }

    /// Skips one line and returns its length.
    async fn line(&mut self, socket: &mut ReadHalf<'_>) -> Result<usize, ReadError> {
        loop {
            if let Some(length) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                self.buffer.advance(length + 2);
                return Ok(length);
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(ReadError::Malformed("line too long"));
            }
            self.more(socket, READ_BYTES).await?;
        }
    }

    /// Ends when the client has closed the connection; keeps what it sends meanwhile for later.
    pub(crate) async fn closed(&mut self, socket: &mut ReadHalf<'_>) {
        while self.buffer.len() < MAX_HEAD_BYTES {
            if self.more(socket, READ_BYTES).await.is_err() {
                return;
            }
        }
        // A client that pipelines this much is noticed by the next write instead.
        std::future::pending().await
    }
}

#[derive(Debug, Default)]
struct Sink {
    keep: bool,
    kept: BytesMut,
    length: u64,
    crc: crc32fast::Hasher,
}

impl Sink {
    fn count(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.crc.update(bytes);
    }

    fn take(&mut self, bytes: BytesMut) {
        self.count(&bytes);
        if self.keep {
            self.kept = bytes;
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.count(bytes);
        if self.keep {
            self.kept.extend_from_slice(bytes);
        }
    }
}
