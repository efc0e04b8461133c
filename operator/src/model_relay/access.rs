//! Which namespaces' pools may connect to a relay.

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::core::{Selector, SelectorExt as _};

use crate::api::ModelRelay;
use crate::api::model_relay::NamespacesFrom;
use crate::cache::{Cache, NotReady};

/// Whether pools of a namespace may connect to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// They may.
    Yes,
    /// They may not.
    No,
    /// It depends on labels of namespaces, which this operator may not read.
    NamespacesNotReadable,
}

/// Returns whether pools of `pool_namespace` may connect; `namespaces` is absent when the operator may not read them.
///
/// # Errors
/// Namespaces may be read, but are not known yet.
pub fn allows(
    relay: &ModelRelay,
    pool_namespace: &str,
    namespaces: Option<&Cache<Namespace>>,
) -> Result<Allowed, NotReady> {
    let spec = relay.spec.allowed_worker_pools.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
    match spec.and_then(|spec| spec.from).unwrap_or_default() {
        NamespacesFrom::All => Ok(Allowed::Yes),
        NamespacesFrom::Same => {
            Ok(if relay.namespace().as_deref() == Some(pool_namespace) { Allowed::Yes } else { Allowed::No })
        }
        NamespacesFrom::Selector => {
            let Some(namespaces) = namespaces else { return Ok(Allowed::NamespacesNotReadable) };
            let chosen = namespaces.matching(|one| one.name_any() == pool_namespace)?;
            let selector = spec.and_then(|spec| spec.selector.clone()).map(Selector::try_from);
            Ok(match (selector, chosen.first()) {
                (Some(Ok(selector)), Some(namespace)) if selector.matches(namespace.labels()) => Allowed::Yes,
                _ => Allowed::No,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(allowed: &str) -> ModelRelay {
        let text = format!(
            "{{ apiVersion: modelrelay.io/v1alpha1, kind: ModelRelay, metadata: {{ name: main, namespace: inference }}, spec: {{ {allowed} }} }}"
        );
        serde_yaml::from_str(&text).unwrap()
    }

    #[test]
    fn pools_of_the_same_namespace_may_connect_and_others_only_where_it_is_said() {
        let from = |from: &str| relay(&format!("allowedWorkerPools: {{ namespaces: {{ from: {from} }} }}"));
        let selecting = "allowedWorkerPools: { namespaces: { from: Selector, selector: { matchLabels: { gpu: \"true\" } } } }";
        for (relay, own, other) in [
            (relay(""), Allowed::Yes, Allowed::No),
            (from("Same"), Allowed::Yes, Allowed::No),
            (from("All"), Allowed::Yes, Allowed::Yes),
            (relay(selecting), Allowed::NamespacesNotReadable, Allowed::NamespacesNotReadable),
        ] {
            assert_eq!(allows(&relay, "inference", None).unwrap(), own);
            assert_eq!(allows(&relay, "lab", None).unwrap(), other);
        }
    }
}
