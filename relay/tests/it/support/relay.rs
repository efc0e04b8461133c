//! A relay in this process, and settings files that it follows.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use modelrelay_protocol::config::RelayConfig;
use modelrelay_relay::app::{self, Relay};
use modelrelay_relay::keys::sha256;
use modelrelay_relay::settings::{Given, Live, Source};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Answer, Asked, Client, eventually, request, soon};

/// A relay in this process.
pub struct TestRelay {
    pub client: SocketAddr,
    pub operations: SocketAddr,
    pub relay: Arc<Relay>,
    pub stop: CancellationToken,
    pub force: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestRelay {
    /// A relay that lets anybody ask and serve unless the settings say otherwise.
    pub async fn start(yaml: &str) -> Self {
        let text = format!("listen: 127.0.0.1:0\nopsListen: 127.0.0.1:0\n{yaml}");
        let config = RelayConfig::parse_strictly(&text).unwrap();
        Self::with(Live::fixed(config).unwrap()).await
    }

    /// A relay that follows a settings file.
    pub async fn follow(file: &SettingsFile) -> Self {
        Self::with(file.live()).await
    }

    pub async fn with(live: Arc<Live>) -> Self {
        let bound = app::bind(live).await.unwrap();
        let (client, operations) = (bound.client_address().unwrap(), bound.operations_address().unwrap());
        let relay = bound.relay();
        let (stop, force) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(bound.run(stop.clone(), force.clone()));
        Self { client, operations, relay, stop, force, task }
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(request("POST", path, &[], body)).await
    }

    pub async fn send(&self, request: http::Request<Full<Bytes>>) -> Answer {
        soon("an answer", Client::connect(self.client).await.send(request)).await
    }

    /// Sends a request without waiting for its answer.
    pub fn ask(&self, path: &str, body: impl Into<Bytes>) -> Asked {
        self.ask_with(request("POST", path, &[], body))
    }

    pub fn ask_with(&self, request: http::Request<Full<Bytes>>) -> Asked {
        Asked::new(self.client, request)
    }

    /// Answers a request of the operations port.
    pub async fn operate(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut client = Client::connect(self.operations).await;
        soon("operations", client.send(request(method, path, headers, ""))).await
    }

    /// Returns what the admin API says.
    pub async fn admin(&self, path: &str) -> Value {
        let host = self.operations.to_string();
        self.operate("GET", path, &[("host", &host)]).await.json().await
    }

    pub async fn metrics(&self) -> String {
        let answer = self.operate("GET", "/metrics", &[]).await;
        String::from_utf8(answer.body().await.unwrap().to_vec()).unwrap()
    }

    /// Returns one sample of a scrape, by its name and labels as the scrape writes them; 0 when it is absent.
    pub async fn metric(&self, sample: &str) -> f64 {
        let text = self.metrics().await;
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a sample has this value.
    pub async fn until_metric(&self, sample: &str, value: f64) {
        let same = async {
            while (self.metric(sample).await - value).abs() > f64::EPSILON {
                tokio::task::yield_now().await;
            }
        };
        soon(sample, same).await;
    }

    /// Waits until this many requests wait in the queue.
    pub async fn queued(&self, n: usize) {
        eventually(&format!("{n} in the queue"), || {
            let waiting = self.relay.dispatcher.with_scheduler(|scheduler| scheduler.counts().waiting);
            (waiting == n).then_some(())
        })
        .await;
    }

    /// Waits until this many workers are connected.
    pub async fn workers(&self, n: usize) {
        eventually(&format!("{n} workers"), || (self.relay.dispatcher.sessions().len() == n).then_some(()))
            .await;
    }

    /// Waits until nothing waits, runs or is held.
    pub async fn settled(&self) {
        eventually("nothing is left over", || {
            let idle = self.relay.dispatcher.is_idle() && self.relay.bodies.held() == 0;
            let sessions = self.relay.dispatcher.sessions();
            let counts = self.relay.dispatcher.with_scheduler(|scheduler| scheduler.counts());
            let nothing = counts.waiting == 0 && counts.waiting_bytes == 0 && counts.running == 0;
            (idle && nothing && sessions.iter().all(|session| session.running() == 0)).then_some(())
        })
        .await;
    }

    /// Waits until the relay's own `run` has returned.
    pub async fn ended(&mut self) {
        soon("the end of the relay", &mut self.task).await.unwrap();
    }

    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

/// A settings file in a folder of its own.
pub struct SettingsFile {
    folder: TempDir,
}

impl SettingsFile {
    pub fn new(yaml: &str) -> Self {
        let file = Self { folder: TempDir::new().unwrap() };
        file.write(yaml);
        file
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("relay.yaml")
    }

    pub fn write(&self, yaml: &str) {
        let text = format!("listen: 127.0.0.1:0\nopsListen: 127.0.0.1:0\n{yaml}");
        std::fs::write(self.path(), text).unwrap();
    }

    fn live(&self) -> Arc<Live> {
        let config_file = Some(Given { value: self.path(), origin: "--config" });
        Live::start(Source { config_file, ..Source::default() }).unwrap()
    }

    /// An entry of `clientKeys` for a key.
    pub fn key(key: &str, more: &str) -> String {
        let id = modelrelay_relay::keys::key_id(key).unwrap();
        format!("  - {{ id: {id}, sha256: \"{}\"{more} }}\n", sha256(key).to_hex())
    }

    /// An entry of `workerCredentials` for a secret.
    pub fn credential(secret: &str, more: &str) -> String {
        format!("  - {{ sha256: \"{}\"{more} }}\n", sha256(secret).to_hex())
    }
}
