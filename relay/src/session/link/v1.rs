//! What is special about plain v1 workers: JSON bodies, no window, and streams whose status comes last.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use modelrelay_protocol::codec::StreamId;
use modelrelay_protocol::frame::{self, CancelReason, ToWorker, TokenCounts};
use modelrelay_protocol::usage::{UsageReader, of_body};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Link;
use crate::dispatch::Work;
use crate::http::error::RelayError;
use crate::http::headers;
use crate::scheduler::RefusalCause;
use crate::session::pipe::{Head, Pipe};

/// The largest frame that v1 workers take.
pub(super) const MAX_FRAME_BYTES: usize = modelrelay_protocol::wellknown::MAX_V1_FRAME_BYTES;

/// Bytes that one response may hold: there is no window to slow the worker down.
const BUFFER_BYTES: u32 = modelrelay_protocol::wellknown::MAX_V1_BUFFERED_BYTES as u32;

/// How long the first chunk of a stream waits for a completion that makes it an error: a v1 worker sends a streaming
/// backend's error as chunks, followed by the status.
const HOLD: Duration = modelrelay_protocol::wellknown::V1_FIRST_CHUNK_HOLD;

impl<IO: AsyncRead + AsyncWrite + Unpin> Link<IO> {
    /// Part of a plain v1 worker's stream.
    pub(super) fn on_v1_chunk(&mut self, id: StreamId, chunk: String, now: Instant) {
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
                self.plain.copies.begin(id, &chunk);
                self.plain.held.hold(id, pipe, chunk, now);
            }
            return;
        }
        self.plain.copies.see(id, &chunk);
        if let Some(chunk) = self.plain.held.append(id, chunk)
            && pipe.push(chunk.into(), now).is_err()
        {
            self.overrun(id, request, false, false);
        }
    }

    pub(super) fn on_v1_complete(&mut self, id: StreamId, completion: Completion, now: Instant) {
        let worker = self.session.id;
        let held = self.plain.held.take(id);
        let read = self.plain.copies.finish(id);
        let Some(entry) = self.session.table().remove(id) else {
            self.metrics.late_frames.inc();
            return;
        };
        match held {
            Some(held) if completion.status >= 400 => {
                let (head, _, told) = completion.into_parts();
                if self.dispatcher.ended(worker, entry.request, false) {
                    entry.pipe.answer(head, held.into(), read.or(told), now);
                }
            }
            Some(held) => {
                if self.dispatcher.ended(worker, entry.request, false) {
                    entry.pipe.answer(stream_head(), held.into(), read.or(completion.usage), now);
                }
            }
            None if entry.started => {
                self.dispatcher.ended(worker, entry.request, false);
                entry.pipe.complete(read.or(completion.usage));
            }
            None if completion.status == 503 && self.dispatcher.can_move(worker, entry.request) => {
                let error = RelayError::backend("the backend answered 503");
                let cause = RefusalCause::BackendUnavailable;
                self.dispatcher.refused(worker, entry.request, cause, error, false);
            }
            None => {
                let (head, body, told) = completion.into_parts();
                if self.dispatcher.ended(worker, entry.request, false) {
                    let usage = usage_of(&head.headers, body.as_bytes()).or(told);
                    entry.pipe.answer(head, body.into(), usage, now);
                }
            }
        }
    }
}

/// Reads the engine's usage from an answer that came in one piece.
fn usage_of(headers: &HeaderMap, body: &[u8]) -> Option<TokenCounts> {
    // Headers are optional in the base, and what is not streamed is JSON.
    let content_type =
        headers.get(header::CONTENT_TYPE).map_or(&b"application/json"[..], HeaderValue::as_bytes);
    let is_encoded = headers.contains_key(header::CONTENT_ENCODING);
    let mut reader = UsageReader::for_answer(Some(content_type), is_encoded)?;
    if !reader.is_events() {
        return of_body(body);
    }
    reader.see(body);
    reader.finish()
}

/// Encodes a request.
///
/// # Errors
/// The body is not text, or the frame would be larger than v1 workers take.
pub(super) fn request(
    stream: StreamId,
    work: &Work,
    target: usize,
    credentials: bool,
) -> Result<String, RelayError> {
    let body = work.body_for(target);
    let body = std::str::from_utf8(&body).map_err(|_| RelayError::UnsupportedBody)?;
    let mut map = BTreeMap::<String, String>::new();
    for (name, value) in
        work.headers.iter().chain(credentials.then_some(&work.credentials).into_iter().flatten())
    {
        let Ok(value) = value.to_str() else { continue };
        map.entry(name.as_str().to_owned())
            .and_modify(|all| {
                all.push_str(", ");
                all.push_str(value);
            })
            .or_insert_with(|| value.to_owned());
    }
    let text = frame::encode(&ToWorker::Request {
        request_id: request_id(stream),
        model: work.targets[target].model.to_string(),
        endpoint_path: work.path.clone(),
        is_streaming: work.streaming,
        body: body.to_owned(),
        headers: map,
    });
    if text.len() > MAX_FRAME_BYTES {
        return Err(RelayError::RequestTooLarge);
    }
    Ok(text)
}

/// Encodes a cancel.
pub(super) fn cancel(stream: StreamId, reason: CancelReason) -> String {
    frame::encode(&ToWorker::Cancel { request_id: request_id(stream), reason })
}

/// The stream's number is all the relay needs to find the request again, so it is the id.
fn request_id(stream: StreamId) -> String {
    format!("r{:08x}", stream.0)
}

/// Reads an id that [`request`] wrote; `None` for foreign ids, which belong to no request.
pub(super) fn stream_id(request_id: &str) -> Option<StreamId> {
    let digits = request_id.strip_prefix('r').filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok().map(StreamId)
}

/// The end of a v1 worker's answer.
pub(super) struct Completion {
    pub(super) status: u16,
    pub(super) headers: frame::Headers,
    pub(super) body: Option<String>,
    pub(super) usage: Option<TokenCounts>,
}

impl Completion {
    /// Returns head, body and what the worker said of its tokens.
    fn into_parts(self) -> (Head, String, Option<TokenCounts>) {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                map.append(name, value);
            }
        }
        headers::strip_response(&mut map);
        // v1 workers forward the backend's length even when they changed the framing.
        map.remove(header::CONTENT_LENGTH);
        let head = Head { status: headers::final_status(self.status), headers: map };
        (head, self.body.unwrap_or_default(), self.usage)
    }
}

/// The head that a v1 worker's stream has, since its own comes after the body.
pub(super) fn stream_head() -> Head {
    let mut map = HeaderMap::new();
    map.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Head { status: StatusCode::OK, headers: map }
}

/// What a link keeps for the streams of a plain v1 worker.
#[derive(Default)]
pub(super) struct Plain {
    pub(super) held: Held,
    copies: Copies,
}

impl Plain {
    /// The request has ended otherwise than by its completion.
    pub(super) fn forget(&mut self, id: StreamId) {
        self.held.take(id);
        self.copies.finish(id);
    }
}

/// The ends of running streams, in which the engine tells its usage: v1 workers pass it on unread.
#[derive(Default)]
struct Copies {
    readers: HashMap<StreamId, UsageReader>,
}

impl Copies {
    fn begin(&mut self, id: StreamId, chunk: &str) {
        let mut reader = UsageReader::for_events();
        reader.see(chunk.as_bytes());
        self.readers.insert(id, reader);
    }

    fn see(&mut self, id: StreamId, chunk: &str) {
        if let Some(reader) = self.readers.get_mut(&id) {
            reader.see(chunk.as_bytes());
        }
    }

    fn finish(&mut self, id: StreamId) -> Option<TokenCounts> {
        self.readers.remove(&id)?.finish()
    }
}

/// First chunks that wait for a completion.
#[derive(Default)]
pub(super) struct Held {
    waiting: BTreeMap<StreamId, Waiting>,
}

struct Waiting {
    until: Instant,
    pipe: Arc<Pipe>,
    text: String,
}

impl Held {
    fn hold(&mut self, id: StreamId, pipe: Arc<Pipe>, text: String, now: Instant) {
        self.waiting.insert(id, Waiting { until: now + HOLD, pipe, text });
    }

    /// Adds to what is held; gives the text back when nothing is held for this stream any more.
    fn append(&mut self, id: StreamId, text: String) -> Option<String> {
        match self.waiting.get_mut(&id) {
            Some(waiting) => {
                waiting.text.push_str(&text);
                None
            }
            None => Some(text),
        }
    }

    fn take(&mut self, id: StreamId) -> Option<String> {
        self.waiting.remove(&id).map(|waiting| waiting.text)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.until).min()
    }

    /// Passes on what was held long enough; returns those that do not fit into the buffer.
    pub(super) fn release(&mut self, now: Instant) -> Vec<StreamId> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let mut overruns = Vec::new();
        let due: Vec<StreamId> =
            self.waiting.iter().filter(|(_, waiting)| waiting.until <= now).map(|(id, _)| *id).collect();
        for id in due {
            let Some(waiting) = self.waiting.remove(&id) else { continue };
            waiting.pipe.start_unwindowed(stream_head(), BUFFER_BYTES, now);
            if waiting.pipe.push(waiting.text.into(), now).is_err() {
                overruns.push(id);
            }
        }
        overruns
    }
}
