//! The custom resources `ModelRelay` and `WorkerPool`, as Rust types. The CRDs are generated from them.
//!
//! Absent means default everywhere; an optional field that is absent is never sent as `null`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod condition;
pub mod model_relay;
mod rules;
pub mod schema;
pub mod worker_pool;
pub mod yaml;

pub use model_relay::{ModelRelay, ModelRelaySpec, ModelRelayStatus};
pub use worker_pool::{WorkerPool, WorkerPoolSpec, WorkerPoolStatus};

/// The API group of both resources.
pub const GROUP: &str = "modelrelay.io";
/// The version of both resources.
pub const VERSION: &str = "v1alpha1";

/// Which image a pod runs. Fields that are absent come from the operator's own settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// Registry and name, without tag: `registry.example.com/team/modelrelay-relay`. Default: the operator's own registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub repository: Option<String>,
    /// Tag. Default: the operator's own version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub tag: Option<String>,
    /// Digest (`sha256:...`); goes before the tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub digest: Option<String>,
    /// When nodes pull the image: at every start of a pod (`Always`), when they do not have it (`IfNotPresent`, the default),
    /// or not at all (`Never`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::choice::<PullPolicy>", extend("default" = "IfNotPresent"))]
    pub pull_policy: Option<PullPolicy>,
}

/// When a node pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// At every start of a pod.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Not at all.
    Never,
}

impl PullPolicy {
    /// The name that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// How many ready workers serve a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServedModel {
    /// The model, as workers name it.
    #[schemars(length(max = 512))]
    pub name: String,
    /// Distinct ready workers that serve it, over all relay replicas.
    #[schemars(range(min = 0))]
    pub ready_workers: i32,
}
