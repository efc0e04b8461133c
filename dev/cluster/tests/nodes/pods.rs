//! What pods can do, and where they land.

use std::io::{Read, Write};
use std::net::TcpStream;

use dev_cluster::{Namespace, tool, wait};
use serde_json::json;

use crate::support::{LIMIT, busybox, namespace, output, pod, ready_pod, run_pod, shared};

const SERVE: &[&str] = &["httpd", "-f", "-p", "8080", "-h", "/tmp"];

fn service(namespace: &Namespace, kind: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "server", "namespace": namespace.name() },
        "spec": { "type": kind, "selector": { "app": "server" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    })
}

/// A server that says where it is: a file that its own shell wrote.
fn server(node: &str) -> serde_json::Value {
    let script = format!("echo here is {node} >/tmp/index.html; exec /bin/busybox {}", SERVE.join(" "));
    let mut spec = busybox(Some(node), &["sh", "-c", &script]);
    spec["containers"][0]["readinessProbe"] =
        json!({ "httpGet": { "path": "/index.html", "port": 8080 }, "periodSeconds": 1 });
    spec
}

fn ask(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_pod_finds_a_service_by_its_name_and_reaches_it_on_another_node() {
    let Some(cluster) = shared() else { return };
    let plane = cluster.control_plane();
    let namespace = namespace(plane, "names");
    let services = format!("/api/v1/namespaces/{}/services", namespace.name());
    let created = plane.api().create(&services, &service(&namespace, "ClusterIP")).unwrap();
    let address = created["spec"]["clusterIP"].as_str().unwrap();
    run_pod(plane, &namespace, "server", &server("node1"));
    ready_pod(plane, &namespace, "server");
    // Its wget asks a C library that is not in the image, even for addresses.
    let script = format!(
        "/bin/busybox nslookup server.{}.svc.cluster.local; \
         /bin/busybox printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 5 {address} 80",
        namespace.name()
    );
    let mut client = busybox(Some("node2"), &["sh", "-c", &script]);
    client["restartPolicy"] = "OnFailure".into();
    run_pod(plane, &namespace, "client", &client);
    let text = output(plane, &namespace, "client");
    assert!(text.contains(&format!("Address: {address}")), "{text}");
    assert!(text.ends_with("here is node1\n"), "{text}");
}

#[test]
fn this_machine_reaches_pods_services_and_node_ports() {
    let Some(cluster) = shared() else { return };
    let plane = cluster.control_plane();
    let namespace = namespace(plane, "outside");
    let services = format!("/api/v1/namespaces/{}/services", namespace.name());
    let created = plane.api().create(&services, &service(&namespace, "NodePort")).unwrap();
    run_pod(plane, &namespace, "server", &server("node2"));
    let pod = ready_pod(plane, &namespace, "server");
    let port = &created["spec"]["ports"][0]["nodePort"];
    let addresses = [
        format!("{}:8080", pod["status"]["podIP"].as_str().unwrap()),
        format!("{}:80", created["spec"]["clusterIP"].as_str().unwrap()),
        format!("{}:{port}", cluster.nodes()[0].address()),
        format!("{}:{port}", cluster.nodes()[1].address()),
    ];
    for address in addresses {
        // kube-proxy hears of the endpoint a little later than this test does.
        let answer = wait::until(&format!("an answer of {address}"), LIMIT, || Ok(ask(&address).ok()));
        assert!(answer.unwrap().ends_with("here is node2\n"), "{address}");
    }
}

#[test]
fn a_pod_reaches_the_api_server_with_its_own_account() {
    let Some(cluster) = shared() else { return };
    let plane = cluster.control_plane();
    let namespace = namespace(plane, "account");
    // A request without TLS is answered with a plain refusal, so the Service leads to the API server.
    let script = "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT; \
                  /bin/busybox printf 'GET / HTTP/1.0\\r\\n\\r\\n' | \
                  /bin/busybox nc -w 5 $KUBERNETES_SERVICE_HOST 443; \
                  /bin/busybox test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token";
    let mut spec = busybox(None, &["sh", "-c", script]);
    spec["restartPolicy"] = "Never".into();
    run_pod(plane, &namespace, "client", &spec);
    let text = output(plane, &namespace, "client");
    assert!(text.contains("Client sent an HTTP request to an HTTPS server"), "{text}");
    assert!(text.ends_with("token\n"), "{text}");
}

#[test]
fn commands_run_in_a_pod_and_its_ports_are_forwarded() {
    let Some(cluster) = shared() else { return };
    let plane = cluster.control_plane();
    let namespace = namespace(plane, "exec");
    run_pod(plane, &namespace, "server", &server("node1"));
    ready_pod(plane, &namespace, "server");
    let mut kubectl = plane.kubectl();
    kubectl.args(["exec", "server", "--namespace", namespace.name(), "--", "/bin/busybox", "hostname"]);
    assert_eq!(String::from_utf8(kubectl.output().unwrap().stdout).unwrap(), "server\n");
}

#[test]
fn a_pod_that_wants_a_gpu_waits_for_a_node_that_gets_one() {
    let Some(cluster) = shared() else { return };
    let plane = cluster.control_plane();
    let namespace = namespace(plane, "gpu");
    let mut spec = busybox(None, SERVE);
    spec["nodeSelector"] = json!({ "nvidia.com/gpu.present": "true" });
    spec["containers"][0]["resources"] = json!({ "limits": { "nvidia.com/gpu": 1 } });
    run_pod(plane, &namespace, "engine", &spec);
    wait::until("the scheduler's refusal", LIMIT, || {
        let scheduled = crate::support::condition(&pod(plane, &namespace, "engine"), "PodScheduled");
        Ok((scheduled == "False").then_some(()))
    })
    .unwrap();
    cluster.set_gpus("node2", 2).unwrap();
    let engine = ready_pod(plane, &namespace, "engine");
    assert_eq!(engine["spec"]["nodeName"], "node2");
    cluster.set_gpus("node2", 0).unwrap();
    let node = plane.api().get("/api/v1/nodes/node2").unwrap();
    assert!(node["metadata"]["labels"].get("nvidia.com/gpu.present").is_none());
}

#[test]
fn a_restricted_namespace_runs_a_pod_that_keeps_to_its_rules() {
    let Some(cluster) = shared() else { return };
    let plane = cluster.control_plane();
    let labels = [("pod-security.kubernetes.io/enforce", "restricted")];
    let namespace = plane.labelled_namespace("restricted", &labels).unwrap();
    let account = format!("/api/v1/namespaces/{}/serviceaccounts/default", namespace.name());
    wait::until("the default account", LIMIT, || plane.api().find(&account)).unwrap();
    let mut spec = busybox(None, &["id"]);
    spec["restartPolicy"] = "Never".into();
    spec["securityContext"] = json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
    spec["containers"][0]["securityContext"] = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
    });
    run_pod(plane, &namespace, "strict", &spec);
    // Of an image's user Kubernetes takes the number, and not the group's.
    assert_eq!(output(plane, &namespace, "strict"), "uid=65532 gid=0 groups=0\n");
}

#[test]
fn fake_nodes_take_pods_that_tolerate_them_and_call_them_running() {
    let Some(mut cluster) = shared() else { return };
    let Some(kwok) = tool("MODELRELAY_KWOK") else { return };
    cluster.add_fake_nodes(&kwok, 20).unwrap();
    let plane = cluster.control_plane();
    let namespace = namespace(plane, "fakes");
    let mut spec = busybox(None, &["true"]);
    spec["nodeSelector"] = json!({ "type": "fake" });
    spec["tolerations"] = json!([{ "key": "fake", "operator": "Exists" }]);
    let labels = json!({ "app": "fake" });
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": "fakes" },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec },
        },
    });
    let sets = format!("/apis/apps/v1/namespaces/{}/daemonsets", namespace.name());
    plane.api().create(&sets, &set).unwrap();
    wait::until("all fake pods run", LIMIT, || {
        let status = &plane.api().get(&format!("{sets}/fakes"))?["status"];
        Ok((status["numberReady"] == 20 && status["desiredNumberScheduled"] == 20).then_some(()))
    })
    .unwrap();
}
