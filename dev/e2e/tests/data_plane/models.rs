//! Models that come and go.

use std::time::{Duration, Instant};

use dev_backend::{Backend, Config, Phase};
use dev_e2e::client::{CHAT, Ended, ask, chat, chat_for, get};
use dev_e2e::stack::{Relay, Stack, worker, worker_config};
use dev_e2e::{eventually, floor, percentile, soon};
use serde_json::{Value, json};
use tokio::time::sleep;

const ROUNDS: usize = 9;
/// From the moment in which the relay knows that a worker serves the model, to the request's being at the backend.
const RUNS_WITHIN: Duration = Duration::from_millis(10);

/// Returns when the relay first knew of a worker for the model.
async fn served_at(relay: &Relay, model: &str) -> Instant {
    soon("a worker for the model", async {
        while !relay.inner.dispatcher.with_scheduler(|scheduler| scheduler.serves(model)) {
            sleep(Duration::from_micros(100)).await;
        }
        Instant::now()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_for_a_model_that_nobody_serves_runs_when_a_worker_brings_it() {
    let _floor = floor::alone().await;
    let relay = Relay::start("").await;
    let backend = Backend::start(Config { models: Vec::new(), ..Config::default() }).await.unwrap();
    let mut waits = Vec::new();
    for round in 0..ROUNDS {
        let model = format!("model-{round}");
        let asked = relay.ask(CHAT, chat_for(&model, true, &json!({"id": model, "head_delay_ms": 20})));
        relay.ops.queued(1).await;
        let arrival = async {
            backend.wait_phase(&model, Phase::BeforeHead, dev_e2e::LIMIT).await.unwrap();
            Instant::now()
        };
        let mut config = worker_config(&model, &[relay.url()], &backend.url(), 1);
        config.models = vec![model.clone()];
        let (served, arrived, _worker) = tokio::join!(served_at(&relay, &model), arrival, worker(config));
        waits.push(arrived.saturating_duration_since(served));
        assert_eq!(asked.answer().await.stream().await, Ended::Whole(20));
    }
    let median = percentile(&mut waits, 50);
    eprintln!("from a worker's joining to the request at the backend: median {median:?} of {waits:?}");
    assert!(median < RUNS_WITHIN, "{waits:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_worker_offers_follows_its_backend() {
    let _floor = floor::shared().await;
    let stack = Stack::start(1, "queue: {noWorkerTimeoutSeconds: 10}\n").await;
    let (relay, backend) = (&stack.relay, &stack.backend);
    let listed = async || -> Vec<String> {
        let models: Value = ask(relay.address, get("/v1/models")).await.json().await;
        models["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(listed().await, ["m"]);
    let asked = relay.ask(CHAT, chat_for("new", true, &json!({"id": "new", "head_delay_ms": 20})));
    relay.ops.queued(1).await;
    backend.set_models(&["m", "new"]);
    let arrived = async {
        backend.wait_phase("new", Phase::BeforeHead, dev_e2e::LIMIT).await.unwrap();
        Instant::now()
    };
    let (served, arrived) = tokio::join!(served_at(relay, "new"), arrived);
    let wait = arrived.saturating_duration_since(served);
    assert!(wait < RUNS_WITHIN * 10, "{wait:?}");
    assert_eq!(asked.answer().await.stream().await, Ended::Whole(20));
    assert_eq!(listed().await, ["m", "new"]);
    // Gone from the backend: a request finds that out before the next look does.
    backend.set_models(&["new"]);
    let asked = relay.ask(CHAT, chat(false, &json!({})));
    eventually("a list without the model", async || (listed().await == ["new"]).then_some(())).await;
    let answer = asked.answer().await;
    assert!(matches!(answer.status(), 404 | 503), "{}", answer.status());
}

#[tokio::test]
async fn request_for_a_model_that_nobody_brings_is_refused_in_time() {
    let _floor = floor::shared().await;
    let stack = Stack::start(1, "queue: {noWorkerTimeoutSeconds: 1}\n").await;
    let begun = Instant::now();
    let answer = stack.relay.post(CHAT, chat_for("absent", true, &json!({}))).await;
    let waited = begun.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(answer.status(), 503);
    let error = answer.json().await;
    assert_eq!(error["error"]["code"], "no_worker");
    assert!(error["error"]["message"].as_str().unwrap().contains("served are: m"), "{error}");
    assert_eq!(stack.backend.stats().requests, 0);
}
