//! Long waits on a paused clock: it moves on only when nothing else can happen.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{CHAT, Client, OurWorker, TestRelay, V1Worker, chat, request};

/// The next message, however long it takes.
async fn message(worker: &mut V1Worker) -> Option<Value> {
    match worker.socket.next().await? {
        Ok(Message::Text(text)) => Some(serde_json::from_str(&text).unwrap()),
        Ok(Message::Close(frame)) => Some(json!({ "close": u16::from(frame.unwrap().code) })),
        other => panic!("not a message: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_ping_comes_long_before_a_v1_worker_would_leave() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    for _ in 0..5 {
        let since = Instant::now();
        let ping = message(&mut worker).await.unwrap();
        assert_eq!(ping["type"], "ping");
        assert!(since.elapsed() <= Duration::from_secs(60), "{:?}", since.elapsed());
        let echo = &ping["timestamp_unix_ms"];
        worker.send(json!({ "type": "pong", "current_load": 0, "timestamp_unix_ms": echo })).await;
    }
    drop(worker);
    assert!(
        relay
            .relay
            .metrics
            .render(&relay.relay.dispatcher, &relay.relay.bodies, 1)
            .contains(r#"modelrelay_worker_rtt_seconds_count{pool="default"} "#)
    );
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_any_frame_is_gone_after_three_quarters_of_a_minute() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let since = Instant::now();
    while let Some(message) = message(&mut worker).await {
        if let Some(code) = message.get("close") {
            assert_eq!(code, 1001);
            break;
        }
    }
    let silent = since.elapsed();
    assert!((45..50).contains(&silent.as_secs()), "{silent:?}");
    // Any frame counts as life, be it only a late one.
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(300) {
        assert_eq!(message(&mut worker).await.unwrap()["type"], "ping");
        worker.chunk(&json!({ "request_id": "x" }), "life").await;
    }
    assert_eq!(relay.relay.dispatcher.sessions().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_neither_reads_nor_writes_is_gone_as_well() {
    let relay = TestRelay::start("").await;
    let deaf = V1Worker::join(&relay, &["m"], 8).await;
    let large = json!({ "model": "m", "x": "y".repeat(10 << 20) }).to_string();
    let asked: Vec<_> = (0..4).map(|_| relay.ask(CHAT, large.clone())).collect();
    let since = Instant::now();
    while !relay.relay.dispatcher.sessions().is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(since.elapsed() < Duration::from_secs(60), "the send is blocked, and nobody looks");
    }
    drop((asked, deaf));
}

#[tokio::test(start_paused = true)]
async fn a_worker_has_ten_seconds_to_register() {
    let relay = TestRelay::start("").await;
    let mut socket = V1Worker::dial(relay.client, None).await;
    let since = Instant::now();
    // A WebSocket ping is no registration.
    socket.send(Message::Ping("hello".into())).await.unwrap();
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Close(frame) => break assert_eq!(u16::from(frame.unwrap().code), 1002),
            Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(since.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn both_waits_last_half_a_minute_unless_set() {
    let relay = TestRelay::start("").await;
    let mut busy = OurWorker::join(&relay, &["busy"], 1).await;
    let _running = relay.ask(CHAT, chat("busy", false));
    busy.request().await;
    for (model, code) in [("absent", "no_worker"), ("busy", "queue_timeout")] {
        let mut client = Client::connect(relay.client).await;
        let since = Instant::now();
        let ask = client.send(request("POST", CHAT, &[], chat(model, false)));
        let live = async {
            loop {
                // The worker lives all the while.
                tokio::time::sleep(Duration::from_secs(10)).await;
                busy.send(json!({ "type": "pong", "current_load": 1 })).await;
            }
        };
        let answer = tokio::select! {
            answer = ask => answer,
            () = live => unreachable!(),
        };
        assert_eq!(answer.error().await, (503, code.into()));
        assert_eq!(since.elapsed().as_secs(), 30);
    }
}
