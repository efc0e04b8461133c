//! The connected workers: their slots, their load, and what runs there.

use std::collections::{BTreeSet, HashMap};
use std::ops::{Index, IndexMut};
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;

use super::event::{Capacity, RequestKey, WorkerId, WorkerInfo};
use super::models::ModelIx;
use super::placement::{FreeKey, Standing, mix, relative_load};

/// Position of a worker in [`Workers`]; used again after the worker is gone.
pub(super) type WorkerIx = usize;

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    capacity: Capacity,
    slots: u32,
    pub(super) streams: bool,
    pub(super) pleas: bool,
    pub(super) spot: u64,
    pub(super) models: Vec<Arc<str>>,
    /// The pools it is in: [`super::models::ANY`] alone when it serves any model; none while draining.
    pub(super) serves: Vec<ModelIx>,
    /// The models it lists by name.
    pub(super) lists: Vec<ModelIx>,
    pub(super) running: BTreeSet<RequestKey>,
    credits: u32,
    /// Credits that it lent so far.
    pub(super) received: u64,
    /// Load that is not this relay's.
    foreign: u32,
    pub(super) draining: bool,
    pub(super) penalised_until: Option<Instant>,
    last_used: u64,
    /// What the pools hold of it.
    standing: Standing,
}

impl Worker {
    fn new(id: WorkerId, info: WorkerInfo) -> Self {
        let WorkerInfo { capacity, slots, models, streams, identity, reported_load, pleas } = info;
        Self {
            id,
            capacity,
            slots: slots.max(1),
            streams,
            pleas: pleas && capacity == Capacity::Granted,
            spot: mix(identity),
            models,
            serves: Vec::new(),
            lists: Vec::new(),
            running: BTreeSet::new(),
            credits: 0,
            received: 0,
            foreign: reported_load,
            draining: false,
            penalised_until: None,
            last_used: 0,
            standing: Standing::default(),
        }
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// Requests there, whoever sent them.
    pub(super) fn load(&self) -> u32 {
        self.in_flight().saturating_add(self.foreign)
    }

    fn in_flight(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(u32::MAX)
    }

    /// How many more requests may be sent to it.
    pub(super) fn free_slots(&self) -> u32 {
        match self.capacity {
            Capacity::Granted => self.credits,
            Capacity::Declared { slots } => slots.saturating_sub(self.load()),
        }
    }

    pub(super) fn is_free(&self) -> bool {
        !self.draining && self.free_slots() > 0
    }

    pub(super) fn report_load(&mut self, load: u32) {
        self.foreign = load.saturating_sub(self.in_flight());
    }

    pub(super) fn grant(&mut self, credits: u32) {
        self.credits = self.credits.saturating_add(credits);
        self.received += u64::from(credits);
    }

    /// Takes up to `n` unspent credits; returns how many.
    pub(super) fn recall(&mut self, n: u32) -> u32 {
        let taken = n.min(self.credits);
        self.credits -= taken;
        taken
    }

    /// Takes a slot for a request. `turn` grows with each dispatch.
    pub(super) fn take_slot(&mut self, request: RequestKey, turn: u64) {
        if self.capacity == Capacity::Granted {
            self.credits -= 1;
        }
        self.running.insert(request);
        self.last_used = turn;
    }

    /// What the pools were last told.
    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    /// Brings the standing up to date; returns it as it was.
    pub(super) fn restate(&mut self, index: WorkerIx) -> Standing {
        let free = self.is_free().then(|| FreeKey {
            penalised: self.penalised_until.is_some(),
            load: relative_load(self.load(), self.slots),
            last_used: self.last_used,
            worker: index,
            spot: self.spot,
        });
        let now = Standing { free, load: self.load(), slots: self.slots, streams: self.streams };
        std::mem::replace(&mut self.standing, now)
    }
}

/// All connected workers.
#[derive(Debug, Default)]
pub(super) struct Workers {
    by_id: HashMap<WorkerId, WorkerIx>,
    workers: Slab<Worker>,
}

impl Workers {
    pub(super) fn find(&self, id: WorkerId) -> Option<WorkerIx> {
        self.by_id.get(&id).copied()
    }

    /// Adds a worker; none when its session is here already.
    pub(super) fn insert(&mut self, id: WorkerId, info: WorkerInfo) -> Option<WorkerIx> {
        if self.by_id.contains_key(&id) {
            return None;
        }
        let index = self.workers.insert(Worker::new(id, info));
        self.by_id.insert(id, index);
        Some(index)
    }

    pub(super) fn remove(&mut self, index: WorkerIx) -> Worker {
        let worker = self.workers.remove(index);
        self.by_id.remove(&worker.id);
        worker
    }

    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().map(|(_, worker)| worker)
    }
}

impl Index<WorkerIx> for Workers {
    type Output = Worker;

    fn index(&self, index: WorkerIx) -> &Worker {
        &self.workers[index]
    }
}

impl IndexMut<WorkerIx> for Workers {
    fn index_mut(&mut self, index: WorkerIx) -> &mut Worker {
        &mut self.workers[index]
    }
}
