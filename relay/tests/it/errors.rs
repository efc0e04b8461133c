//! The rows of the error table, in the shape of the API that was called.

use std::time::Duration;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Answer, CHAT, Client, MESSAGES, RawClient, TestRelay, V1Worker, chat, request, soon};

/// Checks an error in OpenAI's shape.
async fn assert_openai(answer: Answer, status: u16, kind: &str, code: &str) -> Value {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.header("x-request-id").is_some());
    let body = answer.json().await;
    let error = body["error"].as_object().unwrap();
    assert_eq!((&error["type"], &error["code"]), (&json!(kind), &json!(code)), "{body}");
    assert!(error.contains_key("param"));
    assert!(!error["message"].as_str().unwrap().is_empty());
    body["error"].clone()
}

/// Checks an error in Anthropic's shape.
async fn assert_anthropic(answer: Answer, status: u16, kind: &str) {
    assert_eq!(answer.status(), status);
    let id = answer.header("x-request-id").unwrap().to_owned();
    let body = answer.json().await;
    assert_eq!(body["type"], "error");
    assert_eq!(body["error"]["type"], kind, "{body}");
    assert!(!body["error"]["message"].as_str().unwrap().is_empty());
    assert_eq!(body["request_id"], id);
}

#[tokio::test]
async fn bodies_that_are_not_one_clean_object_are_400() {
    let relay = TestRelay::start("").await;
    let _worker = V1Worker::join(&relay, &["m"], 1).await;
    let bad: &[&[u8]] = &[
        b"",
        b"{",
        b"[]",
        b"null",
        b"\"model\"",
        br#"{"model":"m""#,
        br#"{"model":"m","x":[1,2}"#,
        br#"{"model":"m"}x"#,
        br#"{"model":"m"}{"model":"m"}"#,
        br#"{"model":"m",}"#,
        br#"{"messages":[]}"#,
        br#"{"model":1}"#,
        br#"{"model":null}"#,
        br#"{"model":["m"]}"#,
        br#"{"model":"m","model":"m"}"#,
        br#"{"model":"m","mod\u0065l":"other"}"#,
        br#"{"model":"m","stream":true,"stre\u0061m":false}"#,
        br#"{"model":"m","stream":"true"}"#,
        br#"{"model":"m","stream":1}"#,
        b"{\"model\":\"m\",\"x\":\"\xff\"}",
        b"{\"model\":\"m\",\"x\":\"\xed\xa0\x80\"}",
        b"\xff\xfe{\x00\"\x00",
    ];
    let mut client = Client::connect(relay.client).await;
    for body in bad {
        let what = String::from_utf8_lossy(body).into_owned();
        println!("{what}");
        let answer = soon(&what, client.send(request("POST", CHAT, &[], body.to_vec()))).await;
        assert_openai(answer, 400, "invalid_request_error", "invalid_request").await;
        let answer = soon(&what, client.send(request("POST", MESSAGES, &[], body.to_vec()))).await;
        assert_anthropic(answer, 400, "invalid_request_error").await;
    }
    let answer = relay.post(CHAT, r#"{"model":1}"#).await;
    let error = assert_openai(answer, 400, "invalid_request_error", "invalid_request").await;
    assert_eq!(error["param"], "model");
    let answer = relay.post(CHAT, r#"{"model":"m","stream":1}"#).await;
    let error = assert_openai(answer, 400, "invalid_request_error", "invalid_request").await;
    assert_eq!(error["param"], "stream");
    relay.settled().await;
}

#[tokio::test]
async fn a_form_names_its_model_once() {
    let relay = TestRelay::start("").await;
    let part = |name: &str, value: &str| {
        format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let path = "/v1/audio/transcriptions";
    let (model, file) = (part("model", "m"), part("file", "x"));
    for body in [file.clone() + "--b--\r\n", model.clone() + &model + "--b--\r\n", model + &file] {
        let kind = ("content-type", "multipart/form-data; boundary=b");
        let answer = relay.send(request("POST", path, &[kind], body)).await;
        assert_openai(answer, 400, "invalid_request_error", "invalid_request").await;
    }
    let answer = relay.post(path, r#"{"model":"m"}"#).await;
    assert_openai(answer, 400, "invalid_request_error", "invalid_request").await;
}

#[tokio::test]
async fn a_stream_of_null_is_false() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    for (body, stream) in [
        (r#"{"model":"m","stream":null}"#, false),
        (r#"{"model":"m"}"#, false),
        (r#"{"model":"m","stream":false}"#, false),
        (r#"{"stream" : true, "model" : "m"}"#, true),
        (r#"{"model":"m","nested":{"stream":true,"model":1}}"#, false),
    ] {
        let asked = relay.ask(CHAT, body);
        let request = worker.request().await;
        assert_eq!(request["is_streaming"], stream, "{body}");
        assert_eq!(request["body"], body, "the body passes unchanged");
        worker.complete(&request, 200, "").await;
        assert_eq!(asked.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_404_in_the_paths_api() {
    let relay = TestRelay::start("").await;
    let openai = [
        ("GET", CHAT),
        ("DELETE", CHAT),
        ("POST", "/v1/models"),
        ("POST", "/"),
        ("GET", "/v1"),
        ("POST", "/v1/chat/completions/"),
        ("GET", "/v1/models/"),
        ("GET", "/metrics"),
        ("GET", "/readyz"),
        ("GET", "/admin/v1/workers"),
        ("POST", "/v1/worker/connect"),
    ];
    for (method, path) in openai {
        println!("{method} {path}");
        let answer = relay.send(request(method, path, &[], "")).await;
        let known = [CHAT, "/v1/models", "/v1/worker/connect"].contains(&path);
        assert_eq!(answer.header("allow").is_some(), known, "what would be right at this path");
        assert_openai(answer, 404, "invalid_request_error", "not_found").await;
    }
    for (method, path) in [("GET", MESSAGES), ("POST", "/v1/messages/batches")] {
        let answer = relay.send(request(method, path, &[], "")).await;
        assert_anthropic(answer, 404, "not_found_error").await;
    }
    let answer = relay.send(request("GET", "/health", &[], "")).await;
    assert_eq!((answer.status(), answer.text().await.as_str()), (200, r#"{"status":"ok"}"#));
}

#[tokio::test]
async fn a_sane_request_id_comes_back_and_goes_to_the_worker() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask_with(request("POST", CHAT, &[("x-request-id", "mine-1")], chat("m", false)));
    let seen = worker.request().await;
    assert_eq!(seen["headers"]["x-request-id"], "mine-1");
    let mut answer = crate::support::v1::completion(&seen, 200, "");
    answer["headers"]["x-request-id"] = json!("the engine's");
    worker.send(answer).await;
    assert_eq!(asked.answer().await.header("x-request-id"), Some("mine-1"));
    let long = "x".repeat(129);
    for insane in ["tab\there", &long] {
        let answer = relay.send(request("POST", CHAT, &[("x-request-id", insane)], "{")).await;
        assert_ne!(answer.header("x-request-id").unwrap(), insane);
    }
    let answer = relay.send(request("POST", CHAT, &[("x-request-id", "mine-2")], "{")).await;
    assert_eq!(answer.header("x-request-id"), Some("mine-2"));
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_announced_or_not() {
    let relay = TestRelay::start("limits: { maxBodyBytes: 1Ki }\n").await;
    let answer = relay.post(CHAT, "x".repeat(1025)).await;
    assert_openai(answer, 413, "invalid_request_error", "request_too_large").await;
    let answer = relay.post(MESSAGES, "x".repeat(1025)).await;
    assert_anthropic(answer, 413, "request_too_large").await;
    let mut client = RawClient::connect(relay.client).await;
    client.write(format!("POST {CHAT} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
    client.write(format!("400\r\n{}\r\n10\r\n", "x".repeat(1024))).await;
    client.write("0123456789abcdef\r\n").await;
    assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 413 "));
    // Nothing of an announced body is waited for.
    let mut client = RawClient::connect(relay.client).await;
    client.write(format!("POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n")).await;
    assert!(client.until("request_too_large").await.starts_with("HTTP/1.1 413 "));
    relay.settled().await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_408() {
    let relay = TestRelay::start("limits: { bodyTimeoutSeconds: 1 }\n").await;
    let mut client = RawClient::connect(relay.client).await;
    client.write(format!("POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Length: 30\r\n\r\n{{\"mo")).await;
    let answer = client.until("request_timeout").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    relay.settled().await;
}

#[tokio::test]
async fn a_full_queue_is_429_and_says_when_to_come_back() {
    let relay = TestRelay::start("queue: { maxRequests: 1 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m", "n"], 1).await;
    let running = relay.ask(CHAT, chat("m", false));
    let first = worker.request().await;
    let waiting = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    let refused = relay.post(CHAT, chat("m", false)).await;
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&after));
    assert_openai(refused, 429, "rate_limit_error", "queue_full").await;
    let refused = relay.post(MESSAGES, chat("m", false)).await;
    assert!(refused.header("retry-after").is_some());
    assert_anthropic(refused, 429, "rate_limit_error").await;
    // Another model's queue is another queue.
    let other = relay.ask(CHAT, chat("n", false));
    relay.queued(2).await;
    worker.complete(&first, 200, "").await;
    for _ in 0..2 {
        let next = worker.request().await;
        worker.complete(&next, 200, "").await;
    }
    for asked in [running, waiting, other] {
        assert_eq!(asked.answer().await.status(), 200);
    }
    relay.settled().await;
}

#[tokio::test]
async fn bodies_beyond_the_memory_for_all_of_them_are_429() {
    let relay = TestRelay::start("queue: { maxBytes: 1Ki }\nlimits: { maxBodyBytes: 1Ki }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 4).await;
    let body = json!({ "model": "m", "stream": true, "x": "y".repeat(600) }).to_string();
    let first = relay.ask(CHAT, body.clone());
    let taken = worker.request().await;
    let refused = relay.post(CHAT, body.clone()).await;
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_openai(refused, 429, "rate_limit_error", "queue_full").await;
    // The first byte of an answer lets go of the request's body.
    worker.chunk(&taken, "data: 1\n\n").await;
    let answer = first.answer().await;
    assert_eq!(relay.relay.bodies.held(), 0);
    let second = relay.ask(CHAT, body);
    let next = worker.request().await;
    worker.complete(&next, 200, "").await;
    assert_eq!(second.answer().await.status(), 200);
    worker.complete(&taken, 200, "").await;
    assert_eq!(answer.text().await, "data: 1\n\n");
    relay.settled().await;
}

#[tokio::test]
async fn a_wait_that_is_too_long_is_503_queue_timeout() {
    let relay = TestRelay::start("queue: { timeoutSeconds: 1 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let running = relay.ask(CHAT, chat("m", false));
    let taken = worker.request().await;
    let asked_at = Instant::now();
    let (openai, anthropic) =
        tokio::join!(relay.post(CHAT, chat("m", false)), relay.post(MESSAGES, chat("m", false)));
    assert!(asked_at.elapsed() >= Duration::from_millis(990));
    assert!(openai.header("retry-after").is_some());
    assert_openai(openai, 503, "server_error", "queue_timeout").await;
    assert_anthropic(anthropic, 503, "overloaded_error").await;
    worker.complete(&taken, 200, "").await;
    assert_eq!(running.answer().await.status(), 200);
    relay.settled().await;
}

#[tokio::test]
async fn a_model_that_nobody_brings_is_503_no_worker_and_says_what_is_served() {
    let relay = TestRelay::start(
        "queue: { noWorkerTimeoutSeconds: 1, maxBytes: 4Ki }\nlimits: { maxBodyBytes: 4Ki }\n",
    )
    .await;
    let _worker = V1Worker::join(&relay, &["served-1", "served-2"], 1).await;
    let waiting = relay.ask(CHAT, chat("absent", false));
    relay.queued(1).await;
    // Only a quarter of the memory is for what nobody serves.
    let large = json!({ "model": "absent", "x": "y".repeat(1024) }).to_string();
    let refused = relay.post(CHAT, large).await;
    assert_openai(refused, 503, "server_error", "no_worker").await;
    let answer = waiting.answer().await;
    assert!(answer.header("retry-after").is_some());
    let error = assert_openai(answer, 503, "server_error", "no_worker").await;
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("absent") && message.contains("served-1") && message.contains("served-2"));
    relay.settled().await;
}

#[tokio::test]
async fn a_backend_without_a_first_byte_is_504_and_its_worker_told() {
    let relay = TestRelay::start("timeouts: { firstByteSeconds: 1 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 2).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    assert_eq!(worker.cancelled(&request).await, "timeout");
    assert_openai(asked.answer().await, 504, "server_error", "backend_timeout").await;
    let asked = relay.ask(MESSAGES, chat("m", true));
    let request = worker.request().await;
    assert_eq!(worker.cancelled(&request).await, "timeout");
    assert_anthropic(asked.answer().await, 504, "api_error").await;
    relay.settled().await;
}

#[tokio::test]
async fn the_wait_for_a_slot_does_not_count_against_the_first_byte() {
    let relay = TestRelay::start("timeouts: { firstByteSeconds: 1 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    // Lost before its first byte, it waits for a worker: longer than backends may be silent.
    let asked = relay.ask(CHAT, chat("m", false));
    worker.request().await;
    drop(worker);
    relay.queued(1).await;
    let requests = relay.admin("/admin/v1/requests").await;
    assert_eq!(requests[0]["state"], "queued", "{requests}");
    assert_eq!(requests[0]["worker"], Value::Null);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!asked.is_answered());
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let request = worker.request().await;
    worker.complete(&request, 200, "patience").await;
    assert_eq!(asked.answer().await.text().await, "patience");
    relay.settled().await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_in_all_is_504() {
    let relay = TestRelay::start("timeouts: { requestSeconds: 1 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let running = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    let waiting = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    assert_eq!(worker.cancelled(&request).await, "timeout");
    assert_openai(running.answer().await, 504, "server_error", "backend_timeout").await;
    // The slot goes to the other for a moment, or its time is over as well: answered the same either way.
    assert_openai(waiting.answer().await, 504, "server_error", "backend_timeout").await;
    relay.settled().await;
}

#[tokio::test]
async fn what_a_backend_says_passes_unchanged() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    for status in [400, 401, 404, 413, 422, 429, 500, 502, 503, 504] {
        let asked = relay.ask(CHAT, chat("m", false));
        let request = worker.request().await;
        let mut answer = crate::support::v1::completion(&request, status, "the engine's own words");
        answer["headers"] = json!({ "content-type": "text/x-engine", "retry-after": "77", "x-odd": "kept" });
        worker.send(answer).await;
        let answer = asked.answer().await;
        assert_eq!(answer.status(), status);
        assert_eq!(answer.header("content-type"), Some("text/x-engine"));
        assert_eq!((answer.header("retry-after"), answer.header("x-odd")), (Some("77"), Some("kept")));
        assert_eq!(answer.text().await, "the engine's own words");
    }
    relay.settled().await;
}

#[tokio::test]
async fn a_worker_that_speaks_nonsense_costs_502_once_no_other_is_left() {
    let relay = TestRelay::start("retries: { maxRequeues: 0 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    for (path, openai) in [(CHAT, true), (MESSAGES, false)] {
        let asked = relay.ask(path, chat("m", false));
        worker.request().await;
        worker.socket.send(Message::text("nonsense")).await.unwrap();
        let answer = asked.answer().await;
        if openai {
            assert_openai(answer, 502, "server_error", "worker_lost").await;
        } else {
            assert_anthropic(answer, 502, "api_error").await;
        }
        worker = V1Worker::join(&relay, &["m"], 1).await;
    }
    relay.settled().await;
}
