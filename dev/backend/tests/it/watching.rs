//! The stub notices what its clients do.

use std::time::Duration;

use dev_backend::{Backend, Config, Phase, micros_now};
use tokio::io::AsyncWriteExt;

use crate::client::{DEADLINE, ask, chat, fetch, open, post, read_until};

#[tokio::test]
async fn a_close_is_noticed_at_once_in_every_phase() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let cases = [
        (r#""fail":"stall""#, false, Phase::BeforeHead),
        (r#""fail":"stall""#, true, Phase::BeforeHead),
        (r#""head_delay_ms":60000"#, false, Phase::BeforeHead),
        (r#""fail":"stall","at":"after_head""#, true, Phase::AfterHead),
        (r#""first_byte_delay_ms":60000"#, false, Phase::AfterHead),
        (r#""fail":"stall","at":"mid_body""#, true, Phase::MidBody),
        (r#""fail":"stall","at":"mid_body","chunk_bytes":9"#, false, Phase::MidBody),
        (r#""chunks":1000000,"interval_ms":5"#, true, Phase::MidBody),
        (r#""chunks":100000000"#, true, Phase::MidBody),
    ];
    for (number, (script, stream, phase)) in cases.into_iter().enumerate() {
        let id = format!("close-{number}");
        let socket = open(backend.addr, &chat(&format!(r#"{{"id":"{id}",{script}}}"#), stream)).await;
        assert_eq!(backend.wait_phase(&id, phase, DEADLINE).await.unwrap(), phase);
        let closing = micros_now();
        drop(socket);
        let close = backend.wait_closed(&id, DEADLINE).await.unwrap();
        assert_eq!(close.phase, phase, "{script}");
        let took = Duration::from_micros(close.at_micros - closing);
        assert!(took < Duration::from_millis(500), "{script} took {took:?}");
    }
    backend.wait_running(0, DEADLINE).await.unwrap();
    assert_eq!(backend.stats().cancelled, 9);
    assert_eq!(backend.stats().max_running, 1);
    assert_eq!(backend.closes().len(), 9);
}

#[tokio::test]
async fn a_close_inside_the_request_body_is_noticed() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut request = post("/v1/completions", &["x-stub-id: half"], r#"{"model":"m"}"#);
    request.truncate(request.len() - 3);
    let mut socket = open(backend.addr, &request).await;
    backend.wait_phase("half", Phase::ReadingBody, DEADLINE).await.unwrap();
    socket.shutdown().await.unwrap();
    assert_eq!(backend.wait_closed("half", DEADLINE).await.unwrap().phase, Phase::ReadingBody);
}

#[tokio::test]
async fn what_runs_at_once_is_counted() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.push(open(backend.addr, &chat(r#"{"fail":"stall"}"#, true)).await);
    }
    backend.wait_running(5, DEADLINE).await.unwrap();
    drop(sockets);
    let stats = backend.wait_running(0, DEADLINE).await.unwrap();
    assert_eq!((stats.requests, stats.max_running, stats.cancelled, stats.completed), (5, 5, 5, 0));
    let overdue = backend.wait_running(1, Duration::from_millis(10)).await.unwrap_err();
    assert!(overdue.to_string().starts_with("no 1 running in time"));
}

#[tokio::test]
async fn another_process_can_ask_the_same_over_http() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut socket = open(backend.addr, &chat(r#"{"id":"x","fail":"stall","at":"mid_body"}"#, true)).await;
    read_until(&mut socket, "\"seq\":").await;
    let phase = fetch(backend.addr, "/stub/phase?id=x&phase=mid_body&within_ms=20000").await;
    assert_eq!(phase.json(), "mid_body");
    assert_eq!(fetch(backend.addr, "/stub/running?n=1&within_ms=20000").await.json()["running"], 1);
    assert_eq!(fetch(backend.addr, "/stub/closed?id=x").await.status, 404);
    drop(socket);
    let close = fetch(backend.addr, "/stub/closed?id=x&within_ms=20000").await.json();
    assert_eq!(close["phase"], "mid_body");
    let stats = fetch(backend.addr, "/stub/stats").await.json();
    assert_eq!((&stats["cancelled"], &stats["requests"]), (&1.into(), &1.into()));
    assert_eq!(fetch(backend.addr, "/stub/requests").await.json().as_array().unwrap().len(), 1);

    let put =
        |path: &str, body: &str| String::from_utf8(post(path, &[], body)).unwrap().replace("POST", "PUT");
    assert_eq!(ask(backend.addr, put("/stub/script", r#"{"status":418}"#).as_bytes()).await.status, 200);
    assert_eq!(ask(backend.addr, &post("/stub/script/next", &[], r#"{"status":503}"#)).await.status, 200);
    for expected in [503, 418] {
        assert_eq!(
            ask(backend.addr, &post("/v1/completions", &[], r#"{"model":"m"}"#)).await.status,
            expected
        );
    }
    assert_eq!(ask(backend.addr, put("/stub/models", r#"["a/b:c"]"#).as_bytes()).await.status, 200);
    assert_eq!(fetch(backend.addr, "/v1/models").await.json()["data"][0]["id"], "a/b:c");
    assert_eq!(ask(backend.addr, put("/stub/health", "false").as_bytes()).await.status, 200);
    assert_eq!(fetch(backend.addr, "/health").await.status, 503);
    assert_eq!(ask(backend.addr, put("/stub/health", "maybe").as_bytes()).await.status, 400);
}
