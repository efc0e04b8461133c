//! Slots that lie idle at other relay replicas, asked of them by way of a worker.
//!
//! A relay knows which of its credits lie idle, and nobody else does for sure. One that lacks slots therefore does not
//! guess at workers: it pleads. A worker, another one each time, passes the plea on to the other relays, and each of
//! them cedes what it has to spare, now or as soon as a request ends there, wherever that is. The worker's side and the
//! messages are in `modelrelay_protocol::slots`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use modelrelay_protocol::slots::{MOST_PLEADED, RENEWAL_INTERVAL};

use super::Scheduler;
use super::event::{Action, Plea, WorkerId};
use super::models::{ANY, ModelIx};
use super::workers::WorkerIx;

/// Pleas of others that are remembered. Each relay that waits has a few for each model.
const MOST_REMEMBERED: usize = 1024;

/// What was pleaded for and did not come yet.
#[derive(Clone, Debug)]
struct Open {
    model: Arc<str>,
    n: u32,
    /// When it is forgotten, and to be renewed if something waits still.
    until: Instant,
    /// Whether nobody had any of it to spare for a whole interval. What else is lacking need not be told then: each slot
    /// that is to spare will come for this.
    renewed: bool,
}

/// What another relay lacks.
#[derive(Clone, Debug)]
struct Heard {
    relay: Arc<str>,
    model: Arc<str>,
    n: u32,
    band: i32,
    since: Instant,
    number: u64,
    until: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pleading {
    open: BTreeMap<ModelIx, Open>,
    heard: Vec<Heard>,
    /// The worker that passed the last plea on.
    last: WorkerIx,
    /// Counts the pleas.
    number: u64,
}

impl Pleading {
    pub(super) fn due(&self) -> Option<Instant> {
        self.open.values().map(|open| open.until).min()
    }

    /// No worker shares its slots any more.
    pub(super) fn forget(&mut self) {
        self.open.clear();
        self.heard.clear();
    }
}

impl Scheduler {
    /// A worker passed a plea of another relay on.
    pub(super) fn pleaded(&mut self, worker: WorkerId, plea: Plea, now: Instant) {
        let Some(index) = self.workers.find(worker) else { return };
        let Plea { relay, model, n, band, age, number } = plea;
        // A worker has no say in what it does not serve.
        let serves_any = self.workers[index].serves.contains(&ANY);
        if !serves_any && self.models.find(&model).is_none_or(|model| !self.serves_model(index, model)) {
            return;
        }
        let heard = &mut self.pleading.heard;
        if n == 0 {
            // One that was said later may have come by a faster way.
            heard.retain(|heard| heard.relay != relay || heard.model != model || heard.number > number);
            return;
        }
        if heard.len() < MOST_REMEMBERED {
            let (n, since) = (n.min(MOST_PLEADED), now.checked_sub(age).unwrap_or(now));
            heard.push(Heard { relay, model, n, band, since, number, until: now + RENEWAL_INTERVAL });
            // Of equal age the first to be heard goes first.
            heard.sort_by_key(|heard| (Reverse(heard.band), heard.since));
            self.borrowing.dirty = true;
        }
    }

    /// Cedes what is to spare here to those who lack it: highest band first, then the oldest request.
    pub(super) fn cede(&mut self, now: Instant) {
        let mut heard = std::mem::take(&mut self.pleading.heard);
        heard.retain(|heard| heard.until > now);
        for plea in &mut heard {
            let mut ceded: BTreeMap<WorkerIx, u32> = BTreeMap::new();
            while plea.n > 0
                && let Some(worker) = self.spare(&plea.model)
            {
                plea.n -= self.workers[worker].recall(1);
                self.restate(worker);
                *ceded.entry(worker).or_default() += 1;
            }
            for (worker, n) in ceded {
                let (worker, relay) = (self.workers[worker].id, plea.relay.clone());
                self.actions.push_back(Action::Cede { worker, n, relay });
            }
        }
        heard.retain(|heard| heard.n > 0);
        self.pleading.heard = heard;
    }

    /// A worker with an unspent credit for a model, the one that would be used last here. What waits for the model
    /// cannot use it, or it would have been spent.
    fn spare(&self, model: &str) -> Option<WorkerIx> {
        let shares = |worker: WorkerIx| self.workers[worker].pleas && self.borrowing.is_lender(worker);
        let pools = self.models.pools(self.models.find(model));
        pools.into_iter().find_map(|pool| pool.last_free(shares))
    }

    /// Pleads for what lacks and was not pleaded for, and takes back what is not needed any more.
    pub(super) fn plead(&mut self, now: Instant) {
        let waited_for: Vec<ModelIx> = self.models.waited_for().collect();
        let over = self.pleading.open.extract_if(.., |model, _| !waited_for.contains(model));
        for (_, open) in over.collect::<Vec<_>>() {
            if let Some(model) = self.models.find(&open.model).filter(|_| now < open.until) {
                self.say_plea(model, 0, now);
            }
        }
        for model in waited_for {
            let waiting = u32::try_from(self.models[model].queue.len()).unwrap_or(u32::MAX).min(MOST_PLEADED);
            let open = self.pleading.open.get(&model).filter(|open| open.n > 0);
            let (n, until, renewed) = match open {
                Some(open) if open.until <= now => (waiting, now + RENEWAL_INTERVAL, true),
                Some(open) if open.renewed => continue,
                Some(open) => (waiting.saturating_sub(open.n), open.until, false),
                None => (waiting, now + RENEWAL_INTERVAL, false),
            };
            if n > 0 {
                let name = self.models[model].name.clone();
                self.pleading.open.insert(model, Open { model: name, n: waiting, until, renewed });
                if !self.say_plea(model, n, now) {
                    self.pleading.open.remove(&model);
                }
            }
        }
    }

    /// Sends a plea by the worker whose turn it is; says whether there is one.
    fn say_plea(&mut self, model: ModelIx, n: u32, now: Instant) -> bool {
        let Some(worker) = self.messenger(model) else { return false };
        self.pleading.last = worker;
        self.pleading.number += 1;
        let number = self.pleading.number;
        let first = self.models[model].queue.first(1).first().copied().filter(|_| n > 0);
        let (band, age) = first.map_or((0, Duration::ZERO), |(Reverse(band), request)| {
            (band, now.saturating_duration_since(self.requests[&request].submitted))
        });
        let (worker, model) = (self.workers[worker].id, self.models[model].name.clone());
        self.actions.push_back(Action::Plea { worker, model, n, band, age, number });
        true
    }

    fn messenger(&self, model: ModelIx) -> Option<WorkerIx> {
        let passes_on = |worker: &WorkerIx| self.workers[*worker].pleas && self.serves_model(*worker, model);
        self.borrowing.lenders_after(self.pleading.last).find(passes_on)
    }

    /// Credits came, which may fill what was pleaded for. A credit that was ceded for one model may serve another.
    pub(super) fn pleas_filled(&mut self, worker: WorkerIx, credits: u32) {
        let serves = &self.workers[worker].serves;
        for (model, open) in &mut self.pleading.open {
            if serves.contains(&ANY) || serves.contains(model) {
                open.n = open.n.saturating_sub(credits);
            }
        }
    }

    /// Whether slots are to be claimed at busy workers as well: pleas brought nothing for long, or the claims of others
    /// are of another band, or nobody would hear a plea.
    pub(super) fn must_claim(&self, model: ModelIx, now: Instant) -> bool {
        let (queue, name) = (&self.models[model].queue, &self.models[model].name);
        let submitted = queue.oldest().map(|request| self.requests[&request].submitted);
        let band = queue.first(1).first().map(|(Reverse(band), _)| *band);
        let is_other = |heard: &Heard| heard.model == *name && Some(heard.band) != band;
        submitted.is_some_and(|since| now >= since + RENEWAL_INTERVAL)
            || self.pleading.heard.iter().any(is_other)
            || self.messenger(model).is_none()
    }
}
