//! A real Kubernetes on one machine, for tests and demos.
//!
//! [`ControlPlane::start`] runs etcd and the API server of Kubernetes, with TLS, RBAC, service accounts and the admission
//! that clusters have, and where asked the controllers and the scheduler. [`Cluster::start`] adds nodes with containerd, a
//! kubelet and kube-proxy, and a name server; it takes root. Nothing of either outlives its owner: neither processes nor
//! mounts, networks, control groups or files, even when the owner is killed.
//!
//! | module | owns |
//! | --- | --- |
//! | [`Tools`], [`NodeTools`] | where the programs are; getting them is left to `cargo xtask` |
//! | [`ControlPlane`] | the processes, their certificates, kubeconfigs of users and service accounts |
//! | [`Cluster`], [`Node`] | nodes in namespaces of their own, in a network that this machine is part of |
//! | [`FakeNodes`] | nodes that are only objects, by the hundred |
//! | [`Image`] | images packed by hand |
//! | [`Api`] | a small blocking client for what a harness needs; tests bring their own |
//! | [`Namespace`] | a place for one test |
//! | `proxy` (feature) | harm to the API server's clients, on cue |
//! | [`wait`] | waiting that ends |
//!
//! The tests of one program share a control plane in a `static`:
//!
//! ```no_run
//! use std::sync::OnceLock;
//!
//! use dev_cluster::{ControlPlane, Options, Tools};
//!
//! fn control_plane() -> Option<&'static ControlPlane> {
//!     static SHARED: OnceLock<Option<ControlPlane>> = OnceLock::new();
//!     let start = |tools| ControlPlane::start(&tools, Options::default()).expect("it starts");
//!     SHARED.get_or_init(|| Tools::from_environment().map(start)).as_ref()
//! }
//! ```

mod api;
mod cluster;
mod control_plane;
mod daemon;
mod dns;
mod fake_nodes;
mod folder;
mod kubeconfig;
mod namespace;
mod network;
mod node;
mod oci;
mod pki;
mod preflight;
#[cfg(feature = "proxy")]
pub mod proxy;
mod room;
mod tools;
pub mod wait;

pub use api::{Api, Patch};
pub use cluster::{Cluster, ClusterOptions, load_image};
pub use control_plane::{ControlPlane, Options};
pub use fake_nodes::FakeNodes;
pub use folder::{remove, runs, sweep};
pub use namespace::Namespace;
pub use node::Node;
pub use oci::Image;
pub use pki::Identity;
pub use preflight::check_nodes_can_run;
pub use tools::{ETCD, KUBE, NODE_PATH, NodeTools, Tools, tool};
