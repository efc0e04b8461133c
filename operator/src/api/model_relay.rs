//! `ModelRelay`: one endpoint, served by one or more relay replicas.

#![allow(clippy::duplicated_attributes, reason = "each printer column has a type of its own")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ImageSpec, ServedModel, schema};

/// What a relay should be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "modelrelay.io",
    version = "v1alpha1",
    kind = "ModelRelay",
    plural = "modelrelays",
    shortname = "mrel",
    category = "modelrelay-all",
    namespaced,
    status = "ModelRelayStatus",
    derive = "PartialEq",
    doc = "One endpoint for applications, served by relay replicas to which workers connect.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".status.workers.ready"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
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
pub struct ModelRelaySpec {
    /// Relay replicas, 0 to 1000. Absent means 2 without `scaling`, with which it cannot be set; `status.replicas` shows what
    /// runs. It has no default in the schema, because that would forbid `scaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// Lets a HorizontalPodAutoscaler choose the number of replicas. Not together with `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingSpec>,
    /// The relay's image. Absent: the operator's own version, from its registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// Merged over the generated pod: labels, annotations, affinity, resources and the like. What the operator relies on
    /// (names, ports, settings, grace period) is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pod_template")]
    pub pod_template: Option<PodTemplateSpec>,
    /// The Service that applications call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSpec>,
    /// How boxes outside the cluster reach the relay. Absent: from the cluster only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure: Option<ExposureSpec>,
    /// What may wait, how much and how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueSpec>,
    /// Priority bands: a higher value always goes first. Requests of keys without a priority have value 0, or that of the
    /// band named `default`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub priorities: Vec<PrioritySpec>,
    /// Which of the workers that could take a request gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<RoutingSpec>,
    /// How often a request may move before the first byte of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<RetriesSpec>,
    /// How long an answer may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutsSpec>,
    /// Seconds that a relay which stops has to finish what runs. Default 300, 1 to 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400), extend("default" = 300))]
    pub drain_seconds: Option<i32>,
    /// Aliases and weighted splits, by the name that clients ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub models: Vec<ModelSpec>,
    /// Who may ask. Absent: whoever reaches the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<ClientAuthSpec>,
    /// What a client connection may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
    /// Pools of which namespaces may connect to this relay. Absent: of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_worker_pools: Option<AllowedWorkerPools>,
}

/// Bounds and target of a HorizontalPodAutoscaler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingSpec {
    /// The fewest replicas. Default 2, 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000), extend("default" = 2))]
    pub min_replicas: Option<i32>,
    /// The most replicas, at least `minReplicas`; to 1000.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// The mean use of the requested CPU that is aimed at, in percent. Default 70, 1 to 1000.
    #[serde(default, rename = "targetCPUPercent", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000), extend("default" = 70))]
    pub target_cpu_percent: Option<i32>,
}

/// The Service that applications call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// How the Service is reached: from the cluster (`ClusterIP`, the default), also on a port of every node (`NodePort`), or
    /// also through a load balancer of the provider (`LoadBalancer`).
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::choice::<ServiceType>", extend("default" = "ClusterIP"))]
    pub kind: Option<ServiceType>,
    /// The port that applications call. Default 80, 1 to 65535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535), extend("default" = 80))]
    pub port: Option<i32>,
    /// The port on every node, 1 to 65535, for types `NodePort` and `LoadBalancer`. Absent: Kubernetes chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,
    /// Put on the Service, for load balancers that read them. At most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::annotations")]
    pub annotations: BTreeMap<String, String>,
}

/// How a Service is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// From the cluster.
    #[default]
    ClusterIP,
    /// Also on a port of every node.
    NodePort,
    /// Also through a load balancer of the provider.
    LoadBalancer,
}

impl ServiceType {
    /// The name that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// How boxes outside the cluster reach the relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExposureSpec {
    /// The address under which boxes outside reach the client port, as join commands print it: `https://relay.example.com`.
    #[serde(rename = "externalURL")]
    #[schemars(length(max = 512))]
    pub external_url: String,
}

/// What may wait for a worker, in each replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueSpec {
    /// Requests that may wait for one model. Default 1000, 1 to 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000), extend("default" = 1000))]
    pub max_requests: Option<i32>,
    /// Bytes of all request bodies that a replica holds. Default `256Mi`, at least `limits.maxBodyBytes`, at most `1Ti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::byte_size", extend("default" = "256Mi"))]
    pub max_bytes: Option<Quantity>,
    /// Seconds that a request waits while workers for its model exist. Default 60, 1 to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800), extend("default" = 60))]
    pub timeout_seconds: Option<i32>,
    /// Seconds that a request waits while nobody serves its model. Default 60, 1 to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800), extend("default" = 60))]
    pub no_worker_timeout_seconds: Option<i32>,
    /// Seconds between comments to streaming clients that wait, for impatient proxies. Default 0 (off), to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800), extend("default" = 0))]
    pub keep_alive_seconds: Option<i32>,
}

/// A priority band.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrioritySpec {
    /// What client keys name.
    #[schemars(length(max = 64))]
    pub name: String,
    /// Higher goes first. -1000000 to 1000000, each value once.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub value: i32,
}

/// Which of the workers that could take a request gets it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutingSpec {
    /// `LeastLoad` (the default): the worker with the lowest relative load. `PrefixHash`: prompts that begin alike go to the
    /// same worker, which has their beginning in its cache, within a bound on its load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::choice::<RoutingStrategy>", extend("default" = "LeastLoad"))]
    pub strategy: Option<RoutingStrategy>,
    /// Details of the strategy `PrefixHash`; only with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_hash: Option<PrefixHashSpec>,
    /// A request header whose value keeps requests on one worker while it can take them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub session_affinity_header: Option<String>,
}

/// How a worker is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RoutingStrategy {
    /// The lowest relative load.
    #[default]
    LeastLoad,
    /// Prompts that begin alike go to the same worker, within a bound on its load.
    PrefixHash,
}

/// Details of the strategy `PrefixHash`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrefixHashSpec {
    /// Bytes of the prompt that count. Default 4096, 1 to 1048576.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576), extend("default" = 4096))]
    pub prefix_bytes: Option<i32>,
    /// How far above the mean load a worker may go before the next one is taken, in percent. Default 125, 100 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 10_000), extend("default" = 125))]
    pub max_load_percent: Option<i32>,
}

/// How often a request may move before the first byte of its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetriesSpec {
    /// Moves to another worker. Default 3, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100), extend("default" = 3))]
    pub max_requeues: Option<i32>,
}

/// How long an answer may take; 0 is unbounded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimeoutsSpec {
    /// Seconds from dispatch to the first byte. Default 300, 0 to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800), extend("default" = 300))]
    pub first_byte_seconds: Option<i32>,
    /// Seconds of silence within an answer. Default 120, 0 to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800), extend("default" = 120))]
    pub stream_idle_seconds: Option<i32>,
    /// Seconds from arrival to the end of the answer. Default 0, to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800), extend("default" = 0))]
    pub request_seconds: Option<i32>,
}

/// A name that stands for other models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// What clients ask for.
    #[schemars(length(max = 256))]
    pub name: String,
    /// What they get: one of these, by weight among those that a worker serves. 1 to 64.
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["model"])
    )]
    pub targets: Vec<TargetSpec>,
}

/// One target of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetSpec {
    /// A model, as workers name it. Each once.
    #[schemars(length(max = 256))]
    pub model: String,
    /// Its share among the targets. Default 1, 0 to 1000000; not all 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000), extend("default" = 1))]
    pub weight: Option<i32>,
}

/// Who may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientAuthSpec {
    /// `None` (the default): whoever reaches the Service. `APIKeys`: holders of keys in Secrets of this namespace that are
    /// labelled `modelrelay.io/client-key: <name of this relay>`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::choice::<ClientAuthType>", extend("default" = "None"))]
    pub kind: Option<ClientAuthType>,
}

/// Whether clients need a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClientAuthType {
    /// No key is asked for.
    #[default]
    None,
    /// Only holders of a key.
    #[serde(rename = "APIKeys")]
    ApiKeys,
}

/// What a client connection may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitsSpec {
    /// Bytes of one request body. Default `64Mi`, at most `queue.maxBytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::byte_size", extend("default" = "64Mi"))]
    pub max_body_bytes: Option<Quantity>,
}

/// Pools of which namespaces may connect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllowedWorkerPools {
    /// Which namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<AllowedNamespaces>,
}

/// A set of namespaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllowedNamespaces {
    /// `Same` (the default): the relay's own. `Selector`: those whose labels match `selector`. `All`: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::choice::<NamespacesFrom>", extend("default" = "Same"))]
    pub from: Option<NamespacesFrom>,
    /// Labels of the namespaces; only and always with `Selector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub selector: Option<LabelSelector>,
}

/// How namespaces are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NamespacesFrom {
    /// The relay's own.
    #[default]
    Same,
    /// Those whose labels match.
    Selector,
    /// Every one.
    All,
}

/// What the operator saw of a relay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelRelayStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Relay pods that exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub replicas: Option<i32>,
    /// Relay pods that are Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ready_replicas: Option<i32>,
    /// Selects the relay pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub selector: Option<String>,
    /// The revision of the settings that were written last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub config_revision: Option<String>,
    /// The endpoint for applications in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub url: Option<String>,
    /// Workers, over all replicas. Absent while the relays cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkerCounts>,
    /// What is served, by name; the first 64. Absent while the relays cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub models: Option<Vec<ServedModel>>,
    /// `Accepted`, `ResolvedRefs`, `Programmed`, `Available` and `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Workers by state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerCounts {
    /// With a session.
    #[schemars(range(min = 0))]
    pub connected: i32,
    /// Those of them that take requests.
    #[schemars(range(min = 0))]
    pub ready: i32,
    /// Those of them that finish what runs and leave.
    #[schemars(range(min = 0))]
    pub draining: i32,
}
