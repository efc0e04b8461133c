//! What Prometheus scrapes: the metrics that the README names, with their labels, and nothing else.

use modelrelay_protocol::codec::{FailureCode, encode_cancelled};
use modelrelay_protocol::frame::TokenCounts;
use modelrelay_protocol::wellknown::PING_INTERVAL;
use serde_json::json;

use crate::support::metrics_table::{assert_documented, lint};
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
