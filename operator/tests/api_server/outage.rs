//! An API server that is gone for long: whoever acts does so again within seconds of its return.

use std::time::Duration;

use dev_cluster::{ControlPlane, Options, Tools};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::program::{Replica, leader};
use crate::support::{Place, eventually, install_crds};

/// Longer than a lease lasts: who led has to stop, and everybody finds the lease expired.
const OUTAGE: Duration = Duration::from_secs(60);

async fn relay_is_served(place: &Place) {
    let manifest = json!({
        "apiVersion": "modelrelay.io/v1alpha1", "kind": "ModelRelay", "metadata": { "name": "main" }, "spec": {},
    });
    place.apply::<ModelRelay>(&manifest).await;
    let deployments = place.api::<Deployment>();
    eventually("the relay is served", async || deployments.get_opt("main-relay").await.unwrap()).await;
}

/// Asks for something new, and returns how long after `back` it was done.
async fn pool_is_served(place: &Place, back: Instant) -> Duration {
    let manifest = json!({
        "apiVersion": "modelrelay.io/v1alpha1",
        "kind": "WorkerPool",
        "metadata": { "name": "gpu" },
        "spec": { "relayRef": { "name": "main" }, "backend": { "url": "http://$(NODE_IP):8000" } },
    });
    place.apply::<WorkerPool>(&manifest).await;
    let daemon_sets = place.api::<DaemonSet>();
    eventually("the pool is served", async || daemon_sets.get_opt("gpu-worker").await.unwrap()).await;
    back.elapsed()
}

/// One operator acts without asking for a lease, and a pair of programs chooses who does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_was_gone_for_a_minute_is_served_again_within_seconds() {
    let Some(tools) = Tools::from_environment() else { return };
    let plane = tokio::task::spawn_blocking(move || ControlPlane::start(&tools, Options::default()).unwrap());
    let plane = plane.await.unwrap();
    install_crds(&plane);
    let mut alone = Place::in_plane(&plane, "alone").await;
    let mut chosen = Place::in_plane(&plane, "chosen").await;
    let _operator = alone.operator();
    let mut replicas = ["first", "second"].map(|name| Replica::on(&plane, &chosen, name));
    tokio::join!(relay_is_served(&alone), relay_is_served(&chosen));
    plane.stop_api_server();
    sleep(OUTAGE).await;
    tokio::task::block_in_place(|| plane.start_api_server()).unwrap();
    let back = Instant::now();
    for place in [&mut alone, &mut chosen] {
        place.connect_again(&plane).await;
    }
    let took = tokio::join!(pool_is_served(&alone, back), pool_is_served(&chosen, back));
    let limit = Duration::from_secs(5);
    assert!(took.0 < limit && took.1 < limit, "alone and chosen: {took:?}");
    for replica in &mut replicas {
        assert!(replica.child.try_wait().unwrap().is_none(), "{} has ended", replica.name);
    }
    // Who stands by watches the lease again, too.
    let holder = leader(&chosen).await.unwrap();
    let (leads, stands_by) = if holder == "first" { (0, 1) } else { (1, 0) };
    replicas[leads].signal("-TERM");
    let next = async {
        eventually("the other one leads", async || {
            (leader(&chosen).await? == replicas[stands_by].name).then_some(())
        })
        .await;
    };
    assert!(timeout(Duration::from_secs(2), next).await.is_ok(), "the hand-over takes too long");
}
