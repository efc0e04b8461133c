//! The relay's settings file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use modelrelay_protocol::config::{
    AdminConfig, ByteSize, ClientAuth, ClientAuthConfig, ClientKeyConfig, DrainConfig, Invalid, LimitsConfig,
    ModelConfig, OnRemoval, PrefixHashConfig, PriorityConfig, QueueConfig, RelayConfig, RetriesConfig,
    RoutingConfig, Sha256Hash, Strategy, TargetConfig, TimeoutsConfig, WorkerCredentialConfig,
};

use super::{CLIENT_PORT, OPS_PORT, meta};
use crate::api::model_relay::{ClientAuthType, RoutingSpec, RoutingStrategy};
use crate::api::worker_pool::PoolType;
use crate::api::{ModelRelay, ModelRelaySpec, WorkerPool};
use crate::generated::sha256;
use crate::naming::{self, OPERATOR};

/// The data key of the Secret, and the name of the file in the pod.
pub const FILE: &str = "relay.yaml";
/// The most bytes of a settings file: a Secret holds 1 MiB, and its name and labels count.
pub const MOST_BYTES: usize = 900 << 10;
/// How long a relay that leaves still takes requests, so that those who route to it hear of it first.
const DRAIN_DELAY_SECONDS: u32 = 5;

/// A settings file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its text.
    pub text: String,
    /// What relays call it: the first 16 hexadecimal digits of its SHA-256.
    pub revision: String,
}

impl Settings {
    /// Computes the revision of a text.
    pub fn new(text: String) -> Self {
        let mut revision = sha256(&text).to_hex();
        revision.truncate(16);
        Self { text, revision }
    }

    /// Reads the settings that are in a Secret.
    pub fn of(secret: &Secret) -> Option<Self> {
        let bytes = secret.data.as_ref()?.get(FILE)?;
        String::from_utf8(bytes.0.clone()).ok().map(Self::new)
    }
}

/// What the settings hold besides the spec.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// The hash of the token for the admin API.
    pub admin: Option<Sha256Hash>,
    /// Whether pods have IPv6 addresses.
    pub ipv6: bool,
    /// Who may ask.
    pub client_keys: Vec<ClientKeyConfig>,
    /// Who may serve.
    pub worker_credentials: Vec<WorkerCredentialConfig>,
}

/// How long a relay that stops has to finish what runs.
pub fn drain_seconds(relay: &ModelRelay) -> u32 {
    number(relay.spec.drain_seconds, 300)
}

/// The priority bands, highest first.
pub fn priorities(spec: &ModelRelaySpec) -> Vec<PriorityConfig> {
    let mut bands: Vec<_> = spec
        .priorities
        .iter()
        .map(|band| PriorityConfig { name: band.name.clone(), value: band.value })
        .collect();
    bands.sort_by(|one, other| (other.value, &one.name).cmp(&(one.value, &other.name)));
    bands
}

/// Whether clients need a key.
pub fn client_auth(spec: &ModelRelaySpec) -> ClientAuthType {
    spec.client_auth.as_ref().and_then(|auth| auth.kind).unwrap_or_default()
}

/// Puts the settings together. Lists are sorted, so that their order in the spec changes nothing.
///
/// # Errors
/// A field that the API server should have refused.
pub fn config(relay: &ModelRelay, given: Given) -> Result<RelayConfig, Invalid> {
    let spec = &relay.spec;
    let (name, namespace) = (relay.name_any(), relay.namespace().unwrap_or_default());
    let drain_seconds = drain_seconds(relay);
    let mut config = RelayConfig {
        generated_by: Some(OPERATOR.to_owned()),
        listen: listen(given.ipv6, u16::try_from(CLIENT_PORT).expect("the port is a constant")),
        ops_listen: listen(given.ipv6, OPS_PORT),
        replicas_from: Some(format!("{}.{namespace}.svc", naming::relay::workers_service(&name))),
        queue: queue(spec)?,
        priorities: priorities(spec),
        routing: spec.routing.as_ref().map(routing).unwrap_or_default(),
        retries: RetriesConfig {
            max_requeues: number(spec.retries.as_ref().and_then(|retries| retries.max_requeues), 3),
        },
        timeouts: timeouts(spec),
        drain: DrainConfig {
            deadline_seconds: drain_seconds,
            delay_seconds: DRAIN_DELAY_SECONDS.min(drain_seconds),
        },
        models: models(spec),
        limits: limits(spec)?,
        client_auth: ClientAuthConfig {
            kind: Some(match client_auth(spec) {
                ClientAuthType::None => ClientAuth::None,
                ClientAuthType::ApiKeys => ClientAuth::ApiKeys,
            }),
        },
        client_keys: given.client_keys,
        worker_credentials: given.worker_credentials,
        admin: AdminConfig { sha256: given.admin },
        ..RelayConfig::default()
    };
    config.client_keys.sort_by(|one, other| one.id.cmp(&other.id));
    config
        .worker_credentials
        .sort_by(|one, other| (&one.namespace, &one.pool).cmp(&(&other.namespace, &other.pool)));
    Ok(config)
}

/// What a worker of the pool is, for the relay.
pub fn worker_credential(pool: &WorkerPool, token: &str) -> WorkerCredentialConfig {
    let spec = &pool.spec;
    let mut models = spec.models.clone();
    models.sort();
    models.dedup();
    let (max_workers, on_removal) = match spec.kind {
        PoolType::Managed => (None, OnRemoval::Drain),
        PoolType::External => {
            (spec.external.as_ref().and_then(|external| external.max_workers), OnRemoval::Disconnect)
        }
    };
    WorkerCredentialConfig {
        name: Some(pool.name_any()),
        sha256: sha256(token),
        pool: pool.name_any(),
        namespace: pool.namespace(),
        models,
        labels: spec.labels.clone(),
        max_workers: max_workers.and_then(|most| u32::try_from(most).ok()),
        max_concurrent_requests: u32::try_from(spec.max_concurrent_requests).ok(),
        on_removal,
        forward_credentials: false,
    }
}

/// The Secret that holds the settings.
pub fn secret(relay: &ModelRelay, settings: &Settings) -> Secret {
    Secret {
        metadata: meta(relay, naming::relay::settings(&relay.name_any())),
        data: Some([(FILE.to_owned(), ByteString(settings.text.clone().into_bytes()))].into()),
        ..Secret::default()
    }
}

fn listen(ipv6: bool, port: u16) -> SocketAddr {
    let any = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    SocketAddr::new(any, port)
}

fn queue(spec: &ModelRelaySpec) -> Result<QueueConfig, Invalid> {
    let queue = spec.queue.clone().unwrap_or_default();
    let default = QueueConfig::default();
    Ok(QueueConfig {
        max_requests: number(queue.max_requests, default.max_requests),
        max_bytes: bytes("queue.maxBytes", queue.max_bytes.as_ref(), default.max_bytes)?,
        timeout_seconds: number(queue.timeout_seconds, 60),
        no_worker_timeout_seconds: number(queue.no_worker_timeout_seconds, 60),
        keep_alive_seconds: number(queue.keep_alive_seconds, default.keep_alive_seconds),
    })
}

fn limits(spec: &ModelRelaySpec) -> Result<LimitsConfig, Invalid> {
    let limits = spec.limits.clone().unwrap_or_default();
    let default = LimitsConfig::default();
    let max_body_bytes =
        bytes("limits.maxBodyBytes", limits.max_body_bytes.as_ref(), default.max_body_bytes)?;
    Ok(LimitsConfig { max_body_bytes, ..default })
}

fn routing(spec: &RoutingSpec) -> RoutingConfig {
    let default = PrefixHashConfig::default();
    let hash = spec.prefix_hash.clone().unwrap_or_default();
    RoutingConfig {
        strategy: match spec.strategy.unwrap_or_default() {
            RoutingStrategy::LeastLoad => Strategy::LeastLoad,
            RoutingStrategy::PrefixHash => Strategy::PrefixHash,
        },
        prefix_hash: PrefixHashConfig {
            prefix_bytes: hash
                .prefix_bytes
                .and_then(|bytes| u64::try_from(bytes).ok())
                .map_or(default.prefix_bytes, ByteSize),
            max_load_percent: number(hash.max_load_percent, default.max_load_percent),
        },
        session_affinity_header: spec.session_affinity_header.clone(),
    }
}

fn timeouts(spec: &ModelRelaySpec) -> TimeoutsConfig {
    let timeouts = spec.timeouts.clone().unwrap_or_default();
    let default = TimeoutsConfig::default();
    TimeoutsConfig {
        first_byte_seconds: number(timeouts.first_byte_seconds, default.first_byte_seconds),
        stream_idle_seconds: number(timeouts.stream_idle_seconds, default.stream_idle_seconds),
        request_seconds: number(timeouts.request_seconds, default.request_seconds),
    }
}

fn models(spec: &ModelRelaySpec) -> Vec<ModelConfig> {
    let mut models: Vec<_> = spec
        .models
        .iter()
        .map(|model| {
            let target = |target: &crate::api::model_relay::TargetSpec| TargetConfig {
                model: target.model.clone(),
                weight: number(target.weight, 1),
            };
            let mut targets: Vec<_> = model.targets.iter().map(target).collect();
            targets.sort_by(|one, other| one.model.cmp(&other.model));
            ModelConfig { name: model.name.clone(), targets }
        })
        .collect();
    models.sort_by(|one, other| one.name.cmp(&other.name));
    models
}

/// The API server refuses negative numbers.
fn number(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default)
}

fn bytes(field: &str, value: Option<&Quantity>, default: ByteSize) -> Result<ByteSize, Invalid> {
    value.map_or(Ok(default), |value| value.0.parse().map_err(|problem: String| Invalid::new(field, problem)))
}
