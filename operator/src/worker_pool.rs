//! The reconciler of `WorkerPool`.
//!
//! | module | owns |
//! | --- | --- |
//! | `fetch` | what a pool refers to |
//! | `validate` | from a spec to values that cannot be wrong |
//! | `build` | every child, rendered |
//! | `apply` | the children, written |
//! | `rollout` | replacing engines node by node |
//! | `nudge` | changed settings reach workers soon |
//! | `status` | what the status says |

mod apply;
mod build;
mod fetch;
mod memory;
mod nudge;
mod pods;
mod refused;
mod rollout;
mod status;
mod validate;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;

use crate::api::condition::{self, reason};
use crate::api::worker_pool::PoolType;
use crate::api::{GROUP, VERSION, WorkerPool, WorkerPoolStatus};
use crate::apply::Owner;
use crate::context::{CallError, Context};
use crate::error::ReconcileError;
use crate::generated::{sha256, token_of};
use crate::naming::{ENGINE_REVISION, FIELD_MANAGER, PAUSED, pool as names, relay as relay_names};
use crate::resync::resync;
use crate::triggers::relay_of;

use apply::{Stop, Written};
pub(crate) use memory::Memory;
use pods::pods_of;
use rollout::{Plan, Wanted};
use status::{Facts, Outcome, Progress, SetCounts, Trouble, Worth};
use validate::{Backend, Managed, Valid};

/// What only somebody else's change can help with, without being watched, is looked at so often.
const REFUSED_RETRY: Duration = Duration::from_secs(60);
/// While something goes on that is not watched.
const POLL: Duration = Duration::from_secs(1);
/// While pods are missing, or a Service.
const SLOW_POLL: Duration = Duration::from_secs(10);
/// Pods that are missing for so long are asked about.
const LACKING_FOR: Duration = Duration::from_secs(3);
/// Figures are written at most so often.
const COUNTS_EVERY: Duration = Duration::from_secs(10);

/// Converges one WorkerPool.
///
/// # Errors
/// Trying again may help. A spec that cannot be acted on is reported in the status instead.
pub async fn reconcile(pool: Arc<WorkerPool>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    if pool.metadata.deletion_timestamp.is_some() {
        // The children go by their owner references.
        return Ok(Action::await_change());
    }
    let mut previous = pool.status.clone().unwrap_or_default();
    if previous.conditions.is_empty() {
        previous = status::first(pool.metadata.generation, &Time(Timestamp::now()));
        write(&ctx, &pool, &previous).await?;
    }
    let mut turn = converge(&pool, &ctx).await;
    // Reported on failure too: a user looks at the status before the logs.
    let reported = report(&pool, &ctx, &mut turn, previous).await;
    if let Some(error) = turn.error {
        return Err(error);
    }
    reported?;
    let next = resync();
    Ok(Action::requeue(turn.again.map_or(next, |again| again.min(next))))
}

/// What one pass came to.
#[derive(Debug)]
struct Turn {
    outcome: Outcome,
    looks_for: String,
    engine_pending: bool,
    rollout: Option<Plan>,
    error: Option<ReconcileError>,
    /// When to look again at what is not watched.
    again: Option<Duration>,
}

impl Turn {
    fn new() -> Self {
        let outcome = Outcome { rejected: None, unresolved: None, progress: Progress::Blocked };
        Self {
            outcome,
            looks_for: String::new(),
            engine_pending: false,
            rollout: None,
            error: None,
            again: None,
        }
    }

    fn look_again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |again| again.min(after)));
    }

    fn stop(&mut self, stop: Stop) {
        match stop {
            Stop::Rejected(refusal) => {
                // Whose object is in the way, or why the API server refuses, is not watched.
                if [reason::NAME_CONFLICT, reason::CHILD_REFUSED].contains(&refusal.reason) {
                    self.look_again(REFUSED_RETRY);
                }
                self.outcome.progress = Progress::Blocked;
                self.outcome.rejected.get_or_insert(refusal);
            }
            Stop::Unresolved(refusal) => self.outcome.unresolved = Some(refusal),
            Stop::Failed(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: impl Into<ReconcileError>) {
        let error = error.into();
        self.outcome.progress = Progress::Failed(error.to_string());
        self.error = Some(error);
    }
}

/// Looks, decides and writes, as far as that goes.
async fn converge(pool: &WorkerPool, ctx: &Context) -> Turn {
    let mut turn = Turn::new();
    let found = match fetch::fetch(ctx, pool).await {
        Ok(found) => found,
        Err(error) => {
            turn.fail(error);
            return turn;
        }
    };
    let valid = validate::validate(pool, &ctx.options);
    let resolved = validate::resolve(pool, &found);
    if let Ok(Valid::Managed(managed)) = &valid {
        turn.looks_for = managed.nodes.describe();
    }
    if pool.annotations().get(PAUSED).is_some_and(|value| value == "true") {
        turn.outcome = Outcome {
            rejected: valid.err(),
            unresolved: resolved.err().or_else(|| validate::missing(pool, &found)),
            progress: Progress::Paused,
        };
        return turn;
    }
    match (valid, resolved) {
        (Ok(Valid::Managed(managed)), Ok(_)) => {
            if let Some(missing) = validate::missing(pool, &found) {
                turn.outcome.unresolved = Some(missing);
                turn.look_again(SLOW_POLL);
            }
            converge_managed(ctx, &managed, &mut turn).await;
        }
        (Ok(Valid::External(external)), Ok(Some(relay_url))) => {
            match apply::external(ctx, &external, &relay_url).await {
                Ok(()) => turn.outcome.progress = Progress::Written,
                Err(stop) => turn.stop(stop),
            }
        }
        (valid, resolved) => {
            turn.outcome.rejected = valid.err();
            turn.outcome.unresolved = resolved.err();
        }
    }
    turn
}

async fn converge_managed(ctx: &Context, managed: &Managed, turn: &mut Turn) {
    // Rendered pod specs are large, and this future would carry several.
    let written = match Box::pin(apply::managed(ctx, managed)).await {
        Ok(written) => written,
        Err(stop) => return turn.stop(stop),
    };
    turn.outcome.progress = Progress::Written;
    if let Err(error) = look_after_pods(ctx, managed, &written, turn).await {
        turn.fail(error);
    }
    for error in written.errors {
        turn.stop(error.into());
    }
}

/// Does what the controllers of Kubernetes leave to the operator: replacing engines, and nudging workers.
async fn look_after_pods(
    ctx: &Context,
    managed: &Managed,
    written: &Written,
    turn: &mut Turn,
) -> Result<(), ReconcileError> {
    let owner = &managed.owner;
    let set = |name: &str| ctx.caches.daemon_sets.get(&owner.namespace, name);
    turn.engine_pending = matches!(managed.backend, Backend::Engine(_));
    let Some(worker_set) = set(&names::worker(&owner.name)) else { return Ok(()) };
    let workers = pods_of(&ctx.caches.pods, &worker_set)?;
    ctx.pools.keep_pods(owner, |uid| workers.iter().any(|pod| pod.uid().as_deref() == Some(uid)));
    if let Backend::Engine(engine) = &managed.backend
        && let Some(engine_set) = set(&names::engine(&owner.name))
    {
        let revision = build::engine_revision(engine);
        // A pod that is deleted too early comes back as it was.
        if SetCounts::of(&engine_set).is_some()
            && apply::annotation(&engine_set, ENGINE_REVISION) == Some(&revision)
        {
            let engines = pods_of(&ctx.caches.pods, &engine_set)?;
            let nodes = rollout::look(ctx, &workers, &engines, &written.admin).await;
            let wanted = Wanted {
                revision,
                max_unavailable: usize::try_from(managed.strategy.max_unavailable).unwrap_or(1),
                wait_for_idle: managed.strategy.wait_for_idle,
                timeout_seconds: managed.strategy.timeout_seconds.into(),
            };
            let plan = rollout::plan(&nodes, &wanted, Timestamp::now());
            let advanced = rollout::advance(ctx, owner, &workers, &plan, &written.admin).await;
            if !plan.steps.is_empty() || !plan.waiting.is_empty() {
                turn.look_again(POLL);
            }
            turn.engine_pending = false;
            turn.rollout = Some(plan);
            advanced?;
        }
    }
    if let Some(again) = nudge::tell(ctx, owner, &workers, &written.newest, &written.admin).await? {
        turn.look_again(again);
    }
    Ok(())
}

/// The join Secret of an External pool, if there is one with a token, and whether the relay's pods run with its hash.
fn join_secret(ctx: &Context, owner: &Owner, relay: (&str, &str)) -> Option<(String, bool)> {
    let name = names::join(&owner.name);
    let secret = ctx.caches.secrets.get(&owner.namespace, &name)?;
    let token = token_of(&secret).filter(|_| owner.controls(&secret.metadata))?;
    Some((name, is_in_force(ctx, relay, &token).unwrap_or(false)))
}

fn is_in_force(ctx: &Context, (namespace, name): (&str, &str), token: &str) -> Option<bool> {
    let relay = ctx.caches.model_relays.get(namespace, name)?;
    let settings = ctx.caches.secrets.get(namespace, &relay_names::settings(name))?;
    let status = relay.status.as_ref()?;
    let programmed = condition::find(&status.conditions, condition::kind::PROGRAMMED)?;
    let hash = sha256(token).to_hex();
    let mut files = settings.data.iter().flatten().map(|(_, file)| &file.0);
    Some(files.any(|file| {
        let holds = file.windows(hash.len()).any(|part| part == hash.as_bytes());
        let revision = apply::revision_of(file);
        holds && programmed.status == "True" && status.config_revision.as_ref() == Some(&revision)
    }))
}

/// The pods of the pool's DaemonSets that do not run.
fn troubled(ctx: &Context, sets: &[Arc<DaemonSet>]) -> Vec<Trouble> {
    let pods = sets.iter().flat_map(|set| pods_of(&ctx.caches.pods, set).unwrap_or_default());
    pods.filter_map(|pod| pods::trouble(&pod)).collect()
}

/// Writes the status if it says something new, and tells the user what was refused.
async fn report(
    pool: &WorkerPool,
    ctx: &Context,
    turn: &mut Turn,
    previous: WorkerPoolStatus,
) -> Result<(), CallError> {
    let owner = Owner::of(pool);
    let now = Instant::now();
    let own_set = |name: String| {
        let set = ctx.caches.daemon_sets.get(&owner.namespace, &name);
        set.filter(|set| owner.controls(&set.metadata))
    };
    let set = own_set(names::worker(&owner.name));
    let pods = set.as_deref().and_then(SetCounts::of);
    let mut refused = None;
    let sets: Vec<_> = [set.clone(), own_set(names::engine(&owner.name))].into_iter().flatten().collect();
    for set in &sets {
        let lacks = SetCounts::of(set).is_some_and(|pods| pods.current < pods.desired);
        let since = ctx.pools.lacking(&owner, &set.name_any(), lacks, now);
        let Some(since) = since else { continue };
        turn.look_again(SLOW_POLL);
        // Right after a change some pods are always missing.
        match LACKING_FOR.checked_sub(now.duration_since(since)).filter(|left| !left.is_zero()) {
            Some(left) => turn.look_again(left),
            None => refused = refused.or(why_pods_are_refused(ctx, set).await),
        }
    }
    let (relay_namespace, relay) = relay_of(pool);
    let join = match pool.spec.kind {
        PoolType::External => join_secret(ctx, &owner, (&relay_namespace, &relay)),
        PoolType::Managed => None,
    };
    if join.as_ref().is_some_and(|(_, in_force)| !in_force) {
        // A relay that takes new settings wakes its pools, but may be known before its settings are.
        turn.look_again(SLOW_POLL);
    }
    let view = ctx.fleet.view(&relay_namespace, &relay);
    let no_relay = view.as_ref().is_some_and(|view| !view.is_ready());
    let workers =
        view.filter(|view| view.is_known()).map(|view| view.workers_of(&owner.namespace, &owner.name));
    let facts = Facts {
        kind: pool.spec.kind,
        generation: pool.metadata.generation,
        outcome: &turn.outcome,
        looks_for: &turn.looks_for,
        pods: if pool.spec.kind == PoolType::Managed { pods } else { None },
        engine_pending: turn.engine_pending,
        rollout: turn.rollout.as_ref(),
        refused: refused.as_deref(),
        no_relay,
        workers: workers.as_deref(),
        troubled: troubled(ctx, &sets),
        in_force: join.as_ref().is_some_and(|(_, in_force)| *in_force),
        join_secret: join.map(|(name, _)| name),
    };
    let new = status::status(&facts, &previous, &Time(Timestamp::now()));
    match status::worth(&previous, &new) {
        Worth::Nothing => return Ok(()),
        Worth::Counts => {
            let since = ctx.pools.counted(&owner).map(|at| now.duration_since(at));
            if let Some(left) = since.and_then(|since| COUNTS_EVERY.checked_sub(since))
                && !left.is_zero()
            {
                turn.look_again(left);
                return Ok(());
            }
        }
        Worth::Conditions => {}
    }
    write(ctx, pool, &new).await?;
    ctx.pools.note_counted(&owner, now);
    ctx.pools.sweep(&ctx.caches.worker_pools);
    for complaint in status::complaints(&previous.conditions, &new.conditions) {
        let (reason, note) = (&complaint.reason, complaint.message.clone());
        ctx.event(&owner.object(), EventType::Warning, reason, "Reconcile", note).await;
    }
    Ok(())
}

async fn why_pods_are_refused(ctx: &Context, set: &DaemonSet) -> Option<String> {
    match refused::why(ctx, set).await {
        Ok(why) => why,
        Err(error) => {
            tracing::debug!(%error, "Events could not be read");
            None
        }
    }
}

async fn write(ctx: &Context, pool: &WorkerPool, status: &WorkerPoolStatus) -> Result<(), CallError> {
    let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
    let api: Api<WorkerPool> = Api::namespaced(ctx.client.clone(), &namespace);
    let body = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "WorkerPool",
        // Another object of the same name must not get this status.
        "metadata": { "name": name, "uid": pool.metadata.uid },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    ctx.call(
        format!("write the status of WorkerPool \"{name}\""),
        api.patch_status(&name, &params, &Patch::Apply(&body)),
    )
    .await
    .map(|_| ())
}
