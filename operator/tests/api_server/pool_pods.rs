//! What the operator does with the pods of pools: replacing engines, and nudging workers. The controllers make the pods, the
//! test says in their status that they run, and a real worker listens on the address that the status names.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use dev_backend::Backend;
use http::Method;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use modelrelay_operator::naming::{NUDGE, REPLACING};
use modelrelay_worker::app::Worker;
use modelrelay_worker::cli::Flags;
use modelrelay_worker::settings::Source;
use serde_json::{Value, json};

use crate::pool::{Rig, delete_node, node, on_test_nodes};
use crate::relay::process::address;
use crate::support::eventually;

const OPS_PORT: u16 = 8082;

/// A worker as the operator's settings make it, but for where things are on this machine.
pub(crate) struct Running {
    pub(crate) address: IpAddr,
    pub(crate) worker: Worker,
    source: Source,
    folder: tempfile::TempDir,
    pub(crate) backend: Backend,
}

impl Running {
    /// Starts one that finds no relay.
    async fn start(rig: &Rig) -> Self {
        Self::start_at(rig, format!("http://{}", dev_backend::refused_addr().unwrap())).await
    }

    /// Starts one that dials this relay.
    pub(crate) async fn start_at(rig: &Rig, relay_url: String) -> Self {
        let address = address();
        let backend = Backend::start(dev_backend::Config::default()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| -> Option<PathBuf> { Some(folder.path().join(name)) };
        let flags = Flags {
            config: path("worker.yaml"),
            worker_secret_file: path("token"),
            relay_url: vec![relay_url],
            backend_url: Some(backend.url()),
            name: Some(String::from("under-test")),
            ops_listen: Some(SocketAddr::new(address, OPS_PORT).to_string()),
            ..Flags::default()
        };
        let source = Source::new(flags, [(String::from("RELAY_RESOLVE"), String::from("First"))]);
        write_files(rig, &folder).await;
        let worker = Worker::start(source.load().unwrap()).await.unwrap();
        Self { address, worker, source, folder, backend }
    }

    /// Does what the kubelet and then the process do.
    pub(crate) async fn read_again(&self, rig: &Rig) {
        write_files(rig, &self.folder).await;
        self.worker.reload(self.source.load().unwrap());
    }

    async fn status(&self, rig: &Rig) -> Value {
        let token = rig.secret("gpu-worker-admin", "token").await;
        let asked = rig.context.ops.ask(Method::GET, self.address, OPS_PORT, "/status", &token);
        asked.await.unwrap()
    }
}

async fn write_files(rig: &Rig, folder: &tempfile::TempDir) {
    for (secret, key) in [("gpu-worker-settings", "worker.yaml"), ("gpu-worker-credential", "token")] {
        std::fs::write(folder.path().join(key), rig.secret(secret, key).await).unwrap();
    }
}

/// The pods of a part, by name.
pub(crate) async fn pods(rig: &Rig, part: &str) -> BTreeMap<String, Pod> {
    let params = ListParams::default().labels(&format!("app.kubernetes.io/name=modelrelay-{part}"));
    let listed = rig.place.api::<Pod>().list(&params).await.unwrap();
    listed.into_iter().map(|pod| (pod.name_any(), pod)).collect()
}

/// Waits for the one pod of a part that is not `before`.
async fn pod_after(rig: &Rig, part: &str, before: Option<&str>) -> Pod {
    eventually(part, async || {
        let _ = rig.turn().await;
        pods(rig, part)
            .await
            .into_values()
            .find(|pod| pod.metadata.deletion_timestamp.is_none() && pod.uid().as_deref() != before)
    })
    .await
}

pub(crate) async fn runs(rig: &Rig, pod: &Pod, address: IpAddr) {
    let status = json!({ "status": {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{ "ip": address }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    } });
    let pods = rig.place.api::<Pod>();
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
}

fn with_engine(rig: &Rig, image: &str) -> Value {
    json!({
        "relayRef": { "name": "main" },
        "backend": { "container": { "image": image, "ports": [{ "name": "http", "containerPort": 8000 }] } },
        "managed": on_test_nodes(rig),
    })
}

async fn marked(rig: &Rig) -> bool {
    pods(rig, "worker").await.values().any(|pod| pod.annotations().contains_key(REPLACING))
}

#[tokio::test]
async fn an_engine_is_replaced_while_its_worker_is_paused() {
    let Some(rig) = Rig::new("rollout").await else { return };
    let name = format!("{}-n", rig.place.name());
    node(&rig, &name).await;
    rig.relay(json!({})).await;
    rig.pool(with_engine(&rig, "engine:1")).await;
    let (worker_pod, old) = (pod_after(&rig, "worker", None).await, pod_after(&rig, "engine", None).await);
    let worker = Running::start(&rig).await;
    let engine_address = IpAddr::from([127, 0, 0, 1]);
    runs(&rig, &worker_pod, worker.address).await;
    runs(&rig, &old, engine_address).await;
    rig.until("Progressing", "False/Complete").await;
    assert!(!marked(&rig).await && worker.status(&rig).await["paused"] == false);

    rig.pool(with_engine(&rig, "engine:2")).await;
    // The first look writes the template, and marks and pauses the worker.
    eventually("the worker to be paused", async || {
        rig.turn().await.unwrap();
        (worker.status(&rig).await["paused"] == true).then_some(())
    })
    .await;
    assert!(marked(&rig).await);
    let (words, message) = rig.condition("Progressing").await;
    assert_eq!(words, "True/RollingOut");
    assert!(message.contains("1 node(s) run an older engine"), "{message}");
    let new = pod_after(&rig, "engine", old.uid().as_deref()).await;
    let image = |pod: &Pod| pod.spec.clone().unwrap().containers[0].image.clone().unwrap();
    assert_eq!((image(&old), image(&new)), (String::from("engine:1"), String::from("engine:2")));
    for _ in 0..2 {
        rig.turn().await.unwrap();
        assert_eq!(worker.status(&rig).await["paused"], true, "the new engine does not run yet");
    }
    runs(&rig, &new, engine_address).await;
    eventually("the mark to be taken off", async || {
        rig.turn().await.unwrap();
        (!marked(&rig).await).then_some(())
    })
    .await;
    let status = worker.status(&rig).await;
    assert_eq!((&status["paused"], &status["backend"]["healthy"]), (&json!(false), &json!(true)));
    rig.until("Progressing", "False/Complete").await;
    // The worker itself was neither replaced nor is anything else written from now on.
    assert_eq!(pods(&rig, "worker").await.into_keys().collect::<Vec<_>>(), [worker_pod.name_any()]);
    let before = rig.versions().await;
    rig.turn().await.unwrap();
    assert_eq!(rig.versions().await, before);

    // An engine that is no longer wanted stays until no worker uses it.
    let mut spec = with_engine(&rig, "");
    spec["backend"] = json!({ "url": "http://127.0.0.1:8000" });
    let pool = rig.pool(spec).await;
    assert_eq!(pool.spec.backend.unwrap().url.as_deref(), Some("http://127.0.0.1:8000"));
    rig.turn().await.unwrap();
    assert!(rig.place.api::<DaemonSet>().get_opt("gpu-engine").await.unwrap().is_some());
    // The next worker comes beside the old one, which goes when the next is ready.
    let next = pod_after(&rig, "worker", worker_pod.uid().as_deref()).await;
    runs(&rig, &next, IpAddr::from([127, 0, 0, 2])).await;
    eventually("the engine to go", async || {
        rig.turn().await.unwrap();
        rig.place.api::<DaemonSet>().get_opt("gpu-engine").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(!pods(&rig, "worker").await.contains_key(&worker_pod.name_any()));
    worker.worker.kill().await;
    delete_node(&rig, &name).await;
}

#[tokio::test]
async fn workers_are_nudged_until_they_have_read_what_changed() {
    let Some(rig) = Rig::new("nudge").await else { return };
    let name = format!("{}-n", rig.place.name());
    node(&rig, &name).await;
    rig.relay(json!({})).await;
    let spec = |interval: u32| {
        json!({
            "relayRef": { "name": "main" },
            "backend": { "url": "http://127.0.0.1:8000" },
            "health": { "intervalSeconds": interval },
            "managed": on_test_nodes(&rig),
        })
    };
    rig.pool(spec(5)).await;
    let pod = pod_after(&rig, "worker", None).await;
    let worker = Running::start(&rig).await;
    runs(&rig, &pod, worker.address).await;
    rig.turn().await.unwrap();
    let nudged = || async {
        let pod = rig.place.api::<Pod>().get(&pod.name_any()).await.unwrap();
        pod.annotations().get(NUDGE).cloned()
    };
    assert_eq!(nudged().await, None, "it has read the newest already");

    rig.pool(spec(6)).await;
    rig.turn().await.unwrap();
    let first = nudged().await.unwrap();
    assert!(first.ends_with(".1"), "{first}");
    let second = eventually("the next attempt", async || {
        rig.turn().await.unwrap();
        nudged().await.filter(|value| *value != first)
    })
    .await;
    assert_eq!(second, first.replace(".1", ".2"));
    worker.read_again(&rig).await;
    // An attempt that was on its way may still be written.
    rig.turn().await.unwrap();
    let last = nudged().await;
    for _ in 0..3 {
        rig.turn().await.unwrap();
    }
    assert_eq!(nudged().await, last);

    // A new credential is told as well.
    rig.place.api::<Secret>().delete("gpu-worker-credential", &DeleteParams::default()).await.unwrap();
    rig.turn().await.unwrap();
    assert_ne!(nudged().await, last);
    assert_eq!(pods(&rig, "worker").await.into_keys().collect::<Vec<_>>(), [pod.name_any()]);
    worker.worker.kill().await;
    delete_node(&rig, &name).await;
}
