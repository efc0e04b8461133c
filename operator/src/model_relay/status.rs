//! What a ModelRelay's status says. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::validate::Problem;
use crate::api::ServedModel;
use crate::api::condition::{self, Truth, Verdict, find, kind, reason};
use crate::api::model_relay::{ModelRelayStatus, WorkerCounts};
use crate::fleet::{self, Worker};
use crate::relay_client::{AskError, ConfigReport};

/// The most models that a status lists.
const MOST_MODELS: usize = 64;

/// How a reconcile went and what it saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The generation of the spec that was looked at.
    pub generation: Option<i64>,
    /// Whether the spec was carried out, as far as it went.
    pub spec: SpecOutcome,
    /// Whether writes are stopped by annotation.
    pub paused: bool,
    /// The revision of the settings that were written last.
    pub revision: Option<String>,
    /// The endpoint for applications in the cluster.
    pub url: String,
    /// Selects the relay pods.
    pub selector: String,
    /// The relay pods that are not being deleted; absent when they could not be looked up.
    pub pods: Option<Vec<PodOutcome>>,
    /// Why pods are not created, as their Deployment says.
    pub pods_refused: Option<String>,
    /// The distinct workers; absent when no relay could be asked.
    pub workers: Option<Vec<Worker>>,
}

/// How far the spec was carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum SpecOutcome {
    /// It was looked at, and everything was tried.
    Done {
        /// What is wrong with the spec, or with a child.
        refused: Option<Problem>,
        /// What is wrong with what it refers to.
        unresolved: Vec<Problem>,
    },
    /// The API server failed before it was known. What was said before stands, unless `lasting`.
    Failed {
        /// What went wrong.
        message: String,
        /// Whether trying again alone will not help, as with missing rights.
        lasting: bool,
    },
    /// Nothing was tried.
    Paused,
}

impl Default for SpecOutcome {
    fn default() -> Self {
        Self::Done { refused: None, unresolved: Vec::new() }
    }
}

/// A relay pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodOutcome {
    /// Its name.
    pub name: String,
    /// Whether it is Ready.
    pub ready: bool,
    /// What it said of its settings; absent when it was not asked.
    pub settings: Option<Result<ConfigReport, AskError>>,
}

/// Puts the status together. A condition of which nothing new is known stays as it was.
pub fn status(outcome: &Outcome, previous: Option<&ModelRelayStatus>, now: &Time) -> ModelRelayStatus {
    let before = previous.map_or(&[][..], |status| &status.conditions);
    let verdicts = [
        (kind::ACCEPTED, accepted(outcome, before)),
        (kind::RESOLVED_REFS, resolved(outcome)),
        (kind::PROGRAMMED, programmed(outcome)),
        (kind::AVAILABLE, available(outcome)),
    ];
    let kept = previous.cloned().unwrap_or_default();
    // What a paused relay says is true of the spec that was acted on last.
    let generation = match outcome.spec {
        SpecOutcome::Paused => kept.observed_generation,
        SpecOutcome::Done { .. } | SpecOutcome::Failed { .. } => outcome.generation,
    };
    let told = |verdict: Verdict| condition::conditions(&[verdict], before, generation, now);
    let mut conditions: Vec<Condition> = Vec::new();
    for (kind, verdict) in verdicts {
        match (verdict, find(before, kind)) {
            (Some(verdict), _) => conditions.extend(told(verdict)),
            (None, Some(standing)) => conditions.push(standing.clone()),
            (None, None) => conditions.extend(told(unknown(kind, outcome))),
        }
    }
    if outcome.paused {
        let message = "the annotation modelrelay.io/paused stops every write; remove it to go on";
        conditions.extend(told(Verdict::new(kind::PROGRESSING, false, reason::PAUSED, message)));
    }
    let ready = ready(&conditions, generation, before, now);
    conditions.push(ready);
    let pods = outcome.pods.as_deref();
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    ModelRelayStatus {
        observed_generation: match outcome.spec {
            SpecOutcome::Done { .. } => outcome.generation,
            SpecOutcome::Failed { .. } | SpecOutcome::Paused => kept.observed_generation,
        },
        replicas: pods.map_or(kept.replicas, |pods| Some(count(pods.len()))),
        ready_replicas: pods
            .map_or(kept.ready_replicas, |pods| Some(count(pods.iter().filter(|pod| pod.ready).count()))),
        selector: Some(outcome.selector.clone()),
        config_revision: outcome.revision.clone(),
        url: Some(outcome.url.clone()),
        workers: outcome.workers.as_deref().map(counted),
        models: outcome.workers.as_deref().map(served),
        conditions,
    }
}

/// What is said on the first visit, before anything is done: tools take "no conditions" for done.
pub fn first(generation: Option<i64>, now: &Time) -> ModelRelayStatus {
    let pending = Verdict::new(kind::READY, Truth::Unknown, reason::PENDING, "the operator has just begun");
    ModelRelayStatus {
        conditions: condition::conditions(&[pending], &[], generation, now),
        ..ModelRelayStatus::default()
    }
}

/// Returns what to write, if anything: counts of workers only when they are due, everything else at once.
pub fn to_write(
    mut desired: ModelRelayStatus,
    previous: Option<&ModelRelayStatus>,
    counts_due: bool,
) -> Option<ModelRelayStatus> {
    if let Some(previous) = previous.filter(|_| !counts_due) {
        desired.workers.clone_from(&previous.workers);
        desired.models.clone_from(&previous.models);
    }
    (Some(&desired) != previous).then_some(desired)
}

fn counted(workers: &[Worker]) -> WorkerCounts {
    let counts = fleet::count(workers);
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    WorkerCounts {
        connected: count(counts.connected),
        ready: count(counts.ready),
        draining: count(counts.draining),
    }
}

fn served(workers: &[Worker]) -> Vec<ServedModel> {
    let served = fleet::served(workers).into_iter().take(MOST_MODELS);
    served
        .map(|(name, ready)| ServedModel {
            name: name.to_owned(),
            ready_workers: i32::try_from(ready).unwrap_or(i32::MAX),
        })
        .collect()
}

fn unknown(kind: &'static str, outcome: &Outcome) -> Verdict {
    let (reason, message) = match &outcome.spec {
        SpecOutcome::Done { .. } => (reason::PENDING, "the relay pods are not known yet".to_owned()),
        SpecOutcome::Failed { message, .. } => (reason::API_ERROR, message.clone()),
        SpecOutcome::Paused => (reason::PAUSED, "nothing is looked at while writes are stopped".to_owned()),
    };
    Verdict::new(kind, Truth::Unknown, reason, message)
}

fn accepted(outcome: &Outcome, before: &[Condition]) -> Option<Verdict> {
    match &outcome.spec {
        SpecOutcome::Done { refused: None, .. } => Some(Verdict::new(
            kind::ACCEPTED,
            true,
            reason::ACCEPTED,
            "the spec is valid and every object that it asks for is written",
        )),
        SpecOutcome::Done { refused: Some(problem), .. } => {
            Some(Verdict::new(kind::ACCEPTED, false, problem.reason, problem.message.clone()))
        }
        // A hiccup says nothing about the spec; but nobody has looked at a new one.
        SpecOutcome::Failed { message, lasting } => {
            let stands = find(before, kind::ACCEPTED)
                .is_some_and(|one| !lasting && one.observed_generation == outcome.generation);
            (!stands)
                .then(|| Verdict::new(kind::ACCEPTED, Truth::Unknown, reason::API_ERROR, message.clone()))
        }
        SpecOutcome::Paused => None,
    }
}

fn resolved(outcome: &Outcome) -> Option<Verdict> {
    let SpecOutcome::Done { unresolved, .. } = &outcome.spec else { return None };
    Some(match unresolved.first() {
        None => Verdict::new(kind::RESOLVED_REFS, true, reason::RESOLVED, "everything referred to is usable"),
        Some(first) => {
            let messages: Vec<_> = unresolved.iter().map(|problem| problem.message.as_str()).collect();
            Verdict::new(kind::RESOLVED_REFS, false, first.reason, messages.join("; "))
        }
    })
}

fn programmed(outcome: &Outcome) -> Option<Verdict> {
    let pods = outcome.pods.as_deref()?;
    let verdict = |status: Truth, reason, message: String| {
        Some(Verdict::new(kind::PROGRAMMED, status, reason, message))
    };
    let Some(revision) = &outcome.revision else {
        return verdict(Truth::False, reason::PENDING, "no settings have been written yet".to_owned());
    };
    let ready: Vec<_> = pods.iter().filter(|pod| pod.ready).collect();
    if ready.is_empty() {
        let message = "no relay pod is Ready that could run with the settings".to_owned();
        return verdict(Truth::False, reason::NO_READY_RELAY, message);
    }
    let (mut pending, mut unreachable, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
    for pod in &ready {
        match &pod.settings {
            Some(Ok(report)) if report.revision == *revision => {
                if !report.ignored.is_empty() {
                    ignored.push(format!("{} ignores {}", pod.name, report.ignored.join(", ")));
                }
            }
            Some(Ok(ConfigReport { problem: Some(problem), .. })) => {
                let message = format!("{} refuses revision {revision}: {problem}", pod.name);
                return verdict(Truth::False, reason::SETTINGS_REFUSED, message);
            }
            Some(Ok(_)) => pending.push(pod.name.as_str()),
            Some(Err(error)) => unreachable.push(format!("{}: {error}", pod.name)),
            None => unreachable.push(format!("{}: it was not asked", pod.name)),
        }
    }
    let total = ready.len();
    if !pending.is_empty() {
        let message = format!(
            "{} of {total} ready relay pods do not run with revision {revision} yet: {}",
            pending.len(),
            pending.join(", ")
        );
        return verdict(Truth::False, reason::PENDING, message);
    }
    if !unreachable.is_empty() {
        let message = format!(
            "cannot be asked on port 8081, which a NetworkPolicy has to let the operator reach: {}",
            unreachable.join("; ")
        );
        return verdict(Truth::Unknown, reason::RELAY_UNREACHABLE, message);
    }
    if !ignored.is_empty() {
        let message = format!(
            "the relay's version does not know every setting; update its image: {}",
            ignored.join("; ")
        );
        return verdict(Truth::False, reason::SETTINGS_IGNORED, message);
    }
    verdict(
        Truth::True,
        reason::PROGRAMMED,
        format!("every ready relay pod ({total}) runs with revision {revision}"),
    )
}

fn available(outcome: &Outcome) -> Option<Verdict> {
    let pods = outcome.pods.as_deref()?;
    let ready = pods.iter().filter(|pod| pod.ready).count();
    Some(match (ready, &outcome.pods_refused) {
        (0, Some(message)) => Verdict::new(kind::AVAILABLE, false, reason::PODS_REFUSED, message.clone()),
        (0, None) => {
            let message = format!(
                "none of {} relay pods is Ready; look at them with: kubectl get pods -l {}",
                pods.len(),
                outcome.selector
            );
            Verdict::new(kind::AVAILABLE, false, reason::NO_READY_RELAY, message)
        }
        (ready, _) => {
            let message = format!("{ready} of {} relay pods are Ready", pods.len());
            Verdict::new(kind::AVAILABLE, true, reason::AVAILABLE, message)
        }
    })
}

/// Ready follows from the others: accepted, available, and not known to run with old settings.
fn ready(conditions: &[Condition], generation: Option<i64>, before: &[Condition], now: &Time) -> Condition {
    let has = |kind: &str, status: Truth| find(conditions, kind).filter(|one| one.status == status.as_str());
    let blocking = has(kind::ACCEPTED, Truth::False)
        .or_else(|| has(kind::AVAILABLE, Truth::False))
        .or_else(|| has(kind::PROGRAMMED, Truth::False));
    let uncertain = has(kind::ACCEPTED, Truth::Unknown).or_else(|| has(kind::AVAILABLE, Truth::Unknown));
    let (status, reason, message) = match (blocking, uncertain) {
        (Some(one), _) => (Truth::False, one.reason.clone(), one.message.clone()),
        (None, Some(one)) => (Truth::Unknown, one.reason.clone(), one.message.clone()),
        (None, None) => {
            let message =
                find(conditions, kind::AVAILABLE).map_or_else(String::new, |one| one.message.clone());
            (Truth::True, reason::READY.to_owned(), message)
        }
    };
    let since = find(before, kind::READY).filter(|one| one.status == status.as_str());
    Condition {
        type_: kind::READY.to_owned(),
        status: status.as_str().to_owned(),
        reason,
        message,
        observed_generation: generation,
        last_transition_time: since.map_or_else(|| now.clone(), |one| one.last_transition_time.clone()),
    }
}

#[cfg(test)]
mod tests;
