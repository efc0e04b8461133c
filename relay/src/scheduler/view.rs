//! What others may see of the scheduler.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Scheduler;
use super::event::{RequestKey, WorkerId};
use super::models::ANY;
use super::request::State;
use super::workers::WorkerIx;

/// Sums that cost nothing to read.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Counts {
    /// Requests that wait.
    pub waiting: usize,
    /// Bytes of body they hold.
    pub waiting_bytes: u64,
    /// Requests that were dispatched and have not ended.
    pub running: usize,
    /// Connected workers, draining ones included.
    pub workers: usize,
}

/// Everything there is, for people to read.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The models that workers list or requests wait for, by name.
    pub queues: Vec<QueueView>,
    /// The workers, by id.
    pub workers: Vec<WorkerView>,
    /// The requests that run, oldest first.
    pub running: Vec<RunningView>,
}

/// One model's queue. A request with several targets is in the queue of each.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct QueueView {
    /// The model.
    pub model: Arc<str>,
    /// How many requests wait.
    pub length: usize,
    /// Bytes of body they hold.
    pub bytes: u64,
    /// How long ago the oldest of them was submitted.
    pub oldest: Option<Duration>,
    /// Workers that serve the model and take new requests.
    pub workers: usize,
}

/// One worker.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerView {
    /// Its session.
    pub worker: WorkerId,
    /// All its slots.
    pub slots: u32,
    /// How many more requests this relay may send it: unspent credits, or slots that are free.
    pub free: u32,
    /// This relay's requests there.
    pub running: usize,
    /// All requests there, as far as known.
    pub load: u32,
    /// Whether it takes nothing new.
    pub draining: bool,
    /// Whether others come first because its backend refused lately.
    pub penalised: bool,
    /// What it serves, in its own words.
    pub models: Vec<Arc<str>>,
}

/// One request that runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RunningView {
    /// The request.
    pub request: RequestKey,
    /// Where it runs.
    pub worker: WorkerId,
    /// As what it was sent there.
    pub model: Arc<str>,
    /// When it was sent there.
    pub since: Instant,
    /// Whether its answer has begun.
    pub started: bool,
}

/// What a worker's slots are wanted for.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Shortage {
    /// Requests that wait and could go there. One with several targets may count more than once.
    pub lacking: u32,
    /// Band of the next one.
    pub band: i32,
    /// When the next one was submitted.
    pub submitted: Instant,
}

impl Scheduler {
    /// Returns sums that cost nothing to read.
    pub fn counts(&self) -> Counts {
        Counts {
            waiting: self.waiting.requests,
            waiting_bytes: self.waiting.bytes,
            running: self.requests.len() - self.waiting.requests,
            workers: self.workers.len(),
        }
    }

    /// Says whether no request waits or runs.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Returns the models that workers list and take requests for, in order; `*` is not listed.
    pub fn served_models(&self) -> impl Iterator<Item = &Arc<str>> {
        self.models.by_name().filter(|model| model.listed > 0).map(|model| &model.name)
    }

    /// Says whether a worker lists the model by name.
    pub fn serves(&self, model: &str) -> bool {
        self.models.find(model).is_some_and(|model| self.models[model].listed > 0)
    }

    /// Returns what this relay would use more of this worker's slots for; none when nothing waits for it.
    pub fn demand(&self, worker: WorkerId, now: Instant) -> Option<Shortage> {
        self.shortage(self.workers.find(worker)?, now)
    }

    pub(super) fn shortage(&self, index: WorkerIx, now: Instant) -> Option<Shortage> {
        let worker = &self.workers[index];
        let next = &self.requests[&self.next_at(index, now)?];
        let waiting = |model| self.models[model].queue.len_for(worker.streams);
        let lacking: usize = if worker.serves.contains(&ANY) {
            self.models.waited_for().map(waiting).sum()
        } else {
            worker.serves.iter().copied().map(waiting).sum()
        };
        let lacking = u32::try_from(lacking).unwrap_or(u32::MAX);
        Some(Shortage { lacking, band: next.band, submitted: next.submitted })
    }

    /// Returns a request's bytes of body, whether it runs, and the models that it waits for or the one that it runs as.
    pub fn places(&self, request: RequestKey) -> Option<(u64, bool, Vec<&str>)> {
        let request = self.requests.get(&request)?;
        Some(match &request.state {
            State::Running(run) => (request.bytes, true, vec![&*request.targets[run.target].model]),
            State::Waiting(wait) => {
                let models = wait.models.iter().map(|&model| &*self.models[model].name);
                (request.bytes, false, models.collect())
            }
        })
    }

    /// Copies everything there is.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let queues = self.models.by_name().map(|model| QueueView {
            model: model.name.clone(),
            length: model.queue.len(),
            bytes: model.queue.bytes(),
            oldest: model
                .queue
                .oldest()
                .map(|request| now.saturating_duration_since(self.requests[&request].submitted)),
            workers: self.models.serving(self.models.find(&model.name), false),
        });
        let mut workers: Vec<WorkerView> = self
            .workers
            .iter()
            .map(|worker| WorkerView {
                worker: worker.id,
                slots: worker.slots(),
                free: worker.free_slots(),
                running: worker.running.len(),
                load: worker.load(),
                draining: worker.draining,
                penalised: worker.penalised_until.is_some(),
                models: worker.models.clone(),
            })
            .collect();
        workers.sort_unstable_by_key(|view| view.worker);
        let mut running: Vec<RunningView> = self
            .requests
            .values()
            .filter_map(|request| {
                let State::Running(run) = &request.state else { return None };
                Some(RunningView {
                    request: request.key,
                    worker: self.workers[run.worker].id,
                    model: request.targets[run.target].model.clone(),
                    since: run.since,
                    started: run.started,
                })
            })
            .collect();
        running.sort_unstable_by_key(|view| view.request);
        Snapshot { queues: queues.collect(), workers, running }
    }
}
