//! Helm on the charts.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use clap::Parser as _;
use modelrelay_operator::cache::Scope;
use modelrelay_operator::cli::{self, Cli};
use serde_json::Value;

use crate::workspace;

pub(crate) type Manifests = Vec<Value>;

/// Helm in a folder of its own, without anybody's plugins and repositories.
pub(crate) fn helm() -> Option<Command> {
    let mut command = Command::new(dev_cluster::tool("MODELRELAY_HELM")?);
    for variable in ["HELM_CONFIG_HOME", "HELM_CACHE_HOME", "HELM_DATA_HOME", "HELM_PLUGINS"] {
        command.env(variable, std::env::temp_dir().join("modelrelay-no-helm"));
    }
    command.current_dir(workspace());
    Some(command)
}

fn run(arguments: &[&str]) -> Option<Output> {
    Some(helm()?.args(arguments).output().unwrap())
}

fn succeed(arguments: &[&str]) -> Option<String> {
    let output = run(arguments)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    Some(text(&output.stdout))
}

/// Renders a chart, without its tests.
pub(crate) fn template(chart: &str, arguments: &[&str]) -> Option<Manifests> {
    let chart = format!("charts/{chart}");
    let fixed = ["template", "modelrelay", &chart, "--namespace", "modelrelay-system", "--skip-tests"];
    let text = succeed(&[&fixed[..], arguments].concat())?;
    Some(documents(&text))
}

fn documents(text: &str) -> Manifests {
    let documents = text.split("\n---\n").map(|document| serde_yaml::from_str::<Value>(document).unwrap());
    documents.filter(|document| !document.is_null()).collect()
}

/// The files of `ci/`.
pub(crate) fn example_values() -> Vec<PathBuf> {
    let folder = workspace().join("charts/modelrelay/ci");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn helm_finds_nothing_wrong_with_the_charts_whatever_the_example_values() {
    let lint = |chart: &str, values: &[&str]| succeed(&[&["lint", "--strict", chart][..], values].concat());
    if lint("charts/modelrelay-crds", &[]).is_none() {
        return;
    }
    lint("charts/modelrelay", &[]);
    let examples = example_values();
    assert!(examples.len() >= 4);
    for values in examples {
        lint("charts/modelrelay", &["--values", values.to_str().unwrap()]);
    }
}

#[test]
fn both_charts_render_what_is_there_once_each() {
    for values in example_values() {
        let Some(manifests) = template("modelrelay", &["--values", values.to_str().unwrap()]) else { return };
        let mut names: Vec<_> = manifests
            .iter()
            .map(|manifest| {
                let metadata = &manifest["metadata"];
                (
                    manifest["kind"].to_string(),
                    metadata["namespace"].to_string(),
                    metadata["name"].to_string(),
                )
            })
            .collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "{values:?}");
        assert!(names.iter().any(|(kind, _, _)| kind == "\"Deployment\""), "{values:?}");
    }
}

#[test]
fn the_crd_chart_holds_the_crds_and_keeps_them() {
    let Some(manifests) = template("modelrelay-crds", &[]) else { return };
    let crds = modelrelay_operator::api::schema::crds().map(|crd| serde_json::to_value(crd).unwrap());
    assert_eq!(manifests.len(), crds.len());
    for (manifest, crd) in manifests.iter().zip(&crds) {
        assert_eq!(manifest["metadata"], crd["metadata"]);
        assert_eq!(manifest["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        assert_eq!(manifest["spec"]["names"], crd["spec"]["names"]);
    }
}

#[test]
fn wrong_values_are_refused_before_anything_is_rendered() {
    let table = [
        ("replica=3", "additional properties 'replica' not allowed"),
        ("operator.image.registry=x", "additional properties 'registry' not allowed"),
        ("relay.image.pullPolicy=Always", "additional properties 'pullPolicy' not allowed"),
        ("replicas=two", "got string, want integer"),
        ("replicas=-1", "minimum"),
        ("namespaces=a", "got string, want array"),
        ("namespaces={A}", "does not match pattern"),
        ("imagePullSecrets={a}", "got string, want object"),
        ("operator.image.pullPolicy=Sometimes", "value must be one of"),
        ("operator.image.tag=a b", "does not match pattern"),
        ("worker.image.digest=latest", "does not match pattern"),
        ("registry=https://a", "does not match pattern"),
        ("rbac.create=perhaps", "got string, want boolean"),
        ("networkPolicy.apiServerPorts={0}", "minimum"),
        ("serviceMonitor.interval=often", "does not match pattern"),
        ("tolerations[0].operator=Exist", "value must be one of"),
        ("podLabels.a=1", "want string"),
    ];
    for (value, message) in table {
        let Some(output) = run(&["template", "modelrelay", "charts/modelrelay", "--set", value]) else {
            return;
        };
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{value} is accepted");
        let field = value.split(['=', '[', '.']).next().unwrap();
        assert!(error.contains(message) && error.contains(field), "{value}: {error}");
    }
}

#[test]
fn images_come_from_the_mirror_and_a_digest_goes_before_a_tag() {
    let Some(manifests) = template("modelrelay", &["--values", "charts/modelrelay/ci/mirror-values.yaml"])
    else {
        return;
    };
    let deployment = manifests.iter().find(|manifest| manifest["kind"] == "Deployment").unwrap();
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let image = container["image"].as_str().unwrap();
    assert!(image.starts_with("mirror.example.com/modelrelay/modelrelay-operator@sha256:9f86"), "{image}");
    assert_eq!(pod["imagePullSecrets"][0]["name"], "mirror");
    let arguments = container["args"].as_array().unwrap();
    for argument in [
        "--relay-image=mirror.example.com/modelrelay/modelrelay-relay:0.1.1",
        "--worker-image=mirror.example.com/modelrelay/modelrelay-worker:0.1.0",
        "--image-pull-secret=mirror",
    ] {
        assert!(arguments.contains(&argument.into()), "{argument}: {arguments:?}");
    }
}

#[test]
fn the_program_understands_the_arguments_of_every_pod() {
    let parse = |arguments: &Value| {
        let arguments = arguments.as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
        Cli::try_parse_from(["modelrelay-operator"].into_iter().chain(arguments)).unwrap()
    };
    for values in example_values() {
        let fixed = ["template", "modelrelay", "charts/modelrelay", "--namespace", "modelrelay-system"];
        let Some(text) = succeed(&[&fixed[..], &["--values", values.to_str().unwrap()]].concat()) else {
            return;
        };
        let manifests = documents(&text);
        let of = |kind: &str| manifests.iter().find(|manifest| manifest["kind"] == kind).unwrap();
        let run = parse(of("Deployment").pointer("/spec/template/spec/containers/0/args").unwrap());
        assert!(run.command.is_none());
        let options = run.run.options();
        let in_some = values.ends_with("namespaces-values.yaml");
        assert_eq!(matches!(options.scope, Scope::Namespaces(_)), in_some, "{options:?}");
        assert!(options.relay_image.contains("modelrelay-relay:") && options.worker_image.contains(":0.1.0"));
        let test = parse(of("Pod").pointer("/spec/containers/0/args").unwrap());
        let Some(cli::Command::Check { url, .. }) = test.command else { panic!("{test:?}") };
        let service = of("Service");
        let name = service["metadata"]["name"].as_str().unwrap();
        assert_eq!(url.host(), Some(format!("{name}.modelrelay-system.svc").as_str()));
        assert_eq!(url.port_u16().map(u64::from), service["spec"]["ports"][0]["port"].as_u64());
    }
}

#[test]
fn charts_and_program_have_one_version() {
    for chart in ["modelrelay", "modelrelay-crds"] {
        let text = fs::read_to_string(workspace().join(format!("charts/{chart}/Chart.yaml"))).unwrap();
        let chart: Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    }
}
