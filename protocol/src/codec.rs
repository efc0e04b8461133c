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

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use self::decode::{decode_relay_frame, decode_worker_frame};
use self::decode::{take_long, take_short};
pub use self::encode::{
    encode_cancel, encode_cancelled, encode_failed, encode_request, encode_request_data, encode_response,
    encode_response_data, encode_window,
};
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
