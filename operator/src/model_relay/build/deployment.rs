//! The relay's Deployment.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, HTTPGetAction, LocalObjectReference, PodSecurityContext, PodSpec,
    PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
    TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;
use modelrelay_protocol::wellknown::{LIVEZ_PATH, READYZ_PATH};

use super::{CLIENT_PORT, HTTP, OPS, OPS_PORT, SETTINGS_FOLDER, pods, settings, workload};
use crate::api::ModelRelay;
use crate::naming::{self, Part};
use crate::options::{self, Options};

/// The name of the relay's own container.
pub const CONTAINER: &str = "relay";
const SETTINGS: &str = "settings";
/// A user without a name in any image.
const USER: i64 = 65532;
/// What the relay needs between its own deadline and the end of the process.
const EXIT_SECONDS: i64 = 15;

/// The replicas that the spec asks for; nothing when an autoscaler chooses.
pub fn replicas(relay: &ModelRelay) -> Option<i32> {
    match relay.spec.scaling {
        Some(_) => None,
        None => Some(relay.spec.replicas.unwrap_or(2)),
    }
}

/// Puts the Deployment around its template.
pub fn deployment(relay: &ModelRelay, template: PodTemplateSpec) -> Deployment {
    let rolling = RollingUpdateDeployment {
        max_unavailable: Some(IntOrString::Int(0)),
        ..RollingUpdateDeployment::default()
    };
    Deployment {
        metadata: workload(relay),
        spec: Some(DeploymentSpec {
            replicas: replicas(relay),
            selector: pods(relay),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(rolling),
            }),
            template,
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

/// The generated pod template. It names the settings and holds nothing of them: a change rolls nothing.
pub fn template(relay: &ModelRelay, options: &Options) -> PodTemplateSpec {
    let name = relay.name_any();
    let pull_secrets: Vec<_> =
        options.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect();
    let spec = PodSpec {
        containers: vec![container(relay, options)],
        service_account_name: Some(naming::relay::workload(&name)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: (!pull_secrets.is_empty()).then_some(pull_secrets),
        restart_policy: Some("Always".to_owned()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(i64::from(settings::drain_seconds(relay)) + EXIT_SECONDS),
        topology_spread_constraints: Some(vec![
            spread(relay, "kubernetes.io/hostname"),
            spread(relay, "topology.kubernetes.io/zone"),
        ]),
        volumes: Some(vec![Volume {
            name: SETTINGS.to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(naming::relay::settings(&name)),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    };
    let labels = Part::Relay.labels(&name);
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
        spec: Some(spec),
    }
}

fn container(relay: &ModelRelay, options: &Options) -> Container {
    let image = relay.spec.image.as_ref();
    let port = |name: &str, number: i32| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let request = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
    Container {
        name: CONTAINER.to_owned(),
        image: Some(options::image(image, &options.relay_image)),
        image_pull_policy: Some(
            image
                .and_then(|image| image.pull_policy)
                .map_or("IfNotPresent", |policy| policy.as_str())
                .to_owned(),
        ),
        args: Some(vec!["--config".to_owned(), format!("{SETTINGS_FOLDER}/{}", settings::FILE)]),
        ports: Some(vec![port(HTTP, CLIENT_PORT), port(OPS, i32::from(OPS_PORT))]),
        readiness_probe: Some(Probe { period_seconds: Some(2), ..probe(READYZ_PATH) }),
        liveness_probe: Some(Probe { period_seconds: Some(10), ..probe(LIVEZ_PATH) }),
        resources: Some(ResourceRequirements {
            requests: Some([request("cpu", "250m"), request("memory", "128Mi")].into()),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![VolumeMount {
            name: SETTINGS.to_owned(),
            mount_path: SETTINGS_FOLDER.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(OPS.to_owned()),
            ..HTTPGetAction::default()
        }),
        timeout_seconds: Some(2),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}

/// Pods of one version spread over nodes and zones; during a rollout, those of the old one do not count.
fn spread(relay: &ModelRelay, topology_key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: topology_key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(pods(relay)),
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    }
}
