//! What the worker says of its backend: models, health, load.

use std::time::Duration;

use dev_backend::{Backend, Config, Flavour, Phase, Script, refused_addr};
use modelrelay_protocol::codec::{FailureCode, WorkerFrame};
use modelrelay_protocol::config::WorkerConfig;
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use serde_json::{Value, json};

use crate::support::{LIMIT, Relay, Session, config, within, worker};

/// Settings that leave models to be found, and look only when asked.
fn discovering(relay: &Relay, backend: &str) -> WorkerConfig {
    let mut config = config(&relay.url(), backend);
    config.models.clear();
    config.health.interval_seconds = 3600;
    config
}

async fn load_with(session: &mut Session, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let load = session.text("load").await;
        if wanted(&load) {
            return load;
        }
    }
}

#[tokio::test]
async fn models_are_found_and_followed_when_asked() {
    let backend =
        Backend::start(Config { models: vec!["a".into(), "b".into()], ..Config::default() }).await.unwrap();
    let relay = Relay::start().await;
    let worker = worker(discovering(&relay, &backend.url())).await;
    let mut session = relay.accept().await;
    // The first look comes before the first registration.
    assert_eq!(session.acknowledge(DEFAULT_WINDOW_BYTES).await["models"], json!(["a", "b"]));
    session.models(&["a", "b"]).await;
    backend.set_models(&["b", "c"]);
    session.send(json!({ "type": "models_refresh", "reason": "test" })).await;
    session.models(&["b", "c"]).await;
    worker.kill().await;
}

#[tokio::test]
async fn a_model_that_the_backend_does_not_know_any_more_makes_the_worker_look() {
    let backend =
        Backend::start(Config { models: vec!["m".into(), "n".into()], ..Config::default() }).await.unwrap();
    let relay = Relay::start().await;
    let worker = worker(discovering(&relay, &backend.url())).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m", "n"]).await;
    backend.set_models(&["n"]);
    session.request(1, &json!({ "model": "m" })).await;
    assert_eq!(session.response(1).await.status, 404, "the backend's own answer passes");
    session.models(&["n"]).await;
    worker.kill().await;
}

#[tokio::test]
async fn a_backend_that_is_not_ready_is_not_advertised_until_it_is() {
    let backend = Backend::start(Config::default()).await.unwrap();
    backend.set_healthy(false);
    let relay = Relay::start().await;
    let worker = worker(discovering(&relay, &backend.url())).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&[]).await;
    let load = load_with(&mut session, |load| load["reason"] != "starting").await;
    assert_eq!(load["healthy"], false);
    assert!(load["reason"].as_str().unwrap().contains("/health with status 503"), "{load}");
    backend.set_healthy(true);
    session.models(&["m"]).await;
    worker.kill().await;
}

#[tokio::test]
async fn a_backend_that_refuses_is_not_advertised_until_a_probe_succeeds() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let addr = backend.addr;
    let relay = Relay::start().await;
    let worker = worker(discovering(&relay, &backend.url())).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    backend.abort().await;
    session.request(1, &json!({ "model": "m" })).await;
    // A connection that was open may break first; the next request finds nobody there.
    loop {
        match session.frame().await {
            WorkerFrame::Failed { code: FailureCode::BackendRefused, .. } => break,
            WorkerFrame::Failed { code: FailureCode::BackendReset, .. } => {
                session.request(1, &json!({ "model": "m" })).await;
            }
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
    session.models(&[]).await;
    let _backend = Backend::start(Config { listen: addr, ..Config::default() }).await.unwrap();
    session.models(&["m"]).await;
    session.request(2, &json!({ "model": "m" })).await;
    assert_eq!(session.response(2).await.status, 200);
    worker.kill().await;
}

#[tokio::test]
async fn a_worker_whose_backend_is_not_there_stays_connected() {
    let relay = Relay::start().await;
    let url = format!("http://{}", refused_addr().unwrap());
    let worker = worker(discovering(&relay, &url)).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&[]).await;
    session.request(1, &json!({ "model": "m" })).await;
    match session.frame().await {
        WorkerFrame::Failed { code: FailureCode::BackendRefused, regrant: true, .. } => {}
        other => panic!("expected a refusal, got {other:?}"),
    }
    session.settle().await;
    worker.kill().await;
}

#[tokio::test]
async fn engines_tell_their_load() {
    for (flavour, expected) in [
        (Flavour::LlamaServer, json!({ "running": 1 })),
        (Flavour::Vllm, json!({ "running": 1, "waiting": 0 })),
        (Flavour::Ollama, json!({ "loaded_models": ["m"] })),
        (Flavour::Openai, json!({})),
    ] {
        let script = Script { id: Some("a".into()), head_delay_ms: 60_000, ..Script::default() };
        let backend = Backend::start(Config { flavour, script, ..Config::default() }).await.unwrap();
        let relay = Relay::start().await;
        let worker = worker(discovering(&relay, &backend.url())).await;
        let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
        session.models(&["m"]).await;
        session.request(1, &json!({ "model": "m" })).await;
        backend.wait_phase("a", Phase::BeforeHead, LIMIT).await.unwrap();
        session.send(json!({ "type": "models_refresh" })).await;
        let load = load_with(&mut session, |load| {
            load["healthy"] == true
                && expected.as_object().unwrap().iter().all(|(key, value)| load[key] == *value)
        });
        let load = within(&format!("{flavour:?}"), load).await;
        assert_eq!(load.get("running").is_some(), expected.get("running").is_some());
        worker.kill().await;
    }
}

#[tokio::test]
async fn a_base_path_stands_before_every_path() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::start().await;
    let url = format!("http://{}/engine/v1", listener.local_addr().unwrap());
    let worker = worker(discovering(&relay, &url)).await;
    let (mut tcp, _) = within("a probe", listener.accept()).await.unwrap();
    let head = within("a probe", crate::support::read_request(&mut tcp)).await.unwrap();
    assert!(head.starts_with("get /engine/health http/1.1"), "{head}");
    tokio::time::timeout(Duration::from_secs(10), worker.kill()).await.unwrap();
}
