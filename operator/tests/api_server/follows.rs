//! How soon settings follow what users do, and a running relay its settings; and that neither they nor anything else that is
//! told on the way holds a secret.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Pod, Secret};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use modelrelay_operator::generated::sha256;
use modelrelay_operator::naming::NUDGE;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::pool::Rig;
use crate::pool_pods::{pods, runs};
use crate::relay::process::Relay;
use crate::support::{LIMIT, eventually, plane};

/// The middle one of so many rounds counts: each is alone with its promise, the machine is not.
const ROUNDS: usize = 3;
const PROMISED: Duration = Duration::from_secs(1);

/// What took how long: until settings were written and the pod was nudged, and then until the relay ran with them.
struct Took {
    what: &'static str,
    written: Duration,
    in_force: Duration,
}

/// A relay whose pod runs, and what its kubelet does.
struct Site<'a> {
    rig: &'a Rig,
    relay: Relay,
    pod: String,
    token: String,
    all: Vec<Took>,
}

impl Site<'_> {
    /// Does something, and waits until the settings are as wanted and in force.
    async fn follow(
        &mut self,
        what: &'static str,
        act: impl AsyncFnOnce(),
        wanted: impl AsyncFn(&str) -> bool,
    ) {
        act().await;
        let began = Instant::now();
        let settings = within(what, async || {
            let settings = self.rig.secret("main-relay-settings", "relay.yaml").await;
            if !wanted(&settings).await {
                return None;
            }
            let nudge = format!("{}.", &sha256(&settings).to_hex()[..16]);
            let pod = self.rig.place.api::<Pod>().get(&self.pod).await.unwrap();
            pod.annotations().get(NUDGE)?.starts_with(&nudge).then_some(settings)
        })
        .await;
        let written = began.elapsed();
        self.relay.update(&settings);
        let began = Instant::now();
        let revision = sha256(&settings).to_hex();
        within(what, async || {
            let report = self.rig.context.ops.config(self.relay.address, 8081, &self.token).await.ok()?;
            revision.starts_with(&report.revision).then_some(())
        })
        .await;
        self.all.push(Took { what, written, in_force: began.elapsed() });
    }

    /// The middle one of the durations of each kind of change.
    fn medians(&self, of: impl Fn(&Took) -> Duration) -> Vec<(&'static str, Duration)> {
        let mut kinds: Vec<&'static str> = self.all.iter().map(|took| took.what).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let median = |what| {
            let mut all: Vec<_> = self.all.iter().filter(|took| took.what == what).map(&of).collect();
            assert_eq!(all.len(), ROUNDS);
            all.sort_unstable();
            (what, all[ROUNDS / 2])
        };
        kinds.into_iter().map(median).collect()
    }
}

/// Looks more often than [`eventually`], since the time counts.
async fn within<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "{what}: not within {} s", LIMIT.as_secs());
        sleep(Duration::from_millis(10)).await;
    }
}

async fn aliases(rig: &Rig, models: &Value) {
    let merge = json!({ "spec": { "models": models } });
    let relays = rig.place.api::<ModelRelay>();
    relays.patch("main", &PatchParams::default(), &Patch::Merge(&merge)).await.unwrap();
}

async fn key(rig: &Rig, name: &str, data: &Value) {
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name, "labels": { "modelrelay.io/client-key": "main" } },
        "stringData": data,
    });
    rig.place.apply::<Secret>(&secret).await;
}

async fn delete_secret(rig: &Rig, name: &str) {
    rig.place.api::<Secret>().delete(name, &DeleteParams::default()).await.unwrap();
}

fn with_keys_and_boxes() -> Value {
    json!({
        "replicas": 1,
        "clientAuth": { "type": "APIKeys" },
        "exposure": { "externalURL": "https://relay.example.com" },
    })
}

fn outside() -> Value {
    json!({ "relayRef": { "name": "main" }, "type": "External" })
}

#[tokio::test]
async fn settings_follow_within_a_second_and_a_running_relay_within_one_more() {
    let Some(rig) = Rig::new("follows").await else { return };
    let operator = rig.place.operator();
    rig.relay(with_keys_and_boxes()).await;
    rig.pool(outside()).await;
    let join_is_in = async |settings: &str, old: Option<&str>| {
        let Ok(Some(join)) = rig.place.api::<Secret>().get_opt("gpu-join").await else { return false };
        let token = String::from_utf8(join.data.unwrap()["token"].0.clone()).unwrap();
        old != Some(token.as_str()) && settings.contains(&sha256(&token).to_hex())
    };
    let settings = eventually("the settings", async || {
        let secret = rig.place.api::<Secret>().get_opt("main-relay-settings").await.unwrap()?;
        let settings = String::from_utf8(secret.data?["relay.yaml"].0.clone()).unwrap();
        join_is_in(&settings, None).await.then_some(settings)
    })
    .await;
    let Some(relay) = Relay::start(&settings).await else { return };
    let pod = eventually("the pod", async || pods(&rig, "relay").await.into_values().next()).await;
    runs(&rig, &pod, relay.address).await;
    let token = rig.secret("main-relay-admin", "token").await;
    let mut site = Site { rig: &rig, relay, pod: pod.name_any(), token, all: Vec::new() };

    let hash = sha256("mr_app_1").to_hex();
    for round in 0..ROUNDS {
        let (alias, tenant) = (format!("alias-{round}"), format!("team-{round}"));
        let models = json!([{ "name": alias, "targets": [{ "model": "m" }] }]);
        let act = async || aliases(&rig, &models).await;
        site.follow("an alias is changed", act, async |settings| settings.contains(&alias)).await;

        let act = async || key(&rig, "app", &json!({ "key": "mr_app_1" })).await;
        site.follow("a key is created", act, async |settings| settings.contains(&hash)).await;
        let granted = json!({ "key": "mr_app_1", "tenant": tenant, "requestsPerMinute": "100" });
        let act = async || key(&rig, "app", &granted).await;
        site.follow("a key is changed", act, async |settings| settings.contains(&tenant)).await;
        let act = async || delete_secret(&rig, "app").await;
        site.follow("a key is deleted", act, async |settings| !settings.contains(&hash)).await;

        let old = rig.secret("gpu-join", "token").await;
        let act = async || delete_secret(&rig, "gpu-join").await;
        let new_one_is_in = async |settings: &str| join_is_in(settings, Some(&old)).await;
        site.follow("a join credential is rotated", act, new_one_is_in).await;
        let joined = sha256(&rig.secret("gpu-join", "token").await).to_hex();
        let act = async || {
            rig.place.api::<WorkerPool>().delete("gpu", &DeleteParams::default()).await.unwrap();
        };
        site.follow("a pool is deleted", act, async |settings| !settings.contains(&joined)).await;
        // Without a garbage collector's help its Secret would be taken for a new pool's.
        eventually("the pool's Secret to go", async || {
            rig.place.api::<Secret>().get_opt("gpu-join").await.unwrap().is_none().then_some(())
        })
        .await;
        let act = async || drop(rig.pool(outside()).await);
        site.follow("a pool is added", act, async |settings| join_is_in(settings, None).await).await;
    }
    for (what, took) in site.medians(|took| took.written) {
        assert!(took < PROMISED, "{what}: settings and nudge after {took:?}");
    }
    for (what, took) in site.medians(|took| took.in_force) {
        assert!(took < PROMISED, "{what}: in force at the relay after {took:?}");
    }
    operator.stop().await;
}

#[tokio::test]
async fn no_secret_is_in_settings_status_events_or_logs() {
    let Some(rig) = Rig::new("secrets").await else { return };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut operator = Command::new(env!("CARGO_BIN_EXE_modelrelay-operator"))
        .args(["--namespaces", rig.place.name(), "--lease-namespace", rig.place.name()])
        .args(["--ops-listen", "127.0.0.1:0"])
        .env("KUBECONFIG", plane().unwrap().kubeconfig())
        .env_remove("POD_NAMESPACE")
        .env("RUST_LOG", "modelrelay_operator=trace,info")
        .stdin(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // One good key, one that cannot be read, and one whose id is taken.
    let keys = ["mr_app_plainsecret", "mrapp_plainsecret", "mr_app_plainsecret2"];
    for (number, text) in keys.iter().enumerate() {
        key(&rig, &format!("app-{number}"), &json!({ "key": text, "tenant": "team" })).await;
    }
    rig.relay(with_keys_and_boxes()).await;
    rig.pool(outside()).await;
    let mut secrets = vec![String::from("plainsecret")];
    let token = eventually("the join Secret", async || {
        let join = rig.place.api::<Secret>().get_opt("gpu-join").await.unwrap()?;
        String::from_utf8(join.data?["token"].0.clone()).ok()
    })
    .await;
    delete_secret(&rig, "gpu-join").await;
    let settings = eventually("the new token's hash", async || {
        let join = rig.place.api::<Secret>().get_opt("gpu-join").await.unwrap()?;
        let new = String::from_utf8(join.data?["token"].0.clone()).unwrap();
        let settings = rig.place.api::<Secret>().get_opt("main-relay-settings").await.unwrap()?;
        let settings = String::from_utf8(settings.data?["relay.yaml"].0.clone()).unwrap();
        (new != token && settings.contains(&sha256(&new).to_hex())).then_some((settings, new))
    })
    .await;
    let (settings, new) = settings;
    secrets.extend([token, new, rig.secret("main-relay-admin", "token").await]);
    let events = eventually("both bad keys are told of", async || {
        let events = rig.place.api::<Event>().list(&ListParams::default()).await.unwrap().items;
        let of = |name: &str| events.iter().any(|event| event.involved_object.name.as_deref() == Some(name));
        (of("app-1") && of("app-2")).then(|| serde_json::to_string(&events).unwrap())
    })
    .await;
    let relay = rig.place.api::<ModelRelay>().get("main").await.unwrap();
    let pool = rig.place.api::<WorkerPool>().get("gpu").await.unwrap();
    let status = serde_json::to_string(&(&relay.status, &pool.status)).unwrap();
    assert!(status.contains("InvalidClientKey"), "{status}");
    operator.kill().await.unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.is_empty());
    for (what, text) in [("settings", settings), ("status", status), ("events", events), ("log", log)] {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{what}: {text}");
        }
    }
}
