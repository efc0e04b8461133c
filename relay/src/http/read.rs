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
            // As much as was announced, but never more at once than arrives in a moment.
            let hint = announced.unwrap_or(0).min(1024 * 1024);
            all.reserve(usize::try_from(hint).unwrap_or(0).max(first.len() + data.len()));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}
