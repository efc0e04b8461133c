//! Nodes that are only objects, whose pods kwok calls running.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::api::Patch;
use crate::control_plane::ControlPlane;
use crate::daemon::Daemon;
use crate::node::is_ready;
use crate::wait;

const LIMIT: Duration = Duration::from_secs(120);
const STAGES: &str = include_str!("stages.yaml");
const HANDS: usize = 4;

/// Fake nodes `fake-0`, `fake-1` and so on. They are labelled `type=fake` and tainted `fake:NoSchedule`, and have eight GPUs
/// each and the label that nodes with GPUs have.
#[derive(Debug)]
pub struct FakeNodes {
    kwok: Daemon,
}

impl FakeNodes {
    /// Adds so many, and waits until they are ready.
    ///
    /// # Errors
    /// When kwok does not start, or the API server refuses a node.
    pub fn start(plane: &ControlPlane, kwok: &Path, count: usize) -> Result<Self> {
        let stages = plane.folder().join("kwok.yaml");
        fs::write(&stages, STAGES).context("write kwok's settings")?;
        let mut command = plane.guarded().command(kwok);
        // It would make a folder there.
        command
            .env("HOME", plane.folder())
            .arg("--config")
            .arg(stages)
            .arg("--kubeconfig")
            .arg(plane.kubeconfig())
            .args([
                "--manage-all-nodes=false",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                "--node-lease-duration-seconds=40",
                "--cidr=10.0.0.1/16",
            ]);
        let mut kwok = Daemon::start("kwok", &mut command, &plane.folder().join("log"))?;
        let indexes: Vec<usize> = (0..count).collect();
        thread::scope(|scope| {
            let parts = indexes.chunks(count.div_ceil(HANDS).max(1));
            let hands: Vec<_> = parts
                .map(|part| scope.spawn(move || part.iter().try_for_each(|&index| add(plane, index))))
                .collect();
            hands.into_iter().try_for_each(|hand| hand.join().ok().context("a thread ended early")?)
        })?;
        kwok.wait_ready(LIMIT, || (ready(plane).ok()? >= count).then_some(()))?;
        Ok(Self { kwok })
    }

    /// Leaves them, for as long as the cluster stays.
    pub fn leave(mut self) {
        self.kwok.leave();
    }
}

fn ready(plane: &ControlPlane) -> Result<usize> {
    let list = plane.api().get("/api/v1/nodes?labelSelector=type%3Dfake")?;
    let nodes = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(nodes.iter().filter(|node| is_ready(node)).count())
}

fn add(plane: &ControlPlane, index: usize) -> Result<()> {
    let name = format!("fake-{index}");
    let has = json!({ "cpu": "64", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": "8" });
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": { "kwok.x-k8s.io/node": "fake" },
            "labels": {
                "type": "fake",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "nvidia.com/gpu.present": "true",
            },
        },
        "spec": { "taints": [{ "key": "fake", "effect": "NoSchedule" }] },
        "status": {
            "capacity": has,
            "allocatable": has,
            "addresses": [{ "type": "Hostname", "address": name }],
        },
    });
    plane.api().create("/api/v1/nodes", &node)?;
    Ok(())
}

/// Gives a node so many GPUs, or takes them away, as the device plugin and the feature discovery of the maker do.
pub(crate) fn set_gpus(plane: &ControlPlane, node: &str, count: u32) -> Result<()> {
    let path = format!("/api/v1/nodes/{node}");
    let (label, amount) =
        if count == 0 { (json!(null), json!(null)) } else { (json!("true"), json!(count.to_string())) };
    let status =
        json!({ "capacity": { "nvidia.com/gpu": amount }, "allocatable": { "nvidia.com/gpu": amount } });
    plane.api().patch(&format!("{path}/status"), Patch::Merge, &json!({ "status": status }))?;
    let labels = json!({ "nvidia.com/gpu.present": label });
    plane.api().patch(&path, Patch::Merge, &json!({ "metadata": { "labels": labels } }))?;
    // The kubelet writes the same status, and what it does not know stays.
    wait::until("the node's GPUs", LIMIT, || {
        let known = plane.api().get(&path)?["status"]["allocatable"]["nvidia.com/gpu"].clone();
        Ok((known == amount).then_some(()))
    })
}
