//! Streams: bytes as they come, honest waiting, and an end that never looks whole when it is not.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::v1::completion;
use crate::support::{CHAT, MESSAGES, OurWorker, RawClient, TestRelay, V1Worker, chat, request};

const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];

#[tokio::test]
async fn events_arrive_one_by_one_as_they_are_sent() {
    let relay = TestRelay::start("").await;
    let mut plain = V1Worker::join(&relay, &["plain"], 1).await;
    let mut ours = OurWorker::join(&relay, &["ours"], 1).await;
    let (asked, other) = (relay.ask(CHAT, chat("plain", true)), relay.ask(CHAT, chat("ours", true)));
    let request = plain.request().await;
    let (stream, ..) = ours.request().await;
    plain.chunk(&request, "data: 0\n\n").await;
    ours.begin(stream, 200, EVENTS, b"data: 0\n\n").await;
    let (mut answer, mut other) = (asked.answer().await, other.answer().await);
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: 0\n\n");
    assert_eq!(other.chunk().await.unwrap().unwrap(), "data: 0\n\n");
    let mut times = Vec::new();
    for n in 1..50 {
        let event = format!("data: {n}\r\n\r\n");
        let sent = Instant::now();
        plain.chunk(&request, &event).await;
        assert_eq!(answer.chunk().await.unwrap().unwrap(), event);
        ours.data(stream, event.as_bytes()).await;
        assert_eq!(other.chunk().await.unwrap().unwrap(), event);
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    assert!(times[times.len() / 2] < Duration::from_millis(10), "{times:?}");
    plain.complete(&request, 200, "").await;
    ours.end(stream).await;
    assert!(answer.chunk().await.is_none() && other.chunk().await.is_none());
    relay.settled().await;
}

#[tokio::test]
async fn a_broken_stream_has_no_terminating_chunk_on_the_wire() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let mut client = RawClient::connect(relay.client).await;
    client.post(CHAT, &chat("m", true)).await;
    let request = worker.request().await;
    worker.chunk(&request, "data: 1\n\n").await;
    let head = client.until("data: 1\n\n").await;
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    drop(worker);
    let rest = client.rest().await;
    assert!(rest.contains("worker_lost") && !rest.contains("[DONE]"), "{rest}");
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest:?}");
    relay.settled().await;
}

#[tokio::test]
async fn the_error_event_never_joins_what_was_cut() {
    let relay = TestRelay::start("").await;
    let cases = [
        ("data: whole\n\n", ""),
        ("data: whole\r\n\r\n", ""),
        ("data: line\n", "\n"),
        ("data: line\r\n", "\n"),
        ("data: cu", "\n\n"),
    ];
    for (sent, between) in cases {
        let mut worker = V1Worker::join(&relay, &["m"], 1).await;
        let asked = relay.ask(CHAT, chat("m", true));
        let request = worker.request().await;
        worker.chunk(&request, sent).await;
        let mut answer = asked.answer().await;
        answer.at_least(sent.len()).await;
        drop(worker);
        let rest = String::from_utf8(answer.broken_body().await).unwrap();
        assert!(rest.starts_with(&format!("{between}data: {{\"error\"")), "after {sent:?}: {rest:?}");
        relay.workers(0).await;
    }
    // The end of an event may come in two parts.
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let request = worker.request().await;
    worker.chunk(&request, "data: 1\n").await;
    let mut answer = asked.answer().await;
    answer.at_least(8).await;
    worker.chunk(&request, "\n").await;
    answer.at_least(1).await;
    drop(worker);
    assert!(answer.broken_body().await.starts_with(b"data: {"));
    relay.settled().await;
}

#[tokio::test]
async fn a_body_that_is_no_event_stream_is_just_broken_off() {
    let relay = TestRelay::start("").await;
    let gzip: &[(&str, &str)] = &[("content-type", "text/event-stream"), ("content-encoding", "gzip")];
    for headers in [&[("content-type", "application/json")][..], gzip] {
        let mut worker = OurWorker::join(&relay, &["m"], 1).await;
        let asked = relay.ask(CHAT, chat("m", true));
        let (stream, ..) = worker.request().await;
        worker.begin(stream, 200, headers, b"first").await;
        let answer = asked.answer().await;
        drop(worker);
        assert_eq!(answer.broken_body().await, b"first");
        relay.workers(0).await;
    }
    relay.settled().await;
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_broken_off_and_cancelled() {
    let relay = TestRelay::start("timeouts: { streamIdleSeconds: 1 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(MESSAGES, chat("m", true));
    let request = worker.request().await;
    worker.chunk(&request, "event: ping\n\n").await;
    let answer = asked.answer().await;
    assert_eq!(worker.cancelled(&request).await, "timeout");
    let body = String::from_utf8(answer.broken_body().await).unwrap();
    assert!(body.starts_with("event: ping\n\nevent: error\ndata: {"), "{body}");
    relay.settled().await;
}

fn patient() -> &'static str {
    "queue: { keepAliveSeconds: 1, timeoutSeconds: 3, noWorkerTimeoutSeconds: 3 }\n"
}

#[tokio::test]
async fn comments_bridge_the_wait_of_a_stream() {
    let relay = TestRelay::start(patient()).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let started = Instant::now();
    let mut answer = asked.answer().await;
    assert!(started.elapsed() >= Duration::from_millis(990));
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert!(answer.header("x-request-id").is_some());
    for _ in 0..2 {
        let comment = answer.chunk().await.unwrap().unwrap();
        assert!(comment.starts_with(b":") && comment.ends_with(b"\n\n"), "{comment:?}");
    }
    // The committed answer may still move, and the event stream follows as it is.
    let mut first = V1Worker::join(&relay, &["m"], 1).await;
    first.request().await;
    drop(first);
    let mut second = V1Worker::join(&relay, &["m"], 1).await;
    let request = second.request().await;
    second.chunk(&request, "data: 1\n\n").await;
    second.complete(&request, 200, "").await;
    let body = answer.text().await;
    let events: Vec<&str> = body.split("\n\n").filter(|event| !event.starts_with(':')).collect();
    assert_eq!(events, ["data: 1", ""]);
    relay.settled().await;
}

#[tokio::test]
async fn an_error_after_a_comment_is_one_event_and_a_broken_transfer() {
    let relay = TestRelay::start(patient()).await;
    let (openai, anthropic) =
        tokio::join!(relay.post(CHAT, chat("m", true)), relay.post(MESSAGES, chat("m", true)));
    assert_eq!((openai.status(), anthropic.status()), (200, 200));
    let body = String::from_utf8(openai.broken_body().await).unwrap();
    let event: Value =
        serde_json::from_str(body.split("data: ").nth(1).unwrap().strip_suffix("\n\n").unwrap()).unwrap();
    assert_eq!(event["error"]["code"], "no_worker", "{body}");
    let body = String::from_utf8(anthropic.broken_body().await).unwrap();
    assert!(body.contains("event: error\ndata: {\"type\":\"error\""), "{body}");
    // Counted as what it would have been.
    let sample = |api| {
        format!(
            r#"modelrelay_requests_total{{api="{api}",code="no_worker",model="other",outcome="rejected"}}"#
        )
    };
    assert_eq!(relay.metric(&sample("openai")).await, 1.0);
    assert_eq!(relay.metric(&sample("anthropic")).await, 1.0);
    relay.settled().await;
}

#[tokio::test]
async fn an_answer_that_cannot_follow_a_comment_becomes_an_error_event() {
    let relay = TestRelay::start(patient()).await;
    let mut plain = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let request = plain.request().await;
    let answer = asked.answer().await;
    plain.send(completion(&request, 400, r#"{"error":"the engine's own"}"#)).await;
    let body = String::from_utf8(answer.broken_body().await).unwrap();
    assert!(body.contains("data: {\"error\""), "{body}");
    let sample = r#"modelrelay_requests_total{api="openai",code="400",model="m",outcome="failed"}"#;
    assert_eq!(relay.metric(sample).await, 1.0, "{}", relay.metrics().await);
    // An encoded event stream could not follow either; what still runs is cancelled.
    let mut ours = OurWorker::join(&relay, &["n"], 1).await;
    let asked = relay.ask(CHAT, chat("n", true));
    let (stream, ..) = ours.request().await;
    let answer = asked.answer().await;
    let gzip = [("content-type", "text/event-stream"), ("content-encoding", "gzip")];
    ours.begin(stream, 200, &gzip, b"\x1f\x8b").await;
    ours.cancelled(stream).await;
    ours.frame(modelrelay_protocol::codec::encode_cancelled(stream, true)).await;
    assert!(String::from_utf8(answer.broken_body().await).unwrap().contains("data: {\"error\""));
    relay.settled().await;
}

#[tokio::test]
async fn only_streams_on_routes_with_events_get_comments() {
    let relay = TestRelay::start(patient()).await;
    let mut worker = V1Worker::join(&relay, &["m"], 2).await;
    let whole = relay.ask(CHAT, chat("m", false));
    let embeddings = relay.ask("/v1/embeddings", chat("m", true));
    let (first, second) = (worker.request().await, worker.request().await);
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert!(!whole.is_answered() && !embeddings.is_answered());
    worker.complete(&first, 201, "").await;
    worker.complete(&second, 201, "").await;
    assert_eq!((whole.answer().await.status(), embeddings.answer().await.status()), (201, 201));
    relay.settled().await;
}

#[tokio::test]
async fn a_client_gone_while_comments_bridge_its_wait_is_noticed() {
    let relay = TestRelay::start("queue: { keepAliveSeconds: 1 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let request = worker.request().await;
    let mut answer = asked.answer().await;
    answer.chunk().await.unwrap().unwrap();
    drop(answer);
    assert_eq!(worker.cancelled(&request).await, "client_disconnect");
    let queued = relay.ask(CHAT, chat("absent", true)).answer().await;
    relay.queued(1).await;
    drop(queued);
    relay.settled().await;
}

#[tokio::test]
async fn a_head_request_id_and_worker_stand_on_streams_too() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let asked = relay.ask_with(request("POST", CHAT, &[("x-request-id", "mine")], chat("m", true)));
    let (stream, head, _) = worker.request().await;
    let sent: Vec<_> = head.headers.iter().filter(|(name, _)| name == "x-request-id").collect();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].1, "mine");
    worker.answer(stream, 200, EVENTS, b"data: [DONE]\n\n").await;
    let answer = asked.answer().await;
    assert_eq!(answer.header("x-request-id"), Some("mine"));
    assert_eq!(answer.header("x-modelrelay-worker"), Some("ours"));
    assert_eq!(answer.text().await, "data: [DONE]\n\n");
    assert_eq!(json!(relay.admin("/admin/v1/requests").await), json!([]));
    relay.settled().await;
}
