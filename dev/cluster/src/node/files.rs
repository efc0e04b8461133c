//! The settings files and the control groups of a node.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// The image that holds a pod's namespaces open.
pub(crate) const PAUSE: &str = "localhost/pause:1";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Where everything of a node is, and what it has to know.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) folder: PathBuf,
    /// The control group that all of its pods are in.
    pub(crate) cgroup: String,
    /// The addresses of its pods.
    pub(crate) pods: String,
    pub(crate) runc: PathBuf,
    /// The folder of the plugins for pod networks.
    pub(crate) plugins: PathBuf,
    pub(crate) authority: PathBuf,
    pub(crate) dns: Ipv4Addr,
}

impl Layout {
    /// Writes the files.
    pub(crate) fn write(&self) -> Result<()> {
        let files = [
            ("containerd.toml", self.containerd()),
            ("kubelet.yaml", self.kubelet().to_string()),
            ("cni/10-pods.conflist", self.pod_network().to_string()),
            ("resolv.conf", format!("nameserver {}\n", self.dns)),
            // The guard reads it.
            ("cgroup", format!("{}\n", self.cgroup)),
        ];
        fs::create_dir_all(self.folder.join("cni")).context("create a node's folder")?;
        fs::create_dir_all(self.folder.join("kubelet/plugins")).context("create a node's folder")?;
        files
            .into_iter()
            .try_for_each(|(name, text)| fs::write(self.folder.join(name), text))
            .context("write a node's settings")
    }

    /// Makes the control group in each hierarchy that there is.
    pub(crate) fn make_cgroups(&self) -> Result<()> {
        for hierarchy in hierarchies(Path::new(CGROUPS))? {
            let group = hierarchy.join(&self.cgroup);
            fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn containerd(&self) -> String {
        format!(
            r#"version = 3
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
  # Where one may not make a process less likely to be killed than this one, a container could not start.
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{networks}"
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        SystemdCgroup = false
[plugins.'io.containerd.nri.v1.nri']
  disable = true
"#,
            root = self.path("containerd/root"),
            state = self.path("containerd/state"),
            socket = self.path("containerd.sock"),
            plugins = self.plugins.display(),
            networks = self.path("cni"),
            runc = self.runc.display(),
        )
    }

    /// Each pod has a cable to its node, and everything else is routed: no bridge whose packets would have to be shown to
    /// the packet filter.
    fn pod_network(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [{
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.path("addresses"),
                    "ranges": [[{ "subnet": self.pods }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }, { "type": "portmap", "backend": "nftables", "capabilities": { "portMappings": true } }],
        })
    }

    fn kubelet(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.cgroup),
            "failSwapOn": false,
            "containerRuntimeEndpoint": format!("unix://{}", self.path("containerd.sock")),
            "podLogsDir": self.path("logs"),
            "tlsCertFile": self.path("kubelet.crt"),
            "tlsPrivateKeyFile": self.path("kubelet.key"),
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": self.authority },
            },
            "authorization": { "mode": "Webhook" },
            "clusterDNS": [self.dns],
            "clusterDomain": "cluster.local",
            "resolvConf": self.path("resolv.conf"),
            // The machine is not the node's alone, so what is free on it says nothing about the node.
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "volumePluginDir": self.path("kubelet/plugins"),
            "serializeImagePulls": false,
            "nodeStatusUpdateFrequency": "2s",
        })
    }
}

/// Finds the hierarchies of control groups: one for each controller, or one for all.
fn hierarchies(root: &Path) -> Result<Vec<PathBuf>> {
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let entries = fs::read_dir(root).context("list the control groups")?;
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let found: Vec<_> =
        folders.map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists()).collect();
    if found.is_empty() {
        bail!("no control groups are mounted at {}", root.display());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_are_found_in_both_of_their_versions() {
        let root = tempfile::tempdir().unwrap();
        assert!(hierarchies(root.path()).is_err());
        for controller in ["cpu", "memory"] {
            fs::create_dir(root.path().join(controller)).unwrap();
            fs::write(root.path().join(controller).join("cgroup.procs"), "").unwrap();
        }
        let mut found = hierarchies(root.path()).unwrap();
        found.sort();
        assert_eq!(found, [root.path().join("cpu"), root.path().join("memory")]);
        fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(hierarchies(root.path()).unwrap(), [root.path().to_owned()]);
    }
}
