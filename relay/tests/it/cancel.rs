//! A client that leaves: its worker is told in every phase, and the slot goes to the next.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::support::{CHAT, TestRelay, V1Worker, chat, eventually};

const ROUNDS: usize = 20;

/// One round: a client that leaves in some phase, another that waits behind it.
async fn frees_the_slot(stream: bool, chunks: &[&str]) {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    for _ in 0..ROUNDS {
        let leaver = relay.ask(CHAT, chat("m", stream));
        let request = worker.request().await;
        for chunk in chunks {
            worker.chunk(&request, chunk).await;
        }
        let next = relay.ask(CHAT, chat("m", false));
        relay.queued(1).await;
        let left = if chunks.is_empty() {
            let left = Instant::now();
            drop(leaver);
            left
        } else {
            let mut answer = leaver.answer().await;
            answer.at_least(chunks.iter().map(|chunk| chunk.len()).sum()).await;
            let left = Instant::now();
            drop(answer);
            left
        };
        assert_eq!(worker.cancelled(&request).await, "client_disconnect");
        assert!(left.elapsed() < Duration::from_millis(500), "{:?}", left.elapsed());
        let request = worker.request().await;
        worker.complete(&request, 200, "next").await;
        assert_eq!(next.answer().await.text().await, "next");
    }
    relay.settled().await;
    let sample = r#"modelrelay_cancellations_total{model="m",origin="client",result="unacknowledged"}"#;
    assert_eq!(relay.metric(sample).await, ROUNDS as f64, "{}", relay.metrics().await);
    let sample =
        r#"modelrelay_requests_total{api="openai",code="client_gone",model="m",outcome="client_gone"}"#;
    assert_eq!(relay.metric(sample).await, ROUNDS as f64);
}

#[tokio::test]
async fn client_gone_before_the_first_byte_of_a_stream() {
    frees_the_slot(true, &[]).await;
}

#[tokio::test]
async fn client_gone_while_a_whole_answer_is_made() {
    frees_the_slot(false, &[]).await;
}

#[tokio::test]
async fn client_gone_mid_stream() {
    frees_the_slot(true, &["data: 1\n\n", "data: 2\n\n"]).await;
}

#[tokio::test]
async fn client_gone_while_queued_leaves_no_trace_at_the_worker() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let running = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    for _ in 0..ROUNDS {
        let leaver = relay.ask(CHAT, chat("m", false));
        relay.queued(1).await;
        drop(leaver);
        relay.queued(0).await;
    }
    let last = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    worker.complete(&request, 200, "").await;
    let request = worker.request().await;
    worker.complete(&request, 200, "").await;
    assert_eq!((running.answer().await.status(), last.answer().await.status()), (200, 200));
    relay.settled().await;
    let sample = r#"modelrelay_cancellations_total{model="m",origin="client",result="queued"}"#;
    assert_eq!(relay.metric(sample).await, ROUNDS as f64);
}

#[tokio::test]
async fn client_gone_while_its_body_is_read_leaves_nothing() {
    let relay = TestRelay::start("").await;
    let mut client = crate::support::RawClient::connect(relay.client).await;
    client.write(format!("POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Length: 3000\r\n\r\n")).await;
    client.write("x".repeat(2000)).await;
    eventually("some of the body is held", || (relay.relay.bodies.held() == 2000).then_some(())).await;
    drop(client);
    relay.settled().await;
}

#[tokio::test]
async fn a_client_that_leaves_within_the_hold_of_the_first_chunk_is_noticed() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    for _ in 0..ROUNDS {
        let leaver = relay.ask(CHAT, chat("m", true));
        let request = worker.request().await;
        worker.chunk(&request, "data: 1\n\n").await;
        drop(leaver);
        assert_eq!(worker.cancelled(&request).await, "client_disconnect");
    }
    relay.settled().await;
}

#[tokio::test]
async fn a_burst_of_clients_that_leave_frees_every_slot() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 8).await;
    let leavers: Vec<_> = (0..40).map(|n| relay.ask(CHAT, chat("m", n % 2 == 0))).collect();
    relay.queued(32).await;
    for _ in 0..8 {
        worker.request().await;
    }
    drop(leavers);
    let mut open: Vec<Value> = Vec::new();
    relay.settled().await;
    let last = relay.ask(CHAT, chat("m", false));
    // Some of the queue may have been sent on the way; every one of these is cancelled as well.
    let request = loop {
        let message = worker.receive().await;
        if message["type"] == "request" {
            open.push(message);
        }
        if relay.relay.dispatcher.requests().iter().any(|request| request.state == "dispatched")
            && let Some(request) = open.pop()
        {
            break request;
        }
    };
    worker.complete(&request, 200, "last").await;
    assert_eq!(last.answer().await.text().await, "last");
    relay.settled().await;
}
