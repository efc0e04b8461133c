//! What a relay that has just started says, before workers have found it and after.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dev_backend::{Backend, Config};
use dev_e2e::client::{Asked, CHAT, Ended, ask, chat, get, post};
use dev_e2e::{eventually, floor};
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::finding::{Names, replicas_known};

/// Requests for a model that nobody serves wait for a second, those that a fresh relay may not know of for a minute.
const SETTINGS: &str =
    "readiness: { settleSeconds: 60 }\nqueue: { noWorkerTimeoutSeconds: 1, timeoutSeconds: 60 }\n";

/// A look at a name that has no address, or not the right ones, is repeated well before the usual ten seconds are over.
const SOON: Duration = Duration::from_secs(8);

/// Asks one relay again and again; returns how often, and fails with the first answer that is not whole.
async fn clients(relay: SocketAddr, over: CancellationToken) -> usize {
    let mut asked = 0;
    while !over.is_cancelled() {
        let answer = ask(relay, post(CHAT, chat(true, &json!({"chunks": 2, "interval_ms": 20})))).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.stream().await, Ended::Whole(2));
        asked += 1;
    }
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_relay_is_not_ready_and_refuses_nothing_that_its_siblings_serve_until_workers_find_it() {
    let _floor = floor::shared().await;
    let Some(names) = Names::new() else { return };
    let (mut first, one, one_ops) = names.relay("127.0.0.1:0".parse().unwrap(), SETTINGS).await;
    let at = |last: u8| SocketAddr::from(([127, 0, 0, last], one.port()));
    let backend = Backend::start(Config { keep_requests: 0, ..Config::default() }).await.unwrap();
    let mut workers: Vec<_> =
        (0..2).map(|number| names.worker(&format!("worker-{number}"), one.port(), &backend.url())).collect();
    // Everybody looks before the name has an address, as in a cluster that has not published it yet.
    first.logged("Cannot count the replicas; the last number stands").await;
    for worker in &mut workers {
        worker.logged("Cannot resolve the relay's name").await;
    }
    let (_second, two, two_ops) = names.relay(at(2), SETTINGS).await;
    let published = Instant::now();
    names.set(&[one, two]);
    for ops in [one_ops, two_ops] {
        replicas_known(&ops, 2.0).await;
        ops.workers_ready(2).await;
    }
    let took = published.elapsed();
    eprintln!("everybody was found {took:?} after the name had addresses");
    assert!(took < SOON, "{took:?}");

    let over = CancellationToken::new();
    let siblings = [one, two].map(|relay| tokio::spawn(clients(relay, over.clone())));
    let (_third, three, three_ops) = names.relay(at(3), SETTINGS).await;
    assert_eq!(three_ops.readiness().await, 503);
    replicas_known(&three_ops, 2.0).await;
    // Twice as long as a request waits here for a model of which a relay is sure that nobody serves it.
    let waits = Asked::new(three, post(CHAT, chat(true, &json!({}))));
    three_ops.queued(1).await;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        assert_eq!(three_ops.readiness().await, 503, "no worker has found it");
        let answer = ask(three, get("/v1/models/m")).await;
        assert_eq!(answer.error().await, (503, "no_worker".into()));
        sleep(Duration::from_millis(50)).await;
    }
    three_ops.queued(1).await;
    names.set(&[one, two, three]);
    eventually("it is ready", async || (three_ops.readiness().await == 200).then_some(())).await;
    let found = three_ops.admin("workers").await;
    assert!(!found.as_array().unwrap().is_empty(), "ready without a worker");
    let answer = waits.answer().await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.stream().await, Ended::Whole(20));
    assert_eq!(ask(three, get("/v1/models/m")).await.status(), 200);
    let served = tokio::spawn(clients(three, over.clone()));
    three_ops.workers_ready(2).await;
    over.cancel();
    for clients in siblings.into_iter().chain([served]) {
        assert!(clients.await.unwrap() > 0);
    }
}
