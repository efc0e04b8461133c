//! The programs that a cluster is made of.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Tools {
    /// All programs of Kubernetes in one file, which `dev/cluster/tools` builds.
    pub kube: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
}

/// The variable that names [`Tools::kube`].
pub const KUBE: &str = "MODELRELAY_KUBE";
/// The variable that names [`Tools::etcd`].
pub const ETCD: &str = "MODELRELAY_ETCD";

impl Tools {
    /// Finds the programs through the environment that `cargo xtask test` sets. Without them a test cannot run: it says
    /// so on standard error and is to return.
    ///
    /// # Panics
    /// When a program is missing where `REQUIRE_ALL=1`.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        Some(Self { kube: tool(KUBE)?, etcd: tool(ETCD)? })
    }
}

/// What nodes need beside [`Tools`].
#[derive(Debug, Clone)]
pub struct NodeTools {
    /// Folders with containerd, its shim and its command line, runc, the plugins for pod networks, `nft` and `ip`, in the form
    /// of `PATH`. What is in none of them is looked for on `PATH`.
    pub path: OsString,
}

/// The variable that names [`NodeTools::path`].
pub const NODE_PATH: &str = "MODELRELAY_NODE_PATH";

impl NodeTools {
    /// Finds the programs as [`Tools::from_environment`] does.
    ///
    /// # Panics
    /// When they are missing where `REQUIRE_ALL=1`.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        Some(Self { path: tool(NODE_PATH)?.into_os_string() })
    }

    /// Returns where a node's programs look for others.
    pub(crate) fn search_path(&self) -> OsString {
        let mut path = self.path.clone();
        for folders in [env::var_os("PATH").unwrap_or_default(), "/usr/sbin:/usr/bin:/sbin:/bin".into()] {
            path.push(":");
            path.push(folders);
        }
        path
    }

    pub(crate) fn find(&self, program: &str) -> Result<PathBuf> {
        let path = self.search_path();
        let mut found = env::split_paths(&path).map(|folder| folder.join(program));
        found.find(|path| path.is_file()).with_context(|| format!("{program} is not there"))
    }
}

impl Tools {
    /// Returns what stands beside Kubernetes.
    pub(crate) fn beside(&self, program: &str) -> PathBuf {
        self.kube.with_file_name(program)
    }
}

/// Finds one more program as [`Tools::from_environment`] does.
///
/// # Panics
/// When it is missing where `REQUIRE_ALL=1`.
#[must_use]
pub fn tool(variable: &str) -> Option<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Some(path.into());
    }
    let text = format!("SKIPPED: a test on a real cluster needs {variable}; `cargo xtask test` sets it");
    assert!(env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "{text}");
    // Not by a macro: what those print is shown for failed tests only.
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
    None
}
