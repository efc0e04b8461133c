//! Which worker, of those that serve a model and have a free slot.
//!
//! Each model keeps its free workers ordered by relative load, so that the least loaded one is the first.
//! Affinity looks at every free worker instead (rendezvous hashing: the highest hash of request and worker
//! wins), which costs a few nanoseconds for each and keeps all replicas of one mind without a ring to maintain.

use std::collections::BTreeSet;

use super::event::{Affinity, Strategy};
use super::workers::WorkerIx;

/// Fraction bits of a relative load.
const LOAD_BITS: u32 = 32;

/// Requests per slot, as a fixed-point number: equal loads are equal at any number of slots.
pub(super) fn relative_load(load: u32, slots: u32) -> u64 {
    (u64::from(load) << LOAD_BITS) / u64::from(slots)
}

/// Place of a worker among the free ones of a model: healthy before penalised, then by load, then the one
/// that has been idle longest, which rotates ties.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(super) struct FreeKey {
    pub(super) penalised: bool,
    /// See [`relative_load`].
    pub(super) load: u64,
    pub(super) last_used: u64,
    pub(super) worker: WorkerIx,
    /// The worker's identity, hashed; here so that affinity need not look at each worker.
    pub(super) spot: u64,
}

/// What a worker contributes to the pools of the models it serves.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Standing {
    /// None while it has no free slot.
    pub(super) free: Option<FreeKey>,
    pub(super) load: u32,
    pub(super) slots: u32,
    pub(super) streams: bool,
}

/// The workers that serve one model. Arrays are indexed by whether a worker takes any body.
#[derive(Debug)]
pub(super) struct Pool {
    free: [BTreeSet<FreeKey>; 2],
    serving: [usize; 2],
    load: u64,
    slots: u64,
}

impl Pool {
    pub(super) const fn empty() -> Self {
        Self { free: [BTreeSet::new(), BTreeSet::new()], serving: [0; 2], load: 0, slots: 0 }
    }

    pub(super) fn enter(&mut self, standing: &Standing) {
        let kind = usize::from(standing.streams);
        self.serving[kind] += 1;
        self.load += u64::from(standing.load);
        self.slots += u64::from(standing.slots);
        self.free[kind].extend(standing.free);
    }

    pub(super) fn leave(&mut self, standing: &Standing) {
        let kind = usize::from(standing.streams);
        self.serving[kind] -= 1;
        self.load -= u64::from(standing.load);
        self.slots -= u64::from(standing.slots);
        if let Some(free) = standing.free {
            self.free[kind].remove(&free);
        }
    }

    /// Replaces what a worker that stays contributes; slots and kind are the same in both.
    pub(super) fn change(&mut self, from: &Standing, to: &Standing) {
        let kind = usize::from(from.streams);
        self.load = self.load - u64::from(from.load) + u64::from(to.load);
        if from.free == to.free {
            return;
        }
        if let Some(free) = from.free {
            self.free[kind].remove(&free);
        }
        self.free[kind].extend(to.free);
    }

    /// How many workers serve the model that can take such a request.
    pub(super) fn serving(&self, needs_streams: bool) -> usize {
        self.serving[usize::from(needs_streams)..].iter().sum()
    }

    /// The free worker that would be chosen last of those that `may`.
    pub(super) fn last_free(&self, may: impl Fn(WorkerIx) -> bool) -> Option<WorkerIx> {
        let sets = self.free.iter();
        let last = sets.filter_map(|set| set.iter().rev().find(|free| may(free.worker))).max();
        last.map(|free| free.worker)
    }

    fn free(&self, needs_streams: bool) -> &[BTreeSet<FreeKey>] {
        &self.free[usize::from(needs_streams)..]
    }
}

/// Which workers a request prefers over the least loaded one.
#[derive(Copy, Clone, Debug)]
pub(super) enum Preference {
    None,
    Sticky { hash: u64 },
    Bounded { hash: u64, max_load_percent: u32 },
}

impl Preference {
    pub(super) fn of(affinity: Option<Affinity>, strategy: Strategy) -> Self {
        match (affinity, strategy) {
            (Some(Affinity::Session(hash)), _) => Self::Sticky { hash },
            (Some(Affinity::Prefix(hash)), Strategy::PrefixHash { max_load_percent }) => {
                Self::Bounded { hash, max_load_percent }
            }
            (Some(Affinity::Prefix(_)), Strategy::LeastLoad) | (None, _) => Self::None,
        }
    }

    pub(super) fn hash(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Sticky { hash } | Self::Bounded { hash, .. } => Some(hash),
        }
    }
}

/// What a request demands of a worker.
#[derive(Copy, Clone, Debug)]
pub(super) struct Demand<F> {
    pub(super) needs_streams: bool,
    pub(super) preference: Preference,
    /// Says whether the request has been to a worker already.
    pub(super) tried: F,
}

impl<F: Fn(WorkerIx) -> bool> Demand<F> {
    /// Chooses among the free workers of `pools`.
    pub(super) fn choose(&self, pools: [&Pool; 2]) -> Option<WorkerIx> {
        let preferred = match self.preference {
            Preference::None => None,
            Preference::Sticky { hash } => self.highest_score(pools, hash, u64::MAX),
            Preference::Bounded { hash, max_load_percent } => {
                self.highest_score(pools, hash, load_bound(pools, max_load_percent))
            }
        };
        preferred.or_else(|| self.least_loaded(pools))
    }

    fn least_loaded(&self, pools: [&Pool; 2]) -> Option<WorkerIx> {
        let sets = pools.into_iter().flat_map(|pool| pool.free(self.needs_streams));
        let first = sets.filter_map(|set| set.iter().find(|free| !(self.tried)(free.worker))).min()?;
        Some(first.worker)
    }

    fn highest_score(&self, pools: [&Pool; 2], hash: u64, bound: u64) -> Option<WorkerIx> {
        let mut best = None;
        for set in pools.into_iter().flat_map(|pool| pool.free(self.needs_streams)) {
            for free in set {
                if free.penalised || free.load >= bound {
                    break;
                }
                let score = Some((mix(hash ^ free.spot), free.worker));
                if score > best && !(self.tried)(free.worker) {
                    best = score;
                }
            }
        }
        best.map(|(_, worker)| worker)
    }
}

/// The bound of "consistent hashing with bounded loads", shared out by slots: a worker whose relative load is
/// below it may take one more request.
fn load_bound(pools: [&Pool; 2], max_load_percent: u32) -> u64 {
    let sum = |part: fn(&Pool) -> u64| pools.into_iter().map(part).map(u128::from).sum::<u128>();
    // The request that is being placed counts; below the mean no assignment could keep within the bound.
    let load = (sum(|pool| pool.load) + 1) * u128::from(max_load_percent.max(100));
    let slots = sum(|pool| pool.slots) * 100;
    let bound = (load << LOAD_BITS).checked_div(slots).unwrap_or(0);
    u64::try_from(bound).unwrap_or(u64::MAX)
}

/// The finaliser of splitmix64: every bit of the input reaches every bit of the result.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Draws for weighted splits: the same draws in every run, spread like random ones.
#[derive(Debug)]
pub(super) struct Draws(u64);

impl Draws {
    pub(super) fn new() -> Self {
        Self(0x5eed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Picks one of `shares` (target and weight, not all weights 0) in proportion to its weight.
pub(super) fn weighted(shares: &[(usize, u32)], draw: u64) -> usize {
    let total: u64 = shares.iter().map(|&(_, weight)| u64::from(weight)).sum();
    let mut point = draw % total;
    for &(target, weight) in shares {
        match point.checked_sub(u64::from(weight)) {
            Some(rest) => point = rest,
            None => return target,
        }
    }
    unreachable!("the point is below the sum of the weights")
}
