//! A running stub: its settings, its life, and what tests ask of it.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::serve;
use crate::flavour::{Flavour, Short, View};
use crate::request::{Body, Head};
use crate::script::Script;
use crate::stats::{CloseEvent, Ledger, Overdue, Phase, Stats};

/// Connections that may wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 16_384;
/// Bytes of a request body that are remembered.
const MAX_SEEN_BODY: usize = 1024 * 1024;

/// How a stub starts. All but the address can change while it runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The models it serves; with none it answers for any name.
    pub models: Vec<String>,
    /// The engine it resembles.
    pub flavour: Flavour,
    /// What it does with requests that ask for nothing else.
    pub script: Script,
    /// Slots it reports where its flavour has such figures.
    pub slots: u32,
    /// Requests to remember for [`Backend::requests`].
    pub keep_requests: usize,
}

impl Default for Config {
    /// Any loopback port, one model `m`, the last 1,024 requests remembered.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            models: vec!["m".to_owned()],
            flavour: Flavour::Openai,
            script: Script::default(),
            slots: 4,
            keep_requests: 1024,
        }
    }
}

/// A request on a model route, as the stub saw it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Seen {
    /// Request method.
    pub method: String,
    /// Path and query, as they came.
    pub target: String,
    /// Header names and values in their order.
    pub headers: Vec<(String, String)>,
    /// Length of the body.
    pub length: u64,
    /// CRC32 of the body.
    pub crc32: u32,
    /// The model it named.
    pub model: Option<String>,
    /// The body, when it was kept and is not too long.
    #[serde(skip)]
    pub body: bytes::Bytes,
}

impl Seen {
    pub(crate) fn of(head: &Head, body: &Body, model: Option<&str>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            method: head.method().to_owned(),
            target: head.target().to_owned(),
            headers: head.headers().map(|(name, value)| (name.to_owned(), text(value))).collect(),
            length: body.length,
            crc32: body.crc32,
            model: model.map(str::to_owned),
            body: if body.bytes.len() <= MAX_SEEN_BODY { body.bytes.clone() } else { bytes::Bytes::new() },
        }
    }

    /// Returns the values of a header.
    pub fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// What all connections of a stub share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) ledger: Ledger,
    pub(crate) flavour: Flavour,
    pub(crate) stop: CancellationToken,
    slots: u32,
    keep_requests: usize,
    models: RwLock<Vec<String>>,
    healthy: AtomicBool,
    script: RwLock<Arc<Script>>,
    next: Mutex<VecDeque<Script>>,
    /// Length of `next`, so that the usual request need not lock it.
    next_count: AtomicUsize,
    seen: Mutex<VecDeque<Seen>>,
    reset_all: AtomicBool,
}

const NO_PANIC: &str = "no holder of this lock panics";

impl Shared {
    pub(crate) fn remember(&self, seen: impl FnOnce() -> Seen) {
        if self.keep_requests == 0 {
            return;
        }
        let mut all = self.seen.lock().expect(NO_PANIC);
        if all.len() == self.keep_requests {
            all.pop_front();
        }
        all.push_back(seen());
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect(NO_PANIC).iter().cloned().collect()
    }

    pub(crate) fn next_script(&self) -> Arc<Script> {
        if self.next_count.load(Relaxed) > 0
            && let Some(script) = self.next.lock().expect(NO_PANIC).pop_front()
        {
            self.next_count.fetch_sub(1, Relaxed);
            return Arc::new(script);
        }
        self.script.read().expect(NO_PANIC).clone()
    }

    pub(crate) fn serves(&self, model: &str) -> bool {
        let models = self.models.read().expect(NO_PANIC);
        models.is_empty() || models.iter().any(|other| other == model)
    }

    pub(crate) fn probe(&self, head: &Head) -> Short {
        let models = self.models.read().expect(NO_PANIC);
        let view = View {
            models: &models,
            running: self.ledger.stats().running,
            slots: self.slots,
            healthy: self.healthy.load(Relaxed),
        };
        let answer = if head.method() == "GET" { self.flavour.probe(head.path(), &view) } else { None };
        answer.unwrap_or_else(|| {
            let error = json!({"message": "no such route", "type": "not_found_error", "code": 404});
            (404, "application/json", json!({"error": error}).to_string())
        })
    }

    pub(crate) fn resets_all(&self) -> bool {
        self.reset_all.load(Relaxed)
    }

    pub(crate) fn set_models(&self, models: Vec<String>) {
        *self.models.write().expect(NO_PANIC) = models;
    }

    pub(crate) fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Relaxed);
    }

    pub(crate) fn set_script(&self, script: Script) {
        *self.script.write().expect(NO_PANIC) = Arc::new(script);
    }

    pub(crate) fn push_script(&self, script: Script) {
        self.next.lock().expect(NO_PANIC).push_back(script);
        self.next_count.fetch_add(1, Relaxed);
    }
}

/// A stub that runs until it is dropped or shut down.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Backend {
    /// Starts a stub on the current runtime.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    #[allow(clippy::unused_async, reason = "it needs a runtime around it, which an async signature says")]
    pub async fn start(config: Config) -> io::Result<Self> {
        let Config { listen, models, flavour, script, slots, keep_requests } = config;
        let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A stub may take the port of one that has just ended.
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(BACKLOG)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            ledger: Ledger::default(),
            flavour,
            stop: CancellationToken::new(),
            slots,
            keep_requests,
            models: RwLock::new(models),
            healthy: AtomicBool::new(true),
            script: RwLock::new(Arc::new(script)),
            next: Mutex::default(),
            next_count: AtomicUsize::new(0),
            seen: Mutex::default(),
            reset_all: AtomicBool::new(false),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(accept(listener, shared.clone(), tasks.clone()));
        Ok(Self { addr, shared, tasks })
    }

    /// Returns `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns the figures so far.
    pub fn stats(&self) -> Stats {
        self.shared.ledger.stats()
    }

    /// Returns the remembered requests, oldest first.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.seen()
    }

    /// Returns every close of a client while its request ran, oldest first.
    pub fn closes(&self) -> Vec<CloseEvent> {
        self.shared.ledger.closes()
    }

    /// Replaces the list of models.
    pub fn set_models(&self, models: &[&str]) {
        self.shared.set_models(models.iter().map(|&model| model.to_owned()).collect());
    }

    /// Sets what `/health` says.
    pub fn set_healthy(&self, healthy: bool) {
        self.shared.set_healthy(healthy);
    }

    /// Replaces what requests get that ask for nothing else.
    pub fn set_script(&self, script: Script) {
        self.shared.set_script(script);
    }

    /// Gives the next request without a script of its own this one, once.
    pub fn push_script(&self, script: Script) {
        self.shared.push_script(script);
    }

    /// Waits until exactly `n` requests run.
    ///
    /// # Errors
    /// When that is not so at any moment within the time.
    pub async fn wait_running(&self, n: u64, within: Duration) -> Result<Stats, Overdue> {
        self.wait_stats(&format!("{n} running"), within, |stats| stats.running == n).await
    }

    /// Waits until the figures satisfy `reached`.
    ///
    /// # Errors
    /// When they do not within the time.
    pub async fn wait_stats(
        &self,
        waited_for: &str,
        within: Duration,
        reached: impl Fn(&Stats) -> bool,
    ) -> Result<Stats, Overdue> {
        let look = |ledger: &Ledger| Some(ledger.stats()).filter(&reached);
        self.shared.ledger.wait(within, || waited_for.to_owned(), look).await
    }

    /// Waits until the request `id` has come at least as far as `phase`, and still runs.
    ///
    /// # Errors
    /// When it has not within the time.
    pub async fn wait_phase(&self, id: &str, phase: Phase, within: Duration) -> Result<Phase, Overdue> {
        let look = |ledger: &Ledger| ledger.phase_of(id).filter(|at| *at >= phase);
        self.shared.ledger.wait(within, || format!("{phase:?} of {id:?}"), look).await
    }

    /// Waits until the client of the request `id` has closed its connection.
    ///
    /// # Errors
    /// When it has not within the time.
    pub async fn wait_closed(&self, id: &str, within: Duration) -> Result<CloseEvent, Overdue> {
        let look = |ledger: &Ledger| ledger.close_of(id);
        self.shared.ledger.wait(within, || format!("close of {id:?}"), look).await
    }

    /// Stops listening, closes every connection and waits for the end of all tasks.
    pub async fn shutdown(self) {
        self.shared.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The same, but resets the connections, as a killed process may.
    pub async fn abort(self) {
        self.shared.reset_all.store(true, Relaxed);
        self.shutdown().await;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker) {
    let stop = shared.stop.clone();
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    tasks.spawn(serve(socket, shared.clone()));
                }
                // Out of file descriptors, most likely; those waiting are taken when some are free again.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
}

/// Returns a loopback address on which nothing listens.
///
/// # Errors
/// When no port is free.
pub fn refused_addr() -> io::Result<SocketAddr> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
