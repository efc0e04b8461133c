//! Workers that come, go and change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Scheduler;
use super::event::{Reject, WorkerId, WorkerInfo};
use super::models::ModelIx;
use super::request::Request;
use super::workers::WorkerIx;

/// How long a worker whose backend refused comes after all others. It still serves when they are full, and
/// is pardoned at once by an answer that starts there or a probe that changes its models.
const PENALTY: Duration = Duration::from_secs(5);

impl Scheduler {
    pub(super) fn joined(&mut self, worker: WorkerId, info: WorkerInfo, now: Instant) {
        if let Some(index) = self.workers.insert(worker, info) {
            self.regroup(index, now);
            self.fill(index, now);
        }
    }

    pub(super) fn models_changed(&mut self, worker: WorkerId, models: Vec<Arc<str>>, now: Instant) {
        let Some(index) = self.workers.find(worker) else { return };
        self.workers[index].models = models;
        self.pardon(index);
        self.regroup(index, now);
        self.fill(index, now);
    }

    pub(super) fn load_reported(&mut self, worker: WorkerId, load: u32, now: Instant) {
        let Some(index) = self.workers.find(worker) else { return };
        self.workers[index].report_load(load);
        self.restate(index);
        self.fill(index, now);
    }

    pub(super) fn granted(&mut self, worker: WorkerId, credits: u32, now: Instant) {
        let Some(index) = self.workers.find(worker) else { return };
        self.workers[index].grant(credits);
        self.restate(index);
        let wanted = self.granted_for_want(index, credits);
        self.pleas_filled(index, credits);
        self.fill(index, now);
        if wanted {
            self.decline(index);
        }
    }

    /// Takes up to `n` unspent credits back from what a worker lent; returns how many.
    pub fn recall(&mut self, worker: WorkerId, n: u32) -> u32 {
        let Some(index) = self.workers.find(worker) else { return 0 };
        let taken = self.workers[index].recall(n);
        self.restate(index);
        taken
    }

    pub(super) fn draining(&mut self, worker: WorkerId, now: Instant) {
        let Some(index) = self.workers.find(worker) else { return };
        self.workers[index].draining = true;
        self.dismiss_lender(index);
        self.regroup(index, now);
    }

    pub(super) fn lost(&mut self, worker: WorkerId, now: Instant) {
        let Some(index) = self.workers.find(worker) else { return };
        self.pardon(index);
        self.workers[index].draining = true;
        self.regroup(index, now);
        let mut moving = Vec::new();
        for key in self.workers[index].running.clone() {
            let Some((request, run)) = self.take_running(key, now) else { continue };
            if run.started {
                self.reject(key, Reject::LostAfterStart);
            } else if request.moves >= self.config.max_requeues {
                self.reject(key, Reject::WorkerLost);
            } else {
                moving.push(request);
            }
        }
        self.forget_lender(index);
        self.workers.remove(index);
        // Free slots elsewhere may be fewer than they are, and go in the order of the queue.
        let order = |request: &Request| {
            (std::cmp::Reverse(request.band), self.accounts.rank(request.tenant, now), request.key)
        };
        moving.sort_by_key(order);
        for request in moving {
            self.requeue(request, now);
        }
    }

    /// Sends new requests elsewhere first for a while.
    pub(super) fn penalise(&mut self, index: WorkerIx, now: Instant) {
        self.pardon(index);
        let until = now + PENALTY;
        self.penalties.insert((until, index));
        self.workers[index].penalised_until = Some(until);
        self.restate(index);
    }

    pub(super) fn pardon(&mut self, index: WorkerIx) {
        if let Some(until) = self.workers[index].penalised_until.take() {
            self.penalties.remove(&(until, index));
            self.restate(index);
        }
    }

    /// Tells the pools how a worker stands now.
    pub(super) fn restate(&mut self, index: WorkerIx) {
        let worker = &mut self.workers[index];
        let from = worker.restate(index);
        let to = worker.standing();
        for &model in &worker.serves {
            self.models[model].pool.change(&from, &to);
        }
    }

    /// Moves a worker to the pools of the models it serves now; a draining one is in none.
    fn regroup(&mut self, index: WorkerIx, now: Instant) {
        let worker = &mut self.workers[index];
        let (serves, lists) =
            if worker.draining { (Vec::new(), Vec::new()) } else { self.models.resolve(&worker.models) };
        self.unlist_lender(index);
        let worker = &mut self.workers[index];
        let served = std::mem::replace(&mut worker.serves, serves.clone());
        let listed = std::mem::replace(&mut worker.lists, lists.clone());
        let from = worker.restate(index);
        let to = worker.standing();
        self.list_lender(index);
        let affected: BTreeSet<ModelIx> = served.iter().chain(&serves).copied().collect();
        let before: Vec<(ModelIx, [bool; 2])> =
            affected.into_iter().map(|model| (model, self.availability(model))).collect();
        for &model in &served {
            self.models[model].pool.leave(&from);
        }
        for &model in &serves {
            self.models[model].pool.enter(&to);
        }
        for &model in &lists {
            self.models[model].listed += 1;
        }
        for &model in &listed {
            self.models[model].listed -= 1;
        }
        for (model, was) in before {
            if self.availability(model) != was {
                self.reclock(model, now);
            }
        }
        for &model in &listed {
            self.models.prune(model);
        }
    }

    /// Whether anybody serves the model, and whether anybody does who takes any body.
    fn availability(&self, model: ModelIx) -> [bool; 2] {
        [false, true].map(|needs_streams| self.models[model].pool.serving(needs_streams) > 0)
    }
}
