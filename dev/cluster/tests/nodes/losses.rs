//! Nodes that are lost, and come back.

use dev_cluster::{ControlPlane, wait};

use crate::support::{LIMIT, busybox, condition, namespace, ready_pod, run_pod, shared};

fn wait_node(plane: &ControlPlane, node: &str, ready: &str) {
    wait::until(&format!("Ready={ready} of {node}"), LIMIT, || {
        let node = plane.api().get(&format!("/api/v1/nodes/{node}"))?;
        Ok((condition(&node, "Ready") == ready).then_some(()))
    })
    .unwrap();
}

fn container(pod: &serde_json::Value) -> String {
    pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().to_owned()
}

#[test]
fn a_node_without_its_cable_is_missed_and_keeps_its_pods() {
    let Some(cluster) = shared() else { return };
    let plane = cluster.control_plane();
    let namespace = namespace(plane, "cable");
    run_pod(plane, &namespace, "kept", &busybox(Some("node2"), &["sleep", "1000"]));
    let before = container(&ready_pod(plane, &namespace, "kept"));
    cluster.connect("node2", false).unwrap();
    wait_node(plane, "node2", "Unknown");
    cluster.connect("node2", true).unwrap();
    wait_node(plane, "node2", "True");
    assert_eq!(container(&ready_pod(plane, &namespace, "kept")), before);
}

#[test]
fn a_node_that_loses_its_power_comes_back_with_new_containers() {
    let Some(cluster) = shared() else { return };
    let namespace = namespace(cluster.control_plane(), "power");
    run_pod(cluster.control_plane(), &namespace, "lost", &busybox(Some("node2"), &["sleep", "1000"]));
    let before = container(&ready_pod(cluster.control_plane(), &namespace, "lost"));
    cluster.kill_node("node2").unwrap();
    wait_node(cluster.control_plane(), "node2", "Unknown");
    cluster.start_node("node2").unwrap();
    let plane = cluster.control_plane();
    wait::until("a new container", LIMIT, || {
        Ok((container(&ready_pod(plane, &namespace, "lost")) != before).then_some(()))
    })
    .unwrap();
}

#[test]
fn containers_outlive_their_kubelet() {
    let Some(cluster) = shared() else { return };
    let namespace = namespace(cluster.control_plane(), "kubelet");
    run_pod(cluster.control_plane(), &namespace, "kept", &busybox(Some("node1"), &["sleep", "1000"]));
    let before = container(&ready_pod(cluster.control_plane(), &namespace, "kept"));
    cluster.kill_kubelet("node1").unwrap();
    wait_node(cluster.control_plane(), "node1", "Unknown");
    cluster.start_kubelet("node1").unwrap();
    wait_node(cluster.control_plane(), "node1", "True");
    assert_eq!(container(&ready_pod(cluster.control_plane(), &namespace, "kept")), before);
}
