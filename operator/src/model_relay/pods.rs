//! The pods of a relay, found by who made them: a label alone proves nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PartialObjectMeta;
use kube::{Api, ResourceExt as _};

use crate::apply::Owner;
use crate::context::{CallError, Context};
use crate::error::ReconcileError;
use crate::naming::Part;

/// A pod of a relay.
#[derive(Clone, Debug)]
pub(super) struct RelayPod {
    pub(super) pod: Arc<Pod>,
    pub(super) uid: String,
    /// Where it can be asked, once it runs.
    pub(super) address: Option<IpAddr>,
    /// Whether it takes requests.
    pub(super) ready: bool,
    /// Whether it is being deleted.
    pub(super) leaving: bool,
}

impl RelayPod {
    fn new(pod: Arc<Pod>) -> Self {
        let status = pod.status.as_ref();
        let running = status.is_some_and(|status| status.phase.as_deref() == Some("Running"));
        let address = status.and_then(|status| status.pod_ip.as_deref()?.parse().ok());
        let leaving = pod.metadata.deletion_timestamp.is_some();
        let says_ready = status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|one| one.type_ == "Ready" && one.status == "True");
        Self {
            uid: pod.uid().unwrap_or_default(),
            address: address.filter(|_| running),
            ready: says_ready && !leaving,
            leaving,
            pod,
        }
    }
}

/// Finds the pods of the relay's Deployment, by name. `known` says whose the ReplicaSets are that were looked up before.
pub(super) async fn find(
    ctx: &Context,
    owner: &Owner,
    deployment: Option<&Deployment>,
    known: &mut BTreeMap<String, Option<String>>,
) -> Result<Vec<RelayPod>, ReconcileError> {
    let labels = Part::Relay.selector(&owner.name);
    let mut candidates = ctx.caches.pods.matching(|pod| {
        pod.metadata.namespace.as_deref() == Some(&owner.namespace)
            && labels.iter().all(|(key, value)| pod.labels().get(key) == Some(value))
    })?;
    let Some(deployment) = deployment.and_then(|deployment| deployment.metadata.uid.as_ref()) else {
        return Ok(Vec::new());
    };
    candidates.sort_by_key(|pod| pod.name_any());
    let mut pods = Vec::new();
    let mut seen = BTreeMap::new();
    for pod in candidates {
        let Some(set) = replica_set(&pod) else { continue };
        let owned_by = match known.get(&set.uid) {
            Some(owned_by) => owned_by.clone(),
            None => deployment_of(ctx, &owner.namespace, &set).await?,
        };
        if owned_by.as_ref() == Some(deployment) {
            pods.push(RelayPod::new(pod));
        }
        seen.insert(set.uid, owned_by);
    }
    *known = seen;
    Ok(pods)
}

fn replica_set(pod: &Pod) -> Option<OwnerReference> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true) && owner.kind == "ReplicaSet").cloned()
}

/// Returns the UID of the Deployment that a ReplicaSet belongs to.
async fn deployment_of(
    ctx: &Context,
    namespace: &str,
    set: &OwnerReference,
) -> Result<Option<String>, CallError> {
    let api: Api<ReplicaSet> = Api::namespaced(ctx.client.clone(), namespace);
    let found: Option<PartialObjectMeta<ReplicaSet>> =
        ctx.call(format!("get ReplicaSet \"{}\"", set.name), api.get_metadata_opt(&set.name)).await?;
    Ok(found.filter(|found| found.metadata.uid.as_ref() == Some(&set.uid)).and_then(|found| {
        let mut owners = found.metadata.owner_references.into_iter().flatten();
        owners
            .find(|owner| owner.controller == Some(true) && owner.kind == "Deployment")
            .map(|owner| owner.uid)
    }))
}
