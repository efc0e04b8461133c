//! Worker credentials, and secrets that never show.

use std::time::{Duration, Instant};

use dev_backend::{Backend, Config};
use dev_e2e::client::{CHAT, Ended, ask, chat, get, post};
use dev_e2e::process::{RelayProcess, start_worker_with};
use dev_e2e::{eventually, floor};
use modelrelay_relay::keys::sha256;
use serde_json::json;

const ONE: &str = "mr_one_5ecre7of0ne5ecre7of0ne5ecre7of0ne5ecre7of0ne5ecre7of0ne";
const TWO: &str = "mr_two_5ecre7of7wo5ecre7of7wo5ecre7of7wo5ecre7of7wo5ecre7of7wo";
const WRONG: &str = "mr_one_wr0ngwr0ngwr0ngwr0ngwr0ngwr0ngwr0ngwr0ngwr0ngwr0ngwr0ng";
const KEY: &str = "mr_client_5ecre7ofclient5ecre7ofclient5ecre7ofclient5ecre7ofcl";

fn credentials(secrets: &[&str]) -> String {
    let entry = |secret: &&str| format!("  - {{sha256: \"{}\"}}\n", sha256(secret).to_hex());
    format!("workerCredentials:\n{}", secrets.iter().map(entry).collect::<String>())
}

#[tokio::test]
async fn credential_taken_from_the_settings_ends_its_workers_session_within_a_second() {
    let _floor = floor::shared().await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = RelayProcess::with(&credentials(&[ONE, TWO]), None, "info").await;
    let start = |name, secret| start_worker_with(name, &relay.url(), &backend.url(), 2, secret, "info");
    let (_one, _two) = (start("one", ONE), start("two", TWO));
    relay.ops.idle_workers(&["one", "two"]).await;
    let script = json!({"chunks": 1_000_000, "interval_ms": 5});
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut answer = ask(relay.address, post(CHAT, chat(true, &script))).await;
        answer.part().await;
        streams.push(answer);
    }
    streams.sort_by_key(|answer| answer.worker().to_owned());
    let [of_one, mut of_two] = <[_; 2]>::try_from(streams).unwrap();
    assert_eq!((of_one.worker(), of_two.worker()), ("one", "two"));
    relay.rewrite(&credentials(&[TWO]));
    let changed = Instant::now();
    eventually("one worker less", async || {
        (relay.ops.admin("workers").await.as_array()?.len() == 1).then_some(())
    })
    .await;
    let gone = changed.elapsed();
    eprintln!("a withdrawn credential's worker is gone after {gone:?}");
    assert!(gone < Duration::from_secs(1), "{gone:?}");
    let code = crate::support::broken_stream(of_one, crate::support::Api::OpenAi).await;
    assert_eq!(code, "worker_lost");
    // The other one's stream never noticed.
    for _ in 0..5 {
        of_two.part().await;
    }
    drop(of_two);
    relay.ops.idle_workers(&["two"]).await;
    // Let in again, it comes back by itself.
    relay.rewrite(&credentials(&[ONE, TWO]));
    relay.ops.idle_workers(&["one", "two"]).await;
}

#[tokio::test]
async fn secrets_show_nowhere() {
    let _floor = floor::shared().await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let settings = format!(
        "{}clientKeys:\n  - {{id: client, sha256: \"{}\"}}\n",
        credentials(&[ONE]),
        sha256(KEY).to_hex()
    );
    let mut relay = RelayProcess::with(&settings, Some(TWO), "trace").await;
    let start = |name, secret| start_worker_with(name, &relay.url(), &backend.url(), 2, secret, "trace");
    let (mut one, mut two, mut wrong) = (start("one", ONE), start("two", TWO), start("wrong", WRONG));
    relay.ops.idle_workers(&["one", "two"]).await;
    relay.program.logged("A worker presented no valid secret").await;
    for (header, value, status) in [
        ("authorization", format!("Bearer {KEY}"), 200),
        ("x-api-key", KEY.to_owned(), 200),
        ("x-api-key", WRONG.to_owned(), 401),
        ("authorization", format!("Basic {KEY}"), 401),
    ] {
        let mut request = post(CHAT, chat(true, &json!({})));
        request.headers_mut().insert(header, value.parse().unwrap());
        let answer = ask(relay.address, request).await;
        assert_eq!(answer.status(), status);
        if status == 200 {
            assert_eq!(answer.stream().await, Ended::Whole(20));
        }
    }
    let metrics = String::from_utf8(ask(relay.ops.0, get("/metrics")).await.bytes().await).unwrap();
    let mut texts = vec![metrics];
    for path in ["workers", "queue", "requests", "config"] {
        texts.push(relay.ops.admin(path).await.to_string());
    }
    for program in [&mut relay.program, &mut one, &mut two, &mut wrong] {
        program.terminate();
        program.ended().await;
        let log = program.log();
        assert!(!log.is_empty());
        texts.push(log);
    }
    let secrets = [ONE, TWO, WRONG, KEY].map(|secret| secret.rsplit('_').next().unwrap());
    for text in &texts {
        for secret in secrets {
            assert!(!text.contains(&secret[..12]), "a secret shows: {text}");
        }
    }
    let seen = format!("{:?}", backend.requests());
    assert!(!seen.contains("5ecre7"), "a client's key went to the backend: {seen}");
}
