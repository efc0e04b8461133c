//! A real Kubernetes on one machine, for tests and demos.
//!
//! [`ControlPlane::start`] runs etcd and the API server of Kubernetes, with TLS, RBAC, service accounts and the admission
//! that clusters have, and where asked the controllers and the scheduler. Nothing of it outlives its owner: neither a
//! process nor a file, even when the owner is killed.
//!
//! | module | owns |
//! | --- | --- |
//! | [`Tools`] | where the programs are; getting them is left to `cargo xtask` |
//! | [`ControlPlane`] | the processes, their certificates, kubeconfigs of users and service accounts |
//! | [`Api`] | a small blocking client for what a harness needs; tests bring their own |
//! | [`Namespace`] | a place for one test |
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
mod control_plane;
mod daemon;
mod folder;
mod kubeconfig;
mod namespace;
mod pki;
#[cfg(feature = "proxy")]
pub mod proxy;
mod tools;
pub mod wait;

pub use api::{Api, Patch};
pub use control_plane::{ControlPlane, Options};
pub use folder::{remove, sweep};
pub use namespace::Namespace;
pub use pki::Identity;
pub use tools::{ETCD, KUBE, Tools, tool};
