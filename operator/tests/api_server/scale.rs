//! What the operator costs with many objects, and how fast it still is.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use dev_cluster::proxy::{Proxy, Verb};
use dev_cluster::{ControlPlane, Options, Tools};
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::support::{client, install_crds};

/// How long a machine that is busy may take for all of it.
const LIMIT: Duration = Duration::from_secs(480);

fn start(kubeconfig: &PathBuf) -> Child {
    Command::new(env!("CARGO_BIN_EXE_modelrelay-operator"))
        .args(["--ops-listen", "127.0.0.1:0"])
        .env("KUBECONFIG", kubeconfig)
        .env_remove("POD_NAMESPACE")
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Resident memory, in MiB.
fn resident(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

/// Makes relays and pools, five pools a relay, in a namespace of their own.
async fn populate(client: &Client, namespace: &str, relays: usize) {
    let metadata = json!({ "metadata": { "name": namespace } });
    let object: Namespace = serde_json::from_value(metadata).unwrap();
    Api::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
    let relay_api: Api<ModelRelay> = Api::namespaced(client.clone(), namespace);
    let pool_api: Api<WorkerPool> = Api::namespaced(client.clone(), namespace);
    for relay in 0..relays {
        let object = json!({
            "apiVersion": "modelrelay.io/v1alpha1", "kind": "ModelRelay",
            "metadata": { "name": format!("relay-{relay}") }, "spec": {},
        });
        relay_api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        for pool in 0..5 {
            let object = json!({
                "apiVersion": "modelrelay.io/v1alpha1", "kind": "WorkerPool",
                "metadata": { "name": format!("pool-{relay}-{pool}") },
                "spec": {
                    "relayRef": { "name": format!("relay-{relay}") },
                    "backend": { "url": "http://$(NODE_IP):8000" },
                },
            });
            pool_api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        }
    }
}

/// Waits until there are so many worker DaemonSets and nothing has been written for three seconds.
async fn settle(client: &Client, proxy: &Proxy<'_>, pools: usize) {
    let began = Instant::now();
    let daemon_sets: Api<DaemonSet> = Api::all(client.clone());
    let writes =
        || proxy.calls().iter().filter(|one| one.call.writes() && one.call.resource != "leases").count();
    let (mut last, mut since) = (writes(), Instant::now());
    loop {
        assert!(began.elapsed() < LIMIT, "not settled: {:?}", proxy.counts());
        sleep(Duration::from_millis(200)).await;
        // The record keeps a bounded number of calls: a change of the last one counts as well.
        let now = writes();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > Duration::from_secs(3) {
            let made = daemon_sets.list_metadata(&ListParams::default()).await.unwrap().items.len();
            if made == pools {
                return;
            }
        }
    }
}

/// Changes an alias of a relay, and returns how long it takes until the settings have it.
async fn reaction(client: &Client, namespace: &str, alias: &str) -> Duration {
    let relays: Api<ModelRelay> = Api::namespaced(client.clone(), namespace);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let patch = json!({ "spec": { "models": [{ "name": alias, "targets": [{ "model": "m" }] }] } });
    relays.patch("relay-0", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    let began = Instant::now();
    loop {
        let settings = secrets.get("relay-0-relay-settings").await.unwrap();
        let text = settings.data.unwrap().remove("relay.yaml").unwrap().0;
        if String::from_utf8(text).unwrap().contains(alias) {
            return began.elapsed();
        }
        assert!(began.elapsed() < LIMIT, "the settings never had the alias");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn median_reaction(client: &Client, namespace: &str) -> Duration {
    let mut all = Vec::new();
    for number in 0..5 {
        all.push(reaction(client, namespace, &format!("alias-{number}")).await);
    }
    all.sort();
    all[2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_relays_and_a_thousand_pools_cost_little_memory_and_a_change_is_acted_on_within_a_second()
{
    let Some(tools) = Tools::from_environment() else { return };
    let plane = tokio::task::spawn_blocking(move || ControlPlane::start(&tools, Options::default()).unwrap());
    let plane = plane.await.unwrap();
    install_crds(&plane);
    let proxy = Proxy::start(&plane).unwrap();
    let client = client(plane.kubeconfig()).await;
    let operator = start(&proxy.kubeconfig_for("operator", &["system:masters"]).unwrap());

    populate(&client, "scale-0", 10).await;
    settle(&client, &proxy, 50).await;
    let memory = resident(&operator);
    assert!(memory < 60, "with ten relays and fifty pools: {memory} MiB");
    proxy.forget();
    sleep(Duration::from_secs(20)).await;
    let asked = proxy.calls();
    let asked =
        asked.iter().filter(|one| one.call.verb != Verb::Watch && one.call.resource != "leases").count();
    assert!(asked < 20, "an idle operator asks less than once a second: {:?}", proxy.counts());

    let rest: Vec<String> = (1..20).map(|number| format!("scale-{number}")).collect();
    stream::iter(&rest).for_each_concurrent(4, |namespace| populate(&client, namespace, 10)).await;
    settle(&client, &proxy, 1000).await;
    let reaction = median_reaction(&client, "scale-7").await;
    assert!(reaction < Duration::from_secs(1), "a change is acted on after {reaction:?}");
    let memory = resident(&operator);
    assert!(memory < 100, "with 200 relays and 1,000 pools: {memory} MiB");
}
