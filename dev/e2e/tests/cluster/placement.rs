//! Pools land where the GPUs are.

use std::io::Write as _;
use std::time::Duration;

use dev_cluster::wait;
use dev_e2e::client::{CHAT, Ended, ask, chat, post};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{LIMIT, Part, Site, Suite, condition, suite, verdict};

const GPU: &str = "nvidia.com/gpu";

/// Takes the GPU away again, also when the test has failed.
struct Gpu<'a>(&'a Suite);

impl Drop for Gpu<'_> {
    fn drop(&mut self) {
        let _ = self.0.cluster.set_gpus("node2", 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_follows_the_label_of_gpu_nodes_and_only_its_engine_asks_for_the_gpu() {
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "placement");
    let mut container = Site::stub_container("m");
    container["resources"] = json!({ "limits": { GPU: 1 } });
    let pool = Site::pool("gpus", &json!({ "backend": { "container": container } }));
    site.apply(&[Site::relay("main", &json!({})), pool]);
    site.until("no node matches", "workerpools", "gpus", |pool| {
        verdict(pool, "Available").1 == "NoMatchingNodes"
    });

    let _gpu = Gpu(&suite);
    suite.cluster.set_gpus("node2", 1).unwrap();
    site.ready("workerpools", "gpus");
    site.ready("modelrelays", "main");
    for (part, gpus) in [(Part::Worker, Value::Null), (Part::Engine, json!("1"))] {
        let pods = site.pods(part, "gpus");
        assert_eq!(
            pods.iter().map(|pod| &pod["spec"]["nodeName"]).collect::<Vec<_>>(),
            ["node2"],
            "{part:?}"
        );
        let containers = pods[0]["spec"]["containers"].as_array().unwrap();
        let asked: Vec<_> =
            containers.iter().map(|container| &container["resources"]["limits"][GPU]).collect();
        assert_eq!(asked, [&gpus], "{part:?}");
    }
    let address = site.service("main");
    let answer = ask(address, post(CHAT, chat(true, &json!({ "chunks": 50 })))).await;
    assert_eq!(answer.stream().await, Ended::Whole(50));

    // The engine goes with the label, and what it was sending ends with an error.
    let mut long = ask(address, post(CHAT, chat(true, &json!({ "chunks": 1000, "interval_ms": 250 })))).await;
    assert!(!long.part().await.is_empty());
    suite.cluster.set_gpus("node2", 0).unwrap();
    let Ended::Broken(came) = long.stream().await else { panic!("a stream without its engine has an end") };
    let came = String::from_utf8(came).unwrap();
    let last = came.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.contains(r#""code":"backend_error""#), "{last}");
    for part in [Part::Worker, Part::Engine] {
        site.pods_until("none is left", part, "gpus", <[Value]>::is_empty);
    }
    site.until("no node matches", "workerpools", "gpus", |pool| {
        verdict(pool, "Available").1 == "NoMatchingNodes"
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_before_a_service_comes_with_the_label_and_drains_when_it_goes() {
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "labels");
    let mut engine = Site::stub_container("m");
    engine["name"] = json!("engine");
    let labels = json!({ "app": "engine" });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "engine", "labels": labels },
        "spec": { "containers": [engine], "nodeName": "node1" },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "engine" },
        "spec": { "selector": labels, "ports": [{ "port": 8000 }] },
    });
    let spec = json!({ "backend": { "service": { "name": "engine", "port": 8000 } } });
    site.apply(&[pod, service, Site::relay("main", &json!({})), Site::pool("gpus", &spec)]);
    site.ready("modelrelays", "main");
    site.until("the engine runs", "pods", "engine", |pod| condition(pod, "Ready") == "True");

    let _gpu = Gpu(&suite);
    let labelled = Instant::now();
    suite.cluster.set_gpus("node2", 1).unwrap();
    let address = site.service("main");
    let first = ask(address, post(CHAT, chat(false, &json!({})))).await;
    assert_eq!(first.status(), 200);
    let took = labelled.elapsed();
    // Not by a macro: what those print is shown for failed tests only.
    let text = format!("from a node's label to its worker's first answer: {:.1} s\n", took.as_secs_f64());
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    assert!(took < Duration::from_secs(30), "{took:?}");

    let long = ask(address, post(CHAT, chat(true, &json!({ "chunks": 40, "interval_ms": 250 })))).await;
    let worker = site.pods(Part::Worker, "gpus").remove(0);
    suite.cluster.set_gpus("node2", 0).unwrap();
    site.pods_until("the worker drains", Part::Worker, "gpus", <[Value]>::is_empty);
    let name = worker["metadata"]["name"].as_str().unwrap();
    assert_eq!(site.get("pods", name)["metadata"]["uid"], worker["metadata"]["uid"], "it is there still");
    assert_eq!(long.stream().await, Ended::Whole(40));
    let path = format!("{}/{name}", site.path("pods"));
    let gone = || Ok(site.api().find(&path)?.is_none().then_some(()));
    wait::until("the worker is gone", LIMIT, gone).unwrap();
}
