//! `kill -9` of workers, of backends and of relays.

use dev_backend::{Backend, Config, Phase};
use dev_e2e::client::{Asked, CHAT, Client, Ended, MESSAGES, ask, chat, post};
use dev_e2e::process::{RelayProcess, SECRET, StubProcess, start_worker};
use dev_e2e::stack::{Relay, worker, worker_config};
use dev_e2e::{eventually, floor};
use serde_json::{Value, json};

use crate::support::{Api, broken_stream};

#[tokio::test]
async fn worker_killed_before_the_first_byte_costs_the_client_nothing() {
    let _floor = floor::shared().await;
    let relay = Relay::start("").await;
    let (one, two) =
        (Backend::start(Config::default()).await.unwrap(), Backend::start(Config::default()).await.unwrap());
    let mut first = start_worker("first", &relay.url(), &one.url(), 8);
    relay.ops.idle_workers(&["first"]).await;
    let mut asked = Vec::new();
    for (route, stream) in [(CHAT, true), (CHAT, false), (MESSAGES, true), (MESSAGES, false)] {
        for at in ["before_head", "after_head"] {
            // Only the first backend is silent: whoever asks the second gets an answer.
            let id = format!("{route} {stream} {at}");
            one.push_script(serde_json::from_value(json!({"fail": "stall", "at": at, "id": id})).unwrap());
            asked.push((stream, Asked::new(relay.address, post(route, chat(stream, &json!({}))))));
            let phase = if at == "before_head" { Phase::BeforeHead } else { Phase::AfterHead };
            one.wait_phase(&id, phase, dev_e2e::LIMIT).await.unwrap();
        }
    }
    let _second = start_worker("second", &relay.url(), &two.url(), 8);
    relay.ops.workers_ready(2).await;
    first.kill();
    for (stream, asked) in asked {
        let answer = asked.answer().await;
        assert_eq!((answer.status(), answer.worker()), (200, "second"));
        if stream {
            assert_eq!(answer.stream().await, Ended::Whole(20));
        } else {
            assert!(answer.json().await.is_object());
        }
    }
    relay.ops.settled().await;
    relay.ops.idle_workers(&["second"]).await;
    // Its backend heard of the death of its worker as well.
    assert_eq!(one.wait_running(0, dev_e2e::LIMIT).await.unwrap().cancelled, 8);
    assert_eq!((two.stats().requests, two.stats().completed), (8, 8));
}

#[tokio::test]
async fn worker_killed_after_the_first_byte_breaks_the_answer_off() {
    let _floor = floor::shared().await;
    let relay = Relay::start("").await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut doomed = start_worker("doomed", &relay.url(), &backend.url(), 8);
    relay.ops.idle_workers(&["doomed"]).await;
    // Another that could serve them is there: what has begun must not be replayed.
    let _other = start_worker("other", &relay.url(), &backend.url(), 8);
    let mut streams = Vec::new();
    for api in Api::ALL {
        let script = json!({"chunks": 1_000_000, "interval_ms": 5});
        let raw = json!({"answer": "raw", "bytes": 10_000_000, "interval_ms": 5, "fill": "random"});
        for (stream, script) in [(true, script), (false, raw)] {
            let mut answer = ask(relay.address, post(api.route(), chat(stream, &script))).await;
            answer.part().await;
            streams.push((api, stream, answer));
        }
    }
    relay.ops.workers_ready(2).await;
    let on_doomed = streams.iter().filter(|(.., answer)| answer.worker() == "doomed").count();
    assert!(on_doomed > 0);
    doomed.kill();
    for (api, stream, answer) in streams {
        if answer.worker() != "doomed" {
            continue;
        }
        if stream {
            let code = broken_stream(answer, api).await;
            assert_eq!(code, if api == Api::OpenAi { "worker_lost" } else { "api_error" });
        } else {
            assert!(!answer.broken().await.contains("worker_lost"));
        }
    }
    relay.ops.settled().await;
    relay.ops.idle_workers(&["other"]).await;
    assert_eq!(backend.stats().requests, 4);
}

/// Everything that a client may see of a backend that dies and comes back, with nobody else to serve it.
#[tokio::test]
async fn backend_killed_is_an_error_then_no_worker_then_served_again() {
    let _floor = floor::shared().await;
    let relay = Relay::start("queue: {noWorkerTimeoutSeconds: 1}\n").await;
    let mut stub = StubProcess::start("127.0.0.1:0", &json!({})).await;
    let _worker = worker(worker_config("worker", &[relay.url()], &stub.url, 8)).await;
    relay.ops.idle_workers(&["worker"]).await;
    let mut waiting = Vec::new();
    for (stream, at) in [(true, "before_head"), (false, "before_head"), (true, "after_head")] {
        waiting.push(relay.ask(CHAT, chat(stream, &json!({"fail": "stall", "at": at}))));
    }
    let mut streams = Vec::new();
    for api in Api::ALL {
        let script = json!({"chunks": 1_000_000, "interval_ms": 5});
        let mut answer = relay.post(api.route(), chat(true, &script)).await;
        answer.part().await;
        streams.push((api, answer));
    }
    relay.ops.requests(&["dispatched", "dispatched", "dispatched", "streaming", "streaming"]).await;
    // A connection is open from here on: the relay is not what fails below.
    let mut client = Client::connect(relay.address).await.unwrap();
    stub.program.kill();
    for asked in waiting {
        assert_eq!(asked.answer().await.error().await, (502, "backend_error".to_owned()));
    }
    for (api, answer) in streams {
        let code = broken_stream(answer, api).await;
        assert_eq!(code, if api == Api::OpenAi { "backend_error" } else { "api_error" });
    }
    // The first to ask meets a refused connection, unless a probe was faster; then nothing is advertised.
    let answer = client.send(post(CHAT, chat(true, &json!({})))).await.unwrap();
    let first = answer.error().await;
    assert!(matches!((first.0, &*first.1), (502, "backend_error") | (503, "no_worker")), "{first:?}");
    eventually("a worker that is not ready", async || {
        (relay.ops.admin("workers").await[0]["state"] == "not_ready").then_some(())
    })
    .await;
    let answer = relay.post(CHAT, chat(true, &json!({}))).await;
    assert!(answer.header("retry-after").is_some());
    assert_eq!(answer.error().await, (503, "no_worker".to_owned()));
    let models: Value = ask(relay.address, dev_e2e::client::get("/v1/models")).await.json().await;
    assert_eq!(models["data"], json!([]));
    let _again = StubProcess::start(stub.url.trim_start_matches("http://"), &json!({})).await;
    relay.ops.idle_workers(&["worker"]).await;
    assert_eq!(relay.post(CHAT, chat(true, &json!({}))).await.stream().await, Ended::Whole(20));
}

#[tokio::test]
async fn backend_killed_before_the_first_byte_costs_nothing_where_another_serves() {
    let _floor = floor::shared().await;
    for at in ["before_head", "after_head"] {
        let relay = Relay::start("").await;
        let mut stub = StubProcess::start("127.0.0.1:0", &json!({"fail": "stall", "at": at})).await;
        let _first = worker(worker_config("first", &[relay.url()], &stub.url, 8)).await;
        relay.ops.idle_workers(&["first"]).await;
        let asked = [(CHAT, true), (CHAT, false), (MESSAGES, true)]
            .map(|(route, stream)| (stream, relay.ask(route, chat(stream, &json!({})))));
        relay.ops.requests(&["dispatched"; 3]).await;
        let good = Backend::start(Config::default()).await.unwrap();
        let _second = worker(worker_config("second", &[relay.url()], &good.url(), 8)).await;
        relay.ops.workers_ready(2).await;
        stub.program.kill();
        for (stream, asked) in asked {
            let answer = asked.answer().await;
            assert_eq!((answer.status(), answer.worker()), (200, "second"));
            if stream {
                assert_eq!(answer.stream().await, Ended::Whole(20));
            }
        }
        relay.ops.settled().await;
    }
}

/// A relay keeps nothing that a restart would have to bring back: who is connected is the truth.
#[tokio::test]
async fn relay_killed_closes_the_backends_connections_and_is_found_again_by_its_workers() {
    let _floor = floor::shared().await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut relay = RelayProcess::start("").await;
    let _worker = start_worker("worker", &relay.url(), &backend.url(), 4);
    relay.ops.idle_workers(&["worker"]).await;
    let silent = Asked::new(relay.address, post(CHAT, chat(true, &json!({"fail": "stall", "id": "silent"}))));
    backend.wait_phase("silent", Phase::BeforeHead, dev_e2e::LIMIT).await.unwrap();
    let script = json!({"chunks": 1_000_000, "interval_ms": 5});
    let mut stream = ask(relay.address, post(CHAT, chat(true, &script))).await;
    stream.part().await;
    relay.program.kill();
    let text = stream.broken().await;
    assert!(!text.contains("[DONE]"), "looks complete: {text}");
    assert_eq!(backend.wait_running(0, dev_e2e::LIMIT).await.unwrap().cancelled, 2);
    drop(silent);
    let again = RelayProcess::at(relay.address, "", Some(SECRET), "info").await;
    // Its worker dials after some random wait of moments.
    again.ops.idle_workers(&["worker"]).await;
    assert_eq!(ask(again.address, post(CHAT, chat(true, &json!({})))).await.stream().await, Ended::Whole(20));
}
