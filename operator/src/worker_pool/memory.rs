//! What the reconciler remembers of pools between two looks. A restarted operator does without it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::ResourceExt as _;
use kube::runtime::reflector::Store;
use tokio::time::Instant;

use crate::api::WorkerPool;
use crate::apply::Owner;
use crate::cache::Cache;
use crate::nudge::Nudges;

/// What a worker's pod said when it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// The newest settings that it had read.
    pub(super) read: Option<String>,
    /// When it did not answer.
    pub(super) silent: Option<Instant>,
}

#[derive(Debug, Default)]
struct Entry {
    /// When counts were written last.
    counted: Option<Instant>,
    /// What worker pods said, by their UIDs.
    heard: BTreeMap<String, Heard>,
    nudges: Nudges,
    /// Since when DaemonSets lack pods, by their names.
    lacking: BTreeMap<String, Instant>,
}

/// What is remembered of all pools, by their UIDs.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<BTreeMap<String, Entry>>);

impl Memory {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what worker pods said, by their UIDs.
    pub(super) fn heard(&self, owner: &Owner) -> BTreeMap<String, Heard> {
        self.locked().get(&owner.uid).map(|entry| entry.heard.clone()).unwrap_or_default()
    }

    pub(super) fn note_heard(&self, owner: &Owner, pod: String, heard: Heard) {
        self.locked().entry(owner.uid.clone()).or_default().heard.insert(pod, heard);
    }

    pub(super) fn nudges<T>(&self, owner: &Owner, act: impl FnOnce(&mut Nudges) -> T) -> T {
        act(&mut self.locked().entry(owner.uid.clone()).or_default().nudges)
    }

    /// Forgets pods that are gone.
    pub(super) fn keep_pods(&self, owner: &Owner, exists: impl Fn(&str) -> bool) {
        if let Some(entry) = self.locked().get_mut(&owner.uid) {
            entry.heard.retain(|uid, _| exists(uid));
        }
    }

    pub(super) fn counted(&self, owner: &Owner) -> Option<Instant> {
        self.locked().get(&owner.uid).and_then(|entry| entry.counted)
    }

    pub(super) fn note_counted(&self, owner: &Owner, at: Instant) {
        self.locked().entry(owner.uid.clone()).or_default().counted = Some(at);
    }

    /// Notes whether a DaemonSet lacks pods now, and returns since when it does.
    pub(super) fn lacking(&self, owner: &Owner, set: &str, lacks: bool, now: Instant) -> Option<Instant> {
        let mut all = self.locked();
        let lacking = &mut all.entry(owner.uid.clone()).or_default().lacking;
        if lacks {
            return Some(*lacking.entry(set.to_owned()).or_insert(now));
        }
        lacking.remove(set);
        None
    }

    /// Forgets pools that are gone, once there are many more entries than pools.
    pub(super) fn sweep(&self, pools: &Cache<WorkerPool>) {
        let count: usize = pools.stores().iter().map(Store::len).sum();
        if self.locked().len() > 2 * count + 16
            && let Ok(pools) = pools.all()
        {
            let living: BTreeSet<String> = pools.iter().filter_map(|pool| pool.uid()).collect();
            self.keep(&living);
        }
    }

    fn keep(&self, living: &BTreeSet<String>) {
        self.locked().retain(|uid, _| living.contains(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str) -> Owner {
        let text = String::new;
        Owner { kind: text(), api_version: text(), name: text(), namespace: text(), uid: uid.to_owned() }
    }

    #[test]
    fn pools_and_pods_that_are_gone_are_forgotten() {
        let memory = Memory::default();
        for at in 0..40 {
            memory.note_heard(&owner(&at.to_string()), String::from("pod"), Heard::default());
        }
        memory.keep(&BTreeSet::from([String::from("7")]));
        assert_eq!(memory.locked().keys().collect::<Vec<_>>(), ["7"]);
        memory.keep_pods(&owner("7"), |_| false);
        assert!(memory.heard(&owner("7")).is_empty());
    }
}
