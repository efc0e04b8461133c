//! Pods: what they acknowledge, how they are nudged, what they count.

use std::net::IpAddr;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use modelrelay_operator::api::model_relay::{ModelRelayStatus, WorkerCounts};
use modelrelay_operator::api::{ModelRelay, ServedModel, WorkerPool};
use modelrelay_operator::apply::Owner;
use modelrelay_operator::generated::Token;
use modelrelay_operator::naming::{NUDGE, Part};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::process::{Relay, Worker, address, serve};
use super::rig::Rig;
use crate::support::eventually;

impl Rig {
    /// The relay's pods, once there are so many.
    pub(super) async fn pods(&self, number: usize) -> Vec<String> {
        eventually("the pods", async || {
            let labels = ListParams::default().labels("app.kubernetes.io/instance=main,pod-template-hash");
            let pods = self.place.api::<Pod>().list(&labels).await.unwrap();
            (pods.items.len() == number).then(|| pods.iter().map(|pod| pod.name_any()).collect())
        })
        .await
    }

    /// What a kubelet would say of a pod.
    pub(super) async fn runs(&self, pod: &str, address: IpAddr, ready: bool) {
        let ready = if ready { "True" } else { "False" };
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": ready }],
        } });
        let pods = self.place.api::<Pod>();
        pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }

    pub(super) async fn nudged(&self, pod: &str) -> Option<String> {
        self.place.api::<Pod>().get(pod).await.unwrap().annotations().get(NUDGE).cloned()
    }

    pub(super) async fn status(&self) -> ModelRelayStatus {
        self.get::<ModelRelay>("main").await.unwrap().status.unwrap()
    }
}

#[tokio::test]
async fn a_change_reaches_a_running_relay_by_nudges_and_rolls_nothing() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "replicas": 1 })).await;
    rig.turn().await.unwrap();
    let pod = rig.pods(1).await.remove(0);
    let Some(relay) = Relay::start(&rig.settings().await).await else { return };
    rig.runs(&pod, relay.address, true).await;
    rig.until("Programmed", "True/Programmed").await;
    assert_eq!(rig.condition("Ready").await.0, "True/Ready");
    assert_eq!(rig.nudged(&pod).await, None, "it started with the newest settings");
    let before = rig.get::<Deployment>("main-relay").await.unwrap().metadata.generation;

    rig.relay(json!({ "replicas": 1, "models": [{ "name": "alias", "targets": [{ "model": "m" }] }] })).await;
    rig.turn().await.unwrap();
    let revision = rig.status().await.config_revision.unwrap();
    assert_eq!(rig.nudged(&pod).await, Some(format!("{revision}.1")));
    assert_eq!(rig.condition("Programmed").await.0, "False/Pending");
    assert_eq!(rig.condition("Ready").await.0, "False/Pending");
    // The kubelet looked too early: the next attempt is another value.
    eventually("the second attempt", async || {
        rig.turn().await.unwrap();
        (rig.nudged(&pod).await? == format!("{revision}.2")).then_some(())
    })
    .await;
    relay.update(&rig.settings().await);
    rig.until("Programmed", "True/Programmed").await;
    assert_eq!(rig.condition("Ready").await.0, "True/Ready");
    let after = rig.get::<Deployment>("main-relay").await.unwrap().metadata.generation;
    assert_eq!(after, before);
    rig.settle().await;
}

#[tokio::test]
async fn a_relay_that_refuses_its_settings_says_why() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "replicas": 1 })).await;
    rig.turn().await.unwrap();
    let pod = rig.pods(1).await.remove(0);
    let Some(relay) = Relay::start(&rig.settings().await).await else { return };
    rig.runs(&pod, relay.address, true).await;
    rig.until("Programmed", "True/Programmed").await;
    rig.relay(json!({ "replicas": 1, "retries": { "maxRequeues": 1 } })).await;
    rig.turn().await.unwrap();
    relay.update(&rig.settings().await.replace("maxRequeues: 1", "maxRequeues: 1000"));
    let message = rig.until("Programmed", "False/SettingsRefused").await;
    assert!(message.contains("retries.maxRequeues: must be at most 100"), "{message}");
}

#[tokio::test]
async fn a_relay_that_does_not_know_a_setting_is_told_of() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "replicas": 1 })).await;
    rig.turn().await.unwrap();
    let pod = rig.pods(1).await.remove(0);
    let listener = TcpListener::bind((address(), 8081)).await.unwrap();
    let address = listener.local_addr().unwrap().ip();
    let revision = rig.status().await.config_revision.unwrap();
    let older = json!({ "revision": revision, "ignored": ["queue.newer"], "problem": null });
    let _serving = serve(listener, &[("/admin/v1/config", older), ("/admin/v1/workers", json!([]))]);
    rig.runs(&pod, address, true).await;
    let message = rig.until("Programmed", "False/SettingsIgnored").await;
    assert!(message.contains(&format!("{pod} ignores queue.newer")), "{message}");
    assert_eq!(rig.condition("Ready").await.0, "False/SettingsIgnored");
    assert_eq!(rig.status().await.workers, Some(WorkerCounts::default()));
}

#[tokio::test]
async fn every_pod_that_runs_is_nudged_also_one_that_leaves_or_does_not_answer() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "replicas": 1 })).await;
    rig.turn().await.unwrap();
    let leaving = rig.pods(1).await.remove(0);
    rig.patch::<Pod>(&leaving, &json!({ "metadata": { "finalizers": ["example.com/hold"] } })).await;
    rig.runs(&leaving, address(), true).await;
    rig.place.api::<Pod>().delete(&leaving, &DeleteParams::default()).await.unwrap();
    let mut pods = rig.pods(2).await;
    pods.retain(|pod| *pod != leaving);
    rig.runs(&pods[0], address(), false).await;
    rig.turn().await.unwrap();
    rig.relay(json!({ "replicas": 1, "retries": { "maxRequeues": 1 } })).await;
    rig.turn().await.unwrap();
    let revision = rig.status().await.config_revision.unwrap();
    for pod in [&leaving, &pods[0]] {
        assert_eq!(rig.nudged(pod).await, Some(format!("{revision}.1")), "{pod}");
    }
    assert_eq!((rig.status().await.replicas, rig.status().await.ready_replicas), (Some(1), Some(0)));
    rig.patch::<Pod>(&leaving, &json!({ "metadata": { "finalizers": null } })).await;
}

#[tokio::test]
async fn a_relay_that_cannot_be_asked_serves_on() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "replicas": 1 })).await;
    rig.turn().await.unwrap();
    let pod = rig.pods(1).await.remove(0);
    rig.runs(&pod, address(), true).await;
    let message = rig.until("Programmed", "Unknown/RelayUnreachable").await;
    assert!(message.contains(&pod) && message.contains("port 8081"), "{message}");
    assert_eq!(rig.condition("Ready").await.0, "True/Ready");
    assert_eq!(rig.condition("Available").await.0, "True/Available");
    let status = rig.status().await;
    assert_eq!((status.ready_replicas, status.workers, status.models), (Some(1), None, None));
}

#[tokio::test]
async fn a_pod_that_only_carries_the_labels_is_not_asked() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "replicas": 0 })).await;
    rig.turn().await.unwrap();
    let listener = TcpListener::bind((address(), 8081)).await.unwrap();
    let mut labels = serde_json::to_value(Part::Relay.labels("main")).unwrap();
    labels["pod-template-hash"] = json!("made-up");
    let pod = json!({
        "metadata": { "name": "pretender", "labels": labels },
        "spec": { "containers": [{ "name": "c", "image": "i" }] },
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    rig.place.api::<Pod>().create(&PostParams::default(), &pod).await.unwrap();
    rig.runs("pretender", listener.local_addr().unwrap().ip(), true).await;
    rig.turn().await.unwrap();
    assert_eq!(rig.status().await.replicas, Some(0));
    assert_eq!(rig.condition("Ready").await.0, "False/NoReadyRelay");
    let asked = tokio::time::timeout(std::time::Duration::ZERO, listener.accept()).await;
    assert!(asked.is_err(), "it was asked");
    assert_eq!(rig.nudged("pretender").await, None);
}

#[tokio::test]
async fn workers_are_counted_as_their_relays_see_them() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "replicas": 1 })).await;
    let pool = json!({
        "apiVersion": "modelrelay.io/v1alpha1", "kind": "WorkerPool", "metadata": { "name": "gpu" },
        "spec": { "relayRef": { "name": "main" }, "backend": { "url": "http://127.0.0.1:1" } },
    });
    let pool: WorkerPool = rig.place.apply(&pool).await;
    let token = Token::new("gpu");
    let mut secret =
        token.clone().into_secret("gpu-worker-credential".to_owned(), Part::Worker.labels("gpu"));
    secret.metadata.owner_references = Some(vec![Owner::of(&pool).reference()]);
    rig.place.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
    rig.turn().await.unwrap();
    let pod = rig.pods(1).await.remove(0);
    let Some(relay) = Relay::start(&rig.settings().await).await else { return };
    let Some(worker) = Worker::start(&relay, token.expose(), "coder").await else { return };
    rig.runs(&pod, relay.address, true).await;
    let counted = async |wanted: WorkerCounts, models: Value| {
        let models: Vec<ServedModel> = serde_json::from_value(models).unwrap();
        eventually(&format!("{wanted:?}"), async || {
            rig.turn().await.unwrap();
            let status = rig.status().await;
            (status.workers.as_ref() == Some(&wanted) && status.models.as_ref() == Some(&models))
                .then_some(())
        })
        .await;
    };
    let models = json!([{ "name": "coder", "readyWorkers": 1 }]);
    counted(WorkerCounts { connected: 1, ready: 1, draining: 0 }, models).await;
    let view = rig.context.fleet.view(rig.place.name(), "main").unwrap();
    let of_pool = view.workers_of(rig.place.name(), "gpu");
    assert_eq!((of_pool.len(), of_pool[0].name.as_str()), (1, "w1"));
    drop(worker);
    counted(WorkerCounts::default(), json!([])).await;
    // With the pod not ready any more there is nobody to ask.
    rig.runs(&pod, relay.address, false).await;
    rig.until("Available", "False/NoReadyRelay").await;
    eventually("the counts to be left out", async || {
        rig.turn().await.unwrap();
        rig.status().await.workers.is_none().then_some(())
    })
    .await;
}
