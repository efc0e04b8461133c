//! The settings in force: what the file, the environment and the flags say, in the form the relay works with.
//!
//! [`Settings`] is a snapshot that never changes; [`Live`] holds the one in force and replaces it when a file
//! changes. Parsing and ranges belong to `modelrelay_protocol::config`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use modelrelay_protocol::config::{
    ClientAuth, ClientKeyConfig, OnRemoval, RelayConfig, Secret, Strategy as ConfiguredStrategy,
    WorkerCredentialConfig,
};

use crate::http::headers::AllowList;
use crate::keys::{ClientKey, CredentialTable, KeyTable, WorkerCredential, sha256};
use crate::limits::{KeyLimits, Limiter};
use crate::replicas::Replicas;
use crate::scheduler::{SchedulerConfig, Strategy, Target, TenantId};

mod live;
mod source;

pub use live::{Live, Report, Startable};
use source::Draft;
pub use source::{Given, Overrides, SecretSource, SettingsError, Source};

/// The id, tenant and log name of everybody on an open client port.
pub const ANONYMOUS: &str = "anonymous";
/// The name of the credential that the shared worker secret stands for.
const SHARED_SECRET: &str = "worker-secret";
const DEFAULT_POOL: &str = "default";
pub(crate) const DEFAULT_PRIORITY: &str = "default";

/// One consistent set of settings.
#[derive(Debug)]
pub struct Settings {
    /// What file, environment and flags say together, defaults filled in.
    pub config: RelayConfig,
    /// The first 16 hexadecimal digits of the SHA-256 of the file; `none` without one.
    pub revision: Arc<str>,
    /// Fields of a generated file that this version does not know.
    pub ignored: Vec<String>,
    /// Which request headers go to workers.
    pub allow: AllowList,
    /// Client keys.
    pub keys: KeyTable,
    /// Worker credentials, the shared secret among them.
    pub credentials: CredentialTable,
    aliases: HashMap<Arc<str>, Arc<[Target]>>,
    tenants: Vec<Arc<str>>,
    weights: BTreeMap<TenantId, u32>,
}

impl Settings {
    /// What stands behind an alias; nothing for any other name.
    pub fn targets(&self, alias: &str) -> Option<Arc<[Target]>> {
        self.aliases.get(alias).cloned()
    }

    /// The names of all aliases, in no order.
    pub fn aliases(&self) -> impl Iterator<Item = &Arc<str>> {
        self.aliases.keys()
    }

    /// Whether a model may be served, now or later: an alias or a credential's list names it, or some worker may bring
    /// any model. Otherwise a model that no connected worker serves never will be.
    pub fn admissible(&self, model: &str) -> bool {
        self.aliases.contains_key(model) || self.credentials.allows(model)
    }

    /// The name of a tenant.
    pub fn tenant_name(&self, tenant: TenantId) -> &str {
        let index = usize::try_from(tenant.0).unwrap_or(usize::MAX);
        self.tenants.get(index).map_or(ANONYMOUS, |name| name)
    }

    /// What the scheduler has to know.
    pub fn scheduler(&self) -> SchedulerConfig {
        let max_load_percent = self.config.routing.prefix_hash.max_load_percent;
        SchedulerConfig {
            max_requests: usize::try_from(self.config.queue.max_requests).unwrap_or(usize::MAX),
            max_bytes: self.config.queue.max_bytes.0,
            queue_timeout: self.config.queue.timeout(),
            no_worker_timeout: self.config.queue.no_worker_timeout(),
            max_requeues: self.config.retries.max_requeues,
            tenants: self.weights.clone(),
            strategy: match self.config.routing.strategy {
                ConfiguredStrategy::LeastLoad => Strategy::LeastLoad,
                ConfiguredStrategy::PrefixHash => Strategy::PrefixHash { max_load_percent },
            },
        }
    }
}

/// Turns drafts into settings and remembers what must outlive a change: tenants' numbers and keys' usage.
#[derive(Debug, Default)]
struct Builder {
    tenants: Vec<Arc<str>>,
    limiter: Limiter,
    replicas: Arc<Replicas>,
    had_keys: bool,
}

impl Builder {
    fn build(&mut self, draft: Draft) -> Settings {
        let Draft { config, revision, ignored, worker_secret, open_to_workers } = draft;
        self.replicas.configure(&config);
        let keys = self.key_table(&config);
        let weights =
            config.tenants.iter().map(|tenant| (self.tenant(&tenant.name), tenant.weight)).collect();
        Settings {
            revision,
            ignored,
            allow: AllowList::new(config.headers.allow.iter().map(String::as_str)),
            keys,
            credentials: credential_table(&config, worker_secret.as_ref(), open_to_workers),
            aliases: aliases(&config),
            // Taken last: every tenant of these settings has its number by now.
            tenants: self.tenants.clone(),
            weights,
            config,
        }
    }

    fn key_table(&mut self, config: &RelayConfig) -> KeyTable {
        let ids: HashSet<Arc<str>> = config.client_keys.iter().map(|key| key.id.as_str().into()).collect();
        self.had_keys |= !ids.is_empty();
        // The port that keys have closed stays closed when the last one is revoked.
        let open = match config.client_auth.kind {
            Some(ClientAuth::None) => true,
            Some(ClientAuth::ApiKeys) => false,
            None => !self.had_keys,
        };
        self.limiter.keep_only(&ids);
        let keys: Vec<_> =
            config.client_keys.iter().map(|key| (key.sha256, self.client_key(config, key))).collect();
        KeyTable::new(keys, open.then(|| self.anonymous(config)))
    }

    fn client_key(&mut self, config: &RelayConfig, key: &ClientKeyConfig) -> ClientKey {
        let id: Arc<str> = key.id.as_str().into();
        let tenant = self.tenant(key.tenant.as_deref().unwrap_or(&key.id));
        let (priority, band) = band(config, key.priority.as_deref());
        ClientKey {
            usage: self.limiter.usage(&id),
            id,
            tenant,
            tenant_name: self.tenant_name(tenant),
            priority,
            band,
            limits: KeyLimits {
                requests_per_minute: key.requests_per_minute,
                tokens_per_minute: key.tokens_per_minute,
                max_concurrent: key.max_concurrent_requests,
            },
            replicas: self.replicas.clone(),
            models: key.models.iter().map(|model| model.as_str().into()).collect(),
        }
    }

    fn anonymous(&mut self, config: &RelayConfig) -> ClientKey {
        let tenant = self.tenant(ANONYMOUS);
        let (priority, band) = band(config, None);
        ClientKey {
            id: ANONYMOUS.into(),
            tenant,
            tenant_name: self.tenant_name(tenant),
            priority,
            band,
            limits: KeyLimits::default(),
            replicas: self.replicas.clone(),
            models: HashSet::new(),
            usage: Arc::default(),
        }
    }

    /// The number of a tenant; the same one for as long as the process lives.
    fn tenant(&mut self, name: &str) -> TenantId {
        let known = self.tenants.iter().position(|tenant| **tenant == *name);
        let index = known.unwrap_or_else(|| {
            self.tenants.push(name.into());
            self.tenants.len() - 1
        });
        TenantId(u32::try_from(index).unwrap_or(u32::MAX))
    }

    fn tenant_name(&self, tenant: TenantId) -> Arc<str> {
        let index = usize::try_from(tenant.0).unwrap_or(usize::MAX);
        self.tenants.get(index).cloned().unwrap_or_else(|| ANONYMOUS.into())
    }
}

fn band(config: &RelayConfig, name: Option<&str>) -> (Arc<str>, i32) {
    let name = name.unwrap_or(DEFAULT_PRIORITY);
    let value =
        config.priorities.iter().find(|priority| priority.name == name).map_or(0, |priority| priority.value);
    (name.into(), value)
}

fn aliases(config: &RelayConfig) -> HashMap<Arc<str>, Arc<[Target]>> {
    let alias = |model: &modelrelay_protocol::config::ModelConfig| {
        let targets = model.targets.iter();
        let targets =
            targets.map(|target| Target { model: target.model.as_str().into(), weight: target.weight });
        (model.name.as_str().into(), targets.collect())
    };
    config.models.iter().map(alias).collect()
}

fn credential_table(config: &RelayConfig, worker_secret: Option<&Secret>, open: bool) -> CredentialTable {
    let mut entries: Vec<_> = config.worker_credentials.iter().map(listed_credential).collect();
    if let Some(secret) = worker_secret {
        let shared = any_worker(secret.expose());
        // An entry of the file says more about the same secret.
        if entries.iter().all(|entry| !entry.is_same(&shared)) {
            entries.push(shared);
        }
    }
    CredentialTable::new(entries, open.then(|| WorkerCredential { name: ANONYMOUS.into(), ..any_worker("") }))
}

fn listed_credential(entry: &WorkerCredentialConfig) -> WorkerCredential {
    WorkerCredential {
        name: entry.name.as_ref().unwrap_or(&entry.pool).as_str().into(),
        pool: entry.pool.as_str().into(),
        namespace: entry.namespace.as_deref().map(Into::into),
        labels: entry.labels.clone(),
        max_workers: entry.max_workers,
        max_slots: entry.max_concurrent_requests,
        on_removal: entry.on_removal,
        forward_credentials: entry.forward_credentials,
        models: entry.models.iter().map(|model| model.as_str().into()).collect(),
        hash: entry.sha256,
    }
}

fn any_worker(secret: &str) -> WorkerCredential {
    WorkerCredential {
        name: SHARED_SECRET.into(),
        pool: DEFAULT_POOL.into(),
        namespace: None,
        labels: BTreeMap::new(),
        max_workers: None,
        max_slots: None,
        on_removal: OnRemoval::Disconnect,
        forward_credentials: false,
        models: Vec::new(),
        hash: sha256(secret),
    }
}

#[cfg(test)]
mod tests;
