//! Many nodes, relays and pools at once: how long it takes until all is as it should be, what the operator costs meanwhile, and
//! that it is quiet afterwards. Relays are real; workers are only objects, so the operator nudges each of them as often as it
//! does with pods that acknowledge nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use dev_cluster::{ClusterOptions, Patch, tool, wait};
use dev_e2e::ops::Ops;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{SYSTEM, Site, Suite, start, verdict};

const NODES: usize = 500;
const RELAYS: usize = 20;
const POOLS: usize = 200;
/// Nodes that a pool selects.
const EACH: usize = 5;
/// How long all of it may take on a machine with two cores that does nothing else.
const LIMIT: Duration = Duration::from_secs(600);
/// Without a write for so long, all has been written: pods that acknowledge nothing are nudged every half minute for a while.
const CALM: Duration = Duration::from_secs(45);
const QUIET: Duration = Duration::from_secs(60);
const OPERATOR: &str = "system:serviceaccount:modelrelay-system:modelrelay-operator";

/// What the API server notes of the operator's writes.
struct Audit(tempfile::TempDir);

impl Audit {
    fn new() -> Self {
        let audit = Self(tempfile::tempdir().unwrap());
        let verbs = ["create", "update", "patch", "delete"];
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{ "level": "Metadata", "users": [OPERATOR], "verbs": verbs }, { "level": "None" }],
        });
        fs::write(audit.file("policy"), policy.to_string()).unwrap();
        audit
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn flags(&self) -> Vec<String> {
        let flag = |name: &str, file: &str| format!("--{name}={}", self.file(file).display());
        vec![flag("audit-policy-file", "policy"), flag("audit-log-path", "log")]
    }

    /// Counts the writes so far by verb and kind, those that keep the operator's Lease apart.
    fn writes(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for line in fs::read_to_string(self.file("log")).unwrap_or_default().lines() {
            // The last line may be half written.
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            let about = &event["objectRef"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            if about["resource"] != "leases" {
                let part = about["subresource"].as_str().map_or_else(String::new, |part| format!("/{part}"));
                let what = format!("{} {}{part}", text(&event["verb"]), text(&about["resource"]));
                *counts.entry(what).or_default() += 1;
            }
        }
        counts
    }

    /// Waits until nothing has been written for a time; returns the writes so far.
    async fn quiet_for(&self, time: Duration) -> BTreeMap<String, usize> {
        let start = Instant::now();
        let (mut last, mut since) = (self.writes(), start);
        while since.elapsed() < time {
            assert!(start.elapsed() < LIMIT, "it still writes: {last:#?}");
            sleep(Duration::from_secs(1)).await;
            let now = self.writes();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }
}

/// Returns the operations ports of the operator's pods.
fn operators(suite: &Suite) -> Vec<Ops> {
    let query = "labelSelector=app.kubernetes.io/name=modelrelay-operator";
    let pods = suite.plane().api().get(&format!("/api/v1/namespaces/{SYSTEM}/pods?{query}")).unwrap();
    let pods = pods["items"].as_array().unwrap().iter();
    pods.map(|pod| Ops(SocketAddr::new(pod["status"]["podIP"].as_str().unwrap().parse().unwrap(), 8081)))
        .collect()
}

/// Processor time in seconds and memory in MiB of the operator that acts.
async fn cost(suite: &Suite) -> (f64, f64) {
    for operator in operators(suite) {
        if operator.metric("modelrelay_operator_leader").await > 0.5 {
            let memory = operator.metric("process_resident_memory_bytes").await;
            return (operator.metric("process_cpu_seconds_total").await, memory / 1024.0 / 1024.0);
        }
    }
    panic!("no operator acts");
}

fn relay(index: usize) -> Value {
    // Twenty of them share a node of two cores.
    let container =
        json!({ "name": "relay", "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } } });
    let template = json!({ "spec": { "containers": [container] } });
    Site::relay(&format!("relay-{index}"), &json!({ "replicas": 1, "podTemplate": template }))
}

fn pool(index: usize) -> Value {
    let mut pool = Site::pool(
        &format!("pool-{index}"),
        &json!({
            "backend": { "url": "http://$(NODE_IP):8000" },
            "managed": {
                "nodeSelector": { "group": (index % (NODES / EACH)).to_string() },
                "tolerations": [{ "key": "fake", "operator": "Exists" }],
            },
        }),
    );
    pool["spec"]["relayRef"]["name"] = json!(format!("relay-{}", index % RELAYS));
    pool
}

/// Returns why it is not yet as it should be, if it is not.
fn missing(site: &Site<'_>) -> Option<String> {
    let list = |kind: &str| site.api().get(&site.path(kind)).unwrap()["items"].as_array().unwrap().clone();
    let pools = list("workerpools");
    let placed =
        pools.iter().filter(|pool| pool["status"]["current"] == EACH && pool["status"]["updated"] == EACH);
    let sets = list("daemonsets");
    let running = sets.iter().filter(|set| set["status"]["numberReady"] == EACH);
    let relays = list("modelrelays");
    let programmed = relays.iter().filter(|relay| verdict(relay, "Programmed").0 == "True");
    let counts = [placed.count(), running.count(), programmed.count()];
    (counts != [POOLS, POOLS, RELAYS])
        .then(|| format!("{counts:?} pools placed, running, relays with their settings"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures for minutes, and wants the machine for itself: cargo xtask test -- --ignored a_thousand_workers"]
async fn a_thousand_workers_of_two_hundred_pools_are_placed_and_then_nothing_is_written() {
    let Some(kwok) = tool("MODELRELAY_KWOK") else { return };
    let audit = Audit::new();
    let options = ClusterOptions { api_server_flags: audit.flags(), ..ClusterOptions::default() };
    let Some(mut suite) = start(options) else { return };
    suite.cluster.add_fake_nodes(Path::new(&kwok), NODES).unwrap();
    for index in 0..NODES {
        let labels = json!({ "metadata": { "labels": { "group": (index / EACH).to_string() } } });
        suite.plane().api().patch(&format!("/api/v1/nodes/fake-{index}"), Patch::Merge, &labels).unwrap();
    }
    let site = Site::new(&suite, "scale");
    let before = cost(&suite).await;
    let began = Instant::now();
    site.apply(&(0..RELAYS).map(relay).collect::<Vec<_>>());
    site.apply(&(0..POOLS).map(pool).collect::<Vec<_>>());
    let applied = began.elapsed();
    let mut last = String::new();
    let converged = wait::until("everything is as it should be", LIMIT, || {
        last = missing(&site).unwrap_or_default();
        Ok(last.is_empty().then_some(()))
    });
    converged.unwrap_or_else(|error| panic!("{error}: {last}"));
    let took = began.elapsed();
    let after = cost(&suite).await;
    let settled = audit.quiet_for(CALM).await;
    let calm = cost(&suite).await;
    sleep(QUIET).await;
    let (later, end) = (audit.writes(), cost(&suite).await);
    let total: usize = settled.values().sum();
    let report = format!(
        "{NODES} nodes, {RELAYS} relays, {POOLS} pools of {EACH} workers: applied in {:.1} s, as it should be after {:.1} s; the \
         operator took {:.1} s of processor time and {:.0} MiB, and {:.2} s in the quiet minute; {total} writes {settled:#?}\n",
        applied.as_secs_f64(),
        took.as_secs_f64(),
        after.0 - before.0,
        end.1,
        end.0 - calm.0,
    );
    // Not by a macro: what those print is shown for failed tests only.
    std::io::stderr().write_all(report.as_bytes()).unwrap();
    assert_eq!(later, settled, "something was written in the quiet minute");
}
