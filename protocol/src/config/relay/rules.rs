//! What the relay's settings have to keep to: ranges and relations.

use super::super::check::{self, Checked, Invalid};
use super::super::values::{ByteSize, is_key_id};
use super::{ClientAuth, DEFAULT_PRIORITY, RelayConfig};

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

impl RelayConfig {
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

/// Whether an entry of `headers.allow` means a header; `header` is in lower case.
fn covers(entry: &str, header: &str) -> bool {
    let entry = entry.to_ascii_lowercase();
    entry.strip_suffix('*').map_or(entry == header, |prefix| header.starts_with(prefix))
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
