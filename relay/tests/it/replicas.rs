//! What a relay does because it is not the only one.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::v1::upgrade;
use crate::support::{CHAT, OurWorker, SettingsFile, TestRelay, V1Worker, chat, eventually, request};

async fn readiness(relay: &TestRelay) -> u16 {
    relay.operate("GET", "/readyz", &[]).await.status()
}

#[tokio::test]
async fn a_relay_is_ready_when_a_worker_has_found_it() {
    let relay = TestRelay::start("readiness: { settleSeconds: 3600 }\n").await;
    assert_eq!(readiness(&relay).await, 503);
    assert_eq!(relay.operate("GET", "/livez", &[]).await.status(), 200);
    let worker = OurWorker::join(&relay, &["m"], 1).await;
    assert_eq!(readiness(&relay).await, 200);
    // It stays so: what clients get from a relay without workers says more than a refused connection.
    drop(worker);
    eventually("no session", || relay.relay.dispatcher.sessions().is_empty().then_some(())).await;
    assert_eq!(readiness(&relay).await, 200);
}

#[tokio::test]
async fn a_relay_that_nobody_finds_is_ready_when_the_time_for_that_is_over() {
    let relay = TestRelay::start("readiness: { settleSeconds: 1 }\n").await;
    let started = Instant::now();
    while readiness(&relay).await != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(started.elapsed() < Duration::from_secs(10), "it never is");
    }
    assert!(started.elapsed() >= Duration::from_millis(800), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_fresh_replica_refuses_nothing_that_others_may_serve() {
    let settings = "replicas: 2\nreadiness: { settleSeconds: 3 }\nqueue: { noWorkerTimeoutSeconds: 1 }\n";
    let relay = TestRelay::start(settings).await;
    let started = Instant::now();
    let served = relay.ask(CHAT, chat("late", false));
    let refused = relay.ask(CHAT, chat("never", false));
    let answer = relay.send(request("GET", "/v1/models/late", &[], "")).await;
    assert_eq!(answer.error().await, (503, "no_worker".into()));
    // Longer than requests usually wait for a model that nobody serves.
    tokio::time::sleep_until(started + Duration::from_millis(1500)).await;
    let mut worker = OurWorker::join(&relay, &["late"], 1).await;
    let (stream, ..) = worker.request().await;
    worker.answer(stream, 200, &[], b"served").await;
    assert_eq!(served.answer().await.text().await, "served");
    assert_eq!(refused.answer().await.error().await, (503, "no_worker".into()));
    assert!(started.elapsed() >= Duration::from_millis(2900), "{:?}", started.elapsed());
    // From then on it knows what it knows.
    let answer = relay.send(request("GET", "/v1/models/never", &[], "")).await;
    assert_eq!(answer.error().await, (404, "model_not_found".into()));
}

#[tokio::test]
async fn workers_of_ours_are_told_when_the_number_changes_and_v1_workers_are_not() {
    let yaml = |replicas: u32| {
        format!("replicas: {replicas}\nworkerCredentials:\n{}", SettingsFile::credential("right", ""))
    };
    let file = SettingsFile::new(&yaml(2));
    let relay = TestRelay::follow(&file).await;
    let register = OurWorker::register(&["m"], 1);
    let mut ours = OurWorker::join_with(&relay, &register, Some("right")).await;
    let register = json!({ "type": "register", "worker_name": "w", "models": ["n"], "max_concurrent": 1 });
    let mut plain = V1Worker::join_with(&relay, &register, Some("right")).await;
    file.write(&yaml(3));
    let ping = ours.message().await;
    assert_eq!((&ping["type"], &ping["replicas"]), (&json!("ping"), &json!(3)));
    let stamp = ping["timestamp_unix_ms"].clone();
    ours.send(json!({ "type": "pong", "current_load": 0, "timestamp_unix_ms": stamp })).await;
    assert_eq!(relay.metric("modelrelay_replicas").await, 3.0);
    // The next thing that the plain one hears is its request.
    let asked = relay.ask(CHAT, chat("n", false));
    let taken = plain.request().await;
    plain.complete(&taken, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
    let (_socket, answer) = V1Worker::dial_with(relay.client, upgrade(relay.client, "")).await;
    assert_eq!(answer["x-modelrelay-replicas"], "3");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_leaves_the_number_as_it_was() {
    let relay = TestRelay::start("replicas: 2\nreplicasFrom: no-such-host.invalid\n").await;
    let (_socket, answer) = V1Worker::dial_with(relay.client, upgrade(relay.client, "")).await;
    assert_eq!(answer["x-modelrelay-replicas"], "2");
}

#[tokio::test]
async fn replicas_are_counted_by_the_addresses_of_their_name() {
    let relay = TestRelay::start("replicas: 7\nreplicasFrom: localhost\n").await;
    eventually("one address", || (relay.relay.settings.replicas().get() == 1).then_some(())).await;
}

#[tokio::test]
async fn a_slot_is_given_up_for_another_replica_where_its_worker_holds_that_one() {
    let relay = TestRelay::start("").await;
    let mut register = OurWorker::register(&["m"], 1);
    register["extensions"].as_array_mut().unwrap().push(json!("pleas.v1"));
    let mut workers = Vec::new();
    for others in [["b", "c"], ["b", "d"]] {
        let mut worker = OurWorker::join_as(&relay, &register).await;
        assert!(worker.ack["extensions"].as_array().unwrap().contains(&json!("pleas.v1")));
        let replicas = [others.as_slice(), &["this one"]].concat();
        worker.send(json!({ "type": "load", "healthy": true, "relays": 3, "replicas": replicas })).await;
        worker.grant(&relay, 1).await;
        workers.push(worker);
    }
    let plea = |from: &str, number: u32| json!({ "type": "plea", "relay": from, "model": "m", "n": 2, "band": 0, "age_ms": 0, "number": number });
    workers[0].send(plea("d", 1)).await;
    assert_eq!(workers[1].message().await, json!({ "type": "cede", "n": 1, "relay": "d" }));
    // A slot of the other is kept until it tells that it holds that one as well.
    let all = ["b", "c", "d", "this one"];
    workers[0].send(json!({ "type": "load", "healthy": true, "relays": 4, "replicas": all })).await;
    assert_eq!(workers[0].message().await, json!({ "type": "cede", "n": 1, "relay": "d" }));
    assert_eq!(workers.iter().map(|worker| worker.lent(&relay)).sum::<u32>(), 0);
}
