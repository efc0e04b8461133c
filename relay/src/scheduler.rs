//! Decides which request runs where and when; does nothing itself.
//!
//! The scheduler is a value: events go in, actions come out, and time is an argument. It holds numbers and
//! names, never a body, a sender or a socket. The same events always give the same actions.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Instant;
//! use modelrelay_relay::scheduler::*;
//!
//! let now = Instant::now();
//! let mut scheduler = Scheduler::new(SchedulerConfig::default());
//! let (request, worker) = (RequestKey(1), WorkerId(1));
//! scheduler.handle(
//!     Event::Submitted(Submission {
//!         request,
//!         targets: [Target { model: "llama".into(), weight: 1 }].into(),
//!         tenant: TenantId(0),
//!         band: 0,
//!         bytes: 100,
//!         affinity: None,
//!         excluded: SessionNeeds::default(),
//!         deadline: None,
//!     }),
//!     now,
//! );
//! assert_eq!(scheduler.poll_action(), None); // it waits, until `poll_timeout` at the latest
//! let capacity = Capacity::Declared { slots: 1 };
//! let models = vec!["llama".into()];
//! let info = WorkerInfo { capacity, slots: 1, models, streams: false, identity: 7, reported_load: 0, pleas: false };
//! scheduler.handle(Event::Joined { worker, info }, now);
//! assert_eq!(scheduler.poll_action(), Some(Action::Dispatch { request, worker, target: 0 }));
//! ```
//!
//! # What goes first
//! A free slot takes, of all requests that its worker could serve, the one of the highest band, then of the
//! tenant with the least slot time per weight, then the oldest. Slot time counts as it passes, plus one second
//! for each request that runs; there is one account per tenant, over all models.
//!
//! *Bound.* Let two tenants of weights v and w wait without a break in the same band for the same N slots, and
//! let no request hold a slot longer than S. From the moment both wait, the slot time per weight that one gets
//! exceeds the other's by at most N · max(S, 1 s) / min(v, w), plus what their accounts differed by then. A
//! tenant that comes to wait has no better account than the last one its queue served, so it saves nothing up
//! while it asks for nothing, and is at most ten minutes behind that one.
//!
//! # How long requests wait
//! A request that waits has two clocks: one runs while a worker serves a target of it (draining workers and
//! those that could not take its body do not count), the other while none does. A worker that comes, or the
//! last one that goes, stops one and lets the other go on from what it had counted; a requeue starts both
//! afresh. A requeued request keeps its order of arrival, and is not held against the limits of its queue.
//!
//! # Several replicas
//! Workers lend their slots to every relay replica. When a request waits here while slots are lent elsewhere, the
//! scheduler asks the other replicas for what lies idle there ([`Action::Plea`]), and gives up what lies idle here for
//! those that ask ([`Action::Cede`]). When everything is busy it claims slots at their workers ([`Action::Want`]), and gives
//! up what comes here out of turn: bands and then first come first served hold over the queues of all replicas, and the
//! order of tenants within each.

mod borrowing;
mod event;
mod fairness;
mod membership;
mod models;
mod placement;
mod pleading;
mod queue;
mod request;
#[cfg(test)]
mod tests;
mod view;
mod waiting;
mod workers;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use self::borrowing::Borrowing;
pub use self::event::{
    Action, Affinity, CancelReason, Capacity, Event, Plea, RefusalCause, Reject, Replica, RequestKey,
    SchedulerConfig, SessionNeeds, Strategy, Submission, Target, TenantId, WorkerId, WorkerInfo,
};
use self::fairness::Accounts;
use self::models::{ANY, Models};
use self::placement::{Demand, Draws, Preference, weighted};
use self::pleading::Pleading;
use self::request::{Request, Run, State};
pub use self::view::{Counts, QueueView, RunningView, Shortage, Snapshot, WorkerView};
use self::waiting::Held;
use self::workers::{WorkerIx, Workers};

/// Below this many requests the table of requests is not worth shrinking.
const SMALL_TABLE: usize = 256;

/// See the module. After each `handle` or `handle_timeout`, [`Scheduler::poll_action`] is to be called until
/// it returns none.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    models: Models,
    workers: Workers,
    requests: HashMap<RequestKey, Request>,
    accounts: Accounts,
    waiting: Held,
    timers: BTreeSet<(Instant, RequestKey)>,
    penalties: BTreeSet<(Instant, WorkerIx)>,
    actions: VecDeque<Action>,
    draws: Draws,
    borrowing: Borrowing,
    pleading: Pleading,
    /// Counts dispatches, so that workers of equal load take turns.
    turn: u64,
}

/// Where a request goes.
#[derive(Copy, Clone, Debug)]
struct Choice {
    worker: WorkerIx,
    target: usize,
}

impl Scheduler {
    /// Starts without workers and requests.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            models: Models::new(),
            workers: Workers::default(),
            requests: HashMap::new(),
            accounts: Accounts::default(),
            waiting: Held::default(),
            timers: BTreeSet::new(),
            penalties: BTreeSet::new(),
            actions: VecDeque::new(),
            draws: Draws::new(),
            borrowing: Borrowing::default(),
            pleading: Pleading::default(),
            turn: 0,
        }
    }

    /// Puts new settings in force. Requests that wait are kept, even where a queue is smaller now; their
    /// clocks have the new limits at once.
    pub fn reconfigure(&mut self, config: SchedulerConfig, now: Instant) {
        self.accounts.reweigh(&config.tenants, now);
        self.config = config;
        self.retime_queued();
    }

    /// Takes note of an event.
    pub fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Joined { worker, info } => self.joined(worker, info, now),
            Event::ModelsChanged { worker, models } => self.models_changed(worker, models, now),
            Event::LoadReported { worker, load } => self.load_reported(worker, load, now),
            Event::Granted { worker, credits } => self.granted(worker, credits, now),
            Event::SlotsShared { worker, relays, replicas, idle_elsewhere } => {
                self.slots_shared(worker, relays, replicas, idle_elsewhere);
            }
            Event::Pleaded { worker, plea } => self.pleaded(worker, plea, now),
            Event::Draining { worker } => self.draining(worker, now),
            Event::Lost { worker } => self.lost(worker, now),
            Event::Submitted(submission) => self.submitted(submission, now),
            Event::ResponseStarted { request } => self.response_started(request),
            Event::Finished { request } => self.finished(request, now),
            Event::Refused { request, cause, penalise } => self.refused(request, cause, penalise, now),
            Event::ClientGone { request } => self.client_gone(request, now),
        }
        self.borrow(now);
    }

    /// Ends what is due. Calling it too early does nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(_, worker)) = self.penalties.first().filter(|(at, _)| *at <= now) {
            self.pardon(worker);
        }
        // Slots are given away last, lest they go to a request that is due as well.
        let mut freed = BTreeSet::new();
        while let Some(&(_, request)) = self.timers.first().filter(|(at, _)| *at <= now) {
            freed.extend(self.expire(request, now));
        }
        for worker in freed {
            self.fill(worker, now);
        }
        self.borrow(now);
    }

    /// Returns the next thing to do, in the order in which it was decided.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`Scheduler::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let limit = self.timers.first().map(|(at, _)| *at);
        let penalty = self.penalties.first().map(|(at, _)| *at);
        [limit, penalty, self.borrowing.due(), self.pleading.due()].into_iter().flatten().min()
    }

    fn submitted(&mut self, submission: Submission, now: Instant) {
        if self.requests.contains_key(&submission.request) {
            return;
        }
        let tenant = self.accounts.of(submission.tenant, &self.config.tenants, now);
        let request = Request::new(submission, tenant, now);
        if request.deadline.is_some_and(|deadline| deadline <= now) {
            self.reject(request.key, Reject::DeadlineExceeded);
        } else if let Some(choice) = self.choose(&request) {
            // Nobody is passed by: what waits cannot use this slot, or it would have it.
            self.dispatch(request, choice, now);
        } else if let Err(reason) = self.make_room(&request) {
            self.reject(request.key, reason);
        } else {
            self.enqueue(request, now);
        }
    }

    fn response_started(&mut self, request: RequestKey) {
        let request = self.requests.get_mut(&request).map(|request| &mut request.state);
        if let Some(State::Running(run)) = request {
            run.started = true;
            let worker = run.worker;
            self.pardon(worker);
        }
    }

    fn finished(&mut self, request: RequestKey, now: Instant) {
        if let Some((_, run)) = self.take_running(request, now) {
            self.fill(run.worker, now);
        }
    }

    fn client_gone(&mut self, key: RequestKey, now: Instant) {
        if let Some((_, run)) = self.take_running(key, now) {
            self.cancel(key, run.worker, CancelReason::ClientGone);
            self.fill(run.worker, now);
        } else {
            self.take_waiting(key);
        }
    }

    fn refused(&mut self, key: RequestKey, cause: RefusalCause, penalise: bool, now: Instant) {
        let Some((mut request, run)) = self.take_running(key, now) else { return };
        if penalise {
            self.penalise(run.worker, now);
        }
        request.tried.push(self.workers[run.worker].id);
        if run.started {
            self.reject(key, Reject::LostAfterStart);
        } else if request.moves >= self.config.max_requeues || !self.has_untried_worker(&request) {
            self.reject(key, Reject::Refused(cause));
        } else {
            self.requeue(request, now);
        }
        self.fill(run.worker, now);
    }

    /// Says whether a refusal would send this request elsewhere rather than end it.
    pub fn can_move(&self, request: RequestKey) -> bool {
        let Some(request) = self.requests.get(&request) else { return false };
        let State::Running(Run { worker, started: false, .. }) = request.state else { return false };
        let tried = request.tried.iter().copied().chain([self.workers[worker].id]);
        request.moves < self.config.max_requeues && self.is_served_beyond(request, tried)
    }

    /// Sends a request that was taken from its worker to another, or back to its queue.
    fn requeue(&mut self, mut request: Request, now: Instant) {
        request.moves += 1;
        match self.choose(&request) {
            Some(choice) => self.dispatch(request, choice, now),
            None => self.enqueue(request, now),
        }
    }

    /// Finds a free slot: a target by weight among those that have one, then a worker.
    fn choose(&mut self, request: &Request) -> Option<Choice> {
        let preference = Preference::of(request.affinity, self.config.strategy);
        let workers = &self.workers;
        let tried =
            |worker: WorkerIx| !request.tried.is_empty() && request.tried.contains(&workers[worker].id);
        let demand = Demand { needs_streams: request.needs_streams, preference, tried };
        let choose = |name: &str| demand.choose(self.models.pools(self.models.find(name)));
        if let [only] = &*request.targets {
            return choose(&only.model).map(|worker| Choice { worker, target: 0 });
        }
        let (options, shares): (Vec<WorkerIx>, Vec<(usize, u32)>) = request
            .usable_targets()
            .filter_map(|(target, Target { model, .. }, weight)| Some((choose(model)?, (target, weight))))
            .unzip();
        if shares.is_empty() {
            return None;
        }
        // A session keeps its target as well.
        let draw = preference.hash().unwrap_or_else(|| self.draws.next());
        let target = weighted(&shares, draw);
        let position = shares.iter().position(|&(share, _)| share == target)?;
        Some(Choice { worker: options[position], target })
    }

    fn dispatch(&mut self, mut request: Request, choice: Choice, now: Instant) {
        let Choice { worker, target } = choice;
        let model = self.models.find(&request.targets[target].model).unwrap_or(ANY);
        let used = self.accounts.used(request.tenant, now);
        self.models[model].queue.raise_floor(request.band, used);
        self.accounts.starts_running(request.tenant, now);
        self.turn += 1;
        self.workers[worker].take_slot(request.key, self.turn);
        self.restate(worker);
        request.state = State::Running(Run { worker, target, since: now, started: false });
        self.retime(&mut request);
        let worker = self.workers[worker].id;
        self.actions.push_back(Action::Dispatch { request: request.key, worker, target });
        self.requests.insert(request.key, request);
    }

    /// Gives the worker's free slots to those whose turn it is.
    fn fill(&mut self, worker: WorkerIx, now: Instant) {
        while self.waiting.requests > 0 && self.workers[worker].is_free() {
            if self.gives_way(worker, now) {
                continue;
            }
            let Some(key) = self.next_at(worker, now) else { return };
            let target = self.target_at(worker, key);
            let request = self.depart(key, target, now);
            self.dispatch(request, Choice { worker, target }, now);
        }
    }

    /// The request that the worker's next free slot takes.
    fn next_at(&self, worker: WorkerIx, now: Instant) -> Option<RequestKey> {
        let worker = &self.workers[worker];
        let rank = |tenant| self.accounts.rank(tenant, now);
        let takes_moved = |key| {
            let request = &self.requests[&key];
            (worker.streams || !request.needs_streams) && !request.tried.contains(&worker.id)
        };
        let next = |model| self.models[model].queue.next(worker.streams, rank, takes_moved);
        let candidate = if worker.serves.contains(&ANY) {
            self.models.waited_for().filter_map(next).min()
        } else {
            worker.serves.iter().copied().filter_map(next).min()
        };
        candidate.map(|candidate| candidate.request)
    }

    /// Picks by weight among the targets of a request that the worker serves; there is one.
    fn target_at(&mut self, worker: WorkerIx, request: RequestKey) -> usize {
        let request = &self.requests[&request];
        let serves = &self.workers[worker].serves;
        let serves_model = |name| {
            serves.contains(&ANY) || self.models.find(name).is_some_and(|model| serves.contains(&model))
        };
        let shares: Vec<(usize, u32)> = request
            .usable_targets()
            .filter(|(_, target, _)| serves_model(&target.model))
            .map(|(target, _, weight)| (target, weight))
            .collect();
        match shares[..] {
            [(only, _)] => only,
            _ => weighted(&shares, self.draws.next()),
        }
    }

    /// Takes a request if it runs; late events find it gone or waiting again.
    fn take_running(&mut self, key: RequestKey, now: Instant) -> Option<(Request, Run)> {
        let State::Running(run) = self.requests.get(&key)?.state else { return None };
        let request = self.remove(key)?;
        self.accounts.stops_running(request.tenant, now);
        self.workers[run.worker].running.remove(&key);
        self.restate(run.worker);
        Some((request, run))
    }

    fn remove(&mut self, key: RequestKey) -> Option<Request> {
        let mut request = self.requests.remove(&key)?;
        if let Some(at) = request.timer.take() {
            self.timers.remove(&(at, key));
        }
        // A burst must not keep its memory.
        if self.requests.capacity() > SMALL_TABLE && self.requests.len() * 8 < self.requests.capacity() {
            self.requests.shrink_to(self.requests.len() * 2);
        }
        Some(request)
    }

    fn reject(&mut self, request: RequestKey, reason: Reject) {
        self.actions.push_back(Action::Reject { request, reason });
    }

    fn cancel(&mut self, request: RequestKey, worker: WorkerIx, reason: CancelReason) {
        let worker = self.workers[worker].id;
        self.actions.push_back(Action::Cancel { request, worker, reason });
    }
}
