//! What a session tells a running job: stop, a wider window, more of the request's body.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use modelrelay_protocol::window::{self, ReceiveWindow, WindowExceeded};
use tokio::time::Instant;

/// Why a job ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abort {
    /// The relay asked for it, at this time.
    Cancelled(Instant),
    /// The worker's drain is over.
    Draining,
    /// There is nobody to answer any more.
    SessionLost,
    /// The relay sent more of the body than its window allowed.
    WindowExceeded,
}

#[derive(Debug)]
struct Inbox {
    abort: Option<Abort>,
    opened: u32,
    body: VecDeque<Bytes>,
    body_ended: bool,
    window: ReceiveWindow,
}

/// The mailbox of one job. One task reads it, the session's task writes it.
#[derive(Debug)]
pub(crate) struct Mailbox {
    inbox: Mutex<Inbox>,
    waker: AtomicWaker,
}

impl Mailbox {
    /// Makes an empty mailbox for a request whose body has this window.
    pub(crate) fn new(request_window_bytes: u32) -> Self {
        let inbox = Inbox {
            abort: None,
            opened: 0,
            body: VecDeque::new(),
            body_ended: false,
            window: ReceiveWindow::new(request_window_bytes),
        };
        Self { inbox: Mutex::new(inbox), waker: AtomicWaker::new() }
    }

    /// Ends the job; the first reason counts.
    pub(crate) fn abort(&self, why: Abort) {
        self.lock().abort.get_or_insert(why);
        self.waker.wake();
    }

    /// Opens the response's window.
    pub(crate) fn open(&self, bytes: u32) {
        let mut inbox = self.lock();
        inbox.opened = inbox.opened.saturating_add(bytes);
        drop(inbox);
        self.waker.wake();
    }

    /// Adds the first part of the body, which no window covers.
    pub(crate) fn begin_body(&self, part: Bytes) {
        let mut inbox = self.lock();
        if !part.is_empty() {
            inbox.body.push_back(part);
        }
    }

    /// Adds a part of the body.
    ///
    /// # Errors
    /// The relay sent more than it may.
    pub(crate) fn push_body(&self, part: Bytes, end: bool) -> Result<(), WindowExceeded> {
        let mut inbox = self.lock();
        inbox.window.receive(part.len())?;
        if !part.is_empty() {
            inbox.body.push_back(part);
        }
        inbox.body_ended = end;
        drop(inbox);
        self.waker.wake();
        Ok(())
    }

    /// Registers the job's task for all that comes, and returns why it has to end, if it has to.
    pub(crate) fn poll_abort(&self, cx: &mut Context<'_>) -> Option<Abort> {
        self.waker.register(cx.waker());
        self.lock().abort
    }

    /// Takes what the response's window opened since the last call.
    pub(crate) fn take_opened(&self) -> u32 {
        std::mem::take(&mut self.lock().opened)
    }

    /// Takes the next part of the body and by how much to open the relay's window for it. The first part was not
    /// charged, `charged` says whether this one was.
    pub(crate) fn poll_body(&self, charged: bool) -> Poll<Option<(Bytes, Option<u32>)>> {
        let mut inbox = self.lock();
        match inbox.body.pop_front() {
            Some(part) => {
                let opened = if charged { inbox.window.take(window::cost(part.len())) } else { None };
                // After the last part there is nothing to open a window for.
                let opened = opened.filter(|_| !inbox.body_ended);
                Poll::Ready(Some((part, opened)))
            }
            None if inbox.body_ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// Each change below is complete before anything could panic, so a poisoned lock holds nothing half done.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
