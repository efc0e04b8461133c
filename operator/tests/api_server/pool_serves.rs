//! A whole operator, a real relay and real workers: who may join, and what happens to those who may no longer. The test does
//! what a kubelet would: it says that pods run, and puts settings where their processes look.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use modelrelay_operator::api::WorkerPool;
use modelrelay_operator::cache::Scope;
use modelrelay_operator::naming::NUDGE;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::pool::{Rig, delete_node, node, on_test_nodes};
use crate::pool_pods::{Running, pods, runs};
use crate::relay::process::{Relay, Worker, address};
use crate::support::{RunningOperator, eventually};

/// The one pod of the relay, and what a kubelet does for it.
struct Kubelet<'a> {
    rig: &'a Rig,
    relay: Relay,
    settings: String,
}

impl<'a> Kubelet<'a> {
    /// Starts the relay as soon as it has settings and a pod.
    async fn start(rig: &'a Rig) -> Option<Self> {
        let settings = eventually("the relay's settings", async || settings(rig).await).await;
        let relay = Relay::start(&settings).await?;
        let pod = eventually("the relay's pod", async || pods(rig, "relay").await.into_values().next()).await;
        runs(rig, &pod, relay.address).await;
        Some(Self { rig, relay, settings })
    }

    /// Puts the newest settings where the relay looks for them.
    async fn sync(&mut self) {
        let newest = settings(self.rig).await.unwrap();
        if newest != self.settings {
            self.relay.update(&newest);
            self.settings = newest;
        }
    }

    fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.relay.address, port)
    }

    /// Syncs until the pool's condition is as wanted.
    async fn until(&mut self, kind: &str, wanted: &str) -> String {
        eventually(&format!("{kind} to be {wanted}"), async || {
            self.sync().await;
            let (words, message) = self.rig.condition(kind).await;
            (words == wanted).then_some(message)
        })
        .await
    }

    /// The names of the workers that the relay knows.
    async fn workers(&self) -> Vec<String> {
        let token = self.rig.secret("main-relay-admin", "token").await;
        let rows = self.rig.context.ops.workers(self.relay.address, 8081, &token).await.unwrap();
        rows.into_iter().map(|row| row.name).collect()
    }
}

async fn settings(rig: &Rig) -> Option<String> {
    let secret = rig.place.api::<Secret>().get_opt("main-relay-settings").await.unwrap()?;
    Some(String::from_utf8(secret.data?["relay.yaml"].0.clone()).unwrap())
}

fn operator(rig: &Rig) -> RunningOperator {
    let scope = Scope::Namespaces(vec![rig.place.name().to_owned()]);
    RunningOperator::start(rig.place.client.clone(), scope)
}

/// A relay, and a pool that has one node; the node's name, and a whole operator.
async fn with_one_worker(prefix: &str) -> Option<(Rig, String, RunningOperator)> {
    let rig = Rig::new(prefix).await?;
    let name = format!("{}-n", rig.place.name());
    node(&rig, &name).await;
    let operator = operator(&rig);
    rig.relay(json!({ "replicas": 1 })).await;
    rig.pool(json!({
        "relayRef": { "name": "main" },
        "backend": { "url": "http://127.0.0.1:8000" },
        "managed": on_test_nodes(&rig),
    }))
    .await;
    Some((rig, name, operator))
}

/// Asks for a stream, and returns the whole answer.
async fn stream(relay: SocketAddr, stub: &Value) -> String {
    let body = json!({ "model": "m", "stream": true, "stub": stub }).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: relay\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut tcp = TcpStream::connect(relay).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn boxes_outside_join_with_the_token_and_leave_when_it_is_rotated_or_the_pool_goes() {
    let Some(rig) = Rig::new("joins").await else { return };
    let operator = operator(&rig);
    rig.relay(json!({ "replicas": 1, "exposure": { "externalURL": "https://relay.example.com" } })).await;
    rig.pool(json!({ "relayRef": { "name": "main" }, "type": "External" })).await;
    let Some(mut kubelet) = Kubelet::start(&rig).await else { return };
    kubelet.until("Ready", "True/Ready").await;
    let token = rig.secret("gpu-join", "token").await;
    assert!(!kubelet.settings.contains(&token), "relays hold hashes only");
    let message = kubelet.until("Available", "False/NoReadyWorker").await;
    assert!(message.contains("no box has joined"), "{message}");

    let Some(first) = Worker::start(&kubelet.relay, &token, "m").await else { return };
    kubelet.until("Available", "True/Available").await;

    rig.place.api::<Secret>().delete("gpu-join", &DeleteParams::default()).await.unwrap();
    kubelet.until("Available", "False/NoReadyWorker").await;
    assert_eq!(kubelet.workers().await, Vec::<String>::new(), "the old token is worth nothing");
    drop(first);
    let rotated = rig.secret("gpu-join", "token").await;
    assert_ne!(rotated, token);
    kubelet.until("Ready", "True/Ready").await;
    let Some(_second) = Worker::start(&kubelet.relay, &rotated, "m").await else { return };
    kubelet.until("Available", "True/Available").await;

    rig.place.api::<WorkerPool>().delete("gpu", &DeleteParams::default()).await.unwrap();
    eventually("the box to be cut off", async || {
        kubelet.sync().await;
        kubelet.workers().await.is_empty().then_some(())
    })
    .await;
    operator.stop().await;
}

#[tokio::test]
async fn a_credential_of_the_operators_own_is_rotated_without_a_lost_stream() {
    let Some((rig, name, operator)) = with_one_worker("rotates").await else { return };
    // Its worker has nobody to dial yet.
    for kind in ["Available", "Ready"] {
        eventually("the relays to be missed", async || {
            (rig.condition(kind).await.0 == "False/NoReadyRelay").then_some(())
        })
        .await;
    }
    let Some(mut kubelet) = Kubelet::start(&rig).await else { return };
    let pod = eventually("the worker's pod", async || pods(&rig, "worker").await.into_values().next()).await;
    let worker = Running::start_at(&rig, format!("http://{}", kubelet.address(8080))).await;
    worker.backend.set_models(&["m"]);
    runs(&rig, &pod, worker.address).await;
    kubelet.until("Ready", "True/Ready").await;
    eventually("the relay to count the worker", async || {
        kubelet.sync().await;
        let pool = rig.place.api::<WorkerPool>().get("gpu").await.unwrap();
        (pool.status?.ready == Some(1)).then_some(())
    })
    .await;

    let token = rig.secret("gpu-worker-credential", "token").await;
    let long = json!({ "id": "long", "chunks": 60, "interval_ms": 100 });
    let begun = stream(kubelet.address(8080), &long);
    let rotated = async {
        worker.backend.wait_running(1, crate::support::LIMIT).await.unwrap();
        rig.place.api::<Secret>().delete("gpu-worker-credential", &DeleteParams::default()).await.unwrap();
        // The worker is told to look, and the relay has the new hash.
        eventually("the nudge", async || {
            let pod = rig.place.api::<k8s_openapi::api::core::v1::Pod>().get(&pod.name_any()).await.unwrap();
            pod.annotations().get(NUDGE).cloned()
        })
        .await;
        let fresh = rig.secret("gpu-worker-credential", "token").await;
        assert_ne!(fresh, token);
        let hash = modelrelay_operator::generated::sha256(&fresh).to_hex();
        eventually("the relay's settings to follow", async || {
            kubelet.sync().await;
            kubelet.settings.contains(&hash).then_some(())
        })
        .await;
        worker.read_again(&rig).await;
    };
    let (answer, ()) = tokio::join!(begun, rotated);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[DONE]"), "{answer}");
    // With the new credential it serves on.
    eventually("another answer", async || {
        kubelet.sync().await;
        let answer = stream(kubelet.address(8080), &json!({ "chunks": 2 })).await;
        answer.contains("[DONE]").then_some(())
    })
    .await;
    worker.worker.kill().await;
    operator.stop().await;
    delete_node(&rig, &name).await;
}

#[tokio::test]
async fn where_no_relay_can_be_asked_ready_pods_of_the_daemon_set_count_until_one_can() {
    let Some((rig, name, operator)) = with_one_worker("unasked").await else { return };
    let available = async |wanted: &str| {
        eventually(&format!("Available to be {wanted}"), async || {
            let (words, message) = rig.condition("Available").await;
            (words == wanted).then_some(message)
        })
        .await
    };
    let counts = async || {
        let status = rig.place.api::<WorkerPool>().get("gpu").await.unwrap().status.unwrap();
        (status.connected, status.ready, status.desired)
    };
    // A relay's pod is Ready, and nobody answers there.
    let relay = eventually("the relay's pod", async || pods(&rig, "relay").await.into_values().next()).await;
    runs(&rig, &relay, address()).await;
    available("False/NoReadyWorker").await;
    let worker =
        eventually("the worker's pod", async || pods(&rig, "worker").await.into_values().next()).await;
    runs(&rig, &worker, address()).await;
    let message = available("True/Available").await;
    assert!(message.contains("no relay can be asked"), "{message}");
    assert_eq!(counts().await, (None, None, Some(1)), "what nobody can be asked for is left out");

    // A relay that answers knows better: this worker has no session with it.
    let Some(mut kubelet) = Kubelet::start(&rig).await else { return };
    kubelet.until("Available", "False/NoReadyWorker").await;
    eventually("the relay's counts", async || {
        kubelet.sync().await;
        (counts().await == (Some(0), Some(0), Some(1))).then_some(())
    })
    .await;
    operator.stop().await;
    delete_node(&rig, &name).await;
}
