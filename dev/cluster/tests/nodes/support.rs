//! The cluster that most tests share, and pods for it.

use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dev_cluster::{
    Cluster, ClusterOptions, ControlPlane, Image, Namespace, NodeTools, Tools, check_nodes_can_run, tool,
    wait,
};
use serde_json::{Value, json};

pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// An image with busybox and nothing else.
pub(crate) const IMAGE: &str = "localhost/busybox:1";

/// Starts a cluster of its own; returns none where that cannot be.
pub(crate) fn start(nodes: u8) -> Option<Cluster> {
    let (tools, node_tools) = (Tools::from_environment()?, NodeTools::from_environment()?);
    let busybox = tool("MODELRELAY_BUSYBOX")?;
    if let Err(error) = check_nodes_can_run() {
        assert!(std::env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "{error}");
        // Not by a macro: what those print is shown for failed tests only.
        std::io::stderr().write_all(format!("SKIPPED: {error}\n").as_bytes()).unwrap();
        return None;
    }
    let flags = ["--node-monitor-grace-period=10s", "--node-monitor-period=1s"];
    let controller_manager_flags = flags.map(str::to_owned).to_vec();
    let options = ClusterOptions { nodes, controller_manager_flags, ..ClusterOptions::default() };
    let cluster = Cluster::start(&tools, &node_tools, options).unwrap();
    let archive = cluster.control_plane().folder().join("busybox.tar");
    pack(&busybox, &archive);
    cluster.load_image(&archive).unwrap();
    Some(cluster)
}

fn pack(busybox: &Path, archive: &Path) {
    let image = Image {
        name: IMAGE.to_owned(),
        entrypoint: vec!["/bin/busybox".to_owned()],
        user: "65532:65532".to_owned(),
        files: vec![(busybox.to_owned(), "/bin/busybox".to_owned())],
    };
    image.pack(archive).unwrap();
}

/// Waits for the cluster of two nodes that tests share, one after the other.
pub(crate) fn shared() -> Option<MutexGuard<'static, Cluster>> {
    static SHARED: OnceLock<Option<Mutex<Cluster>>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| Some(Mutex::new(start(2)?))).as_ref()?;
    Some(shared.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A namespace with its default account, without which there are no pods.
pub(crate) fn namespace(plane: &ControlPlane, prefix: &str) -> Namespace {
    let namespace = plane.namespace(prefix).unwrap();
    let account = format!("/api/v1/namespaces/{}/serviceaccounts/default", namespace.name());
    wait::until("the default account", LIMIT, || plane.api().find(&account)).unwrap();
    namespace
}

/// A pod's spec that runs busybox.
pub(crate) fn busybox(node: Option<&str>, arguments: &[&str]) -> Value {
    json!({
        "nodeName": node,
        "terminationGracePeriodSeconds": 0,
        "containers": [{
            "name": "busybox", "image": IMAGE, "imagePullPolicy": "Never", "args": arguments,
        }],
    })
}

/// Creates a pod and waits until its status is as wanted.
pub(crate) fn run_pod(plane: &ControlPlane, namespace: &Namespace, name: &str, spec: &Value) {
    let pods = format!("/api/v1/namespaces/{}/pods", namespace.name());
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } }, "spec": spec,
    });
    plane.api().create(&pods, &pod).unwrap();
}

pub(crate) fn pod(plane: &ControlPlane, namespace: &Namespace, name: &str) -> Value {
    plane.api().get(&format!("/api/v1/namespaces/{}/pods/{name}", namespace.name())).unwrap()
}

/// Waits until a pod is ready, and returns it.
pub(crate) fn ready_pod(plane: &ControlPlane, namespace: &Namespace, name: &str) -> Value {
    let found = wait::until("the pod is ready", LIMIT, || {
        let pod = pod(plane, namespace, name);
        Ok((condition(&pod, "Ready") == "True").then_some(pod))
    });
    found.unwrap_or_else(|error| panic!("{error}: {}", pod(plane, namespace, name)["status"]))
}

/// Returns the status of a condition.
pub(crate) fn condition(object: &Value, kind: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.map_or_else(String::new, |condition| condition["status"].as_str().unwrap().to_owned())
}

/// Waits until a pod has ended, and returns what it printed.
pub(crate) fn output(plane: &ControlPlane, namespace: &Namespace, name: &str) -> String {
    let phase = wait::until("the pod has ended", LIMIT, || {
        let phase = pod(plane, namespace, name)["status"]["phase"].as_str().unwrap_or_default().to_owned();
        Ok(["Succeeded", "Failed"].contains(&phase.as_str()).then_some(phase))
    });
    let log = plane.kubectl().args(["logs", name, "--namespace", namespace.name()]).output().unwrap();
    let text = String::from_utf8(log.stdout).unwrap();
    assert_eq!(phase.unwrap(), "Succeeded", "{text}");
    text
}
