//! Workers that come, go and are killed all the time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use dev_backend::{Backend, Config};
use dev_e2e::client::{Answer, CHAT, Client, Ended, MESSAGES, chat, post};
use dev_e2e::process::{RelayProcess, Usage, start_worker};
use dev_e2e::stack::{Relay, worker, worker_config};
use dev_e2e::{eventually, floor, soon};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What may become of a request. Anything else fails the test.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Every byte came.
    Exact,
    /// The client was told why not.
    Refused(String),
    /// The answer began and broke off, and looked like it.
    Broken,
    /// The client left by itself.
    Left,
}

/// Rows of the error table that workers coming and going can cause.
const ROWS: [(u16, &str); 6] = [
    (502, "worker_lost"),
    (502, "backend_error"),
    (503, "no_worker"),
    (503, "queue_timeout"),
    (429, "queue_full"),
    (504, "backend_timeout"),
];

/// One request of a client, drawn at random.
struct Plan {
    route: &'static str,
    stream: bool,
    script: Value,
    /// What the request carries beside that.
    padding: usize,
    /// The client leaves this long after sending it.
    leaves: Option<Duration>,
}

impl Plan {
    fn draw() -> Self {
        let mut random = rand::rng();
        let stream = random.random_bool(0.7);
        let script = if stream {
            json!({
                "chunks": random.random_range(1..20), "interval_ms": random.random_range(0..4),
                "first_byte_delay_ms": random.random_range(0..10), "chunk_bytes": random.random_range(150..20_000),
            })
        } else {
            json!({
                "answer": "raw", "fill": "random", "seed": random.random::<u32>(),
                "bytes": random.random_range(0..300_000), "chunk_bytes": 10_000, "chunked": random.random::<bool>(),
                "interval_ms": random.random_range(0..2), "head_delay_ms": random.random_range(0..10),
            })
        };
        let padding = if random.random_bool(0.1) { random.random_range(0..500_000) } else { 0 };
        let leaves = random.random_bool(0.05).then(|| Duration::from_millis(random.random_range(0..30)));
        Self { route: if random.random() { CHAT } else { MESSAGES }, stream, script, padding, leaves }
    }

    fn body(&self) -> String {
        let mut body: Value = serde_json::from_str(&chat(self.stream, &self.script)).unwrap();
        body["padding"] = "x".repeat(self.padding).into();
        body.to_string()
    }

    /// Reads an answer to its end and says what it was.
    async fn judge(&self, answer: Answer) -> Outcome {
        if answer.status() != 200 {
            return self.refusal(answer).await;
        }
        if self.stream {
            return self.judge_stream(answer).await;
        }
        let crc32: u32 = answer.header("x-stub-crc32").unwrap().parse().unwrap();
        let mut answer = answer;
        let mut all = Vec::new();
        loop {
            match soon("more of the body", answer.next()).await {
                Some(Ok(part)) => all.extend_from_slice(&part),
                Some(Err(_)) => return Outcome::Broken,
                None => break,
            }
        }
        assert_eq!(
            (all.len() as u64, crc32fast::hash(&all)),
            (self.script["bytes"].as_u64().unwrap(), crc32)
        );
        Outcome::Exact
    }

    async fn judge_stream(&self, answer: Answer) -> Outcome {
        match answer.stream().await {
            Ended::Whole(chunks) => {
                assert_eq!(u64::from(chunks), self.script["chunks"].as_u64().unwrap());
                Outcome::Exact
            }
            Ended::Broken(bytes) => {
                let text = String::from_utf8(bytes).unwrap();
                assert!(!text.contains("[DONE]") && !text.contains("message_stop"), "looks complete: {text}");
                let errors = text.matches("\"error\":{").count();
                assert_eq!(errors, 1, "not one error event: {text}");
                assert!(text.ends_with("}\n\n"), "{text}");
                Outcome::Broken
            }
            Ended::Wrong(fault) => panic!("a wrong stream that ended well: {fault}"),
        }
    }

    async fn refusal(&self, answer: Answer) -> Outcome {
        let status = answer.status();
        let error = answer.json().await;
        if self.route == CHAT {
            let code = error["error"]["code"].as_str().unwrap();
            assert!(ROWS.contains(&(status, code)), "{status} {error}");
            return Outcome::Refused(code.to_owned());
        }
        assert_eq!(error["type"], "error", "{error}");
        assert!(ROWS.iter().any(|row| row.0 == status), "{status} {error}");
        Outcome::Refused(status.to_string())
    }
}

/// A client that asks one request after another, on one connection as long as that is good.
async fn client(address: SocketAddr, requests: usize) -> BTreeMap<Outcome, usize> {
    let mut outcomes = BTreeMap::new();
    let mut connection = None;
    for _ in 0..requests {
        let plan = Plan::draw();
        let mut link = match connection.take() {
            Some(link) => link,
            None => Client::connect(address).await.unwrap(),
        };
        let request = post(plan.route, plan.body());
        let answer = async {
            let answer = soon("an answer", link.send(request)).await;
            // A broken answer takes its connection with it, and the next request may be the one that finds out.
            plan.judge(answer.unwrap()).await
        };
        let outcome = match plan.leaves {
            Some(after) => timeout(after, answer).await.unwrap_or(Outcome::Left),
            None => answer.await,
        };
        if matches!(outcome, Outcome::Exact | Outcome::Refused(_)) {
            connection = Some(link);
        }
        *outcomes.entry(outcome).or_default() += 1;
    }
    outcomes
}

/// Runs clients side by side and adds up what became of their requests.
async fn clients(address: SocketAddr, count: usize, requests: usize) -> BTreeMap<Outcome, usize> {
    let tasks: Vec<_> = (0..count).map(|_| tokio::spawn(client(address, requests))).collect();
    let mut all = BTreeMap::new();
    for task in tasks {
        for (outcome, n) in task.await.unwrap() {
            *all.entry(outcome).or_default() += n;
        }
    }
    assert_eq!(all.values().sum::<usize>(), count * requests);
    all
}

/// Starts workers in this place again and again, and kills them or sends them away.
async fn place(number: usize, relay: String, backend: String, over: CancellationToken) -> usize {
    let mut lives = 0;
    while !over.is_cancelled() {
        lives += 1;
        let mut worker = start_worker(&format!("place-{number}"), &relay, &backend, 4);
        let (life, gap, kind) = {
            let mut random = rand::rng();
            (random.random_range(50..800), random.random_range(0..100), random.random_range(0..10))
        };
        over.run_until_cancelled(sleep(Duration::from_millis(life))).await;
        match kind {
            0..5 => worker.kill(),
            5..9 => {
                worker.terminate();
                worker.ended().await;
            }
            _ => {
                worker.terminate();
                sleep(Duration::from_millis(gap)).await;
                worker.kill();
            }
        }
        over.run_until_cancelled(sleep(Duration::from_millis(gap))).await;
    }
    lives
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_answered_once_refused_or_honestly_broken_whatever_becomes_of_workers() {
    let _floor = floor::alone().await;
    let backend = Backend::start(Config { keep_requests: 0, ..Config::default() }).await.unwrap();
    let relay = RelayProcess::start("").await;
    let calm = || ["calm-1", "calm-2"].map(|name| start_worker(name, &relay.url(), &backend.url(), 16));
    let mut workers = calm();
    relay.ops.idle_workers(&["calm-1", "calm-2"]).await;
    let warm = clients(relay.address, 50, 20).await;
    assert!(warm.keys().all(|outcome| matches!(outcome, Outcome::Exact | Outcome::Left)), "{warm:?}");
    relay.ops.settled().await;
    relay.ops.idle_workers(&["calm-1", "calm-2"]).await;
    let before = quiet_usage(&relay, None).await;
    workers.iter_mut().for_each(dev_e2e::process::Program::kill);

    let over = CancellationToken::new();
    let places: Vec<_> =
        (0..8).map(|n| tokio::spawn(place(n, relay.url(), backend.url(), over.clone()))).collect();
    let outcomes = clients(relay.address, 50, 100).await;
    over.cancel();
    let mut lives = 0;
    for place in places {
        lives += place.await.unwrap();
    }
    eprintln!("{lives} lives of workers; {outcomes:?}");
    let count = |wanted: fn(&Outcome) -> bool| -> usize {
        outcomes.iter().filter(|(outcome, _)| wanted(outcome)).map(|(_, n)| n).sum()
    };
    assert!(lives > 20, "only {lives} lives");
    assert!(count(|outcome| *outcome == Outcome::Broken) > 0, "no kill hit anything: {outcomes:?}");
    assert!(count(|outcome| *outcome == Outcome::Exact) > 4_000, "{outcomes:?}");

    // Nothing is left over: no request, no body, no slot, no connection, no file, no thread.
    backend.wait_running(0, dev_e2e::LIMIT).await.unwrap();
    relay.ops.settled().await;
    // Counted once each, but for those whose client left before the relay had read them.
    let counted = relay.ops.metric_sum("modelrelay_requests_total").await;
    let left = count(|outcome| *outcome == Outcome::Left) + warm.get(&Outcome::Left).copied().unwrap_or(0);
    assert!((6_000.0 - left as f64..=6_000.0).contains(&counted), "{counted} counted, {left} left");
    let _workers = calm();
    relay.ops.idle_workers(&["calm-1", "calm-2"]).await;
    let after = quiet_usage(&relay, Some(before)).await;
    eprintln!("relay before {before:?}, after {after:?}");
    assert!(after.resident_bytes <= before.resident_bytes + 16 * 1024 * 1024, "{before:?} {after:?}");
    // Every slot and every byte of a window can be used again.
    let script = json!({"chunks": 100, "chunk_bytes": 16_000});
    let streams: Vec<_> = (0..32)
        .map(|_| dev_e2e::client::Asked::new(relay.address, post(CHAT, chat(true, &script))))
        .collect();
    for stream in streams {
        assert_eq!(stream.answer().await.stream().await, Ended::Whole(100));
    }
    relay.ops.idle_workers(&["calm-1", "calm-2"]).await;
}

/// Waits until the relay holds no more files and threads than it may.
async fn quiet_usage(relay: &RelayProcess, most: Option<Usage>) -> Usage {
    let Some(most) = most else {
        // Connections of clients are gone when the count stays the same for two looks.
        let mut last = relay.program.usage();
        return eventually("a steady number of files", async || {
            sleep(Duration::from_millis(50)).await;
            let now = relay.program.usage();
            let steady = now.files == last.files;
            last = now;
            steady.then_some(now)
        })
        .await;
    };
    eventually(&format!("no more files and threads than {most:?}"), async || {
        let now = relay.program.usage();
        (now.files <= most.files && now.threads <= most.threads).then_some(now)
    })
    .await
}

/// The same in one process, where the relay's tasks can be counted.
#[test]
fn no_task_is_left_over_from_workers_that_are_killed() {
    let build =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (own, others) = (build(), build());
    others.block_on(async {
        let _floor = floor::shared().await;
        let backend = Backend::start(Config { keep_requests: 0, ..Config::default() }).await.unwrap();
        // The relay alone runs on this runtime.
        let relay = own.spawn(Relay::start("")).await.unwrap();
        let calm = || worker(worker_config("calm", &[relay.url()], &backend.url(), 16));
        let first = calm().await;
        relay.ops.idle_workers(&["calm"]).await;
        clients(relay.address, 10, 10).await;
        relay.ops.settled().await;
        let tasks = || own.metrics().num_alive_tasks();
        let mut last = 0;
        let before = eventually("a steady number of tasks", async || {
            sleep(Duration::from_millis(50)).await;
            let steady = tasks() == last;
            last = tasks();
            steady.then_some(last)
        })
        .await;
        first.kill().await;
        let over = CancellationToken::new();
        let places: Vec<_> = (0..4)
            .map(|number| {
                let (config, over) = (
                    worker_config(&format!("place-{number}"), &[relay.url()], &backend.url(), 4),
                    over.clone(),
                );
                tokio::spawn(async move {
                    while !over.is_cancelled() {
                        let worker = worker(config.clone()).await;
                        let (life, killed) = (rand::random_range(20..200), rand::random());
                        sleep(Duration::from_millis(life)).await;
                        if killed { worker.kill().await } else { worker.shutdown().await }
                    }
                })
            })
            .collect();
        let outcomes = clients(relay.address, 20, 25).await;
        over.cancel();
        for place in places {
            place.await.unwrap();
        }
        backend.wait_running(0, dev_e2e::LIMIT).await.unwrap();
        relay.ops.settled().await;
        let _last = calm().await;
        relay.ops.idle_workers(&["calm"]).await;
        eprintln!("{outcomes:?}; {before} tasks before");
        eventually(&format!("{before} tasks again"), async || (tasks() <= before).then_some(())).await;
        assert_eq!(relay.inner.sessions.len(), relay.inner.dispatcher.sessions().len());
        drop(relay);
    });
    own.shutdown_background();
    others.shutdown_background();
}
