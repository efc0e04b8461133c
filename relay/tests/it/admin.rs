//! The operations port: what it shows, to whom, and what it never shows.

use serde_json::{Value, json};

use crate::support::{CHAT, SettingsFile, TestRelay, V1Worker, chat, eventually, request};

#[tokio::test]
async fn health_and_metrics_are_open_and_the_rest_needs_the_token() {
    let token = "an-operators-token";
    let hash = modelrelay_relay::keys::sha256(token).to_hex();
    let relay =
        TestRelay::start(&format!("admin: {{ sha256: \"{hash}\" }}\nreadiness: {{ settleSeconds: 0 }}\n"))
            .await;
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(relay.operate("GET", path, &[]).await.status(), 200, "{path}");
    }
    let right = format!("Bearer {token}");
    let calls = [
        ("GET", "/admin/v1/workers"),
        ("GET", "/admin/v1/queue"),
        ("GET", "/admin/v1/requests"),
        ("GET", "/admin/v1/config"),
    ];
    for (method, path) in calls {
        for wrong in [None, Some("Bearer wrong"), Some("Bearer "), Some(token), Some("Basic YTpi")] {
            let headers: Vec<_> = wrong.iter().map(|value| ("authorization", *value)).collect();
            let answer = relay.operate(method, path, &headers).await;
            assert_eq!(answer.status(), 401, "{path} with {wrong:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert!(!answer.text().await.contains(&hash));
        }
        assert_eq!(relay.operate(method, path, &[("authorization", &right)]).await.status(), 200, "{path}");
    }
    assert_eq!(relay.operate("POST", "/admin/v1/drain", &[]).await.status(), 401);
    assert!(!relay.relay.drain_requested.is_cancelled());
    // The client port knows nothing of all this.
    let answer = relay.send(request("GET", "/admin/v1/workers", &[("authorization", &right)], "")).await;
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn without_a_token_only_local_names_reach_the_admin_api() {
    let relay = TestRelay::start("").await;
    for (host, status) in [
        ("localhost", 200),
        ("localhost:8081", 200),
        ("127.0.0.1:8081", 200),
        ("[::1]:8081", 200),
        ("[::1]", 200),
        ("evil.example.com", 401),
        ("evil.example.com:8081", 401),
        ("localhost.evil.example.com", 401),
        ("10.0.0.1", 401),
    ] {
        let answer = relay.operate("GET", "/admin/v1/workers", &[("host", host)]).await;
        assert_eq!(answer.status(), status, "{host}");
    }
}

#[tokio::test]
async fn workers_queue_and_requests_are_shown_as_they_are() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join_named(&relay, "gpu-1", &["m"], 2).await;
    let streamed = relay.ask_with(request("POST", CHAT, &[("x-request-id", "one")], chat("m", true)));
    let taken = worker.request().await;
    worker.chunk(&taken, "data: 1\n\n").await;
    let mut streamed = streamed.answer().await;
    streamed.at_least(9).await;
    let dispatched = relay.ask_with(request("POST", CHAT, &[("x-request-id", "two")], chat("m", false)));
    let second = worker.request().await;
    let body = chat("m", false);
    let waiting = relay.ask_with(request("POST", CHAT, &[("x-request-id", "three")], body.clone()));
    relay.queued(1).await;
    let absent = relay.ask_with(request("POST", CHAT, &[("x-request-id", "four")], chat("absent", false)));
    relay.queued(2).await;

    let workers = relay.admin("/admin/v1/workers").await;
    let row = &workers[0];
    assert_eq!(workers.as_array().unwrap().len(), 1);
    assert_eq!(
        (&row["name"], &row["pool"], &row["protocol"]),
        (&json!("gpu-1"), &json!("default"), &json!("v1"))
    );
    assert_eq!((&row["instance"], &row["namespace"]), (&Value::Null, &Value::Null));
    assert_eq!((&row["slots"], &row["free"], &row["running"]), (&json!(2), &json!(0), &json!(2)));
    assert_eq!((&row["state"], &row["models"]), (&json!("ready"), &json!(["m"])));

    let requests = relay.admin("/admin/v1/requests").await;
    let shown: Vec<(&str, &str, Option<&str>)> = requests
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            (row["request_id"].as_str().unwrap(), row["state"].as_str().unwrap(), row["worker"].as_str())
        })
        .collect();
    let expected = [
        ("one", "streaming", Some("gpu-1")),
        ("two", "dispatched", Some("gpu-1")),
        ("three", "queued", None),
        ("four", "queued", None),
    ];
    assert_eq!(shown, expected);

    let queue = relay.admin("/admin/v1/queue").await;
    let find = |model: &str| -> Value {
        queue["queues"].as_array().unwrap().iter().find(|queue| queue["model"] == model).unwrap().clone()
    };
    assert_eq!((&find("m")["length"], &find("m")["workers"]), (&json!(1), &json!(1)));
    assert_eq!(find("m")["bytes"], body.len());
    assert_eq!((&find("absent")["length"], &find("absent")["workers"]), (&json!(1), &json!(0)));
    assert!(find("m")["oldest_ms"].is_u64());
    assert!(queue["body_bytes_held"].as_u64().unwrap() > 0);

    assert_eq!(relay.metric(r#"modelrelay_requests_running{model="m",priority="default"}"#).await, 2.0);
    assert_eq!(relay.metric(r#"modelrelay_queue_size{model="m",priority="default"}"#).await, 1.0);
    let others = r#"modelrelay_queue_size{model="other",priority="default"}"#;
    assert_eq!(relay.metric(others).await, 1.0, "clients make no labels");
    assert_eq!(
        relay.metric(r#"modelrelay_queue_bytes{model="m",priority="default"}"#).await,
        body.len() as f64
    );
    assert_eq!(relay.metric("modelrelay_queue_capacity_utilization").await, 0.001);
    assert_eq!(relay.metric(r#"modelrelay_workers{pool="default",state="ready"}"#).await, 1.0);
    assert_eq!(relay.metric(r#"modelrelay_worker_slots{pool="default",state="in_use"}"#).await, 2.0);

    drop((streamed, dispatched, waiting, absent));
    for request in [&taken, &second] {
        let cancel = worker.receive().await;
        if cancel["type"] == "cancel" {
            assert_ne!(request["request_id"], Value::Null);
        }
    }
    relay.settled().await;
    assert_eq!(relay.admin("/admin/v1/requests").await, json!([]));
    assert_eq!(relay.admin("/admin/v1/queue").await["body_bytes_held"], 0);
    assert_eq!(relay.metric("modelrelay_body_bytes").await, 0.0);
}

#[tokio::test]
async fn labels_come_from_workers_and_settings_and_never_from_clients() {
    let relay = TestRelay::start("queue: { noWorkerTimeoutSeconds: 1 }\n").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked: Vec<_> = (0..20).map(|n| relay.ask(CHAT, chat(&format!("made-up-{n}"), false))).collect();
    for asked in asked {
        assert_eq!(asked.answer().await.status(), 503);
    }
    let asked = relay.ask(CHAT, chat("m", false));
    let request = worker.request().await;
    worker.complete(&request, 200, "").await;
    assert_eq!(asked.answer().await.status(), 200);
    let text = relay.metrics().await;
    assert!(!text.contains("made-up"));
    let sample =
        r#"modelrelay_requests_total{api="openai",code="no_worker",model="other",outcome="rejected"}"#;
    assert_eq!(relay.metric(sample).await, 20.0);
    let sample = r#"modelrelay_requests_total{api="openai",code="200",model="m",outcome="ok"}"#;
    assert_eq!(relay.metric(sample).await, 1.0);
}

#[tokio::test]
async fn no_secret_is_shown_anywhere() {
    let (key, secret, token) = ("mr_id_keysecret0123", "worker-secret-0123", "admin-token-0123");
    let hash = |text: &str| modelrelay_relay::keys::sha256(text).to_hex();
    let file = SettingsFile::new(&format!(
        "admin: {{ sha256: \"{}\" }}\nworkerCredentials:\n{}clientKeys:\n{}",
        hash(token),
        SettingsFile::credential(secret, ""),
        SettingsFile::key(key, ""),
    ));
    let relay = TestRelay::follow(&file).await;
    let register = json!({ "type": "register", "worker_name": "w", "models": ["m"], "max_concurrent": 1 });
    let mut worker = V1Worker::join_with(&relay, &register, Some(secret)).await;
    let asked = relay.ask_with(request("POST", CHAT, &[("x-api-key", key)], chat("m", false)));
    let seen = worker.request().await;
    let bearer = format!("Bearer {token}");
    let mut shown = vec![
        seen.to_string(),
        worker.ack.to_string(),
        relay.metrics().await,
        format!("{:?}", relay.relay),
        format!("{:?}", relay.relay.settings.load_full()),
        format!("{:?}", relay.relay.settings),
        format!("{:?}", relay.relay.dispatcher.sessions()),
    ];
    for path in ["workers", "queue", "requests", "config"] {
        let answer = relay.operate("GET", &format!("/admin/v1/{path}"), &[("authorization", &bearer)]).await;
        assert_eq!(answer.status(), 200);
        shown.push(answer.text().await);
    }
    worker.complete(&seen, 200, "").await;
    asked.answer().await;
    for text in shown {
        for clear in [key, secret, token, "keysecret0123"] {
            assert!(!text.contains(clear), "{clear} in {text}");
            assert!(!text.contains(&hash(clear)), "the hash of {clear} in {text}");
        }
    }
}

#[tokio::test]
async fn the_settings_in_force_are_named() {
    let file = SettingsFile::new(&format!(
        "queue: {{ maxRequests: 7 }}\nworkerCredentials:\n{}",
        SettingsFile::credential("w", "")
    ));
    let relay = TestRelay::follow(&file).await;
    let config = relay.admin("/admin/v1/config").await;
    assert_eq!(config["config"]["queue"]["maxRequests"], 7);
    let revision = config["revision"].as_str().unwrap().to_owned();
    assert_eq!(relay.metric(&format!(r#"modelrelay_config_info{{revision="{revision}"}}"#)).await, 1.0);
    file.write(&format!(
        "queue: {{ maxRequests: 8 }}\nworkerCredentials:\n{}",
        SettingsFile::credential("w", "")
    ));
    let changed = || (*relay.relay.settings.load().revision != *revision).then_some(());
    eventually("the change is in force", changed).await;
    let config = relay.admin("/admin/v1/config").await;
    assert_eq!(config["config"]["queue"]["maxRequests"], 8);
    assert_eq!(relay.metric(&format!(r#"modelrelay_config_info{{revision="{revision}"}}"#)).await, 0.0);
}
