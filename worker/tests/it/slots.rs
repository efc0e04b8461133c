//! Slots that two relays share, message by message.

use dev_backend::Backend;
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use serde_json::json;

use crate::support::{Relay, Session, config, worker};

async fn want(session: &mut Session, n: u32, received: u32) {
    session.send(json!({ "type": "want", "n": n, "band": 0, "age_ms": 5, "received": received })).await;
}

async fn give_back(session: &mut Session, n: u32) {
    assert_eq!(session.text("recall").await["n"], n);
    session.send(json!({ "type": "return", "n": n })).await;
}

#[tokio::test]
async fn slots_follow_what_relays_want() {
    let backend = Backend::start(dev_backend::Config::default()).await.unwrap();
    let (first, second) = (Relay::start().await, Relay::start().await);
    let mut config = config(&first.url(), &backend.url());
    config.relay_urls.push(second.url());
    config.max_concurrency = 2;
    let worker = worker(config).await;
    let mut a = first.accept_streams(DEFAULT_WINDOW_BYTES).await;
    assert_eq!(a.text("grant").await["n"], 2);
    let mut b = second.accept_streams(DEFAULT_WINDOW_BYTES).await;
    while b.text("load").await["relays"] != 2 {}
    give_back(&mut a, 1).await;
    assert_eq!(b.text("grant").await["n"], 1);

    // Both slots are used by one relay, the second of them wanted and recalled.
    let held = json!({ "model": "m", "stub": { "head_delay_ms": 60_000 } });
    let short = json!({ "model": "m" });
    b.request(1, &held).await;
    want(&mut b, 1, 1).await;
    give_back(&mut a, 1).await;
    assert_eq!(b.text("grant").await["n"], 1);
    b.request(2, &short).await;
    assert!(b.response(2).await.regrant, "nobody else wants it");

    // Now it goes to the other, which waits.
    b.request(3, &json!({ "model": "m", "stub": { "head_delay_ms": 300 } })).await;
    b.settle().await;
    want(&mut a, 1, 2).await;
    a.settle().await;
    assert!(!b.response(3).await.regrant);
    assert_eq!(a.text("grant").await["n"], 1);
    a.request(1, &short).await;
    assert!(a.response(1).await.regrant);

    // A relay that leaves keeps nothing idle.
    a.send(json!({ "type": "goaway", "deadline_ms": 60_000 })).await;
    give_back(&mut a, 1).await;
    assert_eq!(b.text("grant").await["n"], 1);
    worker.kill().await;
}

#[tokio::test]
async fn a_relay_that_returns_what_was_not_recalled_is_left() {
    let backend = Backend::start(dev_backend::Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let worker = worker(config(&relay.url(), &backend.url())).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.send(json!({ "type": "return", "n": 1 })).await;
    assert_eq!(u16::from(session.closed().await.code), 1002);
    worker.kill().await;
}

#[tokio::test]
async fn one_relay_hears_of_slots_once() {
    let backend = Backend::start(dev_backend::Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let worker = worker(config(&relay.url(), &backend.url())).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    session.settle().await;
    session.types.clear();
    for stream in 1..=20 {
        session.request(stream, &json!({ "model": "m" })).await;
        assert!(session.response(stream).await.regrant);
    }
    let about_slots = |name: &&String| matches!(name.as_str(), "grant" | "recall");
    assert_eq!(session.types.iter().find(about_slots), None);
    worker.kill().await;
}
