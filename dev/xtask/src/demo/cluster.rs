//! `cargo xtask demo --cluster`: the same answer, from a real Kubernetes with the operator.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use dev_cluster::{Cluster, ClusterOptions, Image, NodeTools, Tools};

use super::{MODEL, Options, Profile, QUESTION, answer, requests, stay_up};
use crate::clock::Stopwatch;
use crate::parts::{Part, debian};
use crate::progress::Step;
use crate::{cluster, images, process, workspace};

const NODE: &str = "node1";
const ENGINE: &str = "localhost/llama-server:1";
const OBJECTS: &str = include_str!("objects.yaml");

/// Runs the demo until it is over or the user wants to stop; nothing of the cluster outlives it.
///
/// # Errors
/// When the machine cannot run nodes, a part cannot be had or does not start, or there is no answer.
pub(super) fn run(options: &Options, profile: Profile) -> Result<()> {
    // Before minutes are spent on the parts.
    dev_cluster::check_nodes_can_run()?;
    let tools = Tools { kube: Part::Kube.path()?, etcd: Part::Etcd.path()? };
    let node_tools = NodeTools { path: Part::NodePath.path()?.into() };
    let (helm, model) = (Part::Helm.path()?, Part::Model.path()?);
    let folder = tempfile::Builder::new().prefix("modelrelay-demo-").tempdir().context("create a folder")?;
    let engine = pack_engine(folder.path())?;
    let archives = match profile {
        Profile::Release => images::build(images::Name::value_variants(), "release", None)?,
        Profile::Dev => images::built(),
    };

    let step = Step::begin("Starting a Kubernetes with one node");
    let kubernetes = Cluster::start(&tools, &node_tools, ClusterOptions::default())?;
    // As the discovery of a vendor's GPUs does.
    kubernetes.set_gpus(NODE, 1)?;
    cluster::finish(step)?;
    let step = Step::begin("Giving the node the images");
    for archive in archives.iter().chain([&engine]) {
        kubernetes.load_image(archive)?;
    }
    cluster::finish(step)?;
    let kubeconfig = kubernetes.control_plane().kubeconfig();
    cluster::install_charts(&helm, kubeconfig)?;

    let objects = folder.path().join("objects.yaml");
    fs::write(&objects, objects_for(&model)?).context("write the objects")?;
    let kubectl = |arguments: &[&str]| {
        let mut command = kubernetes.control_plane().kubectl();
        process::capture("kubectl", command.args(arguments), || {})
    };
    let watch = Stopwatch::start();
    let step = Step::begin("kubectl apply: a ModelRelay, and a WorkerPool with llama-server on the GPU node");
    kubectl(&["apply", "--filename", &objects.display().to_string()])?;
    kubectl(&["wait", "--for=condition=Ready", "modelrelay/main", "workerpool/gpu", "--timeout=5m"])?;
    step.done();
    println!("\n{}", kubectl(&["get", "modelrelays,workerpools,pods"])?);
    // This machine is part of the cluster's network, so that a Service answers at its own address.
    let address = kubectl(&["get", "service", "main", "--output=jsonpath={.spec.clusterIP}"])?;
    let url = format!("http://{address}");
    println!("asking {MODEL} through the Service, from outside the cluster: {QUESTION}\n");
    let first = answer(&url, MODEL, watch)?;
    println!("from `kubectl apply` to the first token: {:.1} s", first.as_secs_f64());
    if options.once {
        return Ok(());
    }
    print!("{}{}", look_around(kubeconfig, &helm)?, requests(&url, MODEL));
    stay_up(&mut [])
}

/// Packs Debian's llama-server with what it needs to start, and the template for the demo's model.
fn pack_engine(folder: &Path) -> Result<PathBuf> {
    let start = debian::start(&debian::LLAMA_SERVER)?;
    let mut files = start.files()?;
    files.push((workspace::sources().join("demo/chat.jinja"), "/chat.jinja".to_owned()));
    let user = "65532:65532".to_owned();
    let image = Image { name: ENGINE.to_owned(), entrypoint: start.entrypoint(), user, files };
    let archive = folder.join("llama-server.tar");
    image.pack(&archive)?;
    Ok(archive)
}

/// Returns the objects for a model that stands on the node, whose files are this machine's.
fn objects_for(model: &Path) -> Result<String> {
    let model = model.canonicalize().context("find the model")?;
    let (folder, file) = model.parent().zip(model.file_name()).context("the model has no folder")?;
    // JSON's strings are YAML's.
    let quoted = serde_json::to_string(&folder).context("the model's folder is not UTF-8")?;
    let file = file.to_str().context("the model's name is not UTF-8")?;
    Ok(OBJECTS.replace("path: MODEL_FOLDER", &format!("path: {quoted}")).replace("MODEL_FILE", file))
}

fn look_around(kubeconfig: &Path, helm: &Path) -> Result<String> {
    let exports = cluster::exports(kubeconfig, [&Part::Kube.path()?, helm]);
    let exports: String = exports.lines().map(|line| format!("    {line}\n")).collect();
    Ok(format!(
        "\nThe cluster stays until Ctrl-C. To look around, in another shell:\n\n{exports}    \
         kubectl get modelrelays,workerpools --output=wide\n    \
         kubectl describe workerpool gpu\n    \
         kubectl get pods --output=wide --all-namespaces\n    \
         kubectl logs --selector=app.kubernetes.io/name=modelrelay-relay --tail=5\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_name_the_models_file_in_its_folder_whatever_they_are_called() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().canonicalize().unwrap().join("a: \"b\" #c");
        fs::create_dir(&folder).unwrap();
        let model = folder.join("tiny.gguf");
        fs::write(&model, "").unwrap();
        let objects = objects_for(&model).unwrap();
        let path = objects.lines().find_map(|line| line.trim().strip_prefix("path: \"")).unwrap();
        assert!(path.ends_with(r#"/a: \"b\" #c""#), "{path}");
        assert!(objects.contains("- /models/tiny.gguf\n") && !objects.contains("- /models/MODEL_FILE"));
    }
}
