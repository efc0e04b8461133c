//! Wiring: binds the ports, runs the parts, drains and ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use http::HeaderValue;
use modelrelay_protocol::config::OnRemoval;
use modelrelay_protocol::frame::{Extension, ToWorker};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::dispatch::{BodyBudget, Dispatcher, RunLimits};
use crate::edge::{Edge, EdgeLimits, Shutdown};
use crate::keys::Standing;
use crate::metrics::Metrics;
use crate::replicas;
use crate::scheduler::{Event, SchedulerConfig};
use crate::session::accept::Refusals;
use crate::session::{Close, Session};
use crate::settings::{Live, Settings};
use crate::{admin, http as client_port};

/// How long what has to end may take.
const FORCE_DEADLINE: Duration = Duration::from_secs(5);
/// How long what was told to end now has for what it is writing.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How often replicas are counted where the settings name them. Workers look for a new one when they are told of it, and
/// what is asked of it before waits for them.
const COUNT_EVERY: Duration = Duration::from_secs(2);

/// How far a drain has come.
#[derive(Debug, Default)]
pub struct Drain(AtomicU8);

impl Drain {
    const WORKERS_REFUSED: u8 = 1;
    const REQUESTS_REFUSED: u8 = 2;

    /// Says whether new worker sessions are refused; readiness fails then, too.
    pub fn refuses_workers(&self) -> bool {
        self.0.load(Ordering::Acquire) >= Self::WORKERS_REFUSED
    }

    /// Says whether new requests are refused.
    pub fn refuses_requests(&self) -> bool {
        self.0.load(Ordering::Acquire) >= Self::REQUESTS_REFUSED
    }

    fn advance(&self, to: u8) {
        self.0.fetch_max(to, Ordering::AcqRel);
    }
}

/// What the parts of one relay share.
#[derive(Debug)]
pub struct Relay {
    /// The settings in force.
    pub settings: Arc<Live>,
    /// Requests and workers.
    pub dispatcher: Arc<Dispatcher>,
    /// Bounds all request bodies.
    pub bodies: Arc<BodyBudget>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How far a drain has come.
    pub drain: Drain,
    found: AtomicBool,
    settled_at: Instant,
    /// Names this process to workers; random per start.
    pub replica_header: HeaderValue,
    /// Tasks of worker sessions.
    pub sessions: TaskTracker,
    /// Ends waits of sessions that have not registered.
    pub stop_sessions: CancellationToken,
    /// Slows down whoever presents wrong worker secrets.
    pub refusals: Refusals,
    /// Asks for a drain, as SIGTERM does.
    pub drain_requested: CancellationToken,
}

impl Relay {
    fn new(settings: Arc<Live>) -> Arc<Self> {
        let now = settings.load_full();
        let metrics = Metrics::new();
        let replica = format!("{:016x}", rand::random::<u64>());
        let relay = Self {
            dispatcher: Dispatcher::new(now.scheduler(), run_limits(&now), metrics.clone()),
            found: AtomicBool::new(false),
            settled_at: Instant::now() + now.config.readiness.settle(),
            bodies: BodyBudget::new(now.config.queue.max_bytes.0),
            metrics,
            drain: Drain::default(),
            replica_header: HeaderValue::from_str(&replica).expect("hexadecimal digits are a header value"),
            sessions: TaskTracker::new(),
            stop_sessions: CancellationToken::new(),
            refusals: Refusals::default(),
            drain_requested: CancellationToken::new(),
            settings,
        };
        relay.apply(&now);
        Arc::new(relay)
    }

    /// Puts what does not read the settings by itself in line with them.
    fn apply(&self, settings: &Settings) {
        self.dispatcher.reconfigure(self.scheduler(settings), run_limits(settings));
        self.bodies.set_limit(settings.config.queue.max_bytes.0);
        self.metrics.config(&settings.revision);
        self.metrics.know_models(settings.aliases());
        for entry in settings.credentials.entries() {
            self.metrics.know_models(entry.models());
        }
        for session in self.dispatcher.sessions() {
            self.judge(&session, settings);
        }
    }

    /// Notes that a worker has registered.
    pub fn found_by_worker(&self) {
        self.found.store(true, Ordering::Release);
    }

    /// Says whether workers had the time to find this relay: one has, or none is expected any more.
    pub fn is_settled(&self) -> bool {
        self.found.load(Ordering::Acquire) || Instant::now() >= self.settled_at
    }

    /// Says whether other replicas may serve what this one, which has just started, does not know of yet.
    pub fn may_lack_workers(&self) -> bool {
        self.settings.replicas().get() > 1 && Instant::now() < self.settled_at
    }

    /// Returns what the scheduler has to know. Requests that nobody serves wait until workers had the time to come.
    fn scheduler(&self, settings: &Settings) -> SchedulerConfig {
        let mut config = settings.scheduler();
        if self.may_lack_workers() {
            config.no_worker_timeout = config.no_worker_timeout.max(settings.config.readiness.settle());
        }
        config
    }

    /// Does to a session what the settings say of its credential. Also asked when a worker has registered: the
    /// settings may have changed since it presented its secret.
    pub fn judge(&self, session: &Session, settings: &Settings) {
        let deadline = Instant::now() + settings.config.drain.deadline();
        match settings.credentials.standing(&session.entry()) {
            Standing::Valid(entry) => session.set_entry(entry),
            Standing::Changed => {
                info!(worker = %session.name, "The worker's credential grants something else now");
                self.drain_worker(session, deadline);
            }
            Standing::Withdrawn(OnRemoval::Disconnect) => {
                info!(worker = %session.name, "The worker's credential was withdrawn");
                session.close(Close::Revoked);
            }
            Standing::Withdrawn(OnRemoval::Drain) => {
                info!(worker = %session.name, "The worker's credential was withdrawn: draining it");
                self.drain_worker(session, deadline);
            }
        }
    }

    /// Sends the worker nothing new, and closes its session once nothing runs there.
    fn drain_worker(&self, session: &Session, deadline: Instant) {
        self.dispatcher.worker_event(Event::Draining { worker: session.id });
        session.note_draining(deadline);
    }

    async fn follow_settings(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.settings.subscribe();
        let mut reports = self.settings.subscribe_reports();
        let mut settling = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(self.settled_at), if settling => {
                    settling = false;
                    self.apply(&self.settings.load_full());
                }
                Ok(()) = changes.changed() => {
                    let settings = changes.borrow_and_update().clone();
                    self.apply(&settings);
                }
                Ok(()) = reports.changed() => {
                    let refusals = reports.borrow_and_update().refusals;
                    self.metrics.config_refusals(refusals);
                }
                else => return,
            }
        }
    }
}

impl Relay {
    /// Counts the replicas again and again where the settings name them, and tells the workers what changed.
    async fn follow_replicas(self: Arc<Self>, stop: CancellationToken) {
        let replicas = self.settings.replicas();
        let mut numbers = replicas.subscribe();
        let mut changes = self.settings.subscribe();
        let mut looks = tokio::time::interval(COUNT_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.metrics.replicas(replicas.get());
        let mut fails = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => fails = !self.count_replicas(fails).await,
                Ok(()) = changes.changed() => looks.reset_immediately(),
                Ok(()) = numbers.changed() => {
                    let number = *numbers.borrow_and_update();
                    info!(replicas = number, "The number of replicas changed");
                    self.metrics.replicas(number);
                    // Whether requests wait for workers that are on their way depends on it.
                    self.dispatcher.reconfigure(
                        self.scheduler(&self.settings.load_full()),
                        run_limits(&self.settings.load_full()),
                    );
                    for session in self.dispatcher.sessions() {
                        session.tell_replicas(number);
                    }
                }
                else => return,
            }
        }
    }

    /// Says whether the replicas could be counted, where there is a name to count; of several failures the first is logged.
    async fn count_replicas(&self, failed_before: bool) -> bool {
        let replicas = self.settings.replicas();
        let Some(name) = replicas.name() else { return true };
        match replicas::count(&name).await {
            Ok(number) => replicas.counted(&name, number),
            Err(error) => {
                if !failed_before {
                    let replicas = replicas.get();
                    warn!(name, %error, replicas, "Cannot count the replicas; the last number stands");
                }
                return false;
            }
        }
        true
    }
}

fn run_limits(settings: &Settings) -> RunLimits {
    let timeouts = &settings.config.timeouts;
    RunLimits { first_byte: timeouts.first_byte(), stream_idle: timeouts.stream_idle() }
}

/// A relay whose ports are bound, before anything runs.
#[derive(Debug)]
pub struct Bound {
    relay: Arc<Relay>,
    client: TcpListener,
    operations: TcpListener,
}

/// Binds both ports.
///
/// # Errors
/// A port cannot be bound.
pub async fn bind(settings: Arc<Live>) -> anyhow::Result<Bound> {
    let now = settings.load_full();
    let (listen, ops_listen) = (now.config.listen, now.config.ops_listen);
    let client = listener(listen).with_context(|| format!("bind the client port {listen}"))?;
    let operations =
        listener(ops_listen).with_context(|| format!("bind the operations port {ops_listen}"))?;
    Ok(Bound { relay: Relay::new(settings), client, operations })
}

fn listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket =
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    // A thousand workers that come back at once must not wait for a retransmitted handshake.
    socket.listen(4096)
}

impl Bound {
    /// Returns the address of the client port.
    ///
    /// # Errors
    /// The operating system does not tell.
    pub fn client_address(&self) -> std::io::Result<SocketAddr> {
        self.client.local_addr()
    }

    /// Returns the address of the operations port.
    ///
    /// # Errors
    /// The operating system does not tell.
    pub fn operations_address(&self) -> std::io::Result<SocketAddr> {
        self.operations.local_addr()
    }

    /// Returns what the parts share, for tests.
    pub fn relay(&self) -> Arc<Relay> {
        self.relay.clone()
    }

    /// Serves until `stop`, then drains: whatever runs or waits is finished, up to the deadline of the settings.
    /// `force` ends a drain at once.
    pub async fn run(self, stop: CancellationToken, force: CancellationToken) {
        let Self { relay, client, operations } = self;
        let services = TaskTracker::new();
        let stop_services = CancellationToken::new();
        let (edge_shutdown, ops_shutdown) = (Shutdown::default(), Shutdown::default());
        let connections = TaskTracker::new();
        services.spawn({
            let (dispatcher, stop) = (relay.dispatcher.clone(), stop_services.clone());
            async move { dispatcher.run_timers(stop).await }
        });
        services.spawn(relay.clone().follow_settings(stop_services.clone()));
        services.spawn(relay.clone().follow_replicas(stop_services.clone()));
        services.spawn(relay.settings.clone().follow(stop_services.clone()));
        let now = relay.settings.load_full();
        let ops_edge = Edge::new(operations, EdgeLimits::default());
        services.spawn(ops_edge.run(admin::router(relay.clone()), ops_shutdown.clone(), TaskTracker::new()));
        let edge = Edge::new(client, edge_limits(&now));
        let edge_task = services.spawn(edge.run(
            client_port::service(relay.clone()),
            edge_shutdown.clone(),
            connections.clone(),
        ));
        tokio::select! {
            () = stop.cancelled() => {}
            () = relay.drain_requested.cancelled() => {}
        }
        relay.drain_all(&edge_shutdown, &connections, &force).await;
        edge_shutdown.force.cancel();
        ops_shutdown.force.cancel();
        stop_services.cancel();
        services.close();
        let deadline = Instant::now() + FORCE_DEADLINE;
        if timeout_at(deadline, services.wait()).await.is_err() {
            warn!("Some tasks did not end in time");
        }
        edge_task.abort();
    }
}

fn edge_limits(settings: &Settings) -> EdgeLimits {
    let limits = &settings.config.limits;
    EdgeLimits {
        head_timeout: limits.head_timeout(),
        idle_timeout: limits.idle_timeout(),
        max_headers: limits.max_headers as usize,
        max_head_bytes: usize::try_from(limits.max_head_bytes.0).unwrap_or(usize::MAX),
        ..EdgeLimits::default()
    }
}

impl Relay {
    /// Ends everything in the order that loses nothing.
    async fn drain_all(&self, edge: &Shutdown, connections: &TaskTracker, force: &CancellationToken) {
        let settings = self.settings.load_full();
        let drain = &settings.config.drain;
        let deadline = Instant::now() + drain.deadline();
        info!(deadline_seconds = drain.deadline_seconds, "Draining");
        // New workers go elsewhere; those that are here serve on until the last request is done.
        self.drain.advance(Drain::WORKERS_REFUSED);
        edge.drain.cancel();
        for session in self.dispatcher.sessions().iter().filter(|one| one.extensions.has(Extension::Goaway)) {
            // Spread over the second half of the time, so that their return elsewhere is no storm.
            let spread = rand::random_range(0.5..=1.0);
            let deadline_ms = drain.deadline().mul_f64(spread).as_millis();
            session.send(ToWorker::Goaway { deadline_ms: deadline_ms.try_into().unwrap_or(u64::MAX) });
        }
        let orderly = async {
            // Load balancers learn late: until then requests are admitted as ever.
            tokio::time::sleep(drain.delay()).await;
            self.drain.advance(Drain::REQUESTS_REFUSED);
            edge.close.cancel();
            self.dispatcher.queue_empty().await;
            for session in self.dispatcher.sessions().iter().filter(|one| !one.is_ours()) {
                session.send(ToWorker::GracefulShutdown {
                    reason: Some("the relay is draining".into()),
                    drain_timeout_secs: Some(deadline.saturating_duration_since(Instant::now()).as_secs()),
                });
                // It may leave now: a request that moves later needs somebody else.
                self.drain_worker(session, deadline);
            }
            self.dispatcher.idle().await;
            connections.close();
            connections.wait().await;
        };
        tokio::select! {
            () = orderly => info!("Drained"),
            () = tokio::time::sleep_until(deadline) => warn!("The drain's deadline is over: breaking off what is left"),
            () = force.cancelled() => warn!("Told to end now: breaking off what is left"),
        }
        self.drain.advance(Drain::REQUESTS_REFUSED);
        self.dispatcher.reject_queued();
        self.dispatcher.break_running();
        // The last answers are written before their connections are cut.
        connections.close();
        let _ = timeout(LAST_WORDS, connections.wait()).await;
        for session in self.dispatcher.sessions() {
            if session.extensions.has(Extension::Goaway) {
                session.send(ToWorker::Empty);
            }
            session.close(Close::Done);
        }
        self.stop_sessions.cancel();
        self.sessions.close();
        let forced = async {
            force.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            () = self.sessions.wait() => {}
            () = tokio::time::sleep(FORCE_DEADLINE) => {}
            () = forced => {}
        }
    }
}
