//! What to do next so that every node runs the newest engine and no stream is lost: a function of what is seen, so that an
//! operator that was restarted in the middle goes on.
//!
//! A node goes through these steps: its workers are marked and paused; when they are idle, or have had their time, the old
//! engine is deleted; when its successor runs they are resumed; when they find it healthy the mark is taken off. The mark
//! is an annotation of the worker's pod that says since when.

mod act;

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

pub(super) use act::{advance, look};

/// What the user wants of a rollout.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Of the newest engine.
    pub(super) revision: String,
    pub(super) max_unavailable: usize,
    pub(super) wait_for_idle: bool,
    pub(super) timeout_seconds: i64,
}

/// What runs on one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Node {
    pub(super) engines: Vec<EnginePod>,
    pub(super) workers: Vec<WorkerPod>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct EnginePod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) revision: Option<String>,
    pub(super) ready: bool,
    pub(super) terminating: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct WorkerPod {
    pub(super) name: String,
    pub(super) ready: bool,
    pub(super) terminating: bool,
    /// Since when it is part of a replacement.
    pub(super) marked: Option<Timestamp>,
    pub(super) says: Says,
}

/// What a worker answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Says {
    /// It was not asked.
    #[default]
    Nothing,
    /// It cannot be asked, and why.
    Unreachable(String),
    /// This.
    Status(WorkerStatus),
}

/// A worker's `/admin/v1/status`, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct WorkerStatus {
    pub(super) revision: String,
    pub(super) credential: Option<String>,
    pub(super) paused: bool,
    pub(super) idle: bool,
    pub(super) running: u32,
    pub(super) backend: BackendStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct BackendStatus {
    pub(super) healthy: bool,
    pub(super) reason: Option<String>,
}

/// One thing to do. Steps of a node stand in the order in which they are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write the mark on a worker's pod.
    Mark { worker: String },
    /// Tell a worker to advertise nothing.
    Pause { worker: String },
    /// Delete an engine's pod, if it still is the one that was seen.
    Delete { engine: String, uid: String },
    /// Tell a worker to advertise again.
    Resume { worker: String },
    /// Take the mark off.
    Unmark { worker: String },
}

/// What to do now, and what is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// Nodes with an old engine.
    pub(super) outdated: usize,
    /// Nodes that are being changed, and what is waited for there.
    pub(super) waiting: Vec<String>,
}

impl Plan {
    /// Whether there is nothing to replace and nothing that was begun.
    pub(super) fn is_over(&self) -> bool {
        self.steps.is_empty() && self.outdated == 0 && self.waiting.is_empty()
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("{} node(s) run an older engine", self.outdated);
        for wait in self.waiting.iter().take(3) {
            text.push_str("; ");
            text.push_str(wait);
        }
        text
    }
}

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was begun. With an old engine that does not work there is nothing to lose.
    Outdated { broken: bool },
    /// Its workers are on their way to idle.
    Draining { since: Timestamp },
    /// The old engine is gone and the workers wait for the new one.
    Replaced,
    /// The newest engine is there or comes, and nobody waits for it here.
    Current { ready: bool },
}

impl Node {
    fn stage(&self, revision: &str) -> Stage {
        let alive = |engine: &&EnginePod| !engine.terminating;
        let is_old = |engine: &&EnginePod| engine.revision.as_deref() != Some(revision);
        let old = self.engines.iter().filter(alive).find(is_old);
        let ready = self.engines.iter().filter(alive).any(|engine| !is_old(&engine) && engine.ready);
        let since = self.workers.iter().filter_map(|worker| worker.marked).min();
        match (old, since) {
            (Some(_), Some(since)) => Stage::Draining { since },
            (Some(old), None) => Stage::Outdated { broken: !old.ready },
            (None, Some(_)) => Stage::Replaced,
            (None, None) => Stage::Current { ready },
        }
    }

    fn delete_old(&self, revision: &str) -> impl Iterator<Item = Step> {
        let old = self
            .engines
            .iter()
            .filter(move |engine| !engine.terminating && engine.revision.as_deref() != Some(revision));
        old.map(|engine| Step::Delete { engine: engine.name.clone(), uid: engine.uid.clone() })
    }
}

/// Decides. Only workers of nodes that were begun need to have been asked.
pub(super) fn plan(nodes: &BTreeMap<String, Node>, wanted: &Wanted, now: Timestamp) -> Plan {
    let stages: Vec<_> =
        nodes.iter().map(|(name, node)| (name, node, node.stage(&wanted.revision))).collect();
    let mut plan = Plan::default();
    let mut unavailable = stages
        .iter()
        .filter(|(_, _, stage)| match stage {
            Stage::Draining { .. } | Stage::Replaced | Stage::Current { ready: false } => true,
            Stage::Outdated { .. } | Stage::Current { ready: true } => false,
        })
        .count();
    for (name, node, stage) in stages {
        match stage {
            Stage::Current { .. } => {}
            Stage::Outdated { broken } => {
                plan.outdated += 1;
                if broken || unavailable < wanted.max_unavailable {
                    unavailable += usize::from(!broken);
                    begin(node, wanted, &mut plan.steps);
                }
            }
            Stage::Draining { since } => {
                plan.outdated += 1;
                let waited = now.as_second() - since.as_second();
                let is_late = !wanted.wait_for_idle || waited >= wanted.timeout_seconds;
                drain(name, node, wanted, is_late, &mut plan);
            }
            Stage::Replaced => settle(name, node, &wanted.revision, &mut plan),
        }
    }
    plan
}

/// Marks before it pauses, so that whoever comes next knows why the worker is paused.
fn begin(node: &Node, wanted: &Wanted, steps: &mut Vec<Step>) {
    if node.workers.iter().all(|worker| worker.terminating) {
        // A worker that leaves takes nothing new and still needs its engine, but no mark on it would outlive it.
        if node.workers.is_empty() {
            steps.extend(node.delete_old(&wanted.revision));
        }
        return;
    }
    for worker in node.workers.iter().filter(|worker| !worker.terminating) {
        steps.push(Step::Mark { worker: worker.name.clone() });
        steps.push(Step::Pause { worker: worker.name.clone() });
    }
}

/// Waits until no worker of the node uses the old engine, then deletes that.
fn drain(name: &str, node: &Node, wanted: &Wanted, is_late: bool, plan: &mut Plan) {
    let mut busy = Vec::new();
    for worker in &node.workers {
        match &worker.says {
            Says::Status(status) if worker.terminating => {
                if status.running > 0 {
                    busy.push(format!("{} to finish its requests", worker.name));
                }
            }
            Says::Status(status) if !status.paused => {
                if worker.marked.is_none() {
                    plan.steps.push(Step::Mark { worker: worker.name.clone() });
                }
                plan.steps.push(Step::Pause { worker: worker.name.clone() });
                busy.push(format!("{} to pause", worker.name));
            }
            Says::Status(status) if !status.idle => {
                busy.push(format!("{} to finish its requests", worker.name));
            }
            Says::Status(_) => {}
            // One that is not ready has no session: nothing runs through it.
            Says::Unreachable(_) | Says::Nothing if !worker.ready => {}
            Says::Unreachable(problem) => busy.push(format!("{} to be asked: {problem}", worker.name)),
            Says::Nothing => busy.push(format!("{} to be asked", worker.name)),
        }
    }
    if busy.is_empty() || is_late {
        plan.steps.extend(node.delete_old(&wanted.revision));
        plan.waiting.push(format!("node {name} waits for its new engine"));
    } else {
        plan.waiting.push(format!("node {name} waits for {}", busy.join(" and ")));
    }
}

/// Lets the workers go on once the new engine runs: they advertise only what they find healthy.
fn settle(name: &str, node: &Node, revision: &str, plan: &mut Plan) {
    let is_up = node
        .engines
        .iter()
        .any(|engine| !engine.terminating && engine.ready && engine.revision.as_deref() == Some(revision));
    for worker in node.workers.iter().filter(|worker| worker.marked.is_some()) {
        let wait = match &worker.says {
            _ if worker.terminating => continue,
            _ if !is_up => String::from("its new engine"),
            Says::Status(status) if status.paused => {
                plan.steps.push(Step::Resume { worker: worker.name.clone() });
                format!("{} to resume", worker.name)
            }
            Says::Status(status) if status.backend.healthy => {
                plan.steps.push(Step::Unmark { worker: worker.name.clone() });
                continue;
            }
            Says::Status(status) => {
                let reason = status.backend.reason.as_deref().unwrap_or("not healthy");
                format!("its new engine: {reason}")
            }
            Says::Unreachable(problem) => format!("{} to be asked: {problem}", worker.name),
            Says::Nothing => format!("{} to be asked", worker.name),
        };
        plan.waiting.push(format!("node {name} waits for {wait}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "new";
    const NOW: i64 = 10_000;

    fn wanted() -> Wanted {
        Wanted { revision: String::from(NEW), max_unavailable: 1, wait_for_idle: true, timeout_seconds: 900 }
    }

    fn engine(revision: &str) -> EnginePod {
        EnginePod {
            name: format!("engine-{revision}"),
            uid: format!("uid-{revision}"),
            revision: Some(revision.to_owned()),
            ready: true,
            terminating: false,
        }
    }

    fn worker(marked: Option<i64>, says: Says) -> WorkerPod {
        let marked = marked.map(|ago| Timestamp::from_second(NOW - ago).unwrap());
        WorkerPod { name: String::from("worker"), ready: true, terminating: false, marked, says }
    }

    fn says(paused: bool, idle: bool, running: u32, healthy: bool) -> Says {
        let backend = BackendStatus { healthy, reason: (!healthy).then(|| String::from("loading")) };
        Says::Status(WorkerStatus { paused, idle, running, backend, ..WorkerStatus::default() })
    }

    fn node(engines: &[EnginePod], workers: &[WorkerPod]) -> Node {
        Node { engines: engines.to_vec(), workers: workers.to_vec() }
    }

    fn plan_for(nodes: &[Node], wanted: &Wanted) -> Plan {
        let nodes = nodes.iter().cloned().enumerate().map(|(at, node)| (format!("n{at}"), node)).collect();
        plan(&nodes, wanted, Timestamp::from_second(NOW).unwrap())
    }

    fn words(plan: &Plan) -> Vec<String> {
        let word = |step: &Step| match step {
            Step::Mark { worker } => format!("mark {worker}"),
            Step::Pause { worker } => format!("pause {worker}"),
            Step::Delete { engine, uid } => format!("delete {engine} {uid}"),
            Step::Resume { worker } => format!("resume {worker}"),
            Step::Unmark { worker } => format!("unmark {worker}"),
        };
        plan.steps.iter().map(word).collect()
    }

    fn old() -> EnginePod {
        engine("old")
    }

    #[test]
    fn each_situation_of_a_node_has_its_next_steps() {
        let terminating = |pod: EnginePod| EnginePod { terminating: true, ..pod };
        let unready = |pod: EnginePod| EnginePod { ready: false, ..pod };
        let gone = || Says::Unreachable(String::from("refused"));
        let table: [(&str, Node, &[&str], &str); 19] = [
            ("all is new", node(&[engine(NEW)], &[worker(None, Says::Nothing)]), &[], ""),
            (
                "it begins",
                node(&[old()], &[worker(None, Says::Nothing)]),
                &["mark worker", "pause worker"],
                "",
            ),
            ("nobody uses the engine", node(&[old()], &[]), &["delete engine-old uid-old"], ""),
            (
                "the operator was killed between mark and pause",
                node(&[old()], &[worker(Some(1), says(false, false, 2, true))]),
                &["pause worker"],
                "node n0 waits for worker to pause",
            ),
            (
                "something runs",
                node(&[old()], &[worker(Some(1), says(true, false, 2, true))]),
                &[],
                "node n0 waits for worker to finish its requests",
            ),
            (
                "nothing runs, but something may still come",
                node(&[old()], &[worker(Some(1), says(true, false, 0, true))]),
                &[],
                "node n0 waits for worker to finish its requests",
            ),
            (
                "idle",
                node(&[old()], &[worker(Some(1), says(true, true, 0, true))]),
                &["delete engine-old uid-old"],
                "node n0 waits for its new engine",
            ),
            (
                "one second before the time is over",
                node(&[old()], &[worker(Some(899), says(true, false, 2, true))]),
                &[],
                "node n0 waits for worker to finish its requests",
            ),
            (
                "the time is over",
                node(&[old()], &[worker(Some(900), says(true, false, 2, true))]),
                &["delete engine-old uid-old"],
                "node n0 waits for its new engine",
            ),
            (
                "a worker that serves cannot be asked",
                node(&[old()], &[worker(Some(1), gone())]),
                &[],
                "node n0 waits for worker to be asked: refused",
            ),
            (
                "a worker without a session cannot be asked",
                node(&[old()], &[WorkerPod { ready: false, ..worker(Some(1), gone()) }]),
                &["delete engine-old uid-old"],
                "node n0 waits for its new engine",
            ),
            (
                "an older worker still drains",
                node(
                    &[old()],
                    &[
                        worker(Some(1), says(true, true, 0, true)),
                        WorkerPod {
                            name: String::from("leaving"),
                            terminating: true,
                            ..worker(None, says(false, false, 1, true))
                        },
                    ],
                ),
                &[],
                "node n0 waits for leaving to finish its requests",
            ),
            (
                "the old engine is going",
                node(&[terminating(old())], &[worker(Some(1), says(true, true, 0, true))]),
                &[],
                "node n0 waits for its new engine",
            ),
            (
                "the new engine starts",
                node(&[unready(engine(NEW))], &[worker(Some(1), says(true, true, 0, true))]),
                &[],
                "node n0 waits for its new engine",
            ),
            (
                "the new engine runs",
                node(&[engine(NEW)], &[worker(Some(1), says(true, true, 0, true))]),
                &["resume worker"],
                "node n0 waits for worker to resume",
            ),
            (
                "the worker does not find it healthy",
                node(&[engine(NEW)], &[worker(Some(1), says(false, false, 0, false))]),
                &[],
                "node n0 waits for its new engine: loading",
            ),
            (
                "the worker serves again",
                node(&[engine(NEW)], &[worker(Some(1), says(false, false, 3, true))]),
                &["unmark worker"],
                "",
            ),
            (
                "the engine changed again while its successor started",
                node(&[unready(old())], &[worker(Some(1), says(true, true, 0, false))]),
                &["delete engine-old uid-old"],
                "node n0 waits for its new engine",
            ),
            (
                "a second worker came while the first was paused",
                node(
                    &[old()],
                    &[
                        worker(Some(1), says(true, true, 0, true)),
                        WorkerPod {
                            name: String::from("later"),
                            ..worker(None, says(false, false, 0, true))
                        },
                    ],
                ),
                &["mark later", "pause later"],
                "node n0 waits for later to pause",
            ),
        ];
        for (what, node, steps, waiting) in table {
            let plan = plan_for(&[node], &wanted());
            assert_eq!(words(&plan), steps, "{what}");
            assert_eq!(plan.waiting.join(", "), waiting, "{what}");
            assert_eq!(plan.is_over(), steps.is_empty() && waiting.is_empty(), "{what}");
        }
    }

    #[test]
    fn without_waiting_an_engine_goes_as_soon_as_its_worker_was_told() {
        let hasty = Wanted { wait_for_idle: false, ..wanted() };
        let plan = plan_for(&[node(&[old()], &[worker(Some(0), says(true, false, 5, true))])], &hasty);
        assert_eq!(words(&plan), ["delete engine-old uid-old"]);
    }

    #[test]
    fn no_more_nodes_than_allowed_are_without_an_engine() {
        let fresh = || node(&[old()], &[worker(None, Says::Nothing)]);
        let draining = || node(&[old()], &[worker(Some(1), says(true, false, 1, true))]);
        let loading = || node(&[EnginePod { ready: false, ..engine(NEW) }], &[worker(None, Says::Nothing)]);
        let done = || node(&[engine(NEW)], &[worker(None, Says::Nothing)]);
        let table = [
            (1, vec![fresh(), fresh(), fresh()], 1),
            (2, vec![fresh(), fresh(), fresh()], 2),
            (1, vec![draining(), fresh()], 0),
            (2, vec![draining(), fresh(), fresh()], 1),
            (1, vec![loading(), fresh()], 0),
            (1, vec![done(), fresh(), fresh()], 1),
        ];
        for (max_unavailable, nodes, begun) in table {
            let plan = plan_for(&nodes, &Wanted { max_unavailable, ..wanted() });
            let marks = plan.steps.iter().filter(|step| matches!(step, Step::Mark { .. })).count();
            assert_eq!(marks, begun, "{max_unavailable} {nodes:?}");
        }
    }

    #[test]
    fn engines_that_do_not_work_are_replaced_at_once() {
        let broken = || node(&[EnginePod { ready: false, ..old() }], &[worker(None, Says::Nothing)]);
        let loading = node(&[EnginePod { ready: false, ..engine(NEW) }], &[worker(None, Says::Nothing)]);
        let plan = plan_for(&[broken(), loading, broken()], &wanted());
        assert_eq!(plan.steps.iter().filter(|step| matches!(step, Step::Mark { .. })).count(), 2);
    }

    #[test]
    fn a_rollout_ends_wherever_it_is_interrupted() {
        // Plays the cluster: each step has its effect, engines come back, and after any number of steps of a pass the
        // operator forgets everything.
        for cut in 0..4 {
            let mut nodes: BTreeMap<String, Node> = (0..3)
                .map(|at| {
                    let name = |what: &str| format!("{what}-{at}");
                    let engine = EnginePod { name: name("engine"), uid: name("uid"), ..old() };
                    let worker =
                        WorkerPod { name: name("worker"), ..worker(None, says(false, false, 1, true)) };
                    (name("n"), node(&[engine], &[worker]))
                })
                .collect();
            let mut deleted = Vec::new();
            let mut passes = 0;
            loop {
                let plan = plan(&nodes, &wanted(), Timestamp::from_second(NOW).unwrap());
                if plan.is_over() {
                    break;
                }
                passes += 1;
                assert!(passes < 100, "stuck at {plan:?}");
                let take = if passes % 2 == 0 { cut } else { plan.steps.len() };
                for step in plan.steps.iter().take(take) {
                    perform(&mut nodes, step, &mut deleted);
                }
                let without = nodes.values().filter(|node| node.engines.iter().all(|one| !one.ready)).count();
                assert!(without <= 1, "{without} nodes without an engine");
                for node in nodes.values_mut() {
                    age(node);
                }
            }
            assert_eq!(deleted, ["uid-0", "uid-1", "uid-2"], "cut after {cut}");
            for node in nodes.values() {
                assert_eq!(node.workers[0].marked, None);
                assert!(matches!(&node.workers[0].says, Says::Status(status) if !status.paused));
            }
        }
    }

    fn perform(nodes: &mut BTreeMap<String, Node>, step: &Step, deleted: &mut Vec<String>) {
        let mut with = |name: &String, act: &mut dyn FnMut(&mut WorkerPod)| {
            nodes
                .values_mut()
                .flat_map(|node| &mut node.workers)
                .filter(|pod| pod.name == *name)
                .for_each(act);
        };
        let pause = |pod: &mut WorkerPod, paused: bool| {
            if let Says::Status(status) = &mut pod.says {
                status.paused = paused;
                status.backend.healthy = paused;
            }
        };
        match step {
            Step::Mark { worker } => with(worker, &mut |pod| pod.marked = Timestamp::from_second(NOW).ok()),
            Step::Unmark { worker } => with(worker, &mut |pod| pod.marked = None),
            Step::Pause { worker } => with(worker, &mut |pod| pause(pod, true)),
            Step::Resume { worker } => with(worker, &mut |pod| pause(pod, false)),
            Step::Delete { engine, uid } => {
                deleted.push(uid.clone());
                for node in nodes.values_mut() {
                    for pod in node.engines.iter_mut().filter(|pod| pod.name == *engine) {
                        *pod = EnginePod { ready: false, revision: Some(String::from(NEW)), ..pod.clone() };
                    }
                }
            }
        }
    }

    /// What happens by itself between two looks: requests end, engines load, workers find them healthy.
    fn age(node: &mut Node) {
        for worker in &mut node.workers {
            if let Says::Status(status) = &mut worker.says {
                if status.paused && status.running > 0 {
                    status.running = 0;
                } else if status.paused {
                    status.idle = true;
                }
                status.backend.healthy |= node.engines.iter().any(|engine| engine.ready) && !status.paused;
            }
        }
        for engine in &mut node.engines {
            engine.ready = true;
        }
    }
}
