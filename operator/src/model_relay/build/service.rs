//! The two Services of a relay.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use super::{CLIENT_PORT, HTTP, meta};
use crate::api::ModelRelay;
use crate::api::model_relay::ServiceType;
use crate::naming::{self, Part};

/// The port of the client Service.
pub fn client_port(relay: &ModelRelay) -> i32 {
    relay.spec.service.as_ref().and_then(|service| service.port).unwrap_or(80)
}

/// Where applications in the cluster call.
pub fn client_url(relay: &ModelRelay) -> String {
    let (name, namespace) = (relay.name_any(), relay.namespace().unwrap_or_default());
    match client_port(relay) {
        80 => format!("http://{name}.{namespace}.svc"),
        port => format!("http://{name}.{namespace}.svc:{port}"),
    }
}

/// The Service that applications call.
pub fn client(relay: &ModelRelay) -> Service {
    let spec = relay.spec.service.clone().unwrap_or_default();
    let kind = spec.kind.unwrap_or_default();
    let mut metadata = meta(relay, naming::relay::service(&relay.name_any()));
    metadata.annotations = (!spec.annotations.is_empty()).then_some(spec.annotations);
    let node_port = match kind {
        ServiceType::ClusterIP => None,
        ServiceType::NodePort | ServiceType::LoadBalancer => spec.node_port,
    };
    let port = ServicePort { node_port, port: client_port(relay), ..port() };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(kind.as_str().to_owned()),
            ports: Some(vec![port]),
            selector: Some(Part::Relay.selector(&relay.name_any())),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The headless Service that workers resolve. It names pods that are not ready too: a relay that starts becomes ready when
/// workers have found it, and one that drains keeps its workers.
pub fn workers(relay: &ModelRelay) -> Service {
    Service {
        metadata: meta(relay, naming::relay::workers_service(&relay.name_any())),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![port()]),
            selector: Some(Part::Relay.selector(&relay.name_any())),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn port() -> ServicePort {
    ServicePort {
        name: Some(HTTP.to_owned()),
        port: CLIENT_PORT,
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(HTTP.to_owned())),
        ..ServicePort::default()
    }
}
