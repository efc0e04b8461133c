//! All that is changed, replaced and lost in the life of a cluster, while streams and requests go on.

use std::time::Duration;

use dev_cluster::{Patch, wait};
use dev_e2e::client::{CHAT, Ended, ask, chat_for, get, post};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::load::Load;
use crate::support::{LIMIT, Part, STUB, Site, Suite, condition, options, start, suite};

/// How long the operator is away.
const OPERATOR_AWAY: Duration = Duration::from_secs(120);
/// How long the API server is away.
const API_SERVER_AWAY: Duration = Duration::from_secs(60);
/// The model of a pool that runs its engine, on both nodes.
const OWN: &str = "own";
/// The model of two pools, one for each node, before an engine that runs already.
const SHARED: &str = "shared";
const POOLS: [&str; 3] = [OWN, "shared1", "shared2"];
const OPERATOR: &str = "--namespace modelrelay-system deployment/modelrelay-operator";

/// A relay with its pools.
struct Scene<'a> {
    suite: &'a Suite,
    site: Site<'a>,
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What is printed of a failed test takes an API server; it fails where one runs.
            let _ = self.suite.plane().start_api_server();
        }
    }
}

impl<'a> Scene<'a> {
    fn new(suite: &'a Suite) -> Self {
        let scene = Self { suite, site: Site::new(suite, "disturbances") };
        let labels = json!({ "app": "engine" });
        let mut engine = Site::stub_container(SHARED);
        engine["name"] = json!("engine");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "engine", "labels": labels },
            "spec": { "containers": [engine] },
        });
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "engine" },
            "spec": { "selector": labels, "ports": [{ "port": 8000 }] },
        });
        let relay = Site::relay("main", &json!({ "replicas": 2, "drainSeconds": 60 }));
        scene.site.apply(&[pod, service, relay]);
        scene.site.apply(&POOLS.map(Self::pool));
        scene.site.ready("modelrelays", "main");
        POOLS.iter().for_each(|pool| drop(scene.site.ready("workerpools", pool)));
        scene.pods_ready(Part::Relay, "main", 2, |_| true);
        scene
    }

    fn pool(name: &str) -> Value {
        let (backend, nodes) = match name {
            OWN => (json!({ "container": Site::stub_container(OWN) }), json!({})),
            _ => {
                let node = name.replace("shared", "node");
                let service = json!({ "name": "engine", "port": 8000 });
                (json!({ "service": service }), json!({ "kubernetes.io/hostname": node }))
            }
        };
        let health = json!({ "intervalSeconds": 1 });
        let managed = json!({ "nodeSelector": nodes });
        let spec = json!({
            "backend": backend, "health": health, "managed": managed, "maxConcurrentRequests": 64,
        });
        Site::pool(name, &spec)
    }

    fn patch(&self, kind: &str, name: &str, spec: &Value) {
        let path = format!("{}/{name}", self.site.path(kind));
        self.site.api().patch(&path, Patch::Merge, &json!({ "spec": spec })).unwrap();
    }

    /// Waits until an object is gone.
    fn gone(&self, kind: &str, name: &str) {
        let path = format!("{}/{name}", self.site.path(kind));
        let found = wait::until(&format!("{kind} {name} is gone"), LIMIT, || {
            Ok(self.site.api().find(&path)?.is_none().then_some(()))
        });
        found.unwrap();
    }

    /// Waits until there are so many pods of a relay or pool, all of them as wanted and ready.
    fn pods_ready(
        &self,
        part: Part,
        instance: &str,
        count: usize,
        wanted: impl Fn(&Value) -> bool,
    ) -> Vec<Value> {
        let what = format!("{count} ready pods of {instance}, all of them as wanted");
        self.site.pods_until(&what, part, instance, |pods| {
            pods.len() == count && pods.iter().all(|pod| condition(pod, "Ready") == "True" && wanted(pod))
        })
    }

    /// Waits until none of these pods is left, and as many others are ready.
    fn replaced(&self, part: Part, instance: &str, old: &[Value], wanted: impl Fn(&Value) -> bool) {
        let names: Vec<_> = old.iter().map(name).collect();
        self.pods_ready(part, instance, old.len(), |pod| !names.contains(&name(pod)) && wanted(pod));
        names.iter().for_each(|name| self.gone("pods", name));
    }

    /// Gives the image of these pods one more name on the nodes; returns its parts.
    fn other_image(&self, pods: &[Value]) -> (String, Value) {
        let (repository, _) = image(&pods[0]).rsplit_once(':').unwrap();
        let other = format!("{repository}:other");
        self.suite.cluster.tag_image(image(&pods[0]), &other).unwrap();
        (other, json!({ "repository": repository, "tag": "other" }))
    }

    fn relay_image(&self) {
        let old = self.site.pods(Part::Relay, "main");
        let (other, parts) = self.other_image(&old);
        self.patch("modelrelays", "main", &json!({ "image": parts }));
        self.replaced(Part::Relay, "main", &old, |pod| image(pod) == other);
        self.site.ready("modelrelays", "main");
    }

    fn worker_image(&self) {
        let old = POOLS.map(|pool| self.site.pods(Part::Worker, pool));
        let (other, parts) = self.other_image(&old[0]);
        for pool in POOLS {
            self.patch("workerpools", pool, &json!({ "managed": { "image": parts } }));
        }
        for (pool, old) in POOLS.iter().zip(&old) {
            self.replaced(Part::Worker, pool, old, |pod| image(pod) == other);
            self.site.ready("workerpools", pool);
        }
    }

    fn engine_image(&self) {
        let (workers, engines) = (self.site.pods(Part::Worker, OWN), self.site.pods(Part::Engine, OWN));
        assert_eq!((image(&engines[0]), engines.len()), (STUB, 2));
        let (other, _) = self.other_image(&engines);
        self.patch("workerpools", OWN, &json!({ "backend": { "container": { "image": other } } }));
        self.replaced(Part::Engine, OWN, &engines, |pod| image(pod) == other);
        self.site.until("the rollout is over", "workerpools", OWN, |pool| {
            condition(pool, "Progressing") == "False" && condition(pool, "Ready") == "True"
        });
        let now = self.site.pods(Part::Worker, OWN);
        assert!(now.iter().map(name).eq(workers.iter().map(name)), "the workers stay");
    }

    fn alias(&self, alias: &str) {
        let models = json!([{ "name": alias, "targets": [{ "model": SHARED }] }]);
        self.patch("modelrelays", "main", &json!({ "models": models }));
    }

    /// Changes the settings, waits until every relay acknowledged them, and uses them. No pod is replaced by it.
    async fn settings(&self, alias: &str) {
        let before = self.site.get("modelrelays", "main");
        let pods = self.site.pods(Part::Relay, "main");
        self.alias(alias);
        self.site.until("the settings are in force", "modelrelays", "main", |relay| {
            let conditions = relay["status"]["conditions"].as_array().unwrap();
            let programmed = conditions.iter().find(|condition| condition["type"] == "Programmed").unwrap();
            programmed["status"] == "True"
                && programmed["observedGeneration"] == relay["metadata"]["generation"]
                && relay["status"]["configRevision"] != before["status"]["configRevision"]
        });
        let now = self.site.pods(Part::Relay, "main");
        assert!(now.iter().map(name).eq(pods.iter().map(name)), "the relays stay");
        let request = post(CHAT, chat_for(alias, false, &json!({})));
        assert_eq!(ask(self.site.service("main"), request).await.status(), 200);
    }

    fn scale(&self, replicas: usize) {
        self.patch("modelrelays", "main", &json!({ "replicas": replicas }));
        self.pods_ready(Part::Relay, "main", replicas, |_| true);
    }

    /// Hands the number of replicas to an autoscaler. Nothing measures CPU here, so it moves within its bounds only.
    fn autoscaler(&self) {
        self.patch(
            "modelrelays",
            "main",
            &json!({ "replicas": null, "scaling": { "minReplicas": 3, "maxReplicas": 4 } }),
        );
        self.pods_ready(Part::Relay, "main", 3, |_| true);
        self.site.get("horizontalpodautoscalers", "main-relay");
        self.patch("modelrelays", "main", &json!({ "scaling": { "minReplicas": 1, "maxReplicas": 2 } }));
        self.pods_ready(Part::Relay, "main", 2, |_| true);
        let deployment = self.site.get("deployments", "main-relay");
        assert_eq!(deployment["spec"]["replicas"], 2);
        self.patch("modelrelays", "main", &json!({ "replicas": 2, "scaling": null }));
        self.gone("horizontalpodautoscalers", "main-relay");
        self.site.ready("modelrelays", "main");
    }

    async fn operator_restart(&self) {
        self.suite.shell(&format!("kubectl rollout restart {OPERATOR}"));
        self.suite.shell(&format!("kubectl rollout status --timeout=120s {OPERATOR}"));
        self.settings("after-the-restart").await;
    }

    /// While the operator is away, a relay and a worker are lost and come again.
    async fn operator_down(&self) {
        let back = Instant::now() + OPERATOR_AWAY;
        self.suite.shell(&format!("kubectl scale --replicas=0 {OPERATOR}"));
        let operator =
            "--namespace modelrelay-system pod --selector=app.kubernetes.io/name=modelrelay-operator";
        self.suite.shell(&format!("kubectl wait --for=delete --timeout=120s {operator}"));
        let relays = self.site.pods(Part::Relay, "main");
        let workers = self.site.pods(Part::Worker, OWN);
        for lost in [&relays[0], &workers[0]] {
            self.site.api().delete(&format!("{}/{}", self.site.path("pods"), name(lost))).unwrap();
            self.gone("pods", name(lost));
        }
        self.pods_ready(Part::Relay, "main", 2, |pod| name(pod) != name(&relays[0]));
        self.pods_ready(Part::Worker, OWN, 2, |pod| name(pod) != name(&workers[0]));
        sleep_until(back).await;
        self.suite.shell(&format!("kubectl scale --replicas=2 {OPERATOR}"));
        self.suite.shell(&format!("kubectl rollout status --timeout=120s {OPERATOR}"));
        self.settings("after-the-operator").await;
    }

    /// With the API server go the controllers, which lose their leases; those that come after it see the nodes anew.
    async fn api_server_down(&self) {
        let (plane, back) = (self.suite.plane(), Instant::now() + API_SERVER_AWAY);
        plane.stop_api_server();
        plane.stop_controllers();
        sleep_until(back).await;
        plane.start_api_server().unwrap();
        plane.start_controllers().unwrap();
        // The operator is back. Kubelets hear of what it writes when they dial again, which may take them minutes.
        let before = self.site.get("modelrelays", "main");
        self.alias("after-the-api-server");
        self.site.until("other settings are written", "modelrelays", "main", |relay| {
            relay["status"]["configRevision"] != before["status"]["configRevision"]
        });
    }

    /// Deletes pools and makes them again.
    async fn pools_again(&self, pools: &[&str]) {
        let old: Vec<_> = pools.iter().map(|pool| self.site.pods(Part::Worker, pool)).collect();
        for pool in pools {
            self.site.api().delete(&format!("{}/{pool}", self.site.path("workerpools"))).unwrap();
            self.gone("workerpools", pool);
        }
        if pools.len() > 1 {
            self.until_nobody_serves(SHARED).await;
        }
        let again: Vec<_> = pools.iter().map(|pool| Self::pool(pool)).collect();
        self.site.apply(&again);
        for (pool, old) in pools.iter().zip(&old) {
            self.replaced(Part::Worker, pool, old, |_| true);
            self.site.ready("workerpools", pool);
        }
    }

    async fn until_nobody_serves(&self, model: &str) {
        let (address, limit) = (self.site.service("main"), Instant::now() + LIMIT);
        loop {
            let served = ask(address, get("/v1/models")).await.json().await;
            if !served["data"].as_array().unwrap().iter().any(|served| served["id"] == model) {
                return;
            }
            assert!(Instant::now() < limit, "{model} is still served");
        }
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn image(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().unwrap()
}

/// In a cluster of its own: kubelets, proxies and the name server of this one act on nothing new for a while after its
/// API server was away, which comes last.
#[tokio::test(flavor = "multi_thread")]
async fn no_disturbance_breaks_a_stream_or_fails_a_request() {
    let Some(suite) = start(options()) else { return };
    let scene = Scene::new(&suite);
    let load = Load::start(scene.site.service("main"), &[OWN, SHARED], 10);
    load.during("another image of the relays", async { scene.relay_image() }).await;
    load.during("another image of the workers", async { scene.worker_image() }).await;
    load.during("other settings", scene.settings("alias")).await;
    load.during("from two relays to one, to three, to two", async {
        [1, 3, 2].into_iter().for_each(|replicas| scene.scale(replicas));
    })
    .await;
    load.during("an autoscaler takes the relays over, and gives them back", async { scene.autoscaler() })
        .await;
    load.during("another image of the engines", async { scene.engine_image() }).await;
    load.during("the operator is restarted", scene.operator_restart()).await;
    load.during("the operator is away", scene.operator_down()).await;
    load.during("a pool is deleted and made again", scene.pools_again(&["shared1"])).await;
    let waited =
        load.during("a model has no pool for a while", scene.pools_again(&["shared1", "shared2"])).await;
    assert!(waited >= Duration::from_millis(100), "no request waited for a pool: {waited:?}");
    load.during("the API server is away", scene.api_server_down()).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_engine_go_its_own_streams_and_nothing_else() {
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "engine-lost");
    site.apply(&[Site::relay("main", &json!({})), Scene::pool(OWN)]);
    site.ready("modelrelays", "main");
    site.until("two ready workers", "workerpools", OWN, |pool| pool["status"]["ready"] == 2);
    let address = site.service("main");
    let load = Load::start(address, &[OWN], 0);
    load.during("nothing", async {}).await;
    let engines = site.pods(Part::Engine, OWN);
    let lost = engines.iter().find(|engine| engine["spec"]["nodeName"] == "node2").unwrap();
    let workers = site.pods(Part::Worker, OWN);
    let beside = workers.iter().find(|worker| worker["spec"]["nodeName"] == "node2").unwrap();
    load.during("an engine is deleted", async {
        let script = json!({ "chunks": 40, "interval_ms": 250 });
        let mut streams = Vec::new();
        for _ in 0..8 {
            streams.push(ask(address, post(CHAT, chat_for(OWN, true, &script))).await);
        }
        site.api().delete(&format!("{}/{}", site.path("pods"), name(lost))).unwrap();
        let mut broken = 0;
        for stream in streams {
            let is_lost = stream.worker() == name(beside);
            match stream.stream().await {
                Ended::Whole(40) if !is_lost => {}
                Ended::Broken(came) if is_lost => {
                    let came = String::from_utf8(came).unwrap();
                    let (_, last) = came.trim_end().rsplit_once("\n\n").unwrap();
                    assert!(last.contains(r#""code":"backend_error""#), "{last}");
                    broken += 1;
                }
                other => panic!("of the lost engine: {is_lost}; {other:?}"),
            }
        }
        assert!((1..8).contains(&broken), "both engines had streams: {broken}");
        site.pods_until("another engine", Part::Engine, OWN, |pods| {
            pods.len() == 2 && pods.iter().all(|pod| condition(pod, "Ready") == "True")
        });
        site.until("two ready workers", "workerpools", OWN, |pool| pool["status"]["ready"] == 2);
    })
    .await;
    load.end().await;
}
