//! Who may connect to workers and engines.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{OPS_PORT, metadata};
use crate::naming::{Part, pool};
use crate::worker_pool::validate::{Engine, Managed};

/// Workers dial out; only their operations port is called, by the operator and whoever scrapes metrics: pods of the cluster.
pub(super) fn worker(managed: &Managed) -> NetworkPolicy {
    let name = &managed.owner.name;
    let pods = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    policy(Part::Worker, pool::worker(name), name, i32::from(OPS_PORT), pods)
}

/// The engine is for the workers of its pool.
pub(super) fn engine(managed: &Managed, engine: &Engine) -> NetworkPolicy {
    let name = &managed.owner.name;
    let workers = NetworkPolicyPeer {
        pod_selector: Some(selector(Part::Worker, name)),
        ..NetworkPolicyPeer::default()
    };
    policy(Part::Engine, pool::engine(name), name, engine.port, workers)
}

fn selector(part: Part, pool: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(part.selector(pool)), ..LabelSelector::default() }
}

fn policy(part: Part, name: String, pool: &str, port: i32, from: NetworkPolicyPeer) -> NetworkPolicy {
    let port = NetworkPolicyPort {
        port: Some(IntOrString::Int(port)),
        protocol: Some(String::from("TCP")),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicy {
        metadata: metadata(part, name, pool),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(part, pool)),
            policy_types: Some(vec![String::from("Ingress")]),
            ingress: Some(vec![NetworkPolicyIngressRule { from: Some(vec![from]), ports: Some(vec![port]) }]),
            ..NetworkPolicySpec::default()
        }),
    }
}
