//! Brings a pool's children in line. Writes only.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use sha2::{Digest as _, Sha256};

use super::build::{Children, EngineChildren, build, join};
use super::nudge::Newest;
use super::pods::pods_of;
use super::validate::{External, Managed, Refusal};
use crate::api::condition::reason;
use crate::apply::{ApplyError, Owner};
use crate::cache::Watched;
use crate::context::Context;
use crate::error::ReconcileError;
use crate::generated::{Token, sha256, token_of};
use crate::naming::{Part, STARTED_WITH, pool};

/// Why children are not all as they should be.
#[derive(Debug)]
pub(super) enum Stop {
    /// The spec asks for what cannot be; for `Accepted`.
    Rejected(Refusal),
    /// Something that is needed is not usable; for `ResolvedRefs`.
    Unresolved(Refusal),
    /// Trying again may help.
    Failed(ReconcileError),
}

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::NameConflict { .. } => {
                Self::Rejected(Refusal::new(reason::NAME_CONFLICT, error.to_string()))
            }
            ApplyError::Refused { .. } => {
                Self::Rejected(Refusal::new(reason::CHILD_REFUSED, error.to_string()))
            }
            error @ (ApplyError::Leftover { .. } | ApplyError::Call(_) | ApplyError::NotReady(_)) => {
                Self::Failed(error.into())
            }
        }
    }
}

/// What was written for a Managed pool, as far as the rest of a reconcile needs it.
#[derive(Debug)]
pub(super) struct Written {
    /// The token for the workers' admin API.
    pub(super) admin: String,
    pub(super) newest: Newest,
    /// Why some children are not as they should be.
    pub(super) errors: Vec<ApplyError>,
}

/// Writes the children of a Managed pool. One that cannot be written does not hold up the others.
///
/// # Errors
/// Why nothing can be written.
pub(super) async fn managed(ctx: &Context, managed: &Managed) -> Result<Written, Stop> {
    let owner = &managed.owner;
    let (_, credential) = generated(ctx, owner, pool::credential(&owner.name)).await?;
    let (_, admin) = generated(ctx, owner, pool::admin(&owner.name)).await?;
    let children = build(managed, sha256(&admin)).map_err(Stop::Rejected)?;
    let newest = Newest {
        settings: revision_of(settings_file(&children.settings)),
        credential: sha256(&credential).to_hex()[..16].to_owned(),
    };
    let Children { account, settings, policy, workers, engine } = children;
    let started_with = annotation(&workers, STARTED_WITH);
    let keeps_engine = engine.is_some() || !workers_have_left(ctx, owner, started_with)?;
    let mut writing = Writing { ctx, owner, errors: Vec::new() };
    writing.apply(account).await;
    writing.apply(settings).await;
    writing.apply(policy).await;
    if let Some(EngineChildren { account, service, policy, engines }) = engine {
        writing.apply(account).await;
        writing.apply(service).await;
        writing.apply(policy).await;
        writing.apply(engines).await;
    }
    // What the pods mount is there by now.
    writing.apply(workers).await;
    let (worker_name, engine_name) = (pool::worker(&owner.name), pool::engine(&owner.name));
    let both = [worker_name.as_str(), engine_name.as_str()];
    let (keep, keep_services) = if keeps_engine { (&both[..], &both[1..]) } else { (&both[..1], &both[..0]) };
    writing.prune::<DaemonSet>(keep).await;
    writing.prune::<Service>(keep_services).await;
    writing.prune::<NetworkPolicy>(keep).await;
    writing.prune::<ServiceAccount>(keep).await;
    let secrets = [pool::credential(&owner.name), pool::admin(&owner.name), pool::settings(&owner.name)];
    writing.prune::<Secret>(&secrets.each_ref().map(String::as_str)).await;
    Ok(Written { admin, newest, errors: writing.errors })
}

struct Writing<'a> {
    ctx: &'a Context,
    owner: &'a Owner,
    errors: Vec<ApplyError>,
}

impl Writing<'_> {
    /// When the API server does not answer, asking it for every other child would only take longer.
    fn has_stopped(&self) -> bool {
        self.errors.iter().any(|error| matches!(error, ApplyError::Call(error) if error.status().is_none()))
    }

    async fn apply<K: Watched>(&mut self, child: K) {
        if !self.has_stopped() {
            let result = Box::pin(self.ctx.apply(self.owner, child)).await;
            self.errors.extend(result.err());
        }
    }

    async fn prune<K: Watched>(&mut self, keep: &[&str]) {
        if !self.has_stopped() {
            let result = self.ctx.prune::<K>(self.owner, keep).await;
            self.errors.extend(result.err());
        }
    }
}

/// An annotation of a DaemonSet's pods.
pub(super) fn annotation<'a>(set: &'a DaemonSet, key: &str) -> Option<&'a str> {
    let template = set.spec.as_ref()?.template.metadata.as_ref()?;
    template.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether every worker pod is of the newest settings, so that none uses an engine that the spec no longer has.
fn workers_have_left(ctx: &Context, owner: &Owner, started_with: Option<&str>) -> Result<bool, Stop> {
    let (namespace, name) = (&owner.namespace, &owner.name);
    if ctx.caches.daemon_sets.get(namespace, &pool::engine(name)).is_none() {
        return Ok(true);
    }
    let Some(workers) = ctx.caches.daemon_sets.get(namespace, &pool::worker(name)) else { return Ok(true) };
    let pods = pods_of(&ctx.caches.pods, &workers).map_err(|error| Stop::Failed(error.into()))?;
    Ok(pods.iter().all(|pod| pod.annotations().get(STARTED_WITH).map(String::as_str) == started_with))
}

fn settings_file(secret: &Secret) -> &[u8] {
    secret.data.iter().flatten().next().map(|(_, file)| file.0.as_slice()).unwrap_or_default()
}

/// The revision of a settings file, as relays and workers compute it of what they read.
pub(super) fn revision_of(file: &[u8]) -> String {
    Sha256::digest(file).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the join Secret of an External pool.
///
/// # Errors
/// Why it is not as it should be.
pub(super) async fn external(ctx: &Context, external: &External, relay_url: &str) -> Result<(), Stop> {
    let owner = &external.owner;
    let name = pool::join(&owner.name);
    let (live, token) = generated(ctx, owner, name.clone()).await?;
    let uid = live.metadata.uid.unwrap_or_default();
    ctx.apply(owner, join(external, relay_url, &token, uid)).await?;
    ctx.prune::<Secret>(owner, &[&name]).await?;
    Ok(())
}

/// Makes a Secret with a token unless it exists, and reads it back.
async fn generated(ctx: &Context, owner: &Owner, name: String) -> Result<(Secret, String), Stop> {
    let fresh = Token::new(&owner.name).into_secret(name.clone(), Part::Worker.labels(&owner.name));
    let live = ctx.create_once(owner, fresh).await?;
    match token_of(&live) {
        Some(token) => Ok((live, token)),
        None => Err(Stop::Unresolved(Refusal::new(
            reason::INVALID_SECRET,
            format!("Secret \"{name}\" holds no token that the operator made; delete it to have a new one"),
        ))),
    }
}
