//! Requests under our extensions: frames, windows, bodies, failures.

use dev_backend::{Backend, Config, Script};
use modelrelay_protocol::codec::{
    FailureCode, MAX_PAYLOAD_BYTES, RequestMeta, StreamId, WorkerFrame, encode_cancel, encode_request,
    encode_request_data, encode_window,
};
use modelrelay_protocol::frame::CancelReason;
use modelrelay_protocol::window::{DEFAULT_WINDOW_BYTES, FRAME_COST, MIN_WINDOW_BYTES, cost};
use serde_json::{Value, json};

use crate::support::{LIMIT, RawBackend, Relay, Session, config, connected, worker};

#[tokio::test]
async fn registration_shows_the_extensions_and_the_slots_are_lent() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let worker = worker(config(&relay.url(), &backend.url())).await;
    let mut session = relay.accept().await;
    let register = session.acknowledge(MIN_WINDOW_BYTES).await;
    assert_eq!(register["extensions"], json!(["streams.v1", "slots.v1", "goaway.v1", "load.v1", "pleas.v1"]));
    assert_eq!(register["request_window_bytes"], DEFAULT_WINDOW_BYTES);
    assert_eq!(register["instance"].as_str().map(str::len), Some(32));
    assert!(register["software"].as_str().unwrap().starts_with("modelrelay-worker/"));
    assert_eq!(session.text("grant").await["n"], 4);
    session.models(&["m"]).await;
    assert_eq!(session.text("load").await["healthy"], true);
    worker.kill().await;
}

#[tokio::test]
async fn a_small_answer_is_one_frame_with_head_usage_and_the_slot() {
    let body = r#"{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#;
    let answer = format!(
        "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\
         connection: keep-alive\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let backend = RawBackend::start(answer).await;
    let relay = Relay::start().await;
    let worker = worker(config(&relay.url(), &backend.url)).await;
    let mut session = relay.accept_streams(MIN_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    for stream in 0..3 {
        session.request(stream, &json!({ "model": "m" })).await;
        let answer = session.response(stream).await;
        assert_eq!((answer.frames, answer.status, answer.regrant), (1, 201, true));
        assert_eq!(answer.usage, Some((Some(3), Some(4))));
        assert_eq!(answer.body, body.as_bytes());
        assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
        assert!(!answer.headers.contains_key("connection"));
    }
    worker.kill().await;
}

#[tokio::test]
async fn a_head_without_a_body_yet_goes_ahead() {
    let (_backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let body = json!({ "model": "m", "stream": true, "stub": { "chunks": 3, "first_byte_delay_ms": 200 } });
    session.request(1, &body).await;
    let WorkerFrame::Response(_, first) = session.frame().await else { panic!("another kind") };
    assert_eq!(first.head.unwrap().status, 200);
    assert!(first.body.is_empty() && !first.end);
    let rest = session.response(1).await;
    assert!(rest.body.ends_with(b"data: [DONE]\n\n"));
    assert_eq!(rest.usage, Some((Some(5), Some(3))));
    worker.kill().await;
}

#[tokio::test]
async fn bytes_pass_as_they_are_in_both_directions() {
    let (backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let headers = [
        ("x-stub-answer", "raw"),
        ("x-stub-bytes", "200000"),
        ("x-stub-fill", "random"),
        ("x-stub-content-encoding", "gzip"),
        ("x-stub-content-type", "audio/mpeg"),
        ("content-type", "multipart/form-data; boundary=b"),
        ("accept-encoding", "gzip, br"),
        ("connection", "close, x-hop"),
        ("x-hop", "1"),
        ("host", "elsewhere"),
    ];
    // A form need not be text but for its fields.
    let mut body = b"--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b\r\n\r\n".to_vec();
    body.extend((0..=255).cycle().take(5000));
    session.request_with(7, &headers, &body).await;
    let answer = session.response(7).await;
    assert_eq!(answer.body.len(), 200_000);
    let crc = crc32fast::hash(&answer.body).to_string();
    assert_eq!(answer.headers["x-stub-crc32"], crc.as_str());
    assert_eq!(answer.headers["content-encoding"], "gzip");
    assert_eq!(answer.usage, None);
    let seen = &backend.requests()[0];
    assert_eq!(
        (seen.target.as_str(), seen.length, seen.crc32),
        ("/v1/chat/completions", body.len() as u64, crc32fast::hash(&body))
    );
    assert_eq!(seen.header("accept-encoding").collect::<Vec<_>>(), ["gzip, br"]);
    assert_eq!(seen.header("host").collect::<Vec<_>>(), [backend.addr.to_string()]);
    assert_eq!(seen.header("x-hop").count() + seen.header("connection").count(), 0);
    worker.kill().await;
}

/// Reads frames of a stream until its window is used up: less is left than a frame of one byte costs.
async fn read_window(session: &mut Session, stream: u32, spent: &mut u32, allowed: u32) {
    while *spent + FRAME_COST < allowed {
        let WorkerFrame::Response(of, part) = session.frame().await else { panic!("another kind") };
        assert_eq!(of, StreamId(stream));
        assert!(part.body.len() <= MAX_PAYLOAD_BYTES);
        *spent += cost(part.body.len());
        assert!(*spent <= allowed, "spent {spent} of {allowed}");
    }
}

#[tokio::test]
async fn the_window_holds_to_the_byte_and_opens_as_it_is_told() {
    let window = MIN_WINDOW_BYTES + 1000;
    let (backend, _relay, mut session, worker) = connected(window).await;
    let headers = [("x-stub-answer", "raw"), ("x-stub-bytes", "50000000"), ("x-stub-id", "big")];
    session.request_with(3, &headers, br#"{"model":"m"}"#).await;
    let (mut spent, mut allowed) = (0, window);
    read_window(&mut session, 3, &mut spent, allowed).await;
    for opened in [1, 500, 70_000, 200_000] {
        allowed += opened;
        session.send_frame(encode_window(StreamId(3), opened)).await;
        read_window(&mut session, 3, &mut spent, allowed).await;
    }
    // Nobody else on the connection waits for this one, and it stays where it is: the next frames are another's.
    session.request(4, &json!({ "model": "m" })).await;
    assert_eq!(session.response(4).await.status, 200);
    assert_eq!(backend.stats().running, 1);
    worker.kill().await;
    backend.wait_closed("big", LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_large_request_body_comes_in_parts_under_its_window() {
    let (backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (first, mut rest) = body.split_at(10_000);
    let headers = [("content-type", "application/octet-stream"), ("x-stub-skip-body", "true")];
    session.begin_request(9, &headers, first, body.len() as u64, false).await;
    let mut window = DEFAULT_WINDOW_BYTES;
    while !rest.is_empty() {
        let length = rest.len().min(60_000);
        while window < cost(length) {
            match session.frame().await {
                WorkerFrame::Window { stream: StreamId(9), bytes } => window += bytes,
                other => panic!("expected a window, got {other:?}"),
            }
        }
        let (part, after) = rest.split_at(length);
        rest = after;
        window -= cost(length);
        session.send_frame(encode_request_data(StreamId(9), part, rest.is_empty())).await;
    }
    loop {
        match session.frame().await {
            WorkerFrame::Window { .. } => {}
            WorkerFrame::Response(_, part) if part.end => break,
            WorkerFrame::Response(..) => {}
            other => panic!("expected the answer, got {other:?}"),
        }
    }
    let seen = &backend.requests()[0];
    assert_eq!((seen.length, seen.crc32), (3_000_000, crc32fast::hash(&body)));
    assert_eq!(seen.header("content-length").collect::<Vec<_>>(), ["3000000"]);
    assert_eq!(seen.header("transfer-encoding").count(), 0);
    worker.kill().await;
}

#[tokio::test]
async fn a_relay_that_exceeds_the_request_window_loses_that_request_only() {
    let (backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    session.begin_request(1, &[], b"", 50_000_000, false).await;
    // Far faster than windows open.
    let part = vec![0; 60_000];
    for _ in 0..400 {
        session.send_frame(encode_request_data(StreamId(1), &part, false)).await;
    }
    loop {
        match session.frame().await {
            WorkerFrame::Window { .. } => {}
            WorkerFrame::Failed { stream, code, regrant, .. } => {
                assert_eq!((stream, code, regrant), (StreamId(1), FailureCode::Internal, true));
                break;
            }
            other => panic!("expected a failure, got {other:?}"),
        }
    }
    session.request(2, &json!({ "model": "m" })).await;
    assert_eq!(session.response(2).await.status, 200);
    drop(backend);
    worker.kill().await;
}

async fn failure(session: &mut Session, stream: u32) -> (FailureCode, usize, bool) {
    let mut parts = 0;
    loop {
        match session.frame().await {
            WorkerFrame::Failed { stream: of, code, regrant, message } => {
                assert_eq!(of, StreamId(stream));
                assert!(!message.is_empty());
                return (code, parts, regrant);
            }
            WorkerFrame::Response(_, part) => {
                assert!(!part.end, "a broken answer must not look whole");
                parts += 1;
            }
            other => panic!("expected a failure, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn each_way_to_fail_has_its_code_and_neighbours_stay_whole() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let mut config = config(&relay.url(), &backend.url());
    config.timeouts.idle_seconds = 1;
    let worker = worker(config).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    let table = [
        ("reset", "before_head", FailureCode::BackendReset, false),
        ("close", "before_head", FailureCode::BackendReset, false),
        ("garbage", "before_head", FailureCode::BackendGarbage, false),
        ("stall", "before_head", FailureCode::BackendTimeout, false),
        ("reset", "mid_body", FailureCode::BackendReset, true),
        ("close", "mid_body", FailureCode::BackendReset, true),
        ("garbage", "mid_body", FailureCode::BackendGarbage, true),
        ("stall", "mid_body", FailureCode::BackendTimeout, true),
    ];
    for (index, (fail, at, code, begun)) in table.into_iter().enumerate() {
        let stream = 10 + u32::try_from(index).unwrap();
        let stub = json!({ "fail": fail, "at": at, "after_chunks": 2 });
        session.request(stream, &json!({ "model": "m", "stream": true, "stub": stub })).await;
        let (got, parts, regrant) = failure(&mut session, stream).await;
        assert_eq!((got, parts > 0, regrant), (code, begun, true), "{fail} {at}");
        session.request(1, &json!({ "model": "m", "stream": true })).await;
        assert!(session.response(1).await.body.ends_with(b"[DONE]\n\n"));
    }
    worker.kill().await;
}

#[tokio::test]
async fn a_request_without_a_credit_or_a_model_is_refused() {
    let (backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    let hold = json!({ "model": "m", "stub": { "head_delay_ms": 60_000 } });
    for stream in 0..4 {
        session.request(stream, &hold).await;
    }
    session.request(4, &hold).await;
    assert_eq!(failure(&mut session, 4).await, (FailureCode::OverCapacity, 0, false));
    session.settle().await;
    backend.wait_running(4, LIMIT).await.unwrap();
    session.send_frame(encode_cancel(StreamId(0), &CancelReason::Timeout)).await;
    assert_eq!(session.frame().await, WorkerFrame::Cancelled { stream: StreamId(0), regrant: true });
    let meta = RequestMeta { body_bytes: 2, streaming: false, model: "gone", path: "/v1/embeddings" };
    let request = encode_request(StreamId(5), meta, std::iter::empty(), b"{}", true).unwrap();
    session.send_frame(request).await;
    assert_eq!(failure(&mut session, 5).await, (FailureCode::ModelNotFound, 0, true));
    worker.kill().await;
}

#[tokio::test]
async fn an_idle_connection_that_the_backend_closed_costs_no_request() {
    let (backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    session.request(1, &json!({ "model": "m" })).await;
    assert_eq!(session.response(1).await.status, 200);
    // A restart closes all of its connections.
    let addr = backend.addr;
    backend.shutdown().await;
    let again =
        Config { listen: addr, script: Script { chunks: 2, ..Script::default() }, ..Config::default() };
    let _backend = Backend::start(again).await.unwrap();
    session.request(2, &json!({ "model": "m", "stream": true })).await;
    assert_eq!(session.response(2).await.status, 200);
    worker.kill().await;
}

#[tokio::test]
async fn malformed_frames_close_the_session_with_1002() {
    for bad in [&b"\x09\x00\x00\x00\x00\x01"[..], b"", b"\x03\x00\x00\x00\x00\x01"] {
        let (_backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
        session.send_frame(bad.to_vec().into()).await;
        assert_eq!(u16::from(session.closed().await.code), 1002);
        worker.kill().await;
    }
}

#[tokio::test]
async fn unknown_messages_are_skipped() {
    let (_backend, _relay, mut session, worker) = connected(DEFAULT_WINDOW_BYTES).await;
    session.send(json!({ "type": "from_the_future", "x": [1] })).await;
    session.settle().await;
    session.request(1, &json!({ "model": "m" })).await;
    let answer = session.response(1).await;
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert!(body["choices"].is_array());
    worker.kill().await;
}
