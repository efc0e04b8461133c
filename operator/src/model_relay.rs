//! The reconciler of `ModelRelay`: fetch, validate, build, apply, and report what became of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use kube::runtime::controller::Action;
use kube::runtime::reflector::Store;

use crate::api::ModelRelay;
use crate::api::condition::reason;
use crate::apply::{ApplyError, Owner};
use crate::client_keys::KeyProblem;
use crate::context::Context;
use crate::error::ReconcileError;
use crate::generated::token_of;
use crate::naming::{self, PAUSED, Part};
use crate::resync::resync;

pub mod access;
pub mod apply;
pub mod build;
pub mod fetch;
mod memory;
mod observe;
mod pods;
mod report;
pub mod status;
pub mod validate;

use build::service;
use build::settings::Settings;
pub(crate) use memory::Memories;
use memory::Memory;
use observe::Observing;
use pods::RelayPod;
use status::{Outcome, PodOutcome, SpecOutcome};
use validate::Problem;

/// Converges one relay, and says in its status what became of it.
///
/// # Errors
/// Something failed that may work when it is tried again. The status tells of it as far as it could be written.
pub async fn reconcile(relay: Arc<ModelRelay>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    if relay.metadata.deletion_timestamp.is_some() {
        // Its children go with it; making them again would only hold that up.
        return Ok(Action::await_change());
    }
    let mut memory = ctx.relays.take(&relay);
    let result = look(&relay, &ctx, &mut memory).await;
    ctx.relays.put(&relay, memory);
    sweep(&ctx);
    result
}

/// Forgets relays that are gone.
fn sweep(ctx: &Context) {
    let relays = &ctx.caches.model_relays;
    let known: usize = relays.stores().iter().map(Store::len).sum();
    if ctx.relays.len() > known && relays.is_ready() {
        let lives = |(namespace, name): &(String, String)| relays.get(namespace, name).is_some();
        ctx.relays.retain(lives);
        ctx.fleet.retain(lives);
    }
}

async fn look(relay: &ModelRelay, ctx: &Context, memory: &mut Memory) -> Result<Action, ReconcileError> {
    let now = tokio::time::Instant::now().into_std();
    let owner = Owner::of(relay);
    let paused = relay.annotations().get(PAUSED).is_some_and(|value| value == "true");
    report::announce(relay, ctx, memory).await?;
    let done = if paused { Done::paused() } else { converge(relay, ctx, &owner).await };
    report::tell_keys(ctx, &done.key_problems, memory).await;
    let revision = done.revision.clone().or_else(|| revision_seen(ctx, &owner));
    let seen = see(ctx, &owner, &done, revision.as_deref(), memory, now).await;
    let mut outcome = Outcome {
        generation: relay.metadata.generation,
        spec: done.spec,
        paused,
        revision,
        url: service::client_url(relay),
        selector: selector(&owner.name),
        ..Outcome::default()
    };
    let next = match seen {
        Ok(seen) => {
            outcome.pods = Some(pod_outcomes(&seen.pods, memory));
            outcome.pods_refused = seen.pods_refused;
            let view = ctx.fleet.view(&owner.namespace, &owner.name).filter(|view| view.is_known());
            outcome.workers = view.map(|view| view.workers());
            Ok(seen.next)
        }
        Err(error) => Err(error),
    };
    // Reported on failure too: a user looks at the status before the logs.
    report::report(relay, ctx, &outcome, memory, now).await?;
    match done.error {
        Some(error) => Err(error),
        None => Ok(Action::requeue(next?.unwrap_or_else(resync))),
    }
}

/// How far the spec was carried out.
#[derive(Debug, Default)]
struct Done {
    spec: SpecOutcome,
    /// The token for the admin API.
    admin: Option<String>,
    /// The revision of the settings, if they are as they should be.
    revision: Option<String>,
    key_problems: Vec<KeyProblem>,
    error: Option<ReconcileError>,
}

impl Done {
    fn paused() -> Self {
        Self { spec: SpecOutcome::Paused, ..Self::default() }
    }

    fn failed(error: ReconcileError) -> Self {
        let spec = match &error {
            ReconcileError::Apply(refused) if is_refusal(refused) => {
                SpecOutcome::Done { refused: Some(refusal(refused)), unresolved: Vec::new() }
            }
            error => failure(error),
        };
        Self { spec, error: Some(error), ..Self::default() }
    }
}

async fn converge(relay: &ModelRelay, ctx: &Context, owner: &Owner) -> Done {
    let references = match fetch::fetch(relay, ctx) {
        Ok(references) => references,
        Err(error) => return Done::failed(error),
    };
    let prepared = match apply::prepare(ctx, owner, relay).await {
        Ok(prepared) => prepared,
        Err(error) => return Done::failed(error.into()),
    };
    let valid = validate::validate(relay, &references, &prepared, &ctx.options);
    let desired = build::resources(relay, &valid, &ctx.options);
    let applied = Box::pin(apply::apply(ctx, owner, desired)).await;
    let refusals = applied.errors.iter().filter(|error| is_refusal(error));
    let refused = valid.refused.or_else(|| refusals.map(refusal).next());
    // What may mend itself goes first: the rest is in the status.
    let error = applied.errors.into_iter().min_by_key(is_refusal).map(ReconcileError::from);
    let spec = match (refused, &error) {
        (None, Some(error)) => failure(error),
        (refused, _) => SpecOutcome::Done { refused, unresolved: valid.unresolved },
    };
    let revision = valid.settings.filter(|_| applied.settings).map(|settings| settings.revision);
    Done { spec, admin: prepared.admin, revision, key_problems: valid.key_problems, error }
}

fn is_refusal(error: &ApplyError) -> bool {
    matches!(error, ApplyError::NameConflict { .. } | ApplyError::Refused { .. })
}

fn refusal(error: &ApplyError) -> Problem {
    let reason = match error {
        ApplyError::NameConflict { .. } => reason::NAME_CONFLICT,
        _ => reason::CHILD_REFUSED,
    };
    Problem::new(reason, error.to_string())
}

fn failure(error: &ReconcileError) -> SpecOutcome {
    let lasting = match error {
        ReconcileError::Call(error) => error.is_forbidden(),
        ReconcileError::Apply(_) | ReconcileError::NotReady(_) => false,
    };
    SpecOutcome::Failed { message: error.to_string(), lasting }
}

/// What was seen of the relay's pods.
#[derive(Debug)]
struct Seen {
    pods: Vec<RelayPod>,
    pods_refused: Option<String>,
    next: Option<Duration>,
}

async fn see(
    ctx: &Context,
    owner: &Owner,
    done: &Done,
    revision: Option<&str>,
    memory: &mut Memory,
    now: Instant,
) -> Result<Seen, ReconcileError> {
    let name = naming::relay::workload(&owner.name);
    let deployment = ctx.caches.deployments.get(&owner.namespace, &name);
    let deployment = deployment.filter(|deployment| owner.controls(&deployment.metadata));
    let pods = pods::find(ctx, owner, deployment.as_deref(), &mut memory.replica_sets).await?;
    let admin = done.admin.clone().or_else(|| {
        let secret = ctx.caches.secrets.get(&owner.namespace, &naming::relay::admin(&owner.name))?;
        token_of(&secret).filter(|_| owner.controls(&secret.metadata))
    });
    let observing = Observing {
        ctx,
        owner,
        pods: &pods,
        admin: admin.as_deref(),
        revision,
        paused: matches!(done.spec, SpecOutcome::Paused),
    };
    let next = observing.observe(memory, now).await;
    Ok(Seen { pods_refused: deployment.as_deref().and_then(replica_failure), pods, next })
}

/// The revision of the settings that were written last, as far as the watch tells.
fn revision_seen(ctx: &Context, owner: &Owner) -> Option<String> {
    let secret = ctx.caches.secrets.get(&owner.namespace, &naming::relay::settings(&owner.name))?;
    let settings = Settings::of(&secret).filter(|_| owner.controls(&secret.metadata))?;
    Some(settings.revision)
}

/// Why the pods of a Deployment are not created, if that is so.
fn replica_failure(deployment: &Deployment) -> Option<String> {
    let mut conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let failure = conditions.find(|one| one.type_ == "ReplicaFailure" && one.status == "True")?;
    Some(failure.message.clone().unwrap_or_else(|| "pods are not created".to_owned()))
}

fn pod_outcomes(pods: &[RelayPod], memory: &Memory) -> Vec<PodOutcome> {
    let staying = pods.iter().filter(|pod| !pod.leaving);
    staying
        .map(|pod| PodOutcome {
            name: pod.pod.name_any(),
            ready: pod.ready,
            settings: memory.asked.get(&pod.uid).map(|asked| asked.answer.clone()),
        })
        .collect()
}

fn selector(name: &str) -> String {
    let labels = Part::Relay.selector(name);
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
