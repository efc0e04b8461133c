//! Pools, turn by turn: the reconciler is called by the tests, so that what it writes and what not can be told exactly. The
//! relay is an object without pods; what its relays would say is put where the operator keeps it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::controller::Action;
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use modelrelay_operator::cache::{Scope, Watched, caches};
use modelrelay_operator::context::Context;
use modelrelay_operator::error::ReconcileError;
use modelrelay_operator::fleet::RelayView;
use modelrelay_operator::metrics::Metrics;
use modelrelay_operator::relay_client::WorkerReport;
use modelrelay_operator::triggers::{Triggering, Triggers};
use modelrelay_operator::worker_pool::reconcile;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::support::{Place, eventually, is_content, options};

/// The reconciler with the watches that it looks at.
pub(crate) struct Rig {
    pub(crate) place: Arc<Place>,
    pub(crate) context: Arc<Context>,
    _stop: DropGuard,
}

impl Rig {
    pub(crate) async fn new(prefix: &str) -> Option<Self> {
        let place = Place::new(prefix).await?;
        let scope = Scope::Namespaces(vec![place.name().to_owned()]);
        Some(Self::in_place(Arc::new(place), scope))
    }

    fn in_place(place: Arc<Place>, scope: Scope) -> Self {
        let (caches, feeds) = caches(&place.client, &scope);
        let (caches, triggers) = (Arc::new(caches), Arc::new(Triggers::new(&scope)));
        let (stop, metrics) = (CancellationToken::new(), Metrics::new());
        let observer = Arc::new(Triggering::new(caches.clone(), triggers.clone()));
        feeds.run(&TaskTracker::new(), &stop, &metrics, &observer);
        let context = Context::new(place.client.clone(), caches, triggers, options(scope), metrics);
        Self { place, context: Arc::new(context), _stop: stop.drop_guard() }
    }

    pub(crate) async fn relay(&self, spec: Value) -> ModelRelay {
        self.place.apply(&object("ModelRelay", "main", spec)).await
    }

    pub(crate) async fn pool(&self, spec: Value) -> WorkerPool {
        self.place.apply(&object("WorkerPool", "gpu", spec)).await
    }

    /// One look at the pool, with all that the API server knows.
    pub(crate) async fn turn(&self) -> Result<Action, ReconcileError> {
        self.caught_up::<ModelRelay>().await;
        self.caught_up::<WorkerPool>().await;
        self.caught_up::<DaemonSet>().await;
        self.caught_up::<Service>().await;
        self.caught_up::<ServiceAccount>().await;
        self.caught_up::<Secret>().await;
        self.caught_up::<NetworkPolicy>().await;
        self.caught_up::<Pod>().await;
        let pool = self.context.caches.worker_pools.get(self.place.name(), "gpu").unwrap();
        reconcile(pool, self.context.clone()).await
    }

    /// Waits until a cache holds what the API server holds of this namespace.
    async fn caught_up<K: Watched>(&self) {
        eventually("the watch to catch up", async || {
            let cache = K::cache(&self.context.caches);
            let known =
                cache.matching(|one| one.meta().namespace.as_deref() == Some(self.place.name())).ok()?;
            let params = match K::kind(&()).as_ref() {
                "ModelRelay" | "WorkerPool" => ListParams::default(),
                _ => ListParams::default().labels("app.kubernetes.io/managed-by=modelrelay-operator"),
            };
            let live = self.place.api::<K>().list(&params).await.unwrap();
            let version = |one: &K| (one.name_any(), one.resource_version());
            let known: BTreeMap<_, _> = known.iter().map(|one| version(one)).collect();
            let live: BTreeMap<_, _> = live.items.iter().map(version).collect();
            (known == live).then_some(())
        })
        .await;
    }

    /// Every child's name with its version, and the pool's.
    pub(crate) async fn versions(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.add_versions::<WorkerPool>(&mut all).await;
        self.add_versions::<DaemonSet>(&mut all).await;
        self.add_versions::<Service>(&mut all).await;
        self.add_versions::<ServiceAccount>(&mut all).await;
        self.add_versions::<Secret>(&mut all).await;
        self.add_versions::<NetworkPolicy>(&mut all).await;
        all
    }

    async fn add_versions<K: Watched>(&self, all: &mut Vec<String>) {
        let kind = K::kind(&());
        let live = self.place.api::<K>().list(&ListParams::default()).await.unwrap();
        all.extend(
            live.items
                .iter()
                .map(|one| format!("{kind}/{}@{}", one.name_any(), one.resource_version().unwrap())),
        );
    }

    /// Looks again and again until the pool's condition is as wanted, and returns its message.
    pub(crate) async fn until(&self, kind: &str, wanted: &str) -> String {
        let mut last = String::new();
        eventually(&format!("{kind} to be {wanted}"), async || {
            self.turn().await.ok()?;
            let (words, message) = self.condition(kind).await;
            last.clone_from(&words);
            (words == wanted).then_some(message)
        })
        .await
    }

    /// `status/reason` of a condition, and its message.
    pub(crate) async fn condition(&self, kind: &str) -> (String, String) {
        let pool = self.place.api::<WorkerPool>().get("gpu").await.unwrap();
        let conditions = pool.status.unwrap_or_default().conditions;
        let found = conditions.into_iter().find(|one| one.type_ == kind);
        found.map_or_else(Default::default, |one| (format!("{}/{}", one.status, one.reason), one.message))
    }

    pub(crate) async fn secret(&self, name: &str, key: &str) -> String {
        let secret = self.place.api::<Secret>().get(name).await.unwrap();
        String::from_utf8(secret.data.unwrap()[key].0.clone()).unwrap()
    }

    /// What the relay's pods would say.
    fn relays_say(&self, workers: &[(&str, &str)]) {
        let report = |(name, state): &(&str, &str)| WorkerReport {
            name: (*name).to_owned(),
            instance: Some((*name).to_owned()),
            pool: String::from("gpu"),
            namespace: Some(self.place.name().to_owned()),
            state: (*state).to_owned(),
            reason: (*state == "not_ready").then(|| String::from("starting: refused")),
            models: if *state == "ready" { vec![String::from("m")] } else { Vec::new() },
        };
        let answers = [(String::from("main-0"), Ok(workers.iter().map(report).collect()))].into();
        self.context.fleet.put((self.place.name(), "main"), RelayView { answers });
    }
}

pub(crate) fn object(kind: &str, name: &str, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "modelrelay.io/v1alpha1", "kind": kind, "metadata": { "name": name },
    });
    object["spec"] = spec;
    object
}

fn by_url() -> Value {
    json!({ "relayRef": { "name": "main" }, "backend": { "url": "http://$(NODE_IP):8000" } })
}

fn external() -> Value {
    json!({ "relayRef": { "name": "main" }, "type": "External", "external": { "maxWorkers": 2 } })
}

fn outside() -> Value {
    json!({ "exposure": { "externalURL": "https://relay.example.com" } })
}

async fn patch<K: Watched>(rig: &Rig, name: &str, patch: &Value) -> K {
    rig.place.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
}

#[tokio::test]
async fn a_managed_pool_has_all_its_children_and_is_written_once() {
    let Some(rig) = Rig::new("pool").await else { return };
    rig.relay(json!({})).await;
    let pool = rig.pool(by_url()).await;
    rig.turn().await.unwrap();
    let sets = rig.place.api::<DaemonSet>();
    assert_eq!(sets.get("gpu-worker").await.unwrap().owner_references()[0].uid, pool.uid().unwrap());
    for name in ["gpu-worker-credential", "gpu-worker-admin", "gpu-worker-settings"] {
        let secret = rig.place.api::<Secret>().get(name).await.unwrap();
        assert_eq!(secret.owner_references()[0].uid, pool.uid().unwrap(), "{name}");
    }
    rig.place.api::<ServiceAccount>().get("gpu-worker").await.unwrap();
    rig.place.api::<NetworkPolicy>().get("gpu-worker").await.unwrap();
    let settings = rig.secret("gpu-worker-settings", "worker.yaml").await;
    let relay = format!("http://main-relay-workers.{}.svc:8080", rig.place.name());
    assert!(settings.contains(&relay), "{settings}");
    let token = rig.secret("gpu-worker-admin", "token").await;
    assert!(!settings.contains(&token));

    // No node has a GPU here.
    let message = rig.until("Available", "False/NoMatchingNodes").await;
    assert!(message.contains("nvidia.com/gpu.present=true"), "{message}");
    let before = rig.versions().await;
    for _ in 0..3 {
        let next = rig.turn().await.unwrap();
        assert!(is_content(&next), "{next:?}");
    }
    assert_eq!(rig.versions().await, before);
    // Defaults that are spelled out are a new generation of the pool and nothing else.
    let mut spelled_out = by_url();
    spelled_out["health"] = json!({ "intervalSeconds": 10, "failureThreshold": 3 });
    spelled_out["managed"] =
        json!({ "updateStrategy": { "maxUnavailable": 1 }, "image": { "pullPolicy": "IfNotPresent" } });
    rig.pool(spelled_out).await;
    rig.turn().await.unwrap();
    let children = |mut all: Vec<String>| {
        all.retain(|one| !one.starts_with("WorkerPool/"));
        all
    };
    assert_eq!(children(rig.versions().await), children(before));
}

#[tokio::test]
async fn the_first_word_is_that_nothing_is_known() {
    let Some(rig) = Rig::new("pool").await else { return };
    rig.pool(by_url()).await;
    let seen = rig.place.api::<WorkerPool>();
    let version = seen.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    rig.turn().await.unwrap();
    let mut events = Box::pin(seen.watch(&WatchParams::default(), &version).await.unwrap());
    let first = events.try_next().await.unwrap();
    let Some(WatchEvent::Modified(pool)) = first else { panic!("{first:?}") };
    let status = pool.status.unwrap();
    assert!(status.conditions.iter().all(|one| one.status == "Unknown"), "{:?}", status.conditions);
    assert!(status.conditions.iter().any(|one| one.type_ == "Ready"));
    assert_eq!(status.observed_generation, None);
}

#[tokio::test]
async fn another_image_changes_the_pods_that_run_it_and_no_others() {
    let Some(rig) = Rig::new("pool").await else { return };
    rig.relay(json!({})).await;
    let with = |engine: &str, worker: Value| {
        json!({
            "relayRef": { "name": "main" },
            "backend": { "container": { "image": engine, "ports": [{ "containerPort": 8000 }] } },
            "managed": { "image": worker },
        })
    };
    rig.pool(with("engine:1", json!({}))).await;
    rig.until("Available", "False/NoMatchingNodes").await;
    let changed = async |spec: Value| {
        let before = rig.versions().await;
        rig.pool(spec).await;
        rig.turn().await.unwrap();
        let mut after = rig.versions().await;
        after.retain(|child| !before.contains(child) && !child.starts_with("WorkerPool/"));
        after.iter().map(|child| child.split('@').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(changed(with("engine:1", json!({ "tag": "0.2.0" }))).await, ["DaemonSet/gpu-worker"]);
    assert_eq!(changed(with("engine:2", json!({ "tag": "0.2.0" }))).await, ["DaemonSet/gpu-engine"]);
}

#[tokio::test]
async fn what_is_edited_or_deleted_by_hand_is_put_back() {
    let Some(rig) = Rig::new("pool").await else { return };
    rig.relay(json!({})).await;
    rig.pool(by_url()).await;
    rig.turn().await.unwrap();
    let token = rig.secret("gpu-worker-credential", "token").await;
    let args = json!([{ "name": "worker", "args": ["--help"] }]);
    let edit = json!({ "spec": { "template": { "spec": { "containers": args } } } });
    rig.place
        .api::<DaemonSet>()
        .patch("gpu-worker", &PatchParams::default(), &Patch::Strategic(&edit))
        .await
        .unwrap();
    patch::<NetworkPolicy>(&rig, "gpu-worker", &json!({ "spec": { "ingress": [] } })).await;
    patch::<Secret>(&rig, "gpu-worker-settings", &json!({ "data": { "worker.yaml": "e30K" } })).await;
    rig.place.api::<ServiceAccount>().delete("gpu-worker", &DeleteParams::default()).await.unwrap();
    rig.turn().await.unwrap();
    let set = rig.place.api::<DaemonSet>().get("gpu-worker").await.unwrap();
    let args = set.spec.unwrap().template.spec.unwrap().containers[0].args.clone().unwrap();
    assert_eq!(args[0], "--config");
    let policy = rig.place.api::<NetworkPolicy>().get("gpu-worker").await.unwrap();
    assert_eq!(policy.spec.unwrap().ingress.unwrap().len(), 1);
    assert!(rig.secret("gpu-worker-settings", "worker.yaml").await.contains("relayUrls"));
    rig.place.api::<ServiceAccount>().get("gpu-worker").await.unwrap();
    assert_eq!(rig.secret("gpu-worker-credential", "token").await, token);
}

#[tokio::test]
async fn a_credential_is_the_same_for_two_leaders_and_new_after_its_deletion() {
    let Some(rig) = Rig::new("pool").await else { return };
    rig.relay(json!({})).await;
    rig.pool(by_url()).await;
    let scope = Scope::Namespaces(vec![rig.place.name().to_owned()]);
    let other = Rig::in_place(rig.place.clone(), scope);
    rig.caught_up::<WorkerPool>().await;
    rig.caught_up::<ModelRelay>().await;
    other.caught_up::<WorkerPool>().await;
    other.caught_up::<ModelRelay>().await;
    let pool = |rig: &Rig| rig.context.caches.worker_pools.get(rig.place.name(), "gpu").unwrap();
    // Neither has seen what the other does.
    let (one, two) = tokio::join!(
        reconcile(pool(&rig), rig.context.clone()),
        reconcile(pool(&other), other.context.clone()),
    );
    one.unwrap();
    two.unwrap();
    let token = rig.secret("gpu-worker-credential", "token").await;
    let versions = rig.versions().await;
    rig.turn().await.unwrap();
    other.turn().await.unwrap();
    assert_eq!(rig.secret("gpu-worker-credential", "token").await, token);
    let ours = |all: &[String]| -> Vec<String> {
        all.iter().filter(|one| one.starts_with("Secret/")).cloned().collect()
    };
    assert_eq!(ours(&rig.versions().await), ours(&versions));

    rig.place.api::<Secret>().delete("gpu-worker-credential", &DeleteParams::default()).await.unwrap();
    rig.turn().await.unwrap();
    let rotated = rig.secret("gpu-worker-credential", "token").await;
    assert!(rotated != token && rotated.starts_with("mr_gpu_"));
}

#[tokio::test]
async fn a_relay_that_is_not_there_or_says_no_is_waited_for() {
    let Some(place) = Place::new("pool").await else { return };
    let rig = Rig::in_place(Arc::new(place), Scope::Cluster);
    rig.pool(by_url()).await;
    rig.until("ResolvedRefs", "False/RelayNotFound").await;
    assert_eq!(rig.condition("Ready").await.0, "False/RelayNotFound");
    assert_eq!(rig.place.api::<DaemonSet>().list(&ListParams::default()).await.unwrap().items.len(), 0);
    let events = rig.place.api::<Event>();
    eventually("an event", async || {
        let listed = events.list(&ListParams::default()).await.unwrap();
        listed.items.into_iter().find(|event| event.reason.as_deref() == Some("RelayNotFound"))
    })
    .await;
    rig.relay(json!({})).await;
    rig.until("ResolvedRefs", "True/Resolved").await;

    // A relay of another namespace has to let it.
    let Some(elsewhere) = Place::new("relays").await else { return };
    let relay = |from: &str| {
        object("ModelRelay", "other", json!({ "allowedWorkerPools": { "namespaces": { "from": from } } }))
    };
    elsewhere.apply::<ModelRelay>(&relay("Same")).await;
    rig.place.api::<WorkerPool>().delete("gpu", &DeleteParams::default()).await.unwrap();
    let mut spec = by_url();
    spec["relayRef"] = json!({ "name": "other", "namespace": elsewhere.name() });
    rig.pool(spec).await;
    rig.until("ResolvedRefs", "False/NotAllowed").await;
    elsewhere.apply::<ModelRelay>(&relay("All")).await;
    rig.until("ResolvedRefs", "True/Resolved").await;
    eventually("settings for the other relay", async || {
        rig.turn().await.ok()?;
        let settings = rig.secret("gpu-worker-settings", "worker.yaml").await;
        settings.contains(&format!("other-relay-workers.{}.svc", elsewhere.name())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_object_in_the_way_and_an_overridden_field_are_told() {
    let Some(rig) = Rig::new("pool").await else { return };
    rig.relay(json!({})).await;
    let theirs: ServiceAccount = rig
        .place
        .api()
        .create(
            &PostParams::default(),
            &serde_json::from_value(json!({ "metadata": { "name": "gpu-worker" } })).unwrap(),
        )
        .await
        .unwrap();
    rig.pool(by_url()).await;
    let message = rig.until("Accepted", "False/NameConflict").await;
    assert!(message.contains("ServiceAccount \"gpu-worker\""), "{message}");
    // What is in the way holds up no other child.
    rig.place.api::<DaemonSet>().get("gpu-worker").await.unwrap();
    let live = rig.place.api::<ServiceAccount>().get("gpu-worker").await.unwrap();
    assert_eq!(live.resource_version(), theirs.resource_version());
    rig.place.api::<ServiceAccount>().delete("gpu-worker", &DeleteParams::default()).await.unwrap();
    rig.until("Accepted", "True/Accepted").await;

    let mut spec = by_url();
    spec["managed"] = json!({ "podTemplate": { "spec": { "restartPolicy": "Never" } } });
    rig.pool(spec.clone()).await;
    let message = rig.until("Accepted", "False/ProtectedField").await;
    assert!(message.contains("spec.managed.podTemplate.spec.restartPolicy"), "{message}");
    spec["managed"] = json!({ "podTemplate": { "spec": { "priorityClassName": "no/name" } } });
    rig.pool(spec).await;
    let message = rig.until("Accepted", "False/ChildRefused").await;
    assert!(message.contains("priorityClassName"), "{message}");
}

#[tokio::test]
async fn a_paused_pool_is_not_written() {
    let Some(rig) = Rig::new("pool").await else { return };
    rig.relay(json!({})).await;
    rig.pool(by_url()).await;
    let paused = |value: Value| json!({ "metadata": { "annotations": { "modelrelay.io/paused": value } } });
    patch::<WorkerPool>(&rig, "gpu", &paused(json!("true"))).await;
    rig.until("Progressing", "False/Paused").await;
    assert_eq!(rig.place.api::<Secret>().list(&ListParams::default()).await.unwrap().items.len(), 0);
    patch::<WorkerPool>(&rig, "gpu", &paused(Value::Null)).await;
    rig.until("Progressing", "False/Complete").await;
    patch::<WorkerPool>(&rig, "gpu", &paused(json!("true"))).await;
    // What is not acted on has not been observed.
    let change = json!({ "spec": { "maxConcurrentRequests": 4 } });
    let changed = patch::<WorkerPool>(&rig, "gpu", &change).await.metadata.generation;
    rig.until("Progressing", "False/Paused").await;
    let observed =
        rig.place.api::<WorkerPool>().get("gpu").await.unwrap().status.unwrap().observed_generation;
    assert!(observed < changed, "{observed:?} {changed:?}");
    rig.place.api::<DaemonSet>().delete("gpu-worker", &DeleteParams::default()).await.unwrap();
    rig.until("Progressing", "False/Paused").await;
    let left = rig.place.api::<DaemonSet>().get_opt("gpu-worker").await.unwrap();
    assert!(left.is_none_or(|set| set.metadata.deletion_timestamp.is_some()));
}

#[tokio::test]
async fn an_external_pool_has_a_join_command_that_follows_the_address_and_keeps_its_token() {
    let Some(rig) = Rig::new("pool").await else { return };
    rig.relay(json!({})).await;
    rig.pool(external()).await;
    rig.until("ResolvedRefs", "False/ExternalURLMissing").await;
    assert!(rig.place.api::<Secret>().get_opt("gpu-join").await.unwrap().is_none());
    rig.relay(outside()).await;
    rig.until("ResolvedRefs", "True/Resolved").await;
    let token = rig.secret("gpu-join", "token").await;
    let command = rig.secret("gpu-join", "command").await;
    assert!(command.contains("--relay-url 'https://relay.example.com'"), "{command}");
    assert_eq!(rig.secret("gpu-join", "relayUrl").await, "https://relay.example.com");
    let pool = rig.place.api::<WorkerPool>().get("gpu").await.unwrap();
    assert_eq!(pool.status.unwrap().join_secret_name.as_deref(), Some("gpu-join"));

    rig.relay(json!({ "exposure": { "externalURL": "https://new.example.com/r" } })).await;
    eventually("the command to follow", async || {
        rig.turn().await.unwrap();
        let command = rig.secret("gpu-join", "command").await;
        (command.contains("'https://new.example.com/r'") && command.contains(&token)).then_some(())
    })
    .await;
    assert_eq!(rig.secret("gpu-join", "token").await, token);
    let before = rig.versions().await;
    rig.turn().await.unwrap();
    assert_eq!(rig.versions().await, before);

    // Deleting the Secret rotates the token.
    rig.place.api::<Secret>().delete("gpu-join", &DeleteParams::default()).await.unwrap();
    rig.turn().await.unwrap();
    let rotated = rig.secret("gpu-join", "token").await;
    assert_ne!(rotated, token);
    let command = rig.secret("gpu-join", "command").await;
    assert!(command.contains(&rotated) && !command.contains(&token));

    // A user's own token stays, and is what boxes join with.
    let own = "mr_gpu_of-the-users-choice";
    patch::<Secret>(&rig, "gpu-join", &json!({ "stringData": { "token": own } })).await;
    rig.turn().await.unwrap();
    assert_eq!(rig.secret("gpu-join", "token").await, own);
    assert!(rig.secret("gpu-join", "command").await.contains(own));

    // A token that was spoilt is not replaced behind the user's back.
    patch::<Secret>(&rig, "gpu-join", &json!({ "data": { "token": "aHVudGVyMg==" } })).await;
    let message = rig.until("ResolvedRefs", "False/InvalidSecret").await;
    assert!(message.contains("\"gpu-join\"") && !message.contains("hunter2"), "{message}");
}

#[tokio::test]
async fn an_external_pool_is_ready_when_the_relays_run_with_its_hash() {
    let Some(rig) = Rig::new("pool").await else { return };
    let relay = rig.relay(outside()).await;
    rig.pool(external()).await;
    rig.until("Ready", "False/Pending").await;
    let token = rig.secret("gpu-join", "token").await;
    let hash = modelrelay_operator::generated::sha256(&token).to_hex();
    let file = format!("workerCredentials: [{{ sha256: \"{hash}\" }}]\n");
    let revision = modelrelay_operator::generated::sha256(&file).to_hex()[..16].to_owned();
    let settings = json!({
        "metadata": {
            "name": "main-relay-settings",
            "labels": { "app.kubernetes.io/managed-by": "modelrelay-operator" },
        },
        "stringData": { "relay.yaml": file },
    });
    let settings = serde_json::from_value(settings).unwrap();
    rig.place.api::<Secret>().create(&PostParams::default(), &settings).await.unwrap();
    let status = |revision: &str, programmed: &str| {
        json!({ "status": { "configRevision": revision, "conditions": [{
            "type": "Programmed", "status": programmed, "reason": "Programmed", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }] } })
    };
    let relays = rig.place.api::<ModelRelay>();
    for (revision, programmed) in [("other", "True"), (&revision, "False")] {
        let patch = Patch::Merge(status(revision, programmed));
        relays.patch_status(&relay.name_any(), &PatchParams::default(), &patch).await.unwrap();
        rig.turn().await.unwrap();
        assert_eq!(rig.condition("Ready").await.0, "False/Pending", "{revision} {programmed}");
    }
    let acknowledged = Patch::Merge(status(&revision, "True"));
    relays.patch_status(&relay.name_any(), &PatchParams::default(), &acknowledged).await.unwrap();
    rig.until("Ready", "True/Ready").await;
    assert_eq!(rig.condition("Available").await.0, "Unknown/RelayUnreachable");
    rig.relays_say(&[("box", "ready")]);
    rig.until("Available", "True/Available").await;

    // A pause stops writes; what is there stays true.
    let paused = json!({ "metadata": { "annotations": { "modelrelay.io/paused": "true" } } });
    patch::<WorkerPool>(&rig, "gpu", &paused).await;
    rig.until("Progressing", "False/Paused").await;
    assert_eq!(rig.condition("Ready").await.0, "True/Ready");
    let pool = rig.place.api::<WorkerPool>().get("gpu").await.unwrap();
    assert_eq!(pool.status.unwrap().join_secret_name.as_deref(), Some("gpu-join"));
}

#[tokio::test]
async fn counts_come_from_the_relays_and_wait_a_little() {
    let Some(rig) = Rig::new("pool").await else { return };
    rig.relay(outside()).await;
    rig.pool(external()).await;
    rig.relays_say(&[("a", "ready"), ("b", "not_ready"), ("c", "draining")]);
    rig.until("Available", "True/Available").await;
    let status = || async { rig.place.api::<WorkerPool>().get("gpu").await.unwrap().status.unwrap() };
    let first = status().await;
    assert_eq!((first.connected, first.ready, first.draining), (Some(3), Some(1), Some(1)));
    assert_eq!(first.models.clone().unwrap()[0].ready_workers, 1);
    assert_eq!((first.unhealthy[0].worker.as_str(), first.unhealthy[0].reason.as_str()), ("b", "Starting"));
    // A figure that moved just after the last one was written waits; a condition does not.
    rig.relays_say(&[("a", "ready"), ("b", "ready")]);
    rig.turn().await.unwrap();
    assert_eq!(status().await.ready, Some(1));
    rig.relays_say(&[("b", "not_ready")]);
    rig.turn().await.unwrap();
    assert_eq!(rig.condition("Available").await.0, "False/NoReadyWorker");
    assert_eq!(status().await.ready, Some(0));
    rig.context.fleet.forget(rig.place.name(), "main");
    rig.turn().await.unwrap();
    assert_eq!((status().await.ready, status().await.unhealthy.len()), (None, 0));
}

/// A node that no kubelet runs, which only pods that tolerate everything go to.
pub(crate) async fn node(rig: &Rig, name: &str) -> Node {
    let node = json!({
        "metadata": { "name": name, "labels": { "test": rig.place.name() } },
    });
    let nodes = kube::Api::<Node>::all(rig.place.client.clone());
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap()
}

pub(crate) async fn delete_node(rig: &Rig, name: &str) {
    let nodes = kube::Api::<Node>::all(rig.place.client.clone());
    nodes.delete(name, &DeleteParams::default()).await.unwrap();
}

pub(crate) fn on_test_nodes(rig: &Rig) -> Value {
    json!({ "nodeSelector": { "test": rig.place.name() }, "tolerations": [{ "operator": "Exists" }] })
}

#[tokio::test]
async fn workers_go_to_the_nodes_and_a_namespace_that_enforces_restricted_takes_them() {
    let Some(rig) = Rig::new("pool").await else { return };
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(rig.place.client.clone());
    let enforce = json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "restricted" } } });
    namespaces.patch(rig.place.name(), &PatchParams::default(), &Patch::Merge(&enforce)).await.unwrap();
    let name = format!("{}-n", rig.place.name());
    node(&rig, &name).await;
    rig.relay(json!({})).await;
    let mut spec = by_url();
    spec["managed"] = on_test_nodes(&rig);
    rig.pool(spec.clone()).await;
    rig.until("Available", "False/NoReadyWorker").await;
    let status = rig.place.api::<WorkerPool>().get("gpu").await.unwrap().status.unwrap();
    assert_eq!((status.desired, status.current), (Some(1), Some(1)));

    // The engine of this namespace's user wants what it does not allow.
    spec["backend"] = json!({ "container": {
        "image": "e", "ports": [{ "containerPort": 80 }], "securityContext": { "privileged": true },
    } });
    rig.pool(spec).await;
    let message = rig.until("Progressing", "False/PodsRefused").await;
    assert!(message.contains("violates PodSecurity \"restricted"), "{message}");
    assert_eq!(rig.condition("Available").await.0, "False/PodsRefused");
    delete_node(&rig, &name).await;
}
