//! A control plane with nodes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::control_plane::{ControlPlane, Options, Site};
use crate::daemon::Daemon;
use crate::fake_nodes::{self, FakeNodes};
use crate::folder::Folder;
use crate::network::Network;
use crate::node::{self, Node, PAUSE};
use crate::oci::Image;
use crate::tools::{NodeTools, Tools};
use crate::{dns, preflight};

const MOST_NODES: u8 = 8;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Real nodes, `node1` and so on; at least one.
    pub nodes: u8,
    /// More flags for kube-apiserver.
    pub api_server_flags: Vec<String>,
    /// More flags for kube-controller-manager.
    pub controller_manager_flags: Vec<String>,
    /// The folder of the cluster, which must not be there yet; a temporary one when there is none.
    pub folder: Option<PathBuf>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { nodes: 1, api_server_flags: Vec::new(), controller_manager_flags: Vec::new(), folder: None }
    }
}

/// A running cluster; everything of it is gone when it is dropped, and when this process ends.
#[derive(Debug)]
pub struct Cluster {
    tools: NodeTools,
    pause: PathBuf,
    // Dropped in this order: nodes before what they talk to, and the guard with the control plane last but for the hub,
    // which the guard ends itself.
    nodes: Vec<Node>,
    fakes: Option<FakeNodes>,
    dns: Daemon,
    plane: ControlPlane,
    network: Network,
}

impl Cluster {
    /// Starts one and waits until its nodes are ready and names are answered.
    ///
    /// # Errors
    /// When the machine cannot run nodes, and when a part does not start; with the end of its log.
    pub fn start(tools: &Tools, node_tools: &NodeTools, options: ClusterOptions) -> Result<Self> {
        let ClusterOptions { nodes: count, api_server_flags, controller_manager_flags, folder } = options;
        if count == 0 || count > MOST_NODES {
            bail!("a cluster has 1 to {MOST_NODES} nodes, not {count}");
        }
        preflight::check_nodes_can_run()?;
        let folder = Folder::new(folder.as_deref())?;
        let network = Network::create(&folder, node_tools, count)?;
        let plan = network.plan;
        let pause = folder.path().join("pause.tar");
        pause_image(tools).pack(&pause)?;
        let site = Site {
            address: (plan.hub(), 6443).into(),
            services: plan.services(),
            api_service: plan.api_service().into(),
            hub: Some(network.hub.door()),
        };
        let options = Options {
            controller_manager: true,
            scheduler: true,
            api_server_flags,
            controller_manager_flags,
            folder: None,
        };
        let plane = ControlPlane::start_at(site, folder, tools, options)?;
        plane.bind_user("system:kube-proxy", "system:node-proxier")?;
        let mut nodes = Vec::new();
        for index in 0..count {
            let node = Node::new(index, &plane, &network, node_tools)?;
            node.start(&plane, &network, node_tools, &pause)?;
            nodes.push(node);
        }
        let dns = dns::start(&plane, &network)?;
        nodes.iter().try_for_each(|node| node.wait_ready(&plane))?;
        Ok(Self { tools: node_tools.clone(), pause, nodes, fakes: None, dns, plane, network })
    }

    /// Returns the control plane.
    #[must_use]
    pub fn control_plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Returns the nodes that are no fakes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns this machine's address in the cluster's network, at which pods reach it.
    #[must_use]
    pub fn machine(&self) -> std::net::Ipv4Addr {
        self.network.plan.machine()
    }

    /// Adds nodes that are only objects.
    ///
    /// # Errors
    /// When kwok does not start, or there are some already.
    pub fn add_fake_nodes(&mut self, kwok: &Path, count: usize) -> Result<()> {
        if self.fakes.is_some() {
            bail!("there are fake nodes already");
        }
        self.fakes = Some(FakeNodes::start(&self.plane, kwok, count)?);
        Ok(())
    }

    /// Gives a node so many GPUs and the label that such nodes have, or takes both away.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn set_gpus(&self, node: &str, count: u32) -> Result<()> {
        fake_nodes::set_gpus(&self.plane, node, count)
    }

    /// Gives every node the images of an archive.
    ///
    /// # Errors
    /// When a node refuses it.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node::load_image(&self.tools, node.folder(), archive))
    }

    /// Gives an image of every node one more name.
    ///
    /// # Errors
    /// When a node has no such image.
    pub fn tag_image(&self, name: &str, more: &str) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node::tag_image(&self.tools, node.folder(), name, more))
    }

    /// Pulls a node's network cable, or plugs it in again.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn connect(&self, node: &str, connected: bool) -> Result<()> {
        self.network.connect(self.position(node)?.0, connected)
    }

    /// Kills a node at once, with its kubelet and its containers, as a machine that loses its power.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn kill_node(&self, node: &str) -> Result<()> {
        let (_, position) = self.position(node)?;
        self.nodes[position].kill();
        Ok(())
    }

    /// Starts a node that was killed, with the disk that it had.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_node(&self, node: &str) -> Result<()> {
        let (_, position) = self.position(node)?;
        let Self { tools, pause, nodes, plane, network, .. } = self;
        nodes[position].start(plane, network, tools, pause)?;
        nodes[position].wait_ready(plane)
    }

    /// Kills a node's kubelet; its containers go on.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn kill_kubelet(&self, node: &str) -> Result<()> {
        let (_, position) = self.position(node)?;
        self.nodes[position].kill_kubelet();
        Ok(())
    }

    /// Starts a node's kubelet again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_kubelet(&self, node: &str) -> Result<()> {
        let (_, position) = self.position(node)?;
        let Self { tools, nodes, plane, .. } = self;
        nodes[position].start_kubelet(plane, tools)
    }

    fn position(&self, node: &str) -> Result<(u8, usize)> {
        let position = self.nodes.iter().position(|known| known.name() == node);
        let position = position.with_context(|| format!("there is no node {node}"))?;
        Ok((self.nodes[position].index(), position))
    }

    /// Leaves everything running, and returns the folder, which [`crate::remove`] ends.
    ///
    /// # Errors
    /// When the guard cannot be sent away.
    pub fn leave(mut self) -> Result<PathBuf> {
        self.nodes.iter().for_each(Node::leave);
        if let Some(fakes) = self.fakes {
            fakes.leave();
        }
        self.dns.leave();
        self.network.hub.leave();
        self.plane.leave()
    }
}

fn pause_image(tools: &Tools) -> Image {
    Image {
        name: PAUSE.to_owned(),
        entrypoint: vec!["/pause".to_owned()],
        user: "65535:65535".to_owned(),
        files: vec![(tools.beside("pause"), "/pause".to_owned())],
    }
}

/// Gives every node of a cluster that was left the images of an archive, and returns how many nodes there are.
///
/// # Errors
/// When a node refuses it.
pub fn load_image(tools: &NodeTools, cluster: &Path, archive: &Path) -> Result<usize> {
    let nodes = node::folders(cluster)?;
    nodes.iter().try_for_each(|node| node::load_image(tools, node, archive))?;
    Ok(nodes.len())
}
