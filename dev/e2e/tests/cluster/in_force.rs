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
/// How often each kind of change is measured; their median counts, since two cores carry all nodes.
const ROUNDS: usize = 3;
/// The key of the client that asks.
const KEPT: &str = "mr_kept_1";

fn key(name: &str, round: usize) -> String {
    format!("mr_{name}-{round}_1")
}

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

/// Writes times, in seconds, and returns their median.
fn told(times: &mut [Duration], table: &mut String, what: &str) -> Duration {
    let seconds: Vec<_> = times.iter().map(|time| format!("{:.2}", time.as_secs_f64())).collect();
    *table += &format!("  {what}: {} s\n", seconds.join(", "));
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_is_in_force_on_every_relay_pod_within_seconds_and_replaces_none() {
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "in-force");
    let changing: Vec<_> =
        (0..ROUNDS).flat_map(|round| ["limited", "revoked"].map(|name| key(name, round))).collect();
    let keys = || changing.iter().map(String::as_str).chain([KEPT]);
    let mut objects: Vec<_> = keys().map(|key| key_secret(key, &json!({}))).collect();
    objects.extend([relay(&json!({})), Site::stub_pool("first", "m", 8)]);
    site.apply(&objects);
    site.ready("workerpools", "first");
    site.ready("modelrelays", "main");
    let relays = RelayPod::ready(&site, 2);
    for relay in &relays {
        for key in keys() {
            assert_eq!(relay.chat(key, "m").await, 200);
        }
        assert!(!knows(relay, KEPT, "alias-0").await && !takes(relay, "other-0").await);
    }

    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..ROUNDS {
        let (alias, pool) = (format!("alias-{round}"), format!("other-{round}"));
        let (limited, revoked) = (key("limited", round), key("revoked", round));
        let models = json!({ "models": [{ "name": alias, "targets": [{ "model": "m" }] }] });
        times[0].push(
            measure(
                &relays,
                || site.apply(&[relay(&models)]),
                async |relay| knows(relay, KEPT, &alias).await && relay.chat(KEPT, &alias).await == 200,
            )
            .await,
        );
        times[1].push(
            measure(
                &relays,
                || site.apply(&[key_secret(&limited, &json!({ "requestsPerMinute": "1" }))]),
                async |relay| relay.chat(&limited, "m").await == 429,
            )
            .await,
        );
        times[2].push(
            measure(
                &relays,
                || site.apply(&[Site::stub_pool(&pool, &pool, 8)]),
                async |relay| takes(relay, &pool).await,
            )
            .await,
        );
        times[3].push(
            measure(
                &relays,
                || site.delete("secrets", &format!("revoked-{round}")),
                async |relay| relay.chat(&revoked, "m").await == 401,
            )
            .await,
        );
    }
    let mut table = "from `kubectl apply` to in force on every relay pod:\n".to_owned();
    let kinds = ["an alias", "a limit", "a new pool", "a revoked key"];
    let medians = [0, 1, 2, 3].map(|kind| told(&mut times[kind], &mut table, kinds[kind]));
    // Not by a macro: what those print is shown for failed tests only.
    std::io::stderr().write_all(table.as_bytes()).unwrap();
    assert!(medians.iter().all(|took| *took <= PROMISED), "{table}");

    site.ready("workerpools", "other-0");
    for relay in &relays {
        assert_eq!(relay.chat(KEPT, "other-0").await, 200);
    }
    let uids = |relays: &[RelayPod]| relays.iter().map(|relay| relay.uid.clone()).collect::<Vec<_>>();
    assert_eq!(uids(&RelayPod::ready(&site, 2)), uids(&relays), "no pod is replaced");
}
