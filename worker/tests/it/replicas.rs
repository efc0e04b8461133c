//! Several relay replicas: behind one address, at several, and how the worker finds and holds each.

use dev_backend::{Backend, Config, Phase};
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use modelrelay_worker::app::Worker;
use serde_json::json;

use crate::support::{LIMIT, Relay, config, worker};

/// A worker that dials these relays.
async fn worker_of(relays: &[&Relay]) -> (Backend, Worker) {
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut config = config(&relays[0].url(), &backend.url());
    config.relay_urls.extend(relays[1..].iter().map(|relay| relay.url()));
    let worker = worker(config).await;
    (backend, worker)
}

#[tokio::test]
async fn one_address_is_dialled_until_each_replica_behind_it_is_held() {
    let relay = Relay::start().await;
    let (_backend, worker) = worker_of(&[&relay]).await;
    let mut a = relay.hold_as("a", 3).await;
    relay.accept_as("a", 3).await.left_unregistered().await;
    let mut b = relay.hold_as("b", 3).await;
    relay.accept_as("b", 3).await.left_unregistered().await;
    relay.accept_as("a", 3).await.left_unregistered().await;
    let mut c = relay.hold_as("c", 3).await;
    c.models(&["m"]).await;
    // All four slots are lent, and no more than that.
    for session in [&mut a, &mut b] {
        session.settle().await;
    }
    relay.nobody_waits().await;
    // The number changes, and one replica more is looked for.
    b.send(json!({ "type": "ping", "replicas": 4 })).await;
    relay.accept_as("c", 4).await.left_unregistered().await;
    relay.hold_as("d", 4).await.models(&["m"]).await;
    worker.kill().await;
}

#[tokio::test]
async fn a_replica_that_is_lost_is_looked_for_again() {
    let relay = Relay::start().await;
    let (_backend, worker) = worker_of(&[&relay]).await;
    let mut a = relay.hold_as("a", 2).await;
    let b = relay.hold_as("b", 2).await;
    drop(b);
    relay.accept_as("a", 2).await.left_unregistered().await;
    let mut c = relay.hold_as("c", 2).await;
    c.models(&["m"]).await;
    a.settle().await;
    relay.nobody_waits().await;
    worker.kill().await;
}

#[tokio::test]
async fn two_addresses_of_one_relay_make_one_session() {
    let (one, other) = (Relay::start().await, Relay::start().await);
    let (_backend, worker) = worker_of(&[&one, &other]).await;
    let mut held = one.hold_as("a", 1).await;
    held.models(&["m"]).await;
    other.accept_as("a", 1).await.left_unregistered().await;
    held.settle().await;
    // When it is gone both ways are tried, and whichever leads to it first is kept.
    drop(held);
    let mut held = other.hold_as("a", 1).await;
    held.models(&["m"]).await;
    one.accept_as("a", 1).await.left_unregistered().await;
    worker.kill().await;
}

#[tokio::test]
async fn a_relay_that_leaves_is_served_while_another_is_looked_for() {
    let relay = Relay::start().await;
    let (backend, worker) = worker_of(&[&relay]).await;
    let mut leaving = relay.hold_as("old", 1).await;
    assert_eq!(leaving.text("grant").await["n"], 4);
    leaving.models(&["m"]).await;
    let stub = json!({ "id": "long", "chunks": 40, "interval_ms": 20 });
    leaving.request(1, &json!({ "model": "m", "stream": true, "stub": stub })).await;
    backend.wait_phase("long", Phase::BeforeHead, LIMIT).await.unwrap();
    leaving.send(json!({ "type": "goaway", "deadline_ms": 60_000 })).await;
    // It still leads to the old one for a while; the new one is held before the old one is gone.
    relay.accept_as("old", 1).await.left_unregistered().await;
    let mut fresh = relay.hold_as("new", 1).await;
    fresh.models(&["m"]).await;
    // The idle credits move; what is wanted for what waits there is given.
    let recalled = leaving.recall().await;
    assert_eq!(recalled, 3);
    leaving.send(json!({ "type": "return", "n": recalled })).await;
    assert_eq!(fresh.text("grant").await["n"], 3);
    leaving.send(json!({ "type": "want", "n": 1, "band": 0, "age_ms": 5, "received": 4 })).await;
    assert_eq!(fresh.text("recall").await["n"], 1);
    fresh.send(json!({ "type": "return", "n": 1 })).await;
    assert!(leaving.response(1).await.body.ends_with(b"[DONE]\n\n"));
    leaving.send(json!({ "type": "empty" })).await;
    assert_eq!(u16::from(leaving.closed().await.code), 1000);
    worker.kill().await;
}

#[tokio::test]
async fn what_runs_when_a_leaving_relays_deadline_comes_is_finished() {
    let relay = Relay::start().await;
    let (backend, worker) = worker_of(&[&relay]).await;
    let mut leaving = relay.hold_as("old", 1).await;
    leaving.models(&["m"]).await;
    let stub = json!({ "id": "long", "chunks": 30, "interval_ms": 20 });
    leaving.request(1, &json!({ "model": "m", "stream": true, "stub": stub })).await;
    backend.wait_phase("long", Phase::BeforeHead, LIMIT).await.unwrap();
    leaving.send(json!({ "type": "goaway", "deadline_ms": 1 })).await;
    assert!(leaving.response(1).await.body.ends_with(b"[DONE]\n\n"));
    assert_eq!(u16::from(leaving.closed().await.code), 1000);
    worker.kill().await;
}

#[tokio::test]
async fn relays_without_a_name_are_all_held() {
    let (one, other) = (Relay::start().await, Relay::start().await);
    let (_backend, worker) = worker_of(&[&one, &other]).await;
    one.accept().await.acknowledge(65_536).await;
    other.accept().await.acknowledge(65_536).await;
    worker.kill().await;
}

#[tokio::test]
async fn a_name_with_several_addresses_is_one_relay_each() {
    // Both families of loopback, where there are both, lead to the same listener only if it takes both; here each
    // address is a relay of its own or refuses, and the certificate's name stays the host's.
    let relay = Relay::start().await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut config = config(&format!("http://localhost:{}", relay.port()), &backend.url());
    config.relay_resolve = modelrelay_protocol::config::RelayResolve::All;
    let worker = worker(config).await;
    let session = relay.hold_as("a", 1).await;
    assert_eq!(session.headers["host"], format!("localhost:{}", relay.port()).as_str());
    worker.kill().await;
}

#[tokio::test]
async fn each_replica_is_told_what_the_others_are_called() {
    let relay = Relay::start().await;
    let (_backend, worker) = worker_of(&[&relay]).await;
    let (mut a, mut b) = (relay.accept_as("a", 2).await, relay.accept_as("b", 2).await);
    for session in [&mut a, &mut b] {
        session
            .acknowledge_with(DEFAULT_WINDOW_BYTES, &["streams.v1", "slots.v1", "load.v1", "pleas.v1"])
            .await;
    }
    for session in [&mut a, &mut b] {
        while session.text("load").await["replicas"] != json!(["a", "b"]) {}
    }
    drop(b);
    loop {
        let load = a.text("load").await;
        if load["replicas"].is_null() {
            assert!(load["relays"].is_null(), "{load}");
            break;
        }
    }
    worker.kill().await;
}
