//! Slots that lie idle at other relay replicas, asked of them by way of a worker.
//!
//! A relay knows which of its credits lie idle, and nobody else does for sure. One that lacks slots therefore does not
//! guess at workers: it pleads. A worker passes the plea on to the other relays, a few of them at a time where there are
//! many, and each cedes what it has to spare, now or as soon as a request ends there, wherever that is. One worker passes
//! on what a relay lacks until nothing waits there or a plea is renewed, then it is another one's turn. The worker's side
//! and the messages are in `modelrelay_protocol::slots`.

mod giving_way;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use modelrelay_protocol::slots::{MOST_HEARERS, MOST_PLEADED, RENEWAL_INTERVAL};

use super::Scheduler;
use super::event::{Action, Plea, WorkerId};
use super::models::{ANY, ModelIx};
use super::workers::WorkerIx;

/// How long those who heard a plea have before others hear what lacks still: two round trips of most fleets.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long it is remembered what a relay was given.
const GIVEN_FOR: Duration = Duration::from_secs(1);

/// What a relay may be given at any worker before others go first there: the one slot of a worker may well come free and be
/// given up twice in that time.
const LEAST_GIVEN: u32 = 3;

/// Pleas of others that are remembered. Each relay that waits has a few for each model.
const MOST_REMEMBERED: usize = 1024;

/// What was pleaded for and did not come yet.
#[derive(Clone, Debug)]
struct Open {
    model: Arc<str>,
    n: u32,
    /// When it is forgotten, and to be renewed if something waits still.
    until: Instant,
    /// Whether nobody had any of it to spare for a whole interval. What else is lacking need not be told until all of it
    /// has come: each slot that is to spare will come for this.
    renewed: bool,
    /// The worker that passes its pleas on, and takes them back.
    by: WorkerId,
    /// Relays that have heard it.
    hearers: usize,
    /// When others are to hear what lacks still; none when there are no others.
    further: Option<Instant>,
}

impl Open {
    fn due(&self) -> Instant {
        let further = self.further.filter(|_| self.n > 0);
        further.map_or(self.until, |further| further.min(self.until))
    }
}

/// What another relay lacks.
#[derive(Clone, Debug)]
struct Heard {
    /// The worker that passed it on: one that the other relay can use.
    by: WorkerId,
    relay: Arc<str>,
    model: Arc<str>,
    n: u32,
    band: i32,
    since: Instant,
    /// About when the request came there that the next slot is for: what waits came evenly since the first, so each slot
    /// that was given up for it moves this on by `each`.
    next: Instant,
    each: Duration,
    number: u64,
    until: Instant,
    /// What was to spare here and was given up for it, by worker. One that the other relay has lost gives the slot back to
    /// whoever gave it up: more than all slots of a worker are not given up so for one plea.
    ceded: BTreeMap<WorkerIx, u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pleading {
    open: BTreeMap<ModelIx, Open>,
    heard: Vec<Heard>,
    /// Slots that were given up for a relay, by worker, and when the first of them was. See [`Scheduler::cede`].
    given: BTreeMap<(Arc<str>, WorkerIx), (u32, Instant)>,
    /// The worker that passed the last plea on.
    last: WorkerIx,
    /// Counts the pleas.
    number: u64,
}

impl Pleading {
    pub(super) fn due(&self) -> Option<Instant> {
        self.open.values().map(Open::due).min()
    }

    /// No worker shares its slots any more.
    pub(super) fn forget(&mut self) {
        self.open.clear();
        self.heard.clear();
        self.given.clear();
    }
}

impl Scheduler {
    /// A worker passed a plea of another relay on.
    pub(super) fn pleaded(&mut self, worker: WorkerId, plea: Plea, now: Instant) {
        let Some(index) = self.workers.find(worker) else { return };
        let Plea { relay, model, n, band, age, number } = plea;
        // A worker has no say in what it does not serve.
        if !self.serves_named(index, &model) {
            return;
        }
        let heard = &mut self.pleading.heard;
        if n == 0 {
            // One that was said later may have come by a faster way.
            heard.retain(|heard| heard.relay != relay || heard.model != model || heard.number > number);
            return;
        }
        if heard.len() < MOST_REMEMBERED {
            let since = now.checked_sub(age).unwrap_or(now);
            heard.push(Heard {
                by: worker,
                relay,
                model,
                n: n.min(MOST_PLEADED),
                band,
                since,
                next: since,
                each: age / n,
                number,
                until: now + RENEWAL_INTERVAL,
                ceded: BTreeMap::new(),
            });
            // Of equal age the first to be heard goes first.
            heard.sort_by_key(|heard| (Reverse(heard.band), heard.since));
            self.borrowing.dirty = true;
        }
    }

    /// Cedes what is to spare here to those who lack it: highest band first, then the oldest request. Slots of a worker that
    /// the oldest has lost come back here, for as long as it pleads: once it was given all slots of a worker, and not just a
    /// few, the others of its band go first there.
    pub(super) fn cede(&mut self, now: Instant) {
        let mut heard = std::mem::take(&mut self.pleading.heard);
        heard.retain(|heard| heard.until > now);
        self.pleading.given.retain(|_, (_, since)| now < *since + GIVEN_FOR);
        for band in heard.chunk_by_mut(|one, next| one.band == next.band) {
            for are_all in [false, true] {
                band.iter_mut().for_each(|plea| self.cede_to(plea, are_all, now));
            }
        }
        heard.retain(|heard| heard.n > 0);
        self.pleading.heard = heard;
    }

    /// Cedes what one relay lacks: at workers of which it was not given too much just before, or at all of them.
    fn cede_to(&mut self, plea: &mut Heard, are_all: bool, now: Instant) {
        let mut ceded: BTreeMap<WorkerIx, u32> = BTreeMap::new();
        while plea.n > 0
            && let Some(worker) = self.spare(plea, are_all, now)
        {
            self.give_up(worker, plea, now);
            *plea.ceded.entry(worker).or_default() += 1;
            *ceded.entry(worker).or_default() += 1;
        }
        for (worker, n) in ceded {
            let (worker, relay) = (self.workers[worker].id, plea.relay.clone());
            self.actions.push_back(Action::Cede { worker, n, relay });
        }
    }

    /// Takes an unspent credit, for what one relay lacks.
    fn give_up(&mut self, worker: WorkerIx, plea: &mut Heard, now: Instant) {
        plea.n -= self.workers[worker].recall(1);
        plea.next += plea.each;
        self.restate(worker);
        self.pleading.given.entry((plea.relay.clone(), worker)).or_insert((0, now)).0 += 1;
    }

    /// A worker with an unspent credit for what lacks: the one that would be used last here, or the one by which the plea
    /// came when something has waited for long, since others may be out of reach of whoever pleads. What waits here for the
    /// model cannot use it, or it would have been spent.
    fn spare(&self, plea: &Heard, are_all: bool, now: Instant) -> Option<WorkerIx> {
        let by = self.workers.find(plea.by).filter(|_| now >= plea.since + RENEWAL_INTERVAL);
        let is_fit = |by: WorkerIx| {
            self.workers[by].is_free()
                && self.may_give(by, plea, are_all)
                && self.serves_named(by, &plea.model)
        };
        by.filter(|&by| is_fit(by)).or_else(|| {
            let pools = self.models.pools(self.models.find(&plea.model));
            pools.into_iter().find_map(|pool| pool.last_free(|worker| self.may_give(worker, plea, are_all)))
        })
    }

    /// Whether a credit of this worker may be given up for that relay, as far as it is known there and was not given too
    /// many before.
    fn may_give(&self, worker: WorkerIx, plea: &Heard, are_all: bool) -> bool {
        let ceded = plea.ceded.get(&worker).copied().unwrap_or(0);
        let given = self.pleading.given.get(&(plea.relay.clone(), worker)).map_or(0, |(given, _)| *given);
        let slots = self.workers[worker].slots();
        ceded < slots
            && (are_all || given < slots.max(LEAST_GIVEN))
            && self.workers[worker].pleas
            && self.borrowing.is_lender_of(worker, &plea.relay)
    }

    fn serves_named(&self, worker: WorkerIx, model: &str) -> bool {
        let model = self.models.find(model);
        self.workers[worker].serves.iter().any(|&serves| serves == ANY || Some(serves) == model)
    }

    /// Pleads for what lacks and was not pleaded for, and takes back what is not needed any more.
    pub(super) fn plead(&mut self, now: Instant) {
        let waited_for: Vec<ModelIx> = self.models.waited_for().collect();
        let over = self.pleading.open.extract_if(.., |model, _| !waited_for.contains(model));
        for (_, open) in over.collect::<Vec<_>>() {
            let model = self.models.find(&open.model).filter(|_| now < open.until);
            if let Some(model) = model.filter(|&model| self.passes_on(open.by, model)) {
                self.say_plea(open.by, model, 0, now);
            }
        }
        for model in waited_for {
            let waiting = u32::try_from(self.models[model].queue.len()).unwrap_or(u32::MAX).min(MOST_PLEADED);
            let before = self.pleading.open.remove(&model).filter(|open| self.passes_on(open.by, model));
            let open = match before {
                Some(open) if now < open.until => Some(self.plead_on(model, open, waiting, now)),
                before => self.plead_anew(model, waiting, before, now),
            };
            self.pleading.open.extend(open.map(|open| (model, open)));
        }
    }

    /// Pleads by the worker whose turn it is, if there is one. A plea that is renewed goes by each worker of its model in
    /// turn: were it the turn of the others after what another model's last plea went by, those with dead connections
    /// could have this model's every time.
    fn plead_anew(&mut self, model: ModelIx, n: u32, before: Option<Open>, now: Instant) -> Option<Open> {
        let last = before.as_ref().and_then(|open| self.workers.find(open.by)).unwrap_or(self.pleading.last);
        let messenger = self.messenger(model, last)?;
        let renewed = before.is_some_and(|open| open.n > 0);
        self.pleading.last = messenger;
        let (by, name) = (self.workers[messenger].id, self.models[model].name.clone());
        self.say_plea(by, model, n, now);
        let until = now + RENEWAL_INTERVAL;
        let open = Open { model: name, n, until, renewed, by, hearers: 0, further: None };
        Some(self.heard_by_more(open, now))
    }

    /// Pleads for what began to wait since, and with others for what those who heard of it did not bring. The same worker
    /// passes it on: it knows who has not heard it yet, and later whom to tell that nothing is lacking any more.
    fn plead_on(&mut self, model: ModelIx, open: Open, waiting: u32, now: Instant) -> Open {
        let more = if open.renewed && open.n > 0 { 0 } else { waiting.saturating_sub(open.n) };
        let n = open.n + more;
        let in_vain = open.n > 0 && open.further.is_some_and(|at| at <= now);
        if more == 0 && !in_vain {
            return open;
        }
        self.say_plea(open.by, model, if in_vain { n.min(waiting) } else { more }, now);
        self.heard_by_more(Open { n, ..open }, now)
    }

    /// Notes that a plea was passed on.
    fn heard_by_more(&self, open: Open, now: Instant) -> Open {
        let relays = self.workers.find(open.by).map_or(1, |worker| self.borrowing.relays_at(worker));
        let others = usize::try_from(relays.saturating_sub(1)).unwrap_or(usize::MAX);
        let hearers = open.hearers.saturating_add(MOST_HEARERS);
        Open { hearers, further: (hearers < others).then_some(now + PATIENCE), ..open }
    }

    fn say_plea(&mut self, worker: WorkerId, model: ModelIx, n: u32, now: Instant) {
        self.pleading.number += 1;
        let number = self.pleading.number;
        let first = self.models[model].queue.first(1).first().copied().filter(|_| n > 0);
        let (band, age) = first.map_or((0, Duration::ZERO), |(Reverse(band), request)| {
            (band, now.saturating_duration_since(self.requests[&request].submitted))
        });
        let model = self.models[model].name.clone();
        self.actions.push_back(Action::Plea { worker, model, n, band, age, number });
    }

    /// The worker whose turn it is to pass a plea on, after that of `last`.
    fn messenger(&self, model: ModelIx, last: WorkerIx) -> Option<WorkerIx> {
        let mut lenders = self.borrowing.lenders_after(last);
        lenders.find(|&worker| self.workers[worker].pleas && self.serves_model(worker, model))
    }

    fn passes_on(&self, worker: WorkerId, model: ModelIx) -> bool {
        let passes_on = |worker| {
            self.borrowing.is_lender(worker) && self.workers[worker].pleas && self.serves_model(worker, model)
        };
        self.workers.find(worker).is_some_and(passes_on)
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
            || self.messenger(model, self.pleading.last).is_none()
    }
}
