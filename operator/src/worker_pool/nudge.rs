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
const ASKED_AT_ONCE: usize = 64;
/// One that did not answer is left in peace for so long.
const SILENCE: Duration = Duration::from_secs(10);

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
    let began = Instant::now();
    let known = ctx.pools.heard(owner);
    let open = pods.iter().filter_map(|pod| {
        let uid = pod.uid()?;
        let heard = known.get(&uid).cloned().unwrap_or_default();
        let has_read = heard.read.as_ref() == Some(&revision);
        address(pod).filter(|_| !has_read).map(|address| (pod, uid, heard, address))
    });
    let asked = open.map(|(pod, uid, mut heard, address)| async move {
        let is_silent = heard.silent.is_some_and(|since| began.duration_since(since) < SILENCE);
        if !is_silent {
            let asked = ctx.ops.ask::<WorkerStatus>(Method::GET, address, OPS_PORT, "/status", token).await;
            heard.silent = asked.is_err().then(Instant::now);
            if asked.is_ok_and(|status| newest.is_read_by(&status)) {
                heard.read = Some(newest.revision());
            }
        }
        (pod, uid, heard)
    });
    let answers: Vec<_> =
        stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(ASKED_AT_ONCE).collect().await;
    let mut behind = Vec::new();
    for (pod, uid, heard) in answers {
        if heard.read.as_ref() != Some(&revision) {
            behind.push((pod, uid.clone()));
        }
        ctx.pools.note_heard(owner, uid, heard);
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
