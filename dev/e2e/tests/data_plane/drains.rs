//! Relays and workers that leave in good order.

use std::time::{Duration, Instant};

use dev_backend::{Backend, Config};
use dev_e2e::client::{Answer, Asked, CHAT, Client, Ended, MESSAGES, chat, post, try_ask};
use dev_e2e::process::{Program, RelayProcess, start_worker};
use dev_e2e::{eventually, floor};
use serde_json::json;

/// A second signal ends a process within this time.
const AT_ONCE: Duration = Duration::from_secs(3);

fn ask(relay: &RelayProcess, route: &str, chunks: u32) -> Asked {
    let script = json!({"chunks": chunks, "interval_ms": 10});
    Asked::new(relay.address, post(route, chat(true, &script)))
}

/// Opens this many streams of this many chunks, and has the first bytes of each.
async fn streams(relay: &RelayProcess, count: usize, chunks: u32) -> Vec<Answer> {
    let asked: Vec<Asked> = (0..count).map(|n| ask(relay, [CHAT, MESSAGES][n % 2], chunks)).collect();
    let mut answers = Vec::new();
    for asked in asked {
        answers.push(asked.answer().await);
    }
    answers
}

#[tokio::test]
async fn relay_that_is_told_to_leave_finishes_what_runs_and_what_waits() {
    let _floor = floor::shared().await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut relay = RelayProcess::start("").await;
    let _worker = start_worker("worker", &relay.url(), &backend.url(), 20);
    relay.ops.idle_workers(&["worker"]).await;
    let running = streams(&relay, 20, 100).await;
    let waiting: Vec<Asked> = (0..10).map(|_| ask(&relay, CHAT, 5)).collect();
    relay.ops.queued(10).await;
    let mut kept = Client::connect(relay.address).await.unwrap();
    kept.send(post(CHAT, "{")).await.unwrap().bytes().await;
    relay.program.terminate();
    eventually("a failing readiness", async || (relay.ops.readiness().await == 503).then_some(())).await;
    eventually("a closed port", async || try_ask(relay.address, post(CHAT, "{")).await.err()).await;
    for answer in running {
        assert_eq!(answer.stream().await, Ended::Whole(100));
    }
    for asked in waiting {
        assert_eq!(asked.answer().await.stream().await, Ended::Whole(5));
    }
    assert_eq!(relay.program.ended().await.code(), Some(0));
    let stats = backend.stats();
    assert_eq!((stats.completed, stats.requests), (30, 30), "{stats:?}");
}

#[tokio::test]
async fn worker_that_is_told_to_leave_breaks_nothing_where_another_serves() {
    let _floor = floor::shared().await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = RelayProcess::start("").await;
    let start = |name: &str| start_worker(name, &relay.url(), &backend.url(), 8);
    let mut leaving = start("leaving");
    let _stays = start("stays");
    relay.ops.workers_ready(2).await;
    // Ten clients that ask one request after another, all through the drain and beyond its end.
    let over = tokio_util::sync::CancellationToken::new();
    let clients: Vec<_> = (0..10)
        .map(|number| {
            let (address, over) = (relay.address, over.clone());
            tokio::spawn(async move {
                let mut workers = Vec::new();
                while !over.is_cancelled() {
                    let script = json!({"chunks": 10, "interval_ms": 3});
                    let request = post([CHAT, MESSAGES][number % 2], chat(true, &script));
                    let answer = dev_e2e::client::ask(address, request).await;
                    assert_eq!(answer.status(), 200);
                    workers.push(answer.worker().to_owned());
                    assert_eq!(answer.stream().await, Ended::Whole(10));
                }
                workers
            })
        })
        .collect();
    backend.wait_stats("some done", dev_e2e::LIMIT, |stats| stats.completed > 50).await.unwrap();
    let long = streams(&relay, 2, 100).await;
    let on_leaving = long.iter().filter(|answer| answer.worker() == "leaving").count();
    leaving.terminate();
    eventually("a drain", async || {
        let workers = relay.ops.admin("workers").await;
        let row = workers.as_array()?.iter().find(|row| row["name"] == "leaving")?.clone();
        (row["state"] != "ready").then_some(())
    })
    .await;
    for answer in long {
        assert_eq!(answer.stream().await, Ended::Whole(100));
    }
    assert_eq!(leaving.ended().await.code(), Some(0));
    let done = backend.stats().completed;
    backend.wait_stats("more done", dev_e2e::LIMIT, |stats| stats.completed > done + 50).await.unwrap();
    over.cancel();
    let mut asked = Vec::new();
    for client in clients {
        asked.extend(client.await.unwrap());
    }
    assert!(asked.iter().any(|worker| worker == "leaving") || on_leaving > 0, "it never ran anything");
    relay.ops.idle_workers(&["stays"]).await;
    let stats = backend.stats();
    assert_eq!((stats.cancelled, stats.failed, stats.requests), (0, 0, stats.completed), "{stats:?}");
}

/// Ends a process that waits for a stream which never ends, by a second signal.
async fn ends_at_once(program: &mut Program, draining: &str) {
    program.terminate();
    program.logged(draining).await;
    assert!(program.try_ended().is_none(), "it did not wait for its streams");
    let second = Instant::now();
    program.terminate();
    program.ended().await;
    assert!(second.elapsed() < AT_ONCE, "{:?}", second.elapsed());
}

#[tokio::test]
async fn second_signal_ends_a_relay_at_once() {
    let _floor = floor::shared().await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut relay = RelayProcess::start("").await;
    let _worker = start_worker("worker", &relay.url(), &backend.url(), 2);
    relay.ops.idle_workers(&["worker"]).await;
    let stream = streams(&relay, 1, 1_000_000).await.remove(0);
    ends_at_once(&mut relay.program, "Draining").await;
    let code = crate::support::broken_stream(stream, crate::support::Api::OpenAi).await;
    assert_eq!(code, "draining");
    backend.wait_running(0, dev_e2e::LIMIT).await.unwrap();
}

#[tokio::test]
async fn second_signal_ends_a_worker_at_once() {
    let _floor = floor::shared().await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = RelayProcess::start("").await;
    let mut worker = start_worker("worker", &relay.url(), &backend.url(), 2);
    relay.ops.idle_workers(&["worker"]).await;
    let stream = streams(&relay, 1, 1_000_000).await.remove(0);
    ends_at_once(&mut worker, "Draining").await;
    let code = crate::support::broken_stream(stream, crate::support::Api::OpenAi).await;
    assert_eq!(code, "worker_lost");
    backend.wait_running(0, dev_e2e::LIMIT).await.unwrap();
}
