//! The README's quick start on Kubernetes, as it is written, on a real engine.

use std::io::{BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dev_cluster::{Node, tool};
use dev_e2e::client::{CHAT, MESSAGES, ask, get, post, try_ask};
use serde_json::json;

use crate::support::{Site, Suite, readme, suite};

/// Loading the model on a machine that does other things takes this long at most.
const LOADED_WITHIN: Duration = Duration::from_secs(120);
const NODE: &str = "node2";
const EXAMPLE: &str = "deploy/examples/minimal.yaml";

/// An engine beside the pods of a node, ended with this value.
struct Engine<'a> {
    node: &'a Node,
    id: String,
    child: Child,
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // What was started is only the way into the node.
        let _ = self.node.command(Path::new("kill")).map(|mut kill| kill.args(["-KILL", &self.id]).output());
        let _ = self.child.wait();
    }
}

/// A program of this machine, ended with this value.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the quick start makes, in the namespace that it names none of.
struct Made<'a>(&'a Suite);

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let mut kubectl = self.0.plane().kubectl();
        kubectl.args(["delete", "--ignore-not-found", "--filename"]);
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples/minimal.yaml");
        let _ = kubectl.arg(example).output();
        let _ = self.0.cluster.set_gpus(NODE, 0);
    }
}

/// An engine as one that runs already on a node: beside its pods, on port 8000.
async fn engine<'a>(suite: &'a Suite, server: &Path, model: &Path) -> Engine<'a> {
    let node = suite.cluster.nodes().iter().find(|node| node.name() == NODE).unwrap();
    let mut command = node.command(Path::new("sh")).unwrap();
    command.args(["-c", "echo $$; exec \"$0\" \"$@\""]).arg(server).args([
        "--host",
        "0.0.0.0",
        "--port",
        "8000",
        "--alias",
        "gemma",
        "--threads",
        "1",
    ]);
    command.args(["--parallel", "2", "--ctx-size", "4096", "--model"]).arg(model);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let id = first_line(&mut child).trim().to_owned();
    let engine = Engine { node, id, child };
    let address = SocketAddr::new(node.address().into(), 8000);
    let loaded = async {
        while !matches!(try_ask(address, get("/health")).await, Ok(answer) if answer.status() == 200) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LOADED_WITHIN, loaded).await.expect("the engine loads its model");
    engine
}

/// Reads a line, and lets go of what is printed after it.
fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    line
}

/// Forwards a port as the README does, but one that is free.
fn forward(suite: &Suite) -> (Running, SocketAddr) {
    let line = readme::forward();
    let line = line.trim_end_matches(" &").replace("8080:80", ":80");
    let mut command: Command = suite.command(Path::new("sh"));
    command.args(["-c", &format!("exec {line}")]).stdout(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let first = first_line(&mut running.0);
    // Forwarding from 127.0.0.1:40123 -> 8080
    let address = first.split(' ').find_map(|word| word.parse().ok());
    (running, address.unwrap_or_else(|| panic!("{line}: {first}")))
}

/// The same engine as a Service, behind a relay of its own.
async fn by_service(suite: &Suite) {
    let site = Site::new(suite, "by-service");
    let node = suite.cluster.nodes().iter().find(|node| node.name() == NODE).unwrap();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "engine" },
        "spec": { "ports": [{ "name": "http", "port": 80 }] },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "engine-1", "labels": { "kubernetes.io/service-name": "engine" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8000 }],
        "endpoints": [{ "addresses": [node.address()], "conditions": { "ready": true } }],
    });
    let pool = json!({
        "backend": { "service": { "name": "engine", "port": 80 } },
        "managed": { "nodeSelector": { "kubernetes.io/hostname": "node1" } },
    });
    site.apply(&[service, slice, Site::relay("main", &json!({})), Site::pool("engines", &pool)]);
    site.ready("modelrelays", "main");
    site.ready("workerpools", "engines");
    for path in [CHAT, MESSAGES] {
        let (body, end) = request(path);
        let answer = ask(site.service("main"), post(path, body)).await;
        assert_eq!(answer.status(), 200, "{path}");
        let text = String::from_utf8(answer.bytes().await).unwrap();
        assert!(text.contains(end), "{path}: {text}");
    }
}

fn request(path: &str) -> (String, &'static str) {
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    let body = json!({ "model": "gemma", "stream": true, "max_tokens": 8, "messages": messages }).to_string();
    (body, if path == CHAT { "data: [DONE]\n\n" } else { "event: message_stop\n" })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quick_start_of_the_readme_leads_to_a_real_answer() {
    let (Some(server), Some(model)) = (tool("MODELRELAY_LLAMA_SERVER"), tool("MODELRELAY_MODEL")) else {
        return;
    };
    let Some(suite) = suite().await else { return };
    let _engine = engine(&suite, &server, &model).await;
    let _made = Made(&suite);
    suite.cluster.set_gpus(NODE, 1).unwrap();

    let start = Instant::now();
    let [apply, wait] = readme::create().try_into().unwrap();
    assert!(apply.ends_with(EXAMPLE), "{apply}");
    suite.shell(&apply);
    suite.shell(&wait);
    let service = suite.plane().api().get("/api/v1/namespaces/default/services/main").unwrap();
    let inside = format!("{}:80", service["spec"]["clusterIP"].as_str().unwrap()).parse().unwrap();
    let mut answer = ask(inside, post(CHAT, request(CHAT).0)).await;
    assert_eq!(answer.status(), 200);
    assert!(!answer.part().await.is_empty());
    let seconds = start.elapsed().as_secs_f64();
    drop(answer);
    // Not by a macro: what those print is shown for failed tests only.
    let text = format!("from `kubectl apply` to the first token: {seconds:.1} s\n");
    std::io::stderr().write_all(text.as_bytes()).unwrap();

    by_service(&suite).await;
    let (_forwarded, outside) = forward(&suite);
    for path in [CHAT, MESSAGES] {
        let (body, end) = request(path);
        let answer = ask(outside, post(path, body)).await;
        assert_eq!(answer.status(), 200, "{path}");
        let text = String::from_utf8(answer.bytes().await).unwrap();
        assert!(text.contains(end), "{path}: {text}");
        let (body, end) = request(path);
        let within = suite.ask_from_a_pod("default", "main.default.svc", path, &body);
        assert!(within.starts_with("HTTP/1.1 200 OK\n") && within.contains(end), "{path}: {within}");
    }
}
