//! The task that owns a worker's socket: reads frames, writes what the outbox holds, keeps the connection alive.
//!
//! One future polls both directions, so neither can starve or lose what the other has half done. Nothing here waits
//! for a client: bytes go into pipes whose windows bound them.

mod incoming;
mod v1;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{Sink, Stream as _};
use modelrelay_protocol::codec::{self, MAX_PAYLOAD_BYTES, RequestMeta, StreamId};
use modelrelay_protocol::frame::{self, ToWorker};
use modelrelay_protocol::wellknown::{PING_INTERVAL, SILENCE_LIMIT};
use modelrelay_protocol::window::SendWindow;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tracing::warn;

use self::v1::Plain;
use super::credits::Credits;
use super::gate::Gate;
use super::table::Outgoing;
use super::{Close, Session};
use crate::dispatch::Dispatcher;
use crate::http::error::RelayError;
use crate::metrics::Metrics;

/// How long a close waits for the worker's own.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Frames that are read before writing gets its turn.
const READS_PER_TURN: usize = 64;

/// Why a session is over.
#[derive(Debug)]
pub enum Ended {
    /// The worker closed or the connection broke.
    ByWorker(String),
    /// The relay closed.
    ByRelay(Close),
}

/// A request body that is larger than its first frame.
struct Upload {
    stream: StreamId,
    rest: Bytes,
    window: SendWindow,
}

/// The socket of one registered worker.
pub struct Link<IO> {
    socket: WebSocketStream<Gate<IO>>,
    session: Arc<Session>,
    dispatcher: Arc<Dispatcher>,
    metrics: Arc<Metrics>,
    /// What the worker announced for each request body.
    request_window: u32,
    uploads: VecDeque<Upload>,
    plain: Plain,
    credits: Credits,
    last_frame: Instant,
    next_ping: Instant,
    ping: Option<(u64, Instant)>,
    timer: Pin<Box<Sleep>>,
    /// Frames were written that are not flushed yet.
    dirty: bool,
    /// What the outbox holds was left for the turn after the tasks that are ready now: they may add to it.
    gathering: bool,
    closing: Option<Closing>,
}

/// The end of a session: its close frame, then a moment for the worker's own.
struct Closing {
    frame: Option<CloseFrame>,
    until: Instant,
}

impl<IO> std::fmt::Debug for Link<IO> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("session", &self.session).finish_non_exhaustive()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Link<IO> {
    /// Takes the socket of a worker that has registered.
    pub fn new(
        socket: WebSocketStream<Gate<IO>>,
        session: Arc<Session>,
        dispatcher: Arc<Dispatcher>,
        metrics: Arc<Metrics>,
        request_window: u32,
    ) -> Self {
        let now = Instant::now();
        let credits = Credits::new(session.slots);
        Self {
            socket,
            session,
            dispatcher,
            metrics,
            request_window,
            uploads: VecDeque::new(),
            plain: Plain::default(),
            credits,
            last_frame: now,
            next_ping: now + PING_INTERVAL,
            ping: None,
            timer: Box::pin(tokio::time::sleep_until(now + PING_INTERVAL)),
            dirty: false,
            gathering: false,
            closing: None,
        }
    }

    /// Runs until the session is over.
    pub async fn run(mut self) -> Ended {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        self.session.writer.register(cx.waker());
        let now = Instant::now();
        if let Poll::Ready(ended) = self.poll_read(cx, now) {
            let closed = self.session.closing().cloned();
            return Poll::Ready(closed.map_or(ended, Ended::ByRelay));
        }
        self.begin_close(now);
        for overrun in self.plain.held.release(now) {
            let request = self.session.table().get_mut(overrun).map(|entry| entry.request);
            if let Some(request) = request {
                self.overrun(overrun, request, false, false);
            }
        }
        // Requests of clients that are ready together go out in one write: a write for each is most of what they cost.
        self.gathering = !self.gathering && self.session.has_outgoing();
        if self.gathering {
            cx.waker().wake_by_ref();
        } else if let Poll::Ready(error) = self.poll_write(cx) {
            return Poll::Ready(Ended::ByWorker(error.to_string()));
        }
        self.poll_timer(cx, now)
    }

    /// Nothing that the worker says counts from here on, and what it had is another's: that waits for no socket.
    fn begin_close(&mut self, now: Instant) {
        let Some(close) = self.session.closing().filter(|_| self.closing.is_none()) else { return };
        self.dispatcher.leave(self.session.id);
        let (code, reason) = close.parts();
        // A close frame carries at most 123 bytes of reason.
        let reason = reason[..reason.floor_char_boundary(120)].to_owned();
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        self.closing = Some(Closing { frame: Some(frame), until: now + CLOSE_WAIT });
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Ended> {
        for _ in 0..READS_PER_TURN {
            let message = match Pin::new(&mut self.socket).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ended::ByWorker("connection closed".into())),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Ended::ByWorker(error.to_string())),
                Poll::Ready(Some(Ok(message))) => message,
            };
            self.last_frame = now;
            let outcome = match message {
                _ if self.session.closing().is_some() => Ok(()),
                Message::Binary(bytes) => self.on_binary(bytes, now),
                Message::Text(text) => self.on_text(&text, now),
                Message::Close(frame) => {
                    let reason =
                        frame.map(|frame| format!("closed {}: {}", u16::from(frame.code), frame.reason));
                    return Poll::Ready(Ended::ByWorker(reason.unwrap_or_else(|| "closed".into())));
                }
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
            };
            if let Err(close) = outcome {
                self.session.close(close);
            }
        }
        // More may be there: come back after the writes.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<WsError> {
        loop {
            match Pin::new(&mut self.socket).poll_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Ready(Ok(())) => {}
            }
            let Some(message) = self.next_message() else { break };
            if let Err(error) = Pin::new(&mut self.socket).start_send(message) {
                return Poll::Ready(error);
            }
            self.dirty = true;
        }
        if self.dirty {
            match Pin::new(&mut self.socket).poll_flush(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Ready(Ok(())) => self.dirty = false,
            }
        }
        Poll::Pending
    }

    /// Returns the next message to write: what the outbox holds, then one part of each large body in turn.
    fn next_message(&mut self) -> Option<Message> {
        while let Some(outgoing) = self.session.pop() {
            if let Outgoing::Request { since, .. } = &outgoing {
                if self.closing.is_some() {
                    continue;
                }
                self.metrics.overhead_dispatch.observe(since.elapsed().as_secs_f64());
            }
            if let Some(message) = self.encode(outgoing) {
                return Some(message);
            }
        }
        if let Some(closing) = &mut self.closing {
            return closing.frame.take().map(|frame| Message::Close(Some(frame)));
        }
        let ready = self.uploads.iter().position(|upload| upload.window.budget() > 0)?;
        let mut upload = self.uploads.remove(ready)?;
        let part = upload.rest.split_to(upload.window.budget().min(upload.rest.len()));
        upload.window.spend(part.len());
        let end = upload.rest.is_empty();
        let bytes = codec::encode_request_data(upload.stream, &part, end);
        if !end {
            self.uploads.push_back(upload);
        }
        Some(Message::Binary(bytes))
    }

    fn encode(&mut self, outgoing: Outgoing) -> Option<Message> {
        match outgoing {
            Outgoing::Request { stream, work, target, .. } if self.session.is_ours() => {
                let mut rest = work.body_for(target);
                let body_bytes = rest.len() as u64;
                let first = rest.split_to(rest.len().min(MAX_PAYLOAD_BYTES));
                let meta = RequestMeta {
                    body_bytes,
                    streaming: work.streaming,
                    model: &work.targets[target].model,
                    path: &work.path,
                };
                let credentials = self.session.entry().forward_credentials.then_some(&work.credentials);
                let headers = work
                    .headers
                    .iter()
                    .chain(credentials.into_iter().flatten())
                    .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
                match codec::encode_request(stream, meta, headers, &first, rest.is_empty()) {
                    Ok(bytes) => {
                        if !rest.is_empty() {
                            let window = SendWindow::new(self.request_window);
                            self.uploads.push_back(Upload { stream, rest, window });
                        }
                        Some(Message::Binary(bytes))
                    }
                    Err(error) => {
                        warn!(%error, "A request does not fit into a frame");
                        self.fail(stream, RelayError::internal(&error));
                        None
                    }
                }
            }
            Outgoing::Request { stream, work, target, .. } => {
                match v1::request(stream, &work, target, self.session.entry().forward_credentials) {
                    Ok(text) => Some(Message::text(text)),
                    Err(error) => {
                        self.fail(stream, error);
                        None
                    }
                }
            }
            Outgoing::Cancel { stream, reason } if self.session.is_ours() => {
                self.uploads.retain(|upload| upload.stream != stream);
                Some(Message::Binary(codec::encode_cancel(stream, &reason)))
            }
            Outgoing::Cancel { stream, reason } => {
                self.plain.forget(stream);
                Some(Message::text(v1::cancel(stream, reason)))
            }
            Outgoing::Window { stream, bytes } => Some(Message::Binary(codec::encode_window(stream, bytes))),
            Outgoing::Message(message) => Some(Message::text(frame::encode(&message))),
        }
    }

    /// Ends a request that could not be written.
    fn fail(&self, stream: StreamId, error: RelayError) {
        if let Some(entry) = self.session.table().remove(stream) {
            self.dispatcher.ended(self.session.id, entry.request, self.session.is_ours());
            entry.pipe.fail(error);
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Ended> {
        if let Some(closing) = &self.closing {
            if now >= closing.until {
                let close = self.session.closing().cloned().unwrap_or(Close::Done);
                return Poll::Ready(Ended::ByRelay(close));
            }
        } else if now >= self.last_frame + SILENCE_LIMIT {
            self.session.close(Close::Silent);
        } else if let replicas = self.session.untold_replicas()
            && (replicas.is_some() || now >= self.next_ping)
        {
            self.next_ping = now + PING_INTERVAL;
            let stamp = unix_ms();
            self.ping = Some((stamp, now));
            self.session.send(ToWorker::Ping { timestamp_unix_ms: Some(stamp), replicas });
        }
        let draining_until = self.session.draining_until();
        if let Some(until) = draining_until
            && self.closing.is_none()
            && (self.session.running() == 0 || now >= until)
        {
            self.session.close(Close::Done);
        }
        let mut due = match &self.closing {
            Some(closing) => closing.until,
            None => self.next_ping.min(self.last_frame + SILENCE_LIMIT),
        };
        for earlier in
            [self.plain.held.due(), draining_until.filter(|until| *until > now)].into_iter().flatten()
        {
            due = due.min(earlier);
        }
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            // It is due now: what follows from it happens in the next turn.
            Poll::Ready(()) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the ping carries a timestamp that people read in captures")]
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
