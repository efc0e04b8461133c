//! A box outside the cluster: it joins with the command that its pool hands out, and leaves with the pool.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use dev_e2e::client::{CHAT, Ended, ask, chat_for, get, post, try_ask};
use dev_e2e::process::{Program, program};
use dev_e2e::{eventually, soon};
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Part, RelayPod, Site, condition, suite, within_limit};

/// Where the command looks for the engine.
const ENGINE: &str = "127.0.0.1:8000";
/// Slots of each of the two pools.
const SLOTS: u32 = 2;
/// A time between small requests.
const EVERY: Duration = Duration::from_millis(50);

/// What a shell runs, ended with this value.
struct Shell {
    program: Program,
    group: Pid,
}

impl Shell {
    fn start(text: &str) -> Self {
        let mut command = Command::new("sh");
        let folder = program("modelrelay-worker").parent().unwrap().to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([folder].into_iter().chain(std::env::split_paths(&path))).unwrap();
        command.args(["-c", text]).env_clear().env("PATH", path).process_group(0);
        let program = Program::start_command("the box", &mut command, |command, folder| {
            command.env("HOME", folder);
        });
        let group = Pid::from_raw(program.id().cast_signed()).unwrap();
        Self { program, group }
    }

    /// Returns its processes.
    fn processes(&self) -> Vec<u32> {
        let group = self.group.as_raw_nonzero().get().to_string();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id: &u32| {
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            // The name before may hold blanks: state, parent, group.
            let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            rest.split(' ').nth(2) == Some(&group)
        })
        .collect()
    }

    /// Whether any of its processes listens.
    fn listens(&self) -> bool {
        let tables =
            ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
        let rows = tables.iter().flat_map(|table| table.lines().skip(1));
        let rows = rows.map(|row| row.split_whitespace().collect::<Vec<_>>());
        let listening: BTreeSet<_> =
            rows.filter(|row| row[3] == "0A").map(|row| format!("socket:[{}]", row[9])).collect();
        let files = self
            .processes()
            .into_iter()
            .flat_map(|id| fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten());
        let mut targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| listening.contains(&*target.to_string_lossy()))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have ended.
        let _ = kill_process_group(self.group, Signal::KILL);
    }
}

/// Starts an engine that serves `m`, and `box` besides. It is where the command looks for it, unless somebody has that
/// port: then the command is changed as somebody would whose engine is elsewhere.
async fn engine(command: &str) -> (Program, String) {
    let is_free = TcpListener::bind(ENGINE).is_ok();
    let listen = if is_free { ENGINE } else { "127.0.0.1:0" };
    let engine = Program::start("the engine", "dev-backend", |command, _| {
        command.args(["--listen", listen, "--models", "m,box"]);
    });
    let url = eventually("the engine's address", async || {
        engine.output().lines().next().map(str::to_owned).filter(|line| line.starts_with("http://"))
    });
    let command = command.replace(&format!("http://{ENGINE}"), &url.await);
    (engine, command)
}

fn relay(external_url: Option<&str>, template: &str) -> Value {
    let mut spec = json!({
        "replicas": 2,
        "service": { "type": "NodePort" },
        "podTemplate": { "metadata": { "annotations": { "example.com/template": template } } },
    });
    if let Some(url) = external_url {
        spec["exposure"] = json!({ "externalURL": url });
    }
    Site::relay("main", &spec)
}

/// Waits until a pool has so many workers at each relay.
async fn joined(relays: &[RelayPod], pool: &str, count: usize) {
    for relay in relays {
        let what = format!("{count} workers of {pool}");
        within_limit(&what, async || (relay.workers(pool).await.len() == count).then_some(())).await;
    }
}

/// Asks the box again and again; returns how often it answered, and what went wrong.
async fn ask_the_box(service: SocketAddr, over: CancellationToken) -> (usize, Vec<String>) {
    let (mut good, mut faults) = (0, Vec::new());
    while !over.is_cancelled() {
        match try_ask(service, post(CHAT, chat_for("box", false, &json!({})))).await {
            Ok(answer) if answer.status() == 200 => good += 1,
            Ok(answer) => faults.push(format!("{:?}", answer.error().await)),
            Err(error) => faults.push(error.to_string()),
        }
        sleep(EVERY).await;
    }
    (good, faults)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_outside_joins_with_the_command_of_its_pool_and_leaves_with_the_pool() {
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "boxes");
    site.apply(&[relay(None, "1"), Site::stub_pool("inside", "m", SLOTS)]);
    site.ready("modelrelays", "main");
    let port = site.get("services", "main")["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let url = format!("http://{}:{port}", suite.cluster.nodes()[0].address());
    let pool = json!({ "type": "External", "maxConcurrentRequests": SLOTS, "external": { "maxWorkers": 1 } });
    site.apply(&[relay(Some(&url), "1"), Site::pool("boxes", &pool)]);
    for pool in ["inside", "boxes"] {
        site.ready("workerpools", pool);
    }

    let (_engine, command) = engine(&site.secret("boxes-join", "command")).await;
    assert!(command.contains(&format!("--relay-url '{url}'")), "no command for boxes at {url}");
    let mut shell = Shell::start(&command);
    let relays = RelayPod::ready(&site, 2);
    joined(&relays, "boxes", 1).await;
    joined(&relays, "inside", 1).await;
    assert!(!shell.processes().is_empty() && !shell.listens());
    let service = site.service("main");
    let streams = join_all((0..2 * SLOTS).map(async |_| {
        let answer =
            ask(service, post(CHAT, chat_for("m", true, &json!({ "chunks": 20, "interval_ms": 100 })))).await;
        let worker = answer.worker().to_owned();
        assert_eq!(answer.stream().await, Ended::Whole(20));
        worker
    }));
    let workers: BTreeSet<_> = streams.await.into_iter().collect();
    let known = [relays[0].workers("boxes").await, relays[0].workers("inside").await].concat();
    assert_eq!(workers, known.into_iter().collect());

    // A new template replaces every relay.
    let over = CancellationToken::new();
    let small = AbortOnDropHandle::new(tokio::spawn(ask_the_box(service, over.clone())));
    let script = json!({ "chunks": 60, "interval_ms": 200 });
    let long = ask(service, post(CHAT, chat_for("box", true, &script))).await;
    let long = AbortOnDropHandle::new(tokio::spawn(long.stream()));
    site.apply(&[relay(Some(&url), "2")]);
    site.pods_until("new relays", Part::Relay, "main", |pods| {
        let is_new = |pod: &Value| relays.iter().all(|relay| pod["metadata"]["uid"] != *relay.uid);
        pods.len() == 2 && pods.iter().all(|pod| is_new(pod) && condition(pod, "Ready") == "True")
    });
    let relays = RelayPod::ready(&site, 2);
    joined(&relays, "boxes", 1).await;
    assert_eq!(soon("the end of the long stream", long).await.unwrap(), Ended::Whole(60));
    over.cancel();
    let (good, faults) = small.await.unwrap();
    assert!(good > 0 && faults.is_empty(), "{good} answers, and {faults:#?}");
    assert!(shell.program.try_ended().is_none());

    // With the pool its credential goes, and with that the session and what runs on it.
    let mut long =
        ask(service, post(CHAT, chat_for("box", true, &json!({ "chunks": 3000, "interval_ms": 100 })))).await;
    long.part().await;
    site.delete("workerpools", "boxes");
    let text = long.broken().await;
    assert!(!text.contains("[DONE]"), "{text}");
    joined(&relays, "boxes", 0).await;
    shell.program.logged("The relay refused this worker's credential").await;
    for relay in &relays {
        let listed = ask(relay.client, get("/v1/models")).await.json().await;
        let listed: Vec<_> = listed["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
        assert_eq!(listed, ["m"]);
        assert_eq!(relay.chat("any", "m").await, 200);
    }
}
