//! Drain towards relays of ours.

use std::time::Duration;

use dev_backend::{Backend, Config, Phase};
use modelrelay_protocol::codec::{FailureCode, StreamId, WorkerFrame};
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use modelrelay_worker::app::Worker;
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{LIMIT, Relay, config, connected, within, worker};

fn shut_down(worker: Worker) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(worker.shutdown());
    tasks
}

#[tokio::test]
async fn a_draining_worker_takes_its_credits_back_finishes_and_says_goodbye() {
    let (backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let stub = json!({ "id": "a", "chunks": 20, "interval_ms": 20 });
    session.request(1, &json!({ "model": "m", "stream": true, "stub": stub })).await;
    backend.wait_phase("a", Phase::BeforeHead, LIMIT).await.unwrap();
    let mut leaving = shut_down(worker);
    // Frames of the stream come in between; the two announcements come in either order.
    let (mut recalled, mut deadline_ms) = (None, None);
    while recalled.is_none() || deadline_ms.is_none() {
        let message = session.next().await;
        let Ok(text) = message.to_text() else { continue };
        let Ok(message) = serde_json::from_str::<serde_json::Value>(text) else { continue };
        match message["type"].as_str() {
            Some("recall") => recalled = message["n"].as_u64(),
            Some("draining") => deadline_ms = message["deadline_ms"].as_u64(),
            _ => {}
        }
    }
    assert_eq!((recalled, deadline_ms), (Some(3), Some(300_000)));
    // A request that crossed the recall is served.
    session.request(2, &json!({ "model": "m" })).await;
    let (mut ended, mut whole) = (Vec::new(), false);
    while ended.len() < 2 {
        let WorkerFrame::Response(StreamId(stream), part) = session.frame().await else {
            panic!("another kind")
        };
        if part.end {
            assert!(!part.regrant);
            whole |= stream == 1 && part.body.ends_with(b"[DONE]\n\n");
            ended.push(stream);
        }
    }
    ended.sort_unstable();
    assert!(whole);
    assert_eq!(ended, [1, 2]);
    session.send(json!({ "type": "return", "n": 2 })).await;
    assert_eq!(u16::from(session.closed().await.code), 1000);
    within("the end", leaving.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn at_the_deadline_what_still_runs_fails_as_draining() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let mut config = config(&relay.url(), &backend.url());
    config.drain.deadline_seconds = 1;
    let worker = worker(config).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    session.request(1, &json!({ "model": "m", "stub": { "id": "a", "head_delay_ms": 60_000 } })).await;
    backend.wait_phase("a", Phase::BeforeHead, LIMIT).await.unwrap();
    let mut leaving = shut_down(worker);
    session.text("recall").await;
    session.send(json!({ "type": "return", "n": 3 })).await;
    match session.frame().await {
        WorkerFrame::Failed { stream: StreamId(1), code: FailureCode::Draining, regrant: false, .. } => {}
        other => panic!("expected the end of the drain, got {other:?}"),
    }
    backend.wait_closed("a", LIMIT).await.unwrap();
    assert_eq!(u16::from(session.closed().await.code), 1000);
    within("the end", leaving.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_worker_leaves_at_once_even_when_a_relay_does_not_return_its_credits() {
    let (_backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let begun = tokio::time::Instant::now();
    let mut leaving = shut_down(worker);
    assert_eq!(u16::from(session.closed().await.code), 1000);
    within("the end", leaving.join_next()).await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
}
