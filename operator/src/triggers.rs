//! Which objects should be looked at next, and who looks when something was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, stream};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt as _};
use tokio::sync::Notify;

use crate::api::model_relay::NamespacesFrom;
use crate::api::{ModelRelay, WorkerPool, condition};
use crate::cache::{Caches, Observer, Scope, Seen};
use crate::naming::{INSTANCE, NAME, PAUSED, Part};

/// Objects of one kind that should be looked at: a set, so never more than there are objects.
#[derive(Debug, Default)]
pub struct Pending {
    /// By namespace, then name.
    keys: Mutex<BTreeSet<(String, String)>>,
    added: Notify,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pending {
    fn push(&self, namespace: &str, name: &str) {
        locked(&self.keys).insert((namespace.to_owned(), name.to_owned()));
        self.added.notify_one();
    }

    /// What should be looked at, as it comes; never ends.
    pub fn stream<K>(self: Arc<Self>) -> impl Stream<Item = Result<ObjectRef<K>, Infallible>>
    where
        K: Resource<DynamicType = ()>,
    {
        stream::unfold(self, |pending| async move {
            loop {
                let first = locked(&pending.keys).pop_first();
                if let Some((namespace, name)) = first {
                    return Some((Ok(ObjectRef::new(&name).within(&namespace)), pending));
                }
                pending.added.notified().await;
            }
        })
    }
}

/// One [`Pending`] for each namespace that is watched, or one for all.
#[derive(Debug)]
struct Queues(Vec<(Option<String>, Arc<Pending>)>);

impl Queues {
    fn new(scope: &Scope) -> Self {
        match scope {
            Scope::Cluster => Self(vec![(None, Arc::default())]),
            Scope::Namespaces(names) => {
                Self(names.iter().map(|name| (Some(name.clone()), Arc::default())).collect())
            }
        }
    }

    fn push(&self, namespace: &str, name: &str) {
        let queue = self.0.iter().find(|(own, _)| own.as_deref().is_none_or(|own| own == namespace));
        if let Some((_, pending)) = queue {
            pending.push(namespace, name);
        }
    }

    fn all(&self) -> Vec<Arc<Pending>> {
        self.0.iter().map(|(_, pending)| pending.clone()).collect()
    }
}

/// Asks for reconciles.
#[derive(Debug)]
pub struct Triggers {
    relays: Queues,
    pools: Queues,
}

impl Triggers {
    /// Nothing is asked for yet.
    pub fn new(scope: &Scope) -> Self {
        Self { relays: Queues::new(scope), pools: Queues::new(scope) }
    }

    /// Asks for a look at a relay, soon.
    pub fn relay(&self, namespace: &str, name: &str) {
        self.relays.push(namespace, name);
    }

    /// Asks for a look at a pool, soon.
    pub fn pool(&self, namespace: &str, name: &str) {
        self.pools.push(namespace, name);
    }

    /// What is asked for of relays, by namespace that is watched.
    pub fn relay_queues(&self) -> Vec<Arc<Pending>> {
        self.relays.all()
    }

    /// What is asked for of pools, by namespace that is watched.
    pub fn pool_queues(&self) -> Vec<Arc<Pending>> {
        self.pools.all()
    }
}

/// The relay that a pool names, by namespace and name.
pub fn relay_of(pool: &WorkerPool) -> (String, String) {
    let own = pool.namespace().unwrap_or_default();
    let reference = &pool.spec.relay_ref;
    (reference.namespace.clone().unwrap_or(own), reference.name.clone())
}

/// What of a relay or pool matters to others.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    uid: Option<String>,
    generation: Option<i64>,
    deleted: bool,
    paused: bool,
    /// The settings that the pods of a relay run with.
    programmed: Option<String>,
}

impl Shape {
    fn of<K: Shaped>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            uid: meta.uid.clone(),
            generation: meta.generation,
            deleted: meta.deletion_timestamp.is_some(),
            paused: object.annotations().get(PAUSED).is_some_and(|value| value == "true"),
            programmed: object.programmed(),
        }
    }
}

/// What a relay or pool says in its status that matters to others.
trait Shaped: Resource {
    fn programmed(&self) -> Option<String>;
}

impl Shaped for ModelRelay {
    fn programmed(&self) -> Option<String> {
        let status = self.status.as_ref()?;
        let programmed = condition::find(&status.conditions, condition::kind::PROGRAMMED)?;
        status.config_revision.clone().filter(|_| programmed.status == "True")
    }
}

impl Shaped for WorkerPool {
    fn programmed(&self) -> Option<String> {
        None
    }
}

/// The shapes last seen, by namespace and name.
#[derive(Debug, Default)]
struct Shapes(Mutex<BTreeMap<(String, String), Shape>>);

impl Shapes {
    /// Says whether something changed that matters to others: most of a status does not.
    fn changed<K: Shaped>(&self, seen: &Seen<'_, K>) -> bool {
        let mut shapes = locked(&self.0);
        match seen {
            Seen::Applied(object) => {
                let key = (object.namespace().unwrap_or_default(), object.name_any());
                let shape = Shape::of(*object);
                shapes.insert(key, shape).as_ref() != Some(&Shape::of(*object))
            }
            Seen::Deleted(object) => {
                shapes.remove(&(object.namespace().unwrap_or_default(), object.name_any()));
                true
            }
            Seen::All => true,
        }
    }
}

/// Turns what the watches see into reconciles.
#[derive(Debug)]
pub struct Triggering {
    caches: Arc<Caches>,
    triggers: Arc<Triggers>,
    relays: Shapes,
    pools: Shapes,
}

impl Triggering {
    /// Looks up in `caches` whom a change concerns, and tells `triggers`.
    pub fn new(caches: Arc<Caches>, triggers: Arc<Triggers>) -> Self {
        Self { caches, triggers, relays: Shapes::default(), pools: Shapes::default() }
    }

    fn every_relay(&self) {
        for relay in self.caches.model_relays.all().unwrap_or_default() {
            self.triggers.relay(&relay.namespace().unwrap_or_default(), &relay.name_any());
        }
    }

    fn every_pool(&self) {
        for pool in self.caches.worker_pools.all().unwrap_or_default() {
            self.triggers.pool(&pool.namespace().unwrap_or_default(), &pool.name_any());
        }
    }

    fn pools_of(&self, relay: &ModelRelay) {
        let key = (relay.namespace().unwrap_or_default(), relay.name_any());
        for pool in self.caches.worker_pools.matching(|pool| relay_of(pool) == key).unwrap_or_default() {
            self.triggers.pool(&pool.namespace().unwrap_or_default(), &pool.name_any());
        }
    }

    /// The relay or pool that a child belongs to: by owner, else (pods of a Deployment) by labels.
    fn owner_of<K: Resource<DynamicType = ()>>(&self, child: &K) {
        let namespace = child.namespace().unwrap_or_default();
        let owner = child.owner_references().iter().find(|owner| owner.controller == Some(true));
        let (part, name) = match owner.map(|owner| (owner.kind.as_str(), &owner.name)) {
            Some(("ModelRelay", name)) => (Part::Relay, name.clone()),
            Some(("WorkerPool", name)) => (Part::Worker, name.clone()),
            _ => {
                let labels = child.labels();
                let part = [Part::Relay, Part::Worker, Part::Engine]
                    .into_iter()
                    .find(|part| labels.get(NAME).is_some_and(|name| name == part.as_str()));
                let Some((part, name)) = part.zip(labels.get(INSTANCE)) else { return };
                (part, name.clone())
            }
        };
        match part {
            Part::Relay => self.triggers.relay(&namespace, &name),
            Part::Worker | Part::Engine => {
                self.triggers.pool(&namespace, &name);
                // A pool's credential stands in its relay's settings, and a relay is asked for its workers.
                if matches!(K::kind(&()).as_ref(), "Secret" | "Pod")
                    && let Some(pool) = self.caches.worker_pools.get(&namespace, &name)
                {
                    let (namespace, name) = relay_of(&pool);
                    self.triggers.relay(&namespace, &name);
                }
            }
        }
    }
}

impl Observer for Triggering {
    fn model_relay(&self, seen: Seen<'_, ModelRelay>) {
        let changed = self.relays.changed(&seen);
        match seen {
            Seen::Applied(relay) | Seen::Deleted(relay) => {
                self.triggers.relay(&relay.namespace().unwrap_or_default(), &relay.name_any());
                if changed {
                    self.pools_of(relay);
                }
            }
            Seen::All => {
                self.every_relay();
                self.every_pool();
            }
        }
    }

    fn worker_pool(&self, seen: Seen<'_, WorkerPool>) {
        let changed = self.pools.changed(&seen);
        match seen {
            Seen::Applied(pool) | Seen::Deleted(pool) => {
                self.triggers.pool(&pool.namespace().unwrap_or_default(), &pool.name_any());
                if changed {
                    let (namespace, name) = relay_of(pool);
                    self.triggers.relay(&namespace, &name);
                }
            }
            Seen::All => {
                self.every_pool();
                self.every_relay();
            }
        }
    }

    fn client_key(&self, seen: Seen<'_, Secret>) {
        // The label may have named another relay before: all of the namespace look.
        let namespace = match seen {
            Seen::Applied(secret) | Seen::Deleted(secret) => secret.namespace(),
            Seen::All => None,
        };
        for relay in self.caches.model_relays.all().unwrap_or_default() {
            if namespace.is_none() || relay.namespace() == namespace {
                self.triggers.relay(&relay.namespace().unwrap_or_default(), &relay.name_any());
            }
        }
    }

    fn namespace(&self, seen: Seen<'_, Namespace>) {
        let changed = match seen {
            Seen::Applied(namespace) | Seen::Deleted(namespace) => Some(namespace.name_any()),
            Seen::All => None,
        };
        let by_label = |relay: &ModelRelay| {
            let allowed = relay.spec.allowed_worker_pools.as_ref();
            allowed.and_then(|allowed| allowed.namespaces.as_ref()?.from) == Some(NamespacesFrom::Selector)
        };
        let choosing = self.caches.model_relays.matching(by_label).unwrap_or_default();
        if choosing.is_empty() {
            return;
        }
        for relay in choosing {
            self.triggers.relay(&relay.namespace().unwrap_or_default(), &relay.name_any());
        }
        for pool in self.caches.worker_pools.all().unwrap_or_default() {
            if changed.is_none() || pool.namespace() == changed {
                self.triggers.pool(&pool.namespace().unwrap_or_default(), &pool.name_any());
            }
        }
    }

    fn child<K: Resource<DynamicType = ()>>(&self, seen: Seen<'_, K>) {
        match seen {
            Seen::Applied(child) | Seen::Deleted(child) => self.owner_of(child),
            Seen::All => {
                self.every_relay();
                self.every_pool();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn an_object_that_is_asked_for_twice_is_looked_at_once() {
        let triggers = Triggers::new(&Scope::Cluster);
        for name in ["b", "a", "b"] {
            triggers.relay("n", name);
        }
        let stream = triggers.relay_queues().remove(0).stream::<ModelRelay>();
        let seen: Vec<String> = stream.take(2).map(|item| item.unwrap().name).collect().await;
        assert_eq!(seen, ["a", "b"]);
    }

    #[test]
    fn objects_of_other_namespaces_are_left_alone() {
        let scope = Scope::Namespaces(vec![String::from("a"), String::from("b")]);
        let triggers = Triggers::new(&scope);
        triggers.pool("b", "x");
        triggers.pool("c", "y");
        let queued: Vec<usize> =
            triggers.pool_queues().iter().map(|queue| locked(&queue.keys).len()).collect();
        assert_eq!(queued, [0, 1]);
    }

    #[test]
    fn of_a_relays_status_only_the_settings_in_force_matter_to_pools() {
        let relay = |revision: &str, programmed: &str, replicas: i32| -> ModelRelay {
            serde_yaml::from_str(&format!(
                "{{ apiVersion: modelrelay.io/v1alpha1, kind: ModelRelay, metadata: {{ name: main }}, spec: {{}}, status: \
                 {{ replicas: {replicas}, configRevision: {revision}, conditions: [{{ type: Programmed, status: '{programmed}', \
                 reason: r, message: '', lastTransitionTime: '2026-01-01T00:00:00Z' }}] }} }}"
            ))
            .unwrap()
        };
        let shapes = Shapes::default();
        let changed = |relay: ModelRelay| shapes.changed(&Seen::Applied(&relay));
        assert!(changed(relay("r1", "False", 1)));
        assert!(!changed(relay("r2", "False", 2)));
        assert!(changed(relay("r2", "True", 2)));
        assert!(!changed(relay("r2", "True", 3)));
        assert!(changed(relay("r3", "True", 3)));
    }
}
