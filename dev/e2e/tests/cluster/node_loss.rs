//! A node that is lost with a worker and an engine on it: its cable is pulled, of which nobody is told, or all that runs on
//! it is killed, and connections end.

use std::io::Write as _;
use std::time::Duration;

use dev_e2e::client::{Answer, CHAT, Ended, ask, chat_for, get, post, try_ask};
use dev_e2e::eventually;
use dev_e2e::ops::Ops;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::support::{RelayPod, STUB, STUB_PORT, Site, Suite, suite, verdict, within_limit};

const NODE: &str = "node2";
/// For so long a worker may be silent before relays give it up.
const SILENCE: Duration = Duration::from_secs(45);
/// What it may take besides: relays look at their silent workers now and then, and the operator asks relays every 10 s.
const BESIDES: Duration = Duration::from_secs(25);
/// Slots of the worker that stays.
const KEPT_SLOTS: u32 = 2;
/// Requests of each sort that the lost node has.
const EACH: usize = 3;

/// Puts the node back, also when the test has failed.
struct Restored<'a>(&'a Suite);

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        let _ = self.0.cluster.connect(NODE, true);
        // It may run.
        let _ = self.0.cluster.start_node(NODE);
    }
}

/// A pool on one node, whose engine does this with requests that ask for nothing else.
fn pool(name: &str, node: &str, slots: u32, models: &str, script: &Value) -> Value {
    let more = json!({
        "maxConcurrentRequests": slots,
        "backend": { "container": {
            "image": STUB,
            "args": ["--models", models, "--script", script.to_string()],
            "ports": [{ "name": "http", "containerPort": STUB_PORT }],
        } },
        "managed": { "nodeSelector": { "kubernetes.io/hostname": node } },
    });
    Site::pool(name, &more)
}

/// What runs on the node when it is lost.
struct Running {
    /// Requests whose answer has not begun: the status and the worker in the end.
    waiting: Vec<AbortOnDropHandle<(u16, String)>>,
    /// Streams that have begun.
    streams: Vec<Answer>,
}

impl Running {
    /// Starts them where nothing else can: the worker that stays is busy meanwhile.
    async fn start(site: &Site<'_>, relays: &[RelayPod]) -> Self {
        let service = site.service("main");
        let long = json!({ "head_delay_ms": 0, "chunks": 3000, "interval_ms": 100 });
        let mut busy = Vec::new();
        for _ in 0..KEPT_SLOTS {
            let mut answer = ask(service, post(CHAT, chat_for("k", true, &long))).await;
            answer.part().await;
            busy.push(answer);
        }
        let mut streams = Vec::new();
        for _ in 0..EACH {
            let mut answer = ask(service, post(CHAT, chat_for("m", true, &long))).await;
            answer.part().await;
            streams.push(answer);
        }
        let waiting = (0..EACH).map(|_| {
            let asked = try_ask(service, post(CHAT, chat_for("m", false, &json!({}))));
            AbortOnDropHandle::new(tokio::spawn(async move {
                let answer = asked.await.unwrap();
                (answer.status(), answer.worker().to_owned())
            }))
        });
        let waiting = waiting.collect();
        running(relays, "m", 2 * EACH).await;
        drop(busy);
        running(relays, "k", 0).await;
        Self { waiting, streams }
    }
}

/// Waits until workers have so many requests for a model, and nothing waits for it.
async fn running(relays: &[RelayPod], model: &str, count: usize) {
    eventually(&format!("{count} requests for {model} at workers"), async || {
        let mut all = Vec::new();
        for relay in relays {
            all.extend(relay.admin("requests").await.as_array()?.clone());
        }
        all.retain(|row| row["model"] == model);
        (all.len() == count && all.iter().all(|row| row["state"] != "queued")).then_some(())
    })
    .await;
}

async fn sum(relays: &[RelayPod], sample: &str) -> f64 {
    let mut sum = 0.0;
    for relay in relays {
        sum += Ops(relay.operations).metric(sample).await;
    }
    sum
}

/// Loses the node, and checks what becomes of it until everybody knows.
async fn lose(site: &Site<'_>, relays: &[RelayPod], how: &str, lose: impl FnOnce()) {
    const MOVED: &str = r#"modelrelay_requeues_total{model="m",reason="worker_lost"}"#;
    let Running { waiting, streams } = Running::start(site, relays).await;
    let moved_before = sum(relays, MOVED).await;
    let kept = relays[0].workers("kept").await;
    lose();
    let lost = Instant::now();
    let limit = lost + SILENCE + BESIDES;

    for asked in waiting {
        let (status, worker) = timeout_at(limit, asked).await.expect("what waits is moved in time").unwrap();
        assert_eq!((status, vec![worker]), (200, kept.clone()));
    }
    for mut stream in streams {
        let mut text = Vec::new();
        let end = async {
            loop {
                match stream.next().await {
                    Some(Ok(part)) => text.extend_from_slice(&part),
                    Some(Err(_)) => return,
                    None => panic!("a clean end of a stream whose engine is gone"),
                }
            }
        };
        timeout_at(limit, end).await.expect("streams end in time");
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("worker_lost") && !text.contains("[DONE]"), "{text}");
    }
    let ended = lost.elapsed();
    #[allow(clippy::cast_precision_loss, reason = "a small number")]
    let moved = EACH as f64;
    assert!((sum(relays, MOVED).await - moved_before - moved).abs() < 0.5);
    // A relay that none of the requests came to may have heard of the node a little later than the other.
    for relay in relays {
        let forgotten = within_limit("the relay forgets the worker", async || {
            let text = ask(relay.operations, get("/metrics")).await.bytes().await;
            let is_counted = String::from_utf8(text).unwrap().contains(r#"modelrelay_workers{pool="lost""#);
            (relay.workers("lost").await.is_empty() && !is_counted).then_some(())
        });
        timeout_at(limit, forgotten).await.expect("each relay notices in time");
    }
    let told = site.until("the pool's status tells it", "workerpools", "lost", |pool| {
        verdict(pool, "Available").0 == "False" && pool["status"]["connected"] == 0
    });
    assert!(Instant::now() < limit, "the status came too late: {told:#}");
    let text = format!(
        "a node {how}: its requests are moved and its streams end after {:.1} s, the status tells it after {:.1} s\n",
        ended.as_secs_f64(),
        lost.elapsed().as_secs_f64(),
    );
    // Not by a macro: what those print is shown for failed tests only.
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    site.until("the relay's status tells it", "modelrelays", "main", |relay| {
        relay["status"]["workers"]["connected"] == 1
    });
}

/// Waits until the lost pool serves again.
async fn recovered(site: &Site<'_>, relays: &[RelayPod]) {
    site.ready("workerpools", "lost");
    for relay in relays {
        within_limit("the worker is back", async || (relay.workers("lost").await.len() == 1).then_some(()))
            .await;
        let script = json!({ "head_delay_ms": 0, "chunks": 5 });
        let answer = ask(relay.client, post(CHAT, chat_for("l", true, &script))).await;
        assert_eq!(answer.stream().await, Ended::Whole(5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_costs_its_streams_only_and_is_served_again_when_it_is_back() {
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "node-loss");
    let _restored = Restored(&suite);
    let elsewhere =
        json!({ "podTemplate": { "spec": { "nodeSelector": { "kubernetes.io/hostname": "node1" } } } });
    site.apply(&[
        Site::relay("main", &elsewhere),
        pool("kept", "node1", KEPT_SLOTS, "m,k", &json!({})),
        pool("lost", NODE, 8, "m,l", &json!({ "head_delay_ms": 3_600_000 })),
    ]);
    for pool in ["kept", "lost"] {
        site.ready("workerpools", pool);
    }
    let relays = RelayPod::ready(&site, 2);
    recovered(&site, &relays).await;

    lose(&site, &relays, "without its cable", || suite.cluster.connect(NODE, false).unwrap()).await;
    suite.cluster.connect(NODE, true).unwrap();
    recovered(&site, &relays).await;

    lose(&site, &relays, "that is killed", || suite.cluster.kill_node(NODE).unwrap()).await;
    suite.cluster.start_node(NODE).unwrap();
    recovered(&site, &relays).await;
    let uids = |relays: &[RelayPod]| relays.iter().map(|relay| relay.uid.clone()).collect::<Vec<_>>();
    assert_eq!(uids(&RelayPod::ready(&site, 2)), uids(&relays));
}
