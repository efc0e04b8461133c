//! The examples with an operator that has its own rights and no others: all children with the right owner, a second apply that
//! writes nothing, and nothing left after the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use dev_cluster::Patch;
use dev_cluster::proxy::{Proxy, Recorded};
use modelrelay_operator::cache::Scope;
use modelrelay_operator::naming::{pool, relay};
use modelrelay_operator::rbac;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::examples;
use crate::support::{LIMIT, Place, RunningOperator, client, eventually, plane};

/// Without a single write for so long, an operator has settled.
const CALM: Duration = Duration::from_millis(1500);

const CHILDREN: [&str; 8] = [
    "apps/v1/daemonsets",
    "apps/v1/deployments",
    "autoscaling/v2/horizontalpodautoscalers",
    "networking.k8s.io/v1/networkpolicies",
    "policy/v1/poddisruptionbudgets",
    "v1/secrets",
    "v1/serviceaccounts",
    "v1/services",
];

fn path(list: &str, namespace: &str) -> String {
    let (version, plural) = list.rsplit_once('/').unwrap();
    let root = if version.contains('/') { "/apis" } else { "/api" };
    format!("{root}/{version}/namespaces/{namespace}/{plural}")
}

/// An operator in a namespace, by the name of a service account with exactly the rights of the chart.
struct Rig {
    place: Place,
    proxy: Proxy<'static>,
    operator: RunningOperator,
}

impl Rig {
    async fn new() -> Option<Self> {
        let place = Place::new("example").await?;
        let namespace = place.name();
        let metadata = json!({ "name": "operator", "namespace": namespace });
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rbac::in_namespaces(),
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator" },
            "subjects": [{ "kind": "ServiceAccount", "name": "operator", "namespace": namespace }],
        });
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata });
        let api = plane()?.api();
        api.create(&path("v1/serviceaccounts", namespace), &account).unwrap();
        api.create(&path("rbac.authorization.k8s.io/v1/roles", namespace), &role).unwrap();
        api.create(&path("rbac.authorization.k8s.io/v1/rolebindings", namespace), &binding).unwrap();
        let proxy = Proxy::start(plane()?).unwrap();
        let kubeconfig = proxy.kubeconfig_for_service_account(namespace, "operator").unwrap();
        let scope = Scope::Namespaces(vec![namespace.to_owned()]);
        let operator = RunningOperator::start(client(&kubeconfig).await, scope);
        Some(Self { place, proxy, operator })
    }

    fn kubectl(&self, arguments: &[&str]) {
        let mut command = plane().unwrap().kubectl();
        let output = command.args(["--namespace", self.place.name()]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes of the operator, without Events.
    fn writes(&self) -> Vec<Recorded> {
        let mut calls = self.proxy.calls();
        calls.retain(|recorded| recorded.call.writes() && recorded.call.resource != "events");
        calls
    }

    /// Waits until the operator has not written for a while.
    async fn settle(&self) -> usize {
        let began = Instant::now();
        let (mut last, mut since) = (self.writes().len(), Instant::now());
        while since.elapsed() < CALM || last == 0 {
            sleep(Duration::from_millis(50)).await;
            let now = self.writes().len();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            assert!(began.elapsed() < LIMIT, "still writing: {:?}", self.proxy.counts());
        }
        last
    }

    /// Every object that has a controller of ours: its kind in plural and its name, with kind, name and id of the owner.
    fn children(&self) -> BTreeMap<String, [Value; 3]> {
        let mut children = BTreeMap::new();
        for list in CHILDREN {
            let objects = plane().unwrap().api().get(&path(list, self.place.name())).unwrap();
            for object in objects["items"].as_array().unwrap() {
                let owners = object["metadata"]["ownerReferences"].as_array();
                let owner = owners.into_iter().flatten().find(|owner| {
                    owner["controller"] == true
                        && owner["apiVersion"].as_str().unwrap().starts_with("modelrelay.io/")
                });
                if let Some(owner) = owner {
                    let plural = list.rsplit('/').next().unwrap();
                    let name = object["metadata"]["name"].as_str().unwrap();
                    let known = ["kind", "name", "uid"].map(|part| owner[part].clone());
                    children.insert(format!("{plural}/{name}"), known);
                }
            }
        }
        children
    }
}

/// The children that an object should have.
fn expected(object: &Value) -> Vec<String> {
    let name = object["metadata"]["name"].as_str().unwrap();
    let spec = &object["spec"];
    let mut children = Vec::new();
    let mut add = |plurals: &[&str], name: String| {
        children.extend(plurals.iter().map(|plural| format!("{plural}/{name}")));
    };
    if object["kind"] == "ModelRelay" {
        let workload = ["deployments", "networkpolicies", "poddisruptionbudgets", "serviceaccounts"];
        add(&workload, relay::workload(name));
        if spec["scaling"].is_object() {
            add(&["horizontalpodautoscalers"], relay::workload(name));
        }
        add(&["services"], relay::service(name));
        add(&["services"], relay::workers_service(name));
        add(&["secrets"], relay::settings(name));
        add(&["secrets"], relay::admin(name));
    } else if spec["type"] == "External" {
        add(&["secrets"], pool::join(name));
    } else {
        add(&["daemonsets", "networkpolicies", "serviceaccounts"], pool::worker(name));
        for secret in [pool::settings(name), pool::credential(name), pool::admin(name)] {
            add(&["secrets"], secret);
        }
        if spec["backend"]["container"].is_object() {
            add(&["daemonsets", "networkpolicies", "serviceaccounts", "services"], pool::engine(name));
        }
    }
    children
}

async fn run(example: &Path) {
    let Some(rig) = Rig::new().await else { return };
    let apply = ["apply", "--filename", example.to_str().unwrap()];
    rig.kubectl(&apply);
    rig.settle().await;

    let mut wanted = BTreeMap::new();
    let text = fs::read_to_string(example).unwrap();
    for document in text.split("\n---\n") {
        let object: Value = serde_yaml::from_str(document).unwrap();
        let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        let list = format!("modelrelay.io/v1alpha1/{}s", kind.to_lowercase());
        let live = plane().unwrap().api().get(&format!("{}/{name}", path(&list, rig.place.name()))).unwrap();
        let owner = [live["kind"].clone(), live["metadata"]["name"].clone(), live["metadata"]["uid"].clone()];
        wanted.extend(expected(&object).into_iter().map(|child| (child, owner.clone())));
        let accepted = live["status"]["conditions"].as_array().unwrap();
        let accepted = accepted.iter().find(|condition| condition["type"] == "Accepted").unwrap();
        assert_eq!(accepted["status"], "True", "{kind} {name}: {accepted}");
    }
    assert_eq!(rig.children(), wanted, "{}", example.display());

    let before = rig.settle().await;
    rig.kubectl(&apply);
    // An apply that changes nothing is no event; this one has the operator look again.
    let list = path("modelrelay.io/v1alpha1/modelrelays", rig.place.name());
    let touch = json!({ "metadata": { "labels": { "touched": "yes" } } });
    plane().unwrap().api().patch(&format!("{list}/main"), Patch::Merge, &touch).unwrap();
    assert_eq!(rig.settle().await, before, "{}: {:?}", example.display(), rig.writes().split_off(before));

    rig.kubectl(&["delete", "--filename", example.to_str().unwrap()]);
    eventually("all children are collected", async || rig.children().is_empty().then_some(())).await;
    let forbidden: Vec<_> = rig.proxy.calls().into_iter().filter(|call| call.status == Some(403)).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
    rig.operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_has_its_children_and_leaves_none() {
    for example in examples::all() {
        run(&example).await;
    }
}

/// One child of each kind and owner is deleted, and nothing else happens that would make the operator look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_of_any_kind_that_is_deleted_is_missed_and_made_anew() {
    let Some(rig) = Rig::new().await else { return };
    let example = examples::all().into_iter().find(|path| path.ends_with("two-pools.yaml")).unwrap();
    rig.kubectl(&["apply", "--filename", example.to_str().unwrap()]);
    rig.settle().await;
    let (api, mut kinds) = (plane().unwrap().api(), BTreeSet::new());
    for (child, [owner, ..]) in rig.children() {
        let (plural, name) = child.split_once('/').unwrap();
        if !kinds.insert(format!("{plural} of a {owner}")) {
            continue;
        }
        rig.settle().await;
        let list = CHILDREN.into_iter().find(|list| list.ends_with(plural)).unwrap();
        let path = format!("{}/{name}", path(list, rig.place.name()));
        let before = api.get(&path).unwrap()["metadata"]["uid"].clone();
        api.delete(&path).unwrap();
        eventually(&format!("{child} is made anew"), async || {
            api.find(&path).unwrap().filter(|now| now["metadata"]["uid"] != before)
        })
        .await;
    }
    assert_eq!(kinds.len(), 12, "{kinds:?}");
    rig.operator.stop().await;
}
