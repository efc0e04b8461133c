//! What the status of a pool says: a function of what came of a reconcile and of what is seen.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::rollout::Plan;
use super::validate::Refusal;
use crate::api::condition::{Truth, Verdict, conditions, find, kind, reason};
use crate::api::worker_pool::{PoolType, UnhealthyWorker};
use crate::api::{ServedModel, WorkerPoolStatus};
use crate::fleet::{Worker, WorkerState, count, served};

/// Models that a status lists.
const MODELS: usize = 64;
/// Unhealthy workers that a status lists.
const UNHEALTHY: usize = 10;

/// What came of a reconcile.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    /// Why the spec is not acted on.
    pub(super) rejected: Option<Refusal>,
    /// What is missing of what it refers to.
    pub(super) unresolved: Option<Refusal>,
    pub(super) progress: Progress,
}

/// How far a reconcile came.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Progress {
    /// The user wants no writes.
    Paused,
    /// A refusal keeps the rest from being written.
    Blocked,
    /// Everything is written.
    Written,
    /// The API server failed.
    Failed(String),
}

/// How many pods a DaemonSet should have and has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SetCounts {
    pub(super) desired: i32,
    pub(super) current: i32,
    pub(super) updated: i32,
    pub(super) ready: i32,
}

impl SetCounts {
    /// Nothing until the controller has seen the newest spec.
    pub(super) fn of(set: &DaemonSet) -> Option<Self> {
        let status = set.status.as_ref()?;
        (status.observed_generation == set.metadata.generation).then(|| Self {
            desired: status.desired_number_scheduled,
            current: status.current_number_scheduled,
            updated: status.updated_number_scheduled.unwrap_or(0),
            ready: status.number_ready,
        })
    }
}

/// Everything that a status follows from.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    pub(super) kind: PoolType,
    pub(super) generation: Option<i64>,
    pub(super) outcome: &'a Outcome,
    /// The labels of the nodes that a Managed pool wants.
    pub(super) looks_for: &'a str,
    /// Of the workers' DaemonSet.
    pub(super) pods: Option<SetCounts>,
    /// Whether the engines' DaemonSet has yet to be seen by its controller.
    pub(super) engine_pending: bool,
    /// Of the engines.
    pub(super) rollout: Option<&'a Plan>,
    /// Why pods are not created.
    pub(super) refused: Option<&'a str>,
    /// Whether it is known that no relay is ready.
    pub(super) no_relay: bool,
    /// The pool's workers, as the relays see them. None when no relay can be asked.
    pub(super) workers: Option<&'a [Worker]>,
    /// Pods of the pool that do not run, whether or not their workers are known to relays.
    pub(super) troubled: Vec<Trouble>,
    /// Of an External pool, once it is there.
    pub(super) join_secret: Option<String>,
    /// Whether the relays run with the hash of an External pool's token.
    pub(super) in_force: bool,
}

/// A pod that does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) pod: String,
    /// One word.
    pub(super) reason: String,
    pub(super) message: String,
}

/// Returns the status.
pub(super) fn status(facts: &Facts<'_>, previous: &WorkerPoolStatus, now: &Time) -> WorkerPoolStatus {
    let accepted = accepted(facts);
    let resolved = resolved(facts);
    let progressing = progressing(facts);
    let available = available(facts);
    let ready = ready(facts, &[&accepted, &resolved, &available]);
    let verdicts = [accepted, resolved, progressing, available, ready];
    let counts = facts.workers.map(count);
    // A spec that is not acted on has not been observed.
    let generation = match facts.outcome.progress {
        Progress::Paused | Progress::Failed(_) => previous.observed_generation,
        Progress::Blocked | Progress::Written => facts.generation,
    };
    WorkerPoolStatus {
        observed_generation: generation,
        desired: facts.pods.map(|pods| pods.desired),
        current: facts.pods.map(|pods| pods.current),
        updated: facts.pods.map(|pods| pods.updated),
        connected: counts.map(|counts| number(counts.connected)),
        ready: counts.map(|counts| number(counts.ready)),
        draining: counts.map(|counts| number(counts.draining)),
        join_secret_name: facts.join_secret.clone(),
        models: facts.workers.map(models),
        unhealthy: unhealthy(facts, &previous.unhealthy, now),
        conditions: conditions(&verdicts, &previous.conditions, generation, now),
    }
}

/// What a pool says before anything is known: tools take an object without conditions for done.
pub(super) fn first(generation: Option<i64>, now: &Time) -> WorkerPoolStatus {
    let verdicts = [kind::ACCEPTED, kind::RESOLVED_REFS, kind::PROGRESSING, kind::AVAILABLE, kind::READY]
        .map(|kind| {
            Verdict::new(kind, Truth::Unknown, reason::PENDING, "the operator has not looked at it yet")
        });
    WorkerPoolStatus {
        conditions: conditions(&verdicts, &[], generation, now),
        ..WorkerPoolStatus::default()
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn accepted(facts: &Facts<'_>) -> Verdict {
    match &facts.outcome.rejected {
        Some(Refusal { reason, message }) => Verdict::new(kind::ACCEPTED, false, reason, message),
        None => Verdict::new(kind::ACCEPTED, true, reason::ACCEPTED, "the spec is valid"),
    }
}

fn resolved(facts: &Facts<'_>) -> Verdict {
    match &facts.outcome.unresolved {
        Some(Refusal { reason, message }) => Verdict::new(kind::RESOLVED_REFS, false, reason, message),
        None => Verdict::new(kind::RESOLVED_REFS, true, reason::RESOLVED, "the relay takes these workers"),
    }
}

fn progressing(facts: &Facts<'_>) -> Verdict {
    let verdict =
        |status: bool, reason, message: String| Verdict::new(kind::PROGRESSING, status, reason, message);
    match &facts.outcome.progress {
        Progress::Paused => verdict(
            false,
            reason::PAUSED,
            String::from(
                "nothing is written while the annotation modelrelay.io/paused is \"true\"; remove it",
            ),
        ),
        Progress::Failed(problem) => {
            verdict(false, reason::API_ERROR, format!("{problem}; the operator tries again"))
        }
        Progress::Blocked => {
            let refusal = facts.outcome.rejected.as_ref().or(facts.outcome.unresolved.as_ref());
            let reason = refusal.map_or(reason::PENDING, |refusal| refusal.reason);
            verdict(false, reason, String::from("nothing more is written until that is resolved"))
        }
        Progress::Written => match facts.kind {
            PoolType::External => verdict(
                false,
                reason::NOT_APPLICABLE,
                String::from("boxes outside are updated by whoever runs them"),
            ),
            PoolType::Managed => rolling_out(facts),
        },
    }
}

fn rolling_out(facts: &Facts<'_>) -> Verdict {
    let verdict =
        |status: bool, reason, message: &str| Verdict::new(kind::PROGRESSING, status, reason, message);
    if let Some(problem) = facts.refused {
        return verdict(false, reason::PODS_REFUSED, problem);
    }
    let pods = facts.pods.filter(|_| !facts.engine_pending);
    let Some(pods) = pods else {
        return verdict(
            true,
            reason::ROLLING_OUT,
            "the DaemonSet controller has not seen the newest template yet",
        );
    };
    if pods.updated < pods.desired {
        return verdict(true, reason::ROLLING_OUT, "some workers are of an older template");
    }
    match facts.rollout {
        Some(plan) if !plan.is_over() => verdict(true, reason::ROLLING_OUT, &plan.describe()),
        Some(_) | None => verdict(false, reason::COMPLETE, "everything is of the newest template"),
    }
}

fn available(facts: &Facts<'_>) -> Verdict {
    match facts.kind {
        PoolType::Managed => managed_available(facts),
        PoolType::External => external_available(facts),
    }
}

fn managed_available(facts: &Facts<'_>) -> Verdict {
    let verdict =
        |status: Truth, reason, message: &str| Verdict::new(kind::AVAILABLE, status, reason, message);
    if facts.pods.is_some_and(|pods| pods.desired == 0) {
        let message = format!(
            "no node matches: the pool looks for {}; label nodes so, or set spec.managed.nodeSelector",
            facts.looks_for
        );
        return verdict(Truth::False, reason::NO_MATCHING_NODES, &message);
    }
    if facts.no_relay && facts.refused.is_none() {
        let message = "no relay is ready; the conditions of the ModelRelay say why";
        return verdict(Truth::False, reason::NO_READY_RELAY, message);
    }
    let ready = match facts.workers {
        Some(workers) => workers.iter().any(|worker| worker.state == WorkerState::Ready),
        None => facts.pods.is_some_and(|pods| pods.ready > 0),
    };
    match (ready, facts.workers, facts.pods) {
        (true, Some(_), _) => verdict(Truth::True, reason::AVAILABLE, "workers take requests"),
        (true, None, _) => verdict(
            Truth::True,
            reason::AVAILABLE,
            "worker pods are ready; no relay can be asked whether they take requests",
        ),
        (false, _, _) if facts.refused.is_some() => {
            verdict(Truth::False, reason::PODS_REFUSED, facts.refused.unwrap_or_default())
        }
        (false, None, None) => {
            verdict(Truth::Unknown, reason::PENDING, "nothing is known of the workers yet")
        }
        (false, Some(workers), _) if !workers.is_empty() => verdict(
            Truth::False,
            reason::NO_READY_WORKER,
            "no worker takes requests; status.unhealthy says why",
        ),
        (false, _, _) => verdict(
            Truth::False,
            reason::NO_READY_WORKER,
            "no worker has a session with a relay; status.unhealthy or the worker pods say why",
        ),
    }
}

fn external_available(facts: &Facts<'_>) -> Verdict {
    let verdict =
        |status: Truth, reason, message: &str| Verdict::new(kind::AVAILABLE, status, reason, message);
    match facts.workers {
        None => verdict(
            Truth::Unknown,
            reason::RELAY_UNREACHABLE,
            "no relay can be asked whether a box has joined",
        ),
        Some([]) => verdict(
            Truth::False,
            reason::NO_READY_WORKER,
            "no box has joined; run the command in the Secret that status.joinSecretName names",
        ),
        Some(workers) if workers.iter().any(|worker| worker.state == WorkerState::Ready) => {
            verdict(Truth::True, reason::AVAILABLE, "boxes take requests")
        }
        Some(_) => {
            verdict(Truth::False, reason::NO_READY_WORKER, "no box takes requests; status.unhealthy says why")
        }
    }
}

/// The first of what is needed that does not hold decides.
fn ready(facts: &Facts<'_>, [accepted, resolved, available]: &[&Verdict; 3]) -> Verdict {
    let mut needed = vec![*accepted, *resolved];
    let pending = Verdict::new(
        kind::READY,
        false,
        reason::PENDING,
        "the relays do not have the join credential yet; the conditions of the ModelRelay say why",
    );
    match facts.kind {
        PoolType::Managed => needed.push(available),
        PoolType::External if !facts.in_force => needed.push(&pending),
        PoolType::External => {}
    }
    match needed.into_iter().find(|verdict| !verdict.holds()) {
        Some(verdict) => Verdict { kind: kind::READY, ..verdict.clone() },
        None => Verdict::new(kind::READY, true, reason::READY, "the pool is as it should be"),
    }
}

fn models(workers: &[Worker]) -> Vec<ServedModel> {
    let served = served(workers).into_iter().take(MODELS);
    served
        .map(|(name, workers)| ServedModel { name: name.to_owned(), ready_workers: number(workers) })
        .collect()
}

fn unhealthy(facts: &Facts<'_>, previous: &[UnhealthyWorker], now: &Time) -> Vec<UnhealthyWorker> {
    let not_ready =
        facts.workers.into_iter().flatten().filter(|worker| worker.state == WorkerState::NotReady);
    let said = not_ready.map(|worker| {
        let message = worker.reason.clone().unwrap_or_default();
        Trouble { pod: worker.name.clone(), reason: word(&message).to_owned(), message }
    });
    let mut rows: Vec<Trouble> = said.chain(facts.troubled.iter().cloned()).collect();
    rows.sort_by(|one, other| one.pod.cmp(&other.pod));
    rows.dedup_by(|next, one| next.pod == one.pod);
    let row = |Trouble { pod: worker, reason, message }| {
        let before = previous.iter().find(|one| one.worker == worker && one.reason == reason);
        let since = before.map_or_else(|| now.clone(), |one| one.since.clone());
        UnhealthyWorker { worker, reason, message, since }
    };
    rows.into_iter().take(UNHEALTHY).map(row).collect()
}

/// One word for what a worker says of its backend.
fn word(reason: &str) -> &'static str {
    match reason {
        "paused" => "Paused",
        starting if starting.starts_with("starting") || starting == "resuming" => "Starting",
        _ => "BackendNotReady",
    }
}

/// What a new status is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// It says what the old one does.
    Nothing,
    /// Only figures moved: it may wait a little.
    Counts,
    /// It is written at once.
    Conditions,
}

/// Compares a new status with the one that is there.
pub(super) fn worth(old: &WorkerPoolStatus, new: &WorkerPoolStatus) -> Worth {
    if old == new {
        return Worth::Nothing;
    }
    let WorkerPoolStatus {
        observed_generation,
        desired: _,
        current: _,
        updated: _,
        connected: _,
        ready: _,
        draining: _,
        join_secret_name,
        models: _,
        unhealthy: _,
        conditions,
    } = new;
    let same = *observed_generation == old.observed_generation
        && *join_secret_name == old.join_secret_name
        && *conditions == old.conditions;
    if same { Worth::Counts } else { Worth::Conditions }
}

/// Returns the conditions that turned against the user, to be told by events.
pub(super) fn complaints<'a>(old: &[Condition], new: &'a [Condition]) -> Vec<&'a Condition> {
    [kind::ACCEPTED, kind::RESOLVED_REFS]
        .into_iter()
        .filter_map(|kind| find(new, kind))
        .filter(|one| one.status == "False")
        .filter(|one| {
            find(old, &one.type_)
                .is_none_or(|before| (&before.reason, &before.message) != (&one.reason, &one.message))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn written() -> Outcome {
        Outcome { rejected: None, unresolved: None, progress: Progress::Written }
    }

    fn worker(name: &str, state: WorkerState, reason: Option<&str>) -> Worker {
        Worker {
            name: name.to_owned(),
            namespace: Some(String::from("inference")),
            pool: String::from("a100"),
            state,
            reason: reason.map(str::to_owned),
            models: if state == WorkerState::Ready {
                BTreeSet::from([String::from("m")])
            } else {
                BTreeSet::new()
            },
        }
    }

    fn facts<'a>(kind: PoolType, outcome: &'a Outcome) -> Facts<'a> {
        Facts {
            kind,
            generation: Some(3),
            outcome,
            looks_for: "gpu=a100",
            pods: (kind == PoolType::Managed).then_some(SetCounts {
                desired: 2,
                current: 2,
                updated: 2,
                ready: 2,
            }),
            engine_pending: false,
            rollout: None,
            refused: None,
            no_relay: false,
            workers: None,
            troubled: Vec::new(),
            join_secret: None,
            in_force: true,
        }
    }

    /// `Accepted ResolvedRefs Progressing Available Ready`, each with its reason.
    fn words(facts: &Facts<'_>) -> String {
        let status = status(facts, &WorkerPoolStatus::default(), &at(1));
        let word = |one: &Condition| format!("{}/{}", one.status, one.reason);
        status.conditions.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn conditions_of_a_managed_pool_follow_from_what_is_seen() {
        let ready = [worker("w", WorkerState::Ready, None)];
        let sick = [worker("w", WorkerState::NotReady, Some("no"))];
        let outcome = written();
        let base = facts(PoolType::Managed, &outcome);
        let counts = |desired, updated, ready| Some(SetCounts { desired, current: desired, updated, ready });
        let plan = Plan { outdated: 1, ..Plan::default() };
        let table = [
            (
                "all is well",
                Facts { workers: Some(&ready), ..base.clone() },
                "True/Accepted True/Resolved False/Complete True/Available True/Ready",
            ),
            (
                "relays cannot be asked, pods are ready",
                base.clone(),
                "True/Accepted True/Resolved False/Complete True/Available True/Ready",
            ),
            (
                "no relay is ready, pods are",
                Facts { no_relay: true, ..base.clone() },
                "True/Accepted True/Resolved False/Complete False/NoReadyRelay False/NoReadyRelay",
            ),
            (
                "relays cannot be asked, no pod is ready",
                Facts { pods: counts(2, 2, 0), ..base.clone() },
                "True/Accepted True/Resolved False/Complete False/NoReadyWorker False/NoReadyWorker",
            ),
            (
                "pods are ready, but no worker has a session",
                Facts { workers: Some(&[]), ..base.clone() },
                "True/Accepted True/Resolved False/Complete False/NoReadyWorker False/NoReadyWorker",
            ),
            (
                "backends are sick",
                Facts { workers: Some(&sick), ..base.clone() },
                "True/Accepted True/Resolved False/Complete False/NoReadyWorker False/NoReadyWorker",
            ),
            (
                "no node matches",
                Facts { pods: counts(0, 0, 0), workers: Some(&[]), ..base.clone() },
                "True/Accepted True/Resolved False/Complete False/NoMatchingNodes False/NoMatchingNodes",
            ),
            (
                "the controller has not looked yet",
                Facts { pods: None, ..base.clone() },
                "True/Accepted True/Resolved True/RollingOut Unknown/Pending Unknown/Pending",
            ),
            (
                "the controller has not looked at the engines yet",
                Facts { engine_pending: true, workers: Some(&ready), ..base.clone() },
                "True/Accepted True/Resolved True/RollingOut True/Available True/Ready",
            ),
            (
                "workers roll",
                Facts { pods: counts(2, 1, 2), workers: Some(&ready), ..base.clone() },
                "True/Accepted True/Resolved True/RollingOut True/Available True/Ready",
            ),
            (
                "engines roll",
                Facts { rollout: Some(&plan), workers: Some(&ready), ..base.clone() },
                "True/Accepted True/Resolved True/RollingOut True/Available True/Ready",
            ),
            (
                "pods are refused",
                Facts { refused: Some("quota"), pods: counts(2, 0, 0), ..base.clone() },
                "True/Accepted True/Resolved False/PodsRefused False/PodsRefused False/PodsRefused",
            ),
            (
                "some pods are refused",
                Facts { refused: Some("quota"), workers: Some(&ready), ..base.clone() },
                "True/Accepted True/Resolved False/PodsRefused True/Available True/Ready",
            ),
        ];
        for (what, facts, expected) in table {
            assert_eq!(words(&facts), expected, "{what}");
        }
    }

    #[test]
    fn refusals_stand_where_they_belong_and_decide_readiness() {
        let refusal = |reason| Some(Refusal::new(reason, "why"));
        let table = [
            (
                Outcome {
                    rejected: refusal(reason::PROTECTED_FIELD),
                    unresolved: None,
                    progress: Progress::Blocked,
                },
                "False/ProtectedField True/Resolved False/ProtectedField True/Available False/ProtectedField",
            ),
            (
                Outcome {
                    rejected: None,
                    unresolved: refusal(reason::RELAY_NOT_FOUND),
                    progress: Progress::Blocked,
                },
                "True/Accepted False/RelayNotFound False/RelayNotFound True/Available False/RelayNotFound",
            ),
            (
                Outcome { unresolved: refusal(reason::SERVICE_NOT_FOUND), ..written() },
                "True/Accepted False/ServiceNotFound False/Complete True/Available False/ServiceNotFound",
            ),
            (
                Outcome { progress: Progress::Paused, ..written() },
                "True/Accepted True/Resolved False/Paused True/Available True/Ready",
            ),
            (
                Outcome { progress: Progress::Failed(String::from("apply: 500")), ..written() },
                "True/Accepted True/Resolved False/APIError True/Available True/Ready",
            ),
        ];
        for (outcome, expected) in table {
            assert_eq!(words(&facts(PoolType::Managed, &outcome)), expected);
        }
    }

    #[test]
    fn an_external_pool_is_ready_when_its_credential_is_in_force_whoever_has_joined() {
        let joined = [worker("box", WorkerState::Ready, None)];
        let sick = [worker("box", WorkerState::NotReady, Some("paused"))];
        let outcome = written();
        let base = facts(PoolType::External, &outcome);
        let waiting = Facts { in_force: false, ..base.clone() };
        let start = "True/Accepted True/Resolved False/NotApplicable";
        let table = [
            (Facts { workers: Some(&joined), ..base.clone() }, "True/Available True/Ready"),
            (Facts { workers: Some(&[]), ..base.clone() }, "False/NoReadyWorker True/Ready"),
            (Facts { workers: Some(&sick), ..base.clone() }, "False/NoReadyWorker True/Ready"),
            (base.clone(), "Unknown/RelayUnreachable True/Ready"),
            (Facts { workers: Some(&joined), ..waiting.clone() }, "True/Available False/Pending"),
        ];
        for (facts, expected) in table {
            assert_eq!(words(&facts), format!("{start} {expected}"));
        }
    }

    #[test]
    fn a_pool_without_nodes_says_what_it_looks_for() {
        let outcome = written();
        let facts = Facts { pods: Some(SetCounts::default()), ..facts(PoolType::Managed, &outcome) };
        let status = status(&facts, &WorkerPoolStatus::default(), &at(1));
        let available = find(&status.conditions, kind::AVAILABLE).unwrap();
        assert!(available.message.contains("looks for gpu=a100;"), "{}", available.message);
    }

    #[test]
    fn counts_come_from_the_relays_and_are_left_out_without_them() {
        let outcome = written();
        let workers = [
            worker("b", WorkerState::NotReady, Some("starting: refused")),
            worker("c", WorkerState::Ready, None),
            worker("a", WorkerState::NotReady, Some("paused")),
            worker("d", WorkerState::Draining, None),
        ];
        let known = Facts { workers: Some(&workers), ..facts(PoolType::Managed, &outcome) };
        let first = status(&known, &WorkerPoolStatus::default(), &at(1));
        assert_eq!((first.connected, first.ready, first.draining), (Some(4), Some(1), Some(1)));
        assert_eq!((first.desired, first.current, first.updated), (Some(2), Some(2), Some(2)));
        assert_eq!(first.models, Some(vec![ServedModel { name: String::from("m"), ready_workers: 1 }]));
        let rows = |status: &WorkerPoolStatus| -> Vec<_> {
            let row = |one: &UnhealthyWorker| (one.worker.clone(), one.reason.clone(), one.since.clone());
            status.unhealthy.iter().map(row).collect()
        };
        let row = |name: &str, reason: &str, since| (name.to_owned(), reason.to_owned(), at(since));
        assert_eq!(rows(&first), [row("a", "Paused", 1), row("b", "Starting", 1)]);
        let workers = [
            worker("a", WorkerState::NotReady, Some("paused")),
            worker("b", WorkerState::NotReady, Some("backend answered 500")),
        ];
        let later = status(&Facts { workers: Some(&workers), ..known.clone() }, &first, &at(2));
        assert_eq!(rows(&later), [row("a", "Paused", 1), row("b", "BackendNotReady", 2)]);
        let unknown = status(&Facts { workers: None, ..known }, &first, &at(2));
        assert_eq!((unknown.connected, unknown.models), (None, None));
    }

    #[test]
    fn pods_that_do_not_run_are_named_with_the_workers_that_do_not_serve() {
        let outcome = written();
        let workers =
            [worker("b", WorkerState::NotReady, Some("paused")), worker("c", WorkerState::Ready, None)];
        let trouble = |pod: &str| Trouble {
            pod: pod.to_owned(),
            reason: String::from("ImagePullBackOff"),
            message: String::from("no such image"),
        };
        let facts = Facts {
            workers: Some(&workers),
            troubled: vec![trouble("a"), trouble("b")],
            ..facts(PoolType::Managed, &outcome)
        };
        let rows = |status: WorkerPoolStatus| -> Vec<String> {
            status.unhealthy.iter().map(|row| format!("{} {}", row.worker, row.reason)).collect()
        };
        let none = WorkerPoolStatus::default();
        assert_eq!(rows(status(&facts, &none, &at(1))), ["a ImagePullBackOff", "b Paused"]);
        let unasked = Facts { workers: None, ..facts };
        assert_eq!(rows(status(&unasked, &none, &at(1))), ["a ImagePullBackOff", "b ImagePullBackOff"]);
    }

    #[test]
    fn long_lists_are_cut() {
        let outcome = written();
        let workers: Vec<_> =
            (0..30).map(|at| worker(&format!("w{at:02}"), WorkerState::NotReady, None)).collect();
        let facts = Facts { workers: Some(&workers), ..facts(PoolType::Managed, &outcome) };
        let status = status(&facts, &WorkerPoolStatus::default(), &at(1));
        assert_eq!(status.unhealthy.len(), 10);
        assert_eq!(status.unhealthy[9].worker, "w09");
    }

    #[test]
    fn figures_may_wait_and_conditions_may_not() {
        let outcome = written();
        let (one, two) = (
            [worker("w", WorkerState::Ready, None)],
            [worker("w", WorkerState::Ready, None), worker("x", WorkerState::Ready, None)],
        );
        let known = Facts { workers: Some(&one), ..facts(PoolType::Managed, &outcome) };
        let old = status(&known, &WorkerPoolStatus::default(), &at(1));
        assert_eq!(worth(&old, &status(&known, &old, &at(9))), Worth::Nothing);
        let more = status(&Facts { workers: Some(&two), ..known.clone() }, &old, &at(9));
        assert_eq!(worth(&old, &more), Worth::Counts);
        let none = status(&Facts { workers: Some(&[]), ..known.clone() }, &old, &at(9));
        assert_eq!(worth(&old, &none), Worth::Conditions);
        let newer = status(&Facts { generation: Some(4), ..known }, &old, &at(9));
        assert_eq!(worth(&old, &newer), Worth::Conditions);
    }

    #[test]
    fn a_refusal_is_told_once() {
        let refused = Outcome {
            rejected: None,
            unresolved: Some(Refusal::new(reason::RELAY_NOT_FOUND, "why")),
            progress: Progress::Blocked,
        };
        let first = first(Some(3), &at(1));
        assert!(first.conditions.iter().all(|one| one.status == "Unknown"));
        let now = status(&facts(PoolType::Managed, &refused), &first, &at(2));
        let told: Vec<_> = complaints(&first.conditions, &now.conditions);
        assert_eq!(told.iter().map(|one| one.reason.as_str()).collect::<Vec<_>>(), ["RelayNotFound"]);
        let later = status(&facts(PoolType::Managed, &refused), &now, &at(3));
        assert_eq!(complaints(&now.conditions, &later.conditions), Vec::<&Condition>::new());
    }
}
