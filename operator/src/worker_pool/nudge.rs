//! Makes worker pods read changed settings and credentials soon.
//!
//! A mounted Secret reaches a pod at the kubelet's next sync, which may be a minute away; writing an annotation on the pod
//! makes the kubelet look at once. Pods that have not acknowledged are nudged again, since the kubelet hears of Secret and
//! Pod on separate watches.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;

use super::build::OPS_PORT;
use super::memory::Acknowledgement;
use super::pods::address;
use super::rollout::WorkerStatus;
use crate::apply::Owner;
use crate::context::{CallError, Context};
use crate::naming::{FIELD_MANAGER, NUDGE};
use crate::relay_client::AskError;

/// Waits before each attempt.
const WAITS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
];
/// Workers that are asked at once.
const ASKED_AT_ONCE: usize = 16;

/// What workers should have read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Newest {
    /// Of the settings file.
    pub(super) settings: String,
    /// The begin of the credential's SHA-256.
    pub(super) credential: String,
}

impl Newest {
    /// Both in one word.
    fn revision(&self) -> String {
        format!("{}-{}", &self.settings, &self.credential[..8.min(self.credential.len())])
    }

    fn is_read_by(&self, status: &WorkerStatus) -> bool {
        status.revision == self.settings && status.credential.as_deref() == Some(&self.credential)
    }
}

/// What to do about one pod that has not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nudge it; this is the attempt.
    Nudge(usize),
    /// Look again after this time.
    Wait(Duration),
    /// It was nudged often enough; the kubelet's own sync remains.
    GiveUp,
}

/// Decides from the annotation's value and the time since it was written, if that is known.
fn next(annotation: Option<&str>, revision: &str, since: Option<Duration>) -> Next {
    let attempt = annotation
        .and_then(|value| value.rsplit_once('.'))
        .filter(|(written, _)| *written == revision)
        .and_then(|(_, attempt)| attempt.parse().ok())
        .unwrap_or(0_usize);
    let Some(wait) = WAITS.get(attempt) else { return Next::GiveUp };
    // An operator that was restarted does not know when it wrote last, and may be a little early.
    match since.map_or(Duration::ZERO, |since| wait.saturating_sub(since)) {
        Duration::ZERO => Next::Nudge(attempt + 1),
        left if attempt > 0 => Next::Wait(left),
        _ => Next::Nudge(1),
    }
}

/// Nudges the pods that have not read what is newest, and says when to look again.
///
/// # Errors
/// The API server failed.
pub(super) async fn nudge(
    ctx: &Context,
    owner: &Owner,
    pods: &[Arc<Pod>],
    newest: &Newest,
    token: &str,
) -> Result<Option<Duration>, CallError> {
    let revision = newest.revision();
    let now = Instant::now();
    let known = ctx.pools.acknowledged(owner);
    let open = pods.iter().filter(|pod| {
        let uid = pod.uid().unwrap_or_default();
        address(pod).is_some() && known.get(&uid).is_none_or(|one| one.read.as_ref() != Some(&revision))
    });
    let asked = open.map(|pod| async move {
        let status: Option<Result<WorkerStatus, AskError>> = match address(pod) {
            Some(address) => Some(ctx.ops.ask(Method::GET, address, OPS_PORT, "/status", token).await),
            None => None,
        };
        (pod, status.and_then(Result::ok))
    });
    let answers: Vec<_> =
        stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(ASKED_AT_ONCE).collect().await;
    let mut again: Option<Duration> = None;
    for (pod, status) in answers {
        let uid = pod.uid().unwrap_or_default();
        if status.is_some_and(|status| newest.is_read_by(&status)) {
            let read = Acknowledgement { read: Some(revision.clone()), nudged: None };
            ctx.pools.note(owner, uid, read);
            continue;
        }
        let annotation = pod.annotations().get(NUDGE).map(String::as_str);
        let since = known.get(&uid).and_then(|one| one.nudged).map(|at| now.duration_since(at));
        let wait = match next(annotation, &revision, since) {
            Next::GiveUp => continue,
            Next::Wait(left) => left,
            Next::Nudge(attempt) => {
                write(ctx, owner, &pod.name_any(), &format!("{revision}.{attempt}")).await?;
                ctx.pools.note(owner, uid, Acknowledgement { read: None, nudged: Some(Instant::now()) });
                WAITS.get(attempt).copied().unwrap_or(Duration::from_secs(15))
            }
        };
        again = Some(again.map_or(wait, |other| other.min(wait)));
    }
    Ok(again)
}

async fn write(ctx: &Context, owner: &Owner, pod: &str, value: &str) -> Result<(), CallError> {
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), &owner.namespace);
    let patch = json!({ "metadata": { "annotations": { NUDGE: value } } });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match ctx
        .call(format!("annotate Pod \"{pod}\""), api.patch_metadata(pod, &params, &Patch::Merge(&patch)))
        .await
    {
        Err(error) if error.status() != Some(404) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_nudged_five_times_with_growing_waits() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let table = [
            (None, None, Next::Nudge(1)),
            (Some("old.5"), seconds(0), Next::Nudge(1)),
            (Some("new.1"), seconds(0), Next::Wait(Duration::from_secs(1))),
            (Some("new.1"), seconds(1), Next::Nudge(2)),
            (Some("new.1"), None, Next::Nudge(2)),
            (Some("new.3"), seconds(2), Next::Wait(Duration::from_secs(3))),
            (Some("new.4"), seconds(15), Next::Nudge(5)),
            (Some("new.5"), seconds(99), Next::GiveUp),
            (Some("by hand"), seconds(0), Next::Nudge(1)),
        ];
        for (annotation, since, expected) in table {
            assert_eq!(next(annotation, "new", since), expected, "{annotation:?} {since:?}");
        }
    }
}
