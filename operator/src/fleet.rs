//! What the relays say of their workers: asked for by the ModelRelay reconciler, read by both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::condition::shortened;
use crate::relay_client::{AskError, WorkerReport};

/// The newest answers of every relay's pods.
#[derive(Debug, Default)]
pub struct Fleet {
    /// By the relay's namespace and name.
    views: Mutex<BTreeMap<(String, String), Arc<RelayView>>>,
}

impl Fleet {
    /// Notes what a relay's pods answered. Returns whether its workers are not as they were.
    pub fn put(&self, (namespace, name): (&str, &str), view: RelayView) -> bool {
        let (key, view) = ((namespace.to_owned(), name.to_owned()), Arc::new(view));
        let before = self.locked().insert(key, view.clone());
        let known = |view: &RelayView| (view.is_ready(), view.is_known().then(|| view.workers()));
        before.map(|view| known(&view)) != Some(known(&view))
    }

    /// Returns what the relay's pods answered last. Nothing when they were not asked yet.
    pub fn view(&self, namespace: &str, name: &str) -> Option<Arc<RelayView>> {
        self.locked().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Forgets what a relay's pods answered.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.locked().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Forgets relays that are gone, by namespace and name.
    pub fn retain(&self, lives: impl Fn(&(String, String)) -> bool) {
        self.locked().retain(|key, _| lives(key));
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<(String, String), Arc<RelayView>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the pods of one relay answered when they were asked for their workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RelayView {
    /// The Ready pods that were asked, by name. None when no pod is Ready.
    pub answers: BTreeMap<String, Result<Vec<WorkerReport>, AskError>>,
}

/// One worker process, whatever number of relays it has sessions with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// The namespace of its pool; absent for credentials that name none.
    pub namespace: Option<String>,
    /// Its pool.
    pub pool: String,
    /// Whether it takes requests.
    pub state: WorkerState,
    /// Why it takes none, as far as it says so.
    pub reason: Option<String>,
    /// What it serves.
    pub models: BTreeSet<String>,
}

/// Whether a worker takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerState {
    /// It has a session and serves nothing.
    NotReady,
    /// It finishes what runs and leaves.
    Draining,
    /// It takes requests.
    Ready,
}

impl WorkerState {
    fn of(report: &WorkerReport) -> Self {
        match report.state.as_str() {
            "ready" => Self::Ready,
            "draining" => Self::Draining,
            _ => Self::NotReady,
        }
    }
}

impl RelayView {
    /// Whether any pod is Ready.
    pub fn is_ready(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Whether any pod answered: without an answer nothing can be counted.
    pub fn is_known(&self) -> bool {
        self.answers.values().any(Result::is_ok)
    }

    /// Returns the distinct workers over all pods, by pool, name and instance. One that any relay can send requests to is
    /// ready. A worker that names no instance (a v1 worker) counts once for each session.
    pub fn workers(&self) -> Vec<Worker> {
        let mut workers: BTreeMap<_, Worker> = BTreeMap::new();
        for (pod, answer) in &self.answers {
            for (row, report) in answer.iter().flatten().enumerate() {
                let session = report.instance.is_none().then_some((pod, row));
                let key = (&report.namespace, &report.pool, &report.name, &report.instance, session);
                let state = WorkerState::of(report);
                let worker = workers.entry(key).or_insert_with(|| Worker {
                    name: shortened(report.name.clone(), NAME_BYTES),
                    namespace: report.namespace.clone(),
                    pool: report.pool.clone(),
                    state,
                    reason: reason(report),
                    models: BTreeSet::new(),
                });
                if state > worker.state {
                    worker.state = state;
                    worker.reason = reason(report);
                }
                worker.models.extend(report.models.iter().map(|model| shortened(model.clone(), NAME_BYTES)));
            }
        }
        workers.into_values().collect()
    }

    /// Returns the distinct workers of one pool.
    pub fn workers_of(&self, namespace: &str, pool: &str) -> Vec<Worker> {
        let mut workers = self.workers();
        workers.retain(|worker| worker.pool == pool && worker.namespace.as_deref() == Some(namespace));
        workers
    }
}

/// What workers say of themselves ends up in a status, of which the API server refuses all when one text is too long: a
/// single worker could then blind everybody to the others.
const NAME_BYTES: usize = 512;
const REASON_BYTES: usize = 1024;

fn reason(report: &WorkerReport) -> Option<String> {
    report.reason.clone().map(|reason| shortened(reason, REASON_BYTES))
}

/// How many workers there are, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// With a session.
    pub connected: usize,
    /// Those of them that take requests.
    pub ready: usize,
    /// Those of them that finish what runs and leave.
    pub draining: usize,
}

/// Counts workers by state.
pub fn count(workers: &[Worker]) -> Counts {
    let of = |state| workers.iter().filter(|worker| worker.state == state).count();
    Counts { connected: workers.len(), ready: of(WorkerState::Ready), draining: of(WorkerState::Draining) }
}

/// Returns how many ready workers serve each model, by the model's name.
pub fn served(workers: &[Worker]) -> BTreeMap<&str, usize> {
    let mut served = BTreeMap::new();
    for worker in workers.iter().filter(|worker| worker.state == WorkerState::Ready) {
        for model in &worker.models {
            *served.entry(model.as_str()).or_default() += 1;
        }
    }
    served
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, instance: Option<&str>, pool: &str, state: &str, models: &[&str]) -> WorkerReport {
        WorkerReport {
            name: name.to_owned(),
            instance: instance.map(str::to_owned),
            pool: pool.to_owned(),
            namespace: Some("inference".to_owned()),
            state: state.to_owned(),
            reason: (state == "not_ready").then(|| "no backend".to_owned()),
            models: models.iter().map(|&model| model.to_owned()).collect(),
        }
    }

    fn view(answers: &[(&str, &[WorkerReport])]) -> RelayView {
        let answers = answers.iter().map(|&(pod, reports)| (pod.to_owned(), Ok(reports.to_vec()))).collect();
        RelayView { answers }
    }

    #[test]
    fn a_worker_counts_once_whatever_number_of_relays_it_has_sessions_with() {
        let one = report("w1", Some("i1"), "a100", "ready", &["coder"]);
        let two = report("w2", Some("i2"), "a100", "not_ready", &[]);
        let view = view(&[("r1", &[one.clone(), two.clone()]), ("r2", &[two, one])]);
        assert_eq!(count(&view.workers()), Counts { connected: 2, ready: 1, draining: 0 });
    }

    #[test]
    fn what_a_worker_says_of_itself_fits_into_a_status() {
        let long = "ä".repeat(5000);
        let mut talkative = report(&long, None, "a100", "not_ready", &[&long]);
        talkative.reason = Some(long.clone());
        let workers = view(&[("r1", &[talkative])]).workers();
        let crds = crate::api::schema::crds().map(|crd| serde_json::to_value(crd).unwrap());
        let most = |kind: usize, path: &str| {
            let status = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties";
            crds[kind].pointer(&format!("{status}/{path}/maxLength")).unwrap().as_u64().unwrap()
        };
        let fits = |text: &str, most: u64| text.len() as u64 <= most && text.ends_with('…');
        let row = "unhealthy/items/properties";
        assert!(fits(&workers[0].name, most(1, &format!("{row}/worker"))));
        assert!(fits(workers[0].reason.as_ref().unwrap(), most(1, &format!("{row}/message"))));
        for kind in [0, 1] {
            assert!(fits(workers[0].models.first().unwrap(), most(kind, "models/items/properties/name")));
        }
    }

    #[test]
    fn processes_of_the_same_name_and_v1_workers_count_each() {
        let view = view(&[
            (
                "r1",
                &[
                    report("w", Some("i1"), "a100", "ready", &["coder"]),
                    report("w", Some("i2"), "a100", "draining", &["coder"]),
                    report("v1", None, "a100", "ready", &["coder"]),
                    report("v1", None, "a100", "ready", &["coder", "chat"]),
                ],
            ),
            ("r2", &[report("v1", None, "a100", "ready", &["chat"])]),
        ]);
        let workers = view.workers();
        assert_eq!(count(&workers), Counts { connected: 5, ready: 4, draining: 1 });
        assert_eq!(served(&workers), [("chat", 2), ("coder", 3)].into());
    }

    #[test]
    fn a_worker_that_any_relay_can_use_is_ready() {
        let view = view(&[
            ("r1", &[report("w", Some("i"), "a100", "not_ready", &[])]),
            ("r2", &[report("w", Some("i"), "a100", "ready", &["coder"])]),
        ]);
        let workers = view.workers();
        assert_eq!((workers.len(), workers[0].state, &workers[0].reason), (1, WorkerState::Ready, &None));
        assert_eq!(served(&workers), [("coder", 1)].into());
    }

    #[test]
    fn pools_are_told_apart_by_namespace_and_name() {
        let mut other = report("w2", Some("i2"), "a100", "ready", &[]);
        other.namespace = Some("lab".to_owned());
        let view = view(&[(
            "r1",
            &[
                report("w1", Some("i1"), "a100", "ready", &[]),
                other,
                report("w3", Some("i3"), "l4", "not_ready", &[]),
            ],
        )]);
        let names = |pool| -> Vec<_> {
            view.workers_of("inference", pool)
                .into_iter()
                .map(|worker| (worker.name, worker.reason))
                .collect()
        };
        assert_eq!(names("a100"), [("w1".to_owned(), None)]);
        assert_eq!(names("l4"), [("w3".to_owned(), Some("no backend".to_owned()))]);
    }

    #[test]
    fn one_answer_is_enough_to_count_and_none_is_not() {
        let error =
            AskError::Unreachable { address: "10.0.0.1:8081".to_owned(), problem: "refused".to_owned() };
        let mut view = view(&[("r1", &[])]);
        view.answers.insert("r2".to_owned(), Err(error.clone()));
        assert!(view.is_known());
        view.answers.insert("r1".to_owned(), Err(error));
        assert!(!view.is_known());
        assert!(!RelayView::default().is_known());
    }

    #[test]
    fn changed_workers_are_noticed_and_nothing_else() {
        let fleet = Fleet::default();
        let mut other = report("w", Some("i"), "a100", "ready", &["coder"]);
        let one = view(&[("r1", &[other.clone()])]);
        let moved = view(&[("r2", &[other.clone()]), ("r3", &[other.clone()])]);
        other.state = "draining".to_owned();
        let drains = view(&[("r1", &[other])]);
        let changed = [one.clone(), one, moved, drains, RelayView::default(), RelayView::default()]
            .map(|view| fleet.put(("n", "main"), view));
        assert_eq!(changed, [true, false, false, true, true, false]);
    }

    #[test]
    fn views_are_kept_by_relay_until_it_is_gone() {
        let fleet = Fleet::default();
        fleet.put(("inference", "main"), RelayView::default());
        assert!(fleet.view("inference", "main").is_some() && fleet.view("lab", "main").is_none());
        fleet.retain(|(namespace, _)| namespace != "inference");
        assert_eq!(fleet.view("inference", "main"), None);
    }
}
