//! One worker that serves two relays.

use dev_backend::{Backend, Config};
use dev_e2e::client::{Asked, CHAT, Ended, chat};
use dev_e2e::floor;
use dev_e2e::stack::{Relay, worker, worker_config};
use serde_json::json;

const REQUESTS: usize = 30;

async fn both_are_served(slots: u32) {
    let _floor = floor::shared().await;
    let relays = [Relay::start("").await, Relay::start("").await];
    let backend = Backend::start(Config::default()).await.unwrap();
    let urls = relays.each_ref().map(Relay::url);
    let _worker = worker(worker_config("worker", &urls, &backend.url(), slots)).await;
    for relay in &relays {
        relay.ops.workers_ready(1).await;
    }
    // Never a client that leaves: the stub would notice a close later than the worker, and count both requests.
    let mut asked: Vec<Asked> = Vec::new();
    for number in 0..REQUESTS {
        let script = json!({"chunks": 5, "interval_ms": 1 + number % 3});
        asked.extend(relays.iter().map(|relay| relay.ask(CHAT, chat(true, &script))));
    }
    for asked in asked {
        assert_eq!(asked.answer().await.stream().await, Ended::Whole(5));
    }
    let stats = backend.stats();
    assert_eq!((stats.requests, stats.completed), (2 * REQUESTS as u64, 2 * REQUESTS as u64));
    assert_eq!(stats.max_running, u64::from(slots), "slots over-committed, or not all used");
    // All slots go to the relay that has work for them, whoever held them before.
    for (round, relay) in [&relays[0], &relays[1], &relays[0]].into_iter().enumerate() {
        let script = json!({"fail": "stall"});
        let held: Vec<Asked> = (0..slots).map(|_| relay.ask(CHAT, chat(true, &script))).collect();
        let stats = backend.wait_running(slots.into(), dev_e2e::LIMIT).await.unwrap();
        assert_eq!(stats.requests, 2 * REQUESTS as u64 + (round as u64 + 1) * u64::from(slots));
        drop(held);
        backend.wait_running(0, dev_e2e::LIMIT).await.unwrap();
        relay.ops.settled().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_share_one_slot() {
    both_are_served(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_share_five_slots() {
    both_are_served(5).await;
}

/// A relay that is gone takes no slot with it.
#[tokio::test]
async fn slots_of_a_lost_relay_serve_the_other() {
    let _floor = floor::shared().await;
    let (lost, stays) = (Relay::start("").await, Relay::start("").await);
    let backend = Backend::start(Config::default()).await.unwrap();
    let _worker = worker(worker_config("worker", &[lost.url(), stays.url()], &backend.url(), 2)).await;
    lost.ops.workers_ready(1).await;
    stays.ops.workers_ready(1).await;
    let held = [0; 2].map(|_| lost.ask(CHAT, chat(true, &json!({"fail": "stall"}))));
    backend.wait_running(2, dev_e2e::LIMIT).await.unwrap();
    let waiting = [0; 2].map(|_| stays.ask(CHAT, chat(true, &json!({}))));
    stays.ops.queued(2).await;
    for session in lost.inner.dispatcher.sessions() {
        session.close(modelrelay_relay::session::Close::Done);
    }
    drop(lost);
    for asked in waiting {
        assert_eq!(asked.answer().await.stream().await, Ended::Whole(20));
    }
    drop(held);
    assert_eq!(backend.wait_running(0, dev_e2e::LIMIT).await.unwrap().cancelled, 2);
}
