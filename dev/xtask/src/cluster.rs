//! `cargo xtask cluster`: a Kubernetes that stays until it is told to go.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use dev_cluster::{Cluster, ClusterOptions, ControlPlane, FakeNodes, NodeTools, Options, Tools};

use crate::parts::Part;
use crate::progress::Step;
use crate::{cache, images, process, workspace};

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start it and leave it running.
    Up(UpOptions),
    /// Print the shell's `export` lines for kubectl and helm on it.
    Env,
    /// Give its nodes the images of archives that docker or buildah wrote.
    LoadImages {
        /// The archives.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Build the images, give them to its nodes, and install the operator by its charts.
    Install {
        /// Cargo's profile; `dev` builds sooner, and the images are several times as large.
        #[arg(long, default_value = "release")]
        profile: String,
    },
    /// End it, and what crashed tests left of theirs.
    Down,
}

/// What to start.
#[derive(Debug, Args)]
pub(crate) struct UpOptions {
    /// The API server with controllers and scheduler, without real nodes.
    #[arg(long, conflicts_with = "nodes")]
    control_plane: bool,
    /// Real nodes, on each of which pods run.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    nodes: u8,
    /// Nodes that are only objects, whose pods are called running.
    #[arg(long, value_name = "N", default_value_t = 0)]
    fake_nodes: usize,
}

/// Does it.
///
/// # Errors
/// When it cannot be done; with what to do about it.
pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Up(options) => up(options),
        Command::Env => env(),
        Command::LoadImages { archives } => load_images(archives),
        Command::Install { profile } => install(profile),
        Command::Down => down(),
    }
}

fn folder() -> Result<PathBuf> {
    Ok(cache::root()?.join("cluster"))
}

fn kubeconfig() -> Result<PathBuf> {
    let kubeconfig = folder()?.join("kubeconfig");
    if !kubeconfig.exists() {
        bail!("there is no cluster; `cargo xtask cluster up` starts one");
    }
    Ok(kubeconfig)
}

fn node_tools() -> Result<NodeTools> {
    Ok(NodeTools { path: Part::NodePath.path()?.into() })
}

fn up(options: &UpOptions) -> Result<()> {
    let folder = folder()?;
    if folder.exists() {
        bail!("there is a cluster already; `cargo xtask cluster down` ends it");
    }
    if !options.control_plane {
        // Before minutes are spent on the parts.
        dev_cluster::check_nodes_can_run()?;
    }
    let tools = Tools { kube: Part::Kube.path()?, etcd: Part::Etcd.path()? };
    let kwok = if options.fake_nodes > 0 { Some(Part::Kwok.path()?) } else { None };
    let (url, folder) = if options.control_plane {
        let step = Step::begin("Starting the control plane");
        let settings =
            Options { controller_manager: true, scheduler: true, folder: Some(folder), ..Options::default() };
        let plane = ControlPlane::start(&tools, settings)?;
        let fakes = kwok.map(|kwok| FakeNodes::start(&plane, &kwok, options.fake_nodes)).transpose()?;
        finish(step)?;
        if let Some(fakes) = fakes {
            fakes.leave();
        }
        (plane.url(), plane.leave()?)
    } else {
        let node_tools = node_tools()?;
        let step = Step::begin("Starting the cluster");
        let cluster_options =
            ClusterOptions { nodes: options.nodes, folder: Some(folder), ..ClusterOptions::default() };
        let mut cluster = Cluster::start(&tools, &node_tools, cluster_options)?;
        if let Some(kwok) = kwok {
            cluster.add_fake_nodes(&kwok, options.fake_nodes)?;
        }
        finish(step)?;
        (cluster.control_plane().url(), cluster.leave()?)
    };
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

/// Ends a step that went well.
///
/// # Errors
/// When the user wants to stop.
pub(crate) fn finish(step: Step) -> Result<()> {
    if process::interrupted() {
        bail!("interrupted");
    }
    step.done();
    Ok(())
}

fn load_images(archives: &[PathBuf]) -> Result<()> {
    kubeconfig()?;
    let (tools, cluster) = (node_tools()?, folder()?);
    for archive in archives {
        let nodes = dev_cluster::load_image(&tools, &cluster, archive)?;
        if nodes == 0 {
            bail!("the cluster has no real nodes");
        }
        println!("{}: loaded on {nodes} nodes", archive.display());
    }
    Ok(())
}

fn install(profile: &str) -> Result<()> {
    let kubeconfig = kubeconfig()?;
    let helm = Part::Helm.path()?;
    load_images(&images::build(images::Name::value_variants(), profile, None)?)?;
    install_charts(&helm, &kubeconfig)?;
    println!(
        "\nThe operator runs. A relay and a pool of workers, for instance:\n  \
         kubectl apply -f deploy/examples/minimal.yaml"
    );
    Ok(())
}

/// Installs or upgrades both charts, with the images that [`images::build`] makes, and waits until the operator runs.
///
/// # Errors
/// When helm fails; with the end of what it printed.
pub(crate) fn install_charts(helm: &Path, kubeconfig: &Path) -> Result<()> {
    // The charts' names for images have no registry of their own.
    let operator = ["--namespace=modelrelay-system", "--create-namespace", "--set=registry=localhost"];
    for (chart, flags) in [("modelrelay-crds", &[][..]), ("modelrelay", &operator)] {
        let step = Step::begin(format!("Installing the chart {chart}"));
        let mut command = std::process::Command::new(helm);
        command.env("KUBECONFIG", kubeconfig).args(["upgrade", "--install", chart]);
        command
            .arg(workspace::root().join("charts").join(chart))
            .args(flags)
            .args(["--wait", "--timeout=2m"]);
        process::capture("helm", &mut command, || {})?;
        step.done();
    }
    Ok(())
}

fn env() -> Result<()> {
    let kubeconfig = kubeconfig()?;
    let (kube, helm) = (Part::Kube.path()?, Part::Helm.path()?);
    print!("{}", exports(&kubeconfig, [&kube, &helm]));
    Ok(())
}

/// Returns the shell's lines for kubectl and helm on a cluster.
pub(crate) fn exports(kubeconfig: &Path, programs: [&Path; 2]) -> String {
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
