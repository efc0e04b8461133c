//! What is remembered of each relay between two reconciles. None of it is needed: after a restart it is asked again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kube::ResourceExt as _;

use crate::api::ModelRelay;
use crate::api::model_relay::ModelRelayStatus;
use crate::nudge::Nudges;
use crate::relay_client::{AskError, ConfigReport};

/// What is remembered of every relay, by namespace and name.
#[derive(Debug, Default)]
pub(crate) struct Memories(Mutex<BTreeMap<(String, String), Memory>>);

/// What is remembered of one relay.
#[derive(Debug, Default)]
pub(super) struct Memory {
    uid: Option<String>,
    pub(super) nudges: Nudges,
    /// What each pod said of its settings, by UID.
    pub(super) asked: BTreeMap<String, Asked>,
    /// When the pods were last asked for their workers, and the UIDs of those that were, by their names.
    pub(super) workers_asked: Option<(Instant, Vec<String>)>,
    /// Whose the ReplicaSets are that pods name: the Deployment's UID by theirs.
    pub(super) replica_sets: BTreeMap<String, Option<String>>,
    /// The last status that was written, and the resource version that it made.
    pub(super) written: Option<(ModelRelayStatus, Option<String>)>,
    /// When counts of workers were last written.
    pub(super) counted: Option<Instant>,
    /// What was told about Secrets with client keys, by UID.
    pub(super) told: BTreeMap<String, String>,
}

/// An answer and when it came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) at: Instant,
    pub(super) answer: Result<ConfigReport, AskError>,
}

impl Memories {
    /// Takes out what is remembered of this very relay. A reconcile that is broken off forgets it.
    pub(super) fn take(&self, relay: &ModelRelay) -> Memory {
        let found = self.locked().remove(&key(relay)).filter(|memory| memory.uid == relay.uid());
        found.unwrap_or_else(|| Memory { uid: relay.uid(), ..Memory::default() })
    }

    pub(super) fn put(&self, relay: &ModelRelay, memory: Memory) {
        self.locked().insert(key(relay), memory);
    }

    pub(super) fn len(&self) -> usize {
        self.locked().len()
    }

    pub(super) fn retain(&self, lives: impl Fn(&(String, String)) -> bool) {
        self.locked().retain(|key, _| lives(key));
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<(String, String), Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(relay: &ModelRelay) -> (String, String) {
    (relay.namespace().unwrap_or_default(), relay.name_any())
}
