//! Cancels: in every phase the backend's connection is closed, and acknowledged once.

use dev_backend::{Backend, Phase};
use modelrelay_protocol::codec::{StreamId, WorkerFrame, encode_cancel};
use modelrelay_protocol::frame::CancelReason;
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use serde_json::json;

use crate::support::{LIMIT, Session, connected};

/// Cancels a stream and reads to its last frame, which must be the acknowledgement.
async fn cancel(session: &mut Session, stream: u32) {
    session.send_frame(encode_cancel(StreamId(stream), &CancelReason::ClientDisconnect)).await;
    loop {
        match session.frame().await {
            WorkerFrame::Response(_, part) => assert!(!part.end),
            WorkerFrame::Window { .. } => {}
            WorkerFrame::Cancelled { stream: of, regrant } => {
                assert_eq!((of, regrant), (StreamId(stream), true));
                return;
            }
            other @ WorkerFrame::Failed { .. } => panic!("expected the acknowledgement, got {other:?}"),
        }
    }
}

async fn closed_in(backend: &Backend, id: &str, phase: Phase) {
    assert_eq!(backend.wait_closed(id, LIMIT).await.unwrap().phase, phase);
    backend.wait_running(0, LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_cancel_closes_the_backends_connection_in_every_phase() {
    let (backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let table = [
        ("before", Phase::BeforeHead, json!({ "id": "before", "head_delay_ms": 60_000 })),
        ("prefill", Phase::AfterHead, json!({ "id": "prefill", "first_byte_delay_ms": 60_000 })),
        ("stream", Phase::MidBody, json!({ "id": "stream", "chunks": 10_000, "interval_ms": 20 })),
    ];
    for (stream, (id, phase, stub)) in (0..).zip(table) {
        session.request(stream, &json!({ "model": "m", "stream": true, "stub": stub })).await;
        backend.wait_phase(id, phase, LIMIT).await.unwrap();
        cancel(&mut session, stream).await;
        closed_in(&backend, id, phase).await;
    }
    // Its number is free again.
    session.request(0, &json!({ "model": "m" })).await;
    assert_eq!(session.response(0).await.status, 200);
    worker.kill().await;
}

#[tokio::test]
async fn a_cancel_ends_a_request_whose_body_is_still_coming() {
    let (backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    session.begin_request(5, &[("x-stub-id", "body")], b"first part", 1_000_000, false).await;
    backend.wait_phase("body", Phase::ReadingBody, LIMIT).await.unwrap();
    cancel(&mut session, 5).await;
    closed_in(&backend, "body", Phase::ReadingBody).await;
    worker.kill().await;
}

#[tokio::test]
async fn a_cancel_ends_a_stream_whose_window_is_used_up() {
    let (backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let headers = [("x-stub-answer", "raw"), ("x-stub-bytes", "100000000"), ("x-stub-id", "full")];
    session.request_with(6, &headers, br#"{"model":"m"}"#).await;
    backend.wait_phase("full", Phase::MidBody, LIMIT).await.unwrap();
    cancel(&mut session, 6).await;
    closed_in(&backend, "full", Phase::MidBody).await;
    worker.kill().await;
}

#[tokio::test]
async fn cancels_without_a_request_and_second_cancels_are_ignored() {
    let (backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let unknown = encode_cancel(StreamId(77), &CancelReason::Timeout);
    session.send_frame(unknown).await;
    let stub = json!({ "id": "twice", "head_delay_ms": 60_000 });
    session.request(1, &json!({ "model": "m", "stub": stub })).await;
    backend.wait_phase("twice", Phase::BeforeHead, LIMIT).await.unwrap();
    let twice = encode_cancel(StreamId(1), &CancelReason::Timeout);
    session.send_frame(twice.clone()).await;
    session.send_frame(twice).await;
    assert_eq!(session.frame().await, WorkerFrame::Cancelled { stream: StreamId(1), regrant: true });
    // The next frame is the next answer's: nothing was acknowledged twice.
    session.request(2, &json!({ "model": "m" })).await;
    assert_eq!(session.response(2).await.status, 200);
    let text = prometheus::TextEncoder::new().encode_to_string(&worker.registry().gather()).unwrap();
    assert!(text.contains("modelrelay_worker_cancel_close_seconds_count 1"), "{text}");
    assert!(text.contains("modelrelay_worker_jobs_total{outcome=\"cancelled\"} 1"), "{text}");
    worker.kill().await;
}

#[tokio::test]
async fn a_lost_session_closes_its_backend_connections() {
    let (backend, relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let stub = json!({ "id": "lost", "head_delay_ms": 60_000 });
    session.request(1, &json!({ "model": "m", "stub": stub })).await;
    backend.wait_phase("lost", Phase::BeforeHead, LIMIT).await.unwrap();
    drop(session);
    closed_in(&backend, "lost", Phase::BeforeHead).await;
    // It comes back by itself, with all its slots.
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    assert_eq!(session.text("grant").await["n"], 4);
    worker.kill().await;
}
