//! Makes kubelets look at changed settings at once.
//!
//! A mounted Secret reaches a pod at the kubelet's next sync, which may take a minute; a change of the pod object makes it look
//! now. The kubelet hears of the pod and of the Secret over separate watches, so it may look too early: a pod that has not
//! acknowledged is nudged again. When the API server was away, kubelets may take two minutes until they hear anything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::context::{CallError, Context};
use crate::naming::{FIELD_MANAGER, NUDGE};

/// When a pod that has not acknowledged is nudged, counted from the first time.
const ATTEMPTS: [Duration; 9] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(90),
    Duration::from_secs(120),
];

/// A pod that has not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting<'a> {
    /// Its UID.
    pub pod: &'a str,
    /// The attempt that its annotation tells of, if that is for the same revision.
    pub told: Option<u32>,
}

/// Which pods are nudged now, and when it is time to look again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// UIDs, and the number of the attempt.
    pub now: Vec<(String, u32)>,
    /// The next attempt; none when every pod had all of them.
    pub next: Option<Instant>,
}

/// The nudges so far, by UID of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nudges(BTreeMap<String, Nudged>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Nudged {
    revision: String,
    first: Instant,
    made: usize,
    /// The attempt that the annotation told of before: repeating its value would change nothing.
    before: u32,
}

impl Nudges {
    /// Decides for the pods that have not acknowledged `revision`, and counts what it decides as done. Pods that are not
    /// waiting any more are forgotten.
    pub fn plan(&mut self, waiting: &[Waiting<'_>], revision: &str, now: Instant) -> Plan {
        self.0.retain(|pod, _| waiting.iter().any(|one| one.pod == pod));
        let mut plan = Plan::default();
        for one in waiting {
            let before = one.told.unwrap_or(0);
            let fresh = || Nudged { revision: revision.to_owned(), first: now, made: 0, before };
            let nudged = self.0.entry(one.pod.to_owned()).or_insert_with(fresh);
            if nudged.revision != revision {
                *nudged = fresh();
            }
            let due = ATTEMPTS.iter().filter(|after| nudged.first + **after <= now).count();
            if due > nudged.made {
                nudged.made = due;
                let attempt = u32::try_from(due).unwrap_or(u32::MAX);
                plan.now.push((one.pod.to_owned(), nudged.before.saturating_add(attempt)));
            }
            let next = ATTEMPTS.get(nudged.made).map(|after| nudged.first + *after);
            plan.next = [plan.next, next].into_iter().flatten().min();
        }
        plan
    }
}

/// Returns the attempt that a pod's annotation tells of, if that is for `revision`.
pub fn told(pod: &Pod, revision: &str) -> Option<u32> {
    let (last, attempt) = pod.annotations().get(NUDGE)?.rsplit_once('.')?;
    (last == revision).then(|| attempt.parse().ok()).flatten()
}

/// Writes the annotation, provided that the pod still is the same one.
///
/// # Errors
/// The API server failed.
pub async fn nudge(ctx: &Context, pod: &Pod, revision: &str, attempt: u32) -> Result<(), CallError> {
    let name = pod.name_any();
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({
        "metadata": { "uid": pod.uid(), "annotations": { NUDGE: format!("{revision}.{attempt}") } },
    });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match ctx
        .call(format!("nudge Pod \"{name}\""), api.patch_metadata(&name, &params, &Patch::Merge(&patch)))
        .await
    {
        // Gone, or another pod of that name.
        Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
        result => result.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "a point to count from")]

    use super::*;

    const A: Waiting<'_> = Waiting { pod: "a", told: None };
    const B: Waiting<'_> = Waiting { pod: "b", told: None };

    fn pods(plan: &Plan) -> Vec<(&str, u32)> {
        plan.now.iter().map(|(pod, attempt)| (pod.as_str(), *attempt)).collect()
    }

    #[test]
    fn pods_are_nudged_at_once_and_ever_more_rarely_for_a_while() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut nudges = Nudges::default();
        let mut made = Vec::new();
        let expected = [0, 1000, 2000, 5000, 15_000, 30_000, 60_000, 90_000, 120_000]
            .into_iter()
            .zip(1..)
            .collect::<Vec<_>>();
        for millis in (0..=130_000).step_by(250) {
            let plan = nudges.plan(&[A], "r1", at(millis));
            made.extend(plan.now.iter().map(|(_, attempt)| (millis, *attempt)));
            let due = expected.iter().map(|&(due, _)| due).find(|&due| due > millis).map(at);
            assert_eq!(plan.next, due, "{millis}");
        }
        assert_eq!(made, expected);
    }

    #[test]
    fn a_pod_that_has_acknowledged_is_left_alone() {
        let start = Instant::now();
        let mut nudges = Nudges::default();
        assert_eq!(pods(&nudges.plan(&[A, B], "r1", start)), [("a", 1), ("b", 1)]);
        let later = start + Duration::from_secs(1);
        assert_eq!(pods(&nudges.plan(&[B], "r1", later)), [("b", 2)]);
        assert_eq!(nudges.plan(&[], "r1", later), Plan::default());
    }

    #[test]
    fn a_new_revision_begins_anew() {
        let start = Instant::now();
        let mut nudges = Nudges::default();
        for seconds in [0, 1, 2] {
            nudges.plan(&[A], "r1", start + Duration::from_secs(seconds));
        }
        let later = start + Duration::from_secs(3);
        let plan = nudges.plan(&[A], "r2", later);
        assert_eq!((pods(&plan), plan.next), (vec![("a", 1)], Some(later + Duration::from_secs(1))));
    }

    #[test]
    fn attempts_that_were_missed_are_made_once() {
        let start = Instant::now();
        let mut nudges = Nudges::default();
        nudges.plan(&[A], "r1", start);
        let plan = nudges.plan(&[A], "r1", start + Duration::from_secs(6));
        assert_eq!((pods(&plan), plan.next), (vec![("a", 4)], Some(start + Duration::from_secs(15))));
    }

    #[test]
    fn each_attempt_writes_another_value_even_after_a_restart() {
        let mut pod = Pod::default();
        pod.annotations_mut().insert(NUDGE.to_owned(), "r1.4".to_owned());
        assert_eq!((told(&pod, "r1"), told(&pod, "r2")), (Some(4), None));
        let waiting = Waiting { pod: "a", told: told(&pod, "r1") };
        let (start, mut nudges) = (Instant::now(), Nudges::default());
        assert_eq!(pods(&nudges.plan(&[waiting], "r1", start)), [("a", 5)]);
        assert_eq!(pods(&nudges.plan(&[waiting], "r1", start + Duration::from_secs(1))), [("a", 6)]);
    }
}
