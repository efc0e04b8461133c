//! Relays and workers in this process.

use std::net::SocketAddr;
use std::sync::Arc;

use dev_backend::{Backend, Config};
use modelrelay_protocol::config::{RelayConfig, WorkerConfig};
use modelrelay_relay::app;
use modelrelay_relay::settings::Live;
use modelrelay_worker::ProxyRules;
use modelrelay_worker::app::Worker;
use modelrelay_worker::settings::{Secret, Settings};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::{Answer, Asked, ask, post};
use crate::ops::Ops;

/// A relay; dropping it ends it at once.
#[derive(Debug)]
pub struct Relay {
    /// Its client port.
    pub address: SocketAddr,
    /// Its operations port.
    pub ops: Ops,
    /// What its parts share.
    pub inner: Arc<app::Relay>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Starts a relay that lets anybody ask and serve, with more settings.
    pub async fn start(yaml: &str) -> Self {
        let text = format!("listen: 127.0.0.1:0\nopsListen: 127.0.0.1:0\n{yaml}");
        let config = RelayConfig::parse_strictly(&text).unwrap();
        let bound = app::bind(Live::fixed(config).unwrap()).await.unwrap();
        let (address, ops) = (bound.client_address().unwrap(), Ops(bound.operations_address().unwrap()));
        let inner = bound.relay();
        let task = tokio::spawn(bound.run(CancellationToken::new(), CancellationToken::new()));
        Self { address, ops, inner, task }
    }

    /// Returns where workers dial in.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Posts to it and waits for the head of the answer.
    pub async fn post(&self, path: &str, body: String) -> Answer {
        ask(self.address, post(path, body)).await
    }

    /// Posts to it without waiting.
    pub fn ask(&self, path: &str, body: String) -> Asked {
        Asked::new(self.address, post(path, body))
    }
}

/// Returns settings of a worker that looks at its backend every second, so that tests need not wait long.
pub fn worker_config(name: &str, relays: &[String], backend: &str, slots: u32) -> WorkerConfig {
    let mut config = WorkerConfig { relay_urls: relays.to_vec(), ..WorkerConfig::default() };
    config.backend_url = backend.to_owned();
    config.max_concurrency = slots;
    config.name = Some(name.to_owned());
    config.health.interval_seconds = 1;
    config
}

/// Starts a worker; dropping it ends it at once.
pub async fn worker(config: WorkerConfig) -> Worker {
    worker_with(config, None).await
}

/// Starts a worker that presents a secret.
pub async fn worker_with(config: WorkerConfig, secret: Option<Secret>) -> Worker {
    // Fails only when another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Worker::start(Settings::new(config, secret, ProxyRules::default()).unwrap()).await.unwrap()
}

/// A stub, a relay, and a worker called `worker` between them, ready.
#[derive(Debug)]
pub struct Stack {
    /// The backend.
    pub backend: Backend,
    /// The relay.
    pub relay: Relay,
    /// The worker.
    pub worker: Worker,
}

impl Stack {
    /// Starts all three, with this many slots and more settings of the relay.
    pub async fn start(slots: u32, yaml: &str) -> Self {
        let backend = Backend::start(Config::default()).await.unwrap();
        let relay = Relay::start(yaml).await;
        let worker = worker(worker_config("worker", &[relay.url()], &backend.url(), slots)).await;
        relay.ops.idle_workers(&["worker"]).await;
        Self { backend, relay, worker }
    }
}
