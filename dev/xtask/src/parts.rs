//! The real parts that the demo, the tests and the benchmark use, and how each is had from
//! the package registries that the machine is set up for.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

mod apt_sources;
mod cargo_deny;
pub(crate) mod debian;
mod go;
mod python;

/// A part that can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// llama.cpp's server: the one on PATH, else Debian's.
    LlamaServer,
    /// Gemma 3 270M as a GGUF file.
    Model,
    /// A GGUF file with random weights that loads in a tenth of a second.
    TinyModel,
    /// A Python that can import `openai` and `anthropic`.
    PythonSdks,
    /// The one on PATH, else Debian's.
    Nginx,
    /// The one on PATH, else Debian's.
    Promtool,
    /// The one on PATH, else Debian's.
    Prometheus,
    /// The dependency checker.
    CargoDeny,
    /// All programs of Kubernetes in one file.
    Kube,
    /// Debian's.
    Etcd,
    /// Built from its Go module.
    Helm,
    /// What pretends to be nodes, built from its Go module.
    Kwok,
    /// What nodes need beside Kubernetes: the folders of containerd, runc, network plugins, `nft` and `ip`, as in PATH.
    NodePath,
    /// Debian's static one, for the pods of tests.
    Busybox,
    /// The version that Argo CD speaks: the one on PATH, else Debian's.
    Lua,
    /// The one on PATH, else Debian's.
    Buildah,
}

impl Part {
    /// Returns the path of the part's program or file, fetching it first when it is not there.
    ///
    /// # Errors
    /// When it cannot be had on this machine.
    pub(crate) fn path(self) -> Result<PathBuf> {
        match self {
            Self::LlamaServer => program("llama-server", &debian::LLAMA_SERVER),
            Self::Model => python::model(),
            Self::TinyModel => python::tiny_model(),
            Self::PythonSdks => python::sdks(),
            Self::Nginx => program("nginx", &debian::NGINX),
            Self::Promtool => program("promtool", &debian::PROMTOOL),
            Self::Prometheus => program("prometheus", &debian::PROMETHEUS),
            Self::CargoDeny => cargo_deny::install(),
            Self::Kube => go::kube(),
            Self::Etcd => debian::unpack(&debian::ETCD),
            Self::Helm => go::install(&go::HELM),
            Self::Kwok => go::install(&go::KWOK),
            Self::NodePath => node_path(),
            Self::Busybox => debian::unpack(&debian::BUSYBOX),
            Self::Lua => program("lua5.1", &debian::LUA),
            Self::Buildah => program("buildah", &debian::BUILDAH),
        }
    }
}

fn node_path() -> Result<PathBuf> {
    let programs = [
        // Before containerd's folder, which has a runc for newer machines.
        debian::unpack(&debian::RUNC)?,
        debian::unpack(&debian::CONTAINERD)?,
        debian::unpack(&debian::CNI_PLUGINS)?,
        program("nft", &debian::NFT)?,
        program("ip", &debian::IP)?,
    ];
    let folders = programs.iter().filter_map(|program| program.parent());
    Ok(env::join_paths(folders).context("a folder's name has a colon")?.into())
}

fn program(name: &str, package: &debian::Package) -> Result<PathBuf> {
    on_path(name).map_or_else(|| debian::unpack(package), Ok)
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}
