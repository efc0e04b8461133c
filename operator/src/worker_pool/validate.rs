//! From a spec to values that cannot be wrong. What the API server's own rules refuse is refused here too: the operator may
//! meet objects that an older CRD let in.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodTemplateSpec, Toleration};
use modelrelay_protocol::config::HealthConfig;

use super::fetch::References;
use crate::api::condition::reason;
use crate::api::worker_pool::{BackendSpec, HealthSpec, ManagedSpec, PoolType, UpdateStrategySpec};
use crate::api::{PullPolicy, WorkerPool};
use crate::apply::Owner;
use crate::model_relay::access::Allowed;
use crate::naming::{pool, relay};
use crate::options::{Options, image};
use crate::triggers::relay_of;

/// Where relays listen for workers.
const RELAY_PORT: u16 = 8080;

/// Labels by which GPU discovery marks nodes.
pub(super) const GPU_LABELS: [&str; 3] =
    ["nvidia.com/gpu.present", "feature.node.kubernetes.io/amd-gpu", "intel.feature.node.kubernetes.io/gpu"];
/// Taints that GPU nodes usually carry.
const GPU_TAINTS: [&str; 4] = ["nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe"];

/// Why the operator does not act on a spec; only a change of something can help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// One of [`reason`].
    pub(super) reason: &'static str,
    /// What is wrong, and what would be right.
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(reason::INVALID, message)
    }
}

/// A pool of either type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Valid {
    Managed(Box<Managed>),
    External(External),
}

/// Workers that the operator runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Managed {
    pub(super) owner: Owner,
    /// Each of its addresses is a relay.
    pub(super) relay_url: String,
    pub(super) backend: Backend,
    /// In order, each once.
    pub(super) models: Vec<String>,
    pub(super) slots: u32,
    pub(super) health: HealthConfig,
    pub(super) nodes: Nodes,
    /// In an order of their own, so that a new order in the spec changes nothing.
    pub(super) tolerations: Vec<Toleration>,
    pub(super) strategy: Strategy,
    pub(super) image: String,
    pub(super) pull_policy: PullPolicy,
    pub(super) pull_secrets: Vec<String>,
    pub(super) pod_template: Option<PodTemplateSpec>,
}

/// What stands behind the workers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Backend {
    /// Somebody else runs it.
    Url(String),
    /// The operator runs it.
    Engine(Box<Engine>),
}

/// An inference server that the operator runs on each node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Engine {
    pub(super) container: Container,
    pub(super) port: i32,
    pub(super) pod_template: Option<PodTemplateSpec>,
}

/// Which nodes run a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Nodes {
    /// Those with any of [`GPU_LABELS`].
    WithGpu,
    /// Those with all of these labels.
    Labelled(BTreeMap<String, String>),
}

impl Nodes {
    /// The labels, for people.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::WithGpu => GPU_LABELS.map(|label| format!("{label}=true")).join(" or "),
            Self::Labelled(labels) if labels.is_empty() => String::from("any node"),
            Self::Labelled(labels) => {
                labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

/// How workers and engines are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strategy {
    pub(super) max_unavailable: i32,
    pub(super) wait_for_idle: bool,
    pub(super) timeout_seconds: i32,
}

/// Boxes outside that join.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct External {
    pub(super) owner: Owner,
    /// What a box may declare at most.
    pub(super) slots: u32,
    /// The worker's image, for those who run it in a container.
    pub(super) image: String,
}

/// Reads a spec.
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn validate(object: &WorkerPool, options: &Options) -> Result<Valid, Refusal> {
    let owner = Owner::of(object);
    let spec = &object.spec;
    let slots = u32::try_from(spec.max_concurrent_requests).ok().filter(|slots| *slots > 0);
    let slots = slots.ok_or_else(|| Refusal::invalid("spec.maxConcurrentRequests must be at least 1"))?;
    match spec.kind {
        PoolType::External => {
            if spec.backend.is_some() || spec.health.is_some() || spec.managed.is_some() {
                return Err(Refusal::invalid(
                    "spec.backend, spec.health and spec.managed are for type Managed: boxes outside bring their own; remove them",
                ));
            }
            Ok(Valid::External(External { owner, slots, image: options.worker_image.clone() }))
        }
        PoolType::Managed => {
            if spec.external.is_some() {
                return Err(Refusal::invalid("spec.external is for type External; remove it"));
            }
            let managed = spec.managed.clone().unwrap_or_default();
            let mut models = spec.models.clone();
            models.sort();
            models.dedup();
            let (relay_namespace, relay_name) = relay_of(object);
            let service = relay::workers_service(&relay_name);
            Ok(Valid::Managed(Box::new(Managed {
                relay_url: format!("http://{service}.{relay_namespace}.svc:{RELAY_PORT}"),
                backend: backend(spec.backend.as_ref(), &managed, &owner)?,
                models,
                slots,
                health: health(spec.health.as_ref()),
                nodes: managed.node_selector.map_or(Nodes::WithGpu, Nodes::Labelled),
                tolerations: tolerations(managed.tolerations),
                strategy: strategy(managed.update_strategy.as_ref()),
                image: image(managed.image.as_ref(), &options.worker_image),
                pull_policy: managed
                    .image
                    .and_then(|image| image.pull_policy)
                    .unwrap_or(PullPolicy::IfNotPresent),
                pull_secrets: options.image_pull_secrets.clone(),
                pod_template: managed.pod_template,
                owner,
            })))
        }
    }
}

fn backend(spec: Option<&BackendSpec>, managed: &ManagedSpec, owner: &Owner) -> Result<Backend, Refusal> {
    let members = "spec.backend must have exactly one of url, service and container";
    let Some(spec) = spec else { return Err(Refusal::invalid(members)) };
    if spec.container.is_none() && managed.engine_pod_template.is_some() {
        return Err(Refusal::invalid(
            "spec.managed.enginePodTemplate is for pools with spec.backend.container; remove it",
        ));
    }
    match (&spec.url, &spec.service, &spec.container) {
        (Some(url), None, None) => Ok(Backend::Url(url.clone())),
        (None, Some(service), None) => {
            Ok(Backend::Url(format!("http://{}.{}.svc:{}", service.name, owner.namespace, service.port)))
        }
        (None, None, Some(container)) => Ok(Backend::Engine(Box::new(Engine {
            port: engine_port(container)?,
            container: container.clone(),
            pod_template: managed.engine_pod_template.clone(),
        }))),
        _ => Err(Refusal::invalid(members)),
    }
}

/// The port named `http`, else the only one.
fn engine_port(container: &Container) -> Result<i32, Refusal> {
    let ports = container.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some("http"));
    match (named, ports) {
        (Some(port), _) | (None, [port]) => Ok(port.container_port),
        (None, _) => Err(Refusal::invalid(
            "spec.backend.container.ports must have one named http, or only one: the worker calls the engine there",
        )),
    }
}

fn health(spec: Option<&HealthSpec>) -> HealthConfig {
    let default = HealthConfig::default();
    let Some(HealthSpec { path, interval_seconds, failure_threshold, startup_timeout_seconds }) = spec else {
        return default;
    };
    HealthConfig {
        path: path.clone(),
        interval_seconds: unsigned(*interval_seconds).unwrap_or(default.interval_seconds),
        failure_threshold: unsigned(*failure_threshold).unwrap_or(default.failure_threshold),
        startup_timeout_seconds: unsigned(*startup_timeout_seconds)
            .unwrap_or(default.startup_timeout_seconds),
    }
}

fn unsigned(number: Option<i32>) -> Option<u32> {
    number.and_then(|number| u32::try_from(number).ok())
}

fn strategy(spec: Option<&UpdateStrategySpec>) -> Strategy {
    let spec = spec.cloned().unwrap_or_default();
    Strategy {
        max_unavailable: spec.max_unavailable.unwrap_or(1),
        wait_for_idle: spec.wait_for_idle.unwrap_or(true),
        timeout_seconds: spec.timeout_seconds.unwrap_or(900),
    }
}

fn tolerations(spec: Option<Vec<Toleration>>) -> Vec<Toleration> {
    let mut all = spec.unwrap_or_else(|| {
        let exists = |key: &str| Toleration {
            key: Some(key.to_owned()),
            operator: Some(String::from("Exists")),
            ..Toleration::default()
        };
        GPU_TAINTS.map(exists).into()
    });
    all.sort_by_cached_key(|toleration| serde_json::to_string(toleration).unwrap_or_default());
    all.dedup();
    all
}

/// Says whether what a pool refers to can be used, and returns the address for boxes outside, if the relay has one.
///
/// # Errors
/// The first thing that cannot.
pub(super) fn resolve(object: &WorkerPool, found: &References) -> Result<Option<String>, Refusal> {
    let (namespace, name) = relay_of(object);
    let Some((relay, allowed)) = &found.relay else {
        return Err(Refusal::new(
            reason::RELAY_NOT_FOUND,
            format!("ModelRelay \"{name}\" does not exist in namespace \"{namespace}\"; create it there"),
        ));
    };
    let own = &Owner::of(object).namespace;
    match allowed {
        Allowed::Yes => {}
        Allowed::No => {
            return Err(Refusal::new(
                reason::NOT_ALLOWED,
                format!(
                    "ModelRelay \"{name}\" in namespace \"{namespace}\" takes no pools of namespace \"{own}\"; \
                     allow it in its spec.allowedWorkerPools.namespaces"
                ),
            ));
        }
        Allowed::NamespacesNotReadable => {
            return Err(Refusal::new(
                reason::NAMESPACES_NOT_READABLE,
                format!(
                    "ModelRelay \"{name}\" chooses namespaces by label, which this operator may not read; \
                     use from: Same or All there"
                ),
            ));
        }
    }
    let external_url = relay.spec.exposure.as_ref().map(|exposure| exposure.external_url.clone());
    if object.spec.kind == PoolType::External && external_url.is_none() {
        return Err(Refusal::new(
            reason::EXTERNAL_URL_MISSING,
            format!(
                "ModelRelay \"{name}\" has no spec.exposure.externalURL, so boxes outside would not know where to dial; \
                 set it there"
            ),
        ));
    }
    Ok(external_url)
}

/// Says what is missing without keeping the pool from running: a Service may come later, and workers find it then.
pub(super) fn missing(object: &WorkerPool, found: &References) -> Option<Refusal> {
    let service = object.spec.backend.as_ref()?.service.as_ref()?;
    (found.service == Some(false)).then(|| {
        let message = format!("Service \"{}\" of spec.backend does not exist here; create it", service.name);
        Refusal::new(reason::SERVICE_NOT_FOUND, message)
    })
}

impl Managed {
    /// Where the worker finds its backend.
    pub(super) fn backend_url(&self) -> String {
        match &self.backend {
            Backend::Url(url) => url.clone(),
            Backend::Engine(engine) => {
                let service = pool::engine(&self.owner.name);
                format!("http://{service}.{}.svc:{}", self.owner.namespace, engine.port)
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::api::ModelRelay;
    use crate::cache::Scope;

    pub(in crate::worker_pool) fn options() -> Options {
        Options {
            scope: Scope::Cluster,
            pod_name: None,
            namespace: String::from("modelrelay-system"),
            relay_image: String::from("registry.example.com/modelrelay/relay:1.2.3"),
            worker_image: String::from("registry.example.com/modelrelay/worker:1.2.3"),
            image_pull_secrets: Vec::new(),
        }
    }

    pub(in crate::worker_pool) fn parsed(spec: &str) -> WorkerPool {
        let spec = serde_yaml::from_str(spec).unwrap();
        let mut pool = WorkerPool::new("a100", spec);
        pool.metadata.namespace = Some(String::from("inference"));
        pool.metadata.uid = Some(String::from("0000-uid"));
        pool.metadata.generation = Some(1);
        pool
    }

    pub(in crate::worker_pool) fn managed(spec: &str) -> Managed {
        match validate(&parsed(spec), &options()) {
            Ok(Valid::Managed(managed)) => *managed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn restated_defaults_and_other_orders_mean_the_same() {
        let short = managed("{ relayRef: { name: main }, models: [b, a], backend: { url: 'http://x:1' } }");
        let long = managed(
            "
            relayRef: { name: main, namespace: inference }
            type: Managed
            models: [a, b]
            maxConcurrentRequests: 8
            backend: { url: 'http://x:1' }
            health: { intervalSeconds: 10, failureThreshold: 3, startupTimeoutSeconds: 1800 }
            managed:
              updateStrategy: { maxUnavailable: 1, waitForIdle: true, timeoutSeconds: 900 }
              image: { pullPolicy: IfNotPresent }
              tolerations:
                - { key: nvidia.com/gpu, operator: Exists }
                - { key: gpu.intel.com/xe, operator: Exists }
                - { key: gpu.intel.com/i915, operator: Exists }
                - { key: amd.com/gpu, operator: Exists }
            ",
        );
        assert_eq!(short, long);
        assert_eq!(short.relay_url, "http://main-relay-workers.inference.svc:8080");
    }

    #[test]
    fn the_backend_is_one_address_whatever_it_is() {
        let url = |backend: &str| {
            managed(&format!("{{ relayRef: {{ name: main }}, backend: {backend} }}")).backend_url()
        };
        assert_eq!(url("{ url: 'http://$(NODE_IP):8000' }"), "http://$(NODE_IP):8000");
        assert_eq!(url("{ service: { name: vllm, port: 8000 } }"), "http://vllm.inference.svc:8000");
        let only = "{ container: { image: e, ports: [{ containerPort: 7 }] } }";
        assert_eq!(url(only), "http://a100-engine.inference.svc:7");
        let named =
            "{ container: { image: e, ports: [{ containerPort: 7 }, { name: http, containerPort: 8 }] } }";
        assert_eq!(url(named), "http://a100-engine.inference.svc:8");
    }

    #[test]
    fn what_the_api_server_should_have_refused_is_refused_with_what_would_be_right() {
        let table = [
            ("{ relayRef: { name: m } }", "exactly one of url, service and container"),
            ("{ relayRef: { name: m }, backend: {} }", "exactly one of url, service and container"),
            (
                "{ relayRef: { name: m }, backend: { url: 'http://x', service: { name: s, port: 1 } } }",
                "exactly one of",
            ),
            ("{ relayRef: { name: m }, backend: { container: { image: e } } }", "one named http"),
            (
                "{ relayRef: { name: m }, backend: { url: 'http://x' }, managed: { enginePodTemplate: {} } }",
                "enginePodTemplate is for pools with spec.backend.container",
            ),
            (
                "{ relayRef: { name: m }, backend: { url: 'http://x' }, external: {} }",
                "spec.external is for type External",
            ),
            (
                "{ relayRef: { name: m }, type: External, backend: { url: 'http://x' } }",
                "are for type Managed",
            ),
            (
                "{ relayRef: { name: m }, type: External, maxConcurrentRequests: 0 }",
                "spec.maxConcurrentRequests must be at least 1",
            ),
        ];
        for (spec, expected) in table {
            let refusal = validate(&parsed(spec), &options()).unwrap_err();
            assert_eq!(refusal.reason, reason::INVALID, "{spec}");
            assert!(refusal.message.contains(expected), "{spec}: {}", refusal.message);
        }
    }

    #[test]
    fn what_a_pool_refers_to_must_be_there_and_let_it() {
        let relay = |exposure: &str| -> Arc<ModelRelay> {
            let mut relay = ModelRelay::new("main", serde_yaml::from_str(exposure).unwrap());
            relay.metadata.namespace = Some(String::from("inference"));
            Arc::new(relay)
        };
        let inside = relay("{}");
        let outside = relay("{ exposure: { externalURL: 'https://relay.example.com' } }");
        let pool = |kind: &str| parsed(&format!("{{ relayRef: {{ name: main }}, type: {kind} }}"));
        let table = [
            ("Managed", None, Err(reason::RELAY_NOT_FOUND)),
            ("Managed", Some((&inside, Allowed::No)), Err(reason::NOT_ALLOWED)),
            (
                "Managed",
                Some((&inside, Allowed::NamespacesNotReadable)),
                Err(reason::NAMESPACES_NOT_READABLE),
            ),
            ("Managed", Some((&inside, Allowed::Yes)), Ok(None)),
            ("External", Some((&inside, Allowed::Yes)), Err(reason::EXTERNAL_URL_MISSING)),
            ("External", Some((&outside, Allowed::Yes)), Ok(Some("https://relay.example.com"))),
        ];
        for (kind, relay, expected) in table {
            let relay = relay.map(|(relay, allowed)| (relay.clone(), allowed));
            let found = References { relay, service: None };
            let resolved = resolve(&pool(kind), &found);
            let words = resolved.as_ref().map(Option::as_deref).map_err(|refusal| refusal.reason);
            assert_eq!(words, expected);
        }
    }

    #[test]
    fn a_missing_service_is_told_where_it_is_known_to_be_missing() {
        let pool = parsed("{ relayRef: { name: main }, backend: { service: { name: vllm, port: 80 } } }");
        for (service, missed) in [(Some(false), true), (Some(true), false), (None, false)] {
            assert_eq!(missing(&pool, &References { relay: None, service }).is_some(), missed);
        }
    }

    #[test]
    fn nodes_are_described_by_their_labels() {
        let some = Nodes::Labelled([("a", "1"), ("b", "2")].map(|(k, v)| (k.into(), v.into())).into());
        assert_eq!(some.describe(), "a=1, b=2");
        assert_eq!(Nodes::Labelled(BTreeMap::new()).describe(), "any node");
        assert!(Nodes::WithGpu.describe().starts_with("nvidia.com/gpu.present=true or "));
    }
}
