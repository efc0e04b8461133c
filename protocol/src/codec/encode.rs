//! From frames to bytes. Bodies are borrowed: what is sent is not built first.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    CANCEL, CANCELLED, DecodeError, END, FAILED, FailureCode, HEAD, MAX_HEAD_BYTES, NOT_TOLD, REGRANT,
    REQUEST, REQUEST_DATA, RESPONSE, RequestMeta, STREAMING, StreamId, USAGE, WINDOW, reason_to_byte,
};
use crate::frame::{CancelReason, TokenCounts};

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
