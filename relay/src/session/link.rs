//! The task that owns a worker's socket: reads frames, writes what the outbox holds, keeps the connection alive.
//!
//! One future polls both directions, so neither can starve or lose what the other has half done. Nothing here waits
//! for a client: bytes go into pipes whose windows bound them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{Sink, Stream as _};
use modelrelay_protocol::codec::{
    self, FailureCode, MAX_BINARY_FRAME_BYTES, MAX_PAYLOAD_BYTES, RequestMeta, ResponsePart, StreamId,
    WorkerFrame,
};
use modelrelay_protocol::frame::{self, Extension, TextError, ToRelay, ToWorker};
use modelrelay_protocol::wellknown::{PING_INTERVAL, SILENCE_LIMIT};
use modelrelay_protocol::window::SendWindow;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tracing::{debug, info, warn};

use super::credits::Credits;
use super::gate::Gate;
use super::pipe::Head;
use super::table::Outgoing;
use super::v1::{self, Held};
use super::{Close, Session};
use crate::dispatch::Dispatcher;
use crate::http::error::RelayError;
use crate::http::headers;
use crate::metrics::Metrics;
use crate::scheduler::{Event, RefusalCause, RequestKey};

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
    held: Held,
    credits: Credits,
    last_frame: Instant,
    next_ping: Instant,
    ping: Option<(u64, Instant)>,
    timer: Pin<Box<Sleep>>,
    /// Frames were written that are not flushed yet.
    dirty: bool,
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
            held: Held::default(),
            credits,
            last_frame: now,
            next_ping: now + PING_INTERVAL,
            ping: None,
            timer: Box::pin(tokio::time::sleep_until(now + PING_INTERVAL)),
            dirty: false,
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
        for overrun in self.held.release(now) {
            let request = self.session.table().get_mut(overrun).map(|entry| entry.request);
            if let Some(request) = request {
                self.overrun(overrun, request, false, false);
            }
        }
        if let Poll::Ready(error) = self.poll_write(cx) {
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
            if self.closing.is_some() && matches!(outgoing, Outgoing::Request { .. }) {
                continue;
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
            Outgoing::Request { stream, work, target } if self.session.is_ours() => {
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
            Outgoing::Request { stream, work, target } => {
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
                self.held.forget(stream);
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
        } else if now >= self.next_ping {
            self.next_ping = now + PING_INTERVAL;
            let stamp = unix_ms();
            self.ping = Some((stamp, now));
            self.session.send(ToWorker::Ping { timestamp_unix_ms: Some(stamp) });
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
        for earlier in [self.held.due(), draining_until.filter(|until| *until > now)].into_iter().flatten() {
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

    fn on_binary(&mut self, bytes: Bytes, now: Instant) -> Result<(), Close> {
        if !self.session.is_ours() {
            return Err(Close::Protocol("a binary frame that was not announced".into()));
        }
        if bytes.len() > MAX_BINARY_FRAME_BYTES {
            return Err(Close::Protocol("a binary frame beyond its limit".into()));
        }
        match codec::decode_worker_frame(bytes) {
            Ok(WorkerFrame::Response(stream, mut part)) => {
                if part.end {
                    part.regrant = self.settle(stream, part.regrant);
                }
                self.on_response(stream, part, now);
            }
            Ok(WorkerFrame::Failed { stream, code, message, regrant }) => {
                let regrant = self.settle(stream, regrant);
                self.on_failed(stream, code, &message, regrant, now);
            }
            Ok(WorkerFrame::Cancelled { stream, regrant }) => {
                let regrant = self.settle(stream, regrant);
                self.on_failed(stream, FailureCode::Internal, "cancelled by the worker", regrant, now);
            }
            Ok(WorkerFrame::Window { stream, bytes }) => {
                if let Some(upload) = self.uploads.iter_mut().find(|upload| upload.stream == stream) {
                    upload.window.open(bytes);
                }
            }
            Err(error) => return Err(Close::Protocol(error.to_string())),
        }
        Ok(())
    }

    /// A last frame arrived; returns whether another request may take the place of its own.
    fn settle(&mut self, stream: StreamId, regrant: bool) -> bool {
        let known = self.session.table().get_mut(stream).is_some();
        known && self.credits.ended(regrant)
    }

    fn on_response(&mut self, id: StreamId, mut part: ResponsePart, now: Instant) {
        let worker = self.session.id;
        let mut table = self.session.table();
        let Some(entry) = table.get_mut(id) else {
            drop(table);
            self.metrics.late_frames.inc();
            return;
        };
        if entry.cancelled.is_some() {
            drop(table);
            if part.end {
                self.acknowledged(id, part.regrant, now);
            }
            return;
        }
        if part.end {
            self.uploads.retain(|upload| upload.stream != id);
        }
        if entry.started {
            let request = entry.request;
            let pipe = entry.pipe.clone();
            drop(table);
            if pipe.push(part.body, now).is_err() {
                self.overrun(id, request, part.end, part.regrant);
            } else if part.end {
                self.session.table().remove(id);
                pipe.complete(part.usage);
                self.dispatcher.ended(worker, request, part.regrant);
            }
            return;
        }
        if let Some(head) = part.head.take() {
            entry.head = Some(convert_head(&head));
        }
        if part.body.is_empty() && !part.end {
            return;
        }
        let request = entry.request;
        let pipe = entry.pipe.clone();
        let Some(head) = entry.head.take() else {
            drop(table);
            let error = RelayError::backend("the worker sent a body without a head");
            self.break_off(id, request, error, part.end, part.regrant);
            return;
        };
        drop(table);
        if head.status == http::StatusCode::SERVICE_UNAVAILABLE && self.dispatcher.can_move(worker, request) {
            self.move_on(id, request, part.end, part.regrant);
        } else if part.end {
            self.session.table().remove(id);
            if self.dispatcher.ended(worker, request, part.regrant) {
                pipe.answer(head, part.body, part.usage, now);
            }
        } else if self.dispatcher.started(worker, request) {
            if let Some(entry) = self.session.table().get_mut(id) {
                entry.started = true;
            }
            pipe.start(head, self.session.clone(), id, self.session.window_bytes, now);
            if pipe.push(part.body, now).is_err() {
                self.overrun(id, request, false, false);
            }
        }
    }

    /// The backend is up but busy: another worker gets the request.
    fn move_on(&self, id: StreamId, request: RequestKey, ended: bool, regrant: bool) {
        let error = RelayError::backend("the backend answered 503");
        if ended {
            self.session.table().remove(id);
        } else {
            self.session.cancel(id, frame::CancelReason::Other("moved".into()));
        }
        self.dispatcher.refused(
            self.session.id,
            request,
            RefusalCause::BackendUnavailable,
            error,
            ended && regrant,
        );
    }

    /// The worker sent more than its window, or a plain v1 worker more than the buffer.
    fn overrun(&self, id: StreamId, request: RequestKey, ended: bool, regrant: bool) {
        let error = if self.session.is_ours() {
            warn!(worker = %self.session.name, "A worker exceeded its window");
            RelayError::backend("the worker sent more than its window")
        } else {
            RelayError::ClientTooSlow
        };
        self.break_off(id, request, error, ended, regrant);
    }

    /// Breaks a running response off and tells the worker, unless it has ended there.
    fn break_off(&self, id: StreamId, request: RequestKey, error: RelayError, ended: bool, regrant: bool) {
        let pipe = self.session.table().get_mut(id).map(|entry| entry.pipe.clone());
        if ended {
            self.session.table().remove(id);
        } else {
            self.session.cancel(id, frame::CancelReason::Other("broken off".into()));
        }
        if self.dispatcher.ended(self.session.id, request, ended && regrant)
            && let Some(pipe) = pipe
        {
            pipe.fail(error);
        }
    }

    fn on_failed(&mut self, id: StreamId, code: FailureCode, message: &str, regrant: bool, now: Instant) {
        self.uploads.retain(|upload| upload.stream != id);
        let worker = self.session.id;
        let mut table = self.session.table();
        let Some(entry) = table.get_mut(id) else {
            drop(table);
            self.metrics.late_frames.inc();
            return;
        };
        if entry.cancelled.is_some() {
            drop(table);
            self.acknowledged(id, regrant, now);
            return;
        }
        let entry = table.remove(id).expect("it was found above");
        drop(table);
        debug!(worker = %self.session.name, code = code.as_str(), message, "A request failed at its worker");
        self.metrics.worker_failures.with_label_values(&[code.as_str()]).inc();
        let error = RelayError::from_failure(code, message);
        match refusal(code) {
            Some(cause) if !entry.started => {
                self.dispatcher.refused(worker, entry.request, cause, error, regrant);
            }
            _ => {
                if self.dispatcher.ended(worker, entry.request, regrant) {
                    entry.pipe.fail(error);
                }
            }
        }
    }

    /// The worker answered a cancel, or had ended the request before it read it.
    fn acknowledged(&self, id: StreamId, regrant: bool, now: Instant) {
        let Some(entry) = self.session.table().remove(id) else { return };
        if let Some(at) = entry.cancelled {
            self.metrics.cancel_ack.observe((now - at).as_secs_f64());
        }
        if regrant {
            self.dispatcher.worker_event(Event::Granted { worker: self.session.id, credits: 1 });
        }
    }

    fn on_text(&mut self, text: &str, now: Instant) -> Result<(), Close> {
        let worker = self.session.id;
        let ours = self.session.is_ours();
        let message = match frame::decode_to_relay(text) {
            Ok(message) => message,
            Err(TextError::UnknownType(name)) if ours => {
                debug!(worker = %self.session.name, r#type = name, "Skipped a message of a newer worker");
                self.metrics.unknown_messages.inc();
                return Ok(());
            }
            Err(error) => return Err(Close::Protocol(error.to_string())),
        };
        match message {
            ToRelay::Register(_) => return Err(Close::Protocol("registered twice".into())),
            ToRelay::ModelsUpdate { models, current_load } => {
                let models = self.session.accept_models(&models);
                self.metrics.know_models(&models);
                self.dispatcher.worker_event(Event::ModelsChanged { worker, models });
                self.report_load(current_load);
            }
            ToRelay::Pong { current_load, timestamp_unix_ms } => {
                if let Some((stamp, sent)) = self.ping
                    && timestamp_unix_ms.is_none_or(|echo| echo == stamp)
                {
                    self.ping = None;
                    self.metrics.round_trip(&self.session.credential.pool, now - sent);
                    self.session.live_mut().round_trip = Some(now - sent);
                }
                self.report_load(current_load);
            }
            ToRelay::ResponseChunk { request_id, chunk } => match v1::stream_id(&request_id) {
                Some(id) => self.on_v1_chunk(id, chunk, now),
                None => self.metrics.late_frames.inc(),
            },
            ToRelay::ResponseComplete { request_id, status_code, headers, body, token_counts } => {
                let completion = v1::Completion { status: status_code, headers, body, usage: token_counts };
                match v1::stream_id(&request_id) {
                    Some(id) => self.on_v1_complete(id, completion, now),
                    None => self.metrics.late_frames.inc(),
                }
            }
            ToRelay::Error { request_id, code, message } => {
                match request_id.as_deref().and_then(v1::stream_id) {
                    Some(id) => {
                        let code = FailureCode::ALL.into_iter().find(|known| known.as_str() == code);
                        self.held.forget(id);
                        self.on_failed(id, code.unwrap_or(FailureCode::Internal), &message, false, now);
                    }
                    None => warn!(worker = %self.session.name, code, message, "A worker reports an error"),
                }
            }
            ToRelay::Grant { n } if self.session.extensions.has(Extension::Slots) => {
                let credits = self.credits.lend(n);
                self.dispatcher.worker_event(Event::Granted { worker, credits });
            }
            ToRelay::Recall { n } if self.session.extensions.has(Extension::Slots) => {
                let beyond = self.credits.give_back(n);
                let unspent = self.dispatcher.recall(worker, n - beyond);
                self.credits.gave_back(unspent);
                self.session.send(ToWorker::Return { n: beyond + unspent });
            }
            ToRelay::Load(report) if ours => {
                let (relays, idle_elsewhere) = (report.relays, report.idle_elsewhere);
                let before = self.session.live_mut().load.replace(report);
                let told = before.map_or((0, false), |before| (before.relays, before.idle_elsewhere));
                if told != (relays, idle_elsewhere) {
                    self.dispatcher.worker_event(Event::SlotsShared { worker, relays, idle_elsewhere });
                }
            }
            ToRelay::Draining { deadline_ms } if ours => {
                info!(worker = %self.session.name, deadline_ms, "A worker drains");
                self.session.live_mut().draining = true;
                self.dispatcher.worker_event(Event::Draining { worker });
            }
            ToRelay::Grant { .. } | ToRelay::Recall { .. } | ToRelay::Load(_) | ToRelay::Draining { .. } => {
                return Err(Close::Protocol("a message that was not announced".into()));
            }
        }
        Ok(())
    }

    fn report_load(&self, load: u32) {
        if !self.session.is_ours() {
            self.dispatcher.worker_event(Event::LoadReported { worker: self.session.id, load });
        }
    }

    /// Part of a plain v1 worker's stream.
    fn on_v1_chunk(&mut self, id: StreamId, chunk: String, now: Instant) {
        let mut table = self.session.table();
        let Some(entry) = table.get_mut(id) else {
            drop(table);
            self.metrics.late_frames.inc();
            return;
        };
        // Without a byte nothing has begun: the completion may still bring everything.
        if !entry.streaming || chunk.is_empty() {
            return;
        }
        let (request, pipe, started) = (entry.request, entry.pipe.clone(), entry.started);
        entry.started = true;
        drop(table);
        if !started {
            // A held chunk counts as seen: from here on the request cannot move.
            if self.dispatcher.started(self.session.id, request) {
                self.held.hold(id, pipe, chunk, now);
            }
        } else if let Some(chunk) = self.held.append(id, chunk)
            && pipe.push(chunk.into(), now).is_err()
        {
            self.overrun(id, request, false, false);
        }
    }

    fn on_v1_complete(&mut self, id: StreamId, completion: v1::Completion, now: Instant) {
        let worker = self.session.id;
        let held = self.held.take(id);
        let Some(entry) = self.session.table().remove(id) else {
            self.metrics.late_frames.inc();
            return;
        };
        match held {
            Some(held) if completion.status >= 400 => {
                let (head, usage) = completion.into_head();
                if self.dispatcher.ended(worker, entry.request, false) {
                    entry.pipe.answer(head, held.into(), usage, now);
                }
            }
            Some(held) => {
                if self.dispatcher.ended(worker, entry.request, false) {
                    entry.pipe.answer(v1::stream_head(), held.into(), completion.usage, now);
                }
            }
            None if entry.started => {
                self.dispatcher.ended(worker, entry.request, false);
                entry.pipe.complete(completion.usage);
            }
            None if completion.status == 503 && self.dispatcher.can_move(worker, entry.request) => {
                let error = RelayError::backend("the backend answered 503");
                let cause = RefusalCause::BackendUnavailable;
                self.dispatcher.refused(worker, entry.request, cause, error, false);
            }
            None => {
                let body = completion.body.clone().unwrap_or_default();
                let (head, usage) = completion.into_head();
                if self.dispatcher.ended(worker, entry.request, false) {
                    entry.pipe.answer(head, body.into(), usage, now);
                }
            }
        }
    }
}

/// Says whether a failure before the first byte moves the request, and as what.
fn refusal(code: FailureCode) -> Option<RefusalCause> {
    match code {
        FailureCode::BackendRefused => Some(RefusalCause::BackendRefused),
        FailureCode::BackendReset => Some(RefusalCause::BackendReset),
        FailureCode::ModelNotFound => Some(RefusalCause::ModelGone),
        FailureCode::OverCapacity => Some(RefusalCause::OverCapacity),
        FailureCode::Draining => Some(RefusalCause::WorkerDraining),
        FailureCode::BackendTimeout | FailureCode::BackendGarbage | FailureCode::Internal => None,
    }
}

fn convert_head(head: &codec::ResponseHead) -> Head {
    let mut map = http::HeaderMap::new();
    for (name, value) in head.headers.iter() {
        if let (Ok(name), Ok(value)) =
            (http::HeaderName::from_bytes(&name), http::HeaderValue::from_maybe_shared(value))
        {
            map.append(name, value);
        }
    }
    let length = announced_length(&map);
    headers::strip_response(&mut map);
    if let Some(length) = length {
        map.insert(http::header::CONTENT_LENGTH, length.into());
    }
    Head { status: headers::final_status(head.status), headers: map }
}

/// Returns the length that the backend announced: bytes pass unchanged, so it is true for the client as well, and a body
/// that breaks off is seen to be short. Beside a transfer coding a length means nothing (RFC 9112, 6.3).
fn announced_length(headers: &http::HeaderMap) -> Option<u64> {
    if headers.contains_key(http::header::TRANSFER_ENCODING) {
        return None;
    }
    let mut lengths = headers.get_all(http::header::CONTENT_LENGTH).iter();
    let length = lengths.next()?.to_str().ok()?.parse().ok()?;
    lengths.next().is_none().then_some(length)
}

#[allow(clippy::disallowed_methods, reason = "the ping carries a timestamp that people read in captures")]
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
