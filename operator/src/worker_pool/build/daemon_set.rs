//! The workers' DaemonSet.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
    LocalObjectReference, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use modelrelay_protocol::config::WorkerConfig;
use modelrelay_protocol::wellknown::{LIVEZ_PATH, READYZ_PATH};

use super::settings::{CREDENTIAL_FOLDER, FILE, start_hash};
use super::{OPS_PORT, merged, metadata, one_entry};
use crate::naming::{Part, STARTED_WITH, pool};
use crate::worker_pool::validate::{GPU_LABELS, Managed, Nodes, Refusal};

const CONTAINER: &str = "worker";
const SETTINGS_FOLDER: &str = "/etc/modelrelay/settings";
/// The user of our images.
const USER: i64 = 65532;
/// Readable by the pod's group only.
const SECRET_MODE: i32 = 0o440;

/// A worker on each node, which is replaced only when the next one is connected, as far as both fit on the node.
pub(super) fn workers(managed: &Managed, config: &WorkerConfig) -> Result<DaemonSet, Refusal> {
    let name = &managed.owner.name;
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(Part::Worker.labels(name)),
            annotations: Some(one_entry(STARTED_WITH, start_hash(config))),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(managed)),
    };
    let mut template = merged(template, managed.pod_template.as_ref(), "spec.managed.podTemplate")?;
    let on_host = template.spec.as_mut().is_some_and(adapt_to_host_network);
    Ok(DaemonSet {
        metadata: metadata(Part::Worker, pool::worker(name), name),
        spec: Some(DaemonSetSpec {
            selector: LabelSelector {
                match_labels: Some(Part::Worker.selector(name)),
                ..LabelSelector::default()
            },
            template,
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some(String::from("RollingUpdate")),
                rolling_update: Some(rolling(managed.strategy.max_unavailable, on_host)),
            }),
            ..DaemonSetSpec::default()
        }),
        ..DaemonSet::default()
    })
}

/// The next worker of a node comes before the old one goes, unless both would need the same port of the node.
fn rolling(nodes: i32, on_host: bool) -> RollingUpdateDaemonSet {
    let (surge, unavailable) = if on_host { (0, nodes) } else { (nodes, 0) };
    RollingUpdateDaemonSet {
        max_surge: Some(IntOrString::Int(surge)),
        max_unavailable: Some(IntOrString::Int(unavailable)),
    }
}

/// Pods with the node's network would not ask the cluster's name server, which alone knows the relay. Returns whether it is
/// such a pod.
fn adapt_to_host_network(pod: &mut PodSpec) -> bool {
    if pod.host_network != Some(true) {
        return false;
    }
    pod.dns_policy.get_or_insert_with(|| String::from("ClusterFirstWithHostNet"));
    true
}

fn pod(managed: &Managed) -> PodSpec {
    let name = &managed.owner.name;
    let strategy = managed.strategy;
    let grace = if strategy.wait_for_idle { i64::from(strategy.timeout_seconds) + 30 } else { 30 };
    let (node_selector, affinity) = placement(&managed.nodes);
    PodSpec {
        service_account_name: Some(pool::worker(name)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(grace),
        node_selector,
        affinity,
        tolerations: tolerations(managed),
        image_pull_secrets: pull_secrets(managed),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(runtime_default()),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(managed)],
        volumes: Some(vec![
            secret_volume("settings", pool::settings(name)),
            secret_volume("credential", pool::credential(name)),
        ]),
        ..PodSpec::default()
    }
}

fn container(managed: &Managed) -> Container {
    let probe = |path: &str, period, failures| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(String::from("ops")),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    let requests = [("cpu", "50m"), ("memory", "32Mi")];
    Container {
        name: CONTAINER.to_owned(),
        image: Some(managed.image.clone()),
        image_pull_policy: Some(managed.pull_policy.as_str().to_owned()),
        args: Some(vec![String::from("--config"), format!("{SETTINGS_FOLDER}/{FILE}")]),
        env: Some(vec![from_field("NODE_IP", "status.hostIP"), from_field("NODE_NAME", "spec.nodeName")]),
        ports: Some(vec![ContainerPort {
            name: Some(String::from("ops")),
            container_port: i32::from(OPS_PORT),
            protocol: Some(String::from("TCP")),
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(probe(READYZ_PATH, 2, 2)),
        liveness_probe: Some(probe(LIVEZ_PATH, 10, 3)),
        resources: Some(ResourceRequirements {
            requests: Some(requests.map(|(key, value)| (key.to_owned(), Quantity(value.to_owned()))).into()),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec![String::from("ALL")]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            read_only("settings", SETTINGS_FOLDER),
            read_only("credential", CREDENTIAL_FOLDER),
        ]),
        ..Container::default()
    }
}

fn from_field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn read_only(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

fn secret_volume(name: &str, secret: String) -> Volume {
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            default_mode: Some(SECRET_MODE),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

pub(super) fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: String::from("RuntimeDefault"), ..SeccompProfile::default() }
}

pub(super) fn pull_secrets(managed: &Managed) -> Option<Vec<LocalObjectReference>> {
    let named = managed.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
    (!managed.pull_secrets.is_empty()).then(|| named.collect())
}

pub(super) fn tolerations(managed: &Managed) -> Option<Vec<k8s_openapi::api::core::v1::Toleration>> {
    (!managed.tolerations.is_empty()).then(|| managed.tolerations.clone())
}

/// Returns the node selector and the affinity of the pool's pods.
pub(super) fn placement(
    nodes: &Nodes,
) -> (Option<std::collections::BTreeMap<String, String>>, Option<Affinity>) {
    match nodes {
        Nodes::Labelled(labels) => ((!labels.is_empty()).then(|| labels.clone()), None),
        Nodes::WithGpu => {
            // A node needs to match one of the terms.
            let term = |label: &str| NodeSelectorTerm {
                match_expressions: Some(vec![NodeSelectorRequirement {
                    key: label.to_owned(),
                    operator: String::from("In"),
                    values: Some(vec![String::from("true")]),
                }]),
                ..NodeSelectorTerm::default()
            };
            let required = NodeSelector { node_selector_terms: GPU_LABELS.map(term).into() };
            let affinity = Affinity {
                node_affinity: Some(NodeAffinity {
                    required_during_scheduling_ignored_during_execution: Some(required),
                    ..NodeAffinity::default()
                }),
                ..Affinity::default()
            };
            (None, Some(affinity))
        }
    }
}
