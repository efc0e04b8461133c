//! Everything of ours runs where Pod Security's level "restricted" is enforced; an engine that is refused there is told of.

use dev_e2e::client::{CHAT, ask, chat, post};
use serde_json::json;

use crate::support::{Part, SYSTEM, Site, condition, suite, verdict};

#[tokio::test(flavor = "multi_thread")]
async fn restricted_namespaces_take_relay_worker_and_operator_and_a_refused_engine_is_told_of() {
    let Some(suite) = suite().await else { return };
    let site = Site::restricted(&suite, "restricted");
    let mut pool = Site::stub_pool("stubs", "m", 8);
    site.apply(&[Site::relay("main", &json!({ "replicas": 1 })), pool.clone()]);
    let refused = site.until("the engine is refused", "workerpools", "stubs", |pool| {
        verdict(pool, "Available").1 == "PodsRefused" && verdict(pool, "Progressing").1 == "PodsRefused"
    });
    for kind in ["Available", "Progressing", "Ready"] {
        let (status, _, message) = verdict(&refused, kind);
        assert_eq!(status, "False", "{kind}");
        assert!(
            kind == "Ready" || message.contains("violates PodSecurity \"restricted:"),
            "{kind}: {message}"
        );
    }
    for (part, name) in [(Part::Relay, "main"), (Part::Worker, "stubs")] {
        site.pods_until(&format!("{part:?} runs"), part, name, |pods| {
            pods.len() == 1 && condition(&pods[0], "Ready") == "True"
        });
    }

    let context = json!({ "runAsNonRoot": true, "capabilities": { "drop": ["ALL"] } });
    pool["spec"]["backend"]["container"]["securityContext"] = context;
    site.apply(&[pool]);
    site.ready("workerpools", "stubs");
    assert_eq!(ask(site.service("main"), post(CHAT, chat(false, &json!({})))).await.status(), 200);

    // What a change of a namespace's level would mean for the pods that are there.
    let enforce = |namespace: &str| {
        let level = "pod-security.kubernetes.io/enforce=restricted";
        let mut kubectl = suite.plane().kubectl();
        let label = ["label", "--dry-run=server", "--overwrite", "namespace", namespace, level];
        let output = kubectl.args(label).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(enforce(SYSTEM), "");
    let plain = Site::new(&suite, "plain");
    plain.apply(&[json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "plain" },
        "spec": { "nodeSelector": { "no": "such-node" }, "containers": [{ "name": "plain", "image": "plain" }] },
    })]);
    assert!(enforce(plain.name()).contains("Warning: existing pods"), "the check finds nothing anywhere");
}
