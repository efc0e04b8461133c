//! Requests that wait: the way into the queues and out of them, their limits and their clocks.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Scheduler;
use super::event::{CancelReason, Reject, RequestKey, SchedulerConfig, WorkerId};
use super::models::{ANY, ModelIx};
use super::request::{Clock, Request, State, Wait};
use super::workers::WorkerIx;

/// What waits, in sums.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) requests: usize,
    pub(super) bytes: u64,
    /// Bytes of those that nobody serves.
    unserved_bytes: u64,
}

impl Held {
    fn add(&mut self, bytes: u64, clock: Clock) {
        self.requests += 1;
        self.bytes += bytes;
        self.start(bytes, clock);
    }

    fn remove(&mut self, bytes: u64, clock: Clock) {
        self.requests -= 1;
        self.bytes -= bytes;
        self.stop(bytes, clock);
    }

    fn start(&mut self, bytes: u64, clock: Clock) {
        if clock == Clock::NoWorker {
            self.unserved_bytes += bytes;
        }
    }

    fn stop(&mut self, bytes: u64, clock: Clock) {
        if clock == Clock::NoWorker {
            self.unserved_bytes -= bytes;
        }
    }
}

impl Scheduler {
    /// Sees to it that a newcomer may wait, if need be at another's cost.
    pub(super) fn make_room(&mut self, request: &Request) -> Result<(), Reject> {
        if !self.is_served(request) {
            if self.is_served_by_plain(request) {
                return Err(Reject::Unsupported);
            }
            // A quarter, so that models nobody serves cannot keep out the bodies of those that are served.
            if self.waiting.unserved_bytes + request.bytes > self.config.max_bytes / 4 {
                return Err(Reject::NoWorkerQueueFull);
            }
        }
        // It stands in the queue of each target, and one with room is enough.
        let queues = request.usable_targets().map(|(_, target, _)| self.models.find(&target.model));
        let len = |model: &Option<ModelIx>| model.map_or(0, |model| self.models[model].queue.len());
        let Some(emptiest) = queues.min_by_key(len) else { return Err(Reject::NoWorker) };
        if len(&emptiest) < self.config.max_requests {
            return Ok(());
        }
        let queue = &self.models[emptiest.unwrap_or(ANY)].queue;
        let retry_after = queue.retry_after();
        let weight = |tenant| self.accounts.weight(tenant);
        let displaced = queue.displaced(request.band, request.tenant, weight);
        let displaced = displaced.ok_or(Reject::QueueFull { retry_after })?;
        self.take_waiting(displaced);
        self.reject(displaced, Reject::QueueFull { retry_after });
        Ok(())
    }

    /// Lets a request wait for a slot at any of its targets, with fresh clocks.
    pub(super) fn enqueue(&mut self, mut request: Request, now: Instant) {
        let clock = if self.is_served(&request) { Clock::Queue } else { Clock::NoWorker };
        let mut models: Vec<ModelIx> =
            request.usable_targets().map(|(_, target, _)| self.models.ensure(&target.model)).collect();
        models.sort_unstable();
        models.dedup();
        let floors = models.iter().map(|&model| self.models[model].queue.floor(request.band));
        self.accounts.starts_waiting(request.tenant, floors.min().unwrap_or(0), now);
        let place = request.place();
        for &model in &models {
            self.models[model].queue.insert(&place);
            self.models.note_queue(model);
        }
        self.waiting.add(request.bytes, clock);
        request.state = State::Waiting(Wait::new(models, clock, now));
        self.retime(&mut request);
        self.requests.insert(request.key, request);
    }

    /// Takes a request out of its queues for a slot at one of its targets.
    pub(super) fn depart(&mut self, key: RequestKey, target: usize, now: Instant) -> Request {
        let model = &self.requests[&key].targets[target].model;
        let model = self.models.find(model).expect("a model that is waited for is kept");
        self.models[model].queue.note_departure(now);
        let (request, _) = self.take_waiting(key).expect("the queue named it");
        request
    }

    /// Takes a request out of its queues if it waits.
    pub(super) fn take_waiting(&mut self, key: RequestKey) -> Option<(Request, Clock)> {
        let State::Waiting(_) = self.requests.get(&key)?.state else { return None };
        let request = self.remove(key)?;
        let State::Waiting(wait) = &request.state else { return None };
        let place = request.place();
        for &model in &wait.models {
            self.models[model].queue.remove(&place);
            self.models.note_queue(model);
            self.models.prune(model);
        }
        self.accounts.stops_waiting(request.tenant);
        let clock = wait.clock;
        self.waiting.remove(request.bytes, clock);
        Some((request, clock))
    }

    /// Ends all requests that wait.
    pub fn reject_queued(&mut self, reason: Reject) {
        for request in self.queued() {
            self.take_waiting(request);
            self.reject(request, reason);
        }
    }

    /// Ends a request of which a limit passed; returns the worker it ran on.
    pub(super) fn expire(&mut self, key: RequestKey, now: Instant) -> Option<WorkerIx> {
        if let Some((_, run)) = self.take_running(key, now) {
            self.cancel(key, run.worker, CancelReason::DeadlineExceeded);
            self.reject(key, Reject::DeadlineExceeded);
            return Some(run.worker);
        }
        let (request, clock) = self.take_waiting(key)?;
        let overall = request.deadline.is_some_and(|deadline| deadline <= now);
        let reason = match clock {
            _ if overall => Reject::DeadlineExceeded,
            Clock::Queue => Reject::QueueTimeout,
            Clock::NoWorker if self.is_served_by_plain(&request) => Reject::Unsupported,
            Clock::NoWorker => Reject::NoWorker,
        };
        self.reject(key, reason);
        None
    }

    /// Lets the right clock run for all that wait for a model of which workers came or went.
    pub(super) fn reclock(&mut self, model: ModelIx, now: Instant) {
        let requests: Vec<RequestKey> =
            if model == ANY { self.queued() } else { self.models[model].queue.requests().collect() };
        for key in requests {
            let clock = if self.is_served(&self.requests[&key]) { Clock::Queue } else { Clock::NoWorker };
            let Some(request) = self.requests.get_mut(&key) else { continue };
            let State::Waiting(wait) = &mut request.state else { continue };
            if wait.clock != clock {
                self.waiting.stop(request.bytes, wait.clock);
                self.waiting.start(request.bytes, clock);
                wait.switch(clock, now);
                retime(&self.config, &mut self.timers, request);
            }
        }
    }

    pub(super) fn retime(&mut self, request: &mut Request) {
        retime(&self.config, &mut self.timers, request);
    }

    pub(super) fn retime_queued(&mut self) {
        for key in self.queued() {
            if let Some(request) = self.requests.get_mut(&key) {
                retime(&self.config, &mut self.timers, request);
            }
        }
    }

    /// All requests that wait, oldest first, each once.
    fn queued(&self) -> Vec<RequestKey> {
        let queues = self.models.waited_for().map(|model| &self.models[model].queue);
        let mut requests: Vec<RequestKey> = queues.flat_map(|queue| queue.requests()).collect();
        requests.sort_unstable();
        requests.dedup();
        requests
    }

    fn is_served(&self, request: &Request) -> bool {
        self.is_served_beyond(request, [])
    }

    /// Says whether workers serve it that could not take its body.
    fn is_served_by_plain(&self, request: &Request) -> bool {
        let served = |name: &str| self.models.serving(self.models.find(name), false) > 0;
        request.needs_streams && request.usable_targets().any(|(_, target, _)| served(&target.model))
    }

    pub(super) fn has_untried_worker(&self, request: &Request) -> bool {
        self.is_served_beyond(request, request.tried.iter().copied())
    }

    /// Says whether a worker other than `tried` serves a target of the request and can take it.
    pub(super) fn is_served_beyond(
        &self,
        request: &Request,
        tried: impl IntoIterator<Item = WorkerId, IntoIter: Clone>,
    ) -> bool {
        let tried = tried.into_iter();
        request.usable_targets().any(|(_, target, _)| {
            let model = self.models.find(&target.model);
            let counts = |worker: &WorkerId| {
                let Some(index) = self.workers.find(*worker) else { return false };
                let worker = &self.workers[index];
                let serves = worker.serves.iter().any(|&serves| serves == ANY || Some(serves) == model);
                serves && (worker.streams || !request.needs_streams)
            };
            let tried = tried.clone().filter(|worker| counts(worker)).count();
            self.models.serving(model, request.needs_streams) > tried
        })
    }
}

fn retime(config: &SchedulerConfig, timers: &mut BTreeSet<(Instant, RequestKey)>, request: &mut Request) {
    let due = request.due(config);
    if due == request.timer {
        return;
    }
    if let Some(at) = request.timer {
        timers.remove(&(at, request.key));
    }
    timers.extend(due.map(|at| (at, request.key)));
    request.timer = due;
}
