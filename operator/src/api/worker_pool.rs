//! `WorkerPool`: workers of one kind, on GPU nodes of the cluster or on boxes outside.

#![allow(clippy::duplicated_attributes, reason = "each printer column has a type of its own")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodTemplateSpec, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ImageSpec, ServedModel, schema};

/// What the workers of a pool should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "modelrelay.io",
    version = "v1alpha1",
    kind = "WorkerPool",
    plural = "workerpools",
    shortname = "wpool",
    category = "modelrelay-all",
    namespaced,
    status = "WorkerPoolStatus",
    derive = "PartialEq",
    doc = "Workers beside the GPUs: one on each GPU node of the cluster, or boxes outside that join.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Relay", type_ = "string", json_path = ".spec.relayRef.name"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desired"),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.ready"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = "1",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = "1",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPoolSpec {
    /// The relay that these workers serve.
    pub relay_ref: RelayRef,
    /// `Managed` (the default): the operator runs a worker on each GPU node. `External`: boxes outside join by themselves. Immutable.
    #[serde(rename = "type", default)]
    #[schemars(schema_with = "schema::choice::<PoolType>")]
    pub kind: PoolType,
    /// Models that these workers may serve. Empty: whatever their backends list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 256)), extend("x-kubernetes-list-type" = "set"))]
    pub models: Vec<String>,
    /// Requests that one worker runs at once; for `External` the most that a box may declare. Default 8, 1 to 100000.
    /// While a worker is replaced, the old one's unfinished requests run besides.
    #[serde(default = "default_max_concurrent_requests")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_concurrent_requests: i32,
    /// What is said about these workers in the relay's admin API and logs. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::worker_labels")]
    pub labels: BTreeMap<String, String>,
    /// The inference server beside each worker. Required with `Managed`, refused with `External`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendSpec>,
    /// How the worker watches its backend. Only with `Managed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
    /// How the operator runs the workers. Only with `Managed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedSpec>,
    /// Bounds for boxes that join. Only with `External`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalSpec>,
}

fn default_max_concurrent_requests() -> i32 {
    8
}

/// Names a relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RelayRef {
    /// The ModelRelay's name. Immutable.
    #[schemars(length(max = 40))]
    pub name: String,
    /// Its namespace. Absent: the pool's own. Another one only if the relay's `allowedWorkerPools` lets it. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
}

/// Who runs the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PoolType {
    /// The operator, on nodes of the cluster.
    #[default]
    Managed,
    /// Whoever holds the pool's join credential.
    External,
}

/// The inference server beside each worker: exactly one of the members.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendSpec {
    /// An engine that runs already; `$(NODE_IP)` and `$(NODE_NAME)` stand for the worker's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub url: Option<String>,
    /// An engine behind a Service of the pool's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<BackendService>,
    /// An engine that the operator runs on each node, in a pod of its own beside the worker. The worker uses the port
    /// named `http`, else the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::engine_container")]
    pub container: Option<Container>,
}

/// A Service in front of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendService {
    /// Its name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Its port, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// How the worker watches its backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthSpec {
    /// A path that answers 200 when the backend is ready. Absent: `/health`, and where there is no such route `/v1/models`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub path: Option<String>,
    /// Seconds between probes. Default 10, 1 to 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600), extend("default" = 10))]
    pub interval_seconds: Option<i32>,
    /// Probes in a row that must fail before the backend counts as gone. Default 3, 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100), extend("default" = 3))]
    pub failure_threshold: Option<i32>,
    /// Seconds in which a backend that was never ready counts as starting. Default 1800, 0 (unbounded) to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800), extend("default" = 1800))]
    pub startup_timeout_seconds: Option<i32>,
}

/// How the operator runs the workers of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManagedSpec {
    /// Labels of the nodes. Absent: nodes that GPU discovery labelled (`nvidia.com/gpu.present`,
    /// `feature.node.kubernetes.io/amd-gpu` or `intel.feature.node.kubernetes.io/gpu` is `"true"`). `{}`: every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::node_selector")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints that the pods tolerate. Absent: those that GPU nodes usually carry (`nvidia.com/gpu`, `amd.com/gpu`,
    /// `gpu.intel.com/i915`, `gpu.intel.com/xe`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::tolerations")]
    pub tolerations: Option<Vec<Toleration>>,
    /// How workers and engines are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_strategy: Option<UpdateStrategySpec>,
    /// The worker's image. Absent: the operator's own version, from its registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// Merged over the worker's pod. With `hostNetwork: true`, for engines that listen on the node's 127.0.0.1 only, port 8082 of
    /// the node must be free, and in an update the old worker drains before the new one starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pod_template")]
    pub pod_template: Option<PodTemplateSpec>,
    /// Merged over the engine's pod: volumes, runtime class, pull secrets and the like. Only with `backend.container`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pod_template")]
    pub engine_pod_template: Option<PodTemplateSpec>,
}

/// How workers and engines are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategySpec {
    /// Nodes on which the replacement goes on at the same time. Default 1, 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000), extend("default" = 1))]
    pub max_unavailable: Option<i32>,
    /// Whether what runs is finished first. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub wait_for_idle: Option<bool>,
    /// The longest wait for that, in seconds. Default 900, 1 to 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400), extend("default" = 900))]
    pub timeout_seconds: Option<i32>,
}

/// Bounds for boxes that join.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalSpec {
    /// Boxes at once. Absent: unlimited; 1 to 100000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_workers: Option<i32>,
}

/// What the operator saw of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPoolStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Nodes that should run a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub desired: Option<i32>,
    /// Nodes that run one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub current: Option<i32>,
    /// Nodes whose worker is of the newest template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub updated: Option<i32>,
    /// Workers with a session at a relay. Absent while the relays cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub connected: Option<i32>,
    /// Those of them that take requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ready: Option<i32>,
    /// Those of them that finish what runs and leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub draining: Option<i32>,
    /// The Secret with the join command, for `External`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub join_secret_name: Option<String>,
    /// What the pool serves, by name; the first 64. Absent while the relays cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub models: Option<Vec<ServedModel>>,
    /// Workers that take no requests and pods that do not run, and why; the first 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub unhealthy: Vec<UnhealthyWorker>,
    /// `Accepted`, `ResolvedRefs`, `Progressing`, `Available` and `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A worker that takes no requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnhealthyWorker {
    /// Its name.
    #[schemars(length(max = 512))]
    pub worker: String,
    /// One word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048))]
    pub message: String,
    /// Since when the operator has seen it so.
    pub since: Time,
}
