//! A plain v1 worker, which knows one relay only, beside a worker of ours, which knows all.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use dev_backend::{Backend, Config};
use dev_e2e::client::{CHAT, Ended, ask, chat, post};
use dev_e2e::floor;
use dev_e2e::process::{RelayProcess, SECRET};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::fleet::{SETTINGS, start_worker};

/// Serves everything it is asked until the relay closes; returns the types of messages that it got.
async fn plain_worker(relay: SocketAddr, slots: u32) -> BTreeSet<String> {
    let mut request = format!("ws://{relay}/v1/worker/connect?provider=local").into_client_request().unwrap();
    request.headers_mut().insert("x-worker-secret", SECRET.parse().unwrap());
    let stream = TcpStream::connect(relay).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    let register = json!({
        "type": "register", "worker_name": "plain", "models": ["m"], "max_concurrent": slots,
        "protocol_version": "2026-04-bridge-v1",
    });
    socket.send(Message::text(register.to_string())).await.unwrap();
    let mut types = BTreeSet::new();
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        types.insert(message["type"].as_str().unwrap().to_owned());
        let answer = match message["type"].as_str().unwrap() {
            "request" => json!({
                "type": "response_complete", "request_id": message["request_id"], "status_code": 200,
                "body": "plain", "headers": {"content-type": "text/plain"},
            }),
            "ping" => json!({"type": "pong", "current_load": 0}),
            _ => continue,
        };
        socket.send(Message::text(answer.to_string())).await.unwrap();
    }
    types
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_worker_beside_workers_of_ours_works_as_it_always_did() {
    let _floor = floor::shared().await;
    let mut relays = Vec::new();
    for _ in 0..3 {
        relays.push(RelayProcess::start(SETTINGS).await);
    }
    let ways: Vec<String> = relays.iter().map(RelayProcess::url).collect();
    let backend = Backend::start(Config::default()).await.unwrap();
    let _ours = start_worker("ours", &ways, &backend.url(), 1, &json!({}));
    for relay in &relays {
        relay.ops.workers_ready(1).await;
    }
    let plain = tokio::spawn(plain_worker(relays[0].address, 2));
    relays[0].ops.workers_ready(2).await;
    // Many at once everywhere: at its relay both serve, at the others only ours.
    let mut clients = JoinSet::new();
    for n in 0..60 {
        let address = relays[n % 3].address;
        clients.spawn(async move {
            let answer = ask(address, post(CHAT, chat(true, &json!({"chunks": 2, "interval_ms": 5})))).await;
            assert_eq!(answer.status(), 200);
            let worker = answer.worker().to_owned();
            match &*worker {
                "plain" => assert_eq!(answer.bytes().await, b"plain"),
                _ => assert_eq!(answer.stream().await, Ended::Whole(2)),
            }
            (n % 3, worker)
        });
    }
    let served = clients.join_all().await;
    let by_plain =
        |wanted: usize| served.iter().filter(|(relay, worker)| *relay == wanted && worker == "plain").count();
    assert!(by_plain(0) > 0 && by_plain(1) + by_plain(2) == 0, "{served:?}");
    assert_eq!(backend.stats().max_running, 1);
    // Its relay leaves: the others need nothing of it.
    relays[0].program.terminate();
    let types = tokio::time::timeout(Duration::from_secs(20), plain).await.unwrap().unwrap();
    let base = ["register_ack", "request", "cancel", "ping", "graceful_shutdown", "models_refresh"];
    assert!(types.iter().all(|name| base.contains(&&**name)), "{types:?}");
    assert_eq!(relays[0].program.ended().await.code(), Some(0));
    let answer = ask(relays[1].address, post(CHAT, chat(true, &json!({})))).await;
    assert_eq!((answer.worker(), answer.status()), ("ours", 200));
}
