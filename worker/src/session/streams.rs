//! Requests of a relay that speaks our extensions: binary frames.

use std::sync::Arc;
use std::time::Duration;

use modelrelay_protocol::codec::{
    FailureCode, MAX_BINARY_FRAME_BYTES, RelayFrame, RequestHead, StreamId, decode_relay_frame, encode_failed,
};
use modelrelay_protocol::frame::ToWorker;
use modelrelay_protocol::slots::{SessionKey, Want};
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tracing::debug;

use super::Handled;
use super::announce::Announcer;
use super::outbox::Control;
use crate::app::Core;
use crate::backend::body::{Arriving, RequestBody};
use crate::backend::header_map;
use crate::capacity::{Plea, Ticket};
use crate::job::mailbox::{Abort, Mailbox};
use crate::job::streams as job;
use crate::jobs::Jobs;

/// What the jobs of one session share with it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) jobs: Jobs<StreamId>,
    pub(crate) outbox: mpsc::Sender<Message>,
    pub(crate) response_window_bytes: u32,
}

/// The requests of one session. Dropping it ends them.
pub(super) struct Session {
    core: Arc<Core>,
    key: SessionKey,
    control: Control,
    link: Arc<Link>,
    credits: bool,
}

impl Session {
    pub(super) fn new(
        core: &Arc<Core>,
        key: SessionKey,
        control: Control,
        outbox: mpsc::Sender<Message>,
        response_window_bytes: u32,
        credits: bool,
    ) -> Self {
        let link = Arc::new(Link { jobs: Jobs::new(), outbox, response_window_bytes });
        Self { core: Arc::clone(core), key, control, link, credits }
    }

    /// Returns what the session's jobs are known by elsewhere.
    pub(super) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.link)
    }

    /// Handles a binary frame.
    pub(super) fn binary(&self, frame: Bytes) -> Handled {
        if frame.len() > MAX_BINARY_FRAME_BYTES {
            return Handled::Violation(format!("a binary frame of {} bytes", frame.len()));
        }
        match decode_relay_frame(frame) {
            Ok(RelayFrame::Request { stream, head, body, end }) => {
                return self.request(stream, head, body, end);
            }
            Ok(RelayFrame::RequestData { stream, body, end }) => {
                // What belongs to a request that has ended crossed its last frame.
                if let Some(mailbox) = self.link.jobs.get(&stream)
                    && mailbox.push_body(body, end).is_err()
                {
                    mailbox.abort(Abort::WindowExceeded);
                }
            }
            Ok(RelayFrame::Cancel { stream, reason }) => {
                if let Some(mailbox) = self.link.jobs.get(&stream) {
                    debug!(stream = stream.0, ?reason, "Cancelled");
                    mailbox.abort(Abort::Cancelled(Instant::now()));
                }
            }
            Ok(RelayFrame::Window { stream, bytes }) => {
                if let Some(mailbox) = self.link.jobs.get(&stream) {
                    mailbox.open(bytes);
                }
            }
            Err(error) => return Handled::Violation(error.to_string()),
        }
        Handled::Done
    }

    /// Handles a text message.
    pub(super) fn text(&self, message: ToWorker, announcer: &Announcer) -> Handled {
        match message {
            ToWorker::Ping { timestamp_unix_ms, replicas } => {
                if let Some(replicas) = replicas {
                    announcer.counted(replicas);
                }
                announcer.pong(timestamp_unix_ms);
            }
            ToWorker::ModelsRefresh { reason: _ } => announcer.refresh(),
            ToWorker::Return { n } => {
                if let Err(error) = self.core.capacity.returned(self.key, n) {
                    return Handled::Violation(error.to_string());
                }
            }
            ToWorker::Plea { model, n, band, age_ms, number } => {
                self.core.capacity.pleaded(self.key, Plea { model, n, band, age_ms, number });
            }
            ToWorker::Cede { n, relay } => {
                if let Err(error) = self.core.capacity.ceded(self.key, n, &relay) {
                    return Handled::Violation(error.to_string());
                }
            }
            ToWorker::Goaway { deadline_ms } => announcer.goaway(deadline_ms),
            ToWorker::Empty => announcer.released(),
            ToWorker::GracefulShutdown { reason, .. } => debug!(?reason, "The relay drains"),
            ToWorker::Want { n, band, age_ms, received } => {
                let want = Want { n, band, age: Duration::from_millis(age_ms), received };
                self.core.capacity.wanted(self.key, want);
            }
            ToWorker::RegisterAck(_) | ToWorker::Request { .. } | ToWorker::Cancel { .. } => {
                return Handled::Violation(String::from("a message of the base that has no place here"));
            }
        }
        Handled::Done
    }

    fn request(&self, stream: StreamId, head: RequestHead, body: Bytes, end: bool) -> Handled {
        if self.link.jobs.get(&stream).is_some() {
            return Handled::Violation(format!("stream {} is in use", stream.0));
        }
        let RequestHead { body_bytes, streaming: _, model, path, headers } = head;
        let ticket = if self.credits {
            match self.core.capacity.start(self.key) {
                Ok(ticket) => ticket,
                Err(error) => {
                    self.fail(stream, FailureCode::OverCapacity, &error.to_string(), false);
                    return Handled::Done;
                }
            }
        } else {
            self.core.capacity.start_fixed(self.key)
        };
        if let Err((code, reason)) = self.core.can_serve(&model) {
            self.refuse(stream, code, &reason, ticket);
            return Handled::Done;
        }
        if !path.starts_with('/') {
            self.refuse(stream, FailureCode::Internal, "the path does not begin with a slash", ticket);
            return Handled::Done;
        }
        let mailbox = Arc::new(Mailbox::new(DEFAULT_WINDOW_BYTES));
        let body = if end {
            RequestBody::Whole(body)
        } else {
            let first = !body.is_empty();
            mailbox.begin_body(body);
            RequestBody::Arriving(Arriving {
                mailbox: Arc::clone(&mailbox),
                control: self.control.clone(),
                stream,
                left: body_bytes,
                first,
            })
        };
        self.link.jobs.insert(stream, Arc::clone(&mailbox));
        let headers = header_map(headers.iter());
        let (core, link) = (Arc::clone(&self.core), Arc::clone(&self.link));
        let job = job::Job { core, link, stream, mailbox, ticket, path, headers, body };
        self.core.tasks.spawn(job::run(job));
        Handled::Done
    }

    fn refuse(&self, stream: StreamId, code: FailureCode, message: &str, ticket: Ticket) {
        let regrant = ticket.finish();
        self.fail(stream, code, message, regrant);
    }

    /// Answers a request that never became a job. No frame of a job can be before this one: the number was free.
    fn fail(&self, stream: StreamId, code: FailureCode, message: &str, regrant: bool) {
        debug!(stream = stream.0, code = code.as_str(), message, "Refused");
        self.control.push(Message::Binary(encode_failed(stream, code, message, regrant)));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.link.jobs.abort_all(Abort::SessionLost);
        self.core.capacity.leave(self.key);
    }
}
