//! What the scheduler must do, said again in the plainest way: lists, and loops over all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use modelrelay_relay::scheduler::{
    Action, Capacity, Event, Reject, RequestKey, SchedulerConfig, Submission, WorkerId,
};

struct Worker {
    capacity: Capacity,
    credits: u32,
    foreign: u32,
    models: Vec<Arc<str>>,
    streams: bool,
    draining: bool,
}

#[derive(Copy, Clone, PartialEq)]
enum Phase {
    Waiting,
    Running { worker: WorkerId, started: bool },
}

struct Request {
    submission: Submission,
    phase: Phase,
    tried: Vec<WorkerId>,
    moves: u32,
    queued: Duration,
    unserved: Duration,
}

/// State that events and observed actions lead to, and what must still be seen.
pub(crate) struct Reference {
    pub(crate) config: SchedulerConfig,
    pub(crate) now: Instant,
    workers: BTreeMap<WorkerId, Worker>,
    requests: BTreeMap<RequestKey, Request>,
    rejects: BTreeMap<RequestKey, Reject>,
    cancels: BTreeSet<(RequestKey, WorkerId)>,
}

impl Reference {
    pub(crate) fn new(config: SchedulerConfig, now: Instant) -> Self {
        let (workers, requests) = (BTreeMap::new(), BTreeMap::new());
        Self { config, now, workers, requests, rejects: BTreeMap::new(), cancels: BTreeSet::new() }
    }

    pub(crate) fn workers(&self) -> Vec<WorkerId> {
        self.workers.keys().copied().collect()
    }

    pub(crate) fn requests(&self) -> Vec<RequestKey> {
        self.requests.keys().copied().collect()
    }

    pub(crate) fn recall(&mut self, worker: WorkerId, n: u32) -> u32 {
        let Some(worker) = self.workers.get_mut(&worker) else { return 0 };
        let taken = n.min(worker.credits);
        worker.credits -= taken;
        taken
    }

    /// Lets time pass; clocks run for what waits.
    pub(crate) fn advance(&mut self, now: Instant) {
        let elapsed = now - self.now;
        self.now = now;
        let served: Vec<RequestKey> = self
            .waiting()
            .filter(|(_, request)| self.is_served(request, true))
            .map(|(key, _)| *key)
            .collect();
        for (key, request) in &mut self.requests {
            if request.phase == Phase::Waiting {
                let clock = if served.contains(key) { &mut request.queued } else { &mut request.unserved };
                *clock += elapsed;
            }
        }
    }

    /// Foresees what ends now that limits are checked.
    pub(crate) fn time_out(&mut self) {
        for (key, request) in &self.requests {
            let over = request.submission.deadline.is_some_and(|deadline| deadline <= self.now);
            let served = self.is_served(request, true);
            let reason = match request.phase {
                Phase::Running { worker, .. } if over => {
                    self.cancels.insert((*key, worker));
                    Reject::DeadlineExceeded
                }
                Phase::Running { .. } => continue,
                Phase::Waiting if over => Reject::DeadlineExceeded,
                Phase::Waiting if served && request.queued >= self.config.queue_timeout => {
                    Reject::QueueTimeout
                }
                Phase::Waiting if !served && request.unserved >= self.config.no_worker_timeout => {
                    if self.is_served(request, false) { Reject::Unsupported } else { Reject::NoWorker }
                }
                Phase::Waiting => continue,
            };
            self.rejects.insert(*key, reason);
        }
    }

    /// Takes an event in and foresees what ends by it.
    pub(crate) fn handle(&mut self, event: &Event) {
        match event {
            Event::Joined { worker, info } => {
                let (capacity, streams) = (info.capacity, info.streams);
                let (foreign, models) = (info.reported_load, info.models.clone());
                let new = Worker { capacity, credits: 0, foreign, models, streams, draining: false };
                self.workers.entry(*worker).or_insert(new);
            }
            Event::ModelsChanged { worker, models } => {
                self.with_worker(*worker, |worker| worker.models.clone_from(models));
            }
            Event::LoadReported { worker, load } => {
                let own = self.running_at(*worker);
                self.with_worker(*worker, |worker| worker.foreign = load.saturating_sub(own));
            }
            // Who else uses the slots changes what is asked for, never what is done with what is here.
            Event::SlotsShared { .. } | Event::Pleaded { .. } => {}
            Event::Granted { worker, credits } => {
                self.with_worker(*worker, |worker| worker.credits += credits);
            }
            Event::Draining { worker } => self.with_worker(*worker, |worker| worker.draining = true),
            Event::Lost { worker } => self.lose(*worker),
            Event::Submitted(submission) => self.submit(submission),
            Event::ResponseStarted { request } => {
                if let Some(Request { phase: Phase::Running { started, .. }, .. }) =
                    self.requests.get_mut(request)
                {
                    *started = true;
                }
            }
            Event::Finished { request } => {
                if self.requests.get(request).is_some_and(|request| request.phase != Phase::Waiting) {
                    self.requests.remove(request);
                }
            }
            Event::Refused { request, cause, .. } => {
                let Some(known) = self.requests.get_mut(request) else { return };
                let Phase::Running { worker, started } = known.phase else { return };
                known.phase = Phase::Waiting;
                known.tried.push(worker);
                known.moves += 1;
                (known.queued, known.unserved) = (Duration::ZERO, Duration::ZERO);
                let known = &self.requests[request];
                let untried = self.workers.keys().any(|id| self.could_go(known, *id));
                if started {
                    self.rejects.insert(*request, Reject::LostAfterStart);
                } else if known.moves > self.config.max_requeues || !untried {
                    self.rejects.insert(*request, Reject::Refused(*cause));
                }
            }
            Event::ClientGone { request } => {
                if let Some(Request { phase: Phase::Running { worker, .. }, .. }) =
                    self.requests.remove(request)
                {
                    self.cancels.insert((*request, worker));
                }
            }
        }
    }

    fn lose(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
        for (key, request) in &mut self.requests {
            let Phase::Running { worker: on, started } = request.phase else { continue };
            if on != worker {
                continue;
            }
            request.phase = Phase::Waiting;
            request.moves += 1;
            (request.queued, request.unserved) = (Duration::ZERO, Duration::ZERO);
            if started {
                self.rejects.insert(*key, Reject::LostAfterStart);
            } else if request.moves > self.config.max_requeues {
                self.rejects.insert(*key, Reject::WorkerLost);
            }
        }
    }

    fn submit(&mut self, submission: &Submission) {
        let request = Request {
            submission: submission.clone(),
            phase: Phase::Waiting,
            tried: Vec::new(),
            moves: 0,
            queued: Duration::ZERO,
            unserved: Duration::ZERO,
        };
        if let Some((key, reason)) = self.refusal(&request) {
            self.rejects.insert(key, reason);
        }
        self.requests.insert(submission.request, request);
    }

    /// Who has no place in the queue when this request comes.
    fn refusal(&self, newcomer: &Request) -> Option<(RequestKey, Reject)> {
        let Submission { request, band, bytes, deadline, .. } = newcomer.submission;
        if deadline.is_some_and(|deadline| deadline <= self.now) {
            return Some((request, Reject::DeadlineExceeded));
        }
        if self.workers.keys().any(|id| self.could_go(newcomer, *id) && self.is_free(*id)) {
            return None;
        }
        if !self.is_served(newcomer, true) {
            if self.is_served(newcomer, false) {
                return Some((request, Reject::Unsupported));
            }
            let unserved = self.waiting().filter(|(_, other)| !self.is_served(other, true));
            let held: u64 = unserved.map(|(_, other)| other.submission.bytes).sum();
            if held + bytes > self.config.max_bytes / 4 {
                return Some((request, Reject::NoWorkerQueueFull));
            }
        }
        let queue = |model: &Arc<str>| -> Vec<&Request> {
            let here =
                self.waiting().filter(|(_, other)| usable(&other.submission).any(|name| name == model));
            here.map(|(_, other)| other).collect()
        };
        let queue = usable(&newcomer.submission).map(queue).min_by_key(Vec::len)?;
        if queue.len() < self.config.max_requests {
            return None;
        }
        let full = Reject::QueueFull { retry_after: Duration::ZERO };
        let key = |request: &&&Request| request.submission.request;
        let lowest = queue.iter().map(|other| other.submission.band).min();
        let victim = if lowest < Some(band) {
            queue.iter().filter(|other| Some(other.submission.band) == lowest).max_by_key(key)
        } else {
            // Shares in whole numbers: every weight in these tests divides 12.
            let waiting = |tenant, plus| -> usize {
                let same =
                    |other: &&&Request| (other.submission.tenant, other.submission.band) == (tenant, band);
                let weight = self.config.tenants.get(&tenant).copied().unwrap_or(1);
                (queue.iter().filter(same).count() + plus) * (12 / weight as usize)
            };
            let own = waiting(newcomer.submission.tenant, 1);
            let rivals = queue.iter().filter(|other| {
                let other = &other.submission;
                other.band == band && other.tenant != newcomer.submission.tenant
            });
            let heavier = rivals.filter(|other| waiting(other.submission.tenant, 0) > own);
            heavier.max_by_key(|other| (waiting(other.submission.tenant, 0), other.submission.request))
        };
        Some((victim.map_or(request, |victim| victim.submission.request), full))
    }

    /// Checks one action against the state it was decided in.
    pub(crate) fn observe(&mut self, action: &Action) {
        match *action {
            Action::Dispatch { request, worker, target } => {
                assert!(!self.rejects.contains_key(&request), "{request:?} was to end");
                let known = self.requests.get(&request).expect("only what has not ended is dispatched");
                assert!(known.phase == Phase::Waiting, "{request:?} runs already");
                assert!(self.is_free(worker), "{worker:?} has no slot for {request:?}");
                assert!(self.could_go(known, worker), "{request:?} cannot go to {worker:?}");
                let model = &known.submission.targets[target].model;
                assert!(self.serves(worker, model), "{worker:?} does not serve {model}");
                assert!(usable(&known.submission).any(|name| name == model), "{model} has no weight");
                for (_, other) in self.waiting().filter(|(_, other)| self.could_go(other, worker)) {
                    let (first, other) = (&known.submission, &other.submission);
                    if self.rejects.contains_key(&other.request) {
                        continue;
                    }
                    assert!(other.band <= first.band, "{other:?} is in a higher band than {first:?}");
                    let same = (other.band, other.tenant) == (first.band, first.tenant);
                    assert!(!same || other.request >= first.request, "{other:?} is older than {first:?}");
                }
                self.with_worker(worker, |worker| {
                    if worker.capacity == Capacity::Granted {
                        worker.credits -= 1;
                    }
                });
                let phase = Phase::Running { worker, started: false };
                self.requests.get_mut(&request).expect("it was there above").phase = phase;
            }
            Action::Reject { request, reason } => {
                let expected = self.rejects.remove(&request);
                let reason = match reason {
                    Reject::QueueFull { .. } => Reject::QueueFull { retry_after: Duration::ZERO },
                    reason => reason,
                };
                assert_eq!(expected, Some(reason), "end of {request:?}");
                assert!(self.requests.remove(&request).is_some(), "{request:?} ended before");
            }
            Action::Want { worker, n, .. } => {
                assert!(self.workers().contains(&worker), "{worker:?} is gone");
                assert!(n == 0 || self.waiting().count() > 0, "nothing waits");
            }
            Action::Plea { worker, n, .. } => {
                assert!(self.workers().contains(&worker), "{worker:?} is gone");
                assert!(n == 0 || self.waiting().count() > 0, "nothing waits");
            }
            Action::Cede { worker, n, .. } => {
                assert!(self.workers().contains(&worker), "{worker:?} is gone");
                self.with_worker(worker, |worker| {
                    worker.credits = worker.credits.checked_sub(n).expect("only what there is is ceded");
                });
            }
            Action::Cancel { request, worker, .. } => {
                assert!(self.cancels.remove(&(request, worker)), "{request:?} at {worker:?}");
                if let Some(request) = self.requests.get_mut(&request) {
                    request.phase = Phase::Waiting;
                }
            }
        }
    }

    /// Checks what must hold when there is nothing left to do.
    pub(crate) fn check_settled(&self) {
        assert!(self.rejects.is_empty(), "not rejected: {:?}", self.rejects);
        assert!(self.cancels.is_empty(), "not cancelled: {:?}", self.cancels);
        for (key, request) in self.waiting() {
            let idle = self.workers.keys().find(|id| self.could_go(request, **id) && self.is_free(**id));
            assert_eq!(idle, None, "{key:?} waits beside a free slot");
        }
    }

    pub(crate) fn count_waiting(&self) -> usize {
        self.waiting().count()
    }

    fn waiting(&self) -> impl Iterator<Item = (&RequestKey, &Request)> {
        self.requests.iter().filter(|(_, request)| request.phase == Phase::Waiting)
    }

    fn with_worker(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker)) {
        if let Some(worker) = self.workers.get_mut(&id) {
            change(worker);
        }
    }

    fn running_at(&self, id: WorkerId) -> u32 {
        let here =
            |request: &&Request| matches!(request.phase, Phase::Running { worker, .. } if worker == id);
        self.requests.values().filter(here).count().try_into().expect("few requests")
    }

    fn is_free(&self, id: WorkerId) -> bool {
        let worker = &self.workers[&id];
        match worker.capacity {
            Capacity::Granted => worker.credits > 0,
            Capacity::Declared { slots } => self.running_at(id) + worker.foreign < slots,
        }
    }

    fn serves(&self, id: WorkerId, model: &Arc<str>) -> bool {
        let worker = &self.workers[&id];
        !worker.draining && worker.models.iter().any(|name| name == model || &**name == "*")
    }

    fn could_go(&self, request: &Request, id: WorkerId) -> bool {
        let takes_body = self.workers[&id].streams || !request.submission.excluded.needs_streams;
        let mut models = usable(&request.submission);
        takes_body && !request.tried.contains(&id) && models.any(|model| self.serves(id, model))
    }

    /// Whether a worker serves a target; with `mind_body`, one that can take the body.
    fn is_served(&self, request: &Request, mind_body: bool) -> bool {
        let needs_streams = mind_body && request.submission.excluded.needs_streams;
        self.workers.iter().any(|(id, worker)| {
            let mut models = usable(&request.submission);
            (worker.streams || !needs_streams) && models.any(|model| self.serves(*id, model))
        })
    }
}

/// The models a request may go to.
fn usable(submission: &Submission) -> impl Iterator<Item = &Arc<str>> {
    let unweighted = submission.targets.iter().all(|target| target.weight == 0);
    let targets = submission.targets.iter().filter(move |target| unweighted || target.weight > 0);
    targets.map(|target| &target.model)
}
