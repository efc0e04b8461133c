//! What the status of a pool says: a function of what came of a reconcile and of what is seen.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::validate::Refusal;
use crate::api::condition::{Truth, Verdict, conditions, find, kind, reason};
use crate::api::worker_pool::{PoolType, UnhealthyWorker};
use crate::api::{ServedModel, WorkerPoolStatus};
use crate::fleet::{Worker, WorkerState, count, served};

mod facts;
#[cfg(test)]
mod tests;

pub(super) use facts::{Facts, Outcome, Progress, SetCounts, Trouble};

/// Models that a status lists.
const MODELS: usize = 64;
/// Unhealthy workers that a status lists.
const UNHEALTHY: usize = 10;

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
