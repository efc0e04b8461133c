//! A request from its submission to its end, and how long that may take.

use std::sync::Arc;
use std::time::Duration;

use modelrelay_protocol::codec::StreamId;
use tokio::time::Instant;

use super::Work;
use crate::http::error::RelayError;
use crate::scheduler::WorkerId;
use crate::session::pipe::Pipe;

/// Limits of time for requests that run.
#[derive(Clone, Copy, Debug)]
pub struct RunLimits {
    /// From dispatch to the first byte of the body; `None` is unbounded.
    pub first_byte: Option<Duration>,
    /// Silence of the worker after the first byte while the client waits; `None` is unbounded.
    pub stream_idle: Option<Duration>,
}

/// A request that the scheduler knows.
pub(super) struct Running {
    pub(super) pipe: Arc<Pipe>,
    /// Held until the first byte of the answer: until then the request may move.
    pub(super) work: Option<Arc<Work>>,
    pub(super) request_id: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) tenant: Arc<str>,
    pub(super) priority: Arc<str>,
    /// Why the last worker that had it could not answer.
    pub(super) last_error: Option<RelayError>,
    pub(super) deadline: Option<Instant>,
    pub(super) submitted: Instant,
    pub(super) assigned: Option<Assigned>,
}

/// Where a request runs.
pub(super) struct Assigned {
    pub(super) worker: WorkerId,
    pub(super) stream: StreamId,
    pub(super) since: Instant,
}

impl Running {
    /// Whether it runs at this worker.
    pub(super) fn is_at(&self, worker: WorkerId) -> bool {
        self.assigned.as_ref().is_some_and(|assigned| assigned.worker == worker)
    }

    /// Why its time is over, if it is.
    pub(super) fn over(&self, now: Instant, limits: RunLimits) -> Option<RelayError> {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Some(RelayError::DeadlineExceeded);
        }
        let assigned = self.assigned.as_ref()?;
        if self.work.is_some() {
            let over = limits.first_byte.is_some_and(|limit| now >= assigned.since + limit);
            return over.then_some(RelayError::BackendTimeout);
        }
        let silent = self.pipe.silent_since()?;
        limits.stream_idle.is_some_and(|limit| now >= silent + limit).then_some(RelayError::BackendTimeout)
    }
}
