//! Asks the pods of a relay for their settings and workers, and nudges those that run with old settings.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream;
use kube::ResourceExt as _;
use tracing::debug;

use super::build::OPS_PORT;
use super::memory::{Asked, Memory};
use super::pods::RelayPod;
use crate::apply::Owner;
use crate::context::Context;
use crate::fleet::RelayView;
use crate::nudge::{self, Plan, Waiting};
use crate::relay_client::{AskError, ConfigReport};
use crate::triggers::relay_of;

/// How often pods are asked while nothing changes.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// How often those are asked that should have new settings any moment.
const SOON: Duration = Duration::from_millis(250);
/// How often pods are asked for their workers at most, while one thing after another happens.
const GAP: Duration = Duration::from_secs(1);
/// Questions and nudges at once.
const AT_ONCE: usize = 32;

/// What pods are asked with and for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observing<'a> {
    pub(super) ctx: &'a Context,
    pub(super) owner: &'a Owner,
    pub(super) pods: &'a [RelayPod],
    /// The token for the admin API; without it nobody answers.
    pub(super) admin: Option<&'a str>,
    /// What the pods should run with.
    pub(super) revision: Option<&'a str>,
    /// Whether nothing may be written.
    pub(super) paused: bool,
}

impl Observing<'_> {
    /// Asks and nudges as far as it is time to, and returns when to look again.
    pub(super) async fn observe(self, memory: &mut Memory, now: Instant) -> Option<Duration> {
        memory.asked.retain(|uid, _| self.pods.iter().any(|pod| pod.uid == *uid));
        // Those that are known to run with other settings are not asked first: a question may take seconds.
        self.nudge(memory, now, true).await;
        // At once: each may wait for pods that do not answer.
        let (settings, workers) = tokio::join!(self.ask_settings(memory, now), self.ask_workers(memory, now));
        for (uid, answer) in settings {
            memory.asked.insert(uid, Asked { at: now, answer });
        }
        let put_off = match workers {
            Workers::Told(view) => {
                memory.workers_asked = Some((now, self.ready().map(|pod| pod.uid.clone()).collect()));
                self.note(view);
                None
            }
            Workers::AskIn(wait) => self.ready().next().map(|_| wait),
        };
        let next = self.nudge(memory, now, false).await;
        let soon = next.is_some().then_some(SOON);
        let later = self.pods.iter().any(|pod| pod.address.is_some()).then_some(EVERY);
        [soon, put_off, later].into_iter().flatten().min()
    }

    fn ready(&self) -> impl Iterator<Item = &RelayPod> {
        self.pods.iter().filter(|pod| pod.ready)
    }

    fn acknowledged(&self, memory: &Memory, pod: &RelayPod) -> bool {
        let answer = memory.asked.get(&pod.uid).map(|asked| &asked.answer);
        matches!(answer, Some(Ok(report)) if Some(report.revision.as_str()) == self.revision)
    }

    /// Returns when the next attempt is due.
    async fn nudge(&self, memory: &mut Memory, now: Instant, only_known: bool) -> Option<Instant> {
        let revision = self.revision.filter(|_| !self.paused)?;
        let waiting: Vec<_> = self
            .pods
            .iter()
            .filter(|pod| pod.address.is_some() && !self.acknowledged(memory, pod))
            .filter(|pod| !only_known || memory.asked.contains_key(&pod.uid))
            .map(|pod| Waiting { pod: &pod.uid, told: nudge::told(&pod.pod, revision) })
            .collect();
        if only_known && waiting.is_empty() {
            return None;
        }
        let Plan { now: due, next } = memory.nudges.plan(&waiting, revision, now);
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, async |(uid, attempt)| {
                let Some(pod) = self.pods.iter().find(|pod| pod.uid == uid) else { return };
                if let Err(error) = nudge::nudge(self.ctx, &pod.pod, revision, attempt).await {
                    // The next attempt comes soon, and the kubelet looks by itself in the end.
                    debug!(pod = pod.pod.name_any(), %error, "A pod was not nudged");
                }
            })
            .await;
        next
    }

    /// What those pods say of which it is time to ask, by UID.
    async fn ask_settings(
        &self,
        memory: &Memory,
        now: Instant,
    ) -> Vec<(String, Result<ConfigReport, AskError>)> {
        let Some(token) = self.admin else { return Vec::new() };
        let due = self.pods.iter().filter_map(|pod| {
            let address = pod.address?;
            let patience = if self.acknowledged(memory, pod) { EVERY } else { SOON };
            let recent = memory.asked.get(&pod.uid).is_some_and(|asked| now < asked.at + patience);
            (!recent).then(|| (pod.uid.clone(), address))
        });
        let due: Vec<_> = due.collect();
        let ops = &self.ctx.ops;
        stream::iter(due)
            .map(move |(uid, address)| async move { (uid, ops.config(address, OPS_PORT, token).await) })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// Asks the Ready pods, unless that was just done: something has happened, or this would not run.
    async fn ask_workers(&self, memory: &Memory, now: Instant) -> Workers {
        if let Some((at, asked)) = &memory.workers_asked
            && now < *at + GAP
            && self.ready().map(|pod| &pod.uid).eq(asked)
        {
            return Workers::AskIn(*at + GAP - now);
        }
        let token = self.admin.unwrap_or_default();
        let due: Vec<_> = self.ready().filter_map(|pod| Some((pod.pod.name_any(), pod.address?))).collect();
        let ops = &self.ctx.ops;
        let answers = stream::iter(due)
            .map(move |(name, address)| async move { (name, ops.workers(address, OPS_PORT, token).await) })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        Workers::Told(RelayView { answers })
    }

    /// Keeps what the pods said of their workers, and wakes the pools if that is something new.
    fn note(&self, view: RelayView) {
        let key = (self.owner.namespace.clone(), self.owner.name.clone());
        if self.ctx.fleet.put((&key.0, &key.1), view) {
            let pools = self.ctx.caches.worker_pools.matching(|pool| relay_of(pool) == key);
            for pool in pools.unwrap_or_default() {
                self.ctx.triggers.pool(&pool.namespace().unwrap_or_default(), &pool.name_any());
            }
        }
    }
}

/// Whether the pods were asked for their workers.
enum Workers {
    Told(RelayView),
    /// It was too soon.
    AskIn(Duration),
}
