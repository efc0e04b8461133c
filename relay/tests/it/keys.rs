//! Client keys: who may ask for what, how much, and what everybody else is told.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::ours::response;
use crate::support::{
    Answer, CHAT, MESSAGES, OurWorker, SettingsFile, TestRelay, V1Worker, chat, eventually, request,
};
use modelrelay_protocol::frame::TokenCounts;

const KEY: &str = "mr_team-a_0123456789abcdef";

fn with_keys(entries: &[String]) -> String {
    let worker = SettingsFile::credential("w", "");
    format!("workerCredentials:\n{worker}clientKeys:\n{}", entries.concat())
}

fn register(models: &[&str], slots: u32) -> serde_json::Value {
    json!({ "type": "register", "worker_name": "w", "models": models, "max_concurrent": slots })
}

async fn ask(relay: &TestRelay, path: &str, headers: &[(&str, &str)], model: &str) -> Answer {
    relay.send(request("POST", path, headers, chat(model, false))).await
}

#[tokio::test]
async fn a_key_counts_in_either_header() {
    let relay = TestRelay::follow(&SettingsFile::new(&with_keys(&[SettingsFile::key(KEY, "")]))).await;
    let mut worker = V1Worker::join_with(&relay, &register(&["m"], 1), Some("w")).await;
    let bearer = format!("Bearer {KEY}");
    for headers in [
        &[("authorization", bearer.as_str())][..],
        &[("x-api-key", KEY)],
        &[("authorization", "Bearer placeholder"), ("x-api-key", KEY)],
    ] {
        let asked = relay.ask_with(request("POST", CHAT, headers, chat("m", false)));
        let request = worker.request().await;
        let sent = request["headers"].as_object().unwrap();
        assert!(!sent.contains_key("authorization") && !sent.contains_key("x-api-key"), "{request}");
        worker.complete(&request, 200, "").await;
        assert_eq!(asked.answer().await.status(), 200);
    }
    relay.settled().await;
}

#[tokio::test]
async fn whatever_is_wrong_with_a_key_the_answer_is_the_same() {
    let relay = TestRelay::follow(&SettingsFile::new(&with_keys(&[SettingsFile::key(KEY, "")]))).await;
    let wrong: &[&[(&str, &str)]] = &[
        &[],
        &[("authorization", "")],
        &[("authorization", "Bearer ")],
        &[("authorization", "Basic bXI6eA==")],
        &[("authorization", "Bearer nonsense")],
        &[("authorization", "Bearer mr_team-a_0123456789abcdeX")],
        &[("authorization", "Bearer mr_team-b_0123456789abcdef")],
        &[("x-api-key", "mr_team-a_")],
        &[("x-api-key", "mr_team-a_0123456789abcdef0")],
    ];
    let mut bodies = Vec::new();
    for headers in wrong {
        let headers = [headers, &[("x-request-id", "same")][..]].concat();
        let answer = ask(&relay, CHAT, &headers, "m").await;
        assert_eq!(answer.status(), 401, "{headers:?}");
        assert_eq!(answer.header("x-request-id"), Some("same"));
        let mut names: Vec<String> = answer.head.headers.keys().map(ToString::to_string).collect();
        names.sort();
        bodies.push((names, answer.text().await));
        let anthropic = ask(&relay, MESSAGES, &headers, "m").await;
        assert_eq!(anthropic.status(), 401);
        assert_eq!(anthropic.json().await["error"]["type"], "authentication_error");
        let models = relay.send(request("GET", "/v1/models", &headers, "")).await;
        assert_eq!(models.error().await, (401, "invalid_api_key".into()));
    }
    assert!(bodies[0].1.contains("invalid_api_key"));
    bodies.dedup();
    assert_eq!(bodies.len(), 1);
    relay.settled().await;
}

#[tokio::test]
async fn a_strangers_body_is_never_read() {
    let relay = TestRelay::follow(&SettingsFile::new(&with_keys(&[SettingsFile::key(KEY, "")]))).await;
    let mut client = crate::support::RawClient::connect(relay.client).await;
    client.write(format!("POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Length: 60000000\r\n\r\n")).await;
    assert!(client.until("invalid_api_key").await.starts_with("HTTP/1.1 401 "));
    assert_eq!(relay.relay.bodies.held(), 0);
}

#[tokio::test]
async fn a_key_is_good_for_its_models_only() {
    let keys = [SettingsFile::key(KEY, ", models: [allowed, alias]")];
    let aliases = "models: [{ name: alias, targets: [{ model: hidden }] }]\n";
    let relay = TestRelay::follow(&SettingsFile::new(&(with_keys(&keys) + aliases))).await;
    let mut worker = V1Worker::join_with(&relay, &register(&["allowed", "hidden"], 1), Some("w")).await;
    let key = [("x-api-key", KEY)];
    assert_eq!(ask(&relay, CHAT, &key, "hidden").await.error().await, (403, "model_not_allowed".into()));
    let answer = ask(&relay, MESSAGES, &key, "absent").await;
    assert_eq!(answer.status(), 403, "what it may not ask for it may not find out about");
    assert_eq!(answer.json().await["error"]["type"], "permission_error");
    for model in ["allowed", "alias"] {
        let asked = relay.ask_with(request("POST", CHAT, &key, chat(model, false)));
        let request = worker.request().await;
        worker.complete(&request, 200, "").await;
        assert_eq!(asked.answer().await.status(), 200);
    }
    let models = relay.send(request("GET", "/v1/models", &key, "")).await.json().await;
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["alias", "allowed"]);
    assert_eq!(relay.send(request("GET", "/v1/models/hidden", &key, "")).await.status(), 404);
    relay.settled().await;
}

#[tokio::test]
async fn over_each_limit_is_429_with_a_time_to_come_back() {
    let keys = [
        SettingsFile::key("mr_rate_x", ", requestsPerMinute: 2"),
        SettingsFile::key("mr_tokens_x", ", tokensPerMinute: 10"),
        SettingsFile::key("mr_once_x", ", maxConcurrentRequests: 1"),
        SettingsFile::key("mr_free_x", ""),
    ];
    let relay = TestRelay::follow(&SettingsFile::new(&with_keys(&keys))).await;
    let register = OurWorker::register(&["m"], 4);
    let mut worker = OurWorker::join_with(&relay, &register, Some("w")).await;
    worker.grant(&relay, 4).await;
    let usage =
        Some(TokenCounts { prompt_tokens: Some(8), completion_tokens: Some(12), total_tokens: Some(20) });
    let limited = |answer: Answer, path: &'static str| async move {
        assert_eq!(answer.status(), 429);
        let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        let body = answer.json().await;
        assert_eq!(body["error"]["type"], "rate_limit_error");
        if path == CHAT {
            assert_eq!(body["error"]["code"], "rate_limited");
        }
        after
    };
    // Two requests in the bucket, half a minute for the next.
    let rate = [("x-api-key", "mr_rate_x")];
    for _ in 0..2 {
        let asked = relay.ask_with(request("POST", CHAT, &rate, chat("m", false)));
        let (stream, ..) = worker.request().await;
        worker.answer(stream, 200, &[], b"").await;
        assert_eq!(asked.answer().await.status(), 200);
    }
    for path in [CHAT, MESSAGES] {
        let after = limited(ask(&relay, path, &rate, "m").await, path).await;
        assert!((20..=30).contains(&after), "{after}");
    }
    // Charged when the request ends: the first may go over, the next waits it out.
    let tokens = [("x-api-key", "mr_tokens_x")];
    let asked = relay.ask_with(request("POST", CHAT, &tokens, chat("m", false)));
    let (stream, ..) = worker.request().await;
    worker.frame(response(stream, Some((200, &[])), b"{}", true, usage)).await;
    assert_eq!(asked.answer().await.status(), 200);
    let after = limited(ask(&relay, CHAT, &tokens, "m").await, CHAT).await;
    assert!((50..=61).contains(&after), "{after}");
    // One at a time, and again once it has ended.
    let once = [("x-api-key", "mr_once_x")];
    let asked = relay.ask_with(request("POST", CHAT, &once, chat("m", false)));
    let (stream, ..) = worker.request().await;
    assert_eq!(limited(ask(&relay, CHAT, &once, "m").await, CHAT).await, 1);
    worker.answer(stream, 200, &[], b"").await;
    assert_eq!(asked.answer().await.status(), 200);
    let asked = relay.ask_with(request("POST", CHAT, &once, chat("m", true)));
    let (stream, ..) = worker.request().await;
    worker.begin(stream, 200, &[("content-type", "text/event-stream")], b"data: 1\n\n").await;
    let answer = asked.answer().await;
    assert_eq!(limited(ask(&relay, CHAT, &once, "m").await, CHAT).await, 1);
    drop(answer);
    worker.cancelled(stream).await;
    worker.frame(modelrelay_protocol::codec::encode_cancelled(stream, true)).await;
    // Others have limits of their own.
    let asked = relay.ask_with(request("POST", CHAT, &[("x-api-key", "mr_free_x")], chat("m", false)));
    let (stream, ..) = worker.request().await;
    worker.answer(stream, 200, &[], b"").await;
    assert_eq!(asked.answer().await.status(), 200);
    relay.settled().await;
}

#[tokio::test]
async fn an_answer_without_usage_is_charged_by_its_events() {
    let relay =
        TestRelay::follow(&SettingsFile::new(&with_keys(&[SettingsFile::key(KEY, ", tokensPerMinute: 4")])))
            .await;
    let mut worker = V1Worker::join_with(&relay, &register(&["m"], 2), Some("w")).await;
    let ask = || relay.ask_with(request("POST", CHAT, &[("x-api-key", KEY)], chat("m", true)));
    // Three events leave one token; leaving after two more goes over.
    for (events, leaves) in [(3, false), (2, true)] {
        let asked = ask();
        let request = worker.request().await;
        let sent: String = (0..events).map(|n| format!("data: {n}\n\n")).collect();
        worker.chunk(&request, &sent).await;
        let mut answer = asked.answer().await;
        answer.at_least(sent.len()).await;
        if leaves {
            drop(answer);
            worker.cancelled(&request).await;
        } else {
            worker.complete(&request, 200, "").await;
            assert!(answer.chunk().await.is_none());
        }
        relay.settled().await;
    }
    assert_eq!(ask().answer().await.error().await, (429, "rate_limited".into()));
    assert!(!relay.metrics().await.contains("modelrelay_tenant_tokens_total{"), "a guess is no metric");
}

#[tokio::test]
async fn a_revoked_key_is_refused_within_a_second_and_what_runs_goes_on() {
    let other = SettingsFile::key("mr_b_x", "");
    let file = SettingsFile::new(&with_keys(&[SettingsFile::key(KEY, ""), other.clone()]));
    let relay = TestRelay::follow(&file).await;
    let mut worker = V1Worker::join_with(&relay, &register(&["m"], 1), Some("w")).await;
    let running = relay.ask_with(request("POST", CHAT, &[("x-api-key", KEY)], chat("m", true)));
    let taken = worker.request().await;
    worker.chunk(&taken, "data: 1\n\n").await;
    let mut answer = running.answer().await;
    answer.at_least(9).await;
    file.write(&with_keys(&[other]));
    let written = Instant::now();
    let models = || relay.send(request("GET", "/v1/models", &[("x-api-key", KEY)], ""));
    while models().await.status() != 401 {
        assert!(written.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(written.elapsed() < Duration::from_secs(1), "{:?}", written.elapsed());
    worker.chunk(&taken, "data: 2\n\n").await;
    worker.complete(&taken, 200, "").await;
    assert_eq!(answer.text().await, "data: 2\n\n");
    assert_eq!(
        ask(&relay, CHAT, &[("x-api-key", KEY)], "m").await.error().await,
        (401, "invalid_api_key".into())
    );
    relay.settled().await;
}

#[tokio::test]
async fn two_keys_of_one_tenant_are_valid_at_once() {
    let keys = [SettingsFile::key(KEY, ", tenant: t"), SettingsFile::key("mr_new_x", ", tenant: t")];
    let relay = TestRelay::follow(&SettingsFile::new(&with_keys(&keys))).await;
    for key in [KEY, "mr_new_x"] {
        assert_eq!(relay.send(request("GET", "/v1/models", &[("x-api-key", key)], "")).await.status(), 200);
    }
}

#[tokio::test]
async fn the_limit_on_requests_at_once_covers_what_waits() {
    let keys = [SettingsFile::key(KEY, ", maxConcurrentRequests: 2")];
    let relay = TestRelay::follow(&SettingsFile::new(&with_keys(&keys))).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| relay.ask_with(request("POST", CHAT, &[("x-api-key", KEY)], chat("absent", false))))
        .collect();
    relay.queued(2).await;
    assert_eq!(
        ask(&relay, CHAT, &[("x-api-key", KEY)], "x").await.error().await,
        (429, "rate_limited".into())
    );
    drop(waiting);
    relay.settled().await;
    let again = relay.ask_with(request("POST", CHAT, &[("x-api-key", KEY)], chat("absent", false)));
    eventually("it waits", || (!relay.relay.dispatcher.is_idle()).then_some(())).await;
    drop(again);
    relay.settled().await;
}
