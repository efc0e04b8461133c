use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::fleet::WorkerState;

const REVISION: &str = "0123456789abcdef";

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn report(revision: &str, ignored: &[&str], problem: Option<&str>) -> Option<Result<ConfigReport, AskError>> {
    Some(Ok(ConfigReport {
        revision: revision.to_owned(),
        ignored: ignored.iter().map(|&field| field.to_owned()).collect(),
        problem: problem.map(str::to_owned),
    }))
}

fn unreachable() -> Option<Result<ConfigReport, AskError>> {
    Some(Err(AskError::Unreachable { address: "10.0.0.1:8081".to_owned(), problem: "refused".to_owned() }))
}

fn pod(name: &str, ready: bool, settings: Option<Result<ConfigReport, AskError>>) -> PodOutcome {
    PodOutcome { name: name.to_owned(), ready, settings }
}

fn outcome(pods: Vec<PodOutcome>) -> Outcome {
    Outcome {
        generation: Some(3),
        revision: Some(REVISION.to_owned()),
        url: "http://main.inference.svc".to_owned(),
        selector: "app=relay".to_owned(),
        pods: Some(pods),
        ..Outcome::default()
    }
}

fn refusing(problem: Problem) -> Outcome {
    let spec = SpecOutcome::Done { refused: Some(problem), unresolved: Vec::new() };
    Outcome { spec, ..outcome(vec![pod("a", true, report(REVISION, &[], None))]) }
}

/// Type, status and reason of each condition.
fn shown(status: &ModelRelayStatus) -> Vec<String> {
    let shown = |one: &Condition| format!("{}={} {}", one.type_, one.status, one.reason);
    status.conditions.iter().map(shown).collect()
}

fn judged(outcome: &Outcome) -> Vec<String> {
    shown(&status(outcome, None, &at(1)))
}

#[test]
fn conditions_follow_from_the_outcome() {
    let acknowledged = || report(REVISION, &[], None);
    let table = [
        (
            "all is well",
            outcome(vec![pod("a", true, acknowledged()), pod("b", true, acknowledged())]),
            [
                "Accepted=True Accepted",
                "ResolvedRefs=True Resolved",
                "Programmed=True Programmed",
                "Available=True Available",
                "Ready=True Ready",
            ],
        ),
        (
            "one of two is enough to serve",
            outcome(vec![pod("a", true, acknowledged()), pod("b", false, None)]),
            [
                "Accepted=True Accepted",
                "ResolvedRefs=True Resolved",
                "Programmed=True Programmed",
                "Available=True Available",
                "Ready=True Ready",
            ],
        ),
        (
            "no pod is ready",
            outcome(vec![pod("a", false, acknowledged())]),
            [
                "Accepted=True Accepted",
                "ResolvedRefs=True Resolved",
                "Programmed=False NoReadyRelay",
                "Available=False NoReadyRelay",
                "Ready=False NoReadyRelay",
            ],
        ),
        (
            "pods are refused",
            Outcome { pods_refused: Some("quota".to_owned()), ..outcome(vec![]) },
            [
                "Accepted=True Accepted",
                "ResolvedRefs=True Resolved",
                "Programmed=False NoReadyRelay",
                "Available=False PodsRefused",
                "Ready=False PodsRefused",
            ],
        ),
        (
            "old settings",
            outcome(vec![pod("a", true, acknowledged()), pod("b", true, report("old", &[], None))]),
            [
                "Accepted=True Accepted",
                "ResolvedRefs=True Resolved",
                "Programmed=False Pending",
                "Available=True Available",
                "Ready=False Pending",
            ],
        ),
        (
            "settings refused by a pod",
            outcome(vec![pod("a", true, report("old", &[], Some("queue: no"))), pod("b", true, None)]),
            [
                "Accepted=True Accepted",
                "ResolvedRefs=True Resolved",
                "Programmed=False SettingsRefused",
                "Available=True Available",
                "Ready=False SettingsRefused",
            ],
        ),
        (
            "settings that a pod does not know",
            outcome(vec![pod("a", true, report(REVISION, &["queue.new"], None))]),
            [
                "Accepted=True Accepted",
                "ResolvedRefs=True Resolved",
                "Programmed=False SettingsIgnored",
                "Available=True Available",
                "Ready=False SettingsIgnored",
            ],
        ),
        (
            "a pod that cannot be asked serves on",
            outcome(vec![pod("a", true, acknowledged()), pod("b", true, unreachable())]),
            [
                "Accepted=True Accepted",
                "ResolvedRefs=True Resolved",
                "Programmed=Unknown RelayUnreachable",
                "Available=True Available",
                "Ready=True Ready",
            ],
        ),
        (
            "nothing was written yet",
            Outcome { revision: None, ..outcome(vec![pod("a", true, acknowledged())]) },
            [
                "Accepted=True Accepted",
                "ResolvedRefs=True Resolved",
                "Programmed=False Pending",
                "Available=True Available",
                "Ready=False Pending",
            ],
        ),
        (
            "a wrong spec",
            refusing(Problem::new(reason::PROTECTED_FIELD, "podTemplate")),
            [
                "Accepted=False ProtectedField",
                "ResolvedRefs=True Resolved",
                "Programmed=True Programmed",
                "Available=True Available",
                "Ready=False ProtectedField",
            ],
        ),
        (
            "wrong client keys leave the relay ready",
            Outcome {
                spec: SpecOutcome::Done {
                    refused: None,
                    unresolved: vec![Problem::new(reason::INVALID_CLIENT_KEY, "Secret \"x\"")],
                },
                ..outcome(vec![pod("a", true, acknowledged())])
            },
            [
                "Accepted=True Accepted",
                "ResolvedRefs=False InvalidClientKey",
                "Programmed=True Programmed",
                "Available=True Available",
                "Ready=True Ready",
            ],
        ),
    ];
    for (what, outcome, expected) in table {
        assert_eq!(judged(&outcome), expected, "{what}");
    }
}

#[test]
fn a_failing_api_server_changes_nothing_that_is_known_of_the_same_spec() {
    let good = outcome(vec![pod("a", true, report(REVISION, &[], None))]);
    let before = status(&good, None, &at(1));
    let failed = |lasting| Outcome {
        spec: SpecOutcome::Failed { message: "apply Deployment: timeout".to_owned(), lasting },
        ..good.clone()
    };
    assert_eq!(status(&failed(false), Some(&before), &at(9)), before);
    let missing_rights = status(&failed(true), Some(&before), &at(9));
    assert_eq!(shown(&missing_rights)[0], "Accepted=Unknown APIError");
    assert_eq!(shown(&missing_rights)[4], "Ready=Unknown APIError");
    let newer = Outcome { generation: Some(4), ..failed(false) };
    let newer = status(&newer, Some(&before), &at(9));
    assert_eq!(
        (shown(&newer)[0].as_str(), newer.observed_generation),
        ("Accepted=Unknown APIError", Some(3))
    );
}

#[test]
fn a_pause_is_shown_and_leaves_the_rest() {
    let good = outcome(vec![pod("a", true, report(REVISION, &[], None))]);
    let before = status(&good, None, &at(1));
    let paused = Outcome { paused: true, spec: SpecOutcome::Paused, generation: Some(4), ..good.clone() };
    let paused = status(&paused, Some(&before), &at(2));
    let expected = [
        "Accepted=True Accepted",
        "ResolvedRefs=True Resolved",
        "Programmed=True Programmed",
        "Available=True Available",
        "Progressing=False Paused",
        "Ready=True Ready",
    ];
    assert_eq!((shown(&paused), paused.observed_generation), (expected.map(str::to_owned).to_vec(), Some(3)));
    // `kubectl wait` takes a condition of the newest generation for the last word on it.
    assert!(paused.conditions.iter().all(|condition| condition.observed_generation == Some(3)));
    assert_eq!(shown(&status(&good, Some(&paused), &at(3))).len(), 5);
}

#[test]
fn replicas_and_workers_are_counted_and_left_out_when_unknown() {
    let worker = |name: &str, state, models: &[&str]| Worker {
        name: name.to_owned(),
        namespace: None,
        pool: "a100".to_owned(),
        state,
        reason: None,
        models: models.iter().map(|&model| model.to_owned()).collect(),
    };
    let mut seen = outcome(vec![pod("a", true, None), pod("b", false, None)]);
    let without = status(&seen, None, &at(1));
    assert_eq!((without.replicas, without.ready_replicas), (Some(2), Some(1)));
    assert_eq!((&without.workers, &without.models), (&None, &None));
    seen.workers = Some(vec![
        worker("1", WorkerState::Ready, &["coder", "chat"]),
        worker("2", WorkerState::Ready, &["coder"]),
        worker("3", WorkerState::NotReady, &[]),
        worker("4", WorkerState::Draining, &["coder"]),
    ]);
    let with = status(&seen, None, &at(1));
    assert_eq!(with.workers, Some(WorkerCounts { connected: 4, ready: 2, draining: 1 }));
    let model = |name: &str, ready_workers| ServedModel { name: name.to_owned(), ready_workers };
    assert_eq!(with.models, Some(vec![model("chat", 1), model("coder", 2)]));
}

#[test]
fn only_the_first_64_models_are_listed() {
    let models = (0..70).map(|n| format!("m{n:02}")).collect();
    let worker = Worker {
        name: "w".to_owned(),
        namespace: None,
        pool: "a100".to_owned(),
        state: WorkerState::Ready,
        reason: None,
        models,
    };
    let seen = Outcome { workers: Some(vec![worker]), ..outcome(vec![]) };
    let models = status(&seen, None, &at(1)).models.unwrap();
    assert_eq!((models.len(), models[63].name.as_str()), (64, "m63"));
}

#[test]
fn only_what_differs_is_written_and_counts_wait_until_they_are_due() {
    let good = outcome(vec![pod("a", true, report(REVISION, &[], None))]);
    let previous = status(&good, None, &at(1));
    let again = status(&good, Some(&previous), &at(2));
    assert_eq!(to_write(again.clone(), Some(&previous), true), None);
    let mut counted = again.clone();
    counted.workers = Some(WorkerCounts { connected: 1, ready: 1, draining: 0 });
    assert_eq!(to_write(counted.clone(), Some(&previous), false), None);
    assert_eq!(to_write(counted.clone(), Some(&previous), true), Some(counted.clone()));
    let mut both = counted;
    both.ready_replicas = Some(0);
    let written = to_write(both, Some(&previous), false).unwrap();
    assert_eq!((written.ready_replicas, written.workers), (Some(0), None));
    assert_eq!(to_write(again.clone(), None, false), Some(again));
}

#[test]
fn the_first_status_says_that_nothing_is_known() {
    assert_eq!(shown(&first(Some(1), &at(1))), ["Ready=Unknown Pending"]);
}
