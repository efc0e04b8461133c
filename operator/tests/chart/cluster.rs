//! The charts and the plain manifests on a real API server, with the controllers that make pods and collect roles, and a node
//! that calls every pod running.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dev_cluster::{ControlPlane, FakeNodes, Options, Tools, wait};
use modelrelay_operator::rbac;
use serde_json::{Value, json};

use crate::{helm, workspace};

const LIMIT: Duration = Duration::from_secs(60);
const HOME: &str = "modelrelay-system";
const CRDS: [&str; 2] = ["modelrelays.modelrelay.io", "workerpools.modelrelay.io"];

/// The API server while no other test has it: what is installed here has one name in a cluster.
struct Cluster {
    plane: &'static ControlPlane,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    fn new() -> Option<Self> {
        static SHARED: OnceLock<Option<(FakeNodes, ControlPlane)>> = OnceLock::new();
        static ALONE: Mutex<()> = Mutex::new(());
        dev_cluster::tool("MODELRELAY_HELM")?;
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let (tools, kwok) = (Tools::from_environment()?, dev_cluster::tool("MODELRELAY_KWOK")?);
            let options = Options { controller_manager: true, scheduler: true, ..Options::default() };
            let plane = ControlPlane::start(&tools, options).unwrap();
            Some((FakeNodes::start(&plane, &kwok, 1).unwrap(), plane))
        };
        let (_, plane) = SHARED.get_or_init(start).as_ref()?;
        let cluster = Self { plane, _alone: alone };
        // As careful platform teams set it up.
        cluster.create_namespace(HOME, &json!({ "pod-security.kubernetes.io/enforce": "restricted" }));
        Some(cluster)
    }

    fn create_namespace(&self, name: &str, labels: &Value) {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
        self.plane.api().create("/api/v1/namespaces", &namespace).unwrap();
    }

    fn helm(&self, arguments: &[&str]) -> String {
        let mut command = helm::helm().unwrap();
        command.arg("--kubeconfig").arg(self.plane.kubeconfig()).args(arguments);
        finished(command)
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let mut command = self.plane.kubectl();
        command.args(arguments).current_dir(workspace());
        finished(command)
    }

    fn kubectl_apply(&self, manifest: &str, arguments: &[&str]) -> String {
        let mut command = self.plane.kubectl();
        command.args(["apply", "--filename", "-"]).args(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !error.contains("Warning"), "{error}\n{manifest}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn wait<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        wait::until(what, LIMIT, || Ok(look(self))).unwrap()
    }

    fn exists(&self, path: &str) -> bool {
        self.plane.api().find(path).unwrap().is_some()
    }

    /// Waits for the pods of the Deployment: their creation is where Pod Security refuses.
    fn wait_pods(&self, count: usize) {
        let path = format!("/api/v1/namespaces/{HOME}/pods");
        self.wait("the operator's pods are created", |cluster| {
            let pods = cluster.plane.api().get(&path).unwrap();
            let live = pods["items"].as_array().unwrap().iter();
            (live.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).count() == count).then_some(())
        });
    }

    /// Whether somebody may do something.
    fn may(&self, user: &str, namespace: &str, verb: &str, group: &str, resource: &str) -> bool {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let groups = ["system:serviceaccounts", "system:authenticated"];
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": { "user": user, "groups": groups, "resourceAttributes": {
                "namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
            } },
        });
        let answer = self.plane.api().create("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review);
        answer.unwrap()["status"]["allowed"] == true
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let api = self.plane.api();
        for crd in CRDS {
            let _ = api.delete(&format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd}"));
        }
        for namespace in [HOME, "inference", "staging"] {
            let path = format!("/api/v1/namespaces/{namespace}");
            let _ = api.delete(&path);
            let _ =
                wait::until("the namespace is gone", LIMIT, || Ok(api.find(&path)?.is_none().then_some(())));
        }
        for name in ["modelrelay-operator", "modelrelay-view", "modelrelay-edit"] {
            for plural in ["clusterroles", "clusterrolebindings"] {
                let _ = api.delete(&format!("/apis/rbac.authorization.k8s.io/v1/{plural}/{name}"));
            }
        }
    }
}

fn finished(mut command: Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

const OPERATOR: &str = "system:serviceaccount:modelrelay-system:modelrelay-operator";

#[test]
fn helm_installs_upgrades_rolls_back_and_leaves_relays_behind() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.helm(&["install", "modelrelay-crds", "charts/modelrelay-crds", "--wait"]);
    let operator = |verb: &str, more: &[&str]| {
        let tolerant = ["--set", "tolerations[0].key=fake", "--set", "tolerations[0].operator=Exists"];
        let fixed = [verb, "modelrelay", "charts/modelrelay", "--namespace", HOME, "--wait", "--timeout=60s"];
        cluster.helm(&[&fixed[..], &tolerant, more].concat())
    };
    let notes = operator("install", &[]);
    assert!(notes.contains("kubectl wait --for=condition=Ready modelrelay/main workerpool/gpu"), "{notes}");
    // What the notes give to kubectl is taken by it.
    let (_, rest) = notes.split_once("<<'END'\n").unwrap();
    let (manifest, _) = rest.split_once("     END\n").unwrap();
    let manifest: String =
        manifest.lines().map(|line| format!("{}\n", line.get(5..).unwrap_or(""))).collect();
    cluster.kubectl_apply(&manifest, &["--namespace", "default"]);
    cluster.wait_pods(2);

    let relay = "/apis/modelrelay.io/v1alpha1/namespaces/default/modelrelays/main";
    let before = cluster.plane.api().get(relay).unwrap();
    cluster.helm(&["upgrade", "modelrelay-crds", "charts/modelrelay-crds", "--wait"]);
    operator("upgrade", &["--set", "replicas=3"]);
    cluster.wait_pods(3);
    cluster.helm(&["rollback", "modelrelay", "1", "--namespace", HOME, "--wait", "--timeout=60s"]);
    cluster.wait_pods(2);
    assert_eq!(cluster.plane.api().get(relay).unwrap(), before);

    cluster.helm(&["uninstall", "modelrelay", "--namespace", HOME, "--wait"]);
    cluster.helm(&["uninstall", "modelrelay-crds", "--wait"]);
    cluster.wait_pods(0);
    assert_eq!(cluster.plane.api().get(relay).unwrap(), before);
    assert!(!cluster.exists("/apis/rbac.authorization.k8s.io/v1/clusterroles/modelrelay-operator"));
}

/// Helm judges objects by the rules that kustomize and Flux go by.
#[test]
fn helm_waits_until_a_relay_is_ready_and_has_been_looked_at() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.helm(&["install", "modelrelay-crds", "charts/modelrelay-crds", "--wait"]);
    let chart = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(chart.path().join(name), text).unwrap();
    write("Chart.yaml", "{ apiVersion: v2, name: site, version: 0.1.0 }");
    std::fs::create_dir(chart.path().join("templates")).unwrap();
    let relay = |replicas: u32| {
        let relay = json!({
            "apiVersion": "modelrelay.io/v1alpha1", "kind": "ModelRelay", "metadata": { "name": "main" }, "spec": { "replicas": replicas },
        });
        write("templates/relay.yaml", &relay.to_string());
        relay.to_string()
    };
    // As Helm will write it.
    cluster.kubectl_apply(&relay(1), &["--namespace=default", "--server-side", "--field-manager=helm"]);
    let says = |generation: u32, ready: &str| {
        let status = json!({ "status": { "observedGeneration": generation, "conditions": [{
            "type": "Ready", "status": ready, "reason": "Pending", "message": "", "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }] } });
        let patch = ["--subresource=status", "--type=merge", "--patch", &status.to_string()];
        cluster.kubectl(&[&["patch", "modelrelay", "main", "--namespace=default"][..], &patch].concat());
    };
    let waits = |seconds: u32| {
        let mut command = helm::helm().unwrap();
        command.arg("--kubeconfig").arg(cluster.plane.kubeconfig());
        command.args(["upgrade", "--install", "site", path(chart.path()), "--namespace", "default"]);
        let timeout = format!("--timeout={seconds}s");
        let output = command.args(["--take-ownership", "--wait", &timeout]).output().unwrap();
        output.status.success().then_some(()).ok_or_else(|| String::from_utf8(output.stderr).unwrap())
    };
    for ready in ["Unknown", "False"] {
        says(1, ready);
        let error = waits(6).unwrap_err();
        assert!(error.contains("main") && error.contains("InProgress"), "{error}");
    }
    says(1, "True");
    waits(60).unwrap();
    relay(2);
    let error = waits(6).unwrap_err();
    assert!(error.contains("main") && error.contains("InProgress"), "{error}");
    says(2, "True");
    waits(60).unwrap();
    cluster.helm(&["uninstall", "site", "--namespace", "default"]);
    cluster.helm(&["uninstall", "modelrelay-crds", "--wait"]);
}

#[test]
fn the_plain_manifests_are_applied_as_they_are_and_again_without_a_change() {
    let Some(cluster) = Cluster::new() else { return };
    let apply = ["apply", "--filename", "deploy/install.yaml"];
    cluster.kubectl(&apply);
    cluster.wait_pods(2);
    // Not by what kubectl says of each: it patches the selector of a PodDisruptionBudget every time, to the same.
    let generations = || {
        let list = cluster.kubectl(&["get", "--filename", "deploy/install.yaml", "--output=json"]);
        let list: Value = serde_json::from_str(&list).unwrap();
        let objects = list["items"].as_array().unwrap().iter();
        objects.map(|object| object["metadata"]["generation"].clone()).collect::<Vec<_>>()
    };
    let before = generations();
    assert!(before.len() >= 14, "{before:?}");
    cluster.kubectl(&apply);
    assert_eq!(generations(), before);
    for crd in CRDS {
        cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", &format!("crd/{crd}")]);
    }
}

#[test]
fn whatever_the_example_values_the_api_server_takes_every_manifest() {
    let Some(cluster) = Cluster::new() else { return };
    for namespace in ["inference", "staging"] {
        cluster.create_namespace(namespace, &json!({}));
    }
    let monitor = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "servicemonitors.monitoring.coreos.com" },
        "spec": {
            "group": "monitoring.coreos.com", "scope": "Namespaced",
            "names": { "kind": "ServiceMonitor", "plural": "servicemonitors" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            } } }],
        },
    });
    cluster.kubectl_apply(&monitor.to_string(), &[]);
    cluster.wait("ServiceMonitors are served", |cluster| {
        cluster.plane.api().get("/apis/monitoring.coreos.com/v1/servicemonitors").ok()
    });
    let apply = |values: &[&str]| {
        let fixed = ["template", "modelrelay", "charts/modelrelay", "--namespace", HOME];
        // The test pod too.
        let text = cluster.helm(&[&fixed[..], values].concat());
        let created = cluster.kubectl_apply(&text, &["--dry-run=server", "--validate=strict"]);
        assert!(created.contains("pod/modelrelay-operator-test created (server dry run)"), "{created}");
    };
    apply(&[]);
    for values in helm::example_values() {
        apply(&["--values", values.to_str().unwrap()]);
    }
}

#[test]
fn the_operators_account_may_do_what_it_does_and_no_more() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.helm(&["install", "modelrelay", "charts/modelrelay", "--namespace", HOME]);
    let may = |namespace, verb: &str, group: &str, resource: &str| {
        cluster.may(OPERATOR, namespace, verb, group, resource)
    };
    for (rules, namespace) in
        [(rbac::in_namespaces(), "default"), (rbac::in_cluster(), ""), (rbac::at_home(), HOME)]
    {
        for rule in rules {
            for resource in rule.resources.unwrap() {
                for verb in &rule.verbs {
                    let group = &rule.api_groups.as_ref().unwrap()[0];
                    assert!(may(namespace, verb, group, &resource), "{verb} {resource} is forbidden");
                }
            }
        }
    }
    let forbidden = [
        ("default", "create", "modelrelay.io", "modelrelays"),
        ("default", "patch", "modelrelay.io", "modelrelays"),
        ("default", "delete", "modelrelay.io", "workerpools"),
        ("default", "update", "", "secrets"),
        ("default", "deletecollection", "", "secrets"),
        ("default", "create", "", "pods"),
        ("default", "create", "", "pods/exec"),
        ("default", "create", "", "serviceaccounts/token"),
        ("default", "get", "", "configmaps"),
        ("default", "create", "rbac.authorization.k8s.io", "roles"),
        ("default", "create", "rbac.authorization.k8s.io", "rolebindings"),
        ("default", "get", "coordination.k8s.io", "leases"),
        (HOME, "delete", "coordination.k8s.io", "leases"),
        ("", "get", "", "nodes"),
        ("", "patch", "", "namespaces"),
        ("", "get", "apiextensions.k8s.io", "customresourcedefinitions"),
    ];
    for (namespace, verb, group, resource) in forbidden {
        assert!(!may(namespace, verb, group, resource), "{verb} {resource} is allowed");
    }
    cluster.helm(&["uninstall", "modelrelay", "--namespace", HOME, "--wait"]);
}

#[test]
fn with_namespaces_the_account_may_do_nothing_elsewhere() {
    let Some(cluster) = Cluster::new() else { return };
    for namespace in ["inference", "staging"] {
        cluster.create_namespace(namespace, &json!({}));
    }
    let values = workspace().join("charts/modelrelay/ci/namespaces-values.yaml");
    cluster.helm(&[
        "install",
        "modelrelay",
        "charts/modelrelay",
        "--namespace",
        HOME,
        "--values",
        path(&values),
    ]);
    for (namespace, allowed) in [("inference", true), ("staging", true), ("default", false), (HOME, false)] {
        assert_eq!(cluster.may(OPERATOR, namespace, "list", "", "secrets"), allowed, "{namespace}");
        assert_eq!(cluster.may(OPERATOR, namespace, "patch", "apps", "deployments"), allowed, "{namespace}");
    }
    assert!(!cluster.may(OPERATOR, "", "list", "", "namespaces"));
    assert!(cluster.may(OPERATOR, HOME, "update", "coordination.k8s.io", "leases"));
    cluster.helm(&["uninstall", "modelrelay", "--namespace", HOME, "--wait"]);
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn those_who_may_view_or_edit_a_namespace_may_do_so_with_relays() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.helm(&["install", "modelrelay", "charts/modelrelay", "--namespace", HOME]);
    cluster.create_namespace("inference", &json!({}));
    for role in ["view", "edit"] {
        let binding = format!("--clusterrole={role}");
        let user = format!("--user={role}er");
        cluster.kubectl(&["create", "rolebinding", role, &binding, &user, "--namespace=inference"]);
    }
    let may = |user: &str, verb: &str, resource: &str| {
        cluster.may(user, "inference", verb, "modelrelay.io", resource)
    };
    cluster.wait("the roles are aggregated", |_| may("editer", "create", "modelrelays").then_some(()));
    cluster.wait("the roles are aggregated", |_| may("viewer", "list", "workerpools").then_some(()));
    for resource in ["modelrelays", "workerpools"] {
        assert!(may("editer", "delete", resource) && may("editer", "watch", resource));
        assert!(may("viewer", "get", resource) && !may("viewer", "patch", resource));
        assert!(!may("editer", "patch", &format!("{resource}/status")));
    }
    assert!(may("editer", "patch", "modelrelays/scale") && !may("viewer", "patch", "modelrelays/scale"));
    cluster.helm(&["uninstall", "modelrelay", "--namespace", HOME, "--wait"]);
}
