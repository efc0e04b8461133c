//! Worker credentials out of a settings file that changes.

use std::time::Duration;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::support::v1::closed;
use crate::support::{CHAT, OurWorker, SettingsFile, TestRelay, V1Worker, chat, eventually, request};

fn workers(entries: &[String]) -> String {
    format!("workerCredentials:\n{}", entries.concat())
}

fn register(name: &str, models: &[&str], slots: u32) -> Value {
    json!({ "type": "register", "worker_name": name, "models": models, "max_concurrent": slots })
}

#[tokio::test]
async fn a_withdrawn_credential_disconnects_its_worker_within_a_second() {
    let stays = SettingsFile::credential("stays", "");
    let file = SettingsFile::new(&workers(&[SettingsFile::credential("goes", ""), stays.clone()]));
    let relay = TestRelay::follow(&file).await;
    let mut goes = V1Worker::join_with(&relay, &register("goes", &["m"], 2), Some("goes")).await;
    let streamed = relay.ask(CHAT, chat("m", true));
    let taken = goes.request().await;
    goes.chunk(&taken, "data: 1\n\n").await;
    let mut streamed = streamed.answer().await;
    streamed.at_least(9).await;
    let moving = relay.ask(CHAT, chat("m", false));
    goes.request().await;
    let mut stays_worker = V1Worker::join_with(&relay, &register("stays", &["m"], 1), Some("stays")).await;
    file.write(&workers(&[stays]));
    let written = Instant::now();
    let close = goes.closed().await.unwrap();
    assert_eq!(u16::from(close.code), 1008, "{}", close.reason);
    assert!(written.elapsed() < Duration::from_secs(1), "{:?}", written.elapsed());
    // What it ran moves, or breaks where it cannot.
    let request = stays_worker.request().await;
    stays_worker.complete(&request, 200, "moved").await;
    assert_eq!(moving.answer().await.text().await, "moved");
    assert!(String::from_utf8(streamed.broken_body().await).unwrap().contains("worker_lost"));
    let mut socket = V1Worker::dial(relay.client, Some("goes")).await;
    assert_eq!(u16::from(closed(&mut socket).await.unwrap().code), 1008);
    relay.settled().await;
}

#[tokio::test]
async fn a_worker_that_does_not_read_is_disconnected_all_the_same() {
    let stays = SettingsFile::credential("stays", "");
    let file = SettingsFile::new(&workers(&[SettingsFile::credential("deaf", ""), stays.clone()]));
    let relay = TestRelay::follow(&file).await;
    let deaf = V1Worker::join_with(&relay, &register("deaf", &["m"], 8), Some("deaf")).await;
    // Its socket is full of requests that it never reads.
    let large = json!({ "model": "m", "x": "y".repeat(10 << 20) }).to_string();
    let asked: Vec<_> = (0..4).map(|_| relay.ask(CHAT, large.clone())).collect();
    eventually("all are dispatched", || {
        (relay.relay.dispatcher.with_scheduler(|s| s.counts().running) == 4).then_some(())
    })
    .await;
    file.write(&workers(&[stays]));
    let written = Instant::now();
    relay.workers(0).await;
    assert!(written.elapsed() < Duration::from_secs(1), "{:?}", written.elapsed());
    relay.queued(4).await;
    drop((asked, deaf));
    relay.settled().await;
}

#[tokio::test]
async fn a_withdrawn_credential_drains_its_worker_where_its_entry_says_so() {
    let goes = SettingsFile::credential("goes", ", onRemoval: Drain");
    let stays = SettingsFile::credential("stays", "");
    let file = SettingsFile::new(&workers(&[goes, stays.clone()]));
    let relay = TestRelay::follow(&file).await;
    let mut goes = V1Worker::join_with(&relay, &register("goes", &["m"], 2), Some("goes")).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let taken = goes.request().await;
    file.write(&workers(&[stays]));
    eventually("it drains", || {
        relay.relay.dispatcher.sessions().iter().any(|session| session.live().draining).then_some(())
    })
    .await;
    let waiting = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    goes.chunk(&taken, "data: 1\n\n").await;
    goes.complete(&taken, 200, "").await;
    assert_eq!(asked.answer().await.text().await, "data: 1\n\n");
    let close = goes.closed().await.unwrap();
    assert_eq!(u16::from(close.code), 1000);
    drop(waiting);
    relay.settled().await;
}

#[tokio::test]
async fn the_entry_that_counts_is_the_last_one() {
    let entry = |more: &str| workers(&[SettingsFile::credential("w", more)]);
    let file = SettingsFile::new(&entry(", labels: { site: a }"));
    let relay = TestRelay::follow(&file).await;
    let mut worker = V1Worker::join_with(&relay, &register("w", &["m"], 1), Some("w")).await;
    let ask =
        || relay.ask_with(request("POST", CHAT, &[("authorization", "Bearer sk-secret")], chat("m", false)));
    let asked = ask();
    let request = worker.request().await;
    assert_eq!(request["headers"].get("authorization"), None);
    worker.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
    // Labels and forwarding change under a session; it stays.
    file.write(&entry(", labels: { site: b }, forwardCredentials: true"));
    eventually("the entry is in force", || {
        relay
            .relay
            .dispatcher
            .sessions()
            .first()
            .filter(|session| session.entry().forward_credentials)
            .map(drop)
    })
    .await;
    assert_eq!(relay.admin("/admin/v1/workers").await[0]["labels"], json!({ "site": "b" }));
    let asked = ask();
    let request = worker.request().await;
    assert_eq!(request["headers"]["authorization"], "Bearer sk-secret");
    worker.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
    // Another grant: it finishes, is closed, and comes back under the new one.
    file.write(&entry(", models: [m]"));
    assert_eq!(u16::from(worker.closed().await.unwrap().code), 1000);
    let worker = V1Worker::join_with(&relay, &register("w", &["m", "n"], 1), Some("w")).await;
    assert_eq!(worker.ack["models"], json!(["m"]));
    relay.settled().await;
}

#[tokio::test]
async fn a_worker_that_registers_after_its_credential_was_withdrawn_is_refused() {
    let (goes, stays) = (SettingsFile::credential("goes", ""), SettingsFile::credential("stays", ""));
    let file = SettingsFile::new(&workers(&[goes, stays.clone()]));
    let relay = TestRelay::follow(&file).await;
    let mut socket = V1Worker::dial(relay.client, Some("goes")).await;
    let before = relay.relay.settings.load().revision.clone();
    file.write(&workers(&[stays]));
    eventually("the change is in force", || (relay.relay.settings.load().revision != before).then_some(()))
        .await;
    socket.send(Message::text(register("late", &["m"], 1).to_string())).await.unwrap();
    assert_eq!(u16::from(closed(&mut socket).await.unwrap().code), 1008);
    relay.workers(0).await;
}

#[tokio::test]
async fn a_credential_bounds_its_workers_models_and_slots() {
    let entry = SettingsFile::credential(
        "w",
        ", pool: gpus, namespace: lab, models: [a, b], maxWorkers: 2, maxConcurrentRequests: 1, labels: { zone: x }",
    );
    let relay = TestRelay::follow(&SettingsFile::new(&workers(&[entry]))).await;
    let first = V1Worker::join_with(&relay, &register("first", &["a", "c", "b"], 8), Some("w")).await;
    assert_eq!(first.ack["models"], json!(["a", "b"]));
    assert_eq!(first.ack["warnings"].as_array().unwrap().len(), 1, "{}", first.ack);
    let any = V1Worker::join_with(&relay, &register("any", &["*"], 1), Some("w")).await;
    assert_eq!(any.ack["models"], json!(["a", "b"]));
    let rows = relay.admin("/admin/v1/workers").await;
    assert_eq!((&rows[0]["slots"], &rows[0]["pool"]), (&json!(1), &json!("gpus")));
    assert_eq!(rows[0]["labels"], json!({ "zone": "x" }));
    // A third is one too many, and welcome once another has left.
    let mut third = V1Worker::dial(relay.client, Some("w")).await;
    third.send(Message::text(register("third", &["a"], 1).to_string())).await.unwrap();
    let close = closed(&mut third).await.unwrap();
    assert_eq!(u16::from(close.code), 1008);
    assert!(close.reason.contains("gpus"));
    drop(any);
    relay.workers(1).await;
    let mut register = OurWorker::register(&["a"], 4);
    register["instance"] = json!("one");
    let mut ours = OurWorker::join_with(&relay, &register, Some("w")).await;
    assert_eq!(ours.ack["max_concurrent"], 1);
    let rows = relay.admin("/admin/v1/workers").await;
    let shown: Vec<_> =
        rows.as_array().unwrap().iter().map(|row| (&row["instance"], &row["namespace"])).collect();
    assert_eq!(shown, [(&Value::Null, &json!("lab")), (&json!("one"), &json!("lab"))]);
    // The same process again takes its own place, not another's.
    let again = OurWorker::join_with(&relay, &register, Some("w")).await;
    assert_eq!(u16::from(ours.closed().await.unwrap().code), 1000);
    drop(first);
    relay.workers(1).await;
    // It may lend what it likes: one request at a time is what it gets.
    ours = again;
    ours.send(json!({ "type": "grant", "n": 4 })).await;
    let asked = [relay.ask(CHAT, chat("a", false)), relay.ask(CHAT, chat("a", false))];
    let (stream, ..) = ours.request().await;
    relay.queued(1).await;
    ours.answer(stream, 200, &[], b"").await;
    let (stream, ..) = ours.request().await;
    ours.answer(stream, 200, &[], b"").await;
    for asked in asked {
        assert_eq!(asked.answer().await.status(), 200);
    }
    relay.settled().await;
}

#[tokio::test]
async fn a_model_that_the_settings_rule_out_is_404_at_once() {
    let entries = [
        SettingsFile::credential("one", ", models: [listed]"),
        SettingsFile::credential("two", ", models: [other]"),
    ];
    let aliases =
        "models: [{ name: alias, targets: [{ model: gone }] }]\nqueue: { noWorkerTimeoutSeconds: 1 }\n";
    let file = SettingsFile::new(&(workers(&entries) + aliases));
    let relay = TestRelay::follow(&file).await;
    let asked = Instant::now();
    assert_eq!(relay.post(CHAT, chat("absent", false)).await.error().await, (404, "model_not_found".into()));
    let anthropic = relay.post("/v1/messages", chat("absent", true)).await;
    assert_eq!(
        (anthropic.status(), &anthropic.json().await["error"]["type"]),
        (404, &json!("not_found_error"))
    );
    assert!(asked.elapsed() < Duration::from_millis(500));
    // What a list or an alias names may still come.
    let (listed, alias) =
        tokio::join!(relay.post(CHAT, chat("listed", false)), relay.post(CHAT, chat("alias", false)));
    assert_eq!(listed.error().await, (503, "no_worker".into()));
    assert_eq!(alias.error().await, (503, "no_worker".into()));
    relay.settled().await;
}

#[tokio::test]
async fn a_file_that_does_not_validate_changes_nothing_and_says_so() {
    let good = workers(&[SettingsFile::credential("w", "")]);
    let file = SettingsFile::new(&good);
    let relay = TestRelay::follow(&file).await;
    let mut worker = V1Worker::join_with(&relay, &register("w", &["m"], 1), Some("w")).await;
    let before = relay.admin("/admin/v1/config").await;
    assert_eq!(before["problem"], Value::Null);
    file.write("queue: { maxRequest: 5 }\n");
    eventually("the refusal is reported", || relay.relay.settings.report().problem.map(drop)).await;
    let after = relay.admin("/admin/v1/config").await;
    assert!(after["problem"].as_str().unwrap().contains("maxRequest"), "{after}");
    assert_eq!(after["revision"], before["revision"]);
    let asked = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    worker.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
    eventually("it is counted", || (relay.relay.settings.report().refusals == 1).then_some(())).await;
    crate::support::soon("the metric", async {
        while relay.metric("modelrelay_config_errors_total").await != 1.0 {}
    })
    .await;
    file.write(&good);
    eventually("all is well", || relay.relay.settings.report().problem.is_none().then_some(())).await;
}
