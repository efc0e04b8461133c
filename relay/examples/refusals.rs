//! How long the relay takes to refuse a client, by what is wrong with its key: the times must not tell which keys exist.
//!
//! ```sh
//! cargo run --release -p modelrelay-relay --example refusals
//! ```
//!
//! A relay with a thousand keys answers one client on one connection, which presents each kind in turn, so that whatever
//! else the machine does falls on all of them alike. Printed are the median of each kind, and how far the medians of
//! tenths of the run lie apart for one and the same kind: differences below that are noise.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use std::fmt::Write as _;
use std::time::Duration;

use modelrelay_protocol::config::RelayConfig;
use modelrelay_relay::app;
use modelrelay_relay::keys::sha256;
use modelrelay_relay::settings::Live;
use rand::seq::SliceRandom as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const KEYS: usize = 1000;
const WARM_UP: usize = 2_000;
const ROUNDS: usize = 50_000;
const PARTS: usize = 10;
/// What a client may present; all but the first are as long as each other.
const KINDS: [(&str, &str); 4] = [
    ("no key", ""),
    ("not of the form of a key", "sk-key500-0123456789abcdef0123456789abcdef"),
    ("an unknown id", "mr_keyfive_0123456789abcdef0123456789abcde"),
    ("a known id, a wrong secret", "mr_key0500_0123456789abcdef0123456789abcde"),
];

fn settings() -> String {
    let mut yaml = String::from(
        "listen: 127.0.0.1:0\nopsListen: 127.0.0.1:0\nclientAuth: { type: APIKeys }\nclientKeys:\n",
    );
    for number in 0..KEYS {
        let id = format!("key{number:04}");
        let hash = sha256(&format!("mr_{id}_fedcba9876543210fedcba9876543210")).to_hex();
        writeln!(yaml, "  - {{ id: {id}, sha256: {hash}, tenant: team }}").unwrap();
    }
    yaml
}

fn request(key: &str) -> Vec<u8> {
    let key = if key.is_empty() { String::new() } else { format!("authorization: Bearer {key}\r\n") };
    format!("GET /v1/models HTTP/1.1\r\nhost: relay\r\n{key}\r\n").into_bytes()
}

/// Asks, and returns how long the whole answer took.
async fn ask(tcp: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> Duration {
    let began = Instant::now();
    tcp.write_all(request).await.unwrap();
    let mut filled = 0;
    loop {
        let read = tcp.read(&mut buffer[filled..]).await.unwrap();
        assert!(read > 0, "the relay closed the connection");
        filled += read;
        let text = std::str::from_utf8(&buffer[..filled]).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            let took = began.elapsed();
            assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
            return took;
        }
    }
}

fn median(times: &[Duration]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2].as_secs_f64() * 1e6
}

#[tokio::main]
async fn main() {
    let config = RelayConfig::parse_strictly(&settings()).unwrap();
    let bound = app::bind(Live::fixed(config).unwrap()).await.unwrap();
    let address = bound.client_address().unwrap();
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "it ends with the handle")]
    let _relay = AbortOnDropHandle::new(tokio::spawn(bound.run(stop.clone(), stop.clone())));

    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let requests = KINDS.map(|(_, key)| request(key));
    let mut times = KINDS.map(|_| Vec::with_capacity(ROUNDS));
    let mut buffer = vec![0; 8192];
    let mut order = [0, 1, 2, 3];
    for round in 0..WARM_UP + ROUNDS {
        // In any order: an answer may be sooner or later after some other one.
        order.shuffle(&mut rand::rng());
        for kind in order {
            let took = ask(&mut tcp, &requests[kind], &mut buffer).await;
            if round >= WARM_UP {
                times[kind].push(took);
            }
        }
    }
    println!("median time to a 401 of {ROUNDS} requests each, a relay with {KEYS} keys");
    for ((name, _), times) in KINDS.iter().zip(&times) {
        let parts: Vec<f64> = times.chunks(ROUNDS / PARTS).map(median).collect();
        let (low, high) =
            parts.iter().fold((f64::MAX, 0_f64), |(low, high), one| (low.min(*one), high.max(*one)));
        println!("  {name:28} {:6.2} µs  (tenths {low:.2} to {high:.2})", median(times));
    }
}
