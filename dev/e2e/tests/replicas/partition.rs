//! One worker cannot reach one relay, and neither is told.

use std::time::{Duration, Instant};

use dev_backend::{Backend, Config, Phase};
use dev_e2e::client::{Asked, CHAT, Ended, ask, chat, post};
use dev_e2e::link::Link;
use dev_e2e::process::RelayProcess;
use dev_e2e::{eventually, floor};
use modelrelay_protocol::wellknown::SILENCE_LIMIT;
use serde_json::json;
use tokio::time::timeout;

use crate::fleet::start_worker;

/// Requests wait longer than a partition lasts.
const SETTINGS: &str = "replicas: 3\nqueue: { timeoutSeconds: 120, noWorkerTimeoutSeconds: 120 }\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_were_lent_beyond_a_partition_are_used_elsewhere_and_never_twice() {
    let _floor = floor::shared().await;
    let mut relays = Vec::new();
    for _ in 0..3 {
        relays.push(RelayProcess::start(SETTINGS).await);
    }
    let link = Link::start(relays[0].address, Duration::ZERO).await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let ways = [link.url(), relays[1].url(), relays[2].url()];
    let _worker = start_worker("worker-0", &ways, &backend.url(), 2, &json!({}));
    for relay in &relays {
        relay.ops.workers_ready(1).await;
    }
    // Both slots go where they are used, and stay there.
    let lent = |n| {
        ask(relays[0].address, post(CHAT, chat(true, &json!({"chunks": 2, "interval_ms": 300, "id": n}))))
    };
    let (one, two) = tokio::join!(lent("one"), lent("two"));
    let (one, two) = tokio::join!(one.stream(), two.stream());
    assert_eq!([one, two], [Ended::Whole(2), Ended::Whole(2)]);
    eventually("both slots are here", async || {
        (relays[0].ops.admin("workers").await[0]["free"] == 2).then_some(())
    })
    .await;

    link.cut();
    let cut = Instant::now();
    // One more is dispatched into the void; what others ask for waits for slots that cannot be called back.
    let lost = Asked::new(relays[0].address, post(CHAT, chat(true, &json!({"chunks": 2, "id": "lost"}))));
    let held = [1, 2].map(|relay| {
        let script = json!({"id": format!("held-{relay}"), "chunks": 1_000_000, "interval_ms": 50});
        Asked::new(relays[relay].address, post(CHAT, chat(true, &script)))
    });
    for relay in [1, 2] {
        let id = format!("held-{relay}");
        backend.wait_phase(&id, Phase::BeforeHead, 2 * SILENCE_LIMIT).await.unwrap();
    }
    let took = cut.elapsed();
    eprintln!("both slots were in use elsewhere {took:?} after the cut");
    // The relay pings every 15 s, so what was heard last may be a moment old, and the machine may be slow.
    assert!(took <= SILENCE_LIMIT + Duration::from_secs(3), "{took:?}");
    assert_eq!(backend.stats().max_running, 2);

    link.heal();
    // The relay had noticed as well, or does now, and the worker comes back by itself; what was lost is served there.
    relays[0].ops.workers_ready(1).await;
    for asked in held {
        let mut answer = asked.answer().await;
        answer.part().await;
        drop(answer);
    }
    let served = timeout(SILENCE_LIMIT, lost.answer()).await.expect("in time");
    assert_eq!((served.status(), served.stream().await), (200, Ended::Whole(2)));
    let stats = backend.wait_running(0, dev_e2e::LIMIT).await.unwrap();
    assert_eq!((stats.max_running, stats.requests), (2, 5), "{stats:?}");
    // Nothing is left of it: each slot can be had at each relay.
    for relay in &relays {
        let both = [0; 2]
            .map(|_| ask(relay.address, post(CHAT, chat(true, &json!({"chunks": 2, "interval_ms": 100})))));
        for answer in both {
            assert_eq!(answer.await.stream().await, Ended::Whole(2));
        }
    }
    assert_eq!(backend.stats().max_running, 2);
}
