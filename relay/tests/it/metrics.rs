//! What Prometheus scrapes: the metrics that the README names, with their labels, and nothing else.

use modelrelay_protocol::codec::{FailureCode, encode_cancelled};
use modelrelay_protocol::frame::TokenCounts;
use modelrelay_protocol::wellknown::PING_INTERVAL;
use serde_json::json;

use crate::support::metrics_table::{assert_documented, assert_no_name_is_shared, lint};
use crate::support::ours::response;
use crate::support::{CHAT, OurWorker, TestRelay, chat, eventually};

/// The scrape of a relay to which everything happened that is counted.
async fn scrape() -> String {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    measure_a_round_trip(&relay, &mut worker).await;

    let streamed = relay.ask(CHAT, chat("m", true));
    let (stream, ..) = worker.request().await;
    worker.begin(stream, 200, &[("content-type", "text/event-stream")], b"data: 1\n\n").await;
    worker.data(stream, b"data: 2\n\n").await;
    let usage = TokenCounts { prompt_tokens: Some(2), completion_tokens: Some(2), total_tokens: None };
    worker.frame(response(stream, None, b"", true, Some(usage))).await;
    streamed.answer().await.body().await.unwrap();

    let failed = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = worker.request().await;
    worker.fail(stream, FailureCode::BackendTimeout).await;
    assert_eq!(failed.answer().await.status(), 504);

    let leaver = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = worker.request().await;
    drop(leaver);
    worker.cancelled(stream).await;
    worker.frame(encode_cancelled(stream, true)).await;
    relay.settled().await;

    let leaver = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = worker.request().await;
    drop(leaver);
    worker.cancelled(stream).await;
    worker.frame(response(stream, Some((200, &[])), b"{}", true, Some(usage))).await;
    relay.settled().await;

    // Its request goes to the worker that comes next, and another waits behind it.
    let _running = relay.ask(CHAT, chat("m", false));
    worker.request().await;
    drop(worker);
    relay.workers(0).await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    worker.request().await;
    let _waiting = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    relay.metrics().await
}

/// Waits until so many cancels came to this.
async fn cancels(relay: &TestRelay, origin: &str, result: &str, n: f64) {
    let sample =
        format!(r#"modelrelay_cancellations_total{{model="m",origin="{origin}",result="{result}"}}"#);
    relay.until_metric(&sample, n).await;
}

#[tokio::test]
async fn what_came_of_each_cancel_is_counted_and_what_it_cost() {
    let relay = TestRelay::start("timeouts: { requestSeconds: 1 }").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let usage = TokenCounts { prompt_tokens: Some(30), completion_tokens: Some(12), total_tokens: None };
    let waste = r#"modelrelay_wasted_tokens_total{model="m",reason="client"}"#;

    // The worker closes its call.
    let leaver = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = worker.request().await;
    drop(leaver);
    worker.cancelled(stream).await;
    worker.frame(encode_cancelled(stream, true)).await;
    cancels(&relay, "client", "acknowledged", 1.0).await;
    assert_eq!(relay.metric(waste).await, 0.0, "the engine told nothing");

    // The answer's end and the cancel cross.
    let leaver = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = worker.request().await;
    drop(leaver);
    worker.cancelled(stream).await;
    worker.frame(response(stream, Some((200, &[])), b"{}", true, Some(usage))).await;
    cancels(&relay, "client", "ended", 1.0).await;
    relay.until_metric(waste, 42.0).await;

    // A limit passes, at the worker and in the queue; the session ends before the worker says anything.
    let late = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = worker.request().await;
    let queued = relay.ask(CHAT, chat("m", false));
    assert_eq!(late.answer().await.status(), 504);
    worker.cancelled(stream).await;
    drop(worker);
    cancels(&relay, "timeout", "session_lost", 1.0).await;
    assert_eq!(queued.answer().await.status(), 504);
    relay.settled().await;
}

async fn measure_a_round_trip(relay: &TestRelay, worker: &mut OurWorker) {
    tokio::time::pause();
    tokio::time::advance(PING_INTERVAL).await;
    tokio::time::resume();
    let ping = worker.message().await;
    assert_eq!(ping["type"], "ping");
    let echo = &ping["timestamp_unix_ms"];
    worker.send(json!({ "type": "pong", "current_load": 0, "timestamp_unix_ms": echo })).await;
    let session = relay.relay.dispatcher.sessions().remove(0);
    eventually("the round trip is known", || session.live().round_trip).await;
}

#[tokio::test]
async fn each_metric_stands_in_the_readme_with_its_labels() {
    assert_documented("Relay", &scrape().await);
}

#[tokio::test]
async fn names_and_help_texts_are_as_prometheus_wants_them() {
    lint(&scrape().await);
}

#[test]
fn relay_and_worker_share_no_name_but_those_of_any_process() {
    assert_no_name_is_shared();
}
