//! What the service accounts may do: the operator what its chart lists, the others nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{SYSTEM, Site, Suite, succeeded, suite};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/modelrelay/files");

/// Returns what `kubectl auth can-i --list` prints for a service account in a namespace, a verb and what it is for in each.
fn list(suite: &Suite, account: (&str, &str), namespace: &str) -> BTreeSet<String> {
    let kubeconfig = suite.plane().kubeconfig_for_service_account(account.0, account.1).unwrap();
    let mut kubectl = suite.plane().kubectl_as(&kubeconfig);
    let output = kubectl.args(["auth", "can-i", "--list", "--namespace", namespace]).output().unwrap();
    let table = succeeded("kubectl auth can-i --list", &output);
    let mut all = BTreeSet::new();
    for line in table.lines().skip(1) {
        // Resources, [URLs], [names], [verbs]
        let (resource, rest) = line.split_once('[').unwrap();
        let mut lists = rest.split('[').map(|list| list.trim_end().trim_end_matches(']'));
        let [urls, names, verbs] = [(); 3].map(|()| lists.next().unwrap());
        for verb in verbs.split(' ') {
            all.insert(format!("{verb} {}{urls}{names}", resource.trim()));
        }
    }
    all
}

/// Returns what some of the chart's lists of rules say, in the same form.
fn documented(suite: &Suite, lists: &[&str]) -> BTreeSet<String> {
    let mut text = String::from("apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\n");
    text += "metadata: { name: documented }\nrules:\n";
    for list in lists {
        text += &fs::read_to_string(format!("{FOLDER}/{list}.yaml")).unwrap();
    }
    // kubectl reads YAML.
    let mut kubectl = suite.plane().kubectl();
    kubectl.args(["create", "--dry-run=client", "--output=json", "--filename=-"]);
    let mut child =
        kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let role = succeeded("kubectl create", &child.wait_with_output().unwrap());
    let role: Value = serde_json::from_str(&role).unwrap();
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(strings(&rule["apiGroups"]).len(), 1);
        let group = &strings(&rule["apiGroups"])[0];
        for resource in strings(&rule["resources"]) {
            let (resource, part) = resource.split_once('/').unwrap_or((&resource, ""));
            let group = if group.is_empty() { String::new() } else { format!(".{group}") };
            let part = if part.is_empty() { String::new() } else { format!("/{part}") };
            all.extend(strings(&rule["verbs"]).iter().map(|verb| format!("{verb} {resource}{group}{part}")));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_may_do_what_is_documented_and_nothing_else() {
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "rights");
    site.apply(&[Site::relay("main", &json!({ "replicas": 1 })), Site::stub_pool("stubs", "m", 8)]);
    site.ready("workerpools", "stubs");
    let own = site.name();
    // What anybody may who has an account: ask what he may do, and what the API server serves.
    let anybody = list(&suite, (own, "default"), own);
    assert!(!anybody.is_empty());
    for account in ["main-relay", "stubs-worker", "stubs-engine"] {
        for namespace in [own, SYSTEM] {
            assert_eq!(list(&suite, (own, account), namespace), anybody, "{account} in {namespace}");
        }
    }
    let operator = (SYSTEM, "modelrelay-operator");
    for (namespace, lists) in [
        (own, &["rules-in-namespaces", "rules-in-cluster"][..]),
        (SYSTEM, &["rules-in-namespaces", "rules-in-cluster", "rules-at-home"][..]),
    ] {
        let expected: BTreeSet<_> = documented(&suite, lists).union(&anybody).cloned().collect();
        assert_eq!(list(&suite, operator, namespace), expected, "in {namespace}");
    }
}
