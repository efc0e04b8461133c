//! Everything that the status of a pool follows from.

use k8s_openapi::api::apps::v1::DaemonSet;

use crate::api::worker_pool::PoolType;
use crate::fleet::Worker;
use crate::worker_pool::rollout::Plan;
use crate::worker_pool::validate::Refusal;

/// What came of a reconcile.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::worker_pool) struct Outcome {
    /// Why the spec is not acted on.
    pub(in crate::worker_pool) rejected: Option<Refusal>,
    /// What is missing of what it refers to.
    pub(in crate::worker_pool) unresolved: Option<Refusal>,
    pub(in crate::worker_pool) progress: Progress,
}

/// How far a reconcile came.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::worker_pool) enum Progress {
    /// The user wants no writes.
    Paused,
    /// A refusal keeps the rest from being written.
    Blocked,
    /// Everything is written.
    Written,
    /// The API server failed.
    Failed(String),
}

/// How many pods a DaemonSet should have and has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::worker_pool) struct SetCounts {
    pub(in crate::worker_pool) desired: i32,
    pub(in crate::worker_pool) current: i32,
    pub(in crate::worker_pool) updated: i32,
    pub(in crate::worker_pool) ready: i32,
}

impl SetCounts {
    /// Nothing until the controller has seen the newest spec.
    pub(in crate::worker_pool) fn of(set: &DaemonSet) -> Option<Self> {
        let status = set.status.as_ref()?;
        (status.observed_generation == set.metadata.generation).then(|| Self {
            desired: status.desired_number_scheduled,
            current: status.current_number_scheduled,
            updated: status.updated_number_scheduled.unwrap_or(0),
            ready: status.number_ready,
        })
    }
}

/// Everything that a status follows from.
#[derive(Clone, Debug)]
pub(in crate::worker_pool) struct Facts<'a> {
    pub(in crate::worker_pool) kind: PoolType,
    pub(in crate::worker_pool) generation: Option<i64>,
    pub(in crate::worker_pool) outcome: &'a Outcome,
    /// The labels of the nodes that a Managed pool wants.
    pub(in crate::worker_pool) looks_for: &'a str,
    /// Of the workers' DaemonSet.
    pub(in crate::worker_pool) pods: Option<SetCounts>,
    /// Whether the engines' DaemonSet has yet to be seen by its controller.
    pub(in crate::worker_pool) engine_pending: bool,
    /// Of the engines.
    pub(in crate::worker_pool) rollout: Option<&'a Plan>,
    /// Why pods are not created.
    pub(in crate::worker_pool) refused: Option<&'a str>,
    /// Whether it is known that no relay is ready.
    pub(in crate::worker_pool) no_relay: bool,
    /// The pool's workers, as the relays see them. None when no relay can be asked.
    pub(in crate::worker_pool) workers: Option<&'a [Worker]>,
    /// Pods of the pool that do not run, whether or not their workers are known to relays.
    pub(in crate::worker_pool) troubled: Vec<Trouble>,
    /// Of an External pool, once it is there.
    pub(in crate::worker_pool) join_secret: Option<String>,
    /// Whether the relays run with the hash of an External pool's token.
    pub(in crate::worker_pool) in_force: bool,
}

/// A pod that does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker_pool) struct Trouble {
    pub(in crate::worker_pool) pod: String,
    /// One word.
    pub(in crate::worker_pool) reason: String,
    pub(in crate::worker_pool) message: String,
}
