//! The images of relay and worker, on real nodes. `cargo xtask test` builds them.

use std::path::Path;

use dev_cluster::{ControlPlane, Namespace, tool, wait};
use serde_json::{Value, json};

use crate::support::{LIMIT, ready_pod, run_pod, shared};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A pod that keeps to the rules of restricted namespaces, with the secret that workers show.
fn spec(program: &str, node: &str, variables: &[(&str, &str)]) -> Value {
    let variables: Vec<Value> =
        variables.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    json!({
        "nodeName": node,
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 0,
        "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": program,
            "image": format!("localhost/modelrelay-{program}:{VERSION}"),
            "imagePullPolicy": "Never",
            "args": ["--worker-secret-file", "/secret/token"],
            "env": variables,
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": [{ "name": "secret", "mountPath": "/secret" }],
        }],
        "volumes": [{ "name": "secret", "secret": { "secretName": "workers" } }],
    })
}

fn service(name: &str, headless: bool) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name },
        "spec": { "selector": { "app": "relay" }, "ports": [{ "port": 8080 }] },
    });
    if headless {
        service["spec"]["clusterIP"] = "None".into();
    }
    service
}

fn log(plane: &ControlPlane, namespace: &Namespace, pod: &str) -> String {
    let output = plane.kubectl().args(["logs", pod, "--namespace", namespace.name()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn workers_find_their_relay_by_the_names_of_its_services() {
    let Some(images) = tool("MODELRELAY_IMAGES") else { return };
    let Some(cluster) = shared() else { return };
    for program in ["relay", "worker"] {
        cluster.load_image(&Path::new(&images).join(format!("modelrelay-{program}.tar"))).unwrap();
    }
    let plane = cluster.control_plane();
    let labels = [("pod-security.kubernetes.io/enforce", "restricted")];
    let namespace = plane.labelled_namespace("images", &labels).unwrap();
    let core = format!("/api/v1/namespaces/{}", namespace.name());
    wait::until("the default account", LIMIT, || {
        plane.api().find(&format!("{core}/serviceaccounts/default"))
    })
    .unwrap();
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "workers" },
        "stringData": { "token": "the secret of the workers in this test" },
    });
    plane.api().create(&format!("{core}/secrets"), &secret).unwrap();
    for service in [service("relay", false), service("relays", true)] {
        plane.api().create(&format!("{core}/services"), &service).unwrap();
    }
    run_pod(plane, &namespace, "relay", &spec("relay", "node1", &[]));
    ready_pod(plane, &namespace, "relay");
    let headless = format!("http://relays.{}.svc.cluster.local:8080", namespace.name());
    // The one by its short name, as in a pod's own namespace, the other by one that stands for all of a relay's pods.
    for (name, url) in [("short", "http://relay:8080"), ("headless", &headless)] {
        let variables = [("RELAY_URL", url), ("BACKEND_URL", "http://127.0.0.1:9")];
        run_pod(plane, &namespace, name, &spec("worker", "node2", &variables));
        let registered = wait::until("the worker registers", LIMIT, || {
            Ok(log(plane, &namespace, name).contains("Registered").then_some(()))
        });
        assert!(registered.is_ok(), "{name}: {}", log(plane, &namespace, name));
    }
}
