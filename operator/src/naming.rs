//! Names and labels of everything the operator creates.

use std::collections::BTreeMap;

/// The field manager of every write.
pub const FIELD_MANAGER: &str = "modelrelay-operator";
/// The field manager that keeps `replicas` alive while an autoscaler takes them over.
pub const HANDOVER_MANAGER: &str = "modelrelay-operator-handover";

/// Who made an object; the operator watches only what carries it.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`].
pub const OPERATOR: &str = "modelrelay-operator";
/// What kind of thing an object belongs to: one of [`Part`].
pub const NAME: &str = "app.kubernetes.io/name";
/// The ModelRelay or WorkerPool that an object belongs to.
pub const INSTANCE: &str = "app.kubernetes.io/instance";

/// On Secrets of users: the relay that takes the key.
pub const CLIENT_KEY: &str = "modelrelay.io/client-key";
/// Set to `"true"` on a ModelRelay or WorkerPool, it stops all writes.
pub const PAUSED: &str = "modelrelay.io/paused";
/// On children: a hash of what was applied, so that removed fields are noticed.
pub const APPLIED: &str = "modelrelay.io/applied";
/// On pods: the settings revision that they should read now, and the attempt.
pub const NUDGE: &str = "modelrelay.io/settings";
/// On worker pods: a hash of the settings that count from a start only.
pub const STARTED_WITH: &str = "modelrelay.io/started-with";
/// On engine pods: a hash of what the user wrote of the engine.
pub const ENGINE_REVISION: &str = "modelrelay.io/engine-revision";
/// On worker pods: since when the engine beside them is being replaced.
pub const REPLACING: &str = "modelrelay.io/replacing-engine-since";

/// What a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A relay replica.
    Relay,
    /// A worker.
    Worker,
    /// An inference server.
    Engine,
}

impl Part {
    /// The value of [`NAME`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relay => "modelrelay-relay",
            Self::Worker => "modelrelay-worker",
            Self::Engine => "modelrelay-engine",
        }
    }

    /// The labels that select its pods within a namespace; immutable for the life of a workload.
    pub fn selector(self, instance: &str) -> BTreeMap<String, String> {
        [(NAME, self.as_str()), (INSTANCE, instance)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    /// The labels of everything that belongs to it.
    pub fn labels(self, instance: &str) -> BTreeMap<String, String> {
        let mut labels = self.selector(instance);
        labels.insert(MANAGED_BY.to_owned(), OPERATOR.to_owned());
        labels
    }
}

/// Names of a ModelRelay's children.
pub mod relay {
    /// The Service that applications call.
    pub fn service(relay: &str) -> String {
        relay.to_owned()
    }

    /// Deployment, ServiceAccount, PodDisruptionBudget, NetworkPolicy and HorizontalPodAutoscaler.
    pub fn workload(relay: &str) -> String {
        format!("{relay}-relay")
    }

    /// The headless Service that workers resolve.
    pub fn workers_service(relay: &str) -> String {
        format!("{relay}-relay-workers")
    }

    /// The Secret with the settings file.
    pub fn settings(relay: &str) -> String {
        format!("{relay}-relay-settings")
    }

    /// The generated Secret with the token for the admin API.
    pub fn admin(relay: &str) -> String {
        format!("{relay}-relay-admin")
    }
}

/// Names of a WorkerPool's children.
pub mod pool {
    /// DaemonSet, ServiceAccount and NetworkPolicy of the workers.
    pub fn worker(pool: &str) -> String {
        format!("{pool}-worker")
    }

    /// The Secret with the workers' settings file.
    pub fn settings(pool: &str) -> String {
        format!("{pool}-worker-settings")
    }

    /// The generated Secret with the workers' token.
    pub fn credential(pool: &str) -> String {
        format!("{pool}-worker-credential")
    }

    /// The generated Secret with the token for the workers' admin API.
    pub fn admin(pool: &str) -> String {
        format!("{pool}-worker-admin")
    }

    /// DaemonSet, Service, ServiceAccount and NetworkPolicy of the engine.
    pub fn engine(pool: &str) -> String {
        format!("{pool}-engine")
    }

    /// The generated Secret with the join command of an External pool.
    pub fn join(pool: &str) -> String {
        format!("{pool}-join")
    }
}
