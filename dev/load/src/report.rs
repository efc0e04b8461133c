//! What is counted and measured, and how it is written down.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// How a request failed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, thiserror::Error,
)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No connection.
    #[error("no connection")]
    Connect,
    /// The connection ended before the answer did.
    #[error("broken off")]
    Broken,
    /// What came was not HTTP.
    #[error("not HTTP")]
    Garbage,
    /// A status other than 200.
    #[error("status")]
    Status,
    /// Bytes, events or numbers are not those that were sent.
    #[error("mismatch")]
    Mismatch,
    /// Not over in time.
    #[error("timeout")]
    Timeout,
}

impl Failure {
    pub(crate) fn of(error: &hyper::Error) -> Self {
        if error.is_parse() && !error.is_incomplete_message() { Self::Garbage } else { Self::Broken }
    }
}

/// Requests by how they ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Tally {
    /// Answered with 200, whole and exact.
    pub ok: u64,
    /// Not so.
    pub failed: u64,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Failures by kind.
    pub failures: BTreeMap<Failure, u64>,
}

impl Tally {
    /// Counts a status that was received.
    pub(crate) fn status(&mut self, status: u16) {
        *self.statuses.entry(status).or_default() += 1;
    }

    /// Counts the end of a request.
    pub(crate) fn end<T>(&mut self, result: &Result<T, Failure>) {
        match result {
            Ok(_) => self.ok += 1,
            Err(failure) => {
                self.failed += 1;
                *self.failures.entry(*failure).or_default() += 1;
            }
        }
    }

    /// Adds another tally to this one.
    pub fn add(&mut self, other: &Self) {
        let Self { ok, failed, statuses, failures } = other;
        self.ok += ok;
        self.failed += failed;
        for (status, count) in statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (failure, count) in failures {
            *self.failures.entry(*failure).or_default() += count;
        }
    }
}

/// A distribution of times, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
pub struct Times {
    /// How many.
    pub count: u64,
    /// Half are no longer.
    pub p50_us: f64,
    /// Nine of ten are no longer.
    pub p90_us: f64,
    /// All but one of a hundred are no longer.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
    /// The mean.
    pub mean_us: f64,
}

/// Collects times from many tasks.
#[derive(Debug)]
pub(crate) struct Histograms {
    nanoseconds: Mutex<Histogram<u64>>,
}

impl Default for Histograms {
    fn default() -> Self {
        let nanoseconds =
            Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("the bounds are in order");
        Self { nanoseconds: Mutex::new(nanoseconds) }
    }
}

impl Histograms {
    pub(crate) fn recorder(&self) -> Recorder<'_> {
        Recorder { into: self, nanoseconds: Vec::with_capacity(RECORD) }
    }

    pub(crate) fn times(&self) -> Times {
        let all = self.nanoseconds.lock().expect(NO_PANIC);
        let at = |quantile| all.value_at_quantile(quantile) as f64 / 1e3;
        if all.is_empty() {
            return Times::default();
        }
        Times {
            count: all.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            max_us: all.max() as f64 / 1e3,
            mean_us: all.mean() / 1e3,
        }
    }
}

const RECORD: usize = 256;
const NO_PANIC: &str = "no holder of this lock panics";

/// One task's way into [`Histograms`], which it locks once in a while.
#[derive(Debug)]
pub(crate) struct Recorder<'a> {
    into: &'a Histograms,
    nanoseconds: Vec<u64>,
}

impl Recorder<'_> {
    pub(crate) fn record(&mut self, time: Duration) {
        self.nanoseconds.push(time.as_nanos() as u64);
        if self.nanoseconds.len() == RECORD {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let mut all = self.into.nanoseconds.lock().expect(NO_PANIC);
        for nanoseconds in self.nanoseconds.drain(..) {
            all.saturating_record(nanoseconds);
        }
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// What a run has done so far, for a line of progress.
#[derive(Debug, Default)]
pub struct Meter {
    done: AtomicU64,
    failed: AtomicU64,
    open: AtomicU64,
    peak: AtomicU64,
}

impl Meter {
    /// Requests (or streams) that ended well.
    pub fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }

    /// Requests that did not.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Requests under way.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// The most that were under way at once.
    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    pub(crate) fn begin(&self) -> Underway<'_> {
        let open = self.open.fetch_add(1, Relaxed) + 1;
        self.peak.fetch_max(open, Relaxed);
        Underway { meter: self }
    }

    pub(crate) fn end<T>(&self, result: &Result<T, Failure>) {
        let counter = if result.is_ok() { &self.done } else { &self.failed };
        counter.fetch_add(1, Relaxed);
    }
}

/// A request under way as long as this lives.
#[derive(Debug)]
pub(crate) struct Underway<'a> {
    meter: &'a Meter,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.meter.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_out_as_they_were_recorded() {
        let all = Histograms::default();
        let mut recorder = all.recorder();
        for microseconds in 1..=1000 {
            recorder.record(Duration::from_micros(microseconds));
        }
        drop(recorder);
        let times = all.times();
        assert_eq!(times.count, 1000);
        assert!((499.0..502.0).contains(&times.p50_us), "{times:?}");
        assert!((989.0..992.0).contains(&times.p99_us), "{times:?}");
        assert!((999.0..1002.0).contains(&times.max_us), "{times:?}");
        assert_eq!(Histograms::default().times(), Times::default());
    }

    #[test]
    fn tallies_add_up() {
        let mut one = Tally::default();
        one.status(200);
        one.end(&Ok(()));
        let mut two = Tally::default();
        two.status(200);
        two.end::<()>(&Err(Failure::Broken));
        two.add(&one);
        assert_eq!((two.ok, two.failed, two.statuses[&200], two.failures[&Failure::Broken]), (1, 1, 2, 1));
        assert_eq!(serde_json::to_value(&two).unwrap()["failures"]["broken"], 1);
    }
}
