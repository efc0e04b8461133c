//! The relay's settings file.

mod rules;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::read::{self, ConfigError, Parsed};
use super::values::{ByteSize, Sha256Hash};

/// A relay file in which every field stands once.
const EXAMPLE: &str = include_str!("relay.example.yaml");

/// Everything a relay can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RelayConfig {
    /// Which program wrote the file; absent in hand-written ones. Set, it makes unknown fields harmless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generated_by: Option<String>,
    /// The client port, workers included. Default `0.0.0.0:8080`. Read at start only.
    pub listen: SocketAddr,
    /// The operations port. Default `127.0.0.1:8081`. Read at start only.
    pub ops_listen: SocketAddr,
    /// How many relay replicas there are, this one included: workers look for as many, and limits of client keys are
    /// divided by it. Default 1, 1 to 1,000.
    pub replicas: u32,
    /// A host name with an address for each replica, as a headless Service has it. It is resolved every two seconds and
    /// its addresses are counted; `replicas` stands until that first succeeds. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas_from: Option<String>,
    /// When the relay says that it is ready.
    pub readiness: ReadinessConfig,
    /// What may wait, how much and how long.
    pub queue: QueueConfig,
    /// Priority bands by name; requests without one have value 0. Default none, at most 64.
    pub priorities: Vec<PriorityConfig>,
    /// Which of the eligible workers gets a request.
    pub routing: RoutingConfig,
    /// How often a request may move before the first byte of its answer.
    pub retries: RetriesConfig,
    /// How long backends may take.
    pub timeouts: TimeoutsConfig,
    /// How the relay stops.
    pub drain: DrainConfig,
    /// Aliases and weighted splits, by the name that clients ask for. Default none.
    pub models: Vec<ModelConfig>,
    /// What a client connection may use.
    pub limits: LimitsConfig,
    /// Headers in both directions.
    pub headers: HeadersConfig,
    /// Browsers of other origins. Default: none.
    pub cors: CorsConfig,
    /// Whether clients need a key.
    pub client_auth: ClientAuthConfig,
    /// Who may ask. Default none.
    pub client_keys: Vec<ClientKeyConfig>,
    /// Weights of tenants in the fair share. Tenants that are not listed weigh 1.
    pub tenants: Vec<TenantConfig>,
    /// Who may serve. Default none.
    pub worker_credentials: Vec<WorkerCredentialConfig>,
    /// Who may read `/admin/v1` on a listener that is not loopback. Default: nobody.
    pub admin: AdminConfig,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            generated_by: None,
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            ops_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            replicas: 1,
            replicas_from: None,
            readiness: ReadinessConfig::default(),
            queue: QueueConfig::default(),
            priorities: Vec::new(),
            routing: RoutingConfig::default(),
            retries: RetriesConfig::default(),
            timeouts: TimeoutsConfig::default(),
            drain: DrainConfig::default(),
            models: Vec::new(),
            limits: LimitsConfig::default(),
            headers: HeadersConfig::default(),
            cors: CorsConfig::default(),
            client_auth: ClientAuthConfig::default(),
            client_keys: Vec::new(),
            tenants: Vec::new(),
            worker_credentials: Vec::new(),
            admin: AdminConfig::default(),
        }
    }
}

/// `readiness`: when a relay that has just started takes its part of the clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReadinessConfig {
    /// Seconds in which workers are expected to find the relay. Until the first of them is there, or this time is over,
    /// it is not ready. Default 10, 0 to 3,600. Read at start only.
    pub settle_seconds: u32,
}

impl Default for ReadinessConfig {
    fn default() -> Self {
        Self { settle_seconds: 10 }
    }
}

impl ReadinessConfig {
    /// The time in which workers are expected to find the relay.
    pub fn settle(&self) -> Duration {
        Duration::from_secs(self.settle_seconds.into())
    }
}

/// `queue`: what may wait for a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueConfig {
    /// Requests that may wait for one model. Default 1000, 1 to 1,000,000.
    pub max_requests: u32,
    /// Bytes of all request bodies the relay holds, waiting or not. Default `256Mi`, at least `limits.maxBodyBytes`.
    pub max_bytes: ByteSize,
    /// Seconds a request waits while workers for its model exist. Default 30, 1 to 604,800.
    pub timeout_seconds: u32,
    /// Seconds a request waits while nobody serves its model. Default 30, 1 to 604,800.
    pub no_worker_timeout_seconds: u32,
    /// Seconds between SSE comments to a waiting stream. Default 0, which sends none; to 604,800.
    pub keep_alive_seconds: u32,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            max_requests: 1000,
            max_bytes: ByteSize::mib(256),
            timeout_seconds: 30,
            no_worker_timeout_seconds: 30,
            keep_alive_seconds: 0,
        }
    }
}

impl QueueConfig {
    /// How long a request waits while workers for its model exist.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into())
    }

    /// How long a request waits while nobody serves its model.
    pub fn no_worker_timeout(&self) -> Duration {
        Duration::from_secs(self.no_worker_timeout_seconds.into())
    }

    /// The time between SSE comments to a waiting stream, if any are sent.
    pub fn keep_alive(&self) -> Option<Duration> {
        unless_zero(self.keep_alive_seconds)
    }
}

/// One of `priorities`: a strict band of the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PriorityConfig {
    /// What client keys name. `default` is the band of keys that name none.
    pub name: String,
    /// Higher goes first. -1,000,000 to 1,000,000, each value once.
    pub value: i32,
}

/// `routing`: placement among the workers that serve a model and have a free slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoutingConfig {
    /// Default `LeastLoad`.
    pub strategy: Strategy,
    /// Details of the strategy `PrefixHash`.
    pub prefix_hash: PrefixHashConfig,
    /// A request header whose value keeps requests on one worker while it can. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity_header: Option<String>,
}

/// How a worker is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// The lowest relative load, ties rotated.
    #[default]
    LeastLoad,
    /// Consistent hashing with bounded loads over the first bytes of the prompt.
    PrefixHash,
}

/// `routing.prefixHash`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrefixHashConfig {
    /// Bytes of the prompt that are hashed. Default 4096, 1 to 1,048,576.
    pub prefix_bytes: ByteSize,
    /// How far above the mean load a worker may go before the next one is taken, in percent. Default 125, 100 to 10,000.
    pub max_load_percent: u32,
}

impl Default for PrefixHashConfig {
    fn default() -> Self {
        Self { prefix_bytes: ByteSize(4096), max_load_percent: 125 }
    }
}

/// `retries`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetriesConfig {
    /// Moves of one request to another worker. Default 3, 0 to 100.
    pub max_requeues: u32,
}

impl Default for RetriesConfig {
    fn default() -> Self {
        Self { max_requeues: 3 }
    }
}

/// `timeouts`: how long a backend may take; 0 switches one off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TimeoutsConfig {
    /// Seconds from dispatch to the first byte of the answer's body. Default 300, 0 to 604,800.
    pub first_byte_seconds: u32,
    /// Seconds between two reads of an answer. Default 120, 0 to 604,800.
    pub stream_idle_seconds: u32,
    /// Seconds from a request's arrival to its end. Default 0 (unbounded), to 604,800.
    pub request_seconds: u32,
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self { first_byte_seconds: 300, stream_idle_seconds: 120, request_seconds: 0 }
    }
}

impl TimeoutsConfig {
    /// The longest time from dispatch to the first byte.
    pub fn first_byte(&self) -> Option<Duration> {
        unless_zero(self.first_byte_seconds)
    }

    /// The longest silence within an answer.
    pub fn stream_idle(&self) -> Option<Duration> {
        unless_zero(self.stream_idle_seconds)
    }

    /// The longest time from arrival to end.
    pub fn request(&self) -> Option<Duration> {
        unless_zero(self.request_seconds)
    }
}

/// `drain`: what happens from SIGTERM on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrainConfig {
    /// Seconds until what still runs is broken off. Default 300, 1 to 604,800.
    pub deadline_seconds: u32,
    /// Seconds in which requests are still admitted. Default 0, at most `deadlineSeconds`.
    pub delay_seconds: u32,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self { deadline_seconds: 300, delay_seconds: 0 }
    }
}

impl DrainConfig {
    /// The time until what still runs is broken off.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_seconds.into())
    }

    /// The time in which requests are still admitted.
    pub fn delay(&self) -> Duration {
        Duration::from_secs(self.delay_seconds.into())
    }
}

/// One of `models`: a name that stands for others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelConfig {
    /// What clients ask for. At most 256 bytes, each once.
    pub name: String,
    /// What they get; 1 to 64.
    pub targets: Vec<TargetConfig>,
}

/// One target of an alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetConfig {
    /// A model as workers name it; never looked up among the aliases again.
    pub model: String,
    /// Its share among the targets that can be served. Default 1, 0 to 1,000,000, not all 0.
    #[serde(default = "one")]
    pub weight: u32,
}

/// `limits`: what clients may use up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitsConfig {
    /// Bytes of one request body. Default `64Mi`, 1 to `queue.maxBytes`.
    pub max_body_bytes: ByteSize,
    /// Seconds for a whole request body to arrive. Default 120, 1 to 604,800.
    pub body_timeout_seconds: u32,
    /// Seconds for a whole request head to arrive. Default 15, 1 to 604,800.
    pub head_timeout_seconds: u32,
    /// Seconds a connection may be open without a request. Default 75, 1 to 604,800. For new connections.
    pub idle_timeout_seconds: u32,
    /// Bytes of one request head. Default `64Ki`, `8Ki` to `1Mi`. For new connections.
    pub max_head_bytes: ByteSize,
    /// Header lines of one request. Default 100, 16 to 1,000. For new connections.
    pub max_headers: u32,
    /// Bytes of one answer that the relay holds for a client that reads slowly. Default `256Ki`, `128Ki` to `16Mi`.
    pub response_window_bytes: ByteSize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_body_bytes: ByteSize::mib(64),
            body_timeout_seconds: 120,
            head_timeout_seconds: 15,
            idle_timeout_seconds: 75,
            max_head_bytes: ByteSize::kib(64),
            max_headers: 100,
            response_window_bytes: ByteSize::kib(256),
        }
    }
}

impl LimitsConfig {
    /// The time for a whole request body to arrive.
    pub fn body_timeout(&self) -> Duration {
        Duration::from_secs(self.body_timeout_seconds.into())
    }

    /// The time for a whole request head to arrive.
    pub fn head_timeout(&self) -> Duration {
        Duration::from_secs(self.head_timeout_seconds.into())
    }

    /// The time a connection may be open without a request.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_seconds.into())
    }
}

/// `headers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeadersConfig {
    /// Request headers that go to workers besides the built-in list; `name` or `prefix-*`. Default none, at most 64.
    pub allow: Vec<String>,
    /// Whether answers carry `x-modelrelay-worker` and `x-modelrelay-queue-ms`. Default true.
    pub expose: bool,
}

impl Default for HeadersConfig {
    fn default() -> Self {
        Self { allow: Vec::new(), expose: true }
    }
}

/// `cors`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsConfig {
    /// Origins whose pages may call the client port: `https://chat.example.com`, or `*`. Default none, at most 64.
    pub origins: Vec<String>,
}

/// `clientAuth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientAuthConfig {
    /// Default: `APIKeys` where `clientKeys` lists one, or did so since the relay started; else `None`, which
    /// leaves the client port open. `None` is refused beside `clientKeys`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<ClientAuth>,
}

/// Whether clients need a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientAuth {
    /// Whoever reaches the client port may ask.
    None,
    /// Only holders of one of `clientKeys`.
    #[serde(rename = "APIKeys")]
    ApiKeys,
}

/// One of `clientKeys`: who a key `mr_<id>_<secret>` is and what it grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientKeyConfig {
    /// The middle part of the key: 1 to 64 letters, digits and `-`, each once.
    pub id: String,
    /// The SHA-256 of the whole key.
    pub sha256: Sha256Hash,
    /// Who pays. Default: the id, a tenant of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// One of `priorities`. Default: `default`, value 0 unless listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// Models it may ask for, as clients name them. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Requests a minute, in bursts of as many, at least 1. Default: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, in bursts of as many, at least 1. Default: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// Requests at once, at least 1. Default: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent_requests: Option<u32>,
}

/// One of `tenants`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantConfig {
    /// As client keys name it, each once.
    pub name: String,
    /// Its share of slot time against others'. 1 to 1,000,000.
    pub weight: u32,
}

/// One of `workerCredentials`: what a worker is whose secret has this hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerCredentialConfig {
    /// What logs and the admin API call it. Default: the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The SHA-256 of the whole secret, each once.
    pub sha256: Sha256Hash,
    /// The pool of its workers. Default `default`.
    #[serde(default = "default_pool")]
    pub pool: String,
    /// The namespace of the pool, in Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Models its workers may serve. Default: whatever they bring.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// What is said about its workers in the admin API.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Workers at once, at least 1. Default: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_workers: Option<u32>,
    /// The most slots one of its workers may declare, at least 1. Default: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent_requests: Option<u32>,
    /// What becomes of its workers when the entry goes or changes. Default `Disconnect`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_removal: OnRemoval,
    /// Whether its workers see `authorization`, `x-api-key` and `cookie` of clients. Default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub forward_credentials: bool,
}

/// What becomes of connected workers when their credential is withdrawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnRemoval {
    /// They get nothing new, finish within `drain.deadlineSeconds` and are closed.
    Drain,
    /// They are closed at once; what they ran moves or breaks.
    #[default]
    Disconnect,
}

/// `admin`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdminConfig {
    /// The SHA-256 of the bearer token for `/admin/v1`. Default: none, which leaves it to loopback listeners.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Hash>,
}

impl RelayConfig {
    /// Reads a file; unknown fields are refused unless it says `generatedBy`.
    ///
    /// # Errors
    /// What is wrong with its text, types or field names; ranges are for [`Self::validate`].
    pub fn parse(text: &str) -> Result<Parsed<Self>, ConfigError> {
        read::leniently(text, EXAMPLE, |config: &Self| config.generated_by.is_some())
    }

    /// Reads a file and refuses unknown fields whoever wrote it.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_strictly(text: &str) -> Result<Self, ConfigError> {
        read::leniently(text, EXAMPLE, |_| false).map(|parsed| parsed.config)
    }

    /// The file's text with each field at its default left out.
    pub fn to_yaml(&self) -> String {
        read::to_yaml(self)
    }

    /// Everything in force, defaults included, with hashes shortened: fit to be shown.
    pub fn shown(&self) -> Value {
        read::shown(self)
    }
}

/// The priority of client keys that name none.
pub(super) const DEFAULT_PRIORITY: &str = "default";

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn one() -> u32 {
    1
}

fn default_pool() -> String {
    "default".to_owned()
}

fn unless_zero(seconds: u32) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}
