//! The engine's DaemonSet and the Service by which a node's worker reaches its own engine.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    Container, PodSecurityContext, PodSpec, PodTemplateSpec, SecurityContext, Service, ServicePort,
    ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::daemon_set::{placement, pull_secrets, runtime_default, tolerations};
use super::{merged, metadata, one_entry};
use crate::canonical::canonical;
use crate::naming::{ENGINE_REVISION, Part, pool};
use crate::worker_pool::validate::{Engine, Managed, Refusal};

const CONTAINER: &str = "engine";

/// Tells versions of an engine apart: a hash of what the user wrote, so that a newer operator, which may render more,
/// replaces no engine. Nor does another order or a default that is spelled out.
pub(in crate::worker_pool) fn revision(engine: &Engine) -> String {
    let written = json!({ "containers": [engine.container], "template": engine.pod_template });
    let digest = Sha256::digest(canonical(&written).to_string());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The engines. Their pods are replaced by the operator, one node after the other.
pub(super) fn daemon_set(managed: &Managed, engine: &Engine) -> Result<DaemonSet, Refusal> {
    let name = &managed.owner.name;
    let (node_selector, affinity) = placement(&managed.nodes);
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(Part::Engine.labels(name)),
            annotations: Some(one_entry(ENGINE_REVISION, revision(engine))),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(pool::engine(name)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            node_selector,
            affinity,
            tolerations: tolerations(managed),
            image_pull_secrets: pull_secrets(managed),
            security_context: Some(PodSecurityContext {
                seccomp_profile: Some(runtime_default()),
                ..PodSecurityContext::default()
            }),
            containers: vec![container(engine)],
            ..PodSpec::default()
        }),
    };
    Ok(DaemonSet {
        metadata: metadata(Part::Engine, pool::engine(name), name),
        spec: Some(DaemonSetSpec {
            selector: LabelSelector {
                match_labels: Some(Part::Engine.selector(name)),
                ..LabelSelector::default()
            },
            template: merged(template, engine.pod_template.as_ref(), "spec.managed.enginePodTemplate")?,
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some(String::from("OnDelete")),
                rolling_update: None,
            }),
            ..DaemonSetSpec::default()
        }),
        ..DaemonSet::default()
    })
}

/// The user's container; what it says of its security goes before ours.
fn container(engine: &Engine) -> Container {
    let given = engine.container.clone();
    let security = given.security_context.clone().unwrap_or_default();
    Container {
        name: CONTAINER.to_owned(),
        security_context: Some(SecurityContext {
            // Privileged containers cannot do without, and the API server refuses the two together.
            allow_privilege_escalation: security
                .allow_privilege_escalation
                .or_else(|| (security.privileged != Some(true)).then_some(false)),
            ..security
        }),
        ..given
    }
}

/// Leads to the engine of the caller's own node. An engine that is not ready is published too: without a local endpoint
/// connections would be dropped instead of refused, and the worker looks after the engine's health itself.
pub(super) fn service(managed: &Managed, engine: &Engine) -> Service {
    let name = &managed.owner.name;
    Service {
        metadata: metadata(Part::Engine, pool::engine(name), name),
        spec: Some(ServiceSpec {
            type_: Some(String::from("ClusterIP")),
            selector: Some(Part::Engine.selector(name)),
            internal_traffic_policy: Some(String::from("Local")),
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![ServicePort {
                name: Some(String::from("http")),
                port: engine.port,
                target_port: Some(IntOrString::Int(engine.port)),
                protocol: Some(String::from("TCP")),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
