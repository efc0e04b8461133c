//! From two objects to an answer.

use dev_e2e::client::{CHAT, Ended, ask, chat, post};
use serde_json::json;

use crate::support::{Part, Site, condition, suite};

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_and_a_pool_become_ready_and_answer_through_the_service() {
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "serving");
    let pool = json!({
        "backend": { "container": Site::stub_container("m") },
        "managed": { "nodeSelector": { "kubernetes.io/hostname": "node2" } },
    });
    site.apply(&[Site::relay("main", &json!({})), Site::pool("stubs", &pool)]);
    site.ready("modelrelays", "main");
    site.ready("workerpools", "stubs");
    let request = post(CHAT, chat(true, &json!({ "chunks": 50 })));
    let answer = ask(site.service("main"), request).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.stream().await, Ended::Whole(50));
    let within = suite.ask_from_a_pod(site.name(), "main", CHAT, &chat(false, &json!({})));
    assert!(within.starts_with("HTTP/1.1 200 OK\n"), "{within}");

    let relays = site.pods_until("two ready relays", Part::Relay, "main", |pods| {
        pods.iter().filter(|pod| condition(pod, "Ready") == "True").count() == 2
    });
    assert_eq!(relays.len(), 2);
    for part in [Part::Worker, Part::Engine] {
        let pods = site.pods(part, "stubs");
        assert_eq!(
            pods.iter().map(|pod| &pod["spec"]["nodeName"]).collect::<Vec<_>>(),
            ["node2"],
            "{part:?}"
        );
    }
}
