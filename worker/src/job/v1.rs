//! A request of a plain v1 relay: its answer travels as JSON text.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use http::{HeaderMap, Method, StatusCode, header};
use modelrelay_protocol::codec::FailureCode;
use modelrelay_protocol::frame::{Headers, ToRelay, TokenCounts, encode};
use modelrelay_protocol::usage::UsageReader;
use modelrelay_protocol::wellknown::MAX_V1_FRAME_BYTES;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::mailbox::{Abort, Mailbox};
use super::{Patience, names_missing_model, unless_aborted, usage_reader};
use crate::app::Core;
use crate::backend::body::RequestBody;
use crate::backend::{self, Call, CallError};
use crate::capacity::Ticket;
use crate::metrics::Outcome;
use crate::session::v1::Link;
use crate::text::TextDecoder;

/// v1 peers take less than 16 MiB in one frame; its own header has to fit as well.
const MAX_FRAME_BYTES: usize = MAX_V1_FRAME_BYTES - 1024;

/// Bytes of one chunk, at most. JSON may make six of each.
const CHUNK_BYTES: usize = 64 * 1024;

/// The status of an answer that nobody waits for any more.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// A request to run.
pub(crate) struct Job {
    pub(crate) core: Arc<Core>,
    pub(crate) link: Arc<Link>,
    pub(crate) request_id: String,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) ticket: Ticket,
    pub(crate) is_streaming: bool,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RequestBody,
}

/// How an answer ends: the content of its `response_complete`.
struct Complete {
    status: u16,
    headers: Headers,
    body: Option<String>,
    usage: Option<TokenCounts>,
    outcome: Outcome,
}

/// Returns the completion of a cancelled request. Without it a v1 relay never frees the slot.
pub(crate) fn cancelled(request_id: String) -> ToRelay {
    Complete::empty(CLIENT_CLOSED_REQUEST, Outcome::Cancelled).message(request_id)
}

impl Complete {
    fn empty(status: u16, outcome: Outcome) -> Self {
        Self { status, headers: Headers::new(), body: None, usage: None, outcome }
    }

    /// An error in the shape of OpenAI's API: v1 has no other way to tell.
    fn failed(error: &CallError) -> Self {
        let status = match error.code {
            FailureCode::BackendTimeout => StatusCode::GATEWAY_TIMEOUT,
            FailureCode::ModelNotFound => StatusCode::NOT_FOUND,
            FailureCode::OverCapacity | FailureCode::Draining => StatusCode::SERVICE_UNAVAILABLE,
            FailureCode::BackendRefused
            | FailureCode::BackendReset
            | FailureCode::BackendGarbage
            | FailureCode::Internal => StatusCode::BAD_GATEWAY,
        };
        let code = error.code.as_str();
        let text = serde_json::json!({ "error": { "message": error.message, "type": "server_error", "code": code } });
        let headers = [(String::from("content-type"), String::from("application/json"))].into();
        let outcome = Outcome::Failed(error.code);
        Self { status: status.as_u16(), headers, body: Some(text.to_string()), usage: None, outcome }
    }

    fn message(self, request_id: String) -> ToRelay {
        let Self { status, headers, body, usage, outcome: _ } = self;
        ToRelay::ResponseComplete { request_id, status_code: status, headers, body, token_counts: usage }
    }
}

/// Runs a request to its completion.
pub(crate) async fn run(job: Job) {
    let Job { core, link, request_id, mailbox, ticket, is_streaming, path, headers, body } = job;
    let running = core.metrics.job_started();
    let call = Call { method: Method::POST, path, headers, body };
    // In a block of its own: what runs there is dropped, and its connection closed, before anything is said of it.
    let answered = {
        let answer = pin!(answer(&core, &link, &request_id, is_streaming, call));
        unless_aborted(&mailbox, answer).await
    };
    let complete = match answered {
        Ok(Ok(complete)) => Some(complete),
        Ok(Err(error)) => {
            core.report_failure(&error);
            Some(Complete::failed(&error))
        }
        Err(Abort::Cancelled(asked)) => {
            core.metrics.cancelled(asked.elapsed());
            Some(Complete::empty(CLIENT_CLOSED_REQUEST, Outcome::Cancelled))
        }
        Err(Abort::Draining) => {
            Some(Complete::failed(&CallError::new(FailureCode::Draining, "the worker leaves")))
        }
        // A v1 relay has no request window; nothing raises this here.
        Err(Abort::SessionLost | Abort::WindowExceeded) => None,
    };
    let permit = match &complete {
        Some(_) => link.outbox.reserve().await.ok(),
        None => None,
    };
    link.jobs.remove(&request_id);
    drop(ticket);
    let (Some(permit), Some(complete)) = (permit, complete) else {
        running.ended(Outcome::Lost);
        return;
    };
    let outcome = complete.outcome;
    let mut text = encode(&complete.message(request_id.clone()));
    if text.len() > MAX_FRAME_BYTES {
        text = encode(&Complete::failed(&answer_too_large()).message(request_id));
    }
    permit.send(Message::text(text));
    running.ended(outcome);
}

/// Asks the backend, passes a stream's chunks on, and returns how the answer ends.
async fn answer(
    core: &Core,
    link: &Link,
    request_id: &str,
    is_streaming: bool,
    call: Call,
) -> Result<Complete, CallError> {
    let asked = Instant::now();
    let mut patience = Patience::new(core.idle_limit);
    let (mut head, mut exchange) = patience.during(pin!(core.backend.call(call))).await?;
    backend::strip(&mut head.headers);
    let mut usage = usage_reader(&head.headers);
    // Only what a v1 relay shows as an event stream may go in chunks: with chunks it ignores status and headers.
    let in_chunks = is_streaming && head.status == StatusCode::OK && is_event_stream(&head.headers);
    let mut decoder = TextDecoder::default();
    let mut whole = String::new();
    let mut first_byte = true;
    loop {
        patience.restart();
        let batch = std::future::poll_fn(|cx| match exchange.poll_batch(cx, CHUNK_BYTES) {
            Poll::Ready(batch) => Poll::Ready(batch),
            Poll::Pending if patience.is_over(cx) => Poll::Ready(Err(patience.error())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        let bytes = batch.bytes();
        if first_byte {
            first_byte = false;
            core.metrics.first_byte.observe(asked.elapsed().as_secs_f64());
            if names_missing_model(head.status, bytes) {
                core.look_again();
            }
        }
        if let Some(reader) = &mut usage {
            reader.see(bytes);
        }
        let text = decoder.decode(bytes, batch.end).map_err(|_| not_text())?;
        if in_chunks {
            if !text.is_empty() {
                let chunk =
                    encode(&ToRelay::ResponseChunk { request_id: request_id.to_owned(), chunk: text });
                // A closed outbox means that the session is over; the job is told so at once.
                let _ = link.outbox.send(Message::text(chunk)).await;
            }
        } else {
            whole.push_str(&text);
            if whole.len() > MAX_FRAME_BYTES {
                return Err(answer_too_large());
            }
        }
        if batch.end {
            core.metrics.total.observe(asked.elapsed().as_secs_f64());
            return Ok(Complete {
                status: head.status.as_u16(),
                headers: single_valued(&head.headers),
                body: (!in_chunks).then_some(whole),
                usage: usage.and_then(UsageReader::finish),
                outcome: Outcome::Answered,
            });
        }
    }
}

fn not_text() -> CallError {
    let message = "the answer is not UTF-8 text, which is all that this relay's protocol can carry";
    CallError::new(FailureCode::BackendGarbage, message)
}

fn answer_too_large() -> CallError {
    let message = "the answer is larger than the 16 MiB that this relay's protocol can carry";
    CallError::new(FailureCode::BackendGarbage, message)
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// The base has one value for each header: repeated ones are joined, but cookies, which a comma would break, are
/// cut to the first.
fn single_valued(headers: &HeaderMap) -> Headers {
    let mut single = Headers::new();
    for (name, value) in headers {
        let Ok(value) = value.to_str() else { continue };
        match single.entry(name.as_str().to_owned()) {
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(value.to_owned());
            }
            std::collections::btree_map::Entry::Occupied(_) if name == header::SET_COOKIE => {}
            std::collections::btree_map::Entry::Occupied(mut taken) => {
                taken.get_mut().push_str(", ");
                taken.get_mut().push_str(value);
            }
        }
    }
    single
}
