//! Limits of client keys, of which each relay holds its part.

use std::time::Duration;

use dev_e2e::client::{Answer, CHAT, ask, chat, post};
use dev_e2e::floor;
use modelrelay_relay::keys::sha256;
use serde_json::json;

use crate::fleet::{Fleet, SETTINGS};

fn key(tenant: &str) -> String {
    format!("mr_{tenant}_0fthe7ests0fthe7ests0fthe7ests0fthe7ests0fthe7ests0f")
}

fn entry(tenant: &str, limit: &str) -> String {
    let sha256 = sha256(&key(tenant)).to_hex();
    format!("  - {{ id: {tenant}, sha256: \"{sha256}\", {limit} }}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_three_relays_admits_its_third_of_a_limit_rounded_up_and_one_at_least() {
    let _floor = floor::shared().await;
    let keys = [
        entry("four", "maxConcurrentRequests: 4"),
        entry("lone", "maxConcurrentRequests: 1"),
        entry("rate", "requestsPerMinute: 4"),
    ];
    let yaml = format!("{SETTINGS}clientKeys:\n{}", keys.concat());
    let fleet = Fleet::start(3, &[12, 12], Duration::ZERO, &yaml).await;
    let request = |tenant: &str, script: serde_json::Value| {
        let mut request = post(CHAT, chat(true, &script));
        request.headers_mut().insert("x-api-key", key(tenant).parse().unwrap());
        request
    };
    let endless = json!({"chunks": 1_000_000, "interval_ms": 100});
    let refused = async |answer: Answer| {
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.error().await, (429, "rate_limited".into()));
    };
    let mut held = Vec::new();
    for relay in 0..3 {
        let address = fleet.address(relay);
        for (tenant, part) in [("four", 2), ("lone", 1)] {
            for _ in 0..part {
                let mut answer = ask(address, request(tenant, endless.clone())).await;
                assert_eq!(answer.status(), 200, "{tenant} at relay {relay}");
                answer.part().await;
                held.push(answer);
            }
            refused(ask(address, request(tenant, endless.clone())).await).await;
        }
        for _ in 0..2 {
            let answer = ask(address, request("rate", json!({"chunks": 1}))).await;
            assert_eq!(answer.status(), 200, "at relay {relay}");
        }
        refused(ask(address, request("rate", json!({"chunks": 1}))).await).await;
    }
    assert_eq!(held.len(), 9);
}
