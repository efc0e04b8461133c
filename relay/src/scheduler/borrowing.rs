//! Slots that workers lent to other relay replicas, and which of them are wanted here.
//!
//! What lies idle elsewhere is pleaded for ([`super::pleading`]). Where it lies with a relay that does not take pleas its
//! worker says so, and as many such workers are asked as slots are lacking, at once; more where that was in vain. When
//! there is none, and pleas bring nothing, all that serve the model are asked, at most [`MOST_ASKED`]. Those are the same ones in every replica,
//! drawn anew each second: there the replicas' claims meet and the oldest request wins, elsewhere slots stay where they
//! are used. The worker's side and the messages are in `modelrelay_protocol::slots`.
//!
//! Workers that have no other relay are not looked at, so with one replica nothing here costs anything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use modelrelay_protocol::slots::RENEWAL_INTERVAL;

use super::Scheduler;
use super::event::{Action, Replica, WorkerId};
use super::models::{ANY, ModelIx};
use super::placement::mix;
use super::view::Shortage;
use super::workers::WorkerIx;

/// Workers that are asked when none is known to have an idle slot.
const MOST_ASKED: usize = 64;

/// How long the workers that are asked then stay the same.
const ROUND: Duration = Duration::from_secs(1);

/// A relay that found nothing asks for twice as much the next time, up to this many times.
const MOST_DOUBLINGS: u32 = 6;

/// A want as the worker has it.
#[derive(Clone, Copy, Debug)]
struct Open {
    n: u32,
    band: i32,
    submitted: Instant,
    /// When so many were asked for.
    since: Instant,
}

impl Open {
    /// Whether it is likely to be filled soon. Idle slots that do not come are with a relay that does not answer.
    fn is_fresh(&self, now: Instant) -> bool {
        now < self.since + RENEWAL_INTERVAL
    }
}

/// A worker that lends its slots to other relays as well.
#[derive(Debug, Default)]
struct Lender {
    /// How many relays its slots are lent to.
    relays: u32,
    /// What those are called that take pleas; empty when it does not tell.
    replicas: BTreeSet<Arc<str>>,
    idle_elsewhere: bool,
    open: Option<Open>,
    asked_at: Option<Instant>,
    /// Whether it stands among the idle ones of the models it serves.
    listed: bool,
}

impl Lender {
    /// Whether a want may be sent that nothing but patience speaks against.
    fn may_be_asked(&self, now: Instant) -> bool {
        self.asked_at.is_none_or(|at| now >= at + RENEWAL_INTERVAL)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Borrowing {
    lenders: BTreeMap<WorkerIx, Lender>,
    /// Lenders with idle slots elsewhere that are not asked yet, by model, in the order in which this replica asks them.
    idle: BTreeMap<ModelIx, BTreeSet<(u64, WorkerIx)>>,
    /// When workers were last asked though none was known to be idle.
    claimed: BTreeMap<ModelIx, Instant>,
    /// Lenders with an open want.
    asked: BTreeSet<WorkerIx>,
    /// How often in a row an idle slot was gone when it was asked for.
    misses: u32,
    replica: Option<Replica>,
    /// Requests that waited when it was last decided whom to ask.
    planned: usize,
    /// Something happened that may change whom to ask.
    pub(super) dirty: bool,
    /// When wants are to be renewed.
    due: Option<Instant>,
}

/// Requests that wait for one model, beyond those that a want at a worker with idle slots stands for.
#[derive(Debug)]
struct Uncovered {
    model: ModelIx,
    requests: u32,
}

impl Borrowing {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Says whether a worker lends its slots to other relays as well.
    pub(super) fn is_lender(&self, worker: WorkerIx) -> bool {
        self.lenders.contains_key(&worker)
    }

    /// Says whether a worker lends its slots to a relay as well, as far as it tells.
    pub(super) fn is_lender_of(&self, worker: WorkerIx, relay: &str) -> bool {
        let reaches = |lender: &Lender| lender.replicas.is_empty() || lender.replicas.contains(relay);
        self.lenders.get(&worker).is_some_and(reaches)
    }

    /// Says how many relays a worker lends its slots to.
    pub(super) fn relays_at(&self, worker: WorkerIx) -> u32 {
        self.lenders.get(&worker).map_or(1, |lender| lender.relays)
    }

    /// All lenders in turn, beginning after this one.
    pub(super) fn lenders_after(&self, last: WorkerIx) -> impl Iterator<Item = WorkerIx> {
        self.lenders.range(last + 1..).chain(self.lenders.range(..=last)).map(|(&worker, _)| worker)
    }

    fn spot(&self, identity: u64) -> u64 {
        mix(identity ^ self.replica.map_or(0, |replica| replica.seed))
    }

    /// An idle slot was gone, or did not come.
    fn note_miss(&mut self) {
        self.misses = (self.misses + 1).min(MOST_DOUBLINGS);
    }

    /// Whether a worker was asked for an idle slot long ago.
    fn hears_nothing(&self, now: Instant) -> bool {
        self.asked
            .iter()
            .filter_map(|worker| self.lenders.get(worker))
            .any(|lender| lender.idle_elsewhere && lender.open.is_some_and(|open| !open.is_fresh(now)))
    }

    /// Changes with each renewal, and is different in each replica.
    fn turn(&self, now: Instant) -> u64 {
        self.replica.map_or(0, |replica| {
            let turns = now.saturating_duration_since(replica.at).as_nanos() / RENEWAL_INTERVAL.as_nanos();
            mix(replica.seed ^ u64::try_from(turns).unwrap_or(0))
        })
    }

    /// Puts a worker in its place among those that all replicas ask in this round.
    fn draw(&self, identity: u64, now: Instant) -> u64 {
        let round = self.replica.map_or(0, |replica| {
            let unix_time = replica.unix_time + now.saturating_duration_since(replica.at);
            unix_time.as_nanos() / ROUND.as_nanos()
        });
        mix(identity ^ mix(u64::try_from(round).unwrap_or(0)))
    }
}

impl Scheduler {
    /// Says which of several replicas this is. Without it replicas that ask for slots get into each other's way.
    pub fn set_replica(&mut self, replica: Replica) {
        self.borrowing.replica = Some(replica);
    }

    /// A worker told how many relays share its slots, and whether idle ones are lent to others.
    pub(super) fn slots_shared(
        &mut self,
        worker: WorkerId,
        relays: u32,
        replicas: BTreeSet<Arc<str>>,
        idle_elsewhere: bool,
    ) {
        let Some(index) = self.workers.find(worker) else { return };
        if relays <= 1 || self.workers[index].draining {
            return self.dismiss_lender(index);
        }
        let borrowing = &mut self.borrowing;
        let lender = borrowing.lenders.entry(index).or_default();
        let missed = lender.idle_elsewhere && !idle_elsewhere && lender.open.is_some();
        lender.idle_elsewhere = idle_elsewhere;
        lender.relays = relays;
        lender.replicas = replicas;
        if missed {
            borrowing.note_miss();
        }
        borrowing.dirty = true;
        self.list_lender(index);
    }

    /// A worker drains, or shares its slots with nobody any more.
    pub(super) fn dismiss_lender(&mut self, worker: WorkerIx) {
        if self.borrowing.asked.contains(&worker) {
            self.withdraw_want(worker);
        }
        self.forget_lender(worker);
    }

    /// A worker is lost.
    pub(super) fn forget_lender(&mut self, worker: WorkerIx) {
        self.unlist_lender(worker);
        if self.borrowing.lenders.remove(&worker).is_some() {
            self.borrowing.asked.remove(&worker);
            self.borrowing.dirty = true;
        }
    }

    /// Puts a lender among the idle ones of the models it serves, or takes it from them. A worker that is about to
    /// serve others must be taken from them first.
    pub(super) fn list_lender(&mut self, worker: WorkerIx) {
        let Some(lender) = self.borrowing.lenders.get_mut(&worker) else { return };
        let list = lender.idle_elsewhere && lender.open.is_none();
        if lender.listed == list {
            return;
        }
        lender.listed = list;
        let entry = (self.borrowing.spot(self.workers[worker].spot), worker);
        for &model in &self.workers[worker].serves {
            let idle = self.borrowing.idle.entry(model).or_default();
            if list {
                idle.insert(entry);
            } else {
                idle.remove(&entry);
                if idle.is_empty() {
                    self.borrowing.idle.remove(&model);
                }
            }
        }
    }

    /// Takes a lender from the idle ones.
    pub(super) fn unlist_lender(&mut self, worker: WorkerIx) {
        if let Some(lender) = self.borrowing.lenders.get_mut(&worker) {
            let idle_elsewhere = std::mem::take(&mut lender.idle_elsewhere);
            self.borrowing.dirty = true;
            self.list_lender(worker);
            if let Some(lender) = self.borrowing.lenders.get_mut(&worker) {
                lender.idle_elsewhere = idle_elsewhere;
            }
        }
    }

    /// Notes credits, which fill what is wanted of their worker. Says whether anything was.
    pub(super) fn granted_for_want(&mut self, worker: WorkerIx, credits: u32) -> bool {
        let Some(open) = self.borrowing.lenders.get(&worker).and_then(|lender| lender.open) else {
            return false;
        };
        self.borrowing.misses = 0;
        let left = open.n.saturating_sub(credits);
        self.set_open(worker, (left > 0).then_some(Open { n: left, ..open }));
        true
    }

    /// Tells a worker when credits that were wanted of it are not needed any more.
    pub(super) fn decline(&mut self, worker: WorkerIx) {
        if self.workers[worker].is_free() {
            self.withdraw_want(worker);
            self.borrowing.dirty = true;
        }
    }

    /// Sees to it that what waits is asked for, after every event.
    pub(super) fn borrow(&mut self, now: Instant) {
        if self.borrowing.lenders.is_empty() {
            self.borrowing.due = None;
            self.pleading.forget();
            return;
        }
        self.cede(now);
        self.plead(now);
        let waiting = self.waiting.requests;
        if waiting == 0 {
            while let Some(worker) = self.borrowing.asked.first().copied() {
                self.withdraw_want(worker);
            }
            self.borrowing.due = None;
        } else if waiting > self.borrowing.planned
            || self.borrowing.dirty
            || self.borrowing.due.is_none_or(|due| due <= now)
        {
            self.plan(now);
        }
        self.borrowing.planned = waiting;
    }

    fn plan(&mut self, now: Instant) {
        self.borrowing.dirty = false;
        let is_due = self.borrowing.due.is_none_or(|due| due <= now);
        if is_due && self.borrowing.hears_nothing(now) {
            self.borrowing.note_miss();
        }
        for uncovered in self.uncovered(now) {
            let mut left = self.ask_idle(&uncovered, now);
            if left > 0 {
                left = self.ask_for_more(uncovered.model, left, now);
            }
            if left > 0 && self.must_claim(uncovered.model, now) {
                self.ask_all(uncovered.model, now);
            }
        }
        if is_due {
            self.renew(now);
            self.borrowing.due = Some(now + RENEWAL_INTERVAL);
        }
    }

    /// Counts what waits for each model, less what idle slots are asked for already. No slot is counted twice.
    fn uncovered(&self, now: Instant) -> Vec<Uncovered> {
        let idle = |worker: &WorkerIx| {
            let lender = &self.borrowing.lenders[worker];
            let open = lender.open.filter(|open| lender.idle_elsewhere && open.is_fresh(now))?;
            Some((*worker, open.n))
        };
        let mut asked: Vec<(WorkerIx, u32)> = self.borrowing.asked.iter().filter_map(idle).collect();
        let mut all = Vec::new();
        for model in self.models.waited_for() {
            let mut requests = u32::try_from(self.models[model].queue.len()).unwrap_or(u32::MAX);
            for (_, n) in asked.iter_mut().filter(|(worker, _)| self.serves_model(*worker, model)) {
                let covered = requests.min(*n);
                requests -= covered;
                *n -= covered;
            }
            if requests > 0 {
                all.push(Uncovered { model, requests });
            }
        }
        all
    }

    pub(super) fn serves_model(&self, worker: WorkerIx, model: ModelIx) -> bool {
        self.workers[worker].serves.iter().any(|&serves| serves == ANY || serves == model)
    }

    /// Asks workers that have idle slots elsewhere; returns for how many requests there was none.
    fn ask_idle(&mut self, uncovered: &Uncovered, now: Instant) -> u32 {
        let &Uncovered { model, requests } = uncovered;
        // In a small fleet others are after the same few slots: one worker more is asked than is needed.
        let spare = usize::from(self.borrowing.lenders.len() <= MOST_ASKED);
        let most = usize::try_from(requests).unwrap_or(usize::MAX).saturating_add(spare);
        let most = most << self.borrowing.misses;
        let candidate = |&(_, worker): &(u64, WorkerIx)| Some((worker, self.shortage(worker, now)?));
        let idle = [model, ANY].into_iter().filter_map(|model| self.borrowing.idle.get(&model)).flatten();
        let chosen: Vec<(WorkerIx, Shortage)> = idle.filter_map(candidate).take(most).collect();
        let mut left = requests;
        let share = requests.div_ceil(u32::try_from(chosen.len()).unwrap_or(u32::MAX).max(1));
        for (worker, shortage) in chosen {
            let lacking = share.min(self.workers[worker].slots());
            left = left.saturating_sub(lacking);
            self.want(worker, Shortage { lacking, ..shortage }, now);
        }
        left
    }

    /// Asks for more where idle slots are asked for already; returns for how many requests there is nothing to ask.
    fn ask_for_more(&mut self, model: ModelIx, requests: u32, now: Instant) -> u32 {
        let mut left = requests;
        let more = |worker: &WorkerIx| {
            let lender = &self.borrowing.lenders[worker];
            let open = lender.open.filter(|open| lender.idle_elsewhere && open.is_fresh(now))?;
            let open = Some(open).filter(|_| self.serves_model(*worker, model))?;
            let most = self.workers[*worker].slots().saturating_sub(open.n).min(left);
            left -= most;
            (most > 0).then_some((*worker, open.n + most))
        };
        let raised: Vec<(WorkerIx, u32)> = self.borrowing.asked.iter().filter_map(more).collect();
        for (worker, lacking) in raised {
            if let Some(shortage) = self.shortage(worker, now) {
                self.want(worker, Shortage { lacking, ..shortage }, now);
            }
        }
        left
    }

    /// Asks workers that are busy, so far as they were not asked lately.
    fn ask_all(&mut self, model: ModelIx, now: Instant) {
        if self.borrowing.claimed.get(&model).is_some_and(|&at| now < at + RENEWAL_INTERVAL) {
            return;
        }
        self.borrowing.claimed.insert(model, now);
        for (worker, claim) in self.claims(model, now) {
            let lender = &self.borrowing.lenders[&worker];
            if lender.open.is_none() && lender.may_be_asked(now) && self.shortage(worker, now).is_some() {
                self.want(worker, claim, now);
            }
        }
    }

    /// What busy workers are asked for: each stands for another of the requests that wait, the first of them first.
    /// Were the oldest claimed everywhere, all slots that come free until the wants are renewed would come here,
    /// however few of the requests are older than those of another replica.
    fn claims(&self, model: ModelIx, now: Instant) -> Vec<(WorkerIx, Shortage)> {
        let mut workers = self.drawn(model, now);
        let turn = self.borrowing.turn(now);
        workers.sort_unstable_by_key(|&worker| mix(self.workers[worker].spot ^ turn));
        let queue = &self.models[model].queue;
        let requests = queue.first(workers.len());
        if requests.is_empty() {
            return Vec::new();
        }
        let most = workers.len();
        let lacking = u32::try_from(queue.len().div_ceil(most)).unwrap_or(u32::MAX);
        let claim = |(at, worker): (usize, WorkerIx)| {
            let (Reverse(band), request) = requests[at * requests.len() / most];
            (worker, Shortage { lacking, band, submitted: self.requests[&request].submitted })
        };
        workers.into_iter().enumerate().map(claim).collect()
    }

    /// The workers at which all replicas that lack slots for a model claim them.
    fn drawn(&self, model: ModelIx, now: Instant) -> Vec<WorkerIx> {
        let serves =
            self.borrowing.lenders.keys().copied().filter(|&worker| self.serves_model(worker, model));
        let mut all: Vec<WorkerIx> = serves.collect();
        if all.len() > MOST_ASKED {
            let key = |&worker: &WorkerIx| self.borrowing.draw(self.workers[worker].spot, now);
            all.select_nth_unstable_by_key(MOST_ASKED, key);
            all.truncate(MOST_ASKED);
        }
        all
    }

    /// Brings wants that are old enough up to date.
    fn renew(&mut self, now: Instant) {
        let mut claims: BTreeMap<WorkerIx, Shortage> = BTreeMap::new();
        for model in self.models.waited_for() {
            for (worker, claim) in self.claims(model, now) {
                let rank = |claim: &Shortage| (claim.band, Reverse(claim.submitted));
                let best = claims.entry(worker).or_insert(claim);
                if rank(&claim) > rank(best) {
                    *best = claim;
                }
            }
        }
        for worker in self.borrowing.asked.clone() {
            let lender = &self.borrowing.lenders[&worker];
            let Some(open) = lender.open.filter(|_| lender.may_be_asked(now)) else { continue };
            let shortage = self.shortage(worker, now).and_then(|shortage| {
                // An idle slot was asked for once, whatever else waits.
                let idle = Shortage { lacking: open.n.min(shortage.lacking), ..shortage };
                if lender.idle_elsewhere { Some(idle) } else { claims.get(&worker).copied() }
            });
            let Some(Shortage { lacking, band, submitted }) = shortage else {
                self.withdraw_want(worker);
                continue;
            };
            if (lacking, band, submitted) != (open.n, open.band, open.submitted) {
                self.want(worker, Shortage { lacking, band, submitted }, now);
            }
        }
    }

    fn want(&mut self, worker: WorkerIx, shortage: Shortage, now: Instant) {
        let Shortage { lacking: n, band, submitted } = shortage;
        let Some(lender) = self.borrowing.lenders.get_mut(&worker) else { return };
        lender.asked_at = Some(now);
        let since = lender.open.filter(|open| open.n >= n).map_or(now, |open| open.since);
        self.set_open(worker, Some(Open { n, band, submitted, since }));
        let age = now.saturating_duration_since(submitted);
        let (worker, received) = (self.workers[worker].id, self.workers[worker].received);
        self.actions.push_back(Action::Want { worker, n, band, age, received });
    }

    fn withdraw_want(&mut self, worker: WorkerIx) {
        self.set_open(worker, None);
        let (worker, received) = (self.workers[worker].id, self.workers[worker].received);
        self.actions.push_back(Action::Want { worker, n: 0, band: 0, age: Duration::ZERO, received });
    }

    fn set_open(&mut self, worker: WorkerIx, open: Option<Open>) {
        let Some(lender) = self.borrowing.lenders.get_mut(&worker) else { return };
        lender.open = open;
        if open.is_some() {
            self.borrowing.asked.insert(worker);
        } else {
            self.borrowing.asked.remove(&worker);
        }
        self.list_lender(worker);
    }
}
