//! Waiting: for a slot, for a model, in fair order, and no longer than anybody wants.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{CHAT, Client, SettingsFile, TestRelay, V1Worker, chat, request};

fn keyed(key: &str, model: &str, note: &str) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    let body = json!({ "model": model, "note": note }).to_string();
    request("POST", CHAT, &[("authorization", &format!("Bearer {key}"))], body)
}

fn note(request: &Value) -> String {
    let body: Value = serde_json::from_str(request["body"].as_str().unwrap()).unwrap();
    body["note"].as_str().unwrap().to_owned()
}

/// The middle one of several times.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test]
async fn a_model_that_nobody_serves_runs_the_moment_a_worker_brings_it() {
    let relay = TestRelay::start("").await;
    let (mut by_joining, mut by_update) = (Vec::new(), Vec::new());
    for round in 0..9 {
        let model = format!("joined-{round}");
        let asked = relay.ask(CHAT, chat(&model, false));
        relay.queued(1).await;
        let mut socket = V1Worker::dial(relay.client, None).await;
        let register =
            json!({ "type": "register", "worker_name": "w", "models": [model], "max_concurrent": 1 });
        let brought = Instant::now();
        futures_util::SinkExt::send(&mut socket, register.to_string().into()).await.unwrap();
        let mut worker = V1Worker { socket, ack: Value::Null };
        assert_eq!(worker.receive().await["type"], "register_ack", "the ack goes before the first request");
        let request = worker.request().await;
        by_joining.push(brought.elapsed());
        worker.complete(&request, 200, "").await;
        assert_eq!(asked.answer().await.status(), 200);

        let model = format!("updated-{round}");
        let asked = relay.ask(CHAT, chat(&model, false));
        relay.queued(1).await;
        let brought = Instant::now();
        worker.send(json!({ "type": "models_update", "models": [model], "current_load": 0 })).await;
        let request = worker.request().await;
        by_update.push(brought.elapsed());
        worker.complete(&request, 200, "").await;
        assert_eq!(asked.answer().await.status(), 200);
    }
    for times in [by_joining, by_update] {
        assert!(median(times.clone()) < Duration::from_millis(10), "{times:?}");
    }
    relay.settled().await;
}

#[tokio::test]
async fn the_next_request_follows_a_completion_at_once() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked: Vec<_> = (0..20).map(|_| relay.ask(CHAT, chat("m", false))).collect();
    let mut gaps = Vec::new();
    let mut request = worker.request().await;
    relay.queued(19).await;
    for _ in 0..19 {
        let ended = Instant::now();
        worker.complete(&request, 200, "").await;
        request = worker.request().await;
        gaps.push(ended.elapsed());
    }
    worker.complete(&request, 200, "").await;
    for asked in asked {
        assert_eq!(asked.answer().await.status(), 200);
    }
    assert!(median(gaps.clone()) < Duration::from_millis(10), "{gaps:?}");
    relay.settled().await;
}

#[tokio::test]
async fn priority_goes_first_then_the_tenant_with_less_slot_time_then_arrival() {
    let file = SettingsFile::new(&format!(
        "priorities: [{{ name: urgent, value: 10 }}]\nworkerCredentials:\n{}clientKeys:\n{}{}{}",
        SettingsFile::credential("w", ""),
        SettingsFile::key("mr_a_secret", ", tenant: busy"),
        SettingsFile::key("mr_b_secret", ", tenant: quiet"),
        SettingsFile::key("mr_c_secret", ", tenant: busy, priority: urgent"),
    ));
    let relay = TestRelay::follow(&file).await;
    let register = json!({ "type": "register", "worker_name": "w", "models": ["m"], "max_concurrent": 1 });
    let mut worker = V1Worker::join_with(&relay, &register, Some("w")).await;
    let running = relay.ask_with(keyed("mr_a_secret", "m", "a0"));
    let mut request = worker.request().await;
    let mut waiting = vec![running];
    for (place, (key, note)) in
        [("mr_a_secret", "a1"), ("mr_a_secret", "a2"), ("mr_b_secret", "b1"), ("mr_c_secret", "c1")]
            .into_iter()
            .enumerate()
    {
        waiting.push(relay.ask_with(keyed(key, "m", note)));
        relay.queued(place + 1).await;
    }
    for (metric, priority, n) in
        [("requests_running", "default", 1.0), ("queue_size", "default", 3.0), ("queue_size", "urgent", 1.0)]
    {
        let sample = format!(r#"modelrelay_{metric}{{model="m",priority="{priority}"}}"#);
        assert_eq!(relay.metric(&sample).await, n, "{sample}");
    }
    let mut order = vec![note(&request)];
    for _ in 0..4 {
        worker.complete(&request, 200, "").await;
        request = worker.request().await;
        order.push(note(&request));
    }
    worker.complete(&request, 200, "").await;
    assert_eq!(order, ["a0", "c1", "b1", "a1", "a2"]);
    for asked in waiting {
        assert_eq!(asked.answer().await.status(), 200);
    }
    relay.settled().await;
}

#[tokio::test]
async fn a_full_queue_makes_room_for_a_better_claim() {
    let file = SettingsFile::new(&format!(
        "queue: {{ maxRequests: 2 }}\npriorities: [{{ name: urgent, value: 10 }}]\nworkerCredentials:\n{}clientKeys:\n{}{}{}",
        SettingsFile::credential("w", ""),
        SettingsFile::key("mr_a_secret", ", tenant: many"),
        SettingsFile::key("mr_b_secret", ", tenant: few"),
        SettingsFile::key("mr_c_secret", ", tenant: many, priority: urgent"),
    ));
    let relay = TestRelay::follow(&file).await;
    let register = json!({ "type": "register", "worker_name": "w", "models": ["m"], "max_concurrent": 1 });
    let mut worker = V1Worker::join_with(&relay, &register, Some("w")).await;
    let running = relay.ask_with(keyed("mr_a_secret", "m", "a0"));
    let request = worker.request().await;
    let oldest = relay.ask_with(keyed("mr_a_secret", "m", "a1"));
    relay.queued(1).await;
    let newest = relay.ask_with(keyed("mr_a_secret", "m", "a2"));
    relay.queued(2).await;
    // The tenant that has most waiting loses its newest request to one that has none.
    let other = relay.ask_with(keyed("mr_b_secret", "m", "b1"));
    let displaced = newest.answer().await;
    assert!(displaced.header("retry-after").is_some());
    assert_eq!(displaced.error().await, (429, "queue_full".into()));
    // Equal claims displace nobody.
    let refused = relay.send(keyed("mr_b_secret", "m", "b2")).await;
    assert_eq!(refused.error().await, (429, "queue_full".into()));
    // A higher band displaces the newest request of the lowest.
    let urgent = relay.ask_with(keyed("mr_c_secret", "m", "c1"));
    assert_eq!(other.answer().await.error().await, (429, "queue_full".into()));
    worker.complete(&request, 200, "").await;
    let mut order = Vec::new();
    for _ in 0..2 {
        let request = worker.request().await;
        order.push(note(&request));
        worker.complete(&request, 200, "").await;
    }
    assert_eq!(order, ["c1", "a1"]);
    for asked in [running, oldest, urgent] {
        assert_eq!(asked.answer().await.status(), 200);
    }
    relay.settled().await;
}

#[tokio::test]
async fn requests_for_what_nobody_serves_block_nobody() {
    let relay = TestRelay::start("queue: { maxRequests: 2 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let stuck: Vec<_> = (0..2).map(|_| relay.ask(CHAT, chat("absent", false))).collect();
    relay.queued(2).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    worker.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
    drop(stuck);
    relay.settled().await;
}

#[tokio::test]
async fn the_answer_says_how_long_it_waited_and_who_served_it() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join_named(&relay, "gpu-7", &["m"], 1).await;
    let first = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    let second = relay.ask(CHAT, chat("m", true));
    relay.queued(1).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    worker.complete(&request, 200, "").await;
    let request = worker.request().await;
    worker.chunk(&request, "data: x\n\n").await;
    worker.complete(&request, 200, "").await;
    let first = first.answer().await;
    assert_eq!(first.header("x-modelrelay-worker"), Some("gpu-7"));
    assert!(first.header("x-modelrelay-queue-ms").unwrap().parse::<u64>().unwrap() < 60);
    let second = second.answer().await;
    let waited: u64 = second.header("x-modelrelay-queue-ms").unwrap().parse().unwrap();
    assert!((60..5000).contains(&waited), "{waited}");
    assert_eq!(second.text().await, "data: x\n\n");
}

#[tokio::test]
async fn the_headers_that_say_so_can_be_switched_off() {
    let relay = TestRelay::start("headers: { expose: false }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    worker.complete(&request, 200, "").await;
    let answer = asked.answer().await;
    assert!(!answer.head.headers.keys().any(|name| name.as_str().starts_with("x-modelrelay-")));
    assert!(answer.header("x-request-id").is_some());
}

#[tokio::test]
async fn load_spreads_over_workers_by_their_slots() {
    let relay = TestRelay::start("").await;
    let mut small = V1Worker::join_named(&relay, "small", &["m"], 1).await;
    let mut large = V1Worker::join_named(&relay, "large", &["m"], 3).await;
    let asked: Vec<_> = (0..4).map(|_| relay.ask(CHAT, chat("m", false))).collect();
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(large.request().await);
    }
    let last = small.request().await;
    small.complete(&last, 200, "").await;
    for request in &taken {
        large.complete(request, 200, "").await;
    }
    for asked in asked {
        assert_eq!(asked.answer().await.status(), 200);
    }
    relay.settled().await;
}

#[tokio::test]
async fn one_connection_carries_one_request_after_another() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let mut client = Client::connect(relay.client).await;
    for round in 0..5 {
        let stream = round % 2 == 0;
        let ask = client.send(request("POST", CHAT, &[], chat("m", stream)));
        let serve = async {
            let request = worker.request().await;
            if stream {
                worker.chunk(&request, "data: x\n\n").await;
            }
            worker.complete(&request, 200, "whole").await;
        };
        let (answer, ()) = tokio::join!(ask, serve);
        assert_eq!(answer.text().await, if stream { "data: x\n\n" } else { "whole" });
    }
    relay.settled().await;
}
