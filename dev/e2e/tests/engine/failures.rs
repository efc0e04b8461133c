//! Errors of the engine, and clients that leave it.

use std::time::{Duration, Instant};

use dev_e2e::client::{CHAT, MESSAGES, ask, post};
use dev_e2e::{eventually, floor};
use serde_json::json;

use crate::engine::{Engine, Model, serve};

/// From a client's leaving to its slot's being free in the engine, which looks up after each token.
const FREE_WITHIN: Duration = Duration::from_secs(1);

fn endless() -> String {
    let messages = json!([{"role": "user", "content": "hello"}]);
    json!({"model": "engine", "stream": true, "max_tokens": 7_000, "messages": messages}).to_string()
}

#[tokio::test]
async fn error_of_the_engine_passes_unchanged() {
    let _floor = floor::shared().await;
    let Some(engine) = Engine::start(Model::Tiny).await else { return };
    let (relay, _worker) = serve(engine.address, 2).await;
    for (route, body) in [
        (CHAT, json!({"model": "engine", "messages": "no list"})),
        (CHAT, json!({"model": "engine", "stream": true, "messages": "no list"})),
        (CHAT, json!({"model": "engine", "messages": [{"role": "user", "content": "x".repeat(40_000)}]})),
        (MESSAGES, json!({"model": "engine", "max_tokens": 5, "messages": [{"role": "user"}]})),
    ] {
        let through = relay.post(route, body.to_string()).await;
        let direct = ask(engine.address, post(route, body.to_string())).await;
        assert_eq!(through.status(), 400);
        assert_eq!(through.status(), direct.status());
        assert_eq!(through.header("content-type"), direct.header("content-type"));
        assert_eq!(through.bytes().await, direct.bytes().await);
    }
}

#[tokio::test]
async fn client_gone_mid_stream_frees_the_engines_slot() {
    let _floor = floor::shared().await;
    let Some(engine) = Engine::start(Model::Tiny).await else { return };
    let (relay, _worker) = serve(engine.address, 1).await;
    for round in 0..5 {
        let mut answer = relay.post(CHAT, endless()).await;
        answer.part().await;
        let waiting = relay.ask(CHAT, endless());
        relay.ops.queued(1).await;
        assert_eq!(engine.busy().await, 1);
        let left = Instant::now();
        drop(answer);
        // The one that waited runs in its place.
        let next = waiting.answer().await;
        assert!(left.elapsed() < FREE_WITHIN, "round {round}: {:?}", left.elapsed());
        drop(next);
        eventually("free slots", async || (engine.busy().await == 0).then_some(())).await;
        assert!(left.elapsed() < FREE_WITHIN * 2, "round {round}: {:?}", left.elapsed());
        relay.ops.settled().await;
    }
}

#[tokio::test]
async fn engine_killed_mid_stream_breaks_the_answer_off() {
    let _floor = floor::shared().await;
    let Some(mut engine) = Engine::start(Model::Tiny).await else { return };
    let (relay, _worker) = serve(engine.address, 1).await;
    let mut answer = relay.post(CHAT, endless()).await;
    answer.part().await;
    engine.program.kill();
    let text = answer.broken().await;
    assert!(!text.contains("[DONE]"), "looks complete: {text}");
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("data: {\"error\"") && last.contains("\"backend_error\""), "{last}");
}
