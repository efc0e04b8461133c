//! What the operator survives: being killed anywhere, an API server that is gone, silent or angry, and company.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dev_cluster::proxy::{Call, Fault, Proxy, Rule, Verb};
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::api::ListParams;
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use modelrelay_operator::cache::{Scope, Watched};
use modelrelay_operator::generated::sha256;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{LIMIT, Place, RunningOperator, client, eventually, plane};

/// Without a single write for so long, an operator has settled.
const CALM: Duration = Duration::from_millis(1500);

fn relay() -> Value {
    json!({
        "apiVersion": "modelrelay.io/v1alpha1",
        "kind": "ModelRelay",
        "metadata": { "name": "main" },
        "spec": {
            "replicas": 2,
            "models": [{ "name": "alias", "targets": [{ "model": "m" }] }],
            "exposure": { "externalURL": "https://relay.example.com" },
        },
    })
}

fn pool(spec: &Value) -> Value {
    json!({
        "apiVersion": "modelrelay.io/v1alpha1",
        "kind": "WorkerPool",
        "metadata": { "name": "gpu" },
        "spec": spec,
    })
}

fn with_engine() -> Value {
    json!({
        "relayRef": { "name": "main" },
        "backend": { "container": {
            "image": "registry.example/engine:1",
            "ports": [{ "name": "http", "containerPort": 8000 }],
        } },
    })
}

fn external() -> Value {
    json!({ "relayRef": { "name": "main" }, "type": "External" })
}

/// A namespace whose operators go through a proxy.
struct Faulty {
    place: Place,
    proxy: Proxy<'static>,
}

impl Faulty {
    async fn new() -> Option<Self> {
        let place = Place::new("faults").await?;
        let proxy = Proxy::start(plane()?).unwrap();
        Some(Self { place, proxy })
    }

    async fn operator(&self) -> RunningOperator {
        let kubeconfig = self.proxy.kubeconfig_for("operator", &["system:masters"]).unwrap();
        let scope = Scope::Namespaces(vec![self.place.name().to_owned()]);
        RunningOperator::start(client(&kubeconfig).await, scope)
    }

    /// A relay, and a pool with an engine.
    async fn apply_both(&self) {
        self.apply_with(&with_engine()).await;
    }

    async fn apply_with(&self, pool_spec: &Value) {
        self.place.apply::<ModelRelay>(&relay()).await;
        self.place.apply::<WorkerPool>(&pool(pool_spec)).await;
    }

    fn writes(&self) -> usize {
        self.proxy.calls().iter().filter(|recorded| counts(&recorded.call)).count()
    }

    /// Waits until the operator has not written for a while, and returns the number of its writes.
    async fn settle(&self) -> usize {
        let began = Instant::now();
        let (mut last, mut since) = (self.writes(), Instant::now());
        while since.elapsed() < CALM || last == 0 {
            sleep(Duration::from_millis(50)).await;
            let now = self.writes();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            assert!(began.elapsed() < LIMIT, "still writing: {:?}", self.proxy.counts());
        }
        last
    }

    async fn world(&self) -> BTreeMap<String, Value> {
        world(&self.place).await
    }

    /// What the operator has made up so far, by the Secret that holds it. A command holds the same token.
    async fn tokens(&self) -> BTreeMap<String, String> {
        let text = |bytes: ByteString| String::from_utf8(bytes.0).unwrap();
        let mut tokens = BTreeMap::new();
        for secret in self.place.api::<Secret>().list(&ListParams::default()).await.unwrap() {
            let (name, mut data) = (secret.name_any(), secret.data.unwrap_or_default());
            let Some(token) = data.remove("token").map(text) else { continue };
            for command in ["command", "dockerCommand"].into_iter().filter_map(|key| data.remove(key)) {
                assert!(text(command).contains(&token), "{name}: the command has another token");
            }
            tokens.insert(name, token);
        }
        tokens
    }

    /// What relays are told of the credentials of pools: a hash.
    async fn settings_hold(&self, token: &str) -> bool {
        let settings = self.place.api::<Secret>().get("main-relay-settings").await.unwrap();
        let hash = sha256(token).to_hex();
        settings.data.unwrap()["relay.yaml"].0.windows(hash.len()).any(|part| part == hash.as_bytes())
    }
}

/// Events and Leases are no writes.
fn counts(call: &Call) -> bool {
    call.writes() && call.resource != "events" && call.resource != "leases"
}

/// All children, without what differs from one undisturbed run to the next.
async fn world(place: &Place) -> BTreeMap<String, Value> {
    async fn add<K: Watched>(place: &Place, world: &mut BTreeMap<String, Value>) {
        for child in place.api::<K>().list(&ListParams::default()).await.unwrap() {
            let owned = child.owner_references().iter().any(|owner| owner.controller == Some(true));
            if owned {
                let kind = K::kind(&());
                world.insert(format!("{kind}/{}", child.name_any()), essence(&child));
            }
        }
    }
    let mut all = BTreeMap::new();
    add::<Deployment>(place, &mut all).await;
    add::<DaemonSet>(place, &mut all).await;
    add::<Service>(place, &mut all).await;
    add::<ServiceAccount>(place, &mut all).await;
    add::<Secret>(place, &mut all).await;
    add::<PodDisruptionBudget>(place, &mut all).await;
    add::<NetworkPolicy>(place, &mut all).await;
    all
}

fn essence<K: Watched>(child: &K) -> Value {
    let mut value = serde_json::to_value(child).unwrap();
    let mut spec = value["spec"].take();
    let keys: Vec<String> =
        value["data"].as_object().map(|data| data.keys().cloned().collect()).unwrap_or_default();
    // The hash of settings that name the namespace.
    if let Some(annotations) = spec["template"]["metadata"]["annotations"].as_object_mut() {
        annotations.remove("modelrelay.io/started-with");
    }
    for chosen_by_the_cluster in ["clusterIP", "clusterIPs", "healthCheckNodePort"] {
        if let Some(map) = spec.as_object_mut() {
            map.remove(chosen_by_the_cluster);
        }
    }
    json!({ "labels": value["metadata"]["labels"], "spec": spec, "data": keys })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_write_it_ends_up_where_an_undisturbed_run_does() {
    killed_at_any_write(&with_engine(), 14, "DaemonSet/gpu-engine").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_write_of_a_pool_outside_it_makes_one_join_credential() {
    killed_at_any_write(&external(), 9, "Secret/gpu-join").await;
}

/// All children of both are written, this one of the pool's among them.
async fn killed_at_any_write(pool_spec: &Value, children: usize, last: &str) {
    let Some(undisturbed) = Faulty::new().await else { return };
    undisturbed.apply_with(pool_spec).await;
    let operator = undisturbed.operator().await;
    let writes = undisturbed.settle().await;
    let expected = undisturbed.world().await;
    assert!(expected.len() >= children && expected.contains_key(last), "{:?}", expected.keys());
    drop(operator);
    for fault in [Fault::BreakBefore, Fault::BreakAfter] {
        let runs = (1..=writes).map(|n| killed_at(fault, n, pool_spec, writes, &expected));
        // A few at a time: the machine is small.
        let mut runs = futures_util::StreamExt::buffer_unordered(futures_util::stream::iter(runs), 6);
        while futures_util::StreamExt::next(&mut runs).await.is_some() {}
    }
}

/// The children that are not in both, or not the same.
fn difference<'a>(
    one: &'a BTreeMap<String, Value>,
    other: &'a BTreeMap<String, Value>,
) -> BTreeSet<&'a String> {
    one.keys().chain(other.keys()).filter(|key| one.get(*key) != other.get(*key)).collect()
}

/// The operator dies with the `n`-th write, before or after the API server has done it.
async fn killed_at(
    fault: Fault,
    n: usize,
    pool_spec: &Value,
    undisturbed: usize,
    expected: &BTreeMap<String, Value>,
) {
    let faulty = Faulty::new().await.unwrap();
    faulty.apply_with(pool_spec).await;
    let mut hits = faulty.proxy.add(Rule::new(fault, counts).nth(u64::try_from(n).unwrap()));
    let operator = faulty.operator().await;
    // The last status may need no write of its own when others came together.
    let hit = timeout(Duration::from_secs(20), hits.reach(1)).await;
    operator.kill().await;
    assert!(hit.is_ok() || n + 2 > undisturbed, "write {n} of {undisturbed} never came");
    faulty.proxy.clear();
    let made_up = faulty.tokens().await;
    let _operator = faulty.operator().await;
    faulty.settle().await;
    for (name, token) in faulty.tokens().await {
        let before = made_up.get(&name);
        assert!(
            before.is_none_or(|before| *before == token),
            "{name} is another after write {n} ({fault:?})"
        );
        if !name.ends_with("-admin") {
            assert!(faulty.settings_hold(&token).await, "{name} lets nobody in after write {n} ({fault:?})");
        }
    }
    let found = faulty.world().await;
    let differing = difference(&found, expected);
    assert!(differing.is_empty(), "killed at write {n} ({fault:?}): {differing:?}");
    let deletes = faulty.proxy.calls().iter().filter(|recorded| recorded.call.verb == Verb::Delete).count();
    assert_eq!(deletes, 0, "nothing had to be deleted after write {n} ({fault:?})");
    let made = faulty.proxy.calls().iter().filter(|recorded| recorded.status == Some(201)).count();
    assert!(made <= expected.len() + faulty.events(), "nothing is made twice after write {n} ({fault:?})");
}

impl Faulty {
    fn events(&self) -> usize {
        self.proxy.calls().iter().filter(|recorded| recorded.call.resource == "events").count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_after_it_settled_nothing_is_written_and_a_restart_writes_nothing_either() {
    let Some(faulty) = Faulty::new().await else { return };
    faulty.apply_both().await;
    let operator = faulty.operator().await;
    faulty.settle().await;
    faulty.proxy.forget();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(faulty.writes(), 0, "{:?}", faulty.proxy.counts());
    let asked = faulty.proxy.calls().iter().filter(|recorded| recorded.call.verb != Verb::Watch).count();
    assert!(asked < 60, "an idle operator asks less than once a second: {:?}", faulty.proxy.counts());
    operator.stop().await;
    let _again = faulty.operator().await;
    eventually("the restarted operator watches", async || {
        (faulty.proxy.open_watches(|_| true) >= 12).then_some(())
    })
    .await;
    sleep(CALM).await;
    assert_eq!(faulty.writes(), 0, "{:?}", faulty.proxy.counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_and_overload_and_failures_delay_it_and_no_more() {
    let Some(calm) = Faulty::new().await else { return };
    calm.apply_both().await;
    let operator = calm.operator().await;
    calm.settle().await;
    let expected = calm.world().await;
    drop(operator);
    let faulty = Faulty::new().await.unwrap();
    faulty.apply_both().await;
    for fault in [Fault::CONFLICT, Fault::TOO_MANY_REQUESTS, Fault::INTERNAL_ERROR] {
        for first in [1, 4, 9] {
            faulty.proxy.add(Rule::new(fault, counts).from(first).times(2));
        }
    }
    let _operator = faulty.operator().await;
    eventually("every child is there", async || {
        difference(&faulty.world().await, &expected).is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_falls_silent_is_noticed_within_a_minute() {
    let Some(faulty) = Faulty::new().await else { return };
    faulty.apply_both().await;
    let _operator = faulty.operator().await;
    faulty.settle().await;
    assert!(faulty.proxy.silence_watches(|_| true) >= 12);
    let deployments = faulty.place.api::<Deployment>();
    deployments.delete("main-relay", &kube::api::DeleteParams::default()).await.unwrap();
    let gone = Instant::now();
    eventually("the Deployment is back", async || deployments.get_opt("main-relay").await.unwrap()).await;
    assert!(gone.elapsed() < Duration::from_secs(60));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_never_comes_is_asked_for_again_within_a_minute() {
    let Some(faulty) = Faulty::new().await else { return };
    let lists = |call: &Call| call.resource == "modelrelays" && call.verb == Verb::List;
    let mut hits = faulty.proxy.add(Rule::new(Fault::Hang, lists).times(1));
    faulty.apply_both().await;
    let _operator = faulty.operator().await;
    timeout(LIMIT, hits.reach(1)).await.unwrap();
    let silent = Instant::now();
    let deployments = faulty.place.api::<Deployment>();
    eventually("the Deployment is there", async || deployments.get_opt("main-relay").await.unwrap()).await;
    assert!(silent.elapsed() < Duration::from_secs(60));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_may_not_be_read_or_is_not_installed_harms_no_other() {
    let Some(faulty) = Faulty::new().await else { return };
    faulty.proxy.add(Rule::new(Fault::FORBIDDEN, |call| {
        call.resource == "horizontalpodautoscalers" && matches!(call.verb, Verb::List | Verb::Watch)
    }));
    let absent = Fault::Answer { status: 404, retry_after_seconds: None };
    faulty.proxy.add(Rule::new(absent, |call| call.resource == "poddisruptionbudgets"));
    faulty.apply_both().await;
    let _operator = faulty.operator().await;
    let deployments = faulty.place.api::<Deployment>();
    eventually("the Deployment is there", async || deployments.get_opt("main-relay").await.unwrap()).await;
    let daemon_sets = faulty.place.api::<DaemonSet>();
    for name in ["gpu-worker", "gpu-engine"] {
        eventually("the DaemonSet is there", async || daemon_sets.get_opt(name).await.unwrap()).await;
    }
    let secrets = faulty.place.api::<Secret>();
    eventually("the settings are there", async || secrets.get_opt("main-relay-settings").await.unwrap())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_act_at_once_do_no_harm() {
    let Some(faulty) = Faulty::new().await else { return };
    let (first, second) = (faulty.operator().await, faulty.operator().await);
    faulty.apply_both().await;
    let secrets = faulty.place.api::<Secret>();
    let token = async |name: &str| secrets.get_opt(name).await.unwrap()?.data?.remove("token");
    let before = eventually("the credential is there", async || token("gpu-worker-credential").await).await;
    let together = faulty.settle().await;
    assert!(together < 120, "two operators do not fight: {:?}", faulty.proxy.counts());
    assert_eq!(token("gpu-worker-credential").await, Some(before), "the first one's value stays");
    drop((first, second));
}
