//! Writes what a ModelRelay becomes. Writes only, but for what has to be read back.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::build::{Resources, service};
use crate::api::ModelRelay;
use crate::apply::{ApplyError, Owner};
use crate::cache::Watched;
use crate::context::Context;
use crate::generated::{Token, token_of};
use crate::naming::{self, HANDOVER_MANAGER, Part};

/// What has to be written before the settings can be put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// The token for the admin API, as it was read back.
    pub admin: Option<String>,
    /// Whether pods have IPv6 addresses.
    pub ipv6: bool,
}

/// Makes the token for the admin API, unless there is one, and learns from the client Service which addresses the cluster has.
///
/// # Errors
/// Why that did not work.
pub async fn prepare(ctx: &Context, owner: &Owner, relay: &ModelRelay) -> Result<Prepared, ApplyError> {
    let name = naming::relay::admin(&owner.name);
    let fresh = Token::new(&owner.name).into_secret(name, Part::Relay.labels(&owner.name));
    let admin: Secret = ctx.create_once(owner, fresh).await?;
    let name = naming::relay::service(&owner.name);
    if ctx.caches.services.get(&owner.namespace, &name).is_none() {
        match ctx.apply(owner, service::client(relay)).await {
            // Reported when it is applied with the others.
            Err(ApplyError::NameConflict { .. } | ApplyError::Refused { .. }) => {}
            result => drop(result?),
        }
    }
    let service: Option<Service> = ctx.live(&owner.namespace, &name).await?;
    Ok(Prepared { admin: token_of(&admin), ipv6: service.as_ref().is_some_and(has_ipv6) })
}

fn has_ipv6(service: &Service) -> bool {
    let families = service.spec.iter().flat_map(|spec| spec.ip_families.iter().flatten());
    families.into_iter().any(|family| family == "IPv6")
}

/// What became of the children.
#[derive(Debug, Default)]
pub struct Applied {
    /// Whether the settings are as they should be.
    pub settings: bool,
    /// Why the others are not.
    pub errors: Vec<ApplyError>,
}

/// Brings every child in line and removes what is no longer wanted. One that cannot be written does not hold up the others.
pub async fn apply(ctx: &Context, owner: &Owner, desired: Resources) -> Applied {
    let Resources {
        service_account,
        settings,
        client_service,
        workers_service,
        network_policy,
        disruption_budget,
        deployment,
        autoscaler,
    } = desired;
    let mut writing = Writing { ctx, owner, errors: Vec::new() };
    writing.apply(service_account).await;
    // Before the Deployment: its pods mount them.
    let settings = match settings {
        Some(settings) => writing.apply(settings).await,
        None => false,
    };
    writing.apply(client_service).await;
    writing.apply(workers_service).await;
    writing.apply(network_policy).await;
    writing.apply(disruption_budget).await;
    if let Some(deployment) = deployment {
        writing.deployment(deployment, autoscaler.as_ref()).await;
    }
    let kept: Vec<String> = autoscaler.iter().map(HorizontalPodAutoscaler::name_any).collect();
    if let Some(autoscaler) = autoscaler {
        writing.apply(autoscaler).await;
    }
    writing.prune::<HorizontalPodAutoscaler>(&kept).await;
    Applied { settings, errors: writing.errors }
}

struct Writing<'a> {
    ctx: &'a Context,
    owner: &'a Owner,
    errors: Vec<ApplyError>,
}

impl Writing<'_> {
    /// When the API server does not answer, asking it for every other child would only take longer.
    fn stopped(&self) -> bool {
        self.errors.iter().any(|error| matches!(error, ApplyError::Call(error) if error.status().is_none()))
    }

    /// Returns whether the child is as it should be.
    async fn apply<K: Watched>(&mut self, child: K) -> bool {
        if self.stopped() {
            return false;
        }
        let result = Box::pin(self.ctx.apply(self.owner, child)).await;
        let written = result.is_ok();
        self.errors.extend(result.err());
        written
    }

    async fn prune<K: Watched>(&mut self, kept: &[String]) {
        if !self.stopped() {
            let kept: Vec<_> = kept.iter().map(String::as_str).collect();
            let result = self.ctx.prune::<K>(self.owner, &kept).await;
            self.errors.extend(result.err());
        }
    }

    async fn deployment(&mut self, deployment: Deployment, autoscaler: Option<&HorizontalPodAutoscaler>) {
        if self.stopped() {
            return;
        }
        if let Some(autoscaler) = autoscaler {
            let handed_over = Box::pin(hand_over(self.ctx, self.owner, &deployment, autoscaler)).await;
            if let Err(error) = handed_over {
                // Without it, the number of replicas would fall to one.
                self.errors.push(error);
                return;
            }
        }
        self.apply(deployment).await;
    }
}

/// Keeps the number of replicas alive when an autoscaler takes it over: a field that its last manager stops sending goes back
/// to the API server's default, which is one.
async fn hand_over(
    ctx: &Context,
    owner: &Owner,
    deployment: &Deployment,
    autoscaler: &HorizontalPodAutoscaler,
) -> Result<(), ApplyError> {
    let taken: Option<HorizontalPodAutoscaler> = ctx.live(&owner.namespace, &autoscaler.name_any()).await?;
    if taken.is_some_and(|taken| owner.controls(&taken.metadata)) {
        return Ok(());
    }
    let name = deployment.name_any();
    let api: Api<Deployment> = Api::namespaced(ctx.client.clone(), &owner.namespace);
    // Not from the cache: the number must be the newest.
    let mut live = ctx.call(format!("get Deployment \"{name}\""), api.get_opt(&name)).await?;
    if live.is_none() {
        let mut first = deployment.clone();
        if let Some(spec) = &mut first.spec {
            spec.replicas = autoscaler.spec.as_ref().and_then(|spec| spec.min_replicas);
        }
        ctx.apply(owner, first).await?;
        live = ctx.call(format!("get Deployment \"{name}\""), api.get_opt(&name)).await?;
    }
    let Some(live) = live.filter(|live| owner.controls(&live.metadata)) else { return Ok(()) };
    let Some(replicas) = live.spec.as_ref().and_then(|spec| spec.replicas) else { return Ok(()) };
    let kept = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "uid": live.uid() },
        "spec": { "replicas": replicas },
    });
    let params = PatchParams::apply(HANDOVER_MANAGER);
    ctx.call(
        format!("keep the replicas of Deployment \"{name}\""),
        api.patch(&name, &params, &Patch::Apply(&kept)),
    )
    .await?;
    Ok(())
}
