//! Every child of a pool, from what the spec means. Nothing here reads or writes the cluster.

mod daemon_set;
mod engine;
mod join;
mod network_policy;
mod settings;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{PodTemplateSpec, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::ObjectMeta;
use modelrelay_protocol::config::Sha256Hash;

use super::validate::{Backend, Managed, Refusal};
use crate::api::condition::reason;
use crate::naming::{Part, pool};
use crate::pod_template;

pub(super) use engine::revision as engine_revision;
pub(super) use join::join;

/// Where a worker's operations port listens.
pub(super) const OPS_PORT: u16 = 8082;

/// What the operator writes for a Managed pool, generated Secrets aside.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Children {
    pub(super) account: ServiceAccount,
    pub(super) settings: Secret,
    pub(super) policy: NetworkPolicy,
    pub(super) workers: DaemonSet,
    pub(super) engine: Option<EngineChildren>,
}

/// What it writes for the engine, if it runs that.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EngineChildren {
    pub(super) account: ServiceAccount,
    pub(super) service: Service,
    pub(super) policy: NetworkPolicy,
    pub(super) engines: DaemonSet,
}

/// Renders everything. `admin` is the hash of the token for the workers' admin API.
///
/// # Errors
/// A pod template overrides what the operator relies on.
pub(super) fn build(managed: &Managed, admin: Sha256Hash) -> Result<Children, Refusal> {
    let config = settings::config(managed, admin);
    let name = &managed.owner.name;
    let engine = match &managed.backend {
        Backend::Url(_) => None,
        Backend::Engine(engine) => Some(EngineChildren {
            account: account(Part::Engine, &pool::engine(name), name),
            service: engine::service(managed, engine),
            policy: network_policy::engine(managed, engine),
            engines: engine::daemon_set(managed, engine)?,
        }),
    };
    Ok(Children {
        account: account(Part::Worker, &pool::worker(name), name),
        settings: settings::secret(managed, &config),
        policy: network_policy::worker(managed),
        workers: daemon_set::workers(managed, &config)?,
        engine,
    })
}

/// Name and labels of a child; namespace and owner are set where it is applied.
fn metadata(part: Part, name: String, pool: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name), labels: Some(part.labels(pool)), ..ObjectMeta::default() }
}

/// An identity of its own with no rights and no token.
fn account(part: Part, name: &str, pool: &str) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(part, name.to_owned(), pool),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// Puts the user's pod template over ours; `at` is where it stands in the spec.
fn merged(
    template: PodTemplateSpec,
    overlay: Option<&PodTemplateSpec>,
    at: &str,
) -> Result<PodTemplateSpec, Refusal> {
    pod_template::merged(template, overlay, at)
        .map_err(|field| Refusal::new(reason::PROTECTED_FIELD, field.to_string()))
}

fn one_entry(key: &str, value: String) -> BTreeMap<String, String> {
    [(key.to_owned(), value)].into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use serde::Serialize;
    use serde_json::Value;

    use super::*;
    use crate::options::Options;
    use crate::worker_pool::validate::tests::{managed, options, parsed};
    use crate::worker_pool::validate::{Valid, validate};

    const ADMIN: Sha256Hash = Sha256Hash([0xab; 32]);

    /// YAML that people can read: data of Secrets as the text that it is.
    fn document(object: &impl Serialize) -> String {
        let mut value = serde_json::to_value(object).unwrap();
        if let Some(data) = value.get("data").cloned() {
            let data: BTreeMap<String, k8s_openapi::ByteString> = serde_json::from_value(data).unwrap();
            let text = |bytes: k8s_openapi::ByteString| Value::String(String::from_utf8(bytes.0).unwrap());
            value["data (decoded)"] =
                Value::Object(data.into_iter().map(|(key, bytes)| (key, text(bytes))).collect());
            value.as_object_mut().unwrap().remove("data");
        }
        serde_yaml::to_string(&value).unwrap()
    }

    fn documents(children: &Children) -> String {
        let Children { account, settings, policy, workers, engine } = children;
        let mut all = vec![document(account), document(settings), document(policy), document(workers)];
        if let Some(EngineChildren { account, service, policy, engines }) = engine {
            all.extend([document(account), document(service), document(policy), document(engines)]);
        }
        all.join("---\n")
    }

    fn assert_golden(name: &str, spec: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let now = documents(&build(&managed(spec), ADMIN).unwrap());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &now).unwrap();
        }
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(now, before, "{name} is out of date; UPDATE_GOLDEN=1 rewrites it");
    }

    #[test]
    fn workers_on_gpu_nodes_beside_an_engine_that_is_there() {
        assert_golden(
            "pool-minimal.yaml",
            "{ relayRef: { name: main }, backend: { url: 'http://$(NODE_IP):8000' } }",
        );
    }

    #[test]
    fn an_engine_on_each_node_with_its_service() {
        assert_golden(
            "pool-engine.yaml",
            "
            relayRef: { name: main, namespace: relays }
            models: [qwen3-30b]
            maxConcurrentRequests: 32
            backend:
              container:
                image: vllm/vllm-openai:v0.11.0
                args: [--model, Qwen/Qwen3-30B-A3B, --port, '8000']
                ports: [{ name: http, containerPort: 8000 }]
                resources: { limits: { nvidia.com/gpu: 1 } }
                readinessProbe: { httpGet: { path: /health, port: http } }
                volumeMounts: [{ name: shm, mountPath: /dev/shm }]
            health: { path: /health, intervalSeconds: 5 }
            managed:
              nodeSelector: { gpu: a100 }
              tolerations: []
              updateStrategy: { maxUnavailable: 2, timeoutSeconds: 600 }
              enginePodTemplate:
                metadata: { labels: { team: ml } }
                spec:
                  runtimeClassName: nvidia
                  volumes: [{ name: shm, emptyDir: { medium: Memory } }]
            ",
        );
    }

    #[test]
    fn hasty_workers_with_an_image_and_a_pod_template_of_their_own() {
        assert_golden(
            "pool-template.yaml",
            "
            relayRef: { name: main }
            backend: { service: { name: ollama, port: 11434 } }
            managed:
              nodeSelector: {}
              updateStrategy: { waitForIdle: false }
              image: { repository: mirror.example.com/worker, tag: dev, pullPolicy: Always }
              podTemplate:
                metadata: { labels: { team: ml }, annotations: { note: mine } }
                spec:
                  priorityClassName: high
                  tolerations: [{ operator: Exists }]
                  containers:
                    - name: worker
                      resources: { limits: { memory: 128Mi } }
                      env: [{ name: RUST_LOG, value: debug }]
            ",
        );
    }

    #[test]
    fn a_worker_in_the_nodes_network_leaves_before_the_next_one_comes() {
        let workers = |pod: &str| {
            let spec = format!(
                "{{ relayRef: {{ name: main }}, backend: {{ url: 'http://127.0.0.1:11434' }}, managed: {{ \
                 updateStrategy: {{ maxUnavailable: 2 }}, podTemplate: {{ spec: {{ {pod} }} }} }} }}"
            );
            let spec = build(&managed(&spec), ADMIN).unwrap().workers.spec.unwrap();
            let rolling = spec.update_strategy.unwrap().rolling_update.unwrap();
            let numbers = [rolling.max_surge, rolling.max_unavailable].map(|number| match number {
                Some(IntOrString::Int(number)) => number,
                other => panic!("{other:?}"),
            });
            (numbers, spec.template.spec.unwrap().dns_policy)
        };
        assert_eq!(workers("hostNetwork: false"), ([2, 0], None));
        assert_eq!(workers("hostNetwork: true"), ([0, 2], Some("ClusterFirstWithHostNet".to_owned())));
        assert_eq!(workers("hostNetwork: true, dnsPolicy: Default"), ([0, 2], Some("Default".to_owned())));
    }

    #[test]
    fn an_operator_of_another_version_replaces_workers_that_name_no_image_and_no_engine() {
        let pods = |version: &str, image: &str| {
            let spec = format!(
                "{{ relayRef: {{ name: main }}, backend: {{ container: {{ image: e, ports: [{{ containerPort: 1 }}] }} }}{image} }}"
            );
            let options = Options { worker_image: format!("worker:{version}"), ..options() };
            let Ok(Valid::Managed(managed)) = validate(&parsed(&spec), &options) else { panic!("{spec}") };
            let children = build(&managed, ADMIN).unwrap();
            (children.workers, children.engine.unwrap().engines)
        };
        let (old, new) = (pods("1", ""), pods("2", ""));
        assert_ne!(old.0, new.0);
        assert_eq!(old.1, new.1);
        let pinned = ", managed: { image: { repository: mirror, tag: '1' } }";
        assert_eq!(pods("1", pinned), pods("2", pinned));
    }

    #[test]
    fn the_engine_is_privileged_only_where_the_user_says_so() {
        let engine = |security: &str| {
            let spec = format!(
                "{{ relayRef: {{ name: main }}, backend: {{ container: {{ image: e, ports: [{{ containerPort: 1 }}]{security} }} }} }}"
            );
            let children = build(&managed(&spec), ADMIN).unwrap();
            let pod = children.engine.unwrap().engines.spec.unwrap().template.spec.unwrap();
            let security = pod.containers[0].security_context.clone().unwrap();
            (security.privileged, security.allow_privilege_escalation)
        };
        assert_eq!(engine(""), (None, Some(false)));
        assert_eq!(engine(", securityContext: { allowPrivilegeEscalation: true }"), (None, Some(true)));
        assert_eq!(engine(", securityContext: { privileged: true }"), (Some(true), None));
    }

    #[test]
    fn an_engine_changes_with_what_the_user_wrote_of_it_and_with_nothing_else() {
        let revision = |more: &str, port: &str| {
            let spec = format!(
                "{{ relayRef: {{ name: main }}, backend: {{ container: {{ image: e, ports: [{{ containerPort: 1 {port} }}] }} }}{more} }}"
            );
            match managed(&spec).backend {
                Backend::Engine(engine) => engine_revision(&engine),
                Backend::Url(url) => panic!("{url}"),
            }
        };
        let before = revision("", "");
        assert_eq!(
            revision(", models: [a], managed: { nodeSelector: { gpu: a }, image: { tag: new } }", ""),
            before
        );
        assert_eq!(revision(", managed: { enginePodTemplate: { spec: { hostIPC: false } } }", ""), before);
        assert_eq!(revision("", ", protocol: TCP"), before);
        assert_ne!(revision(", managed: { enginePodTemplate: { spec: { hostIPC: true } } }", ""), before);
        assert_ne!(revision("", ", hostPort: 1"), before);
    }

    #[test]
    fn a_template_that_overrides_what_the_operator_relies_on_is_refused() {
        let spec = "{ relayRef: { name: main }, backend: { url: 'http://x:1' }, \
                     managed: { podTemplate: { spec: { terminationGracePeriodSeconds: 1 } } } }";
        let refusal = build(&managed(spec), ADMIN).unwrap_err();
        assert_eq!(refusal.reason, reason::PROTECTED_FIELD);
        assert!(
            refusal
                .message
                .starts_with("spec.managed.podTemplate.spec.terminationGracePeriodSeconds is set by"),
            "{}",
            refusal.message
        );
    }
}
