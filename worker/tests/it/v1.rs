//! Each demand on the worker's side against a plain v1 relay.

use dev_backend::{Backend, Config, Phase};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{LIMIT, RawBackend, Relay, Session, config, worker};

fn request(id: &str, streaming: bool, body: &Value) -> Value {
    json!({
        "type": "request", "request_id": id, "model": "m", "endpoint_path": "/v1/chat/completions",
        "is_streaming": streaming, "body": body.to_string(), "headers": { "content-type": "application/json" },
    })
}

/// Collects chunks up to the completion, which is last.
async fn answer(session: &mut Session, id: &str) -> (String, Value) {
    let mut chunks = String::new();
    loop {
        let text = session.next().await.into_text().unwrap();
        let message: Value = serde_json::from_str(&text).unwrap();
        match message["type"].as_str().unwrap() {
            "response_chunk" => {
                assert_eq!(message["request_id"], id);
                chunks.push_str(message["chunk"].as_str().unwrap());
            }
            "response_complete" => {
                assert_eq!(message["request_id"], id);
                return (chunks, message);
            }
            "pong" | "models_update" => {}
            other => panic!("a v1 relay does not know {other}"),
        }
    }
}

async fn stub() -> Backend {
    Backend::start(Config::default()).await.unwrap()
}

#[tokio::test]
async fn registration_shows_a_v1_relay_what_it_knows_and_an_update_follows_the_ack() {
    let (backend, relay) = (stub().await, Relay::start().await);
    let worker = worker(config(&relay.url(), &backend.url())).await;
    let mut session = relay.accept().await;
    assert_eq!(session.target, "/v1/worker/connect?provider=local");
    assert_eq!(session.headers["x-worker-secret"], "s3cret");
    let register = session.text("register").await;
    assert_eq!(register["worker_name"], "under-test");
    assert_eq!(register["models"], json!(["m"]));
    assert_eq!(register["max_concurrent"], 4);
    assert_eq!(register["protocol_version"], "2026-04-bridge-v1");
    session.send(json!({ "type": "register_ack", "worker_id": "w", "models": ["m"] })).await;
    let update = session.text("models_update").await;
    assert_eq!((&update["models"], &update["current_load"]), (&json!(["m"]), &json!(0)));
    session.send(json!({ "type": "ping", "timestamp_unix_ms": 7 })).await;
    let pong = session.text("pong").await;
    assert_eq!((&pong["timestamp_unix_ms"], &pong["current_load"]), (&json!(7), &json!(0)));
    session.send(json!({ "type": "models_refresh" })).await;
    session.models(&["m"]).await;
    assert!(session.types.iter().all(|kind| ["register", "models_update", "pong"].contains(&kind.as_str())));
    worker.kill().await;
}

#[tokio::test]
async fn a_stream_arrives_in_chunks_and_an_answer_in_its_completion() {
    let (backend, relay) = (stub().await, Relay::start().await);
    let worker = worker(config(&relay.url(), &backend.url())).await;
    let (mut session, _) = relay.accept_v1().await;
    session.models(&["m"]).await;
    session.send(request("a", true, &json!({ "model": "m", "stream": true, "stub": { "chunks": 5 } }))).await;
    let (chunks, complete) = answer(&mut session, "a").await;
    assert!(chunks.starts_with("data: ") && chunks.ends_with("data: [DONE]\n\n"), "{chunks}");
    assert_eq!(complete["status_code"], 200);
    assert_eq!(complete["body"], Value::Null);
    assert_eq!(
        complete["headers"]["content-type"].as_str().map(|kind| &kind[..17]),
        Some("text/event-stream")
    );

    session.send(request("b", false, &json!({ "model": "m", "stub": { "prompt_tokens": 9 } }))).await;
    let (chunks, complete) = answer(&mut session, "b").await;
    assert_eq!(chunks, "");
    let body: Value = serde_json::from_str(complete["body"].as_str().unwrap()).unwrap();
    assert_eq!(body["usage"]["prompt_tokens"], 9);
    assert_eq!(complete["token_counts"]["prompt_tokens"], 9);
    for hop in ["transfer-encoding", "content-length", "connection", "keep-alive"] {
        assert_eq!(complete["headers"].get(hop), None, "{hop}");
    }
    worker.kill().await;
}

#[tokio::test]
async fn a_streams_error_keeps_its_status_because_it_is_not_sent_in_chunks() {
    let (backend, relay) = (stub().await, Relay::start().await);
    let worker = worker(config(&relay.url(), &backend.url())).await;
    let (mut session, _) = relay.accept_v1().await;
    session.models(&["m"]).await;
    let body =
        json!({ "model": "m", "stream": true, "stub": { "status": 400, "body": "{\"error\":\"bad\"}" } });
    session.send(request("a", true, &body)).await;
    let (chunks, complete) = answer(&mut session, "a").await;
    assert_eq!((chunks.as_str(), &complete["status_code"]), ("", &json!(400)));
    assert_eq!(complete["body"], "{\"error\":\"bad\"}");
    worker.kill().await;
}

#[tokio::test]
async fn every_cancel_is_followed_by_a_completion() {
    let (backend, relay) = (stub().await, Relay::start().await);
    let worker = worker(config(&relay.url(), &backend.url())).await;
    let (mut session, _) = relay.accept_v1().await;
    session.models(&["m"]).await;
    let slow =
        json!({ "model": "m", "stream": true, "stub": { "id": "s", "chunks": 1000, "interval_ms": 50 } });
    let silent = json!({ "model": "m", "stub": { "id": "n", "head_delay_ms": 60_000 } });
    for (id, stub_id, phase, body) in
        [("a", "s", Phase::MidBody, slow), ("b", "n", Phase::BeforeHead, silent)]
    {
        session.send(request(id, phase == Phase::MidBody, &body)).await;
        backend.wait_phase(stub_id, phase, LIMIT).await.unwrap();
        session.send(json!({ "type": "cancel", "request_id": id, "reason": "client_disconnect" })).await;
        let (_, complete) = answer(&mut session, id).await;
        assert_eq!(complete["status_code"], 499);
        backend.wait_closed(stub_id, LIMIT).await.unwrap();
    }
    session.send(json!({ "type": "ping" })).await;
    assert_eq!(session.text("pong").await["current_load"], 0);
    worker.kill().await;
}

#[tokio::test]
async fn a_cancel_ahead_of_its_request_drops_it() {
    let (backend, relay) = (stub().await, Relay::start().await);
    let worker = worker(config(&relay.url(), &backend.url())).await;
    let (mut session, _) = relay.accept_v1().await;
    session.models(&["m"]).await;
    session.send(json!({ "type": "cancel", "request_id": "a", "reason": { "other": "early" } })).await;
    session.send(request("a", false, &json!({ "model": "m" }))).await;
    let (_, complete) = answer(&mut session, "a").await;
    assert_eq!(complete["status_code"], 499);
    session.send(request("b", false, &json!({ "model": "m" }))).await;
    assert_eq!(answer(&mut session, "b").await.1["status_code"], 200);
    assert_eq!(backend.stats().requests, 1, "the cancelled request must not reach the backend");
    worker.kill().await;
}

#[tokio::test]
async fn failures_are_completions_with_a_status_and_never_errors() {
    let (backend, relay) = (stub().await, Relay::start().await);
    let mut config = config(&relay.url(), &backend.url());
    config.timeouts.idle_seconds = 1;
    let worker = worker(config).await;
    let (mut session, _) = relay.accept_v1().await;
    session.models(&["m"]).await;
    for (fail, status, code) in [
        ("reset", 502, "backend_reset"),
        ("garbage", 502, "backend_garbage"),
        ("stall", 504, "backend_timeout"),
    ] {
        session.send(request(fail, true, &json!({ "model": "m", "stub": { "fail": fail } }))).await;
        let (_, complete) = answer(&mut session, fail).await;
        assert_eq!(complete["status_code"], status, "{fail}");
        let body: Value = serde_json::from_str(complete["body"].as_str().unwrap()).unwrap();
        assert_eq!(body["error"]["code"], code);
    }
    worker.kill().await;
}

#[tokio::test]
async fn a_draining_worker_says_that_it_is_full_finishes_and_leaves() {
    let (backend, relay) = (stub().await, Relay::start().await);
    let worker = worker(config(&relay.url(), &backend.url())).await;
    let (mut session, _) = relay.accept_v1().await;
    session.models(&["m"]).await;
    let body =
        json!({ "model": "m", "stream": true, "stub": { "id": "a", "chunks": 10, "interval_ms": 50 } });
    session.send(request("a", true, &body)).await;
    backend.wait_phase("a", Phase::MidBody, LIMIT).await.unwrap();
    let leaving = tokio::task::LocalSet::new();
    leaving.spawn_local(worker.shutdown());
    leaving
        .run_until(async {
            let mut chunks = String::new();
            let mut update = None;
            loop {
                let message = session.next().await;
                if let Message::Close(frame) = message {
                    assert_eq!(u16::from(frame.unwrap().code), 1000);
                    break;
                }
                let message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
                match message["type"].as_str().unwrap() {
                    "response_chunk" => chunks.push_str(message["chunk"].as_str().unwrap()),
                    "models_update" => update = Some(message),
                    "response_complete" => assert_eq!(message["status_code"], 200),
                    _ => {}
                }
            }
            assert!(chunks.ends_with("data: [DONE]\n\n"));
            let update = update.unwrap();
            assert_eq!((&update["models"], &update["current_load"]), (&json!([]), &json!(4)));
        })
        .await;
    leaving.await;
}

#[tokio::test]
async fn a_v1_relay_beside_others_gets_its_part_of_the_slots() {
    let (backend, relay, other) = (stub().await, Relay::start().await, Relay::start().await);
    let mut config = config(&relay.url(), &backend.url());
    config.relay_urls.push(other.url());
    config.max_concurrency = 4;
    let worker = worker(config).await;
    let (mut session, register) = relay.accept_v1().await;
    assert_eq!(register["max_concurrent"], 4);
    assert_eq!(u16::from(session.closed().await.code), 1000);
    let (_session, register) = relay.accept_v1().await;
    assert_eq!(register["max_concurrent"], 2);
    // What it could not use anyway is lent to the other relay.
    let mut theirs = other.accept_streams(65_600).await;
    assert_eq!(theirs.text("grant").await["n"], 2);
    worker.kill().await;
}

#[tokio::test]
async fn a_request_larger_than_sixteen_mebibytes_is_taken() {
    let backend = RawBackend::start("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let relay = Relay::start().await;
    let worker = worker(config(&relay.url(), &backend.url)).await;
    let (mut session, _) = relay.accept_v1().await;
    session.models(&["m"]).await;
    let body = json!({ "model": "m", "padding": "x".repeat(20 << 20) });
    session.send(request("a", false, &body)).await;
    assert_eq!(answer(&mut session, "a").await.1["body"], "ok");
    worker.kill().await;
}
