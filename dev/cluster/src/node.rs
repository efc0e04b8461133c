//! One node: containerd, a kubelet and kube-proxy in a room of their own.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::control_plane::ControlPlane;
use crate::daemon::Daemon;
use crate::kubeconfig::{self, Credential};
use crate::network::Network;
use crate::pki::Subject;
use crate::room::{Door, Room};
use crate::tools::NodeTools;

mod files;

use files::Layout;
pub(crate) use files::PAUSE;

const CONTAINERD_LIMIT: Duration = Duration::from_secs(60);
const READY_LIMIT: Duration = Duration::from_secs(120);

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    index: u8,
    name: String,
    address: Ipv4Addr,
    layout: Layout,
    running: Mutex<Option<Running>>,
}

/// What runs on a node, in the order in which it goes.
#[derive(Debug)]
struct Running {
    proxy: Daemon,
    kubelet: Option<Daemon>,
    containerd: Daemon,
    room: Room,
}

impl Node {
    pub(crate) fn new(index: u8, plane: &ControlPlane, network: &Network, tools: &NodeTools) -> Result<Self> {
        let plan = network.plan;
        let name = format!("node{}", index + 1);
        let layout = Layout {
            folder: plane.folder().join(&name),
            cgroup: format!("modelrelay-{}-{name}", plan.prefix()),
            pods: plan.pods_of(index),
            runc: tools.find("runc")?,
            plugins: tools.find("host-local")?.parent().context("the plugins are in no folder")?.to_owned(),
            authority: plane.authority().certificate.clone(),
            dns: plan.dns_service(),
        };
        let node = Self { index, name, address: plan.node(index), layout, running: Mutex::default() };
        node.layout.write()?;
        node.write_credentials(plane)?;
        Ok(node)
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its address, which is one of this machine's network, too.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Prepares a command that runs on the node, beside its pods. It goes when the node does.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let running = self.running();
        let running = running.as_ref().with_context(|| format!("{} does not run", self.name))?;
        Ok(running.room.door().command(program))
    }

    fn write_credentials(&self, plane: &ControlPlane) -> Result<()> {
        let Self { name, address, layout, .. } = self;
        let user = format!("system:node:{name}");
        let subject = Subject {
            user: &user,
            group: Some("system:nodes"),
            addresses: &[(*address).into()],
            hosts: &[name],
        };
        let kubelet = plane.issue(name, &subject)?;
        for (from, to) in [(&kubelet.certificate, "kubelet.crt"), (&kubelet.key, "kubelet.key")] {
            fs::copy(from, layout.folder.join(to)).context("copy the kubelet's certificate")?;
        }
        let user = "system:kube-proxy";
        let proxy = plane.issue(&format!("{name}-proxy"), &Subject { user, ..Subject::default() })?;
        for (identity, file) in [(&kubelet, "kubelet.kubeconfig"), (&proxy, "proxy.kubeconfig")] {
            let path = layout.folder.join(file);
            let credential = Credential::Certificate(identity);
            kubeconfig::write(&path, &plane.url(), &plane.authority().certificate, credential)?;
        }
        Ok(())
    }

    /// Starts everything, without waiting until the node is ready.
    pub(crate) fn start(
        &self,
        plane: &ControlPlane,
        network: &Network,
        tools: &NodeTools,
        pause: &Path,
    ) -> Result<()> {
        if self.running().is_some() {
            bail!("{} runs already", self.name);
        }
        self.layout.make_cgroups()?;
        // Left by the last time when the node was killed.
        for stale in ["furnished", "containerd.sock"] {
            let path = self.layout.folder.join(stale);
            if path.exists() {
                fs::remove_file(path).context("remove what the node left")?;
            }
        }
        let room = Room::node(&self.name, plane.guarded(), &self.layout.folder)?;
        network.plug(self.index, room.door())?;
        let mut command = daemon(plane, tools, room.door(), &tools.find("containerd")?);
        command.arg("--config").arg(self.layout.folder.join("containerd.toml"));
        let mut containerd = self.spawn("containerd", &mut command, plane)?;
        let socket = self.layout.folder.join("containerd.sock");
        containerd.wait_ready(CONTAINERD_LIMIT, || UnixStream::connect(&socket).ok())?;
        load_image(tools, &self.layout.folder, pause)?;
        let kubelet = Some(self.spawn_kubelet(plane, tools, room.door())?);
        let mut command = daemon(plane, tools, room.door(), plane.kube());
        command.args([
            "kube-proxy",
            "--proxy-mode=nftables",
            &format!("--cluster-cidr={}", network.plan.pods()),
            &format!("--hostname-override={}", self.name),
            &format!("--bind-address={}", self.address),
            // The table of connections is the machine's.
            "--conntrack-max-per-core=0",
        ]);
        command.arg("--kubeconfig").arg(self.layout.folder.join("proxy.kubeconfig"));
        let proxy = self.spawn("kube-proxy", &mut command, plane)?;
        *self.running() = Some(Running { proxy, kubelet, containerd, room });
        Ok(())
    }

    /// Waits until the API server calls it ready.
    pub(crate) fn wait_ready(&self, plane: &ControlPlane) -> Result<()> {
        let path = format!("/api/v1/nodes/{}", self.name);
        let mut running = self.running();
        let running = running.as_mut().with_context(|| format!("{} does not run", self.name))?;
        let kubelet = running.kubelet.as_mut().with_context(|| format!("{} has no kubelet", self.name))?;
        kubelet.wait_ready(READY_LIMIT, || is_ready(&plane.api().find(&path).ok()??).then_some(()))
    }

    /// Kills all of it at once, as a machine that loses its power. Its containers are gone, its disk is not.
    pub(crate) fn kill(&self) {
        if let Some(Running { proxy, kubelet, containerd, room }) = self.running().take() {
            // The first of its processes takes the others along.
            drop(room);
            drop((proxy, kubelet, containerd));
        }
    }

    /// Kills the kubelet; containers go on.
    pub(crate) fn kill_kubelet(&self) {
        if let Some(running) = &mut *self.running() {
            drop(running.kubelet.take());
        }
    }

    pub(crate) fn start_kubelet(&self, plane: &ControlPlane, tools: &NodeTools) -> Result<()> {
        let mut running = self.running();
        let Some(running) = &mut *running else { bail!("{} does not run", self.name) };
        running.kubelet = Some(self.spawn_kubelet(plane, tools, running.room.door())?);
        Ok(())
    }

    fn spawn_kubelet(&self, plane: &ControlPlane, tools: &NodeTools, room: Door) -> Result<Daemon> {
        let folder = &self.layout.folder;
        let mut command = daemon(plane, tools, room, plane.kube());
        command.arg("kubelet");
        for (flag, file) in [
            ("--config", "kubelet.yaml"),
            ("--kubeconfig", "kubelet.kubeconfig"),
            ("--root-dir", "kubelet"),
            ("--cert-dir", "kubelet/pki"),
        ] {
            command.arg(flag).arg(folder.join(file));
        }
        command.arg(format!("--hostname-override={}", self.name)).arg(format!("--node-ip={}", self.address));
        self.spawn("kubelet", &mut command, plane)
    }

    fn spawn(&self, program: &str, command: &mut Command, plane: &ControlPlane) -> Result<Daemon> {
        Daemon::start(&format!("{}-{program}", self.name), command, &plane.folder().join("log"))
    }

    /// Everything of it stays when this value goes.
    pub(crate) fn leave(&self) {
        if let Some(Running { proxy, kubelet, containerd, room }) = &mut *self.running() {
            proxy.leave();
            containerd.leave();
            room.leave();
            if let Some(kubelet) = kubelet {
                kubelet.leave();
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index(&self) -> u8 {
        self.index
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.layout.folder
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let left = self.running().as_ref().is_some_and(|running| running.room.is_left());
        if !left {
            self.kill();
        }
    }
}

fn daemon(plane: &ControlPlane, tools: &NodeTools, room: Door, program: &Path) -> Command {
    let mut command = room.command(program);
    plane.guarded().mark(&mut command);
    command.env("PATH", tools.search_path());
    command
}

pub(crate) fn is_ready(node: &serde_json::Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Gives a node the images of an archive; `node` is the node's folder.
pub(crate) fn load_image(tools: &NodeTools, node: &Path, archive: &Path) -> Result<()> {
    let what = format!("load {}", archive.display());
    images(tools, node, &what, &["import".as_ref(), "--local".as_ref(), archive.as_os_str()])
}

/// Gives an image of a node one more name.
pub(crate) fn tag_image(tools: &NodeTools, node: &Path, name: &str, more: &str) -> Result<()> {
    images(tools, node, &format!("tag {name}"), &["tag".as_ref(), name.as_ref(), more.as_ref()])
}

fn images(tools: &NodeTools, node: &Path, what: &str, arguments: &[&OsStr]) -> Result<()> {
    let mut command = Command::new(tools.find("ctr")?);
    command.arg("--address").arg(node.join("containerd.sock"));
    command.args(["--namespace", "k8s.io", "images"]).args(arguments);
    let output = command.output().context("start ctr")?;
    if !output.status.success() {
        bail!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Finds the folders of the nodes of a cluster that was left.
pub(crate) fn folders(cluster: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(cluster).with_context(|| format!("list {}", cluster.display()))?;
    let mut nodes: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("containerd.sock").exists())
        .collect();
    nodes.sort();
    Ok(nodes)
}
