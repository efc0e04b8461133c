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

    /// Notes a watch that is kept: its errors are counted from none, or an increase would not show the first one.
    pub fn watch_kept(&self, kind: &str) {
        self.watch_errors.with_label_values(&[kind]);
    }

    /// Counts a watch that broke.
    pub fn watch_failed(&self, kind: &str) {
        self.watch_errors.with_label_values(&[kind]).inc();
    }

    /// Notes that this process acts, until what is returned is dropped.
    pub fn leading(&self) -> Leading {
        self.leader.set(1);
        Leading(self.leader.clone())
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// This process acts for as long as there is one.
#[derive(Debug)]
pub struct Leading(IntGauge);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Returns name, type and labels of each row of the README's table.
    fn documented() -> BTreeSet<(String, String, Vec<String>)> {
        let readme = include_str!("../../README.md");
        let section = readme.split("### Operator\n").nth(1).expect("the README has the section");
        let rows = section.lines().take_while(|line| !line.starts_with('#'));
        let cells =
            rows.filter(|line| line.starts_with("| `")).map(|line| line.split('|').collect::<Vec<_>>());
        let bare = |text: &str| text.trim().trim_matches('`').to_owned();
        cells
            .map(|cells| {
                let labels = cells[3].split(',').map(bare).filter(|label| !label.is_empty()).collect();
                (bare(cells[1]), bare(cells[2]), labels)
            })
            .collect()
    }

    #[test]
    fn a_watch_that_never_broke_has_no_errors() {
        let metrics = Metrics::new();
        metrics.watch_kept("Pod");
        let text = metrics.render();
        assert!(text.contains("modelrelay_operator_watch_errors_total{kind=\"Pod\"} 0\n"), "{text}");
    }

    #[test]
    fn the_readme_lists_every_metric_with_its_labels() {
        let metrics = Metrics::new();
        metrics.reconcile_started("ModelRelay");
        metrics.reconcile_ended("ModelRelay", Duration::from_millis(1), Some("conflict"));
        metrics.watch_failed("Pod");
        let _leading = metrics.leading();
        let families = metrics.registry.gather();
        let own = families.iter().filter(|family| family.name().starts_with("modelrelay_"));
        let told = own.map(|family| {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let labels =
                family.get_metric()[0].get_label().iter().map(|label| label.name().to_owned()).collect();
            (family.name().to_owned(), kind, labels)
        });
        assert_eq!(told.collect::<BTreeSet<_>>(), documented());
    }
}
