//! A request of a relay that speaks our extensions: binary frames under a window.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use http::response::Parts;
use http::{HeaderMap, Method};
use modelrelay_protocol::codec::{
    FailureCode, StreamId, encode_cancelled, encode_failed, encode_response, encode_response_data,
};
use modelrelay_protocol::frame::TokenCounts;
use modelrelay_protocol::usage::of_body;
use modelrelay_protocol::window::SendWindow;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::mailbox::{Abort, Mailbox};
use super::{Patience, names_missing_model, unless_aborted, usage_reader};
use crate::app::Core;
use crate::backend::body::RequestBody;
use crate::backend::exchange::Batch;
use crate::backend::{self, Call, CallError};
use crate::capacity::Ticket;
use crate::metrics::Outcome;
use crate::session::streams::Link;

/// A request to run.
pub(crate) struct Job {
    pub(crate) core: Arc<Core>,
    pub(crate) link: Arc<Link>,
    pub(crate) stream: StreamId,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) ticket: Ticket,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RequestBody,
}

/// What a job sends last.
enum Last {
    End {
        head: Option<Parts>,
        batch: Batch,
        usage: Option<TokenCounts>,
    },
    Failed(CallError),
    Cancelled(Instant),
    /// Nobody is there to take it.
    Nothing,
}

/// Runs a request to its last frame.
pub(crate) async fn run(job: Job) {
    let Job { core, link, stream, mailbox, ticket, path, headers, body } = job;
    let running = core.metrics.job_started();
    let call = Call { method: Method::POST, path, headers, body };
    // In a block of its own: what runs there is dropped, and its connection closed, before anything is said of it.
    let answered = {
        let answer = pin!(answer(&core, &link, stream, &mailbox, call));
        unless_aborted(&mailbox, answer).await
    };
    let last = match answered {
        Ok(last) => last,
        Err(Abort::Cancelled(asked)) => Last::Cancelled(asked),
        Err(Abort::Draining) => Last::Failed(CallError::new(FailureCode::Draining, "the worker leaves")),
        Err(Abort::WindowExceeded) => Last::Failed(CallError::new(
            FailureCode::Internal,
            "the relay sent more of the body than its window allowed",
        )),
        Err(Abort::SessionLost) => Last::Nothing,
    };
    // The connection to the backend is closed or idle by now, so the slot may be lent again.
    let permit = match &last {
        Last::Nothing => None,
        Last::End { .. } | Last::Failed(_) | Last::Cancelled(_) => link.outbox.reserve().await.ok(),
    };
    link.jobs.remove(&stream);
    let Some(permit) = permit else {
        drop(ticket);
        running.ended(Outcome::Lost);
        return;
    };
    let regrant = ticket.finish();
    let (frame, outcome) = last_frame(stream, last, regrant, &core);
    permit.send(Message::Binary(frame));
    running.ended(outcome);
}

fn last_frame(stream: StreamId, last: Last, regrant: bool, core: &Core) -> (Bytes, Outcome) {
    let error = match last {
        Last::End { head: None, batch, usage } => {
            let none = None::<(u16, std::iter::Empty<(&[u8], &[u8])>)>;
            encode_response(stream, none, batch.bytes(), true, usage, regrant).map_err(too_large)
        }
        Last::End { head: Some(head), batch, usage } => {
            let fields = Some((head.status.as_u16(), pairs(&head.headers)));
            encode_response(stream, fields, batch.bytes(), true, usage, regrant).map_err(too_large)
        }
        Last::Cancelled(asked) => {
            core.metrics.cancelled(asked.elapsed());
            return (encode_cancelled(stream, regrant), Outcome::Cancelled);
        }
        Last::Failed(error) => Err(error),
        // Handled by the caller; an answer that nobody awaits is harmless.
        Last::Nothing => Err(CallError::new(FailureCode::Internal, "no answer")),
    };
    match error {
        Ok(frame) => (frame, Outcome::Answered),
        Err(error) => {
            core.report_failure(&error);
            (encode_failed(stream, error.code, &error.message, regrant), Outcome::Failed(error.code))
        }
    }
}

/// Asks the backend and passes its answer on, all but the last frame.
async fn answer(core: &Core, link: &Link, stream: StreamId, mailbox: &Mailbox, call: Call) -> Last {
    let asked = Instant::now();
    let mut patience = Patience::new(core.idle_limit);
    let (mut head, mut exchange) = match patience.during(pin!(core.backend.call(call))).await {
        Ok(begun) => begun,
        Err(error) => return Last::Failed(error),
    };
    // The length is the backend's promise to the client and stays true, since bytes pass unchanged.
    let length = head.headers.remove(http::header::CONTENT_LENGTH);
    // Beside a transfer coding it means nothing (RFC 9112, 6.3).
    let length = length.filter(|_| !head.headers.contains_key(http::header::TRANSFER_ENCODING));
    backend::strip(&mut head.headers);
    if let Some(length) = length {
        head.headers.insert(http::header::CONTENT_LENGTH, length);
    }
    let mut usage = usage_reader(&head.headers);
    let mut missing_model_shown = false;
    let status = head.status;
    let mut head = Some(head);
    let mut first_byte = true;
    let mut window = SendWindow::new(link.response_window_bytes);
    patience.restart();
    loop {
        // `None`: the head alone, because the backend takes its time over the first byte.
        let step = std::future::poll_fn(|cx| {
            window.open(mailbox.take_opened());
            match exchange.poll_batch(cx, window.budget()) {
                Poll::Ready(Ok(batch)) if !batch.end && batch.bytes().is_empty() => {
                    // The window is used up. The backend is not read on until the relay opens it.
                    patience.restart();
                    if head.is_some() { Poll::Ready(Ok(None)) } else { Poll::Pending }
                }
                Poll::Ready(done) => Poll::Ready(done.map(Some)),
                Poll::Pending if head.is_some() => Poll::Ready(Ok(None)),
                Poll::Pending if patience.is_over(cx) => Poll::Ready(Err(patience.error())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        let batch = match step {
            Ok(Some(batch)) => batch,
            Ok(None) => Batch::default(),
            Err(error) => return Last::Failed(error),
        };
        patience.restart();
        let bytes = batch.bytes();
        if first_byte && (batch.end || !bytes.is_empty()) {
            first_byte = false;
            core.metrics.first_byte.observe(asked.elapsed().as_secs_f64());
        }
        if !missing_model_shown && names_missing_model(status, bytes) {
            missing_model_shown = true;
            core.look_again();
        }
        if batch.end {
            core.metrics.total.observe(asked.elapsed().as_secs_f64());
            let usage = usage.and_then(|mut reader| {
                if head.is_some() && !reader.is_events() {
                    return of_body(bytes);
                }
                reader.see(bytes);
                reader.finish()
            });
            return Last::End { head, batch, usage };
        }
        if let Some(reader) = &mut usage {
            reader.see(bytes);
        }
        window.spend(bytes.len());
        let frame = match head.take() {
            Some(head) => {
                let fields = Some((head.status.as_u16(), pairs(&head.headers)));
                match encode_response(stream, fields, bytes, false, None, false) {
                    Ok(frame) => frame,
                    Err(error) => return Last::Failed(too_large(error)),
                }
            }
            None => encode_response_data(stream, bytes),
        };
        drop(batch);
        if link.outbox.send(Message::Binary(frame)).await.is_err() {
            return Last::Nothing;
        }
    }
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

fn too_large(error: modelrelay_protocol::codec::DecodeError) -> CallError {
    CallError::new(FailureCode::BackendGarbage, format!("the head of the backend's answer: {error}"))
}
