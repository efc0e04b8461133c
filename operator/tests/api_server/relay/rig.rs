//! The reconciler of relays with the watches that it looks at, behind a proxy that counts what it asks.

use std::collections::BTreeMap;
use std::sync::Arc;

use dev_cluster::proxy::{Proxy, Recorded};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Event, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use modelrelay_operator::cache::{Cache, Caches, Scope, Watched, caches};
use modelrelay_operator::context::Context;
use modelrelay_operator::error::ReconcileError;
use modelrelay_operator::metrics::Metrics;
use modelrelay_operator::model_relay::reconcile;
use modelrelay_operator::triggers::{Triggering, Triggers};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::support::{Place, client, eventually, options, plane};

/// The reconciler of one relay, `main`.
pub(super) struct Rig {
    pub(super) place: Arc<Place>,
    pub(super) context: Arc<Context>,
    pub(super) proxy: Proxy<'static>,
    _stop: DropGuard,
}

impl Rig {
    pub(super) async fn new() -> Option<Self> {
        let place = Place::new("relay").await?;
        Some(Self::in_place(Arc::new(place)).await)
    }

    /// One more operator in a namespace.
    pub(super) async fn in_place(place: Arc<Place>) -> Self {
        let (proxy, kubeconfig) = tokio::task::spawn_blocking(|| {
            let proxy = Proxy::start(plane().unwrap()).unwrap();
            let kubeconfig = proxy.kubeconfig_for("operator", &["system:masters"]).unwrap();
            (proxy, kubeconfig)
        })
        .await
        .unwrap();
        let client = client(&kubeconfig).await;
        let scope = Scope::Namespaces(vec![place.name().to_owned()]);
        let (caches, feeds) = caches(&client, &scope);
        let (caches, triggers) = (Arc::new(caches), Arc::new(Triggers::new(&scope)));
        let (stop, metrics) = (CancellationToken::new(), Metrics::new());
        let observer = Arc::new(Triggering::new(caches.clone(), triggers.clone()));
        feeds.run(&TaskTracker::new(), &stop, &metrics, &observer);
        let context = Context::new(client, caches, triggers, options(scope), metrics);
        Self { place, context: Arc::new(context), proxy, _stop: stop.drop_guard() }
    }

    pub(super) async fn relay(&self, spec: Value) -> ModelRelay {
        self.place.apply(&relay(spec)).await
    }

    /// Replaces the whole spec: an apply would leave what it does not name.
    pub(super) async fn replace(&self, spec: Value) {
        let mut live = self.get::<ModelRelay>("main").await.unwrap();
        live.spec = serde_json::from_value(spec).unwrap();
        self.place.api::<ModelRelay>().replace("main", &PostParams::default(), &live).await.unwrap();
    }

    /// One look at the relay, with all that the API server knows.
    pub(super) async fn turn(&self) -> Result<Action, ReconcileError> {
        self.catch_up().await;
        let relay = self.context.caches.model_relays.get(self.place.name(), "main").unwrap();
        Box::pin(reconcile(relay, self.context.clone())).await
    }

    pub(super) async fn catch_up(&self) {
        self.caught_up::<ModelRelay>("", ModelRelay::cache).await;
        self.caught_up::<WorkerPool>("", WorkerPool::cache).await;
        let own = "app.kubernetes.io/managed-by=modelrelay-operator";
        self.caught_up::<Deployment>(own, Deployment::cache).await;
        self.caught_up::<Service>(own, Service::cache).await;
        self.caught_up::<ServiceAccount>(own, ServiceAccount::cache).await;
        self.caught_up::<Secret>(own, Secret::cache).await;
        self.caught_up::<Secret>("modelrelay.io/client-key", |caches| &caches.client_keys).await;
        self.caught_up::<PodDisruptionBudget>(own, PodDisruptionBudget::cache).await;
        self.caught_up::<NetworkPolicy>(own, NetworkPolicy::cache).await;
        self.caught_up::<HorizontalPodAutoscaler>(own, HorizontalPodAutoscaler::cache).await;
        self.caught_up::<Pod>(own, Pod::cache).await;
    }

    /// Waits until a cache holds what the API server holds of this namespace.
    async fn caught_up<K: Watched>(&self, labels: &str, cache: impl Fn(&Caches) -> &Cache<K>) {
        eventually("the watch to catch up", async || {
            let cache = cache(&self.context.caches);
            let known = cache.all().ok()?;
            let live = self.place.api::<K>().list(&ListParams::default().labels(labels)).await.unwrap();
            let version = |one: &K| (one.name_any(), one.resource_version());
            let known: BTreeMap<_, _> = known.iter().map(|one| version(one)).collect();
            let live: BTreeMap<_, _> = live.items.iter().map(version).collect();
            (known == live).then_some(())
        })
        .await;
    }

    /// Looks again and again until the relay's condition is as wanted, and returns its message.
    pub(super) async fn until(&self, kind: &str, wanted: &str) -> String {
        eventually(&format!("{kind} to be {wanted}"), async || {
            let _ = self.turn().await;
            let (words, message) = self.condition(kind).await;
            (words == wanted).then_some(message)
        })
        .await
    }

    /// `status/reason` of a condition, and its message.
    pub(super) async fn condition(&self, kind: &str) -> (String, String) {
        let relay = self.place.api::<ModelRelay>().get("main").await.unwrap();
        let conditions = relay.status.unwrap_or_default().conditions;
        let found = conditions.into_iter().find(|one| one.type_ == kind);
        found.map_or_else(Default::default, |one| (format!("{}/{}", one.status, one.reason), one.message))
    }

    /// The settings file as the Secret holds it.
    pub(super) async fn settings(&self) -> String {
        self.secret("main-relay-settings", "relay.yaml").await
    }

    pub(super) async fn secret(&self, name: &str, key: &str) -> String {
        let secret = self.place.api::<Secret>().get(name).await.unwrap();
        String::from_utf8(secret.data.unwrap()[key].0.clone()).unwrap()
    }

    pub(super) async fn patch<K: Watched>(&self, name: &str, patch: &Value) -> K {
        self.place.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    pub(super) async fn get<K: Watched>(&self, name: &str) -> Option<K> {
        self.place.api::<K>().get_opt(name).await.unwrap()
    }

    /// The events about one object: `reason: note`.
    pub(super) async fn events(&self, kind: &str, name: &str) -> Vec<String> {
        let events = self.place.api::<Event>().list(&ListParams::default()).await.unwrap();
        let about = |event: &Event| {
            let about = &event.involved_object;
            about.kind.as_deref() == Some(kind) && about.name.as_deref() == Some(name)
        };
        let told = events.items.into_iter().filter(about);
        told.map(|event| {
            format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default())
        })
        .collect()
    }

    /// What the operator writes while `act` runs, as `verb resource/name`.
    pub(super) async fn writes(&self, act: impl AsyncFnOnce()) -> Vec<String> {
        self.proxy.forget();
        act().await;
        let calls = self.proxy.calls();
        let shown = |Recorded { call, .. }: &Recorded| {
            format!("{} {}/{}", call.verb, call.resource, call.name.as_deref().unwrap_or("-"))
        };
        calls.iter().filter(|recorded| recorded.call.writes()).map(shown).collect()
    }

    /// What one look writes.
    pub(super) async fn turn_writes(&self) -> Vec<String> {
        self.writes(async || {
            self.turn().await.unwrap();
        })
        .await
    }

    /// Looks until nothing is written any more.
    pub(super) async fn settle(&self) {
        eventually("the relay to settle", async || {
            let writes = self.turn_writes().await;
            writes.is_empty().then_some(())
        })
        .await;
    }
}

pub(super) fn relay(spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "modelrelay.io/v1alpha1", "kind": "ModelRelay", "metadata": { "name": "main" },
    });
    object["spec"] = spec;
    object
}
