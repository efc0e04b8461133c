//! The binary frames between our own peers ([`Extension::Streams`](crate::frame::Extension::Streams)): one frame in one
//! binary WebSocket message.
//!
//! All integers are big-endian. Each frame starts with six bytes: kind (u8), flags (u8), stream (u32). The relay chooses
//! the stream number of each request; it is opaque to the worker and is used again only after the request has ended.
//!
//! | kind | from | flags | after the first six bytes |
//! | --- | --- | --- | --- |
//! | 1 `Request` | relay | `END`, `STREAMING` | body length (u64), model (u16 + bytes), path and query (u16 + bytes), headers, first part of the body |
//! | 2 `RequestData` | relay | `END` | part of the body |
//! | 3 `Cancel` | relay | | reason (u8) |
//! | 4 `Window` | both | | bytes (u32) by which the window opens |
//! | 5 `Response` | worker | `HEAD`, `END`, `USAGE`, `REGRANT` | with `HEAD`: status (u16), headers; with `USAGE`: three u32 (prompt, completion, total tokens; all ones = not told); the rest is part of the body |
//! | 6 `Failed` | worker | `REGRANT` | code (u8), message (UTF-8) |
//! | 7 `Cancelled` | worker | `REGRANT` | nothing |
//!
//! Headers are a count (u16), then for each name (u16 + bytes, lower case) and value (u32 + bytes). A worker's first
//! frame for a request is `Response` with `HEAD`, or `Failed`; the last is `Response` with `END`, `Failed` or `Cancelled`.
//! `REGRANT` is set on a last frame only: the slot is lent to this relay again. A relay that sent `Cancel` ignores what
//! comes for that stream until the last frame.
//!
//! Bits of `flags` from the lowest: `END` 1, `STREAMING` 2, `HEAD` 4, `USAGE` 8, `REGRANT` 16; others are 0 and ignored.
//! Codes and reasons stand in the order in which [`FailureCode`] and [`CancelReason`] list them, from 1 on; reason 0 is any
//! other. Hop-by-hop headers are left out on both ways, trailers are not carried, and a name may stand there twice
//! (`set-cookie`). `content-length` of a response may stay, as bytes pass unchanged.
//!
//! ```
//! use modelrelay_protocol::codec::{StreamId, encode_response};
//!
//! let headers = [(&b"age"[..], &b"1"[..])];
//! let frame = encode_response(StreamId(7), Some((200, headers.into_iter())), b"hi", true, None, true)?;
//! let by_hand = [
//!     &[5, 1 | 4 | 16][..],      // Response: END, HEAD, REGRANT
//!     &[0, 0, 0, 7],             // stream
//!     &[0, 200, 0, 1],           // status, number of headers
//!     &[0, 3], b"age",           // name
//!     &[0, 0, 0, 1], b"1",       // value
//!     b"hi",                     // the rest is body
//! ];
//! assert_eq!(frame, by_hand.concat());
//! # Ok::<(), modelrelay_protocol::codec::DecodeError>(())
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::frame::{CancelReason, TokenCounts};

/// Payload bytes of one data frame, at most.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;

/// Bytes of one binary frame, at most: the largest head and a full payload.
pub const MAX_BINARY_FRAME_BYTES: usize = 256 * 1024;

/// Bytes of all names and values of one head, at most.
pub const MAX_HEAD_BYTES: usize = 128 * 1024;

const REQUEST: u8 = 1;
const REQUEST_DATA: u8 = 2;
const CANCEL: u8 = 3;
const WINDOW: u8 = 4;
const RESPONSE: u8 = 5;
const FAILED: u8 = 6;
const CANCELLED: u8 = 7;

const END: u8 = 1;
const STREAMING: u8 = 2;
const HEAD: u8 = 4;
const USAGE: u8 = 8;
const REGRANT: u8 = 16;

const NOT_TOLD: u32 = u32::MAX;

/// Names one request on one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// Why a worker could not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureCode {
    /// The backend does not accept connections.
    BackendRefused,
    /// The backend closed or reset the connection before its answer was whole.
    BackendReset,
    /// The backend sent no first byte in time, or fell silent.
    BackendTimeout,
    /// The backend sent something that is not HTTP.
    BackendGarbage,
    /// The worker does not serve this model any more.
    ModelNotFound,
    /// The worker has no free slot.
    OverCapacity,
    /// The worker takes nothing new.
    Draining,
    /// A fault of the worker itself.
    Internal,
}

impl FailureCode {
    /// All codes.
    pub const ALL: [Self; 8] = [
        Self::BackendRefused,
        Self::BackendReset,
        Self::BackendTimeout,
        Self::BackendGarbage,
        Self::ModelNotFound,
        Self::OverCapacity,
        Self::Draining,
        Self::Internal,
    ];

    /// Returns the name for logs, metric labels and the JSON `error` message.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BackendRefused => "backend_refused",
            Self::BackendReset => "backend_reset",
            Self::BackendTimeout => "backend_timeout",
            Self::BackendGarbage => "backend_garbage",
            Self::ModelNotFound => "model_not_found",
            Self::OverCapacity => "over_capacity",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::BackendRefused => 1,
            Self::BackendReset => 2,
            Self::BackendTimeout => 3,
            Self::BackendGarbage => 4,
            Self::ModelNotFound => 5,
            Self::OverCapacity => 6,
            Self::Draining => 7,
            Self::Internal => 8,
        }
    }

    /// A newer worker's code reads as [`FailureCode::Internal`].
    fn from_byte(byte: u8) -> Self {
        Self::ALL.into_iter().find(|code| code.to_byte() == byte).unwrap_or(Self::Internal)
    }
}

fn reason_to_byte(reason: &CancelReason) -> u8 {
    match reason {
        CancelReason::ClientDisconnect => 1,
        CancelReason::Timeout => 2,
        CancelReason::GracefulShutdown => 3,
        CancelReason::WorkerDisconnect => 4,
        CancelReason::RequeueExhausted => 5,
        CancelReason::ServerShutdown => 6,
        CancelReason::Other(_) => 0,
    }
}

fn reason_from_byte(byte: u8) -> CancelReason {
    match byte {
        1 => CancelReason::ClientDisconnect,
        2 => CancelReason::Timeout,
        3 => CancelReason::GracefulShutdown,
        4 => CancelReason::WorkerDisconnect,
        5 => CancelReason::RequeueExhausted,
        6 => CancelReason::ServerShutdown,
        _ => CancelReason::Other(String::from("other")),
    }
}

/// Names and values of one head, still encoded; decoding checked that every length is within bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderBlock(Bytes);

impl HeaderBlock {
    /// Iterates over names and values. Both share the frame's memory.
    pub fn iter(&self) -> impl Iterator<Item = (Bytes, Bytes)> {
        let mut rest = self.0.clone();
        std::iter::from_fn(move || {
            let name = take_short(&mut rest).ok()?;
            let value = take_long(&mut rest).ok()?;
            Some((name, value))
        })
    }
}

/// The head of a request on its way to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Bytes of the whole body.
    pub body_bytes: u64,
    /// Whether the client asked for a stream.
    pub streaming: bool,
    /// Name of the model that the backend knows.
    pub model: String,
    /// Path and query.
    pub path: String,
    /// End-to-end headers.
    pub headers: HeaderBlock,
}

/// What a relay sends in binary frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayFrame {
    /// A request; spends one credit.
    Request {
        /// Chosen by the relay.
        stream: StreamId,
        /// Everything but the body.
        head: RequestHead,
        /// First part of the body; not charged to the window.
        body: Bytes,
        /// Whether this was all of the body.
        end: bool,
    },
    /// The next part of a request's body.
    RequestData {
        /// As in `Request`.
        stream: StreamId,
        /// Bytes as the client sent them.
        body: Bytes,
        /// Whether this was the last part.
        end: bool,
    },
    /// Ends a request early; answered by exactly one last frame.
    Cancel {
        /// As in `Request`.
        stream: StreamId,
        /// Why.
        reason: CancelReason,
    },
    /// The client took some of a response.
    Window {
        /// As in `Request`.
        stream: StreamId,
        /// By how much the window opens.
        bytes: u32,
    },
}

/// Status and headers of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 100 to 999.
    pub status: u16,
    /// As the backend sent them.
    pub headers: HeaderBlock,
}

/// A part of a response: any of head, body and end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponsePart {
    /// Ahead of the first body byte.
    pub head: Option<ResponseHead>,
    /// Bytes as the backend sent them.
    pub body: Bytes,
    /// Whether the response is whole now.
    pub end: bool,
    /// The engine's own usage.
    pub usage: Option<TokenCounts>,
    /// Whether the slot is lent to this relay again.
    pub regrant: bool,
}

/// What a worker sends in binary frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerFrame {
    /// Part of a response.
    Response(StreamId, ResponsePart),
    /// The request failed; the last frame.
    Failed {
        /// As in `Request`.
        stream: StreamId,
        /// What happened.
        code: FailureCode,
        /// For people.
        message: String,
        /// Whether the slot is lent to this relay again.
        regrant: bool,
    },
    /// The backend call is closed and the slot is free; the last frame.
    Cancelled {
        /// As in `Request`.
        stream: StreamId,
        /// Whether the slot is lent to this relay again.
        regrant: bool,
    },
    /// The backend took some of a request's body.
    Window {
        /// As in `Request`.
        stream: StreamId,
        /// By how much the window opens.
        bytes: u32,
    },
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A length points beyond the end of the frame.
    #[error("frame is cut short")]
    Truncated,
    /// Bytes are left over where none may be.
    #[error("frame has {0} bytes too many")]
    Trailing(usize),
    /// The kind is not one that this end may receive.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// A model or path is not UTF-8.
    #[error("{0} is not UTF-8")]
    NotText(&'static str),
    /// A status is not within 100 to 999.
    #[error("status {0} is not within 100 to 999")]
    BadStatus(u16),
    /// A part of the frame is larger than peers may send.
    #[error("{0} is too large")]
    TooLarge(&'static str),
}

/// Decodes a frame that a worker received. Total: any bytes give a frame or an error.
///
/// # Errors
/// The bytes are no frame of a relay.
pub fn decode_relay_frame(bytes: Bytes) -> Result<RelayFrame, DecodeError> {
    let (kind, flags, stream, mut rest) = split(bytes)?;
    match kind {
        REQUEST => {
            let body_bytes = take_u64(&mut rest)?;
            let model = text(take_short(&mut rest)?, "model")?;
            let path = text(take_short(&mut rest)?, "path")?;
            let headers = take_headers(&mut rest)?;
            let head = RequestHead { body_bytes, streaming: flags & STREAMING != 0, model, path, headers };
            Ok(RelayFrame::Request { stream, head, body: payload(rest)?, end: flags & END != 0 })
        }
        REQUEST_DATA => Ok(RelayFrame::RequestData { stream, body: payload(rest)?, end: flags & END != 0 }),
        CANCEL => {
            let reason = reason_from_byte(take_u8(&mut rest)?);
            nothing_left(&rest).map(|()| RelayFrame::Cancel { stream, reason })
        }
        WINDOW => {
            let bytes = take_u32(&mut rest)?;
            nothing_left(&rest).map(|()| RelayFrame::Window { stream, bytes })
        }
        other => Err(DecodeError::UnknownKind(other)),
    }
}

/// Decodes a frame that a relay received. Total: any bytes give a frame or an error.
///
/// # Errors
/// The bytes are no frame of a worker.
pub fn decode_worker_frame(bytes: Bytes) -> Result<WorkerFrame, DecodeError> {
    let (kind, flags, stream, mut rest) = split(bytes)?;
    let regrant = flags & REGRANT != 0;
    match kind {
        RESPONSE => {
            let head = if flags & HEAD == 0 {
                None
            } else {
                let status = take_u16(&mut rest)?;
                if !(100..=999).contains(&status) {
                    return Err(DecodeError::BadStatus(status));
                }
                Some(ResponseHead { status, headers: take_headers(&mut rest)? })
            };
            let usage = if flags & USAGE == 0 {
                None
            } else {
                let mut count = || take_u32(&mut rest).map(|n| (n != NOT_TOLD).then_some(n));
                Some(TokenCounts {
                    prompt_tokens: count()?,
                    completion_tokens: count()?,
                    total_tokens: count()?,
                })
            };
            let part = ResponsePart { head, body: payload(rest)?, end: flags & END != 0, usage, regrant };
            Ok(WorkerFrame::Response(stream, part))
        }
        FAILED => {
            let code = FailureCode::from_byte(take_u8(&mut rest)?);
            let message = text(rest, "message")?;
            Ok(WorkerFrame::Failed { stream, code, message, regrant })
        }
        CANCELLED => nothing_left(&rest).map(|()| WorkerFrame::Cancelled { stream, regrant }),
        WINDOW => {
            let bytes = take_u32(&mut rest)?;
            nothing_left(&rest).map(|()| WorkerFrame::Window { stream, bytes })
        }
        other => Err(DecodeError::UnknownKind(other)),
    }
}

/// The head of a request to encode.
#[derive(Clone, Copy, Debug)]
pub struct RequestMeta<'a> {
    /// Bytes of the whole body.
    pub body_bytes: u64,
    /// Whether the client asked for a stream.
    pub streaming: bool,
    /// Name of the model that the backend knows.
    pub model: &'a str,
    /// Path and query.
    pub path: &'a str,
}

/// Encodes a request with the first part of its body.
///
/// # Errors
/// Model, path or headers are beyond what a frame may carry.
pub fn encode_request<'a>(
    stream: StreamId,
    meta: RequestMeta<'_>,
    headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    body: &[u8],
    end: bool,
) -> Result<Bytes, DecodeError> {
    let mut out = BytesMut::with_capacity(256 + meta.model.len() + meta.path.len() + body.len());
    let flags = if end { END } else { 0 } | if meta.streaming { STREAMING } else { 0 };
    start(&mut out, REQUEST, flags, stream);
    out.put_u64(meta.body_bytes);
    put_short(&mut out, meta.model.as_bytes(), "model")?;
    put_short(&mut out, meta.path.as_bytes(), "path")?;
    put_headers(&mut out, headers)?;
    out.extend_from_slice(body);
    Ok(out.freeze())
}

/// Encodes the next part of a request's body.
pub fn encode_request_data(stream: StreamId, body: &[u8], end: bool) -> Bytes {
    let mut out = BytesMut::with_capacity(6 + body.len());
    start(&mut out, REQUEST_DATA, if end { END } else { 0 }, stream);
    out.extend_from_slice(body);
    out.freeze()
}

/// Encodes a cancel.
pub fn encode_cancel(stream: StreamId, reason: &CancelReason) -> Bytes {
    let mut out = BytesMut::with_capacity(7);
    start(&mut out, CANCEL, 0, stream);
    out.put_u8(reason_to_byte(reason));
    out.freeze()
}

/// Encodes the opening of a window, for either direction.
pub fn encode_window(stream: StreamId, bytes: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(10);
    start(&mut out, WINDOW, 0, stream);
    out.put_u32(bytes);
    out.freeze()
}

/// Encodes a part of a response; `head` is its status and headers.
///
/// # Errors
/// The headers are beyond what a frame may carry.
pub fn encode_response<'a, H>(
    stream: StreamId,
    head: Option<(u16, H)>,
    body: &[u8],
    end: bool,
    usage: Option<TokenCounts>,
    regrant: bool,
) -> Result<Bytes, DecodeError>
where
    H: Iterator<Item = (&'a [u8], &'a [u8])>,
{
    let mut out = BytesMut::with_capacity(if head.is_some() { 512 } else { 24 } + body.len());
    let flags = if head.is_some() { HEAD } else { 0 }
        | if end { END } else { 0 }
        | if usage.is_some() { USAGE } else { 0 }
        | if regrant { REGRANT } else { 0 };
    start(&mut out, RESPONSE, flags, stream);
    if let Some((status, headers)) = head {
        out.put_u16(status);
        put_headers(&mut out, headers)?;
    }
    if let Some(usage) = usage {
        for count in [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens] {
            out.put_u32(count.unwrap_or(NOT_TOLD));
        }
    }
    out.extend_from_slice(body);
    Ok(out.freeze())
}

/// Encodes a part of a response's body that is neither its beginning nor its end.
pub fn encode_response_data(stream: StreamId, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(6 + body.len());
    start(&mut out, RESPONSE, 0, stream);
    out.extend_from_slice(body);
    out.freeze()
}

/// Encodes a failure. The message is cut to 1 KiB.
pub fn encode_failed(stream: StreamId, code: FailureCode, message: &str, regrant: bool) -> Bytes {
    let message = &message[..message.floor_char_boundary(1024)];
    let mut out = BytesMut::with_capacity(7 + message.len());
    start(&mut out, FAILED, if regrant { REGRANT } else { 0 }, stream);
    out.put_u8(code.to_byte());
    out.extend_from_slice(message.as_bytes());
    out.freeze()
}

/// Encodes the answer to a cancel.
pub fn encode_cancelled(stream: StreamId, regrant: bool) -> Bytes {
    let mut out = BytesMut::with_capacity(6);
    start(&mut out, CANCELLED, if regrant { REGRANT } else { 0 }, stream);
    out.freeze()
}

fn start(out: &mut BytesMut, kind: u8, flags: u8, stream: StreamId) {
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream.0);
}

fn put_short(out: &mut BytesMut, bytes: &[u8], what: &'static str) -> Result<(), DecodeError> {
    out.put_u16(u16::try_from(bytes.len()).map_err(|_| DecodeError::TooLarge(what))?);
    out.extend_from_slice(bytes);
    Ok(())
}

fn put_headers<'a>(
    out: &mut BytesMut,
    headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<(), DecodeError> {
    let at = out.len();
    out.put_u16(0);
    let mut count = 0_u16;
    for (name, value) in headers {
        count = count.checked_add(1).ok_or(DecodeError::TooLarge("number of headers"))?;
        put_short(out, name, "header name")?;
        out.put_u32(u32::try_from(value.len()).map_err(|_| DecodeError::TooLarge("header value"))?);
        out.extend_from_slice(value);
        if out.len() - at > MAX_HEAD_BYTES {
            return Err(DecodeError::TooLarge("head"));
        }
    }
    out[at..at + 2].copy_from_slice(&count.to_be_bytes());
    Ok(())
}

fn split(mut bytes: Bytes) -> Result<(u8, u8, StreamId, Bytes), DecodeError> {
    if bytes.len() < 6 {
        return Err(DecodeError::Truncated);
    }
    let (kind, flags, stream) = (bytes.get_u8(), bytes.get_u8(), bytes.get_u32());
    Ok((kind, flags, StreamId(stream), bytes))
}

fn take_u8(rest: &mut Bytes) -> Result<u8, DecodeError> {
    rest.try_get_u8().map_err(|_| DecodeError::Truncated)
}

fn take_u16(rest: &mut Bytes) -> Result<u16, DecodeError> {
    rest.try_get_u16().map_err(|_| DecodeError::Truncated)
}

fn take_u32(rest: &mut Bytes) -> Result<u32, DecodeError> {
    rest.try_get_u32().map_err(|_| DecodeError::Truncated)
}

fn take_u64(rest: &mut Bytes) -> Result<u64, DecodeError> {
    rest.try_get_u64().map_err(|_| DecodeError::Truncated)
}

fn take_bytes(rest: &mut Bytes, length: usize) -> Result<Bytes, DecodeError> {
    if rest.len() < length { Err(DecodeError::Truncated) } else { Ok(rest.split_to(length)) }
}

fn take_short(rest: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = take_u16(rest)?;
    take_bytes(rest, length.into())
}

fn take_long(rest: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = take_u32(rest)?;
    take_bytes(rest, usize::try_from(length).map_err(|_| DecodeError::Truncated)?)
}

/// Walks the headers once without looking at their bytes, so that iterating later cannot fail.
fn take_headers(rest: &mut Bytes) -> Result<HeaderBlock, DecodeError> {
    let count = take_u16(rest)?;
    let whole = rest.clone();
    for _ in 0..count {
        take_short(rest)?;
        take_long(rest)?;
    }
    let length = whole.len() - rest.len();
    if length > MAX_HEAD_BYTES {
        return Err(DecodeError::TooLarge("head"));
    }
    Ok(HeaderBlock(whole.slice(..length)))
}

fn payload(rest: Bytes) -> Result<Bytes, DecodeError> {
    if rest.len() > MAX_PAYLOAD_BYTES { Err(DecodeError::TooLarge("payload")) } else { Ok(rest) }
}

fn nothing_left(rest: &Bytes) -> Result<(), DecodeError> {
    if rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(rest.len())) }
}

fn text(bytes: Bytes, what: &'static str) -> Result<String, DecodeError> {
    String::from_utf8(bytes.into()).map_err(|_| DecodeError::NotText(what))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn pairs(headers: &Pairs) -> impl Iterator<Item = (&[u8], &[u8])> {
        headers.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_frame_or_an_error(bytes: Vec<u8>, kind in 0_u8..9) {
            let _ = decode_relay_frame(bytes.clone().into());
            let _ = decode_worker_frame(bytes.clone().into());
            let mut with_kind = vec![kind];
            with_kind.extend(bytes);
            let _ = decode_relay_frame(with_kind.clone().into());
            if let Ok(WorkerFrame::Response(_, ResponsePart { head: Some(head), .. })) = decode_worker_frame(with_kind.into()) {
                prop_assert!(head.headers.iter().count() <= usize::from(u16::MAX));
            }
        }

        #[test]
        fn requests_come_back_as_they_were(
            stream: u32, streaming: bool, end: bool, model in ".{0,20}", path in ".{0,40}", body: Vec<u8>,
            headers: Vec<(Vec<u8>, Vec<u8>)>,
        ) {
            let meta = RequestMeta { body_bytes: body.len() as u64, streaming, model: &model, path: &path };
            let bytes = encode_request(StreamId(stream), meta, pairs(&headers), &body, end).unwrap();
            let RelayFrame::Request { stream: s, head, body: b, end: e } = decode_relay_frame(bytes).unwrap() else {
                panic!("another kind");
            };
            prop_assert_eq!((s, b.as_ref(), e), (StreamId(stream), body.as_slice(), end));
            prop_assert_eq!((head.streaming, head.body_bytes), (streaming, body.len() as u64));
            prop_assert_eq!((head.model, head.path), (model, path));
            let back: Pairs = head.headers.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(back, headers);
        }

        #[test]
        fn responses_come_back_as_they_were(
            stream: u32, status in proptest::option::of(100_u16..1000), end: bool, regrant: bool, body: Vec<u8>,
            usage in proptest::option::of((proptest::option::of(0_u32..1000), proptest::option::of(0_u32..1000))),
            headers: Vec<(Vec<u8>, Vec<u8>)>,
        ) {
            let usage = usage.map(|(a, b)| TokenCounts { prompt_tokens: a, completion_tokens: b, total_tokens: None });
            let head = status.map(|status| (status, pairs(&headers)));
            let bytes = encode_response(StreamId(stream), head, &body, end, usage, regrant).unwrap();
            let WorkerFrame::Response(s, part) = decode_worker_frame(bytes).unwrap() else { panic!("another kind") };
            prop_assert_eq!(s, StreamId(stream));
            prop_assert_eq!((part.end, part.regrant, part.usage), (end, regrant, usage));
            prop_assert_eq!(part.body.as_ref(), body.as_slice());
            prop_assert_eq!(part.head.as_ref().map(|h| h.status), status);
            if let Some(head) = part.head {
                let back: Pairs = head.headers.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
                prop_assert_eq!(back, headers);
            }
        }
    }

    #[test]
    fn short_frames_come_back_as_they_were() {
        let stream = StreamId(7);
        for code in FailureCode::ALL {
            assert_eq!(
                decode_worker_frame(encode_failed(stream, code, "why", true)),
                Ok(WorkerFrame::Failed { stream, code, message: "why".into(), regrant: true })
            );
        }
        assert_eq!(
            decode_worker_frame(encode_cancelled(stream, false)),
            Ok(WorkerFrame::Cancelled { stream, regrant: false })
        );
        assert_eq!(
            decode_worker_frame(encode_window(stream, 9)),
            Ok(WorkerFrame::Window { stream, bytes: 9 })
        );
        assert_eq!(decode_relay_frame(encode_window(stream, 9)), Ok(RelayFrame::Window { stream, bytes: 9 }));
        let reason = CancelReason::Timeout;
        assert_eq!(
            decode_relay_frame(encode_cancel(stream, &reason)),
            Ok(RelayFrame::Cancel { stream, reason })
        );
        assert_eq!(
            decode_relay_frame(encode_request_data(stream, b"ab", true)),
            Ok(RelayFrame::RequestData { stream, body: Bytes::from_static(b"ab"), end: true })
        );
        assert_eq!(
            decode_worker_frame(encode_response_data(stream, b"ab")),
            Ok(WorkerFrame::Response(
                stream,
                ResponsePart { body: Bytes::from_static(b"ab"), ..Default::default() }
            ))
        );
    }

    #[test]
    fn frames_that_lie_about_lengths_are_refused() {
        assert_eq!(decode_relay_frame(Bytes::from_static(&[2, 0, 0])), Err(DecodeError::Truncated));
        assert_eq!(
            decode_relay_frame(Bytes::from_static(&[9, 0, 0, 0, 0, 1])),
            Err(DecodeError::UnknownKind(9))
        );
        assert_eq!(
            decode_relay_frame(Bytes::from_static(&[3, 0, 0, 0, 0, 1, 1, 1])),
            Err(DecodeError::Trailing(1))
        );
        assert_eq!(
            decode_worker_frame(Bytes::from_static(&[5, 4, 0, 0, 0, 1, 0, 99, 0, 0])),
            Err(DecodeError::BadStatus(99))
        );
        let large = vec![0; MAX_PAYLOAD_BYTES + 1];
        assert_eq!(
            decode_worker_frame(encode_response_data(StreamId(1), &large)),
            Err(DecodeError::TooLarge("payload"))
        );
    }
}
