//! The way of one response from a worker's session to the client's connection.
//!
//! A request has one pipe for all its attempts. The session that runs the request writes; the HTTP side reads. The pipe
//! counts the window: what the reader takes is handed back to the session, so that a client that reads nothing costs
//! its window and nothing else.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use modelrelay_protocol::frame::TokenCounts;
use modelrelay_protocol::window::{self, ReceiveWindow, WindowExceeded};
use tokio::time::Instant;

use crate::http::error::RelayError;

/// Chunks below this are copied together, so that a waiting chunk does not pin the read buffer it was cut from.
const COPY_BELOW_BYTES: usize = 4 * 1024;

/// Small chunks are copied into pieces of this size.
const TAIL_BYTES: usize = 16 * 1024;

/// Where window that the reader returned goes: the session that fills this pipe.
pub trait Opener: Send + Sync {
    /// The reader took bytes: the sender may send `bytes` more on `stream`.
    fn open_window(&self, stream: modelrelay_protocol::codec::StreamId, bytes: u32);
}

/// What the client gets ahead of the body.
#[derive(Debug)]
pub struct Head {
    /// The backend's status.
    pub status: StatusCode,
    /// The backend's end-to-end headers.
    pub headers: HeaderMap,
}

/// Who answers, and when it began.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Name of the worker, for people.
    pub worker: Arc<str>,
    /// When the request was handed to the worker.
    pub dispatched: Instant,
}

/// What the reader gets.
#[derive(Debug)]
pub enum Chunk {
    /// Bytes of the body, in order.
    Data(Bytes),
    /// The body is whole.
    End,
    /// The response breaks off here.
    Broken(RelayError),
}

/// How a response went, for the log line and the limits.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The last attempt.
    pub attempt: Option<Attempt>,
    /// When the first byte of the body came.
    pub first_byte: Option<Instant>,
    /// Bytes of body received from the worker.
    pub bytes: u64,
    /// Data frames received from the worker.
    pub chunks: u64,
    /// The engine's own usage.
    pub usage: Option<TokenCounts>,
    /// When the last byte came, for the limit on silence.
    pub last_byte: Option<Instant>,
}

enum End {
    Complete,
    Broken(RelayError),
}

struct Source {
    opener: Arc<dyn Opener>,
    stream: modelrelay_protocol::codec::StreamId,
    window: ReceiveWindow,
}

#[derive(Default)]
struct State {
    head: Option<Head>,
    /// The head was handed to the reader, or will be: nothing may move any more.
    started: bool,
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    /// Cost of what is queued, not yet taken.
    queued_cost: u32,
    queued_bytes: usize,
    end: Option<End>,
    reader: Option<Waker>,
    source: Option<Source>,
    /// What may be queued at once where there is no window.
    buffer_bytes: Option<u32>,
    progress: Progress,
}

/// See the module.
#[derive(Default)]
pub struct Pipe {
    state: std::sync::Mutex<State>,
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe").finish_non_exhaustive()
    }
}

impl Pipe {
    /// Makes an empty pipe.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }

    /// Notes that a worker got the request.
    pub fn attempt(&self, attempt: Attempt) {
        self.lock().progress.attempt = Some(attempt);
    }

    /// Opens the pipe: the first byte of the body is here, `head` goes to the client.
    ///
    /// `window_bytes` is what the session announced.
    pub fn start(
        &self,
        head: Head,
        opener: Arc<dyn Opener>,
        stream: modelrelay_protocol::codec::StreamId,
        window_bytes: u32,
        now: Instant,
    ) {
        let mut state = self.lock();
        begin(&mut state, head, now);
        state.source = Some(Source { opener, stream, window: ReceiveWindow::new(window_bytes) });
        wake(state);
    }

    /// Opens the pipe for a worker without windows, which cannot wait: no more than `buffer_bytes` are queued at once.
    pub fn start_unwindowed(&self, head: Head, buffer_bytes: u32, now: Instant) {
        let mut state = self.lock();
        begin(&mut state, head, now);
        state.buffer_bytes = Some(buffer_bytes);
        wake(state);
    }

    /// Adds bytes of the body.
    ///
    /// # Errors
    /// The sender went beyond the window, or the reader is too slow where there is none.
    pub fn push(&self, chunk: Bytes, now: Instant) -> Result<(), WindowExceeded> {
        if chunk.is_empty() {
            return Ok(());
        }
        let mut state = self.lock();
        if state.end.is_some() {
            return Ok(());
        }
        if let Some(source) = &mut state.source {
            source.window.receive(chunk.len())?;
        }
        let cost = window::cost(chunk.len());
        if state.buffer_bytes.is_some_and(|most| state.queued_cost.saturating_add(cost) > most) {
            return Err(WindowExceeded);
        }
        state.progress.last_byte = Some(now);
        state.progress.bytes += chunk.len() as u64;
        state.progress.chunks += 1;
        state.queued_cost = state.queued_cost.saturating_add(cost);
        state.queued_bytes += chunk.len();
        if chunk.len() < COPY_BELOW_BYTES {
            if state.tail.len() + chunk.len() > TAIL_BYTES {
                flush_tail(&mut state);
            }
            grow(&mut state.tail, chunk.len());
            state.tail.extend_from_slice(&chunk);
        } else {
            flush_tail(&mut state);
            state.chunks.push_back(chunk);
        }
        wake(state);
        Ok(())
    }

    /// Opens the pipe with a response that is already whole. Costs one lock and one wake-up.
    pub fn answer(&self, head: Head, body: Bytes, usage: Option<TokenCounts>, now: Instant) {
        let mut state = self.lock();
        begin(&mut state, head, now);
        state.progress.bytes = body.len() as u64;
        state.progress.chunks = u64::from(!body.is_empty());
        state.progress.usage = usage;
        state.queued_bytes = body.len();
        if !body.is_empty() {
            // Copied when small: it may wait, and would pin the read buffer it was cut from.
            let body = if body.len() < COPY_BELOW_BYTES { Bytes::copy_from_slice(&body) } else { body };
            state.chunks.push_back(body);
        }
        state.end = Some(End::Complete);
        wake(state);
    }

    /// The body is whole.
    pub fn complete(&self, usage: Option<TokenCounts>) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.progress.usage = usage;
            state.end = Some(End::Complete);
            state.source = None;
            wake(state);
        }
    }

    /// Ends the pipe with an error: as the answer when nothing was passed on yet, else by breaking the response off.
    pub fn fail(&self, error: RelayError) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(End::Broken(error));
            state.source = None;
            wake(state);
        }
    }

    /// Waits for the head, or for the error that is the answer.
    pub fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Result<Head, RelayError>> {
        let mut state = self.lock();
        if let Some(head) = state.head.take() {
            return Poll::Ready(Ok(head));
        }
        if let Some(End::Broken(error)) = &state.end {
            return Poll::Ready(Err(error.clone()));
        }
        park(&mut state, cx);
        Poll::Pending
    }

    /// Returns the whole body when it is here and complete, so that the client gets it in one piece with its length.
    pub fn take_whole(&self) -> Option<Bytes> {
        let mut state = self.lock();
        if !matches!(state.end, Some(End::Complete)) {
            return None;
        }
        flush_tail(&mut state);
        if state.chunks.len() > 1 {
            return None;
        }
        state.queued_cost = 0;
        state.queued_bytes = 0;
        Some(state.chunks.pop_front().unwrap_or_default())
    }

    /// Waits for the next part of the body.
    pub fn poll_chunk(&self, cx: &mut Context<'_>) -> Poll<Chunk> {
        let mut state = self.lock();
        if let Some(chunk) = state.chunks.pop_front().or_else(|| take_tail(&mut state)) {
            state.queued_bytes -= chunk.len();
            // The cost of the frames that were copied together is not kept apart: all of it is returned with the last
            // bytes, and in between each chunk returns at most what is queued.
            let cost = if state.queued_bytes == 0 {
                std::mem::take(&mut state.queued_cost)
            } else {
                let cost = window::cost(chunk.len()).min(state.queued_cost);
                state.queued_cost -= cost;
                cost
            };
            let opened = state.source.as_mut().and_then(|source| {
                let bytes = source.window.take(cost)?;
                Some((source.opener.clone(), source.stream, bytes))
            });
            drop(state);
            if let Some((opener, stream, bytes)) = opened {
                opener.open_window(stream, bytes);
            }
            return Poll::Ready(Chunk::Data(chunk));
        }
        match &state.end {
            Some(End::Complete) => Poll::Ready(Chunk::End),
            Some(End::Broken(error)) => Poll::Ready(Chunk::Broken(error.clone())),
            None => {
                park(&mut state, cx);
                Poll::Pending
            }
        }
    }

    /// Says whether the pipe has ended, whatever the reader took.
    pub fn has_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Says how long the worker has been silent while the reader waits for it; `None` when the reader is the slow one
    /// or nothing has started.
    pub fn silent_since(&self) -> Option<Instant> {
        let state = self.lock();
        if state.queued_bytes > 0 || state.end.is_some() { None } else { state.progress.last_byte }
    }

    /// Returns how the response went so far.
    pub fn progress(&self) -> Progress {
        self.lock().progress.clone()
    }
}

fn begin(state: &mut State, head: Head, now: Instant) {
    state.head = Some(head);
    state.started = true;
    state.progress.first_byte = Some(now);
    state.progress.last_byte = Some(now);
}

fn park(state: &mut State, cx: &Context<'_>) {
    match &mut state.reader {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

/// Wakes the reader outside the lock.
fn wake(mut state: std::sync::MutexGuard<'_, State>) {
    let reader = state.reader.take();
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// Makes room in a piece. Left to itself a buffer doubles past the size of a piece, and holds up to twice what waits.
fn grow(tail: &mut BytesMut, more: usize) {
    let needed = tail.len() + more;
    if needed > tail.capacity() && !tail.is_empty() {
        let mut larger = BytesMut::with_capacity(needed.next_power_of_two().min(TAIL_BYTES));
        larger.extend_from_slice(tail);
        *tail = larger;
    }
}

fn flush_tail(state: &mut State) {
    if let Some(tail) = take_tail(state) {
        state.chunks.push_back(tail);
    }
}

fn take_tail(state: &mut State) -> Option<Bytes> {
    (!state.tail.is_empty()).then(|| std::mem::take(&mut state.tail).freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_small_chunks_hold_little_more_than_what_waits() {
        for chunk in [1, 100, 1000, 1025, 3000, COPY_BELOW_BYTES - 1] {
            let mut tail = BytesMut::new();
            while tail.len() + chunk <= TAIL_BYTES {
                grow(&mut tail, chunk);
                tail.extend_from_slice(&vec![0; chunk]);
                assert!(tail.capacity() <= TAIL_BYTES, "{chunk}: {}", tail.capacity());
            }
            assert!(tail.capacity() < tail.len() + COPY_BELOW_BYTES, "{chunk}: {}", tail.capacity());
        }
    }

    #[test]
    fn without_a_window_only_what_waits_counts() {
        let now = Instant::now();
        let pipe = Pipe::new();
        let head = Head { status: StatusCode::OK, headers: HeaderMap::new() };
        pipe.start_unwindowed(head, 20_000, now);
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..10 {
            assert_eq!(pipe.push(Bytes::from(vec![0; 9000]), now), Ok(()));
            assert_eq!(pipe.push(Bytes::from(vec![0; 9000]), now), Ok(()));
            assert_eq!(pipe.push(Bytes::from(vec![0; 9000]), now), Err(WindowExceeded));
            for _ in 0..2 {
                assert!(
                    matches!(pipe.poll_chunk(&mut cx), Poll::Ready(Chunk::Data(bytes)) if bytes.len() == 9000)
                );
            }
        }
    }
}
