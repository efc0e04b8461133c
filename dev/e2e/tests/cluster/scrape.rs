//! A Prometheus finds relays, workers and the operator in the cluster, and scrapes all that the README lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dev_cluster::tool;
use dev_e2e::client::{Asked, CHAT, Ended, ask, chat, get, post, try_ask};
use dev_e2e::process::Program;
use dev_e2e::{eventually, soon};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::support::{LIMIT, Part, RelayPod, SYSTEM, Site, Suite, suite};

/// Labels that a scrape adds.
const TARGET: [&str; 4] = ["__name__", "instance", "job", "le"];

/// A Prometheus with an account of its own.
struct Prometheus<'a> {
    suite: &'a Suite,
    binding: String,
    program: Program,
    address: SocketAddr,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.suite.plane().api().delete(&self.binding);
    }
}

impl<'a> Prometheus<'a> {
    /// Starts one that may see the pods of the site and of the operator's namespace.
    async fn start(suite: &'a Suite, site: &Site<'_>, program: &Path) -> Self {
        let name = site.name();
        let binding = |namespace: &str| {
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": { "name": format!("prometheus-of-{name}"), "namespace": namespace },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
                "subjects": [{ "kind": "ServiceAccount", "name": "prometheus", "namespace": name }],
            })
        };
        let path = |namespace: &str| {
            format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings")
        };
        let account =
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "prometheus" } });
        site.apply(&[account, binding(name)]);
        site.api().create(&path(SYSTEM), &binding(SYSTEM)).unwrap();
        let token = suite.plane().service_account_token(name, "prometheus").unwrap();
        let mut command = Command::new(program);
        let program = Program::start_command("Prometheus", &mut command, |command, folder| {
            fs::write(folder.join("token"), token).unwrap();
            let config = config(suite, &[name, SYSTEM], &folder.join("token"));
            fs::write(folder.join("prometheus.yml"), config.to_string()).unwrap();
            command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
            command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
            command.arg("--web.listen-address=127.0.0.1:0");
        });
        let address = eventually("the address of Prometheus", async || {
            let log = program.log();
            let line = log.lines().find(|line| line.contains("Listening on"))?;
            line.split_once("address=")?.1.split(' ').next()?.trim_matches('"').parse().ok()
        })
        .await;
        let binding = format!("{}/prometheus-of-{name}", path(SYSTEM));
        Self { suite, binding, program, address }
    }

    /// Asks its API.
    async fn query(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let coded = |text: &str| -> String {
            text.bytes()
                .map(|byte| match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
                    _ => format!("%{byte:02X}"),
                })
                .collect()
        };
        let query: Vec<_> =
            query.iter().map(|(key, value)| format!("{}={}", coded(key), coded(value))).collect();
        let answer =
            ask(self.address, get(&format!("/api/v1/{path}?{}", query.join("&")))).await.json().await;
        assert_eq!(answer["status"], "success", "{answer}\n{}", self.program.log());
        answer["data"].clone()
    }

    /// Returns how many targets of each job answer, and what is wrong with others.
    async fn targets(&self) -> (BTreeMap<String, usize>, Vec<Value>) {
        let data = self.query("targets", &[("state", "active")]).await;
        let (mut healthy, mut others) = (BTreeMap::new(), Vec::new());
        for target in data["activeTargets"].as_array().unwrap() {
            if target["health"] == "up" {
                *healthy.entry(target["labels"]["job"].as_str().unwrap().to_owned()).or_default() += 1;
            } else {
                others.push(json!([target["labels"], target["lastError"]]));
            }
        }
        (healthy, others)
    }

    /// Returns the metrics of a job in the form of [`documented`].
    async fn scraped(&self, job: &str) -> BTreeSet<String> {
        let of_job = format!("{{job={job:?}}}");
        let types = self.query("targets/metadata", &[("match_target", &of_job)]).await;
        let series = self.query("series", &[("match[]", &of_job)]).await;
        let mut rows = BTreeSet::new();
        for entry in types.as_array().unwrap() {
            let (name, kind) = (entry["metric"].as_str().unwrap(), entry["type"].as_str().unwrap());
            let sample = if kind == "histogram" { format!("{name}_bucket") } else { name.to_owned() };
            for one in series.as_array().unwrap().iter().filter(|one| one["__name__"] == *sample) {
                let labels = one.as_object().unwrap().keys().map(String::as_str);
                rows.insert(row(name, kind, &labels.filter(|label| !TARGET.contains(label)).collect()));
            }
        }
        rows
    }
}

fn config(suite: &Suite, namespaces: &[&str], token: &Path) -> Value {
    json!({
        "global": { "scrape_interval": "1s", "scrape_timeout": "1s" },
        "scrape_configs": [{
            "job_name": "modelrelay",
            "kubernetes_sd_configs": [{
                "role": "pod",
                "namespaces": { "names": namespaces },
                "api_server": suite.plane().url(),
                "authorization": { "credentials_file": token },
                "tls_config": { "ca_file": suite.plane().folder().join("pki/ca.crt") },
            }],
            "relabel_configs": [
                { "source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": "ops", "action": "keep" },
                { "source_labels": ["__meta_kubernetes_pod_label_app_kubernetes_io_name"], "target_label": "job" },
            ],
        }],
    })
}

fn row(name: &str, kind: &str, labels: &BTreeSet<&str>) -> String {
    format!("{name} {kind} {labels:?}")
}

/// Returns the rows of one of the README's tables of metrics. A row may name several.
fn documented(table: &str) -> BTreeSet<String> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let section = readme.split_once("\n## Metrics\n").unwrap().1;
    let section = section.split_once(&format!("\n### {table}\n")).unwrap().1.split("\n#").next().unwrap();
    let quoted = |cell: &'_ str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut rows = BTreeSet::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let labels = quoted(cells[3]);
        for name in quoted(cells[1]) {
            rows.insert(row(&name, cells[2], &labels.iter().map(String::as_str).collect()));
        }
    }
    assert!(rows.len() >= 5, "no table {table:?} of metrics in the README");
    rows
}

/// Asks for an answer that does not fit into the system's buffers, reads none of it, and leaves when the engine is done.
///
/// Sent a chunk a frame, the answer costs 56 times 4,096 + 64 bytes, which is less than the window of a body: the engine
/// comes to its end though nobody reads.
async fn waste(relay: &RelayPod) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 * 1024).unwrap();
    let mut stream = soon("a connection", socket.connect(relay.client)).await.unwrap();
    let body = chat(true, &json!({ "chunks": 56, "chunk_bytes": 4096 }));
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut first = [0; 12];
    soon("the first bytes", stream.read_exact(&mut first)).await.unwrap();
    idle(relay).await;
}

/// Waits until the pool's one worker is connected and has nothing to do.
async fn idle(relay: &RelayPod) {
    eventually("an idle worker", async || {
        let rows = relay.admin("workers").await;
        let rows = rows.as_array()?;
        (rows.len() == 1 && rows[0]["state"] == "ready" && rows[0]["running"] == 0).then_some(())
    })
    .await;
}

/// Waits until the relay holds requests in these states, oldest first.
async fn requests(relay: &RelayPod, states: &[&str]) {
    eventually(&format!("requests {states:?}"), async || {
        let rows = relay.admin("requests").await;
        rows.as_array()?.iter().map(|row| &row["state"]).eq(states).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_in_the_cluster_scrapes_every_metric_of_the_readme() {
    let Some(program) = tool("MODELRELAY_PROMETHEUS") else { return };
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "scrape");
    site.apply(&[Site::relay("main", &json!({ "replicas": 1 })), Site::stub_pool("stubs", "m", 1)]);
    let prometheus = Prometheus::start(&suite, &site, &program).await;
    site.ready("modelrelays", "main");
    site.ready("workerpools", "stubs");
    let relay = RelayPod::ready(&site, 1).remove(0);

    // An object that cannot be acted on: no Secret may be made beside it.
    let forbidden = Site::new(&suite, "forbidden");
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "none" },
        "spec": { "hard": { "count/secrets": "0" } },
    });
    forbidden.apply(&[quota]);
    forbidden.apply(&[Site::relay("main", &json!({}))]);

    let answer = ask(relay.client, post(CHAT, chat(true, &json!({ "chunks": 5, "interval_ms": 10 })))).await;
    assert_eq!(answer.stream().await, Ended::Whole(5));
    let failed = ask(relay.client, post(CHAT, chat(false, &json!({ "fail": "garbage" })))).await;
    assert_eq!(failed.error().await, (502, "backend_error".to_owned()));
    waste(&relay).await;
    // A client that leaves while the engine works.
    let leaver = Asked::new(relay.client, post(CHAT, chat(false, &json!({ "head_delay_ms": 60_000 }))));
    requests(&relay, &["dispatched"]).await;
    drop(leaver);
    idle(&relay).await;
    // A worker that dies with a request.
    let moved = try_ask(relay.client, post(CHAT, chat(false, &json!({ "head_delay_ms": 10_000 }))));
    let moved = AbortOnDropHandle::new(tokio::spawn(moved));
    requests(&relay, &["dispatched"]).await;
    let worker = site.pods(Part::Worker, "stubs").remove(0);
    let name = worker["metadata"]["name"].as_str().unwrap();
    let mut kubectl = suite.plane().kubectl();
    kubectl.args(["delete", "pod", name, "--namespace", site.name(), "--grace-period=0", "--force"]);
    assert!(kubectl.output().unwrap().status.success());
    let answer = timeout(LIMIT, moved).await.expect("another worker answers").unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    site.ready("workerpools", "stubs");
    idle(&relay).await;
    // One that runs and one that waits, until they are seen.
    let long = || Asked::new(relay.client, post(CHAT, chat(false, &json!({ "head_delay_ms": 600_000 }))));
    let (_runs, _waits) = (long(), long());
    requests(&relay, &["dispatched", "queued"]).await;

    let process = documented("Relay").into_iter().filter(|row| row.starts_with("process_"));
    let operator = documented("Operator").into_iter().chain(process).collect();
    let jobs = [
        ("modelrelay-relay", 1, documented("Relay")),
        ("modelrelay-worker", 1, documented("Worker")),
        ("modelrelay-operator", 2, operator),
    ];
    let expected: BTreeMap<_, _> =
        jobs.iter().map(|(job, targets, _)| ((*job).to_owned(), *targets)).collect();
    let limit = Instant::now() + LIMIT;
    loop {
        let mut wrong = Vec::new();
        let (healthy, others) = prometheus.targets().await;
        if healthy != expected || !others.is_empty() {
            wrong.push(format!("targets: {healthy:?}, and {others:#?}"));
        }
        for (job, _, documented) in &jobs {
            let scraped = prometheus.scraped(job).await;
            if scraped != *documented {
                let missing: Vec<_> = documented.difference(&scraped).collect();
                let unknown: Vec<_> = scraped.difference(documented).collect();
                wrong.push(format!("{job}: not scraped {missing:#?}, not in the README {unknown:#?}"));
            }
        }
        if wrong.is_empty() {
            return;
        }
        assert!(Instant::now() < limit, "{}\n{}", wrong.join("\n"), prometheus.program.log());
        sleep(Duration::from_millis(200)).await;
    }
}
