//! What a worker says, and what follows from it for its requests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use modelrelay_protocol::codec::{
    self, FailureCode, MAX_BINARY_FRAME_BYTES, ResponsePart, StreamId, WorkerFrame,
};
use modelrelay_protocol::frame::{self, Extension, TextError, ToRelay, ToWorker, TokenCounts};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Link, v1};
use crate::http::error::RelayError;
use crate::http::headers;
use crate::metrics::Cancelled;
use crate::scheduler::{Event, Plea, RefusalCause, RequestKey};
use crate::session::Close;
use crate::session::pipe::Head;
use crate::session::table::{Stream, Table};

impl<IO: AsyncRead + AsyncWrite + Unpin> Link<IO> {
    pub(super) fn on_binary(&mut self, bytes: Bytes, now: Instant) -> Result<(), Close> {
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
                self.on_cancelled(stream, regrant, now);
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
        let entry = match awaited(&mut table, id) {
            Ok(entry) => entry,
            Err(late) => {
                drop(table);
                let last = part.end.then_some(Last { result: Cancelled::Ended, regrant: part.regrant });
                return self.late(id, late, last, part.usage, now);
            }
        };
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
    pub(super) fn overrun(&self, id: StreamId, request: RequestKey, ended: bool, regrant: bool) {
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

    pub(super) fn on_failed(
        &mut self,
        id: StreamId,
        code: FailureCode,
        message: &str,
        regrant: bool,
        now: Instant,
    ) {
        self.uploads.retain(|upload| upload.stream != id);
        let worker = self.session.id;
        let mut table = self.session.table();
        if let Err(late) = awaited(&mut table, id) {
            drop(table);
            let last = Last { result: Cancelled::Ended, regrant };
            return self.late(id, late, Some(last), None, now);
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

    /// A frame came for a request that is over here. The last one after a cancel ends it at the worker too.
    fn late(&self, id: StreamId, late: Late, last: Option<Last>, usage: Option<TokenCounts>, now: Instant) {
        if late == Late::Unknown {
            self.metrics.late_frames.inc();
            return;
        }
        let Some(Last { result, regrant }) = last else { return };
        let Some(entry) = self.session.table().remove(id) else { return };
        if let Some((at, origin)) = entry.cancelled {
            self.metrics.cancelled(&entry.model, origin, result);
            self.metrics.cancel_ack.observe((now - at).as_secs_f64());
            if let Some(usage) = usage {
                self.metrics.wasted(&entry.model, origin, usage);
            }
        }
        if regrant {
            self.dispatcher.worker_event(Event::Granted { worker: self.session.id, credits: 1 });
        }
    }

    /// The worker closed a call to its engine: because it was told to, or it says so on its own.
    fn on_cancelled(&mut self, id: StreamId, regrant: bool, now: Instant) {
        let late = awaited(&mut self.session.table(), id).err();
        match late {
            Some(late) => {
                let last = Last { result: Cancelled::Acknowledged, regrant };
                self.late(id, late, Some(last), None, now);
            }
            None => self.on_failed(id, FailureCode::Internal, "cancelled by the worker", regrant, now),
        }
    }

    pub(super) fn on_text(&mut self, text: &str, now: Instant) -> Result<(), Close> {
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
                        self.plain.forget(id);
                        self.on_failed(id, code.unwrap_or(FailureCode::Internal), &message, false, now);
                    }
                    None => warn!(worker = %self.session.name, code, message, "A worker reports an error"),
                }
            }
            ToRelay::Grant { n } if self.session.extensions.has(Extension::Slots) => {
                self.credits.gave_back(self.session.take_ceded());
                let credits = self.credits.lend(n);
                self.dispatcher.worker_event(Event::Granted { worker, credits });
            }
            ToRelay::Recall { n } if self.session.extensions.has(Extension::Slots) => {
                let beyond = self.credits.give_back(n);
                let unspent = self.dispatcher.recall(worker, n - beyond);
                self.credits.gave_back(unspent);
                self.session.send(ToWorker::Return { n: beyond + unspent });
            }
            ToRelay::Plea { relay, model, n, band, age_ms, number }
                if self.session.extensions.has(Extension::Pleas) =>
            {
                let (relay, model, age) = (relay.into(), model.into(), Duration::from_millis(age_ms));
                let plea = Plea { relay, model, n, band, age, number };
                self.dispatcher.worker_event(Event::Pleaded { worker, plea });
            }
            ToRelay::Load(report) if ours => {
                let shared = (report.relays, report.replicas.clone(), report.idle_elsewhere);
                let before = self.session.live_mut().load.replace(report);
                let told = before.map(|before| (before.relays, before.replicas, before.idle_elsewhere));
                if told.unwrap_or_default() != shared {
                    let (relays, replicas, idle_elsewhere) = shared;
                    let replicas = replicas.into_iter().map(Arc::from).collect();
                    let event = Event::SlotsShared { worker, relays, replicas, idle_elsewhere };
                    self.dispatcher.worker_event(event);
                }
            }
            ToRelay::Draining { deadline_ms } if ours => {
                info!(worker = %self.session.name, deadline_ms, "A worker drains");
                self.session.live_mut().draining = true;
                self.dispatcher.worker_event(Event::Draining { worker });
            }
            ToRelay::Grant { .. }
            | ToRelay::Recall { .. }
            | ToRelay::Plea { .. }
            | ToRelay::Load(_)
            | ToRelay::Draining { .. } => {
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
}

/// Why a frame comes too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    /// No such request is known, or not any more.
    Unknown,
    /// It was cancelled, and the worker has not answered that yet.
    Cancelled,
}

/// The last frame of a request that was cancelled.
#[derive(Clone, Copy, Debug)]
struct Last {
    result: Cancelled,
    regrant: bool,
}

/// Finds the request that a frame is for.
fn awaited(table: &mut Table, id: StreamId) -> Result<&mut Stream, Late> {
    let entry = table.get_mut(id).ok_or(Late::Unknown)?;
    if entry.cancelled.is_some() { Err(Late::Cancelled) } else { Ok(entry) }
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
