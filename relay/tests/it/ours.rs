//! A worker of ours: binary frames, windows, slots lent as credits, cancels with an answer.

use std::time::Duration;

use futures_util::SinkExt;
use modelrelay_protocol::codec::{self, FailureCode, MAX_PAYLOAD_BYTES, RelayFrame};
use modelrelay_protocol::frame::TokenCounts;
use modelrelay_protocol::window::{FRAME_COST, SendWindow, cost};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::ours::{JSON, response};
use crate::support::{CHAT, FromRelay, OurWorker, TestRelay, V1Worker, chat, eventually, request, soon};

const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];

#[tokio::test]
async fn the_ack_names_what_is_in_force() {
    let relay = TestRelay::start("limits: { responseWindowBytes: 128Ki }\n").await;
    let mut register = OurWorker::register(&["m"], 3);
    register["extensions"] = json!(["warp.v9", "streams.v1", "slots.v1"]);
    let worker = OurWorker::join_as(&relay, &register).await;
    assert_eq!(worker.ack["extensions"], json!(["streams.v1", "slots.v1"]));
    assert_eq!(worker.ack["max_concurrent"], 3);
    assert_eq!(worker.ack["response_window_bytes"], 128 << 10);
    // Without binary frames nothing else counts: that is a plain v1 worker.
    register["extensions"] = json!(["slots.v1", "load.v1"]);
    let worker = V1Worker::join_as(&relay, &register).await;
    assert_eq!(worker.ack.get("extensions"), None);
    assert_eq!(worker.ack.get("max_concurrent"), None);
}

#[tokio::test]
async fn the_request_arrives_as_the_client_sent_it() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let body = chat("m", true);
    let headers = [("content-type", "application/json"), ("x-twice", "1"), ("x-twice", "2")];
    let asked = relay.ask_with(request("POST", "/v1/messages?beta=true", &headers, body.clone()));
    let (stream, head, first) = worker.request().await;
    assert_eq!((head.body_bytes, first.as_ref()), (body.len() as u64, body.as_bytes()));
    assert_eq!((head.model.as_str(), head.path.as_str()), ("m", "/v1/messages?beta=true"));
    assert!(head.streaming);
    let sent: Vec<_> = head
        .headers
        .iter()
        .filter(|(name, _)| name != "x-request-id")
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect();
    let expected: Vec<_> =
        headers.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
    assert_eq!(sent, expected);
    worker.answer(stream, 200, JSON, b"").await;
    assert_eq!(asked.answer().await.status(), 200);
}

#[tokio::test]
async fn bytes_of_any_kind_and_headers_of_many_values_survive() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let every: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let form = [
        b"--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b\r\n\
          content-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n"
            .as_slice(),
        &every,
        b"\r\n--b--\r\n",
    ]
    .concat();
    let kind = ("content-type", "multipart/form-data; boundary=b");
    let asked = relay.ask_with(request("POST", "/v1/audio/transcriptions", &[kind], form.clone()));
    let (stream, head, first) = worker.request().await;
    assert_eq!(head.body_bytes, form.len() as u64);
    let mut got = first.to_vec();
    while got.len() < form.len() {
        let RelayFrame::RequestData { body, .. } = worker.next_frame().await else { panic!("not the body") };
        got.extend_from_slice(&body);
    }
    assert!(got == form);
    let cookies = [
        ("content-type", "audio/mpeg"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("content-length", "12345"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("transfer-encoding", "chunked"),
    ];
    worker.begin(stream, 206, &cookies, &every[..50_000]).await;
    worker.data(stream, &every[50_000..]).await;
    worker.end(stream).await;
    let answer = asked.answer().await;
    assert_eq!(answer.status(), 206);
    assert_eq!(answer.head.headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert_eq!((answer.header("content-type"), answer.header("x-hop")), (Some("audio/mpeg"), None));
    assert!(answer.body().await.unwrap() == every);
    relay.settled().await;
}

#[tokio::test]
async fn a_head_alone_is_no_first_byte() {
    let relay = TestRelay::start("").await;
    let mut first = OurWorker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let (stream, ..) = first.request().await;
    first.begin(stream, 200, EVENTS, b"").await;
    let requests = relay.admin("/admin/v1/requests").await;
    assert_eq!(requests[0]["state"], "dispatched");
    // Engines send their head before prefill: what follows may still come from somebody else.
    let mut second = OurWorker::join(&relay, &["m"], 1).await;
    first.fail(stream, FailureCode::BackendReset).await;
    let (stream, ..) = second.request().await;
    second.begin(stream, 201, JSON, b"").await;
    second.data(stream, b"{}").await;
    second.end(stream).await;
    let answer = asked.answer().await;
    assert_eq!((answer.status(), answer.header("content-type")), (201, Some("application/json")));
    assert_eq!(answer.text().await, "{}");
    relay.settled().await;
}

#[tokio::test]
async fn an_empty_answer_is_an_answer() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    for in_one_frame in [true, false] {
        let asked = relay.ask(CHAT, chat("m", true));
        let (stream, ..) = worker.request().await;
        if in_one_frame {
            worker.answer(stream, 204, &[("x-empty", "1")], b"").await;
        } else {
            worker.begin(stream, 204, &[("x-empty", "1")], b"").await;
            worker.end(stream).await;
        }
        let answer = asked.answer().await;
        assert_eq!((answer.status(), answer.header("x-empty")), (204, Some("1")));
        assert!(answer.body().await.unwrap().is_empty());
    }
    relay.settled().await;
}

#[tokio::test]
async fn a_backend_503_moves_while_another_worker_is_left_and_the_first_is_stopped() {
    let relay = TestRelay::start("").await;
    let mut first = OurWorker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = first.request().await;
    let mut second = OurWorker::join(&relay, &["m"], 1).await;
    first.begin(stream, 503, JSON, b"busy, and more").await;
    first.cancelled(stream).await;
    first.data(stream, b" to come").await;
    first.frame(codec::encode_cancelled(stream, true)).await;
    let (moved, ..) = second.request().await;
    second.answer(moved, 503, &[("retry-after", "9")], b"busy too").await;
    let answer = asked.answer().await;
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("9")));
    assert_eq!(answer.text().await, "busy too");
    relay.settled().await;
    assert_eq!(first.lent(&relay), 1);
}

#[tokio::test]
async fn the_window_opens_as_the_client_reads() {
    let relay = TestRelay::start("limits: { responseWindowBytes: 128Ki }\n").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let (stream, ..) = worker.request().await;
    let total = 4 << 20;
    let send = async {
        let mut window = SendWindow::new(128 << 10);
        let (mut sent, mut opened) = (0, 0_u64);
        worker.begin(stream, 200, EVENTS, b"").await;
        while sent < total {
            let budget = window.budget().min(total - sent);
            if budget == 0 {
                match worker.next_frame().await {
                    RelayFrame::Window { stream: s, bytes } if s == stream => {
                        opened += u64::from(bytes);
                        window.open(bytes);
                    }
                    other => panic!("not a window: {other:?}"),
                }
                continue;
            }
            window.spend(budget);
            worker.data(stream, &vec![b'x'; budget]).await;
            sent += budget;
        }
        worker.end(stream).await;
        opened
    };
    let read = async { asked.answer().await.body().await.unwrap().len() };
    let (opened, got) = tokio::join!(send, read);
    assert_eq!(got, total);
    assert!(opened > total as u64 - (256 << 10));
    relay.settled().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_costs_its_window_and_no_neighbour_anything() {
    let relay = TestRelay::start("limits: { responseWindowBytes: 128Ki }\n").await;
    let mut worker = OurWorker::join(&relay, &["m"], 2).await;
    let stuck = relay.ask(CHAT, chat("m", true));
    let (stream, ..) = worker.request().await;
    worker.begin(stream, 200, EVENTS, b"").await;
    let mut window = SendWindow::new(128 << 10);
    // Until the sockets are full the relay reads on; then no window opens any more.
    let mut passed = 0_usize;
    loop {
        let budget = window.budget();
        if budget > 0 {
            window.spend(budget);
            worker.data(stream, &vec![b'x'; budget]).await;
            passed += budget;
            assert!(passed < 64 << 20, "the relay goes on taking what nobody reads");
            continue;
        }
        match tokio::time::timeout(Duration::from_millis(300), worker.receive()).await {
            Ok(FromRelay::Frame(RelayFrame::Window { bytes, .. })) => window.open(bytes),
            Ok(other) => panic!("not a window: {other:?}"),
            Err(_) => break,
        }
    }
    let neighbour = relay.ask(CHAT, chat("m", false));
    let (other, ..) = worker.request().await;
    worker.answer(other, 200, JSON, b"quick").await;
    assert_eq!(neighbour.answer().await.text().await, "quick");
    // Reading again opens it again.
    let mut answer = stuck.answer().await;
    let mut got = 0;
    while got < passed {
        got += answer.chunk().await.unwrap().unwrap().len();
    }
    let frame = worker.next_frame().await;
    assert!(matches!(frame, RelayFrame::Window { stream: s, .. } if s == stream), "{frame:?}");
    worker.end(stream).await;
    assert!(answer.chunk().await.is_none());
    relay.settled().await;
}

#[tokio::test]
async fn a_worker_beyond_its_window_loses_that_stream_only() {
    let relay = TestRelay::start("limits: { responseWindowBytes: 128Ki }\n").await;
    for with_end in [false, true] {
        let mut worker = OurWorker::join(&relay, &["m"], 2).await;
        let asked = relay.ask(CHAT, chat("m", true));
        let (stream, ..) = worker.request().await;
        let neighbour = relay.ask(CHAT, chat("m", false));
        let (other, ..) = worker.request().await;
        // In one piece, so that no reader can open the window in between.
        let block = vec![b'x'; MAX_PAYLOAD_BYTES];
        worker
            .socket
            .feed(Message::Binary(response(stream, Some((200, EVENTS)), b"x", false, None)))
            .await
            .unwrap();
        worker.socket.feed(Message::Binary(codec::encode_response_data(stream, &block))).await.unwrap();
        if with_end {
            worker.socket.feed(Message::Binary(response(stream, None, &block, true, None))).await.unwrap();
        } else {
            worker.socket.feed(Message::Binary(codec::encode_response_data(stream, &block))).await.unwrap();
        }
        worker.socket.flush().await.unwrap();
        let body = asked.answer().await.broken_body().await;
        assert!(String::from_utf8_lossy(&body).contains("backend_error"));
        if !with_end {
            loop {
                match worker.next_frame().await {
                    RelayFrame::Cancel { stream: s, .. } if s == stream => break,
                    RelayFrame::Window { .. } => {}
                    other => panic!("not a cancel: {other:?}"),
                }
            }
            worker.frame(codec::encode_cancelled(stream, true)).await;
        }
        worker.answer(other, 200, JSON, b"fine").await;
        assert_eq!(neighbour.answer().await.text().await, "fine");
        relay.settled().await;
        assert_eq!(worker.lent(&relay), 2);
        drop(worker);
        relay.workers(0).await;
    }
}

#[tokio::test]
async fn small_frames_are_charged_for_what_they_cost() {
    let relay = TestRelay::start("limits: { responseWindowBytes: 128Ki }\n").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let (stream, ..) = worker.request().await;
    worker
        .socket
        .feed(Message::Binary(response(stream, Some((200, EVENTS)), b"", false, None)))
        .await
        .unwrap();
    for _ in 0..=(128 << 10) / cost(1) {
        worker.socket.feed(Message::Binary(codec::encode_response_data(stream, b"x"))).await.unwrap();
    }
    worker.socket.flush().await.unwrap();
    // Read or not: whichever reader was quicker, one byte too many or none.
    let mut answer = asked.answer().await;
    let mut got = 0;
    let broken = loop {
        match tokio::time::timeout(Duration::from_millis(300), answer.chunk()).await {
            Ok(Some(Ok(bytes))) => got += bytes.len(),
            Ok(Some(Err(_))) => break true,
            Ok(None) => panic!("a clean end"),
            Err(_) => break false,
        }
    };
    let most = ((128 << 10) / (1 + FRAME_COST) + 1) as usize;
    assert!(broken || got == most, "{got} bytes of {most}");
}

#[tokio::test]
async fn a_large_body_comes_in_parts_as_the_worker_opens_its_window() {
    let relay = TestRelay::start("").await;
    let mut register = OurWorker::register(&["m"], 2);
    register["request_window_bytes"] = json!(96 << 10);
    let mut worker = OurWorker::join_as(&relay, &register).await;
    worker.grant(&relay, 2).await;
    let body = json!({ "model": "m", "x": "0123456789".repeat(100_000) }).to_string();
    let asked = relay.ask(CHAT, body.clone());
    let (stream, head, first) = worker.request().await;
    assert_eq!(head.body_bytes, body.len() as u64);
    assert!(first.len() <= MAX_PAYLOAD_BYTES);
    let mut got = first.to_vec();
    let mut window = 96_u32 << 10;
    let mut small = None;
    while got.len() < body.len() {
        // The relay sends until not one more byte is left of the window.
        if window > FRAME_COST {
            let RelayFrame::RequestData { stream: s, body: part, end } = worker.next_frame().await else {
                panic!("not part of the body")
            };
            assert_eq!(s, stream);
            assert!(!part.is_empty() && part.len() <= MAX_PAYLOAD_BYTES);
            window = window.checked_sub(cost(part.len())).expect("within the worker's window");
            got.extend_from_slice(&part);
            assert_eq!(end, got.len() == body.len());
            continue;
        }
        if small.is_none() {
            // Another request passes the large one by while that waits for its window.
            let asked = relay.ask(CHAT, chat("m", false));
            let (other, ..) = worker.request().await;
            worker.answer(other, 200, JSON, b"small").await;
            small = Some(asked.answer().await.text().await);
        }
        worker.frame(codec::encode_window(stream, 96 << 10)).await;
        window += 96 << 10;
    }
    assert_eq!(small.as_deref(), Some("small"));
    assert!(got == body.as_bytes());
    worker.answer(stream, 200, JSON, b"large").await;
    assert_eq!(asked.answer().await.text().await, "large");
    relay.settled().await;
}

#[tokio::test]
async fn an_answer_or_a_cancel_ends_the_upload() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let body = json!({ "model": "m", "x": "y".repeat(2 << 20) }).to_string();
    let asked = relay.ask(CHAT, body.clone());
    let (stream, ..) = worker.request().await;
    worker.answer(stream, 400, JSON, b"no").await;
    assert_eq!(asked.answer().await.status(), 400);
    let asked = relay.ask(CHAT, body);
    let stream = loop {
        // What was on its way for the first is still to be read.
        match worker.next_frame().await {
            RelayFrame::Request { stream, .. } => break stream,
            RelayFrame::RequestData { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    drop(asked);
    loop {
        match worker.next_frame().await {
            RelayFrame::Cancel { stream: s, .. } if s == stream => break,
            RelayFrame::RequestData { stream: s, .. } if s == stream => {}
            other => panic!("{other:?}"),
        }
    }
    worker.frame(codec::encode_window(stream, 1 << 20)).await;
    worker.frame(codec::encode_cancelled(stream, true)).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = worker.request().await;
    worker.answer(stream, 200, JSON, b"").await;
    assert_eq!(asked.answer().await.status(), 200);
    relay.settled().await;
}

#[tokio::test]
async fn a_cancel_is_acknowledged_and_timed() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    // Answered by its own frame.
    let asked = relay.ask(CHAT, chat("m", true));
    let (stream, ..) = worker.request().await;
    worker.begin(stream, 200, EVENTS, b"data: 1\n\n").await;
    let mut answer = asked.answer().await;
    answer.at_least(9).await;
    drop(answer);
    worker.cancelled(stream).await;
    worker.data(stream, b"data: too late\n\n").await;
    assert_eq!(worker.lent(&relay), 0, "the slot is the worker's until it says so");
    worker.frame(codec::encode_cancelled(stream, true)).await;
    relay.settled().await;
    // Crossed by the end of the answer, and by a failure.
    for ends_well in [true, false] {
        let asked = relay.ask(CHAT, chat("m", true));
        let (stream, ..) = worker.request().await;
        drop(asked);
        worker.cancelled(stream).await;
        if ends_well {
            worker.answer(stream, 200, EVENTS, b"data: all\n\n").await;
        } else {
            worker.fail(stream, FailureCode::BackendReset).await;
        }
        relay.settled().await;
    }
    assert_eq!(worker.lent(&relay), 1);
    assert_eq!(relay.metric("modelrelay_cancel_ack_seconds_count").await, 3.0);
    assert_eq!(relay.metric("modelrelay_late_frames_total").await, 0.0);
    // A second answer to the same cancel is late, and lends nothing.
    worker.frame(codec::encode_cancelled(stream, true)).await;
    eventually("the late frame is counted", || (relay.relay.metrics.late_frames.get() == 1).then_some(()))
        .await;
    assert_eq!(worker.lent(&relay), 1);
}

#[tokio::test]
async fn a_failure_after_the_first_byte_breaks_the_stream() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let _spare = OurWorker::join(&relay, &["m"], 0).await;
    for (code, name) in [
        (FailureCode::BackendReset, "backend_error"),
        (FailureCode::BackendTimeout, "backend_timeout"),
        (FailureCode::Internal, "internal_error"),
    ] {
        let asked = relay.ask(CHAT, chat("m", true));
        let (stream, ..) = worker.request().await;
        worker.begin(stream, 200, EVENTS, b"data: 1\n\n").await;
        let mut answer = asked.answer().await;
        answer.at_least(9).await;
        worker.fail(stream, code).await;
        let rest = String::from_utf8(answer.broken_body().await).unwrap();
        assert!(rest.contains(&format!(r#""code":"{name}""#)), "{rest}");
        assert!(!rest.contains("because"), "a worker's own words may name hosts behind it");
    }
    relay.settled().await;
    let sample = r#"modelrelay_worker_failures_total{reason="backend_reset"}"#;
    assert_eq!(relay.metric(sample).await, 1.0);
}

#[tokio::test]
async fn usage_of_the_engine_is_counted_and_only_that() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let usage = TokenCounts { prompt_tokens: Some(7), completion_tokens: Some(5), total_tokens: Some(12) };
    for told in [Some(usage), None] {
        let asked = relay.ask(CHAT, chat("m", false));
        let (stream, ..) = worker.request().await;
        worker.frame(response(stream, Some((200, JSON)), b"{}", true, told)).await;
        assert_eq!(asked.answer().await.text().await, "{}");
    }
    let asked = relay.ask(CHAT, chat("m", true));
    let (stream, ..) = worker.request().await;
    worker.begin(stream, 200, EVENTS, b"data: 1\n\n").await;
    worker.frame(response(stream, None, b"", true, Some(usage))).await;
    assert_eq!(asked.answer().await.text().await, "data: 1\n\n");
    relay.settled().await;
    let sample = r#"modelrelay_tenant_tokens_total{model="m",tenant="anonymous"}"#;
    assert_eq!(relay.metric(sample).await, 24.0);
    let sample = r#"gen_ai_client_token_usage_sum{gen_ai_request_model="m",gen_ai_token_type="input"}"#;
    assert_eq!(relay.metric(sample).await, 14.0);
}

#[tokio::test]
async fn a_newer_session_of_the_same_process_replaces_the_older() {
    let relay = TestRelay::start("").await;
    let mut register = OurWorker::register(&["m"], 1);
    register["instance"] = json!("random-1");
    let mut ghost = OurWorker::join_as(&relay, &register).await;
    ghost.grant(&relay, 1).await;
    let asked = relay.ask(CHAT, chat("m", false));
    ghost.request().await;
    let mut fresh = OurWorker::join_as(&relay, &register).await;
    relay.workers(1).await;
    fresh.grant(&relay, 1).await;
    let (stream, ..) = fresh.request().await;
    fresh.answer(stream, 200, JSON, b"fresh").await;
    assert_eq!(asked.answer().await.text().await, "fresh");
    assert_eq!(u16::from(ghost.closed().await.unwrap().code), 1000);
    // Another process beside it is another worker.
    register["instance"] = json!("random-2");
    let _other = OurWorker::join_as(&relay, &register).await;
    relay.workers(2).await;
    relay.settled().await;
}

#[tokio::test]
async fn frames_that_break_the_protocol_close_the_session() {
    let relay = TestRelay::start("").await;
    let bad: [Vec<u8>; 5] =
        [vec![], vec![5, 0, 0], vec![99, 0, 0, 0, 0, 0], vec![7, 0, 0, 0, 0, 0, 1], vec![5; 300_000]];
    for bytes in bad {
        let mut worker = OurWorker::join(&relay, &["m"], 1).await;
        worker.frame(bytes.clone().into()).await;
        let close = worker.closed().await.unwrap();
        assert_eq!(u16::from(close.code), 1002, "{:?}", &bytes[..bytes.len().min(8)]);
    }
    // A message that this version does not know is skipped: a newer worker may send it.
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    worker.send(json!({ "type": "warp", "x": 1 })).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = worker.request().await;
    worker.answer(stream, 200, JSON, b"").await;
    assert_eq!(asked.answer().await.status(), 200);
    assert_eq!(relay.metric("modelrelay_unknown_messages_total").await, 1.0);
    relay.settled().await;
}

#[tokio::test]
async fn a_body_without_a_head_costs_502() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    for end in [true, false] {
        let asked = relay.ask(CHAT, chat("m", false));
        let (stream, ..) = worker.request().await;
        worker.frame(response(stream, None, b"headless", end, None)).await;
        assert_eq!(asked.answer().await.error().await, (502, "backend_error".into()));
        if !end {
            worker.cancelled(stream).await;
            worker.frame(codec::encode_cancelled(stream, true)).await;
        }
        relay.settled().await;
    }
    assert_eq!(worker.lent(&relay), 1);
}

#[tokio::test]
async fn a_draining_worker_gets_nothing_new_and_finishes() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 2).await;
    let running = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = worker.request().await;
    worker.send(json!({ "type": "draining", "deadline_ms": 60_000 })).await;
    eventually("it drains", || {
        relay.relay.dispatcher.sessions().iter().any(|session| session.live().draining).then_some(())
    })
    .await;
    let waiting = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    worker.answer(stream, 200, JSON, b"finished").await;
    assert_eq!(running.answer().await.text().await, "finished");
    assert_eq!(relay.admin("/admin/v1/workers").await[0]["state"], "draining");
    let mut other = OurWorker::join(&relay, &["m"], 1).await;
    let (stream, ..) = other.request().await;
    other.answer(stream, 200, JSON, b"elsewhere").await;
    assert_eq!(waiting.answer().await.text().await, "elsewhere");
    relay.settled().await;
}

#[tokio::test]
async fn a_load_report_is_shown_and_a_reason_with_it() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &[], 1).await;
    worker.send(json!({ "type": "load", "running": 3, "healthy": false, "reason": "backend down" })).await;
    soon("the report", async {
        while relay.admin("/admin/v1/workers").await[0]["reason"] != "backend down" {}
    })
    .await;
    let row = &relay.admin("/admin/v1/workers").await[0];
    assert_eq!((&row["state"], &row["protocol"]), (&json!("not_ready"), &json!("extended")));
    assert_eq!(row["engine"]["running"], 3);
}
