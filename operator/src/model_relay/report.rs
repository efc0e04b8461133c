//! Writes the status, and tells of what was refused.

use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::memory::Memory;
use super::observe::EVERY;
use super::status::{self, Outcome};
use crate::api::condition::{find, kind, reason};
use crate::api::model_relay::ModelRelayStatus;
use crate::api::{GROUP, ModelRelay, VERSION};
use crate::apply::Owner;
use crate::client_keys::KeyProblem;
use crate::context::{CallError, Context};
use crate::naming::FIELD_MANAGER;

/// Says at the first visit that nothing is known yet.
///
/// # Errors
/// The API server failed.
pub(super) async fn announce(
    relay: &ModelRelay,
    ctx: &Context,
    memory: &mut Memory,
) -> Result<(), CallError> {
    let before = previous(relay, memory);
    if before.is_some_and(|status| find(&status.conditions, kind::READY).is_some()) {
        return Ok(());
    }
    write(relay, ctx, status::first(relay.metadata.generation, &now()), memory).await
}

/// Writes the status if it says something new, and an event when something was refused.
///
/// # Errors
/// The API server failed.
pub(super) async fn report(
    relay: &ModelRelay,
    ctx: &Context,
    outcome: &Outcome,
    memory: &mut Memory,
    at: Instant,
) -> Result<(), CallError> {
    let before = previous(relay, memory);
    let desired = status::status(outcome, before.as_ref(), &now());
    let counts_due = memory.counted.is_none_or(|last| at >= last + EVERY);
    let counts = |status: &ModelRelayStatus| (status.workers.clone(), status.models.clone());
    let Some(desired) = status::to_write(desired, before.as_ref(), counts_due) else { return Ok(()) };
    if before.as_ref().map(counts) != Some(counts(&desired)) {
        memory.counted = Some(at);
    }
    for problem in newly_refused(&desired, before.as_ref()) {
        let about = Owner::of(relay).object();
        ctx.event(&about, EventType::Warning, &problem.reason, "Reconcile", problem.message.clone()).await;
    }
    write(relay, ctx, desired, memory).await
}

/// Tells the owners of Secrets what is wrong with their client keys, once.
pub(super) async fn tell_keys(ctx: &Context, problems: &[KeyProblem], memory: &mut Memory) {
    let mut told = std::collections::BTreeMap::new();
    for KeyProblem { secret, problem } in problems {
        let uid = secret.uid.clone().unwrap_or_default();
        if memory.told.get(&uid) != Some(problem) {
            let note = format!("the relay does not take this client key: {problem}");
            ctx.event(secret, EventType::Warning, reason::INVALID_CLIENT_KEY, "Reconcile", note).await;
        }
        told.insert(uid, problem.clone());
    }
    memory.told = told;
}

/// The newest status that is known: the watch may not have told yet of what was written last.
fn previous(relay: &ModelRelay, memory: &Memory) -> Option<ModelRelayStatus> {
    let version = |text: Option<&String>| text.and_then(|text| text.parse::<u64>().ok());
    let seen = version(relay.metadata.resource_version.as_ref());
    match &memory.written {
        Some((status, made)) if seen <= version(made.as_ref()) => Some(status.clone()),
        _ => relay.status.clone(),
    }
}

fn newly_refused<'a>(desired: &'a ModelRelayStatus, before: Option<&ModelRelayStatus>) -> Vec<&'a Condition> {
    let before = before.map_or(&[][..], |status| &status.conditions);
    let told = |one: &Condition| {
        find(before, &one.type_).is_some_and(|last| {
            (&last.status, &last.reason, &last.message) == (&one.status, &one.reason, &one.message)
        })
    };
    let refusals =
        [kind::ACCEPTED, kind::RESOLVED_REFS].into_iter().filter_map(|kind| find(&desired.conditions, kind));
    refusals.filter(|one| one.status == "False" && !told(one)).collect()
}

async fn write(
    relay: &ModelRelay,
    ctx: &Context,
    status: ModelRelayStatus,
    memory: &mut Memory,
) -> Result<(), CallError> {
    let name = relay.name_any();
    let api: Api<ModelRelay> = Api::namespaced(ctx.client.clone(), &relay.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "ModelRelay",
        // Not that of a later one of the same name.
        "metadata": { "name": name, "uid": relay.uid() },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(patch);
    let call = api.patch_status(&name, &params, &patch);
    match ctx.call(format!("write the status of ModelRelay \"{name}\""), call).await {
        Ok(written) => {
            memory.written = Some((status, written.metadata.resource_version));
            Ok(())
        }
        // Gone meanwhile.
        Err(error) if error.status() == Some(404) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Conditions tell whole seconds.
fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).expect("now is within the range of timestamps"))
}
