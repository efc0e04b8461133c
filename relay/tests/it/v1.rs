//! A plain v1 worker on our relay, in each numbered demand of the protocol.

use std::time::Duration;

use futures_util::SinkExt;
use serde_json::json;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::support::v1::{closed, completion, upgrade};
use crate::support::{CHAT, TestRelay, V1Worker, chat, eventually, request, soon};

#[tokio::test]
async fn a_request_reaches_the_worker_and_its_answer_the_client() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    assert_eq!(request["model"], "m");
    assert_eq!(request["endpoint_path"], CHAT);
    assert_eq!(request["is_streaming"], false);
    assert_eq!(request["body"], chat("m", false));
    worker.complete(&request, 201, r#"{"ok":true}"#).await;
    let answer = asked.answer().await;
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.header("content-length"), Some("11"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.header("x-request-id").is_some());
    assert_eq!(answer.header("x-modelrelay-worker"), Some("v1"));
    assert_eq!(answer.text().await, r#"{"ok":true}"#);
    relay.settled().await;
}

#[tokio::test]
async fn only_listed_messages_are_sent_and_an_absent_field_is_left_out() {
    let relay = TestRelay::start("").await;
    let worker = V1Worker::join(&relay, &["m"], 1).await;
    let mut fields: Vec<&String> = worker.ack.as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(fields, ["models", "type", "worker_id"]);
}

#[tokio::test]
async fn a_cancel_frees_the_slot_at_once_and_late_frames_are_dropped() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let first = relay.ask(CHAT, chat("m", true));
    let taken = worker.request().await;
    let second = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    drop(first);
    assert_eq!(worker.cancelled(&taken).await, "client_disconnect");
    // The worker says nothing about the cancel, and gets the next request all the same.
    let next = worker.request().await;
    worker.chunk(&taken, "late").await;
    worker.complete(&taken, 200, "late").await;
    worker.complete(&next, 200, "good").await;
    assert_eq!(second.answer().await.text().await, "good");
    relay.settled().await;
    assert_eq!(relay.metric("modelrelay_late_frames_total").await, 2.0);
}

#[tokio::test]
async fn late_foreign_and_unknown_frames_never_reach_a_client_and_the_session_stays() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 2).await;
    let mut other = V1Worker::join(&relay, &["n"], 1).await;
    let foreign_asked = relay.ask(CHAT, chat("n", true));
    let foreign = other.request().await;
    let asked = relay.ask(CHAT, chat("m", true));
    let request = worker.request().await;
    for id in ["", "nonsense", "r0000", "rzzzzzzzz", "r12345678"] {
        let stranger = json!({ "request_id": id });
        worker.chunk(&stranger, "stray").await;
        worker.complete(&stranger, 200, "stray").await;
    }
    // The id of another worker's request is not this worker's to answer.
    let twin = foreign["request_id"] == request["request_id"];
    assert!(twin, "ids count per session, so both are the first");
    worker.chunk(&request, "data: good\n\n").await;
    worker.complete(&request, 200, "").await;
    worker.chunk(&request, "data: late\n\n").await;
    worker.complete(&request, 200, "late").await;
    assert_eq!(asked.answer().await.text().await, "data: good\n\n");
    other.complete(&foreign, 200, "own").await;
    assert_eq!(foreign_asked.answer().await.text().await, "own");
    let again = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    worker.complete(&request, 200, "still here").await;
    assert_eq!(again.answer().await.text().await, "still here");
    assert_eq!(relay.metric("modelrelay_late_frames_total").await, 12.0);
    relay.settled().await;
}

#[tokio::test]
async fn hop_by_hop_and_length_headers_are_stripped_and_others_pass() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    let mut answer = completion(&request, 200, "four");
    answer["headers"] = json!({
        "Content-Type": "text/plain", "X-Engine": "e", "connection": "close, x-hop", "x-hop": "1",
        "keep-alive": "timeout=5", "te": "trailers", "trailer": "x-sum", "Transfer-Encoding": "chunked",
        "upgrade": "h2c", "proxy-authenticate": "Basic", "Content-Length": "99", "bad name": "x", "x-bad": "a\nb",
    });
    worker.send(answer).await;
    let answer = asked.answer().await;
    let mut names: Vec<&str> = answer.head.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    let ours = ["x-modelrelay-queue-ms", "x-modelrelay-worker", "x-request-id"];
    let all = [["content-length", "content-type", "date", "x-engine"].as_slice(), &ours].concat();
    assert_eq!(names, {
        let mut all = all;
        all.sort_unstable();
        all
    });
    assert_eq!(answer.header("content-length"), Some("4"));
    assert_eq!(answer.text().await, "four");
    relay.settled().await;
}

#[tokio::test]
async fn chunks_are_the_body_of_a_stream() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let request = worker.request().await;
    assert_eq!(request["is_streaming"], true);
    worker.chunk(&request, "data: 1\n\n").await;
    let mut answer = asked.answer().await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: 1\n\n");
    worker.chunk(&request, "data: 2\n\n").await;
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: 2\n\n");
    // The status comes too late to count, and the body was the chunks.
    worker.complete(&request, 500, "ignored").await;
    assert!(answer.chunk().await.is_none());
    relay.settled().await;
}

#[tokio::test]
async fn a_stream_without_chunks_is_its_completion() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    for chunks in [&[][..], &[""]] {
        let asked = relay.ask(CHAT, chat("m", true));
        let request = worker.request().await;
        for chunk in chunks {
            worker.chunk(&request, chunk).await;
        }
        worker.complete(&request, 418, "whole").await;
        let answer = asked.answer().await;
        assert_eq!(answer.status(), 418);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.text().await, "whole");
    }
    relay.settled().await;
}

#[tokio::test]
async fn chunks_of_a_request_that_is_no_stream_do_not_count() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    worker.chunk(&request, "chunk").await;
    worker.complete(&request, 200, "body").await;
    assert_eq!(asked.answer().await.text().await, "body");
    relay.settled().await;
}

#[tokio::test]
async fn a_streams_error_keeps_its_status() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let request = worker.request().await;
    let id = &request["request_id"];
    let mut end = completion(&request, 400, "not the body");
    end["headers"]["content-type"] = json!("application/problem+json");
    // In one piece, so that the completion follows in time however busy the machine is.
    worker
        .send_together(&[
            json!({ "type": "response_chunk", "request_id": id, "chunk": r#"{"error":"# }),
            json!({ "type": "response_chunk", "request_id": id, "chunk": r#""bad"}"# }),
            end,
        ])
        .await;
    let answer = asked.answer().await;
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.text().await, r#"{"error":"bad"}"#);
    relay.settled().await;
}

#[tokio::test]
async fn a_completion_that_does_not_follow_the_chunks_in_time_loses_its_status() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let request = worker.request().await;
    worker.chunk(&request, "data: first\n\n").await;
    let answer = asked.answer().await;
    assert_eq!(answer.status(), 200, "the chunk was held for milliseconds, not for the completion");
    worker.complete(&request, 500, "").await;
    assert_eq!(answer.text().await, "data: first\n\n");
    relay.settled().await;
}

#[tokio::test]
async fn a_failed_completion_of_a_stream_passes_on_whatever_the_status() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    for (sent, seen) in [(100, 502), (101, 502), (99, 502), (204, 204), (304, 304), (599, 599)] {
        let asked = relay.ask(CHAT, chat("m", false));
        let request = worker.request().await;
        worker.complete(&request, sent, "").await;
        let answer = asked.answer().await;
        assert_eq!(answer.status(), seen, "for {sent}");
        assert!(answer.header("x-request-id").is_some());
    }
    relay.settled().await;
}

#[tokio::test]
async fn the_load_that_a_worker_registers_with_counts_at_once() {
    let relay = TestRelay::start("").await;
    let register = json!({
        "type": "register", "worker_name": "busy", "models": ["m"], "max_concurrent": 2, "current_load": 2,
    });
    let mut worker = V1Worker::join_as(&relay, &register).await;
    let asked = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    worker.send(json!({ "type": "pong", "current_load": 1 })).await;
    let request = worker.request().await;
    worker.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
}

#[tokio::test]
async fn a_workers_own_requests_are_not_counted_twice() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 2).await;
    let first = relay.ask(CHAT, chat("m", false));
    let taken = worker.request().await;
    // One request of ours and nothing else: the second slot is free.
    worker.send(json!({ "type": "models_update", "models": ["m"], "current_load": 1 })).await;
    let second = relay.ask(CHAT, chat("m", false));
    let next = worker.request().await;
    worker.complete(&taken, 200, "").await;
    // The report is older than the completion: of one slot it must not leave a full worker behind.
    worker.complete(&next, 200, "").await;
    assert_eq!((first.answer().await.status(), second.answer().await.status()), (200, 200));
    let third = relay.ask(CHAT, chat("m", false));
    let fourth = relay.ask(CHAT, chat("m", false));
    for _ in 0..2 {
        let request = worker.request().await;
        worker.complete(&request, 200, "").await;
    }
    assert_eq!((third.answer().await.status(), fourth.answer().await.status()), (200, 200));
    relay.settled().await;
}

#[tokio::test]
async fn foreign_load_takes_slots_and_gives_them_back() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 2).await;
    let first = relay.ask(CHAT, chat("m", false));
    let taken = worker.request().await;
    // Two run there, one of them for somebody else: there is no room for another.
    worker.send(json!({ "type": "pong", "current_load": 2 })).await;
    let second = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    worker.send(json!({ "type": "pong", "current_load": 1 })).await;
    let next = worker.request().await;
    worker.complete(&taken, 200, "").await;
    worker.complete(&next, 200, "").await;
    assert_eq!((first.answer().await.status(), second.answer().await.status()), (200, 200));
}

#[tokio::test]
async fn a_models_update_replaces_models_and_load() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["old"], 1).await;
    worker.send(json!({ "type": "models_update", "models": [" new ", "new"], "current_load": 0 })).await;
    let asked = relay.ask(CHAT, chat("new", false));
    let request = worker.request().await;
    assert_eq!(request["model"], "new");
    worker.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
    let models = relay.send(request_models()).await.json().await;
    assert_eq!(models["data"].as_array().unwrap().len(), 1);
    // Full load and no models is how a v1 worker drains: what it runs goes on.
    let asked = relay.ask(CHAT, chat("new", false));
    let request = worker.request().await;
    worker.send(json!({ "type": "models_update", "models": [], "current_load": 1 })).await;
    let late = relay.ask(CHAT, chat("new", false));
    relay.queued(1).await;
    worker.complete(&request, 200, "finished").await;
    assert_eq!(asked.answer().await.text().await, "finished");
    drop(late);
    relay.settled().await;
}

fn request_models() -> http::Request<http_body_util::Full<bytes::Bytes>> {
    request("GET", "/v1/models", &[], "")
}

#[tokio::test]
async fn what_breaks_the_protocol_closes_the_session_with_1002() {
    let relay = TestRelay::start("").await;
    let bad = [
        Message::binary(vec![5, 0, 0, 0, 0, 1]),
        Message::text("{"),
        Message::text("[]"),
        Message::text(r#"{"type":"warp"}"#),
        Message::text(r#"{"type":"pong"}"#),
        Message::text(r#"{"type":"response_complete","request_id":"r00000000","status_code":99999}"#),
        Message::text(r#"{"type":"register","worker_name":"w","models":[],"max_concurrent":1}"#),
        Message::text(r#"{"type":"grant","n":1}"#),
        Message::text(r#"{"type":"draining","deadline_ms":1}"#),
    ];
    for message in bad {
        let mut worker = V1Worker::join(&relay, &["m"], 1).await;
        worker.socket.send(message.clone()).await.unwrap();
        let close = worker.closed().await.unwrap_or_else(|| panic!("no close frame for {message}"));
        assert_eq!(u16::from(close.code), 1002, "{message}: {}", close.reason);
        assert!(!close.reason.is_empty());
    }
    relay.workers(0).await;
}

#[tokio::test]
async fn an_error_message_is_accepted_from_any_worker() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    worker.send(json!({ "type": "error", "code": "odd", "message": "about nothing" })).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let request = worker.request().await;
    let id = &request["request_id"];
    worker
        .send(json!({ "type": "error", "request_id": id, "code": "backend_timeout", "message": "m" }))
        .await;
    assert_eq!(asked.answer().await.error().await, (504, "backend_timeout".into()));
    relay.settled().await;
}

#[tokio::test]
async fn another_first_frame_than_register_is_closed_with_1002() {
    let relay = TestRelay::start("").await;
    let first = [
        Message::text(r#"{"type":"pong","current_load":0}"#),
        Message::text("nonsense"),
        Message::text(r#"{"type":"register","worker_name":"w"}"#),
        Message::binary(vec![1, 2, 3]),
        Message::text(
            r#"{"type":"register","worker_name":"w","models":[],"max_concurrent":1,"protocol_version":"2027"}"#,
        ),
    ];
    for message in first {
        let mut socket = V1Worker::dial(relay.client, None).await;
        socket.send(message.clone()).await.unwrap();
        let close = closed(&mut socket).await.unwrap_or_else(|| panic!("no close frame for {message}"));
        assert_eq!(u16::from(close.code), 1002, "{message}");
    }
    assert!(relay.relay.dispatcher.sessions().is_empty());
}

#[tokio::test]
async fn an_unregistered_worker_may_send_one_mebibyte() {
    let relay = TestRelay::start("").await;
    let register = |padding: usize| {
        let models = ["m"];
        let padding = "x".repeat(padding);
        json!({ "type": "register", "worker_name": "w", "models": models, "max_concurrent": 1, "x": padding })
    };
    V1Worker::join_as(&relay, &register(1_000_000)).await;
    let mut socket = V1Worker::dial(relay.client, None).await;
    // The relay may hang up while this is still being written.
    let sent = socket.send(Message::text(register(4 << 20).to_string())).await;
    if sent.is_ok()
        && let Some(close) = closed(&mut socket).await
    {
        assert_eq!(u16::from(close.code), 1002);
    }
    relay.workers(0).await;
}

#[tokio::test]
async fn a_registered_worker_may_send_large_frames() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    let body = "0123456789abcdef".repeat((20 << 20) / 16);
    worker.complete(&request, 200, &body).await;
    let answer = asked.answer().await.text().await;
    assert!(answer == body, "{} bytes", answer.len());
    relay.settled().await;
}

#[tokio::test]
async fn the_secret_in_the_header_goes_before_the_one_in_the_query() {
    let file = crate::support::SettingsFile::new(&format!(
        "workerCredentials:\n{}",
        crate::support::SettingsFile::credential("right", "")
    ));
    let relay = TestRelay::follow(&file).await;
    let cases = [
        ("?worker_secret=right", None, true),
        ("?worker_secret=wrong", Some("right"), true),
        ("?worker_secret=right", Some("wrong"), false),
        ("?worker_secret=wrong", None, false),
        ("", None, false),
    ];
    for (query, header, welcome) in cases {
        let mut builder = upgrade(relay.client, query);
        if let Some(secret) = header {
            builder = builder.header("x-worker-secret", secret);
        }
        // The upgrade succeeds in any case: v1 workers take a 401 for trouble on the way.
        let (mut socket, _) = V1Worker::dial_with(relay.client, builder).await;
        if welcome {
            let register =
                json!({ "type": "register", "worker_name": "w", "models": [], "max_concurrent": 1 });
            socket.send(Message::text(register.to_string())).await.unwrap();
            relay.workers(1).await;
            drop(socket);
            relay.workers(0).await;
        } else {
            let close = closed(&mut socket).await.unwrap();
            assert_eq!(u16::from(close.code), 1008);
            assert!(!close.reason.contains("right") && !close.reason.is_empty());
        }
    }
}

#[tokio::test]
async fn a_right_secret_is_never_delayed_by_wrong_ones_from_the_same_address() {
    let file = crate::support::SettingsFile::new(&format!(
        "workerCredentials:\n{}",
        crate::support::SettingsFile::credential("right", "")
    ));
    let relay = TestRelay::follow(&file).await;
    let mut refused = Vec::new();
    for _ in 0..30 {
        refused.push(V1Worker::dial(relay.client, Some("wrong")).await);
    }
    let asked = Instant::now();
    let register = json!({ "type": "register", "worker_name": "w", "models": ["m"], "max_concurrent": 1 });
    V1Worker::join_with(&relay, &register, Some("right")).await;
    assert!(asked.elapsed() < Duration::from_millis(500));
    // The last of them waits for seconds by now; the first was told at once.
    assert_eq!(u16::from(closed(&mut refused[0]).await.unwrap().code), 1008);
}

#[tokio::test]
async fn the_upgrade_names_the_replica() {
    let relay = TestRelay::start("replicas: 3\n").await;
    let (_first, one) = V1Worker::dial_with(relay.client, upgrade(relay.client, "")).await;
    let (_second, two) = V1Worker::dial_with(relay.client, upgrade(relay.client, "")).await;
    assert_eq!(one["x-modelrelay-replicas"], "3");
    assert_eq!(one["x-modelrelay-replica"], two["x-modelrelay-replica"]);
    let other = TestRelay::start("").await;
    let (_third, three) = V1Worker::dial_with(other.client, upgrade(other.client, "")).await;
    assert_ne!(one["x-modelrelay-replica"], three["x-modelrelay-replica"]);
    assert_eq!(three["x-modelrelay-replicas"], "1");
}

#[tokio::test]
async fn a_request_that_is_no_upgrade_is_told_so() {
    let relay = TestRelay::start("").await;
    let answer = relay.send(request("GET", "/v1/worker/connect", &[], "")).await;
    assert_eq!(answer.error().await, (400, "invalid_request".into()));
}

#[tokio::test]
async fn models_are_sanitised_and_blank_names_are_warned_about() {
    let relay = TestRelay::start("").await;
    let register = json!({
        "type": "register", "worker_name": " ", "models": [" a ", "", "a", "B"], "max_concurrent": 0,
        "protocol_version": "2026-04-bridge-v1", "later": { "field": 1 },
    });
    let worker = V1Worker::join_as(&relay, &register).await;
    assert_eq!(worker.ack["models"], json!(["a", "B"]));
    assert_eq!(worker.ack["protocol_version"], "2026-04-bridge-v1");
    assert_eq!(worker.ack["warnings"].as_array().unwrap().len(), 1);
    assert_eq!(worker.ack.get("extensions"), None);
    let workers = relay.admin("/admin/v1/workers").await;
    assert_eq!(workers[0]["slots"], 1, "no slots means one");
    let empty = json!({ "type": "register", "worker_name": "w", "models": [" "], "max_concurrent": 1 });
    let worker = V1Worker::join_as(&relay, &empty).await;
    assert_eq!(worker.ack["models"], json!([]));
    assert_eq!(worker.ack["warnings"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_worker_of_any_model_gets_any_request_and_is_not_listed() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["*"], 1).await;
    let asked = relay.ask(CHAT, chat("whatever", false));
    let request = worker.request().await;
    assert_eq!(request["model"], "whatever");
    worker.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
    assert_eq!(relay.send(request_models()).await.json().await["data"], json!([]));
}

#[tokio::test]
async fn bodies_that_v1_cannot_carry_are_refused_where_only_v1_serves() {
    let relay = TestRelay::start("").await;
    let _worker = V1Worker::join(&relay, &["m"], 1).await;
    let form = |file: &[u8]| {
        let head = b"--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b\r\n\
                     content-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
        [head, file, b"\r\n--b--\r\n"].concat()
    };
    let send = |body: Vec<u8>| {
        let kind = ("content-type", "multipart/form-data; boundary=b");
        relay.send(request("POST", "/v1/audio/transcriptions", &[kind], body))
    };
    assert_eq!(send(form(b"RIFF\xff\xfe")).await.error().await, (415, "unsupported_body".into()));
    let large = "x".repeat(17 << 20);
    assert_eq!(send(form(large.as_bytes())).await.error().await, (413, "request_too_large".into()));
    let large = json!({ "model": "m", "x": large }).to_string();
    assert_eq!(relay.post(CHAT, large).await.error().await, (413, "request_too_large".into()));
    // Escaping makes the frame twice as large as the body.
    let quotes = json!({ "model": "m", "x": "\\".repeat(5 << 20) }).to_string();
    assert_eq!(relay.post(CHAT, quotes).await.error().await, (413, "request_too_large".into()));
    relay.settled().await;
}

#[tokio::test]
async fn a_body_just_below_the_frame_limit_arrives_unchanged() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let body = json!({ "model": "m", "x": "y".repeat(15 << 20) }).to_string();
    let asked = relay.ask(CHAT, body.clone());
    let request = worker.request().await;
    assert!(request["body"].as_str().unwrap() == body);
    worker.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
    relay.settled().await;
}

#[tokio::test]
async fn an_answer_that_outgrows_its_buffer_is_broken_off_and_cancelled() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 2).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let request = worker.request().await;
    let chunk = format!("data: {}\n\n", "x".repeat(256 << 10));
    worker.chunk(&request, &chunk).await;
    let answer = asked.answer().await;
    // The client reads nothing from here on; its socket takes a few megabytes, the relay sixteen.
    let neighbour = relay.ask(CHAT, chat("m", true));
    let other = worker.request().await;
    let stuffed = async {
        for _ in 0..400 {
            worker.chunk(&request, &chunk).await;
        }
        worker.cancelled(&request).await
    };
    let reason = soon("a cancel", stuffed).await;
    assert_eq!(reason, json!({ "other": "broken off" }));
    let got = answer.broken_body().await;
    assert!(got.len() > 15 << 20 && got.len() < 64 << 20, "{} bytes came through", got.len());
    let end = String::from_utf8_lossy(&got[got.len() - 400..]).into_owned();
    assert!(end.contains("client_too_slow"), "{end}");
    // The session and its other streams are none the worse for it.
    worker.chunk(&other, "data: fine\n\n").await;
    worker.complete(&other, 200, "").await;
    assert_eq!(neighbour.answer().await.text().await, "data: fine\n\n");
    relay.settled().await;
    let sample =
        r#"modelrelay_requests_total{api="openai",code="client_too_slow",model="m",outcome="failed"}"#;
    assert_eq!(relay.metric(sample).await, 1.0);
}

#[tokio::test]
async fn a_worker_that_leaves_takes_its_requests_and_models_along() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    worker.socket.close(None).await.unwrap();
    eventually("the session is over", || relay.relay.dispatcher.sessions().is_empty().then_some(())).await;
    assert_eq!(relay.send(request_models()).await.json().await["data"], json!([]));
}
