//! What happens to a request whose worker goes or cannot answer.

use serde_json::json;

use crate::support::{CHAT, MESSAGES, OurWorker, TestRelay, V1Worker, chat};
use modelrelay_protocol::codec::FailureCode;

#[tokio::test]
async fn a_worker_lost_before_the_first_byte_is_replaced_by_another() {
    let relay = TestRelay::start("").await;
    for stream in [false, true] {
        let mut first = V1Worker::join_named(&relay, "first", &["m"], 1).await;
        let asked = relay.ask(CHAT, chat("m", stream));
        first.request().await;
        let mut second = V1Worker::join_named(&relay, "second", &["m"], 1).await;
        drop(first);
        let request = second.request().await;
        assert_eq!(request["body"], chat("m", stream));
        second.complete(&request, 200, "good").await;
        let answer = asked.answer().await;
        assert_eq!(answer.header("x-modelrelay-worker"), Some("second"));
        assert_eq!(answer.text().await, "good");
        drop(second);
        relay.workers(0).await;
    }
    relay.settled().await;
    assert_eq!(relay.metric(r#"modelrelay_requeues_total{model="m",reason="worker_lost"}"#).await, 2.0);
}

#[tokio::test]
async fn a_request_moves_at_most_three_times() {
    let relay = TestRelay::start("").await;
    let asked = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    for attempt in 1..=4 {
        let mut worker = V1Worker::join(&relay, &["m"], 1).await;
        worker.request().await;
        assert!(!asked.is_answered(), "attempt {attempt}");
    }
    assert_eq!(asked.answer().await.error().await, (502, "worker_lost".into()));
    relay.settled().await;
}

#[tokio::test]
async fn a_moved_request_keeps_its_place_in_the_order_of_arrival() {
    let relay = TestRelay::start("").await;
    let mut first = V1Worker::join_named(&relay, "first", &["m"], 1).await;
    let oldest = relay.ask(CHAT, r#"{"model":"m","n":1}"#);
    first.request().await;
    let newer = relay.ask(CHAT, r#"{"model":"m","n":2}"#);
    relay.queued(1).await;
    drop(first);
    relay.queued(2).await;
    let mut second = V1Worker::join_named(&relay, "second", &["m"], 1).await;
    let request = second.request().await;
    assert_eq!(request["body"], r#"{"model":"m","n":1}"#);
    second.complete(&request, 200, "").await;
    let request = second.request().await;
    second.complete(&request, 200, "").await;
    assert_eq!((oldest.answer().await.status(), newer.answer().await.status()), (200, 200));
    relay.settled().await;
}

#[tokio::test]
async fn a_stream_whose_worker_is_lost_ends_in_an_error_event_and_a_broken_transfer() {
    let relay = TestRelay::start("").await;
    for path in [CHAT, MESSAGES] {
        let mut worker = V1Worker::join(&relay, &["m"], 1).await;
        let mut spare = V1Worker::join_named(&relay, "spare", &["other"], 1).await;
        spare.send(json!({ "type": "models_update", "models": ["m"], "current_load": 1 })).await;
        let asked = relay.ask(path, chat("m", true));
        let request = worker.request().await;
        worker.chunk(&request, "data: 1\n\n").await;
        let mut answer = asked.answer().await;
        assert_eq!(answer.at_least(9).await, b"data: 1\n\n");
        let id = answer.header("x-request-id").unwrap().to_owned();
        drop(worker);
        let rest = String::from_utf8(answer.broken_body().await).unwrap();
        let data = if path == CHAT {
            rest.strip_prefix("data: ").unwrap()
        } else {
            rest.strip_prefix("event: error\ndata: ").unwrap()
        };
        let event: serde_json::Value = serde_json::from_str(data.strip_suffix("\n\n").unwrap()).unwrap();
        if path == CHAT {
            assert_eq!(event["error"]["code"], "worker_lost");
        } else {
            assert_eq!((&event["type"], &event["error"]["type"]), (&json!("error"), &json!("api_error")));
            assert_eq!(event["request_id"], id);
        }
        drop(spare);
        relay.workers(0).await;
    }
    relay.settled().await;
}

#[tokio::test]
async fn a_backend_that_answers_503_is_passed_over_while_another_is_left() {
    let relay = TestRelay::start("").await;
    let mut first = V1Worker::join_named(&relay, "first", &["m"], 1).await;
    let mut second = V1Worker::join_named(&relay, "second", &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let request = first.request().await;
    first.complete(&request, 503, "busy").await;
    let request = second.request().await;
    second.complete(&request, 200, "good").await;
    let answer = asked.answer().await;
    assert_eq!(answer.header("x-modelrelay-worker"), Some("second"));
    assert_eq!(answer.text().await, "good");
    // With nobody else left the backend's own words pass, not ours.
    let asked = relay.ask(CHAT, chat("m", false));
    let request = first.request().await;
    first.complete(&request, 503, "busy one").await;
    let request = second.request().await;
    second.complete(&request, 503, "busy two").await;
    let answer = asked.answer().await;
    assert_eq!((answer.status(), answer.text().await.as_str()), (503, "busy two"));
    relay.settled().await;
    assert_eq!(
        relay.metric(r#"modelrelay_requeues_total{model="m",reason="backend_unavailable"}"#).await,
        2.0
    );
}

#[tokio::test]
async fn a_refused_request_waits_for_a_busy_worker_that_has_not_had_it() {
    let relay = TestRelay::start("").await;
    let mut busy = V1Worker::join_named(&relay, "busy", &["m"], 1).await;
    let running = relay.ask(CHAT, chat("m", false));
    let taken = busy.request().await;
    let mut refusing = OurWorker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = refusing.request().await;
    refusing.fail(stream, FailureCode::BackendRefused).await;
    relay.queued(1).await;
    busy.complete(&taken, 200, "").await;
    let request = busy.request().await;
    busy.complete(&request, 200, "good").await;
    assert_eq!(asked.answer().await.text().await, "good");
    assert_eq!(running.answer().await.status(), 200);
    relay.settled().await;
}

#[tokio::test]
async fn what_a_worker_says_of_a_failure_decides_whether_the_request_moves() {
    let relay = TestRelay::start("").await;
    let moves = [
        (FailureCode::BackendRefused, "backend_refused"),
        (FailureCode::BackendReset, "backend_reset"),
        (FailureCode::ModelNotFound, "model_gone"),
        (FailureCode::OverCapacity, "over_capacity"),
        (FailureCode::Draining, "worker_draining"),
    ];
    for (code, label) in moves {
        let mut first = OurWorker::join(&relay, &["m"], 1).await;
        let asked = relay.ask(CHAT, chat("m", false));
        let (stream, ..) = first.request().await;
        let mut second = V1Worker::join_named(&relay, "second", &["m"], 1).await;
        first.fail(stream, code).await;
        let request = second.request().await;
        second.complete(&request, 200, label).await;
        assert_eq!(asked.answer().await.text().await, label);
        let sample = format!(r#"modelrelay_requeues_total{{model="m",reason="{label}"}}"#);
        assert_eq!(relay.metric(&sample).await, 1.0);
        // Nobody else: the table's row, at once.
        drop(second);
        relay.workers(1).await;
        let asked = relay.ask(CHAT, chat("m", false));
        let (stream, ..) = first.request().await;
        first.fail(stream, code).await;
        assert_eq!(asked.answer().await.error().await, (502, "backend_error".into()), "{label}");
        assert_eq!(relay.metric(&sample).await, 1.0, "the last one did not move");
        drop(first);
        relay.workers(0).await;
    }
    let stays = [
        (FailureCode::BackendTimeout, 504, "backend_timeout"),
        (FailureCode::BackendGarbage, 502, "backend_error"),
        (FailureCode::Internal, 500, "internal_error"),
    ];
    let mut worker = OurWorker::join(&relay, &["m"], 1).await;
    let _spare = V1Worker::join_as(
        &relay,
        &json!({ "type": "register", "worker_name": "s", "models": ["m"], "max_concurrent": 1, "current_load": 1 }),
    )
    .await;
    for (code, status, name) in stays {
        let asked = relay.ask(CHAT, chat("m", false));
        let (stream, ..) = worker.request().await;
        worker.fail(stream, code).await;
        let answer = asked.answer().await;
        let text = answer.status();
        let (seen, code) = answer.error().await;
        assert_eq!((seen, code.as_str(), text), (status, name, status));
    }
    relay.settled().await;
}
