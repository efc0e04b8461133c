//! Who may reach which port of a relay.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{CLIENT_PORT, OPS_PORT, pods, workload};
use crate::api::ModelRelay;
use crate::naming::{NAME, OPERATOR};
use crate::options::Options;

/// The client port from anywhere, the operations port from the operator and from whoever scrapes metrics in the cluster:
/// all else on it takes a token. What relays call is not bounded: they call nobody.
pub fn network_policy(relay: &ModelRelay, options: &Options) -> NetworkPolicy {
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(labelled("kubernetes.io/metadata.name", &options.namespace)),
        pod_selector: Some(labelled(NAME, OPERATOR)),
        ..NetworkPolicyPeer::default()
    };
    let scrapers = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    let operations = rule(i32::from(OPS_PORT), Some(vec![operator, scrapers]));
    NetworkPolicy {
        metadata: workload(relay),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(pods(relay)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![rule(CLIENT_PORT, None), operations]),
            ..NetworkPolicySpec::default()
        }),
    }
}

fn rule(port: i32, from: Option<Vec<NetworkPolicyPeer>>) -> NetworkPolicyIngressRule {
    let port = NetworkPolicyPort {
        port: Some(IntOrString::Int(port)),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicyIngressRule { from, ports: Some(vec![port]) }
}

fn labelled(key: &str, value: &str) -> LabelSelector {
    let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }
}
