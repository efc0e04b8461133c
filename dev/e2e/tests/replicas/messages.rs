//! What one relay and its worker say to one another: not one message for the sake of relays that are not there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dev_backend::{Backend, Config};
use dev_e2e::client::{CHAT, Client, Ended, chat, post};
use dev_e2e::floor;
use dev_e2e::link::{Direction, Link};
use dev_e2e::process::RelayProcess;
use serde_json::{Value, json};

use crate::fleet::start_worker;

const REQUESTS: usize = 200;

/// Counts the WebSocket frames of one direction by what they are: a text message's type, or `binary`.
fn frames(mut bytes: &[u8]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a handshake") + 4;
    bytes = &bytes[head..];
    while let [first, second, rest @ ..] = bytes {
        let (extra, length) = match second & 0x7f {
            126 => (2, usize::from(u16::from_be_bytes(rest[..2].try_into().unwrap()))),
            127 => (8, usize::try_from(u64::from_be_bytes(rest[..8].try_into().unwrap())).unwrap()),
            short => (0, usize::from(short)),
        };
        let masked = second & 0x80 != 0;
        let key = if masked { &rest[extra..extra + 4] } else { &[0; 4][..] };
        let start = extra + if masked { 4 } else { 0 };
        let payload: Vec<u8> = rest[start..start + length]
            .iter()
            .zip(key.iter().cycle())
            .map(|(byte, key)| byte ^ key)
            .collect();
        let name = match first & 0x0f {
            1 => {
                let message: Value = serde_json::from_slice(&payload).unwrap();
                message["type"].as_str().unwrap().to_owned()
            }
            2 => "binary".to_owned(),
            other => format!("opcode {other}"),
        };
        *counts.entry(name).or_default() += 1;
        bytes = &rest[start + length..];
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_relay_a_request_costs_its_own_frames_and_no_more() {
    let _floor = floor::shared().await;
    let relay = RelayProcess::start("").await;
    let seen: Arc<Mutex<[Vec<u8>; 2]>> = Arc::default();
    let tap = seen.clone();
    let link = Link::with(
        &[relay.address],
        Duration::ZERO,
        Arc::new(move |direction, number, part| {
            assert_eq!(number, 0, "the worker dialled once");
            tap.lock().unwrap()[usize::from(direction == Direction::Back)].extend_from_slice(part);
        }),
    )
    .await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let _worker = start_worker("worker-0", &[link.url()], &backend.url(), 2, &json!({}));
    relay.ops.idle_workers(&["worker-0"]).await;
    let count = || {
        let bytes = seen.lock().unwrap().clone();
        bytes.map(|bytes| frames(&bytes))
    };
    let [mut forth, mut back] = count();
    let mut clients =
        [Client::connect(relay.address).await.unwrap(), Client::connect(relay.address).await.unwrap()];
    for _ in 0..REQUESTS / 2 {
        // Two at once: all slots are in use, and given again.
        for client in &mut clients {
            let script = json!({"answer": "raw", "bytes": 100});
            let answer = client.send(post(CHAT, chat(false, &script))).await.unwrap();
            assert_eq!(answer.bytes().await.len(), 100);
        }
    }
    let answer = clients[0].send(post(CHAT, chat(true, &json!({})))).await.unwrap();
    assert_eq!(answer.stream().await, Ended::Whole(20));
    let [forth_after, back_after] = count();
    let grew =
        |before: &mut BTreeMap<String, usize>, after: BTreeMap<String, usize>| -> BTreeMap<String, usize> {
            after.into_iter().map(|(name, n)| (name.clone(), n - before.remove(&name).unwrap_or(0))).collect()
        };
    let granted = forth.get("grant").copied();
    let (to_relay, to_worker) = (grew(&mut forth, forth_after), grew(&mut back, back_after));
    eprintln!("{} requests: to the relay {to_relay:?}, to the worker {to_worker:?}", REQUESTS + 1);
    assert_eq!(granted, Some(1), "all slots are lent at once");
    assert_eq!(to_worker["binary"], REQUESTS + 1);
    let of_time = ["ping", "pong", "load", "opcode 9", "opcode 10", "binary", "models_update"];
    for (name, n) in to_relay.iter().chain(&to_worker).filter(|(_, n)| **n > 0) {
        assert!(of_time.contains(&name.as_str()), "{n} messages {name:?}");
        assert!(name == "binary" || *n <= 3, "{n} messages {name:?} in a moment");
    }
}
