//! What the operator's chart says of itself, on a node that runs it.

use crate::support::{SYSTEM, suite};

#[tokio::test(flavor = "multi_thread")]
async fn helm_tests_the_installed_operator_with_a_pod() {
    let Some(suite) = suite().await else { return };
    let said = suite.shell(&format!("helm test modelrelay --namespace {SYSTEM} --timeout 2m"));
    assert!(said.contains("Phase:") && said.contains("Succeeded"), "{said}");
    // The pod that asked is gone again.
    let pods = suite.plane().api().get(&format!("/api/v1/namespaces/{SYSTEM}/pods")).unwrap();
    let pods = pods["items"].as_array().unwrap();
    let left = |pod: &&serde_json::Value| {
        pod["metadata"]["labels"]["app.kubernetes.io/name"] == "modelrelay-test"
            && pod["metadata"]["deletionTimestamp"].is_null()
    };
    assert_eq!(pods.iter().filter(left).count(), 0);
}
