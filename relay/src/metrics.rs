//! What the relay counts. One registry per relay, no globals; labels come from enums and configuration, never from
//! what a client sent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use modelrelay_protocol::frame::{CancelReason, TokenCounts};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::dispatch::{BodyBudget, Dispatcher, Place};
use crate::settings::DEFAULT_PRIORITY;

/// Models with a label of their own, at most; the rest are counted as `other`.
const MAX_MODEL_LABELS: usize = 1000;

/// Buckets for waiting and whole requests, in seconds: OpenTelemetry's for GenAI durations, up to minutes.
const LONG: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68];
/// Buckets for first tokens, in seconds: OpenTelemetry's.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0,
    120.0, 300.0,
];
/// Buckets for times of our own, in seconds.
const SHORT: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0,
];
/// Buckets for token counts: OpenTelemetry's.
const TOKENS: &[f64] =
    &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0];

/// How a request ended, for `modelrelay_requests_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client got the backend's whole answer.
    Ok,
    /// The client left first.
    ClientGone,
    /// Refused before a worker had it.
    Rejected,
    /// A worker had it, and the answer is an error of ours or broke off.
    Failed,
}

impl Outcome {
    /// Returns the label and the log field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientGone => "client_gone",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
        }
    }
}

/// Who ended a request before its answer was whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The client left.
    Client,
    /// A limit of time passed.
    Timeout,
    /// The relay's own drain was over.
    Shutdown,
    /// The relay did not want this answer: the request moved, or its stream broke a rule.
    Relay,
}

impl Origin {
    /// Tells it from what the worker is told.
    pub fn of(reason: &CancelReason) -> Self {
        match reason {
            CancelReason::ClientDisconnect => Self::Client,
            CancelReason::Timeout => Self::Timeout,
            CancelReason::ServerShutdown => Self::Shutdown,
            CancelReason::GracefulShutdown
            | CancelReason::WorkerDisconnect
            | CancelReason::RequeueExhausted
            | CancelReason::Other(_) => Self::Relay,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Timeout => "timeout",
            Self::Shutdown => "shutdown",
            Self::Relay => "relay",
        }
    }
}

/// What came of a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// No worker had the request.
    Queued,
    /// The worker closed its call to the engine and said so.
    Acknowledged,
    /// The worker had ended the request before it read the cancel.
    Ended,
    /// A plain v1 worker, which does not say.
    Unacknowledged,
    /// The session ended first.
    SessionLost,
}

impl Cancelled {
    fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Acknowledged => "acknowledged",
            Self::Ended => "ended",
            Self::Unacknowledged => "unacknowledged",
            Self::SessionLost => "session_lost",
        }
    }
}

/// All metrics of one relay.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    models: Mutex<BTreeSet<Arc<str>>>,
    /// `modelrelay_requests_total`
    pub requests: IntCounterVec,
    /// `modelrelay_queue_duration_seconds`
    pub queue_duration: HistogramVec,
    /// `gen_ai_server_request_duration_seconds`
    pub request_duration: HistogramVec,
    /// `gen_ai_server_time_to_first_token_seconds`
    pub first_token: HistogramVec,
    /// `gen_ai_client_operation_time_to_first_chunk_seconds`
    pub first_chunk: HistogramVec,
    /// `gen_ai_client_operation_time_per_output_chunk_seconds`
    pub per_chunk: HistogramVec,
    /// `gen_ai_client_token_usage`
    pub token_usage: HistogramVec,
    /// `modelrelay_overhead_seconds{leg="admission"}`
    pub overhead_admission: Histogram,
    /// `modelrelay_overhead_seconds{leg="dispatch"}`
    pub overhead_dispatch: Histogram,
    /// `modelrelay_overhead_seconds{leg="answer"}`
    pub overhead_answer: Histogram,
    requeues: IntCounterVec,
    cancellations: IntCounterVec,
    wasted_tokens: IntCounterVec,
    /// `modelrelay_cancel_ack_seconds`
    pub cancel_ack: Histogram,
    /// `modelrelay_worker_failures_total`
    pub worker_failures: IntCounterVec,
    /// `modelrelay_worker_reconnects_total`
    pub worker_sessions_ended: IntCounterVec,
    /// `modelrelay_late_frames_total`
    pub late_frames: IntCounter,
    /// `modelrelay_unknown_messages_total`
    pub unknown_messages: IntCounter,
    /// `modelrelay_tenant_requests_total`
    pub tenant_requests: IntCounterVec,
    /// `modelrelay_tenant_tokens_total`
    pub tenant_tokens: IntCounterVec,
    config_errors: IntCounter,
    worker_rtt: HistogramVec,
    requests_running: IntGaugeVec,
    queue_size: IntGaugeVec,
    queue_bytes: IntGaugeVec,
    queue_utilization: Gauge,
    body_bytes: Gauge,
    workers: IntGaugeVec,
    worker_slots: IntGaugeVec,
    config_info: IntGaugeVec,
    replicas: Gauge,
}

impl Metrics {
    /// Registers everything in a registry of its own.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let r = &registry;
        let overhead = histograms(
            r,
            "modelrelay_overhead_seconds",
            "Time of the relay itself, waiting for workers, engines and clients excluded.",
            SHORT,
            &["leg"],
        );
        let this = Self {
            models: Mutex::default(),
            requests: counters(
                r,
                "modelrelay_requests_total",
                "Requests by how they ended.",
                &["model", "api", "outcome", "code"],
            ),
            queue_duration: histograms(
                r,
                "modelrelay_queue_duration_seconds",
                "Time from admission to dispatch, or to the end for requests that were never dispatched.",
                LONG,
                &["outcome"],
            ),
            request_duration: histograms(
                r,
                "gen_ai_server_request_duration_seconds",
                "Time from a request's head to the end of its answer, queue included.",
                LONG,
                &["gen_ai_operation_name", "gen_ai_request_model"],
            ),
            first_token: histograms(
                r,
                "gen_ai_server_time_to_first_token_seconds",
                "Time from a request's head to the first byte of the answer's body, queue included.",
                FIRST_TOKEN,
                &["gen_ai_operation_name", "gen_ai_request_model"],
            ),
            first_chunk: histograms(
                r,
                "gen_ai_client_operation_time_to_first_chunk_seconds",
                "Time from dispatch to the first byte of the answer's body.",
                FIRST_TOKEN,
                &["gen_ai_operation_name", "gen_ai_request_model"],
            ),
            per_chunk: histograms(
                r,
                "gen_ai_client_operation_time_per_output_chunk_seconds",
                "Mean time between data frames of one streamed answer.",
                SHORT,
                &["gen_ai_operation_name", "gen_ai_request_model"],
            ),
            token_usage: histograms(
                r,
                "gen_ai_client_token_usage",
                "Tokens of one request as the engine reported them.",
                TOKENS,
                &["gen_ai_token_type", "gen_ai_request_model"],
            ),
            overhead_admission: overhead.with_label_values(&["admission"]),
            overhead_dispatch: overhead.with_label_values(&["dispatch"]),
            overhead_answer: overhead.with_label_values(&["answer"]),
            requeues: counters(
                r,
                "modelrelay_requeues_total",
                "Requests that left a worker before the first byte, for another one or for the queue.",
                &["model", "reason"],
            ),
            cancellations: counters(
                r,
                "modelrelay_cancellations_total",
                "Requests that were ended early, by who did and what came of it.",
                &["model", "origin", "result"],
            ),
            wasted_tokens: counters(
                r,
                "modelrelay_wasted_tokens_total",
                "Tokens of answers that nobody took to their end, where the engine told them.",
                &["model", "reason"],
            ),
            cancel_ack: single(
                r,
                "modelrelay_cancel_ack_seconds",
                "Time from sending a cancel to the worker's word that the backend call is closed.",
                SHORT,
            ),
            worker_failures: counters(
                r,
                "modelrelay_worker_failures_total",
                "Requests that failed at their worker.",
                &["reason"],
            ),
            worker_sessions_ended: counters(
                r,
                "modelrelay_worker_reconnects_total",
                "Worker sessions that ended.",
                &["pool", "reason"],
            ),
            late_frames: counter(
                r,
                "modelrelay_late_frames_total",
                "Frames for requests that had ended; dropped.",
            ),
            unknown_messages: counter(
                r,
                "modelrelay_unknown_messages_total",
                "Messages of types that this version does not know; skipped.",
            ),
            tenant_requests: counters(
                r,
                "modelrelay_tenant_requests_total",
                "Admitted requests by tenant.",
                &["tenant", "model"],
            ),
            tenant_tokens: counters(
                r,
                "modelrelay_tenant_tokens_total",
                "Tokens by tenant as the engine reported them.",
                &["tenant", "model"],
            ),
            config_errors: counter(
                r,
                "modelrelay_config_errors_total",
                "Changed settings files that did not validate.",
            ),
            worker_rtt: histograms(
                r,
                "modelrelay_worker_rtt_seconds",
                "Round trip of a ping on a worker's connection.",
                SHORT,
                &["pool"],
            ),
            requests_running: gauges(
                r,
                "modelrelay_requests_running",
                "Requests that a worker has.",
                &["model", "priority"],
            ),
            queue_size: gauges(r, "modelrelay_queue_size", "Requests that wait.", &["model", "priority"]),
            queue_bytes: gauges(
                r,
                "modelrelay_queue_bytes",
                "Body bytes of requests that wait.",
                &["model", "priority"],
            ),
            queue_utilization: gauge(
                r,
                "modelrelay_queue_capacity_utilization",
                "The fullest queue's length over its bound, 0 to 1.",
            ),
            body_bytes: gauge(r, "modelrelay_body_bytes", "Bytes of all request bodies that are held."),
            workers: gauges(r, "modelrelay_workers", "Connected workers.", &["pool", "state"]),
            worker_slots: gauges(
                r,
                "modelrelay_worker_slots",
                "Slots of connected workers.",
                &["pool", "state"],
            ),
            config_info: gauges(r, "modelrelay_config_info", "The settings in force.", &["revision"]),
            replicas: gauge(r, "modelrelay_replicas", "Relays that share the workers, this one included."),
            registry,
        };
        let build = gauges(&this.registry, "modelrelay_build_info", "The running build.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        register(&this.registry, prometheus::process_collector::ProcessCollector::for_self());
        Arc::new(this)
    }

    /// Notes names that the settings or a worker's registration brought: only these become labels.
    pub fn know_models<'a>(&self, models: impl IntoIterator<Item = &'a Arc<str>>) {
        let mut known = self.models.lock().expect("no code panics while it holds this lock");
        for model in models {
            if known.len() >= MAX_MODEL_LABELS {
                return;
            }
            if &**model != "*" && !known.contains(model) {
                known.insert(model.clone());
            }
        }
    }

    /// Returns the label for a model.
    pub fn model_label(&self, model: &str) -> Arc<str> {
        let known = self.models.lock().expect("no code panics while it holds this lock");
        known.get(model).cloned().unwrap_or_else(|| Arc::from("other"))
    }

    /// Counts a request that left a worker before the first byte, for another or for the queue.
    pub fn requeued(&self, model: &str, reason: &str) {
        self.requeues.with_label_values(&[&*self.model_label(model), reason]).inc();
    }

    /// Counts a request that was ended early.
    pub fn cancelled(&self, model: &str, origin: Origin, result: Cancelled) {
        let labels = [&*self.model_label(model), origin.as_str(), result.as_str()];
        self.cancellations.with_label_values(&labels).inc();
    }

    /// Counts what an answer cost that nobody took to its end.
    pub fn wasted(&self, model: &str, origin: Origin, usage: TokenCounts) {
        if let Some(tokens) = usage.total() {
            let labels = [&*self.model_label(model), origin.as_str()];
            self.wasted_tokens.with_label_values(&labels).inc_by(tokens);
        }
    }

    /// Notes a ping's round trip.
    pub fn round_trip(&self, pool: &str, round_trip: Duration) {
        self.worker_rtt.with_label_values(&[pool]).observe(round_trip.as_secs_f64());
    }

    /// Notes how many changed files were refused so far.
    pub fn config_refusals(&self, refusals: u64) {
        self.config_errors.inc_by(refusals.saturating_sub(self.config_errors.get()));
    }

    /// Notes which settings are in force.
    pub fn config(&self, revision: &str) {
        self.config_info.reset();
        self.config_info.with_label_values(&[revision]).set(1);
    }

    /// Notes how many replicas there are.
    pub fn replicas(&self, number: u32) {
        self.replicas.set(number.into());
    }

    /// Returns everything in Prometheus' text format. Gauges are read off the dispatcher now.
    pub fn render(&self, dispatcher: &Dispatcher, bodies: &BodyBudget, max_requests: usize) -> String {
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        self.body_bytes.set(bodies.held() as f64);
        self.set_gauges(dispatcher, max_requests);
        let mut out = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        debug_assert!(encoded.is_ok());
        String::from_utf8(out).unwrap_or_default()
    }

    fn set_gauges(&self, dispatcher: &Dispatcher, max_requests: usize) {
        let now = tokio::time::Instant::now().into_std();
        let snapshot = dispatcher.with_scheduler(|scheduler| scheduler.snapshot(now));
        for gauge in
            [&self.requests_running, &self.queue_size, &self.queue_bytes, &self.workers, &self.worker_slots]
        {
            gauge.reset();
        }
        let mut fullest = 0;
        for queue in &snapshot.queues {
            fullest = fullest.max(queue.length);
            // A queue that is known and empty says so.
            let labels = [&*self.model_label(&queue.model), DEFAULT_PRIORITY];
            self.queue_size.with_label_values(&labels).add(0);
            self.queue_bytes.with_label_values(&labels).add(0);
        }
        #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
        self.queue_utilization.set(fullest as f64 / max_requests.max(1) as f64);
        dispatcher.each_request(|place| {
            let Place { model, priority, bytes, is_running } = place;
            let labels = [&*self.model_label(model), priority];
            if is_running {
                self.requests_running.with_label_values(&labels).inc();
            } else {
                self.queue_size.with_label_values(&labels).inc();
                self.queue_bytes.with_label_values(&labels).add(to_i64(bytes));
            }
        });
        for session in dispatcher.sessions() {
            let live = session.live();
            let state = match () {
                () if live.draining => "draining",
                () if live.models.is_empty() => "not_ready",
                () => "ready",
            };
            let pool = &*session.credential.pool;
            self.workers.with_label_values(&[pool, state]).inc();
            let running = to_i64(session.running() as u64);
            self.worker_slots.with_label_values(&[pool, "in_use"]).add(running);
            let idle = (i64::from(session.slots) - running).max(0);
            self.worker_slots.with_label_values(&[pool, "idle"]).add(idle);
        }
    }
}

fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn register<C: prometheus::core::Collector + 'static>(registry: &Registry, collector: C) {
    registry.register(Box::new(collector)).expect("each name is registered once, with valid labels");
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let counter = IntCounter::new(name, help).expect("the name is valid");
    register(registry, counter.clone());
    counter
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("the names are valid");
    register(registry, counters.clone());
    counters
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::new(name, help).expect("the name is valid");
    register(registry, gauge.clone());
    gauge
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    let gauges = IntGaugeVec::new(Opts::new(name, help), labels).expect("the names are valid");
    register(registry, gauges.clone());
    gauges
}

fn single(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        .expect("the name is valid");
    register(registry, histogram.clone());
    histogram
}

fn histograms(registry: &Registry, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    let histograms = HistogramVec::new(opts, labels).expect("the names are valid");
    register(registry, histograms.clone());
    histograms
}
