//! The worker's metrics, in a registry of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use modelrelay_protocol::codec::FailureCode;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::connect::RelayUrl;

/// From a cached embedding to a long answer.
const LATENCY_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];

const CLOSE_BUCKETS: [f64; 9] = [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.025, 0.1, 1.0];

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With the backend's answer, whatever its status.
    Answered,
    /// Without a whole answer.
    Failed(FailureCode),
    /// Because the relay said so.
    Cancelled,
    /// With its session.
    Lost,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed(code) => code.as_str(),
            Self::Cancelled => "cancelled",
            Self::Lost => "session_lost",
        }
    }
}

/// Where the connection to a relay stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RelayState {
    Connecting,
    Connected,
    Disconnected,
}

impl RelayState {
    const ALL: [Self; 3] = [Self::Connecting, Self::Connected, Self::Disconnected];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
        }
    }
}

/// How one configured relay stands: attempts to connect, and open sessions.
#[derive(Clone, Debug)]
pub(crate) struct WayGauges {
    states: [IntGauge; 3],
    sessions: IntGauge,
    counts: Arc<[AtomicU32; 2]>,
}

/// Something that counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    gauges: WayGauges,
    what: usize,
}

impl WayGauges {
    const DIALS: usize = 0;
    const SESSIONS: usize = 1;

    fn new(states: [IntGauge; 3], sessions: IntGauge) -> Self {
        let this = Self { states, sessions, counts: Arc::default() };
        this.show();
        this
    }

    /// An attempt to connect begins.
    pub(crate) fn dials(&self) -> Counted {
        self.count(Self::DIALS)
    }

    /// A session was accepted.
    pub(crate) fn opens(&self) -> Counted {
        self.count(Self::SESSIONS)
    }

    fn count(&self, what: usize) -> Counted {
        self.counts[what].fetch_add(1, Ordering::Relaxed);
        self.show();
        Counted { gauges: self.clone(), what }
    }

    fn show(&self) {
        let [dials, sessions] = [&self.counts[0], &self.counts[1]].map(|n| n.load(Ordering::Relaxed));
        self.sessions.set(sessions.into());
        let now = match (sessions, dials) {
            (1.., _) => RelayState::Connected,
            (0, 1..) => RelayState::Connecting,
            (0, 0) => RelayState::Disconnected,
        };
        for (gauge, state) in self.states.iter().zip(RelayState::ALL) {
            gauge.set((state == now).into());
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauges.counts[self.what].fetch_sub(1, Ordering::Relaxed);
        self.gauges.show();
    }
}

/// All metrics of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    ways: Vec<WayGauges>,
    pub(crate) slots: IntGaugeVec,
    running: IntGauge,
    jobs: IntCounterVec,
    answered: IntCounter,
    pub(crate) backend_healthy: IntGauge,
    pub(crate) models: IntGauge,
    pub(crate) first_byte: Histogram,
    pub(crate) total: Histogram,
    cancel_close: Histogram,
    pub(crate) reload_failed: IntGauge,
}

impl Metrics {
    /// Registers everything; relays are labelled by their configured addresses.
    pub(crate) fn register(relays: &[RelayUrl]) -> prometheus::Result<Self> {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let gauge = |name, help| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let gauges = |name, help, labels: &[&str]| -> prometheus::Result<IntGaugeVec> {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok(gauges)
        };
        let histogram = |name, help, buckets: &[f64]| -> prometheus::Result<Histogram> {
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let states = gauges(
            "modelrelay_worker_relay_connection",
            "1 for the state in which the connection to a relay is.",
            &["relay", "state"],
        )?;
        let sessions = gauges(
            "modelrelay_worker_relay_sessions",
            "Open sessions by this address: one for each replica behind it.",
            &["relay"],
        )?;
        let ways = relays.iter().map(|relay| {
            let relay = relay.to_string();
            let state = |state: RelayState| states.with_label_values(&[relay.as_str(), state.as_str()]);
            WayGauges::new(RelayState::ALL.map(state), sessions.with_label_values(&[relay.as_str()]))
        });
        let ways = ways.collect();
        let jobs = IntCounterVec::new(
            Opts::new("modelrelay_worker_jobs_total", "Requests that ended, by how."),
            &["outcome"],
        )?;
        registry.register(Box::new(jobs.clone()))?;
        gauges("modelrelay_worker_build_info", "1, with the version as a label.", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Ok(Self {
            ways,
            slots: gauges("modelrelay_worker_own_slots", "Slots, by what they are doing.", &["state"])?,
            running: gauge("modelrelay_worker_jobs_running", "Requests that run now.")?,
            answered: jobs.with_label_values(&[Outcome::Answered.as_str()]),
            jobs,
            backend_healthy: gauge("modelrelay_worker_backend_healthy", "1 while the backend is healthy.")?,
            models: gauge("modelrelay_worker_models", "Models that are advertised.")?,
            first_byte: histogram(
                "modelrelay_worker_backend_first_byte_seconds",
                "From asking the backend to the first byte of its answer's body.",
                &LATENCY_BUCKETS,
            )?,
            total: histogram(
                "modelrelay_worker_backend_duration_seconds",
                "From asking the backend to the end of its answer.",
                &LATENCY_BUCKETS,
            )?,
            cancel_close: histogram(
                "modelrelay_worker_cancel_close_seconds",
                "From a relay's cancel to the closed connection to the backend.",
                &CLOSE_BUCKETS,
            )?,
            reload_failed: gauge(
                "modelrelay_worker_config_reload_failed",
                "1 while a changed settings file cannot be used.",
            )?,
            registry,
        })
    }

    /// Returns the gauges of one configured relay.
    pub(crate) fn way(&self, relay: usize) -> WayGauges {
        self.ways[relay].clone()
    }

    /// Says whether any relay is connected.
    pub(crate) fn any_connected(&self) -> bool {
        self.ways.iter().any(|way| way.sessions.get() > 0)
    }

    /// Counts a job as running until the value is dropped or told how the job ended.
    pub(crate) fn job_started(&self) -> RunningJob {
        self.running.inc();
        RunningJob { metrics: self.clone(), outcome: Outcome::Lost }
    }

    /// A cancel closed its connection to the backend after this time.
    pub(crate) fn cancelled(&self, after: Duration) {
        self.cancel_close.observe(after.as_secs_f64());
    }

    fn ended(&self, outcome: Outcome) {
        self.running.dec();
        if outcome == Outcome::Answered {
            self.answered.inc();
        } else {
            self.jobs.with_label_values(&[outcome.as_str()]).inc();
        }
    }
}

/// A job that counts as running.
pub(crate) struct RunningJob {
    metrics: Metrics,
    outcome: Outcome,
}

impl RunningJob {
    /// Notes how it ended.
    pub(crate) fn ended(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        self.metrics.ended(self.outcome);
    }
}
