//! From bytes to frames.

use bytes::{Buf, Bytes};

use super::{
    CANCEL, CANCELLED, DecodeError, END, FAILED, FailureCode, HEAD, HeaderBlock, MAX_HEAD_BYTES,
    MAX_PAYLOAD_BYTES, NOT_TOLD, REGRANT, REQUEST, REQUEST_DATA, RESPONSE, RelayFrame, RequestHead,
    ResponseHead, ResponsePart, STREAMING, StreamId, USAGE, WINDOW, WorkerFrame, reason_from_byte,
};
use crate::frame::TokenCounts;

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

pub(super) fn take_short(rest: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = take_u16(rest)?;
    take_bytes(rest, length.into())
}

pub(super) fn take_long(rest: &mut Bytes) -> Result<Bytes, DecodeError> {
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
