//! Pools land where the GPUs are.

use dev_e2e::client::{CHAT, Ended, ask, chat, post};
use serde_json::{Value, json};

use crate::support::{Part, Site, Suite, suite, verdict};

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
    let answer = ask(site.service("main"), post(CHAT, chat(true, &json!({ "chunks": 50 })))).await;
    assert_eq!(answer.stream().await, Ended::Whole(50));

    suite.cluster.set_gpus("node2", 0).unwrap();
    for part in [Part::Worker, Part::Engine] {
        site.pods_until("none is left", part, "gpus", <[Value]>::is_empty);
    }
    site.until("no node matches", "workerpools", "gpus", |pool| {
        verdict(pool, "Available").1 == "NoMatchingNodes"
    });
}
