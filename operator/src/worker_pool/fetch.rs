//! What a pool refers to. Reads only.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kube::{Api, ResourceExt as _};

use crate::api::{ModelRelay, WorkerPool};
use crate::context::Context;
use crate::error::ReconcileError;
use crate::model_relay::access::{Allowed, allows};
use crate::triggers::relay_of;

/// What was found of what a pool refers to.
#[derive(Clone, Debug)]
pub(super) struct References {
    /// The relay, and whether it takes pools of this namespace.
    pub(super) relay: Option<(Arc<ModelRelay>, Allowed)>,
    /// Whether the Service that the backend names is there; unknown where Services may not be read.
    pub(super) service: Option<bool>,
}

/// Looks everything up.
///
/// # Errors
/// The API server failed, or it is not known yet what there is.
pub(super) async fn fetch(ctx: &Context, pool: &WorkerPool) -> Result<References, ReconcileError> {
    let (namespace, name) = relay_of(pool);
    let own = pool.namespace().unwrap_or_default();
    let relays = &ctx.caches.model_relays;
    let relay = match relays.get(&namespace, &name) {
        Some(relay) => {
            let allowed = allows(&relay, &own, ctx.caches.namespaces.as_ref())?;
            Some((relay, allowed))
        }
        None => {
            // An empty cache says nothing before its first list has come.
            relays.matching(|_| false)?;
            None
        }
    };
    let service = pool.spec.backend.as_ref().and_then(|backend| backend.service.as_ref());
    let service = match service {
        None => None,
        Some(service) => {
            // The Services of users are not watched; one question at each look is cheap.
            let api: Api<Service> = Api::namespaced(ctx.client.clone(), &own);
            let found = api.get_metadata_opt(&service.name);
            match ctx.call(format!("get Service \"{}\"", service.name), found).await {
                Ok(found) => Some(found.is_some()),
                Err(error) if error.is_forbidden() => None,
                Err(error) => return Err(error.into()),
            }
        }
    };
    Ok(References { relay, service })
}
