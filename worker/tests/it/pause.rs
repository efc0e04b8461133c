//! Pausing a worker on its operations port, and who may do so.

use std::net::SocketAddr;
use std::time::Duration;

use dev_backend::{Backend, Config, Phase};
use modelrelay_protocol::config::Sha256Hash;
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use modelrelay_worker::app::Worker;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{LIMIT, Relay, Session, config, within, worker};

/// The SHA-256 of `abc`.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// Sends a request to the admin API and returns the answer's status and JSON.
async fn ask(address: SocketAddr, request: &str, headers: &str) -> (u16, Value) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let (method, path) = request.split_once(' ').unwrap();
    let request = format!("{method} /admin/v1{path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", tcp.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}

async fn ask_locally(address: SocketAddr, request: &str) -> Value {
    let (status, body) = ask(address, request, "host: localhost\r\n").await;
    assert_eq!(status, 200);
    body
}

/// Asks for the status until it is as wanted.
async fn until(address: SocketAddr, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = async {
        loop {
            let status = ask_locally(address, "GET /status").await;
            if wanted(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(what, found).await
}

async fn connected() -> (Backend, Session, Worker, SocketAddr) {
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let mut config = config(&relay.url(), &backend.url());
    config.ops_listen = Some("127.0.0.1:0".parse().unwrap());
    let worker = worker(config).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    let address = worker.ops_addr().unwrap();
    (backend, session, worker, address)
}

#[tokio::test]
async fn a_paused_worker_advertises_nothing_and_finishes_what_runs() {
    let (backend, mut session, worker, address) = connected().await;
    let status = ask_locally(address, "GET /status").await;
    assert_eq!(
        (&status["paused"], &status["idle"], &status["models"]),
        (&json!(false), &json!(false), &json!(["m"]))
    );
    let stub = json!({ "id": "a", "chunks": 3, "head_delay_ms": 3000 });
    session.request(1, &json!({ "model": "m", "stream": true, "stub": stub })).await;
    backend.wait_phase("a", Phase::BeforeHead, LIMIT).await.unwrap();

    let status = ask_locally(address, "POST /pause").await;
    assert_eq!(
        (&status["paused"], &status["idle"], &status["running"]),
        (&json!(true), &json!(false), &json!(1))
    );
    assert_eq!((&status["models"], &status["backend"]["models"]), (&json!([]), &json!(["m"])));
    session.models(&[]).await;
    while session.text("load").await["reason"] != "paused" {}
    // A request that crossed the announcement is served like the one that runs.
    session.request(2, &json!({ "model": "m" })).await;
    assert_eq!(session.response(2).await.status, 200);
    let answer = session.response(1).await;
    assert!(answer.body.ends_with(b"[DONE]\n\n"));
    let status = until(address, "the worker to be idle", |status| status["idle"] == true).await;
    assert_eq!(status["running"], 0);

    ask_locally(address, "POST /resume").await;
    session.models(&["m"]).await;
    session.request(3, &json!({ "model": "m" })).await;
    assert_eq!(session.response(3).await.status, 200);
    worker.kill().await;
}

#[tokio::test]
async fn a_worker_that_resumes_looks_at_its_backend_before_it_advertises() {
    let (backend, mut session, worker, address) = connected().await;
    ask_locally(address, "POST /pause").await;
    session.models(&[]).await;
    backend.set_healthy(false);
    ask_locally(address, "POST /resume").await;
    // The paused worker had said the same: only the report changes.
    while session.text("load").await["reason"] == "paused" {}
    let status = until(address, "a look", |status| status["backend"]["reason"] != "resuming").await;
    assert_eq!(
        (&status["paused"], &status["models"], &status["backend"]["healthy"]),
        (&json!(false), &json!([]), &json!(false))
    );
    backend.set_healthy(true);
    session.models(&["m"]).await;
    worker.kill().await;
}

#[tokio::test]
async fn the_admin_api_needs_the_token_whose_hash_the_settings_have() {
    let relay = Relay::start().await;
    let mut config = config(&relay.url(), "http://127.0.0.1:1");
    config.ops_listen = Some("127.0.0.1:0".parse().unwrap());
    config.admin.sha256 = Some(ABC.parse::<Sha256Hash>().unwrap());
    let worker = worker(config).await;
    let address = worker.ops_addr().unwrap();
    for (headers, expected) in [
        ("host: localhost\r\n", 401),
        ("host: localhost\r\nauthorization: Bearer abd\r\n", 401),
        ("host: localhost\r\nauthorization: Basic abc\r\n", 401),
        ("host: worker\r\nauthorization: Bearer abc\r\n", 200),
    ] {
        for request in ["GET /status", "POST /pause", "POST /resume"] {
            assert_eq!(ask(address, request, headers).await.0, expected, "{request} {headers}");
        }
    }
    worker.kill().await;
}

#[tokio::test]
async fn an_operations_port_on_all_addresses_answers_without_ipv6_as_well() {
    let relay = Relay::start().await;
    let mut config = config(&relay.url(), "http://127.0.0.1:1");
    config.ops_listen = Some("[::]:0".parse().unwrap());
    let worker = worker(config).await;
    let address = SocketAddr::from(([127, 0, 0, 1], worker.ops_addr().unwrap().port()));
    assert!(crate::program::get(address, "/livez").await.ends_with("ok"));
    // That is not loopback only, so the admin API is closed.
    assert_eq!(ask(address, "GET /status", "host: localhost\r\n").await.0, 401);
    worker.kill().await;
}

#[tokio::test]
async fn without_a_token_only_this_machine_may_ask_and_under_its_own_name() {
    let (_backend, _session, worker, address) = connected().await;
    for (host, expected) in
        [("localhost", 200), ("127.0.0.1:8082", 200), ("[::1]", 200), ("rebound.example.com", 401)]
    {
        let (status, _) = ask(address, "GET /status", &format!("host: {host}\r\n")).await;
        assert_eq!(status, expected, "{host}");
    }
    worker.kill().await;
}
