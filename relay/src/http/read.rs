//! Reads a request body, bounded in size, time and memory.

use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body as _;
use tokio::time::timeout;

use super::error::RelayError;
use crate::dispatch::BodyPermit;

/// Room that is made for an announced body when its first bytes are there.
const AT_ONCE_BYTES: usize = 1024 * 1024;

/// Times what has come for which room is made, if as much was announced.
const GROWTH: usize = 16;

/// Reads a whole body.
///
/// # Errors
/// It is larger than `limit_bytes`, slower than `time_limit`, beyond what the relay may hold in all, or breaks off.
pub async fn read(
    headers: &HeaderMap,
    body: Body,
    limit_bytes: u64,
    time_limit: Duration,
    permit: &mut BodyPermit,
) -> Result<Bytes, RelayError> {
    let announced = headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > limit_bytes) {
        return Err(RelayError::RequestTooLarge);
    }
    let mut reading = pin!(collect(body, announced, limit_bytes, permit));
    // Most bodies came with their head: those need no timer.
    let first = std::future::poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await;
    match first {
        Poll::Ready(read) => read,
        Poll::Pending => timeout(time_limit, reading).await.unwrap_or(Err(RelayError::RequestTimeout)),
    }
}

async fn collect(
    mut body: Body,
    announced: Option<u64>,
    limit_bytes: u64,
    permit: &mut BodyPermit,
) -> Result<Bytes, RelayError> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    let mut length = 0_u64;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| RelayError::invalid("the body broke off", None))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len() as u64;
        if length > limit_bytes {
            return Err(RelayError::RequestTooLarge);
        }
        if !permit.grow(data.len() as u64) {
            return Err(RelayError::BodyMemoryFull);
        }
        if first.is_empty() && all.is_empty() {
            if announced == Some(data.len() as u64) {
                return Ok(data);
            }
            first = data;
            continue;
        }
        if all.is_empty() {
            make_room(&mut all, first.len() + data.len(), announced);
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        make_room(&mut all, data.len(), announced);
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Makes room for as much as was announced, so that a large body is neither copied again and again as it grows nor held
/// in twice its size. What was announced and did not come costs address space alone, and at most sixteen times what came.
fn make_room(all: &mut BytesMut, more: usize, announced: Option<u64>) {
    let needed = all.len() + more;
    if needed <= all.capacity() {
        return;
    }
    let trusted = needed.saturating_mul(GROWTH).max(AT_ONCE_BYTES);
    let announced = announced.map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    all.reserve(needed.max(announced.min(trusted)) - all.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The room that a body takes which arrives in parts of this size, and how often it was made.
    fn room(announced: Option<u64>, bytes: usize, part: usize) -> (usize, usize) {
        let (mut all, mut times) = (BytesMut::new(), 0);
        while all.len() < bytes {
            let (before, part) = (all.capacity(), part.min(bytes - all.len()));
            make_room(&mut all, part, announced);
            times += usize::from(all.capacity() > before);
            all.extend_from_slice(&vec![0; part]);
        }
        (all.capacity(), times)
    }

    #[test]
    fn a_body_of_announced_length_takes_its_own_size_and_is_hardly_copied() {
        const MIB: usize = 1024 * 1024;
        for (bytes, most) in [(100_000, 1), (MIB, 1), (10 * MIB, 2), (64 * MIB, 3)] {
            let (room, times) = room(Some(bytes as u64), bytes, 65_000);
            assert_eq!(room, bytes);
            assert!(times <= most, "{bytes}: {times}");
        }
        let (room, _) = room(Some(64 * MIB as u64), 100_000, 1000);
        assert!(room <= 2 * MIB, "much is announced, little comes: {room}");
    }

    #[test]
    fn a_body_of_unknown_length_grows_as_it_comes() {
        let (room, times) = room(None, 1_000_000, 1000);
        assert!(room < 2_100_000 && times < 15, "{room} {times}");
    }
}
