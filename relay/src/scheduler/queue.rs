//! The requests that wait for one model, in the order in which they go.
//!
//! A queue has bands, a band has a lane for each tenant that waits in it, and a lane is in order of arrival.
//! A request that may go to any of several models stands in the queue of each and counts in each.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::event::RequestKey;
use super::fairness::{Share, TenantIx};

/// The least and the most that a refused client is told to wait.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How a lane sorts requests, so that a worker need not look at those it cannot take.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// Any worker will do.
    Plain,
    /// Only workers that take any body.
    Streams,
    /// Has been refused before, and does not go to the same worker again.
    Moved,
}

/// Where a request stands.
#[derive(Copy, Clone, Debug)]
pub(super) struct Place {
    pub(super) request: RequestKey,
    pub(super) band: i32,
    pub(super) tenant: TenantIx,
    pub(super) kind: Kind,
    pub(super) bytes: u64,
}

/// A request that could go next; the least of several goes.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(super) struct Candidate {
    pub(super) band: Reverse<i32>,
    pub(super) rank: Share,
    pub(super) request: RequestKey,
}

/// Requests of one tenant in one band, by [`Kind`].
#[derive(Debug, Default)]
struct Lane([BTreeSet<RequestKey>; 3]);

impl Lane {
    fn len(&self) -> usize {
        self.0.iter().map(BTreeSet::len).sum()
    }

    fn newest(&self) -> Option<RequestKey> {
        self.0.iter().filter_map(|kind| kind.last().copied()).max()
    }

    fn first(&self, streams: bool, takes_moved: impl Fn(RequestKey) -> bool) -> Option<RequestKey> {
        let plain = self.0[Kind::Plain as usize].first();
        let streaming = self.0[Kind::Streams as usize].first().filter(|_| streams);
        let moved = self.0[Kind::Moved as usize].iter().find(|&&request| takes_moved(request));
        [plain, streaming, moved].into_iter().flatten().min().copied()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bands: BTreeMap<Reverse<i32>, BTreeMap<TenantIx, Lane>>,
    len: [usize; 3],
    bytes: u64,
    /// By band, the highest account served so far; see [`super::fairness`]. There are as many bands as the
    /// settings name.
    floors: BTreeMap<i32, Share>,
    pace: Pace,
}

impl Queue {
    pub(super) fn insert(&mut self, place: &Place) {
        let lanes = self.bands.entry(Reverse(place.band)).or_default();
        lanes.entry(place.tenant).or_default().0[place.kind as usize].insert(place.request);
        self.len[place.kind as usize] += 1;
        self.bytes += place.bytes;
    }

    pub(super) fn remove(&mut self, place: &Place) {
        let lanes = self.bands.get_mut(&Reverse(place.band)).expect("a place names a band that is there");
        let lane = lanes.get_mut(&place.tenant).expect("a place names a lane that is there");
        lane.0[place.kind as usize].remove(&place.request);
        if lane.len() == 0 {
            lanes.remove(&place.tenant);
        }
        if lanes.is_empty() {
            self.bands.remove(&Reverse(place.band));
        }
        self.len[place.kind as usize] -= 1;
        self.bytes -= place.bytes;
        if self.is_empty() {
            self.pace.last = None;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bands.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.len.iter().sum()
    }

    /// How many wait that such a worker could take, but for those that it had already.
    pub(super) fn len_for(&self, streams: bool) -> usize {
        if streams { self.len() } else { self.len() - self.len[Kind::Streams as usize] }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All requests here, in no order that means anything.
    pub(super) fn requests(&self) -> impl Iterator<Item = RequestKey> {
        self.bands.values().flat_map(BTreeMap::values).flat_map(|lane| &lane.0).flatten().copied()
    }

    pub(super) fn oldest(&self) -> Option<RequestKey> {
        let lanes = self.bands.values().flat_map(BTreeMap::values);
        lanes.filter_map(|lane| lane.first(true, |_| true)).min()
    }

    /// The requests that come first by band and age, in that order, up to `most`.
    pub(super) fn first(&self, most: usize) -> Vec<(Reverse<i32>, RequestKey)> {
        let mut first = Vec::new();
        for (&band, lanes) in &self.bands {
            let left = most - first.len();
            let mut oldest: Vec<RequestKey> = lanes
                .values()
                .flat_map(|lane| &lane.0)
                .flat_map(|kind| kind.iter().take(left))
                .copied()
                .collect();
            oldest.sort_unstable();
            first.extend(oldest.into_iter().take(left).map(|request| (band, request)));
            if first.len() == most {
                break;
            }
        }
        first
    }

    /// The request that a free worker takes next. Costs a step for each tenant in the highest band.
    pub(super) fn next(
        &self,
        streams: bool,
        rank: impl Fn(TenantIx) -> Share,
        takes_moved: impl Fn(RequestKey) -> bool,
    ) -> Option<Candidate> {
        self.bands.iter().find_map(|(&band, lanes)| {
            let first = |(&tenant, lane): (&TenantIx, &Lane)| {
                let request = lane.first(streams, &takes_moved)?;
                Some(Candidate { band, rank: rank(tenant), request })
            };
            lanes.iter().filter_map(first).min()
        })
    }

    /// The request that loses its place to a newcomer of `tenant` in `band`: the newest of the lowest band
    /// when that is lower, else the newest of the tenant that has most waiting in this band per weight. The
    /// newcomer counts among its own, so two tenants with equal shares do not displace each other in turn.
    pub(super) fn displaced(
        &self,
        band: i32,
        tenant: TenantIx,
        weight: impl Fn(TenantIx) -> u32,
    ) -> Option<RequestKey> {
        let (&Reverse(lowest), lanes) = self.bands.last_key_value()?;
        if lowest < band {
            return lanes.values().filter_map(Lane::newest).max();
        }
        if lowest > band {
            return None;
        }
        let own = lanes.get(&tenant).map_or(0, Lane::len) + 1;
        let own = PerWeight { waiting: own, weight: weight(tenant) };
        lanes
            .iter()
            .filter(|&(&other, _)| other != tenant)
            .map(|(&other, lane)| (PerWeight { waiting: lane.len(), weight: weight(other) }, lane.newest()))
            .filter(|(other, _)| *other > own)
            .max()
            .and_then(|(_, newest)| newest)
    }

    /// The account that a tenant which begins to wait in `band` must not be below.
    pub(super) fn floor(&self, band: i32) -> Share {
        self.floors.get(&band).copied().unwrap_or(0)
    }

    /// A request of a tenant with this account goes to a worker.
    pub(super) fn raise_floor(&mut self, band: i32, used: Share) {
        let floor = self.floors.entry(band).or_default();
        *floor = used.max(*floor);
    }

    /// A queue that goes on from this one's floors.
    pub(super) fn successor(&self) -> Self {
        Self { floors: self.floors.clone(), ..Self::default() }
    }

    /// Takes over the floors of a queue that goes.
    pub(super) fn inherit(&mut self, other: &Self) {
        for (&band, &used) in &other.floors {
            self.raise_floor(band, used);
        }
    }

    /// A request left for a worker.
    pub(super) fn note_departure(&mut self, now: Instant) {
        self.pace.departure(now);
    }

    /// When half of what waits now will have gone.
    pub(super) fn retry_after(&self) -> Duration {
        let half = u32::try_from(self.len() / 2).unwrap_or(u32::MAX);
        self.pace.interval.saturating_mul(half).clamp(RETRY_AFTER.0, RETRY_AFTER.1)
    }
}

/// Requests waiting in relation to a weight; 1 of 1 is equal to 2 of 2.
#[derive(Copy, Clone, Debug)]
struct PerWeight {
    waiting: usize,
    weight: u32,
}

impl PartialEq for PerWeight {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PerWeight {}

impl Ord for PerWeight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let product = |a: &Self, b: &Self| a.waiting as u128 * u128::from(b.weight);
        product(self, other).cmp(&product(other, self))
    }
}

impl PartialOrd for PerWeight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// How fast requests leave a queue: a moving mean of the time between two that leave while others wait.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    interval: Duration,
}

impl Pace {
    fn departure(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let gap = now.saturating_duration_since(last);
            self.interval = if self.interval.is_zero() { gap } else { (self.interval * 7 + gap) / 8 };
        }
    }
}
