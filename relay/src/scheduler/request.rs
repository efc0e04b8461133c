//! What the scheduler knows of one request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::{Affinity, RequestKey, SchedulerConfig, Submission, Target, WorkerId};
use super::fairness::TenantIx;
use super::models::ModelIx;
use super::queue::{Kind, Place};
use super::workers::WorkerIx;

#[derive(Debug)]
pub(super) struct Request {
    pub(super) key: RequestKey,
    pub(super) targets: Arc<[Target]>,
    pub(super) tenant: TenantIx,
    pub(super) band: i32,
    pub(super) bytes: u64,
    pub(super) affinity: Option<Affinity>,
    pub(super) needs_streams: bool,
    pub(super) deadline: Option<Instant>,
    pub(super) submitted: Instant,
    pub(super) moves: u32,
    /// Workers that refused it.
    pub(super) tried: Vec<WorkerId>,
    pub(super) state: State,
    /// When its next limit passes, as the scheduler's timers have it.
    pub(super) timer: Option<Instant>,
}

#[derive(Debug)]
pub(super) enum State {
    Waiting(Wait),
    Running(Run),
}

#[derive(Copy, Clone, Debug)]
pub(super) struct Run {
    pub(super) worker: WorkerIx,
    pub(super) target: usize,
    pub(super) since: Instant,
    pub(super) started: bool,
}

#[derive(Debug)]
pub(super) struct Wait {
    /// The queues it stands in, each once.
    pub(super) models: Vec<ModelIx>,
    pub(super) clock: Clock,
    pub(super) since: Instant,
    /// What each clock had counted when it last stopped.
    spent: [Duration; 2],
}

/// What a waiting request waits for. Each clock counts the time of its own state only and pauses during the
/// other's, so workers that come and go cannot make a request wait longer than both limits together.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Clock {
    /// A slot.
    Queue,
    /// A worker that serves a target.
    NoWorker,
}

impl Wait {
    pub(super) fn new(models: Vec<ModelIx>, clock: Clock, now: Instant) -> Self {
        Self { models, clock, since: now, spent: [Duration::ZERO; 2] }
    }

    pub(super) fn switch(&mut self, clock: Clock, now: Instant) {
        self.spent[self.clock as usize] += now.saturating_duration_since(self.since);
        self.since = now;
        self.clock = clock;
    }

    fn ends(&self, config: &SchedulerConfig) -> Option<Instant> {
        let limit = match self.clock {
            Clock::Queue => config.queue_timeout,
            Clock::NoWorker => config.no_worker_timeout,
        };
        self.since.checked_add(limit.saturating_sub(self.spent[self.clock as usize]))
    }
}

impl Request {
    pub(super) fn new(submission: Submission, tenant: TenantIx, now: Instant) -> Self {
        let Submission { request, targets, tenant: _, band, bytes, affinity, excluded, deadline } =
            submission;
        Self {
            key: request,
            targets,
            tenant,
            band,
            bytes,
            affinity,
            needs_streams: excluded.needs_streams,
            deadline,
            submitted: now,
            moves: 0,
            tried: Vec::new(),
            state: State::Waiting(Wait::new(Vec::new(), Clock::Queue, now)),
            timer: None,
        }
    }

    /// The targets it may go to with their positions and weights, none of them 0.
    pub(super) fn usable_targets(&self) -> impl Iterator<Item = (usize, &Target, u32)> {
        let unweighted = self.targets.iter().all(|target| target.weight == 0);
        let weigh = move |target: &Target| if unweighted { 1 } else { target.weight };
        let all = self.targets.iter().enumerate();
        all.map(move |(index, target)| (index, target, weigh(target))).filter(|&(_, _, weight)| weight > 0)
    }

    pub(super) fn place(&self) -> Place {
        let kind = match (self.tried.is_empty(), self.needs_streams) {
            (false, _) => Kind::Moved,
            (true, true) => Kind::Streams,
            (true, false) => Kind::Plain,
        };
        Place { request: self.key, band: self.band, tenant: self.tenant, kind, bytes: self.bytes }
    }

    /// When the next of its limits passes.
    pub(super) fn due(&self, config: &SchedulerConfig) -> Option<Instant> {
        let clock = match &self.state {
            State::Waiting(wait) => wait.ends(config),
            State::Running(_) => None,
        };
        [clock, self.deadline].into_iter().flatten().min()
    }
}
