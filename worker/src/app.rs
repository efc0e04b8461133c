//! Wiring: starts a worker's tasks, drains them, and what all of them share.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use modelrelay_protocol::codec::FailureCode;
use modelrelay_protocol::config::{HealthConfig, RelayResolve, Sha256Hash};
use modelrelay_protocol::frame::LoadReport;
use modelrelay_protocol::wellknown::ANY_MODEL;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::backend::{Backend, CallError};
use crate::capacity::Capacity;
use crate::connect::{Dialer, RelayUrl};
use crate::health::BackendState;
use crate::metrics::Metrics;
use crate::replicas::Replicas;
use crate::settings::{Secret, Settings};
use crate::{admin, health, reconnect, tls};

/// A relay that does not return its credits holds a drain up no longer.
const RECALL_LIMIT: Duration = Duration::from_secs(2);

/// Requests of a plain v1 relay that crossed the announcement of a drain arrive within this time.
const V1_SETTLE: Duration = Duration::from_millis(300);

/// What is broken off at the drain's deadline has this long to say so, and sessions this long to say goodbye.
const LAST_WORDS: Duration = Duration::from_millis(2500);

/// The first registration waits this long for the first look at the backend, so that it can name models.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// What may change while the worker runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Live {
    /// Models to advertise as they stand; none means what the backend lists.
    pub(crate) models: Vec<String>,
    pub(crate) health: HealthConfig,
    /// The hash of the token for the admin API.
    pub(crate) admin: Option<Sha256Hash>,
    /// Which settings these are.
    pub(crate) revision: String,
    secret: Option<Secret>,
}

/// What the tasks of one worker share.
pub(crate) struct Core {
    pub(crate) name: String,
    pub(crate) provider: String,
    /// Random per start: tells relays which sessions belong together.
    pub(crate) instance: String,
    pub(crate) relays: Vec<RelayUrl>,
    pub(crate) resolve: RelayResolve,
    /// Which replicas are held.
    pub(crate) replicas: Arc<Replicas>,
    /// Addresses of relays that are kept now.
    addresses: AtomicU32,
    pub(crate) dialer: Dialer,
    pub(crate) backend: Backend,
    pub(crate) idle_limit: Option<Duration>,
    pub(crate) drain_limit: Duration,
    pub(crate) capacity: Arc<Capacity>,
    pub(crate) live: watch::Sender<Live>,
    pub(crate) state: watch::Sender<BackendState>,
    /// Whether the backend was looked at yet.
    pub(crate) probed: watch::Sender<bool>,
    /// Asks for a look at the backend.
    pub(crate) look: Notify,
    pub(crate) metrics: Metrics,
    /// Running requests.
    pub(crate) tasks: TaskTracker,
    /// Nothing new is taken.
    pub(crate) drain: CancellationToken,
    /// What still runs is broken off.
    pub(crate) force: CancellationToken,
    /// Sessions say goodbye.
    pub(crate) stop: CancellationToken,
    /// Everything ends at once.
    pub(crate) kill: CancellationToken,
}

impl Core {
    /// Returns the models to announce.
    pub(crate) fn models_shown(&self) -> Vec<String> {
        if self.drain.is_cancelled() { Vec::new() } else { self.state.borrow().models_shown().to_vec() }
    }

    /// Returns the load to announce: all slots while draining or paused, so that nobody sends more.
    pub(crate) fn load_shown(&self) -> u32 {
        let closed = self.drain.is_cancelled() || self.state.borrow().paused.is_some();
        if closed { self.capacity.slots() } else { self.capacity.running() }
    }

    /// Advertises nothing from now on and finishes what runs. A restart forgets it.
    pub(crate) fn pause(&self) {
        let paused = self.state.send_if_modified(|state| {
            let first = state.paused.is_none();
            state.paused.get_or_insert_with(Instant::now);
            first
        });
        if paused {
            info!(running = self.capacity.running(), "Paused: advertising nothing");
        }
    }

    /// Advertises again, once a new look at the backend finds it healthy: it may have been replaced meanwhile.
    pub(crate) fn resume(&self) {
        let resumed = self.state.send_if_modified(|state| {
            let Some(_) = state.paused.take() else { return false };
            state.models.clear();
            state.report = LoadReport { reason: Some(String::from("resuming")), ..LoadReport::default() };
            true
        });
        if resumed {
            info!("Resumed");
            self.look_again();
        }
    }

    /// Counts an address of a relay until the value is dropped.
    pub(crate) fn count_address(&self) -> impl Drop + use<'_> {
        struct Counted<'a>(&'a AtomicU32);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.addresses.fetch_add(1, Ordering::Relaxed);
        Counted(&self.addresses)
    }

    /// Returns how many addresses relays have, as far as that is known: at least as many as were configured.
    pub(crate) fn addresses(&self) -> u32 {
        let configured = u32::try_from(self.relays.len()).unwrap_or(u32::MAX);
        self.addresses.load(Ordering::Relaxed).max(configured)
    }

    /// Returns the secret in force.
    pub(crate) fn secret(&self) -> Option<Secret> {
        self.live.borrow().secret.clone()
    }

    /// Says whether a request for a model may run, else why not.
    pub(crate) fn can_serve(&self, model: &str) -> Result<(), (FailureCode, String)> {
        if self.force.is_cancelled() {
            return Err((FailureCode::Draining, String::from("the worker leaves")));
        }
        let state = self.state.borrow();
        if !state.report.healthy {
            let reason = state.report.reason.clone().unwrap_or_else(|| String::from("backend is not ready"));
            return Err((FailureCode::BackendRefused, reason));
        }
        if state.models.iter().any(|served| served == model || served == ANY_MODEL) {
            return Ok(());
        }
        Err((FailureCode::ModelNotFound, format!("model {model:?} is not served here")))
    }

    /// Asks for a look at the backend, now.
    pub(crate) fn look_again(&self) {
        self.look.notify_one();
    }

    /// A request failed. When nobody listens any more, nothing is advertised until a probe finds the backend back:
    /// the fastest failure must not draw all traffic.
    pub(crate) fn report_failure(&self, error: &CallError) {
        tracing::debug!(code = error.code.as_str(), message = error.message, "A request failed");
        if error.code != FailureCode::BackendRefused {
            return;
        }
        let changed = self.state.send_if_modified(|state| {
            if !state.report.healthy {
                return false;
            }
            state.models.clear();
            state.report = LoadReport { reason: Some(error.message.clone()), ..LoadReport::default() };
            true
        });
        if changed {
            warn!(reason = error.message, "The backend is gone; advertising nothing until it is back");
            self.metrics.backend_healthy.set(0);
            self.metrics.models.set(0);
            self.look_again();
        }
    }

    /// Brings the slots' gauges up to date.
    pub(crate) fn note_slots(&self) {
        let (total, running, lent) =
            (self.capacity.slots(), self.capacity.running(), self.capacity.spendable());
        for (state, count) in [("total", total), ("running", running), ("lent", lent)] {
            self.metrics.slots.with_label_values(&[state]).set(count.into());
        }
    }
}

/// A running worker. Dropping it ends everything at once, as [`Worker::kill`] does.
pub struct Worker {
    core: Arc<Core>,
    services: JoinSet<()>,
    ops_addr: Option<SocketAddr>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("name", &self.core.name).finish_non_exhaustive()
    }
}

impl Worker {
    /// Starts a worker: it dials its relays and watches its backend from now on.
    ///
    /// A rustls crypto provider must be installed in the process.
    ///
    /// # Errors
    /// The operations port cannot be bound, or the authorities cannot be read.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let Settings { config, revision, secret, proxies } = settings;
        let relays = config
            .relay_urls
            .iter()
            .enumerate()
            .map(|(index, url)| url.parse().map_err(|error| anyhow::anyhow!("relayUrls[{index}]: {error}")))
            .collect::<anyhow::Result<Vec<RelayUrl>>>()?;
        let tls = tls::client_config(config.tls.ca_file.as_deref())?;
        let slots = config.max_concurrency;
        let backend = Backend::new(&config.backend_url, slots, config.timeouts.connect(), Arc::clone(&tls))
            .map_err(|error| anyhow::anyhow!("backendUrl: {error}"))?;
        let metrics = Metrics::register(&relays).context("register metrics")?;
        let starting = LoadReport { reason: Some(String::from("starting")), ..LoadReport::default() };
        let core = Arc::new(Core {
            name: config.name.clone().unwrap_or_else(|| String::from("worker")),
            provider: config.provider.clone(),
            instance: format!("{:032x}", rand::random::<u128>()),
            relays,
            resolve: config.relay_resolve,
            replicas: Arc::default(),
            addresses: AtomicU32::new(0),
            dialer: Dialer { tls, proxies },
            backend,
            idle_limit: config.timeouts.idle(),
            drain_limit: config.drain.deadline(),
            capacity: Arc::new(Capacity::new(slots)),
            live: watch::Sender::new(Live {
                models: config.models,
                health: config.health,
                admin: config.admin.sha256,
                revision,
                secret,
            }),
            state: watch::Sender::new(BackendState { report: starting, ..BackendState::default() }),
            probed: watch::Sender::new(false),
            look: Notify::new(),
            metrics,
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            force: CancellationToken::new(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        });
        let mut services = JoinSet::new();
        let mut ops_addr = None;
        if let Some(address) = config.ops_listen {
            let listener = bind(address).await.with_context(|| format!("opsListen: bind {address}"))?;
            ops_addr = Some(listener.local_addr().context("opsListen: local address")?);
            services.spawn(admin::serve(listener, Arc::clone(&core)));
        }
        services.spawn(health::watch(Arc::clone(&core)));
        services.spawn({
            let core = Arc::clone(&core);
            async move { core.backend.sweep_now_and_then().await }
        });
        services.spawn({
            let capacity = Arc::clone(&core.capacity);
            async move { capacity.run_timers().await }
        });
        for index in 0..core.relays.len() {
            let core = Arc::clone(&core);
            services.spawn(async move {
                let mut probed = core.probed.subscribe();
                let _ = tokio::time::timeout(FIRST_LOOK, probed.wait_for(|probed| *probed)).await;
                reconnect::keep(core, index).await;
            });
        }
        info!(name = core.name, slots, "Worker started");
        Ok(Self { core, services, ops_addr })
    }

    /// Returns where the operations port listens.
    pub fn ops_addr(&self) -> Option<SocketAddr> {
        self.ops_addr
    }

    /// Returns the registry of this worker's metrics.
    pub fn registry(&self) -> Registry {
        self.core.metrics.registry.clone()
    }

    /// Puts changed settings in force, as far as that goes without a restart: models, health, the secret.
    pub fn reload(&self, settings: Settings) {
        self.core.metrics.reload_failed.set(0);
        let Settings { config, revision, secret, proxies: _ } = settings;
        if config.max_concurrency != self.core.capacity.slots() {
            warn!("A changed maxConcurrency counts after a restart");
        }
        let live = Live {
            models: config.models,
            health: config.health,
            admin: config.admin.sha256,
            revision,
            secret,
        };
        let changed = self.core.live.send_if_modified(|old| {
            let changed = *old != live;
            *old = live;
            changed
        });
        if changed {
            info!("Changed settings are in force");
        }
    }

    /// Notes that a changed file cannot be used.
    pub fn reload_failed(&self) {
        self.core.metrics.reload_failed.set(1);
    }

    /// Leaves: tells the relays, finishes what runs until the drain's deadline, says goodbye.
    pub async fn shutdown(mut self) {
        let core = Arc::clone(&self.core);
        let begun = Instant::now();
        info!(running = core.capacity.running(), "Draining");
        core.drain.cancel();
        core.capacity.withdraw();
        if tokio::time::timeout(core.drain_limit, quiet(&core, begun)).await.is_err() {
            warn!(
                running = core.capacity.running(),
                "The drain's deadline is over; breaking off what still runs"
            );
            core.force.cancel();
            let _ = tokio::time::timeout(LAST_WORDS, quiet(&core, begun)).await;
        }
        // A job gives its slot back just before its last frame: the goodbye must not overtake that.
        core.tasks.close();
        let _ = tokio::time::timeout(LAST_WORDS, core.tasks.wait()).await;
        core.stop.cancel();
        let goodbyes = async {
            while self.services.len() > self.endless() && self.services.join_next().await.is_some() {}
        };
        let _ = tokio::time::timeout(LAST_WORDS, goodbyes).await;
        info!(seconds = begun.elapsed().as_secs(), "Left");
        self.kill().await;
    }

    /// Ends everything at once: connections drop without a word.
    pub async fn kill(mut self) {
        self.core.kill.cancel();
        self.services.shutdown().await;
        self.core.tasks.close();
        // Their sessions are gone, which ends them at their next poll.
        let _ = tokio::time::timeout(LAST_WORDS, self.core.tasks.wait()).await;
    }

    /// Counts the services that never end by themselves: the probe, the slots' timers and the operations port.
    fn endless(&self) -> usize {
        2 + usize::from(self.ops_addr.is_some())
    }
}

/// Binds. `[::]` stands for every address of this machine, also where its kernel has no IPv6.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// Waits until nothing runs and nothing can come.
async fn quiet(core: &Core, begun: Instant) {
    let settled = begun + if core.capacity.has_fixed() { V1_SETTLE } else { Duration::ZERO };
    let given_up = begun + RECALL_LIMIT;
    loop {
        // Made before the look, so that what happens in between is not missed.
        let changed = core.capacity.changed.notified();
        let now = Instant::now();
        let credits_back = core.capacity.spendable() == 0 || now >= given_up;
        if core.capacity.running() == 0 && credits_back && now >= settled {
            return;
        }
        let look = if now < settled { settled } else { given_up.max(now + Duration::from_millis(1)) };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(look), if now < given_up => {}
        }
    }
}
