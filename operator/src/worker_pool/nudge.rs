//! Which worker pods have read the newest settings and credential, and nudges for those that have not.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::time::Instant;

use super::build::OPS_PORT;
use super::pods::address;
use super::rollout::WorkerStatus;
use crate::apply::Owner;
use crate::context::{CallError, Context};
use crate::nudge::{Plan, Waiting, nudge, told};

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
        let credential: String = self.credential.chars().take(8).collect();
        format!("{}-{credential}", self.settings)
    }

    fn is_read_by(&self, status: &WorkerStatus) -> bool {
        status.revision == self.settings && status.credential.as_deref() == Some(&self.credential)
    }
}

/// Nudges the pods that have not read what is newest, and says when to look again.
///
/// # Errors
/// The API server failed.
pub(super) async fn tell(
    ctx: &Context,
    owner: &Owner,
    pods: &[Arc<Pod>],
    newest: &Newest,
    token: &str,
) -> Result<Option<Duration>, CallError> {
    let revision = newest.revision();
    let known = ctx.pools.read(owner);
    let open = pods.iter().filter_map(|pod| {
        let uid = pod.uid()?;
        let has_read = known.get(&uid) == Some(&revision);
        address(pod).filter(|_| !has_read).map(|address| (pod, uid, address))
    });
    let asked = open.map(|(pod, uid, address)| async move {
        let asked = ctx.ops.ask::<WorkerStatus>(Method::GET, address, OPS_PORT, "/status", token).await;
        (pod, uid, asked.is_ok_and(|status| newest.is_read_by(&status)))
    });
    let answers: Vec<_> =
        stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(ASKED_AT_ONCE).collect().await;
    let mut behind = Vec::new();
    for (pod, uid, has_read) in answers {
        if has_read {
            ctx.pools.note_read(owner, uid, revision.clone());
        } else {
            behind.push((pod, uid));
        }
    }
    let waiting: Vec<_> =
        behind.iter().map(|(pod, uid)| Waiting { pod: uid, told: told(pod, &revision) }).collect();
    let now = Instant::now().into_std();
    let Plan { now: due, next } = ctx.pools.nudges(owner, |nudges| nudges.plan(&waiting, &revision, now));
    for (uid, attempt) in due {
        if let Some((pod, _)) = behind.iter().find(|(_, other)| *other == uid) {
            nudge(ctx, pod, &revision, attempt).await?;
        }
    }
    Ok(next.map(|at| at.saturating_duration_since(now)))
}
