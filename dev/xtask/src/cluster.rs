//! `cargo xtask cluster`: a Kubernetes that stays until it is told to go.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use dev_cluster::{ControlPlane, Options, Tools};

use crate::parts::Part;
use crate::progress::Step;
use crate::{cache, process};

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start it and leave it running.
    Up(UpOptions),
    /// Print the shell's `export` lines for kubectl and helm on it.
    Env,
    /// End it, and what crashed tests left of theirs.
    Down,
}

/// What to start.
#[derive(Debug, Args)]
pub(crate) struct UpOptions {
    /// The API server with controllers and scheduler, without nodes.
    #[arg(long, required = true)]
    control_plane: bool,
}

/// Does it.
///
/// # Errors
/// When it cannot be done; with what to do about it.
pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Up(UpOptions { control_plane: _ }) => up(),
        Command::Env => env(),
        Command::Down => down(),
    }
}

fn folder() -> Result<PathBuf> {
    Ok(cache::root()?.join("cluster"))
}

fn up() -> Result<()> {
    let folder = folder()?;
    if folder.exists() {
        bail!("there is a cluster already; `cargo xtask cluster down` ends it");
    }
    let tools = Tools { kube: Part::Kube.path()?, etcd: Part::Etcd.path()? };
    let step = Step::begin("Starting the control plane");
    let options =
        Options { controller_manager: true, scheduler: true, folder: Some(folder), ..Options::default() };
    let plane = ControlPlane::start(&tools, options)?;
    if process::interrupted() {
        bail!("interrupted");
    }
    let url = plane.url();
    let folder = plane.leave()?;
    step.done();
    println!(
        "\n\
         The API server listens on {url}; its files and logs are in {}.\n\
         \n  \
           kubectl and helm:  eval \"$(cargo xtask cluster env)\"\n  \
           the end:           cargo xtask cluster down",
        folder.display()
    );
    Ok(())
}

fn env() -> Result<()> {
    let kubeconfig = folder()?.join("kubeconfig");
    if !kubeconfig.exists() {
        bail!("there is no cluster; `cargo xtask cluster up` starts one");
    }
    let (kube, helm) = (Part::Kube.path()?, Part::Helm.path()?);
    print!("{}", exports(&kubeconfig, [&kube, &helm]));
    Ok(())
}

fn exports(kubeconfig: &Path, programs: [&Path; 2]) -> String {
    let folders = programs.map(|program| quoted(program.parent().unwrap_or(program)));
    format!("export KUBECONFIG={}\nexport PATH={}:{}:\"$PATH\"\n", quoted(kubeconfig), folders[0], folders[1])
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn down() -> Result<()> {
    let folder = folder()?;
    let mut removed = dev_cluster::sweep()?;
    if folder.exists() {
        dev_cluster::remove(&folder)?;
        removed.push(folder);
    }
    match removed.len() {
        0 => println!("there was no cluster"),
        _ => removed.iter().for_each(|folder| println!("removed {}", folder.display())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_exports_whatever_the_folders_are_called() {
        let exports = exports(Path::new("/a b/kube'config"), [Path::new("/k/kube"), Path::new("/h/helm")]);
        assert_eq!(exports, "export KUBECONFIG='/a b/kube'\\''config'\nexport PATH='/k':'/h':\"$PATH\"\n");
    }
}
