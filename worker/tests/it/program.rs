//! The program itself: settings, exit status, signals, the operations port.

use std::process::Stdio;

use dev_backend::{Backend, Config};
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::{Relay, config, within, worker};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelrelay-worker"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What the operations port answers, head and body.
pub(crate) async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", tcp.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn bad_settings_end_with_status_2_and_one_line_that_names_the_field() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("worker.yaml");
    std::fs::write(&file, "{relayUrls: ['http://r'], maxConcurency: 3}").unwrap();
    for check in [true, false] {
        let mut command = program();
        command.arg("--config").arg(&file);
        if check {
            command.arg("--check-config");
        }
        let output = within("the end", command.output()).await.unwrap();
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("maxConcurency: unknown field, expected one of"), "{text}");
    }
}

#[tokio::test]
async fn good_settings_pass_the_check() {
    let mut command = program();
    command.args(["--check-config", "--relay-url", "https://relay.example.com", "--max-concurrency", "8"]);
    let output = within("the end", command.output()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn sigterm_drains_and_ends_with_status_0_and_no_secret_in_the_log() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let child = program()
        .env("PROXY_URL", relay.url())
        .env("WORKER_SECRET", "top-s3cret")
        .env("BACKEND_URL", backend.url())
        .env("WORKER_NAME", "boxed")
        .env("RUST_LOG", "trace")
        .spawn()
        .unwrap();
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    assert_eq!(session.headers["x-worker-secret"], "top-s3cret");
    session.models(&["m"]).await;
    session.request(1, &json!({ "model": "m", "messages": [{ "content": "my prompt" }] })).await;
    assert_eq!(session.response(1).await.status, 200);
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    session.text("draining").await;
    session.send(json!({ "type": "return", "n": 1 })).await;
    assert_eq!(u16::from(session.closed().await.code), 1000);
    let output = within("the end", child.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("Registered"), "{log}");
    assert!(!log.contains("top-s3cret") && !log.contains("my prompt"), "{log}");
}

#[tokio::test]
async fn a_changed_file_is_put_in_force_and_a_bad_one_is_not() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("worker.yaml");
    let write = |models: &str| {
        let (relay, backend) = (relay.url(), backend.url());
        std::fs::write(
            &file,
            format!("{{relayUrls: ['{relay}'], backendUrl: '{backend}', models: {models}}}"),
        )
        .unwrap();
    };
    write("[m]");
    let _child = program().arg("--config").arg(&file).spawn().unwrap();
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    write("[m, m]");
    write("[m, n]");
    session.models(&["m", "n"]).await;
}

#[tokio::test]
async fn a_rotated_secret_is_used_for_the_next_connection() {
    let relay = Relay::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "old\n").unwrap();
    let mut command = program();
    command.env("RELAY_URL", relay.url()).arg("--worker-secret-file").arg(&file);
    let _child = command.spawn().unwrap();
    let presented = async |relay: &Relay| {
        let mut session = relay.accept().await;
        session.text("register").await;
        let reason = CloseFrame { code: 1008.into(), reason: "withdrawn".into() };
        session.send_raw(Message::Close(Some(reason))).await;
        session.headers["x-worker-secret"].clone()
    };
    assert_eq!(presented(&relay).await, "old");
    std::fs::write(&file, "new\n").unwrap();
    within("the new secret", async { while presented(&relay).await != "new" {} }).await;
}

#[tokio::test]
async fn the_operations_port_tells_life_readiness_and_figures() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let mut config = config(&relay.url(), &backend.url());
    config.ops_listen = Some("127.0.0.1:0".parse().unwrap());
    let worker = worker(config).await;
    let address = worker.ops_addr().unwrap();
    assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    session.request(1, &json!({ "model": "m" })).await;
    session.response(1).await;
    let text = get(address, "/metrics").await;
    for line in [
        "modelrelay_worker_own_slots{state=\"total\"} 4",
        "modelrelay_worker_own_slots{state=\"lent\"} 4",
        "modelrelay_worker_backend_healthy 1",
        "modelrelay_worker_models 1",
        "modelrelay_worker_backend_first_byte_seconds_count 1",
        "modelrelay_worker_backend_duration_seconds_count 1",
        "modelrelay_worker_jobs_total{outcome=\"answered\"} 1",
        "modelrelay_worker_jobs_running 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    worker.kill().await;
}
