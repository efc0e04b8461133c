//! What `/v1/models` lists, and how names lead to workers: aliases, splits, headers, queries.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{CHAT, OurWorker, TestRelay, V1Worker, chat, request};

const ANTHROPIC: &[(&str, &str)] = &[("anthropic-version", "2023-06-01")];

fn ids(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_list_is_what_workers_serve_and_aliases_in_either_shape() {
    let relay = TestRelay::start("models: [{ name: alias, targets: [{ model: x }] }]\n").await;
    let _one = V1Worker::join(&relay, &["b/with:all", "a", "*"], 1).await;
    let _two = V1Worker::join(&relay, &["a", "c"], 1).await;
    let list = relay.send(request("GET", "/v1/models", &[], "")).await;
    assert!(list.header("x-request-id").is_some());
    let list = list.json().await;
    assert_eq!(list["object"], "list");
    assert_eq!(ids(&list), ["a", "alias", "b/with:all", "c"]);
    assert_eq!(list["data"][0]["object"], "model");
    let list = relay.send(request("GET", "/v1/models", ANTHROPIC, "")).await.json().await;
    assert_eq!(ids(&list), ["a", "alias", "b/with:all", "c"]);
    assert_eq!((&list["first_id"], &list["last_id"]), (&json!("a"), &json!("c")));
    assert_eq!((&list["has_more"], &list["data"][0]["type"]), (&json!(false), &json!("model")));
    assert!(list["data"][0]["display_name"].is_string());
}

#[tokio::test]
async fn one_model_is_found_by_an_id_with_slashes_and_colons() {
    let relay = TestRelay::start("").await;
    let _worker = V1Worker::join(&relay, &["org/name:7b", "with space"], 1).await;
    for (path, id) in [
        ("/v1/models/org/name:7b", "org/name:7b"),
        ("/v1/models/org%2Fname%3A7b", "org/name:7b"),
        ("/v1/models/with%20space", "with space"),
    ] {
        let answer = relay.send(request("GET", path, &[], "")).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.json().await["id"], id);
    }
    let answer = relay.send(request("GET", "/v1/models/org", &[], "")).await;
    assert_eq!(answer.error().await, (404, "model_not_found".into()));
    let answer = relay.send(request("GET", "/v1/models/org", ANTHROPIC, "")).await;
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.json().await["error"]["type"], "not_found_error");
}

#[tokio::test]
async fn an_alias_reaches_the_worker_under_its_targets_name_and_nothing_else_changes() {
    let relay = TestRelay::start("models: [{ name: ali\"as, targets: [{ model: \"tar\\\"get\" }] }]\n").await;
    let mut plain = V1Worker::join(&relay, &["tar\"get"], 1).await;
    // Spaces, escapes, order and numbers stay as the client wrote them.
    let body = "{ \"x\":[1.50,1e3 , \"\\u00e9\\/\"],\r\n\t\"mod\\u0065l\" : \"ali\\\"as\" ,\"nested\":{\"model\":\"ali\\\"as\"}} ";
    let expected = body.replacen("\"ali\\\"as\"", "\"tar\\\"get\"", 1);
    let asked = relay.ask(CHAT, body);
    let request = plain.request().await;
    assert_eq!(request["model"], "tar\"get");
    assert_eq!(request["body"], expected);
    // The answer's model stays as the backend wrote it.
    plain.complete(&request, 200, r#"{"model":"tar\"get"}"#).await;
    assert_eq!(asked.answer().await.text().await, r#"{"model":"tar\"get"}"#);
    drop(plain);
    relay.workers(0).await;
    let mut ours = OurWorker::join(&relay, &["tar\"get"], 1).await;
    let asked = relay.ask(CHAT, body);
    let (stream, head, sent) = ours.request().await;
    assert_eq!((head.model.as_str(), head.body_bytes), ("tar\"get", expected.len() as u64));
    assert_eq!(sent, expected);
    ours.answer(stream, 200, &[], b"").await;
    assert_eq!(asked.answer().await.status(), 200);
    relay.settled().await;
}

#[tokio::test]
async fn an_alias_in_a_form_is_replaced_there() {
    let relay = TestRelay::start("models: [{ name: alias, targets: [{ model: a-longer-target }] }]\n").await;
    let mut worker = V1Worker::join(&relay, &["a-longer-target"], 1).await;
    let form = |model: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"alias\"\r\n\r\nalias\r\n--b\r\n\
             content-disposition: form-data; name=model\r\n\r\n{model}\r\n--b\r\n\
             content-disposition: form-data; name=\"stream\"\r\n\r\ntrue\r\n--b--\r\n"
        )
    };
    for path in ["/v1/audio/transcriptions", "/v1/audio/translations"] {
        let kind = ("content-type", "multipart/form-data; boundary=b");
        let asked = relay.ask_with(request("POST", path, &[kind], form("alias")));
        let request = worker.request().await;
        assert_eq!((&request["model"], &request["endpoint_path"]), (&json!("a-longer-target"), &json!(path)));
        assert_eq!(request["is_streaming"], true);
        assert_eq!(request["body"], form("a-longer-target"));
        assert_eq!(request["headers"]["content-type"], kind.1);
        worker.complete(&request, 200, "").await;
        assert_eq!(asked.answer().await.status(), 200);
    }
    relay.settled().await;
}

#[tokio::test]
async fn a_split_goes_by_weight_among_what_is_served_now() {
    let relay = TestRelay::start(
        "models: [{ name: split, targets: [{ model: most, weight: 9 }, { model: few }, { model: never, weight: 0 }] }]\n",
    )
    .await;
    // With none served it waits for any of them.
    let asked = relay.ask(CHAT, chat("split", false));
    relay.queued(1).await;
    let mut few = V1Worker::join(&relay, &["few", "never"], 1).await;
    let request = few.request().await;
    assert_eq!((&request["model"], &request["body"]), (&json!("few"), &json!(chat("few", false))));
    few.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
    drop(few);
    relay.workers(0).await;
    let mut both = V1Worker::join(&relay, &["few", "most", "never"], 1).await;
    let (mut most, mut seen) = (0, BTreeSet::new());
    for _ in 0..100 {
        let asked = relay.ask(CHAT, chat("split", false));
        let request = both.request().await;
        let model = request["model"].as_str().unwrap().to_owned();
        assert_eq!(request["body"], chat(&model, false));
        most += u32::from(model == "most");
        seen.insert(model);
        both.complete(&request, 200, "").await;
        assert_eq!(asked.answer().await.status(), 200);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["few", "most"]);
    assert!((75..100).contains(&most), "{most} of 100");
    relay.settled().await;
}

#[tokio::test]
async fn every_route_reaches_the_worker_with_its_query() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    for route in [
        "chat/completions",
        "completions",
        "responses",
        "embeddings",
        "rerank",
        "score",
        "messages",
        "messages/count_tokens",
        "audio/speech",
        "images/generations",
    ] {
        let path = format!("/v1/{route}?beta=true&x=%20y");
        let asked = relay.ask(&path, chat("m", false));
        let request = worker.request().await;
        assert_eq!(request["endpoint_path"], path);
        worker.complete(&request, 200, route).await;
        assert_eq!(asked.answer().await.text().await, route);
    }
    relay.settled().await;
}

#[tokio::test]
async fn listed_headers_go_to_the_worker_and_credentials_never() {
    let relay = TestRelay::start("headers: { allow: [idempotency-key, acme-*] }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let passed = [
        ("accept", "*/*"),
        ("acme-team", "a"),
        ("anthropic-version", "2023-06-01"),
        ("baggage", "b"),
        ("content-encoding", "identity"),
        ("content-type", "application/json"),
        ("idempotency-key", "i"),
        ("openai-organization", "o"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "t=1"),
        ("user-agent", "test"),
        ("x-request-id", "id-1"),
        ("x-title", "t"),
    ];
    let kept = [
        ("authorization", "Bearer sk"),
        ("x-api-key", "sk"),
        ("cookie", "c=1"),
        ("x-worker-secret", "s"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "1.2.3.4"),
        ("accept-encoding", "gzip"),
        ("referer", "r"),
        ("te", "trailers"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
    ];
    let asked = relay.ask_with(request("POST", CHAT, &[&passed[..], &kept].concat(), chat("m", false)));
    let request = worker.request().await;
    let mut expected = serde_json::Map::new();
    for (name, value) in passed {
        expected.insert(name.into(), json!(value));
    }
    assert_eq!(request["headers"], Value::Object(expected));
    worker.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
}
