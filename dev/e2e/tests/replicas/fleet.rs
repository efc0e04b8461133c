//! Relays, workers and the stub behind each worker.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dev_backend::{Backend, Config};
use dev_e2e::client::{CHAT, Client, Ended, chat, post, try_ask};
use dev_e2e::eventually;
use dev_e2e::link::Link;
use dev_e2e::process::{Program, RelayProcess, SECRET};
use serde_json::{Value, json};

/// What relays of these tests have in common: room for what has to wait, and a drain that load balancers could follow.
pub(crate) const SETTINGS: &str =
    "replicas: 3\ndrain: { delaySeconds: 1, deadlineSeconds: 60 }\nqueue: { maxRequests: 5000 }\n";

/// Starts a worker of these relays, with more settings.
pub(crate) fn start_worker(
    name: &str,
    relays: &[String],
    backend: &str,
    slots: u32,
    more: &Value,
) -> Program {
    Program::start(name, "modelrelay-worker", |command, folder| {
        let mut config = json!({
            "relayUrls": relays, "name": name, "backendUrl": backend, "maxConcurrency": slots,
            "models": ["m"], "health": {"intervalSeconds": 5},
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            config[field] = value.clone();
        }
        fs::write(folder.join("worker.yaml"), config.to_string()).unwrap();
        fs::write(folder.join("secret"), SECRET).unwrap();
        command.env("RUST_LOG", "info").arg("--config").arg(folder.join("worker.yaml"));
        command.arg("--worker-secret-file").arg(folder.join("secret"));
    })
}

/// Everything that runs in one test.
pub(crate) struct Fleet {
    pub(crate) relays: Vec<RelayProcess>,
    pub(crate) workers: Vec<Program>,
    /// One for each worker.
    pub(crate) backends: Vec<Backend>,
    pub(crate) slots: Vec<u32>,
    /// Where workers dial: the relays, or what lies before them.
    pub(crate) ways: Vec<String>,
    _links: Vec<Link>,
}

impl Fleet {
    /// Starts relays and workers with these slots, and waits until everybody has found everybody. With a delay, each way
    /// between a worker and a relay takes so long.
    pub(crate) async fn start(relays: usize, slots: &[u32], one_way: Duration, yaml: &str) -> Self {
        let (mut running, mut links, mut ways) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..relays {
            let relay = RelayProcess::start(yaml).await;
            if one_way.is_zero() {
                ways.push(relay.url());
            } else {
                let link = Link::start(relay.address, one_way).await;
                ways.push(link.url());
                links.push(link);
            }
            running.push(relay);
        }
        let mut fleet = Self {
            relays: running,
            workers: Vec::new(),
            backends: Vec::new(),
            slots: slots.to_vec(),
            ways,
            _links: links,
        };
        for index in 0..slots.len() {
            let config = Config { keep_requests: 0, ..Config::default() };
            fleet.backends.push(Backend::start(config).await.unwrap());
            let worker = fleet.worker(index);
            fleet.workers.push(worker);
        }
        fleet.all_connected().await;
        fleet
    }

    /// Starts the worker of one backend.
    pub(crate) fn worker(&self, index: usize) -> Program {
        let (backend, slots) = (self.backends[index].url(), self.slots[index]);
        start_worker(&format!("worker-{index}"), &self.ways, &backend, slots, &json!({}))
    }

    /// Waits until each relay has a session with each worker, and no slot is on its way.
    pub(crate) async fn all_connected(&self) {
        for relay in &self.relays {
            relay.ops.workers_ready(self.slots.len()).await;
        }
        eventually("all slots are lent", async || {
            let mut free = 0;
            for relay in &self.relays {
                let workers = relay.ops.admin("workers").await;
                free += workers.as_array()?.iter().map(|row| row["free"].as_u64().unwrap()).sum::<u64>();
            }
            (free == self.total()).then_some(())
        })
        .await;
    }

    pub(crate) fn total(&self) -> u64 {
        self.slots.iter().map(|slots| u64::from(*slots)).sum()
    }

    pub(crate) fn address(&self, relay: usize) -> SocketAddr {
        self.relays[relay].address
    }

    /// Requests that run at all backends.
    pub(crate) fn running(&self) -> u64 {
        self.backends.iter().map(|backend| backend.stats().running).sum()
    }

    /// Fails when any backend ever ran more than its worker's slots.
    pub(crate) fn assert_never_over_committed(&self) {
        for (index, (backend, slots)) in self.backends.iter().zip(&self.slots).enumerate() {
            let stats = backend.stats();
            // A worker's slot is free once it has closed the call, which the backend notices a little later.
            assert!(stats.max_open <= u64::from(*slots), "worker {index} of {slots} slots: {stats:?}");
        }
    }
}

/// One request, as its client and its backend saw it. Times are microseconds since the epoch.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) relay: usize,
    pub(crate) sent: u64,
    pub(crate) began: u64,
    pub(crate) ended: u64,
}

/// Asks for a stream that runs this long, and reads it; anything but a whole answer is an error.
pub(crate) async fn serve(address: SocketAddr, relay: usize, runs: Duration) -> Result<Served, String> {
    let script = json!({"chunks": 2, "interval_ms": runs.as_millis() as u64});
    let sent = dev_backend::micros_now();
    let answer =
        try_ask(address, post(CHAT, chat(true, &script))).await.map_err(|error| error.to_string())?;
    if answer.status() != 200 {
        return Err(format!("{:?}", answer.error().await));
    }
    match answer.timed_stream().await {
        (Ended::Whole(2), times) => {
            Ok(Served { relay, sent, began: times[0], ended: *times.last().unwrap() })
        }
        (other, _) => Err(format!("{other:?}")),
    }
}

/// Asks for an answer that takes no time, over a connection that is kept.
pub(crate) async fn ask_at_once(client: &mut Client) -> Duration {
    let begun = Instant::now();
    let answer = client.send(post(CHAT, chat(true, &json!({"chunks": 1})))).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.stream().await, Ended::Whole(1));
    begun.elapsed()
}

/// Draws a time after which the next of many independent clients comes.
pub(crate) fn gap(mean: Duration) -> Duration {
    mean.mul_f64(-(1.0 - rand::random::<f64>()).ln())
}

/// Draws a relay in proportion to these weights.
pub(crate) fn draw(weights: &[u32]) -> usize {
    let mut left = rand::random_range(0..weights.iter().sum());
    weights
        .iter()
        .position(|weight| {
            let found = left < *weight;
            left = left.saturating_sub(*weight);
            found
        })
        .unwrap()
}
