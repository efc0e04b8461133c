//! What the operator counts.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// The metrics of one operator process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: HistogramVec,
    errors: IntCounterVec,
    watch_errors: IntCounterVec,
    leader: IntGauge,
    running: IntGaugeVec,
}

impl Metrics {
    /// Makes and registers them in a registry of their own.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let buckets = vec![0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0];
        let reconciles = HistogramVec::new(
            HistogramOpts::new(
                "modelrelay_operator_reconcile_duration_seconds",
                "Time that one reconcile took.",
            )
            .buckets(buckets),
            &["kind"],
        );
        let errors = IntCounterVec::new(
            Opts::new("modelrelay_operator_reconcile_errors_total", "Reconciles that failed."),
            &["kind", "reason"],
        );
        let watch_errors = IntCounterVec::new(
            Opts::new("modelrelay_operator_watch_errors_total", "Watches that broke or could not start."),
            &["kind"],
        );
        let leader =
            IntGauge::new("modelrelay_operator_leader", "Whether this process acts (1) or stands by (0).");
        let running = IntGaugeVec::new(
            Opts::new("modelrelay_operator_reconciles_running", "Reconciles that go on now."),
            &["kind"],
        );
        let valid = "names and labels are constants that Prometheus takes";
        let metrics = Self {
            registry,
            reconciles: reconciles.expect(valid),
            errors: errors.expect(valid),
            watch_errors: watch_errors.expect(valid),
            leader: leader.expect(valid),
            running: running.expect(valid),
        };
        let collectors: [Box<dyn prometheus::core::Collector>; 5] = [
            Box::new(metrics.reconciles.clone()),
            Box::new(metrics.errors.clone()),
            Box::new(metrics.watch_errors.clone()),
            Box::new(metrics.leader.clone()),
            Box::new(metrics.running.clone()),
        ];
        for collector in collectors {
            metrics.registry.register(collector).expect("each name is registered once");
        }
        #[cfg(target_os = "linux")]
        {
            let process = prometheus::process_collector::ProcessCollector::for_self();
            metrics.registry.register(Box::new(process)).expect("each name is registered once");
        }
        Arc::new(metrics)
    }

    /// Counts a reconcile that begins.
    pub fn reconcile_started(&self, kind: &str) {
        self.running.with_label_values(&[kind]).inc();
    }

    /// Counts a reconcile that ended, and why it failed if it did.
    pub fn reconcile_ended(&self, kind: &str, took: Duration, failure: Option<&str>) {
        self.running.with_label_values(&[kind]).dec();
        self.reconciles.with_label_values(&[kind]).observe(took.as_secs_f64());
        if let Some(reason) = failure {
            self.errors.with_label_values(&[kind, reason]).inc();
        }
    }

    /// Counts a watch that broke.
    pub fn watch_failed(&self, kind: &str) {
        self.watch_errors.with_label_values(&[kind]).inc();
    }

    /// Notes whether this process acts.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}
