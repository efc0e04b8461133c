//! What a ModelRelay's spec refers to. Reads only.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;

use super::access::{Allowed, allows};
use super::build::settings;
use crate::api::model_relay::ClientAuthType;
use crate::api::worker_pool::PoolType;
use crate::api::{ModelRelay, WorkerPool};
use crate::apply::Owner;
use crate::context::Context;
use crate::error::ReconcileError;
use crate::generated::token_of;
use crate::naming::{self, CLIENT_KEY};
use crate::triggers::relay_of;

/// What a spec refers to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct References {
    /// The pools that may connect, with the token of their workers.
    pub pools: Vec<PoolToken>,
    /// The Secrets with client keys; none when no key is asked for.
    pub client_keys: Vec<Arc<Secret>>,
    /// Whether pools are chosen by labels of namespaces, which the operator may not read.
    pub namespaces_hidden: bool,
}

/// A pool and the token of its workers.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolToken {
    /// The pool.
    pub pool: Arc<WorkerPool>,
    /// The token.
    pub token: String,
}

/// Reads what the spec refers to. A pool without a token is left out: its own reconcile makes one.
///
/// # Errors
/// A watch has not told yet what there is: an incomplete answer would withdraw keys and credentials.
pub fn fetch(relay: &ModelRelay, ctx: &Context) -> Result<References, ReconcileError> {
    let (namespace, name) = (relay.namespace().unwrap_or_default(), relay.name_any());
    let caches = &ctx.caches;
    let key = (namespace.clone(), name.clone());
    let candidates = caches
        .worker_pools
        .matching(|pool| pool.metadata.deletion_timestamp.is_none() && relay_of(pool) == key)?;
    // Asked for its readiness only.
    caches.secrets.matching(|_| false)?;
    let mut references = References::default();
    for pool in candidates {
        match allows(relay, &pool.namespace().unwrap_or_default(), caches.namespaces.as_ref())? {
            Allowed::Yes => {
                references.pools.extend(token(&pool, ctx).map(|token| PoolToken { pool, token }));
            }
            Allowed::No => {}
            Allowed::NamespacesNotReadable => references.namespaces_hidden = true,
        }
    }
    references.namespaces_hidden |=
        allows(relay, &namespace, caches.namespaces.as_ref())? == Allowed::NamespacesNotReadable;
    if settings::client_auth(&relay.spec) == ClientAuthType::ApiKeys {
        references.client_keys = caches.client_keys.matching(|secret| {
            secret.namespace().as_deref() == Some(&namespace)
                && secret.labels().get(CLIENT_KEY) == Some(&name)
        })?;
    }
    Ok(references)
}

fn token(pool: &WorkerPool, ctx: &Context) -> Option<String> {
    let name = match pool.spec.kind {
        PoolType::Managed => naming::pool::credential(&pool.name_any()),
        PoolType::External => naming::pool::join(&pool.name_any()),
    };
    let secret = ctx.caches.secrets.get(&pool.namespace()?, &name)?;
    // Being deleted, it is withdrawn: the next one counts.
    let counts = Owner::of(pool).controls(&secret.metadata) && secret.metadata.deletion_timestamp.is_none();
    token_of(&secret).filter(|_| counts)
}
