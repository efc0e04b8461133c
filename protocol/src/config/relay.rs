//! The relay's settings file.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::check::{self, Checked, Invalid};
use super::read::{self, ConfigError, Parsed};
use super::values::{ByteSize, Sha256Hash, is_key_id};

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
    /// A host name with an address for each replica, as a headless Service has it. It is resolved every ten seconds and
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
        let parsed: Parsed<Self> = read::read(text)?;
        match parsed.ignored.first() {
            Some(path) if parsed.config.generated_by.is_none() => Err(read::unknown_field(path, EXAMPLE)),
            _ => Ok(parsed),
        }
    }

    /// Reads a file and refuses unknown fields whoever wrote it.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_strictly(text: &str) -> Result<Self, ConfigError> {
        let parsed = Self::parse(text)?;
        match parsed.ignored.first() {
            Some(path) => Err(read::unknown_field(path, EXAMPLE)),
            None => Ok(parsed.config),
        }
    }

    /// The file's text with each field at its default left out.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(&read::sparse(self)).expect("a map with string keys can be written")
    }

    /// Everything in force, defaults included, with hashes shortened: fit to be shown.
    pub fn shown(&self) -> Value {
        read::shown(self)
    }

    /// Checks ranges and relations.
    ///
    /// # Errors
    /// The first field that cannot be so, by its path.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.listen == self.ops_listen && self.listen.port() != 0 {
            return Err(Invalid::new(
                "opsListen",
                format!("must differ from listen, both are {}", self.listen),
            ));
        }
        check::range("replicas", &self.replicas, &(1..=1000))?;
        if let Some(name) = &self.replicas_from {
            check::host("replicasFrom", name)?;
        }
        check::range("readiness.settleSeconds", &self.readiness.settle_seconds, &(0..=3600))?;
        self.check_queue()?;
        self.check_priorities()?;
        self.check_routing()?;
        check::range("retries.maxRequeues", &self.retries.max_requeues, &(0..=100))?;
        check::seconds_or_off("timeouts.firstByteSeconds", self.timeouts.first_byte_seconds)?;
        check::seconds_or_off("timeouts.streamIdleSeconds", self.timeouts.stream_idle_seconds)?;
        check::seconds_or_off("timeouts.requestSeconds", self.timeouts.request_seconds)?;
        check::seconds("drain.deadlineSeconds", self.drain.deadline_seconds)?;
        check::range("drain.delaySeconds", &self.drain.delay_seconds, &(0..=self.drain.deadline_seconds))?;
        self.check_models()?;
        self.check_limits()?;
        self.check_headers()?;
        self.check_client_keys()?;
        self.check_tenants()?;
        self.check_worker_credentials()
    }

    fn check_queue(&self) -> Checked {
        let queue = &self.queue;
        check::range("queue.maxRequests", &queue.max_requests, &(1..=1_000_000))?;
        check::range("queue.maxBytes", &queue.max_bytes, &(ByteSize(1)..=ByteSize::mib(1 << 20)))?;
        check::seconds("queue.timeoutSeconds", queue.timeout_seconds)?;
        check::seconds("queue.noWorkerTimeoutSeconds", queue.no_worker_timeout_seconds)?;
        check::seconds_or_off("queue.keepAliveSeconds", queue.keep_alive_seconds)
    }

    fn check_priorities(&self) -> Checked {
        at_most("priorities", self.priorities.len(), 64)?;
        for (index, priority) in self.priorities.iter().enumerate() {
            check::name(&format!("priorities[{index}].name"), &priority.name, 64)?;
            let allowed = -1_000_000..=1_000_000;
            check::range(&format!("priorities[{index}].value"), &priority.value, &allowed)?;
        }
        check::distinct("priorities", ".name", self.priorities.iter().map(|p| &p.name))?;
        check::distinct("priorities", ".value", self.priorities.iter().map(|p| p.value))
    }

    fn check_routing(&self) -> Checked {
        let hash = &self.routing.prefix_hash;
        let bytes = ByteSize(1)..=ByteSize::mib(1);
        check::range("routing.prefixHash.prefixBytes", &hash.prefix_bytes, &bytes)?;
        check::range("routing.prefixHash.maxLoadPercent", &hash.max_load_percent, &(100..=10_000))?;
        match &self.routing.session_affinity_header {
            Some(header) if !check::is_header_name(header) => {
                let problem = format!("must be a header name such as x-session-id, is {header:?}");
                Err(Invalid::new("routing.sessionAffinityHeader", problem))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_models(&self) -> Checked {
        for (index, model) in self.models.iter().enumerate() {
            check::name(&format!("models[{index}].name"), &model.name, 256)?;
            let targets = format!("models[{index}].targets");
            if model.targets.is_empty() {
                return Err(Invalid::new(targets, "must name at least one target"));
            }
            at_most(&targets, model.targets.len(), 64)?;
            for (index, target) in model.targets.iter().enumerate() {
                check::name(&format!("{targets}[{index}].model"), &target.model, 256)?;
                check::range(&format!("{targets}[{index}].weight"), &target.weight, &(0..=1_000_000))?;
            }
            if model.targets.iter().all(|target| target.weight == 0) {
                return Err(Invalid::new(targets, "must not all have weight 0"));
            }
            check::distinct(&targets, ".model", model.targets.iter().map(|target| &target.model))?;
        }
        check::distinct("models", ".name", self.models.iter().map(|model| &model.name))
    }

    fn check_limits(&self) -> Checked {
        let limits = &self.limits;
        check::range("limits.maxBodyBytes", &limits.max_body_bytes, &(ByteSize(1)..=ByteSize::mib(1 << 20)))?;
        if limits.max_body_bytes > self.queue.max_bytes {
            let (body, all) = (limits.max_body_bytes, self.queue.max_bytes);
            let problem = format!("must be at most queue.maxBytes ({all}), is {body}");
            return Err(Invalid::new("limits.maxBodyBytes", problem));
        }
        check::seconds("limits.bodyTimeoutSeconds", limits.body_timeout_seconds)?;
        check::seconds("limits.headTimeoutSeconds", limits.head_timeout_seconds)?;
        check::seconds("limits.idleTimeoutSeconds", limits.idle_timeout_seconds)?;
        let head = ByteSize::kib(8)..=ByteSize::mib(1);
        check::range("limits.maxHeadBytes", &limits.max_head_bytes, &head)?;
        check::range("limits.maxHeaders", &limits.max_headers, &(16..=1000))?;
        let window = ByteSize::kib(128)..=ByteSize::mib(16);
        check::range("limits.responseWindowBytes", &limits.response_window_bytes, &window)
    }

    fn check_headers(&self) -> Checked {
        at_most("headers.allow", self.headers.allow.len(), 64)?;
        for (index, entry) in self.headers.allow.iter().enumerate() {
            let field = format!("headers.allow[{index}]");
            if !check::is_header_name(entry.strip_suffix('*').unwrap_or(entry)) {
                let problem = format!("must be a header name or a prefix such as acme-*, is {entry:?}");
                return Err(Invalid::new(field, problem));
            }
            if let Some(kept) = KEPT_HEADERS.iter().find(|kept| covers(entry, kept)) {
                return Err(Invalid::new(field, format!("must not cover {kept}, which stays in the relay")));
            }
        }
        at_most("cors.origins", self.cors.origins.len(), 64)?;
        for (index, origin) in self.cors.origins.iter().enumerate() {
            let field = format!("cors.origins[{index}]");
            if origin == "*" {
                continue;
            }
            check::url(&field, origin, &["http", "https"])?;
            if origin.matches('/').count() > 2 || origin.contains(['?', '#']) {
                let problem = format!("must be scheme, host and port only, is {origin:?}");
                return Err(Invalid::new(field, problem));
            }
        }
        Ok(())
    }

    fn check_client_keys(&self) -> Checked {
        if self.client_auth.kind == Some(ClientAuth::None) && !self.client_keys.is_empty() {
            let problem = "None would leave the client port open beside clientKeys; remove one of the two";
            return Err(Invalid::new("clientAuth.type", problem));
        }
        for (index, key) in self.client_keys.iter().enumerate() {
            let field = |name: &str| format!("clientKeys[{index}].{name}");
            if !is_key_id(&key.id) {
                let problem = format!("must be 1 to 64 letters, digits and \"-\", is {:?}", key.id);
                return Err(Invalid::new(field("id"), problem));
            }
            if let Some(tenant) = &key.tenant {
                check::name(&field("tenant"), tenant, 128)?;
            }
            if let Some(priority) = &key.priority {
                self.check_priority_exists(&field("priority"), priority)?;
            }
            check::models(&field("models"), &key.models)?;
            at_least_one(&field("requestsPerMinute"), key.requests_per_minute)?;
            at_least_one(&field("tokensPerMinute"), key.tokens_per_minute)?;
            at_least_one(&field("maxConcurrentRequests"), key.max_concurrent_requests)?;
        }
        check::distinct("clientKeys", ".id", self.client_keys.iter().map(|key| &key.id))
    }

    fn check_priority_exists(&self, field: &str, name: &str) -> Checked {
        let mut names: Vec<_> = self.priorities.iter().map(|priority| priority.name.as_str()).collect();
        if name == DEFAULT_PRIORITY || names.contains(&name) {
            return Ok(());
        }
        if names.is_empty() {
            names.push(DEFAULT_PRIORITY);
        }
        Err(Invalid::new(field, format!("must be one of priorities ({}), is {name:?}", names.join(", "))))
    }

    fn check_tenants(&self) -> Checked {
        for (index, tenant) in self.tenants.iter().enumerate() {
            check::name(&format!("tenants[{index}].name"), &tenant.name, 128)?;
            check::range(&format!("tenants[{index}].weight"), &tenant.weight, &(1..=1_000_000))?;
        }
        check::distinct("tenants", ".name", self.tenants.iter().map(|tenant| &tenant.name))
    }

    fn check_worker_credentials(&self) -> Checked {
        for (index, credential) in self.worker_credentials.iter().enumerate() {
            let field = |name: &str| format!("workerCredentials[{index}].{name}");
            if let Some(name) = &credential.name {
                check::name(&field("name"), name, 128)?;
            }
            check::name(&field("pool"), &credential.pool, 128)?;
            if let Some(namespace) = &credential.namespace {
                check::name(&field("namespace"), namespace, 63)?;
            }
            check::models(&field("models"), &credential.models)?;
            at_least_one(&field("maxWorkers"), credential.max_workers)?;
            at_least_one(&field("maxConcurrentRequests"), credential.max_concurrent_requests)?;
        }
        let hashes = self.worker_credentials.iter().map(|credential| credential.sha256.short());
        check::distinct("workerCredentials", ".sha256", hashes)
    }
}

/// The priority of client keys that name none.
pub(super) const DEFAULT_PRIORITY: &str = "default";

/// Headers that `headers.allow` cannot name: credentials, and what belongs to one connection.
const KEPT_HEADERS: [&str; 14] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
    "x-worker-secret",
];

/// Whether an entry of `headers.allow` means a header; `header` is in lower case.
fn covers(entry: &str, header: &str) -> bool {
    let entry = entry.to_ascii_lowercase();
    entry.strip_suffix('*').map_or(entry == header, |prefix| header.starts_with(prefix))
}

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

fn at_most(field: &str, length: usize, most: usize) -> Checked {
    if length > most {
        return Err(Invalid::new(field, format!("must have at most {most} entries, has {length}")));
    }
    Ok(())
}

fn at_least_one(field: &str, value: Option<u32>) -> Checked {
    value.map_or(Ok(()), |value| check::range(field, &value, &(1..=u32::MAX)))
}
