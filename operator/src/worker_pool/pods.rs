//! What pods say of themselves.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;

use super::status::Trouble;
use crate::cache::{Cache, NotReady};

/// Returns the pods that this very DaemonSet made: labels can be anybody's.
pub(super) fn pods_of(pods: &Cache<Pod>, set: &DaemonSet) -> Result<Vec<Arc<Pod>>, NotReady> {
    let Some(uid) = set.metadata.uid.as_deref() else { return Ok(Vec::new()) };
    let mut found = pods.matching(|pod| {
        pod.metadata.namespace == set.metadata.namespace
            && pod
                .metadata
                .owner_references
                .iter()
                .flatten()
                .any(|owner| owner.controller == Some(true) && owner.uid == uid)
    })?;
    found.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
    Ok(found)
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(super) fn address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
}

/// Why a pod does not run, in the words of Kubernetes; nothing while it only starts.
pub(super) fn trouble(pod: &Pod) -> Option<Trouble> {
    if is_ready(pod) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    let containers =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let waiting =
        containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref()).find_map(|waiting| {
            let reason = waiting.reason.clone()?;
            let starts = ["ContainerCreating", "PodInitializing"].contains(&reason.as_str());
            (!starts).then(|| (reason, waiting.message.clone()))
        });
    let unscheduled = || {
        let conditions = status.conditions.iter().flatten();
        let mut found = conditions.filter(|one| one.type_ == "PodScheduled" && one.status == "False");
        found.next().and_then(|one| Some((one.reason.clone()?, one.message.clone())))
    };
    let (reason, message) = waiting.or_else(unscheduled)?;
    let pod = pod.metadata.name.clone().unwrap_or_default();
    Some(Trouble { pod, reason, message: message.unwrap_or_default() })
}

/// The node that a DaemonSet's pod runs on, or waits for.
pub(super) fn node_of(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = &spec.node_name {
        return Some(name.clone());
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    fields.into_iter().find(|field| field.key == "metadata.name")?.values.as_ref()?.first().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str) -> Pod {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn a_pod_that_waits_for_its_node_names_it_in_its_affinity() {
        let waiting = pod("spec: { containers: [], affinity: { nodeAffinity: { \
             requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [{ matchFields: \
             [{ key: metadata.name, operator: In, values: [gpu-1] }] }] } } } }");
        assert_eq!(node_of(&waiting).as_deref(), Some("gpu-1"));
        assert_eq!(node_of(&pod("spec: { containers: [], nodeName: gpu-2 }")).as_deref(), Some("gpu-2"));
        assert_eq!(node_of(&pod("spec: { containers: [] }")), None);
    }

    #[test]
    fn readiness_and_address_come_from_the_status() {
        let running = pod("status: { podIP: 10.0.0.7, conditions: [{ type: Ready, status: 'True' }] }");
        assert_eq!((is_ready(&running), address(&running)), (true, Some(IpAddr::from([10, 0, 0, 7]))));
        let starting = pod("status: { conditions: [{ type: Ready, status: 'False' }] }");
        assert_eq!((is_ready(&starting), address(&starting)), (false, None));
    }

    #[test]
    fn a_pod_that_does_not_run_says_why_and_one_that_starts_does_not() {
        let waiting = |reason: &str| {
            format!(
                "status: {{ containerStatuses: [{{ name: c, image: i, imageID: i, ready: false, restartCount: 0, \
                 state: {{ waiting: {{ reason: {reason}, message: why }} }} }}] }}"
            )
        };
        let scheduled = |reason: &str| {
            format!(
                "status: {{ conditions: [{{ type: PodScheduled, status: 'False', reason: {reason}, message: why }}] }}"
            )
        };
        let table = [
            (waiting("ImagePullBackOff"), Some("ImagePullBackOff")),
            (waiting("ContainerCreating"), None),
            (scheduled("Unschedulable"), Some("Unschedulable")),
            (String::from("status: { conditions: [{ type: Ready, status: 'True' }] }"), None),
            (String::from("metadata: {}"), None),
        ];
        for (text, expected) in table {
            let found = trouble(&pod(&text)).map(|trouble| (trouble.reason, trouble.message));
            assert_eq!(found, expected.map(|reason| (reason.to_owned(), String::from("why"))), "{text}");
        }
    }
}
