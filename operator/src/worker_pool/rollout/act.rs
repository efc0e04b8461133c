//! Looks at the pods of a pool, asks the workers that matter, and does the next steps.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{EnginePod, Node, Plan, Says, Step, WorkerPod, WorkerStatus};
use crate::apply::Owner;
use crate::context::{CallError, Context};
use crate::naming::{ENGINE_REVISION, FIELD_MANAGER, REPLACING};
use crate::relay_client::AskError;
use crate::worker_pool::build::OPS_PORT;
use crate::worker_pool::pods::{address, is_ready, node_of};

/// Workers that are asked at once.
const ASKED_AT_ONCE: usize = 16;

/// Returns what runs on each node, and what the workers of those nodes say that a replacement was begun on.
pub(in crate::worker_pool) async fn look(
    ctx: &Context,
    workers: &[std::sync::Arc<Pod>],
    engines: &[std::sync::Arc<Pod>],
    token: &str,
) -> BTreeMap<String, Node> {
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    for pod in engines {
        let Some(node) = node_of(pod) else { continue };
        nodes.entry(node).or_default().engines.push(EnginePod {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            revision: pod.annotations().get(ENGINE_REVISION).cloned(),
            ready: is_ready(pod),
            terminating: pod.metadata.deletion_timestamp.is_some(),
        });
    }
    for pod in workers {
        let Some(node) = node_of(pod) else { continue };
        nodes.entry(node).or_default().workers.push(WorkerPod {
            name: pod.name_any(),
            ready: is_ready(pod),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            marked: pod.annotations().get(REPLACING).and_then(|since| since.parse().ok()),
            says: Says::Nothing,
        });
    }
    let begun = nodes.values_mut().filter(|node| node.workers.iter().any(|worker| worker.marked.is_some()));
    let asked = begun.flat_map(|node| &mut node.workers).map(|worker| async {
        let pod = workers.iter().find(|pod| pod.name_any() == worker.name);
        worker.says = match pod.and_then(|pod| address(pod)) {
            None => Says::Unreachable(String::from("its pod has no address")),
            Some(address) => match ctx.ops.ask(Method::GET, address, OPS_PORT, "/status", token).await {
                Ok(status) => Says::Status(status),
                Err(error) => Says::Unreachable(error.to_string()),
            },
        };
    });
    stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(ASKED_AT_ONCE).collect::<Vec<()>>().await;
    nodes
}

/// Does the steps of a plan, in order. What a worker does not take is tried again at the next look.
///
/// # Errors
/// The API server failed; the rest waits for the next look.
pub(in crate::worker_pool) async fn advance(
    ctx: &Context,
    owner: &Owner,
    workers: &[std::sync::Arc<Pod>],
    plan: &Plan,
    token: &str,
) -> Result<(), CallError> {
    for step in &plan.steps {
        match step {
            Step::Mark { worker } => {
                let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                mark(ctx, owner, worker, Value::String(now)).await?;
            }
            Step::Unmark { worker } => mark(ctx, owner, worker, Value::Null).await?,
            Step::Pause { worker } => tell(ctx, workers, worker, "/pause", token).await,
            Step::Resume { worker } => tell(ctx, workers, worker, "/resume", token).await,
            Step::Delete { engine, uid } => delete(ctx, owner, engine, uid).await?,
        }
    }
    Ok(())
}

async fn mark(ctx: &Context, owner: &Owner, worker: &str, since: Value) -> Result<(), CallError> {
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), &owner.namespace);
    let patch = Patch::Merge(json!({ "metadata": { "annotations": { REPLACING: since } } }));
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let written = api.patch_metadata(worker, &params, &patch);
    match ctx.call(format!("annotate Pod \"{worker}\""), written).await {
        Err(error) if error.status() != Some(404) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn tell(ctx: &Context, workers: &[std::sync::Arc<Pod>], worker: &str, path: &str, token: &str) {
    let pod = workers.iter().find(|pod| pod.name_any() == worker);
    let Some(address) = pod.and_then(|pod| address(pod)) else { return };
    let told: Result<WorkerStatus, AskError> =
        ctx.ops.ask(Method::POST, address, OPS_PORT, path, token).await;
    match told {
        Ok(_) => info!(worker, path, "Told a worker"),
        Err(error) => warn!(worker, path, %error, "A worker could not be told"),
    }
}

async fn delete(ctx: &Context, owner: &Owner, engine: &str, uid: &str) -> Result<(), CallError> {
    let Some(seen) = ctx.caches.pods.get(&owner.namespace, engine) else { return Ok(()) };
    let mut seen = seen.as_ref().clone();
    if seen.metadata.uid.as_deref() != Some(uid) {
        return Ok(());
    }
    // The pod's status changes all the time; that it is the same pod is what matters.
    seen.metadata.resource_version = None;
    ctx.delete(owner, &seen).await
}
