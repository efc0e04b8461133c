//! What is built from Go modules: Kubernetes itself and tools around it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{self, sha256_of};
use crate::progress::Step;
use crate::{process, workspace};

const KUBERNETES: &str = "v1.36.2";
const KUBERNETES_MINOR: &str = "36";
// The names that the file with all programs is started by.
const PROGRAMS: &[&str] =
    &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];

/// A program that `go install` builds.
#[derive(Debug)]
pub(crate) struct Package {
    program: &'static str,
    path: &'static str,
    version: &'static str,
}

pub(crate) const HELM: Package =
    Package { program: "helm", path: "helm.sh/helm/v4/cmd/helm", version: "v4.3.1" };
pub(crate) const KWOK: Package =
    Package { program: "kwok", path: "sigs.k8s.io/kwok/cmd/kwok", version: "v0.8.0" };

/// Returns the file with all programs of Kubernetes. It stands beside links named after each, a name server for
/// clusters, and the program of the pause image.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn kube() -> Result<PathBuf> {
    let module = workspace::root().join("dev/cluster/tools");
    let mut sources = Vec::new();
    for name in ["go.mod", "go.sum", "kube/main.go", "coredns/main.go", "pause/main.go"] {
        let file = module.join(name);
        sources.extend(fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    let sum = sha256_of(&mut sources.as_slice())?;
    let folder = cache::folder(&format!("kube-{KUBERNETES}-{}", &sum[..16]), |folder| {
        let mut go = go()?;
        let step = Step::begin(format!(
            "Building Kubernetes {KUBERNETES}, once; it takes about five minutes on two cores"
        ));
        // Without its version the API server would claim to be v0.0.0, and clients would treat it as that.
        let version = "k8s.io/component-base/version";
        let flags = format!(
            "-s -w -X {version}.gitVersion={KUBERNETES} -X {version}.gitMajor=1 -X {version}.gitMinor={KUBERNETES_MINOR}"
        );
        go.current_dir(&module).args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(folder).args([
            "./kube",
            "./coredns",
            "./pause",
        ]);
        process::capture("go build", &mut go, || {})?;
        PROGRAMS
            .iter()
            .try_for_each(|name| symlink("kube", folder.join(name)))
            .context("link the programs")?;
        step.done();
        Ok(())
    })?;
    Ok(folder.join("kube"))
}

/// Returns the package's program, building it first when it is not there.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn install(package: &Package) -> Result<PathBuf> {
    let Package { program, path, version } = package;
    let folder = cache::folder(&format!("{program}-{version}"), |folder| {
        let mut go = go()?;
        let step = Step::begin(format!("Building {program} {version}, once; it takes minutes"));
        go.env("GOBIN", folder).args(["install", "-trimpath", "-ldflags", "-s -w"]);
        process::capture("go install", go.arg(format!("{path}@{version}")), || {})?;
        step.done();
        Ok(())
    })?;
    Ok(folder.join(program))
}

fn go() -> Result<Command> {
    let found = super::on_path("go").or_else(|| {
        // Where its own installer puts it, which not every shell's PATH has.
        Some(Path::new("/usr/local/go/bin/go").to_owned()).filter(|path| path.is_file())
    });
    let program = found.context(
        "Kubernetes and its tools are built from Go modules: install Go 1.26 or newer from https://go.dev/dl and put `go` on PATH",
    )?;
    let mut go = Command::new(program);
    // A workspace or flags of the user's own projects are not for these modules.
    go.env("CGO_ENABLED", "0").env("GOWORK", "off").env("GOFLAGS", "-buildvcs=false");
    Ok(go)
}
