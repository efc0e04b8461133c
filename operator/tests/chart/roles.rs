//! The operator's rights: one list in Rust, from which the chart's files come.

use k8s_openapi::api::rbac::v1::PolicyRule;
use modelrelay_operator::api::schema;
use modelrelay_operator::rbac;
use serde_json::{Value, json};

use crate::assert_generated;
use crate::helm::{self, Manifests};

fn lines(rules: &[PolicyRule]) -> String {
    schema::to_yaml(&rules).lines().map(|line| format!("  {line}\n")).collect()
}

#[test]
fn the_charts_rules_are_those_that_the_operator_needs() {
    assert_generated("charts/modelrelay/files/rules-in-namespaces.yaml", &lines(&rbac::in_namespaces()));
    assert_generated("charts/modelrelay/files/rules-in-cluster.yaml", &lines(&rbac::in_cluster()));
    assert_generated("charts/modelrelay/files/rules-at-home.yaml", &lines(&rbac::at_home()));
}

fn rules(manifests: &Manifests, kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let found = manifests.iter().find(|manifest| {
        manifest["kind"] == kind
            && manifest["metadata"]["name"] == name
            && manifest["metadata"]["namespace"].as_str() == namespace
    });
    found.unwrap_or_else(|| panic!("no {kind} {name} in {namespace:?}"))["rules"].clone()
}

fn as_json(rules: Vec<PolicyRule>) -> Value {
    serde_json::to_value(rules).unwrap()
}

#[test]
fn for_the_whole_cluster_it_has_one_cluster_role_and_the_lease() {
    let Some(manifests) = helm::template("modelrelay", &[]) else { return };
    let everywhere = rbac::in_namespaces().into_iter().chain(rbac::in_cluster()).collect();
    assert_eq!(rules(&manifests, "ClusterRole", None, "modelrelay-operator"), as_json(everywhere));
    let lease = rules(&manifests, "Role", Some("modelrelay-system"), "modelrelay-operator-lease");
    assert_eq!(lease, as_json(rbac::at_home()));
}

#[test]
fn for_some_namespaces_it_has_nothing_outside_them() {
    let Some(manifests) = helm::template("modelrelay", &["--set", "namespaces={b,a,b}"]) else { return };
    assert!(manifests.iter().all(|manifest| !manifest["kind"].as_str().unwrap().starts_with("ClusterRole")));
    for namespace in ["a", "b"] {
        assert_eq!(
            rules(&manifests, "Role", Some(namespace), "modelrelay-operator"),
            as_json(rbac::in_namespaces())
        );
    }
    let bindings = manifests.iter().filter(|manifest| manifest["kind"] == "RoleBinding");
    let bound: Vec<_> = bindings.map(|binding| binding["metadata"]["namespace"].clone()).collect();
    assert_eq!(bound, ["a", "b", "modelrelay-system"]);
    let deployment = manifests.iter().find(|manifest| manifest["kind"] == "Deployment").unwrap();
    let arguments = deployment.pointer("/spec/template/spec/containers/0/args").unwrap();
    assert!(arguments.as_array().unwrap().contains(&json!("--namespaces=a,b")), "{arguments}");
}
