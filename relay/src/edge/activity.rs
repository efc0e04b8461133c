//! What a connection's socket half and its service half know of one another.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};

/// The exchanges of one connection: running ones, and whether the last one left HTTP behind.
#[derive(Debug, Default)]
pub(super) struct Activity {
    running: AtomicUsize,
    ended: AtomicUsize,
    upgraded: AtomicBool,
}

impl Activity {
    pub(super) fn begin(&self) {
        self.running.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire) > 0
    }

    /// How many exchanges are over; a number that stood still means that nothing happened.
    pub(super) fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    pub(super) fn upgrade(&self) {
        self.upgraded.store(true, Ordering::Release);
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Ordering::Acquire)
    }
}

/// What becomes of an exchange whose body breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// It ends like any other: its connection carries others.
    End,
    /// It never ends: its connection is to be seen as cut off in the middle.
    StayOpen,
}

/// A response body; dropping it ends the exchange.
#[derive(Debug)]
pub(super) struct ExchangeBody<B> {
    body: B,
    activity: Arc<Activity>,
    on_failure: OnFailure,
    failed: bool,
}

impl<B> ExchangeBody<B> {
    /// Wraps the body of an exchange that [`Activity::begin`] has counted.
    pub(super) fn new(body: B, activity: Arc<Activity>, on_failure: OnFailure) -> Self {
        Self { body, activity, on_failure, failed: false }
    }
}

impl<B> Drop for ExchangeBody<B> {
    fn drop(&mut self) {
        if !self.failed || self.on_failure == OnFailure::End {
            self.activity.end();
        }
    }
}

impl<B: Body + Unpin> Body for ExchangeBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.failed |= matches!(frame, Some(Err(_)));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
