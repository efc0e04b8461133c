//! The programs that a cluster is made of.

use std::env;
use std::io::Write;
use std::path::PathBuf;

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
