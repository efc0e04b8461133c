//! How a relay ends: nothing that runs or waits is lost before its deadline.

use std::time::Duration;

use futures_util::SinkExt;
use serde_json::json;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::support::v1::closed;
use crate::support::{
    CHAT, Client, OurWorker, RawClient, TestRelay, V1Worker, chat, eventually, request, soon,
};

async fn readiness(relay: &TestRelay) -> u16 {
    relay.operate("GET", "/readyz", &[]).await.status()
}

async fn draining(relay: &TestRelay) {
    eventually("requests are refused", || relay.relay.drain.refuses_requests().then_some(())).await;
}

#[tokio::test]
async fn what_runs_and_waits_is_finished_before_the_end() {
    let mut relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let streamed = relay.ask(CHAT, chat("m", true));
    let taken = worker.request().await;
    worker.chunk(&taken, "data: 1\n\n").await;
    let mut streamed = streamed.answer().await;
    streamed.at_least(9).await;
    let waiting = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    assert_eq!(readiness(&relay).await, 200);
    relay.stop.cancel();
    draining(&relay).await;
    assert_eq!(readiness(&relay).await, 503);
    assert_eq!(relay.operate("GET", "/livez", &[]).await.status(), 200);
    worker.chunk(&taken, "data: 2\n\n").await;
    worker.complete(&taken, 200, "").await;
    assert_eq!(streamed.text().await, "data: 2\n\n");
    // The queue goes before the goodbye.
    let request = worker.request().await;
    let goodbye = worker.receive().await;
    assert_eq!(goodbye["type"], "graceful_shutdown");
    assert!(goodbye["drain_timeout_secs"].as_u64().unwrap() > 200);
    assert!(!relay.has_ended());
    worker.complete(&request, 200, "queued").await;
    assert_eq!(waiting.answer().await.text().await, "queued");
    // Idle: closed by us, whatever the worker does.
    assert_eq!(u16::from(worker.closed().await.unwrap().code), 1000);
    relay.ended().await;
}

#[tokio::test]
async fn an_idle_worker_leaves_while_another_still_works() {
    let mut relay = TestRelay::start("").await;
    let mut busy = V1Worker::join_named(&relay, "busy", &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let request = busy.request().await;
    let mut idle = V1Worker::join_named(&relay, "idle", &["m"], 1).await;
    relay.stop.cancel();
    assert_eq!(idle.receive().await["type"], "graceful_shutdown");
    assert_eq!(u16::from(idle.closed().await.unwrap().code), 1000);
    assert!(!relay.has_ended());
    assert_eq!(busy.receive().await["type"], "graceful_shutdown");
    busy.complete(&request, 200, "done").await;
    assert_eq!(asked.answer().await.text().await, "done");
    relay.ended().await;
}

#[tokio::test]
async fn new_workers_are_sent_elsewhere() {
    let mut relay = TestRelay::start("drain: { delaySeconds: 300 }\n").await;
    let mut half = V1Worker::dial(relay.client, None).await;
    relay.stop.cancel();
    eventually("workers are refused", || relay.relay.drain.refuses_workers().then_some(())).await;
    let mut socket = V1Worker::dial(relay.client, None).await;
    assert_eq!(u16::from(closed(&mut socket).await.unwrap().code), 1001);
    // One that had dialled before and registers now comes too late as well.
    let register = json!({ "type": "register", "worker_name": "w", "models": ["m"], "max_concurrent": 1 });
    half.send(Message::text(register.to_string())).await.unwrap();
    assert_eq!(u16::from(closed(&mut half).await.unwrap().code), 1001);
    relay.force.cancel();
    relay.ended().await;
}

#[tokio::test]
async fn within_the_delay_requests_are_admitted_as_ever() {
    let mut relay = TestRelay::start("drain: { delaySeconds: 1 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let mut kept = Client::connect(relay.client).await;
    relay.stop.cancel();
    eventually("workers are refused", || relay.relay.drain.refuses_workers().then_some(())).await;
    let started = Instant::now();
    assert_eq!(readiness(&relay).await, 503);
    let serve = async {
        let request = worker.request().await;
        worker.complete(&request, 200, "as ever").await;
    };
    let (answer, ()) = tokio::join!(kept.send(request("POST", CHAT, &[], chat("m", false))), serve);
    assert_eq!((answer.status(), answer.header("connection")), (200, Some("close")));
    assert_eq!(answer.text().await, "as ever");
    // v1 workers are told only when the delay is over.
    let goodbye = worker.receive().await;
    assert_eq!(goodbye["type"], "graceful_shutdown");
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    relay.ended().await;
}

#[tokio::test]
async fn a_request_on_a_connection_still_open_is_503_draining() {
    let mut relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    // The head is on its way when the drain begins, so the connection is not idle.
    let mut late = RawClient::connect(relay.client).await;
    late.write(format!("POST {CHAT} HTTP/1.1\r\nHost: h\r\n")).await;
    let mut anthropic = RawClient::connect(relay.client).await;
    anthropic.write("POST /v1/messages HTTP/1.1\r\nHost: h\r\n").await;
    let running = relay.ask(CHAT, chat("m", false));
    let taken = worker.request().await;
    relay.stop.cancel();
    draining(&relay).await;
    late.write("Content-Length: 2\r\n\r\n{}").await;
    let answer = late.until("\"draining\"").await.to_lowercase();
    assert!(answer.starts_with("http/1.1 503 "), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n") && answer.contains("connection: close\r\n"), "{answer}");
    anthropic.write("Content-Length: 2\r\n\r\n{}").await;
    assert!(anthropic.until("overloaded_error").await.starts_with("HTTP/1.1 503 "));
    assert_eq!(worker.receive().await["type"], "graceful_shutdown");
    worker.complete(&taken, 200, "").await;
    assert_eq!(running.answer().await.status(), 200);
    relay.ended().await;
}

#[tokio::test]
async fn at_the_deadline_the_rest_is_refused_or_broken_off() {
    let mut relay = TestRelay::start("drain: { deadlineSeconds: 1 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 2).await;
    let streamed = relay.ask(CHAT, chat("m", true));
    let taken = worker.request().await;
    worker.chunk(&taken, "data: 1\n\n").await;
    let streamed = streamed.answer().await;
    let silent = relay.ask(CHAT, chat("m", false));
    let second = worker.request().await;
    let queued = relay.ask(CHAT, chat("absent", false));
    relay.queued(1).await;
    relay.stop.cancel();
    let refused = queued.answer().await;
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.error().await, (503, "draining".into()));
    assert_eq!(silent.answer().await.error().await, (503, "draining".into()));
    let body = String::from_utf8(streamed.broken_body().await).unwrap();
    assert!(body.starts_with("data: 1\n\n") && body.contains("draining"), "{body}");
    // The queue was never empty, so no goodbye: cancels, and the end.
    let mut cancelled = Vec::new();
    for _ in 0..2 {
        let cancel = worker.receive().await;
        assert_eq!((&cancel["type"], &cancel["reason"]), (&json!("cancel"), &json!("server_shutdown")));
        cancelled.push(cancel["request_id"].clone());
    }
    cancelled.sort_by_key(ToString::to_string);
    assert_eq!(cancelled, [taken["request_id"].clone(), second["request_id"].clone()]);
    assert_eq!(u16::from(worker.closed().await.unwrap().code), 1000);
    relay.ended().await;
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let _half = V1Worker::dial(relay.client, None).await;
    let asked = relay.ask(CHAT, chat("m", false));
    worker.request().await;
    relay.stop.cancel();
    draining(&relay).await;
    let forced = Instant::now();
    relay.force.cancel();
    assert_eq!(asked.answer().await.error().await, (503, "draining".into()));
    relay.ended().await;
    assert!(forced.elapsed() < Duration::from_millis(1500), "{:?}", forced.elapsed());
}

#[tokio::test]
async fn nothing_to_finish_means_no_wait() {
    let mut relay = TestRelay::start("").await;
    let _idle = Client::connect(relay.client).await;
    let stopped = Instant::now();
    relay.stop.cancel();
    relay.ended().await;
    assert!(stopped.elapsed() < Duration::from_secs(1), "{:?}", stopped.elapsed());
    assert!(tokio::net::TcpStream::connect(relay.client).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn workers_of_ours_hear_goaway_first_and_empty_last() {
    let mut relay = TestRelay::start("drain: { deadlineSeconds: 100 }\n").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let streamed = relay.ask(CHAT, chat("m", true));
    let (stream, ..) = worker.request().await;
    worker.begin(stream, 200, &[("content-type", "text/event-stream")], b"data: 1\n\n").await;
    let mut streamed = streamed.answer().await;
    streamed.at_least(9).await;
    let waiting = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    relay.stop.cancel();
    let goaway = worker.message().await;
    assert_eq!(goaway["type"], "goaway");
    let deadline = goaway["deadline_ms"].as_u64().unwrap();
    assert!((50_000..=100_000).contains(&deadline), "{deadline}");
    // It still serves what waits here.
    worker.end(stream).await;
    assert!(streamed.chunk().await.is_none());
    let (stream, ..) = worker.request().await;
    worker.answer(stream, 200, &[], b"served").await;
    assert_eq!(waiting.answer().await.text().await, "served");
    assert_eq!(worker.message().await, json!({ "type": "empty" }));
    assert_eq!(u16::from(worker.closed().await.unwrap().code), 1000);
    relay.ended().await;
}

#[tokio::test]
async fn a_drain_can_be_asked_for_over_the_admin_api() {
    let mut relay = TestRelay::start("").await;
    let answer = relay.operate("POST", "/admin/v1/drain", &[]).await;
    assert_eq!((answer.status(), answer.json().await), (202, json!({ "draining": true })));
    relay.ended().await;
}

#[tokio::test]
async fn a_worker_that_never_reads_does_not_hold_the_end_up() {
    let mut relay = TestRelay::start("drain: { deadlineSeconds: 1 }\n").await;
    let _deaf = V1Worker::join(&relay, &["m"], 8).await;
    let large = json!({ "model": "m", "x": "y".repeat(10 << 20) }).to_string();
    let asked: Vec<_> = (0..3).map(|_| relay.ask(CHAT, large.clone())).collect();
    eventually("all are dispatched", || {
        (relay.relay.dispatcher.with_scheduler(|s| s.counts().running) == 3).then_some(())
    })
    .await;
    let stopped = Instant::now();
    relay.stop.cancel();
    for asked in asked {
        assert_eq!(soon("a refusal", asked.answer()).await.error().await, (503, "draining".into()));
    }
    relay.ended().await;
    assert!(stopped.elapsed() < Duration::from_secs(4), "{:?}", stopped.elapsed());
}
