use std::collections::BTreeSet;

use super::*;
use crate::worker_pool::rollout::Plan;

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
    let workers = [worker("b", WorkerState::NotReady, Some("paused")), worker("c", WorkerState::Ready, None)];
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
