//! The examples of `deploy/examples`, as a reader uses them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use dev_cluster::{ControlPlane, Namespace};
use serde_json::Value;

use crate::support::plane;

pub(crate) fn all() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn kubectl(plane: &ControlPlane, namespace: &Namespace, arguments: &[&str]) -> Output {
    plane.kubectl().args(["--namespace", namespace.name()]).args(arguments).output().unwrap()
}

fn succeed(plane: &ControlPlane, namespace: &Namespace, arguments: &[&str]) -> String {
    let output = kubectl(plane, namespace, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !error.contains("Warning"), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What is there: kind, name, version and spec of each object.
fn objects(plane: &ControlPlane, namespace: &Namespace) -> Vec<[Value; 4]> {
    let text = succeed(plane, namespace, &["get", "modelrelay-all", "--output=json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    let object = |object: &Value| {
        ["/kind", "/metadata/name", "/metadata/resourceVersion", "/spec"]
            .map(|part| object.pointer(part).unwrap().clone())
    };
    list["items"].as_array().unwrap().iter().map(object).collect()
}

#[test]
fn every_example_is_applied_by_kubectl_and_applying_it_again_changes_nothing() {
    let Some(plane) = plane() else { return };
    let paths = all();
    assert!(paths.len() >= 7, "{paths:?}");
    for path in paths {
        let namespace = plane.namespace("example").unwrap();
        let file = path.to_str().unwrap();
        for way in [
            &["apply", "--filename", file][..],
            &["apply", "--server-side", "--force-conflicts", "--filename", file],
        ] {
            let applied = succeed(plane, &namespace, way);
            assert!(applied.contains("modelrelay.io/main"), "{file}: {applied}");
            let first = objects(plane, &namespace);
            succeed(plane, &namespace, way);
            assert_eq!(objects(plane, &namespace), first);
        }
        let unchanged = kubectl(plane, &namespace, &["diff", "--filename", file]);
        assert!(unchanged.status.success(), "{file}: {}", String::from_utf8_lossy(&unchanged.stdout));
    }
}

/// The words of a table, whose columns stand three blanks apart.
fn columns(table: &str) -> Vec<Vec<&str>> {
    fn words(line: &str) -> Vec<&str> {
        line.split("   ").map(str::trim).filter(|word| !word.is_empty()).collect()
    }
    table.lines().map(words).collect()
}

#[test]
fn kubectl_lists_and_explains_both_kinds() {
    let Some(plane) = plane() else { return };
    let namespace = plane.namespace("columns").unwrap();
    let minimal = all().into_iter().find(|path| path.ends_with("minimal.yaml")).unwrap();
    succeed(plane, &namespace, &["apply", "--filename", minimal.to_str().unwrap()]);
    let status = serde_json::json!({ "status": {
        "readyReplicas": 2, "url": "http://main.inference.svc", "workers": { "connected": 3, "ready": 2, "draining": 0 },
        "conditions": [
            { "type": "Accepted", "status": "True", "reason": "Accepted", "message": "yes", "lastTransitionTime": "2026-01-01T00:00:00Z" },
            { "type": "Ready", "status": "False", "reason": "NoReadyRelay", "message": "no pod is Ready", "lastTransitionTime": "2026-01-01T00:00:00Z" },
        ],
    }});
    succeed(
        plane,
        &namespace,
        &["patch", "mrel", "main", "--subresource=status", "--type=merge", "--patch", &status.to_string()],
    );
    let wide = succeed(plane, &namespace, &["get", "mrel", "--output=wide"]);
    let wide = columns(&wide);
    assert_eq!(wide[0], ["NAME", "READY", "REPLICAS", "WORKERS", "URL", "AGE", "REASON", "MESSAGE"]);
    assert_eq!(wide[1][..5], ["main", "False", "2", "2", "http://main.inference.svc"]);
    assert_eq!(wide[1][6..], ["NoReadyRelay", "no pod is Ready"]);
    let pools = succeed(plane, &namespace, &["get", "wpool"]);
    let pools = columns(&pools);
    assert_eq!(pools[0], ["NAME", "READY", "RELAY", "TYPE", "DESIRED", "WORKERS", "AGE"]);
    // A category of this name would have kubectl ask for a pool `main` besides.
    let one = succeed(plane, &namespace, &["get", "modelrelay", "main", "--output=name"]);
    assert_eq!(one, "modelrelay.modelrelay.io/main\n");
    let both = succeed(plane, &namespace, &["get", "modelrelay-all", "--output=name"]);
    assert_eq!(both, "modelrelay.modelrelay.io/main\nworkerpool.modelrelay.io/gpu\n");
    let explained = succeed(plane, &namespace, &["explain", "modelrelay.spec.queue.maxBytes"]);
    assert!(explained.contains("Bytes of all request bodies that a replica holds"), "{explained}");
}

#[test]
fn argo_cds_health_check_joins_what_its_config_map_holds() {
    let Some(plane) = plane() else { return };
    let namespace = plane.namespace("argocd").unwrap();
    succeed(
        plane,
        &namespace,
        &["create", "configmap", "argocd-cm", "--from-literal=url=https://argo.example.com"],
    );
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/argocd");
    let script = fs::read_to_string(folder.join("health.lua")).unwrap();
    // As the head of the file says; the folder is this one's.
    let mut arguments = vec![String::from("create")];
    let keys: Vec<_> = script.lines().filter_map(|line| line.split("--from-file=").nth(1)).collect();
    assert_eq!(keys.len(), 2);
    arguments.extend(["configmap", "argocd-cm", "--dry-run=client", "--output=yaml"].map(String::from));
    for key in keys {
        let (key, file) = key.trim_end_matches([' ', '\\']).split_once('=').unwrap();
        assert!(script.contains("apply --server-side --field-manager=modelrelay"));
        let file = folder.join(Path::new(file).file_name().unwrap());
        arguments.push(format!("--from-file={key}={}", file.display()));
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let manifest = succeed(plane, &namespace, &arguments);
    let file = plane.folder().join("argocd-cm.yaml");
    fs::write(&file, manifest).unwrap();
    let apply =
        ["apply", "--server-side", "--field-manager=modelrelay", "--filename", file.to_str().unwrap()];
    succeed(plane, &namespace, &apply);
    let map: Value = serde_json::from_str(&succeed(
        plane,
        &namespace,
        &["get", "configmap", "argocd-cm", "--output=json"],
    ))
    .unwrap();
    assert_eq!(map["data"]["url"], "https://argo.example.com");
    for kind in ["ModelRelay", "WorkerPool"] {
        assert_eq!(
            map["data"][format!("resource.customizations.health.modelrelay.io_{kind}")],
            script.as_str()
        );
    }
}
