//! Requests of a plain v1 relay: JSON text, no credit, no windows.

use std::collections::VecDeque;
use std::sync::Arc;

use http::header;
use modelrelay_protocol::frame::{Headers, ToWorker};
use modelrelay_protocol::slots::SessionKey;
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tracing::{debug, info, warn};

use super::Handled;
use super::announce::Announcer;
use super::outbox::Control;
use crate::app::Core;
use crate::backend::body::RequestBody;
use crate::backend::header_map;
use crate::job::mailbox::{Abort, Mailbox};
use crate::job::v1 as job;
use crate::jobs::Jobs;

/// Cancels that came before their request, remembered at most. Most belong to requests that have just ended.
const EARLY_CANCELS: usize = 1024;

/// What the jobs of one session share with it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) jobs: Jobs<String>,
    pub(crate) outbox: mpsc::Sender<Message>,
}

/// The requests of one session. Dropping it ends them.
pub(super) struct Session {
    core: Arc<Core>,
    key: SessionKey,
    control: Control,
    link: Arc<Link>,
    early_cancels: VecDeque<String>,
}

impl Session {
    pub(super) fn new(
        core: &Arc<Core>,
        key: SessionKey,
        control: Control,
        outbox: mpsc::Sender<Message>,
    ) -> Self {
        let link = Arc::new(Link { jobs: Jobs::new(), outbox });
        Self { core: Arc::clone(core), key, control, link, early_cancels: VecDeque::new() }
    }

    /// Returns what the session's jobs are known by elsewhere.
    pub(super) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.link)
    }

    /// Handles a text message.
    pub(super) fn text(&mut self, message: ToWorker, announcer: &Announcer) -> Handled {
        match message {
            ToWorker::Request { request_id, model: _, endpoint_path, is_streaming, body, headers } => {
                self.request(request_id, endpoint_path, is_streaming, body, &headers);
            }
            ToWorker::Cancel { request_id, reason } => {
                debug!(request_id, ?reason, "Cancelled");
                self.cancel(request_id);
            }
            ToWorker::Ping { timestamp_unix_ms, replicas: _ } => announcer.pong(timestamp_unix_ms),
            ToWorker::ModelsRefresh { reason: _ } => announcer.refresh(),
            ToWorker::GracefulShutdown { reason, drain_timeout_secs } => {
                info!(?reason, ?drain_timeout_secs, "The relay drains; what runs is finished");
            }
            ToWorker::RegisterAck(_)
            | ToWorker::Want { .. }
            | ToWorker::Return { .. }
            | ToWorker::Plea { .. }
            | ToWorker::Cede { .. }
            | ToWorker::Goaway { .. }
            | ToWorker::Empty => debug!("Skipped a message without a meaning here"),
        }
        Handled::Done
    }

    fn request(
        &mut self,
        request_id: String,
        path: String,
        is_streaming: bool,
        body: String,
        headers: &Headers,
    ) {
        if let Some(at) = self.early_cancels.iter().position(|id| *id == request_id) {
            self.early_cancels.remove(at);
            self.control.send(&job::cancelled(request_id));
            return;
        }
        let mailbox = Arc::new(Mailbox::new(DEFAULT_WINDOW_BYTES));
        if !self.link.jobs.insert(request_id.clone(), Arc::clone(&mailbox)) {
            warn!(request_id, "The relay sent a request twice; the second was dropped");
            return;
        }
        let pairs = headers.iter().map(|(name, value)| (name.as_bytes(), value.clone().into()));
        let mut headers = header_map(pairs);
        // The answer has to be text, so the backend must not compress it.
        headers.remove(header::ACCEPT_ENCODING);
        let job = job::Job {
            core: Arc::clone(&self.core),
            link: Arc::clone(&self.link),
            request_id,
            mailbox,
            ticket: self.core.capacity.start_fixed(self.key),
            is_streaming,
            path,
            headers,
            body: RequestBody::Whole(body.into()),
        };
        self.core.tasks.spawn(job::run(job));
    }

    fn cancel(&mut self, request_id: String) {
        if let Some(mailbox) = self.link.jobs.get(&request_id) {
            mailbox.abort(Abort::Cancelled(Instant::now()));
            return;
        }
        if self.early_cancels.len() == EARLY_CANCELS {
            self.early_cancels.pop_front();
        }
        self.early_cancels.push_back(request_id);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.link.jobs.abort_all(Abort::SessionLost);
        self.core.capacity.leave(self.key);
    }
}
