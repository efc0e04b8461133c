//! The operator as a program: two replicas, signals, memory, and what it costs at scale.

use std::process::Stdio;
use std::time::Duration;

use dev_cluster::ControlPlane;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::DeleteParams;
use modelrelay_operator::api::ModelRelay;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::support::{Place, eventually, plane};

/// A replica in a process of its own; it is killed when this is dropped.
pub(crate) struct Replica {
    pub(crate) child: Child,
    pub(crate) name: String,
}

impl Replica {
    /// Starts one on the shared API server.
    fn start(place: &Place, name: &str) -> Self {
        Self::on(plane().unwrap(), place, name)
    }

    /// Starts one on a test's own API server.
    pub(crate) fn on(plane: &ControlPlane, place: &Place, name: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_modelrelay-operator"))
            .args(["--namespaces", place.name(), "--lease-namespace", place.name()])
            .args(["--ops-listen", "127.0.0.1:0"])
            .env("KUBECONFIG", plane.kubeconfig())
            .env("POD_NAME", name)
            .env_remove("POD_NAMESPACE")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, name: name.to_owned() }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }
}

fn relay() -> Value {
    json!({ "apiVersion": "modelrelay.io/v1alpha1", "kind": "ModelRelay", "metadata": { "name": "main" }, "spec": {} })
}

/// The pod that holds the lease.
pub(crate) async fn leader(place: &Place) -> Option<String> {
    let lease = place.api::<Lease>().get_opt("modelrelay-operator").await.unwrap()?;
    let holder = lease.spec?.holder_identity?;
    Some(holder.split_once('_')?.0.to_owned())
}

/// Deletes the Deployment and returns how long it takes until somebody has made it anew.
async fn repaired(deployments: &Api<Deployment>) -> Duration {
    let before = deployments.get("main-relay").await.unwrap().metadata.uid;
    deployments.delete("main-relay", &DeleteParams::background()).await.unwrap();
    let began = Instant::now();
    eventually("the Deployment is made anew", async || {
        deployments.get_opt("main-relay").await.unwrap().filter(|made| made.metadata.uid != before)
    })
    .await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_replica_takes_over_from_one_that_is_killed_or_stopped() {
    let Some(place) = Place::new("program").await else { return };
    place.apply::<ModelRelay>(&relay()).await;
    let deployments = place.api::<Deployment>();
    let first = Replica::start(&place, "first");
    eventually("the first one leads", async || leader(&place).await).await;
    eventually("it acts", async || deployments.get_opt("main-relay").await.unwrap()).await;
    let second = Replica::start(&place, "second");
    // So that the second one has seen the lease before its holder dies.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(leader(&place).await.as_deref(), Some(first.name.as_str()));

    first.signal("-KILL");
    let took = repaired(&deployments).await;
    assert!(took < Duration::from_secs(15), "after a kill: {took:?}");
    assert_eq!(leader(&place).await.as_deref(), Some(second.name.as_str()));

    let third = Replica::start(&place, "third");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut second = second;
    second.signal("-TERM");
    let stopped = Instant::now();
    eventually("the third one leads", async || (leader(&place).await? == third.name).then_some(())).await;
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(2), "after a stop: {took:?}");
    repaired(&deployments).await;
    assert!(second.child.wait().await.unwrap().success(), "a stop in order is no failure");
}
