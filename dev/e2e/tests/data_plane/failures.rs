//! Backends that fail: the rows of the error table, and honest ends.

use dev_backend::{Backend, Config};
use dev_e2e::client::{CHAT, Ended, ask, chat, post};
use dev_e2e::floor;
use dev_e2e::stack::{Relay, Stack, worker, worker_config};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Api, broken_stream};

const TIMEOUTS: &str = "timeouts: {firstByteSeconds: 1, streamIdleSeconds: 1}\n";

#[tokio::test]
async fn failures_before_the_first_byte_are_rows_of_the_table() {
    let _floor = floor::shared().await;
    let stack = Stack::start(16, TIMEOUTS).await;
    let cases = [
        ("reset", "before_head", 502, "backend_error", "api_error"),
        ("close", "before_head", 502, "backend_error", "api_error"),
        ("garbage", "before_head", 502, "backend_error", "api_error"),
        ("stall", "before_head", 504, "backend_timeout", "api_error"),
        ("reset", "after_head", 502, "backend_error", "api_error"),
        ("close", "after_head", 502, "backend_error", "api_error"),
        ("garbage", "after_head", 502, "backend_error", "api_error"),
        ("stall", "after_head", 504, "backend_timeout", "api_error"),
    ];
    let relay = &stack.relay;
    let all = cases.iter().flat_map(|case| [(case, true), (case, false)]);
    join_all(all.map(async |(&(fail, at, status, code, kind), stream)| {
        // Without a length, what is no HTTP cannot pass for a body.
        let body = chat(stream, &json!({"fail": fail, "at": at, "chunked": true}));
        let answer = relay.post(CHAT, body.clone()).await;
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.error().await, (status, code.to_owned()), "{fail} {at} {stream}");
        let answer = relay.post("/v1/messages", body).await;
        assert_eq!(answer.status(), status);
        let error = answer.json().await;
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)), "{error}");
    }))
    .await;
    let stats = stack.backend.wait_running(0, dev_e2e::LIMIT).await.unwrap();
    // The silent ones were told that nobody waits any more.
    assert_eq!((stats.cancelled, stats.completed), (8, 0), "{stats:?}");
    stack.relay.ops.settled().await;
    stack.relay.ops.idle_workers(&["worker"]).await;
    assert_eq!(stack.relay.post(CHAT, chat(true, &json!({}))).await.stream().await, Ended::Whole(20));
}

#[tokio::test]
async fn failures_after_the_first_byte_never_look_like_an_end() {
    let _floor = floor::shared().await;
    let stack = Stack::start(16, TIMEOUTS).await;
    let relay = &stack.relay;
    let cases = [
        ("reset", "backend_error"),
        ("close", "backend_error"),
        ("garbage", "backend_error"),
        ("stall", "backend_timeout"),
    ];
    let all = cases.iter().flat_map(|case| Api::ALL.map(|api| (case, api)));
    join_all(all.map(async |(&(fail, code), api)| {
        let script = json!({"fail": fail, "at": "mid_body", "after_chunks": 5});
        let answer = relay.post(api.route(), chat(true, &script)).await;
        assert_eq!(answer.status(), 200);
        let expected = if api == Api::OpenAi { code } else { "api_error" };
        assert_eq!(broken_stream(answer, api).await, expected, "{fail}");
        for chunked in [true, false] {
            let script = json!({
                "answer": "raw", "bytes": 10_000, "chunked": chunked,
                "fail": fail, "at": "mid_body", "after_chunks": 5,
            });
            let answer = relay.post(api.route(), chat(false, &script)).await;
            assert_eq!(answer.status(), 200);
            let text = answer.broken().await;
            // Garbage follows the last piece and looks like more of a body whose length alone is known.
            assert!(text.len() >= 800 && !text.contains("error"), "{fail}: {text}");
        }
    }))
    .await;
    stack.backend.wait_running(0, dev_e2e::LIMIT).await.unwrap();
    stack.relay.ops.settled().await;
    stack.relay.ops.idle_workers(&["worker"]).await;
}

/// What another worker may do better moves; what it would repeat does not.
#[tokio::test]
async fn only_what_may_go_better_elsewhere_moves() {
    let _floor = floor::shared().await;
    let relay = Relay::start(TIMEOUTS).await;
    let (one, two) =
        (Backend::start(Config::default()).await.unwrap(), Backend::start(Config::default()).await.unwrap());
    let _workers = [
        worker(worker_config("one", &[relay.url()], &one.url(), 1)).await,
        worker(worker_config("two", &[relay.url()], &two.url(), 1)).await,
    ];
    relay.ops.idle_workers(&["one", "two"]).await;
    let seen = || [one.stats().requests, two.stats().requests];
    for (script, moves, outcome) in [
        (json!({"fail": "reset"}), true, Err((502, "backend_error"))),
        (json!({"fail": "reset", "at": "after_head"}), true, Err((502, "backend_error"))),
        (json!({"status": 503, "body": "{}"}), true, Ok(503)),
        (json!({"fail": "garbage"}), false, Err((502, "backend_error"))),
        (json!({"fail": "stall"}), false, Err((504, "backend_timeout"))),
        (json!({"status": 500, "body": "{}"}), false, Ok(500)),
        (json!({"status": 429, "body": "{}"}), false, Ok(429)),
    ] {
        let before = seen();
        let answer = ask(relay.address, post(CHAT, chat(true, &script))).await;
        match outcome {
            Ok(status) => {
                assert_eq!(answer.status(), status);
                assert_eq!(answer.json().await, Value::Object(Default::default()), "{script}");
            }
            Err((status, code)) => assert_eq!(answer.error().await, (status, code.to_owned()), "{script}"),
        }
        let after = seen();
        let mut asked = [after[0] - before[0], after[1] - before[1]];
        asked.sort_unstable();
        // A connection that was kept and breaks before any byte may have been closed before the request came, so its
        // worker tries once more on a new one.
        let expected = if moves { [1..=2, 1..=2] } else { [0..=0, 1..=1] };
        assert!(expected[0].contains(&asked[0]) && expected[1].contains(&asked[1]), "{asked:?} {script}");
        relay.ops.settled().await;
        relay.ops.idle_workers(&["one", "two"]).await;
    }
}
