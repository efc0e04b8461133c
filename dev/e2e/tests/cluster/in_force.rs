//! From `kubectl apply` to in force: every relay pod, asked at its own address, does what was written, and none is replaced.

use std::io::Write as _;
use std::time::{Duration, Instant};

use dev_e2e::client::{ask, get};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::support::{LIMIT, RelayPod, Site, bearing, suite};

/// What is promised, the run of kubectl included.
const PROMISED: Duration = Duration::from_secs(3);
const INTERVAL: Duration = Duration::from_millis(10);
/// The keys: of the client that asks, of one that gets a limit, and of one who is shut out.
const KEYS: [&str; 3] = ["mr_kept_1", "mr_limited_1", "mr_revoked_1"];

fn key_secret(key: &str, more: &Value) -> Value {
    let mut data = json!({ "key": key });
    data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let name = key.split('_').nth(1).unwrap();
    json!({
        "apiVersion": "v1", "kind": "Secret", "stringData": data,
        "metadata": { "name": name, "labels": { "modelrelay.io/client-key": "main" } },
    })
}

fn relay(more: &Value) -> Value {
    let mut spec = json!({ "replicas": 2, "clientAuth": { "type": "APIKeys" } });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Site::relay("main", &spec)
}

async fn knows(relay: &RelayPod, key: &str, model: &str) -> bool {
    ask(relay.client, bearing(get(&format!("/v1/models/{model}")), key)).await.status() == 200
}

/// Whether a relay takes workers of a pool.
async fn takes(relay: &RelayPod, pool: &str) -> bool {
    let config = relay.admin("config").await;
    let credentials = config["config"]["workerCredentials"].as_array().map_or(&[][..], Vec::as_slice);
    credentials.iter().any(|entry| entry["pool"] == pool)
}

/// Makes a change, and measures from its begin until every relay does as it says.
async fn measure(
    relays: &[RelayPod],
    change: impl FnOnce(),
    in_force: impl AsyncFn(&RelayPod) -> bool,
) -> Duration {
    let start = Instant::now();
    change();
    let followed = relays.iter().map(async |relay| {
        while !in_force(relay).await {
            sleep(INTERVAL).await;
        }
    });
    timeout(LIMIT, join_all(followed)).await.expect("every relay follows in the end");
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_is_in_force_on_every_relay_pod_within_seconds_and_replaces_none() {
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "in-force");
    let [kept, limited, revoked] = KEYS;
    let mut objects = KEYS.map(|key| key_secret(key, &json!({}))).to_vec();
    objects.extend([relay(&json!({})), Site::stub_pool("first", "m", 8)]);
    site.apply(&objects);
    site.ready("workerpools", "first");
    site.ready("modelrelays", "main");
    let relays = RelayPod::ready(&site, 2);
    for relay in &relays {
        for key in KEYS {
            assert_eq!(relay.chat(key, "m").await, 200);
        }
        assert!(!knows(relay, kept, "alias").await && !takes(relay, "second").await);
    }

    let alias = json!({ "models": [{ "name": "alias", "targets": [{ "model": "m" }] }] });
    let alias = measure(
        &relays,
        || site.apply(&[relay(&alias)]),
        async |relay| knows(relay, kept, "alias").await && relay.chat(kept, "alias").await == 200,
    )
    .await;
    let limit = measure(
        &relays,
        || site.apply(&[key_secret(limited, &json!({ "requestsPerMinute": "1" }))]),
        async |relay| relay.chat(limited, "m").await == 429,
    )
    .await;
    let pool = measure(
        &relays,
        || site.apply(&[Site::stub_pool("second", "n", 8)]),
        async |relay| takes(relay, "second").await,
    )
    .await;
    let revocation = measure(
        &relays,
        || site.delete("secrets", "revoked"),
        async |relay| relay.chat(revoked, "m").await == 401,
    )
    .await;
    let table = format!(
        "from `kubectl apply` to in force on every relay pod: an alias {:.2} s, a limit {:.2} s, a new pool {:.2} s, \
         a revoked key {:.2} s\n",
        alias.as_secs_f64(),
        limit.as_secs_f64(),
        pool.as_secs_f64(),
        revocation.as_secs_f64(),
    );
    // Not by a macro: what those print is shown for failed tests only.
    std::io::stderr().write_all(table.as_bytes()).unwrap();
    assert!([alias, limit, pool, revocation].iter().all(|took| *took <= PROMISED), "{table}");

    site.ready("workerpools", "second");
    for relay in &relays {
        assert_eq!(relay.chat(kept, "n").await, 200);
    }
    let uids = |relays: &[RelayPod]| relays.iter().map(|relay| relay.uid.clone()).collect::<Vec<_>>();
    assert_eq!(uids(&RelayPod::ready(&site, 2)), uids(&relays), "no pod is replaced");
}
