//! The rows of the table, and what is wanted of them.

use super::table::{Goal, Measure};

const fn row(name: &'static str, unit: &'static str, goal: Goal) -> Measure {
    Measure { name, unit, goal }
}

pub(crate) const RATE: Measure = row("small requests, 64 at once", "per s", Goal::RatioAtLeast(0.5));
pub(crate) const REQUEST_CPU: Measure = row("processor time per small request", "µs", Goal::RatioAtMost(2.4));
pub(crate) const REQUEST_P50: Measure = row("added latency at 200/s, p50", "ms", Goal::RatioAtMost(2.5));
pub(crate) const REQUEST_P99: Measure = row("added latency at 200/s, p99", "ms", Goal::RatioAtMost(4.0));

pub(crate) const CHUNK_RATE: Measure = row("chunks of 50 streams at full speed", "per s", Goal::Any);
pub(crate) const BURST_CPU: Measure =
    row("processor time per million chunks, full speed", "s", Goal::RatioAtMost(1.6));
pub(crate) const PACED_CPU: Measure =
    row("processor time per million chunks, paced", "s", Goal::RatioAtMost(1.8));
pub(crate) const CHUNK_P50: Measure = row("added latency per chunk, p50", "ms", Goal::Any);
pub(crate) const CHUNK_P99: Measure = row("added latency per chunk, p99", "ms", Goal::Any);
pub(crate) const FIRST_P50: Measure = row("added time to the first chunk, p50", "ms", Goal::Any);
pub(crate) const FIRST_P99: Measure = row("added time to the first chunk, p99", "ms", Goal::Any);

pub(crate) const IDLE: Measure = row("memory of processes that have just started", "MiB", Goal::Any);
pub(crate) const HELD: Measure = row("memory per open idle stream", "KiB", Goal::AtMost(28.0));
pub(crate) const RELEASED: Measure =
    row("memory 10 s after a burst of 9,000 streams, of idle", "×", Goal::AtMost(1.6));

pub(crate) const CANCEL_P50: Measure =
    row("client gone to backend connection closed, p50", "ms", Goal::AtMost(0.6));
pub(crate) const CANCEL_P99: Measure = row("client gone to backend connection closed, p99", "ms", Goal::Any);
pub(crate) const CANCELS: Measure = row("such closes in the worst phase", "of 100", Goal::AtLeast(100.0));

pub(crate) const UPLOAD: Measure = row("request bodies of 1 MiB", "MB/s", Goal::Any);
pub(crate) const UPLOAD_10: Measure = row("request bodies of 10 MiB", "MB/s", Goal::Any);
pub(crate) const UPLOAD_KEPT: Measure =
    row("rate of 10 MiB bodies, of that of 1 MiB", "×", Goal::AtLeast(0.9));
pub(crate) const UPLOAD_MEMORY: Measure =
    row("most memory meanwhile (of the relay)", "MiB", Goal::AtMost(200.0));

pub(crate) const IDLE_MEMORY: Measure =
    row("relay's memory per idle worker, 1,000 of them", "KiB", Goal::AtMost(45.0));
pub(crate) const IDLE_CORES: Measure = row("relay's processors meanwhile", "cores", Goal::AtMost(0.03));
pub(crate) const IDLE_P50: Measure = row("request beside them, p50, of that without", "×", Goal::AtMost(1.1));
pub(crate) const JOIN: Measure =
    row("queued request answered after a worker joins, p50", "ms", Goal::AtMost(10.0));
pub(crate) const REQUEUE: Measure =
    row("request answered by an idle worker after its own is gone, p50", "ms", Goal::AtMost(10.0));

// The windows are 256 KiB, and 16 MiB for a v1 worker; what else moves in a process gets 1 MiB at most.
pub(crate) const SLOW_RELAY: Measure =
    row("400 MB to a client that reads nothing: relay grows by", "MiB", Goal::AtMost(1.0));
pub(crate) const SLOW_WORKER: Measure = row("the same: worker grows by", "MiB", Goal::AtMost(1.0));
pub(crate) const SLOW_V1: Measure =
    row("the same from a v1 worker: relay grows by", "MiB", Goal::AtMost(17.0));

/// All of them in the order of the table.
pub(crate) const ALL: [Measure; 29] = [
    RATE,
    REQUEST_CPU,
    REQUEST_P50,
    REQUEST_P99,
    CHUNK_RATE,
    BURST_CPU,
    PACED_CPU,
    CHUNK_P50,
    CHUNK_P99,
    FIRST_P50,
    FIRST_P99,
    IDLE,
    HELD,
    RELEASED,
    CANCEL_P50,
    CANCEL_P99,
    CANCELS,
    UPLOAD,
    UPLOAD_10,
    UPLOAD_KEPT,
    UPLOAD_MEMORY,
    IDLE_MEMORY,
    IDLE_CORES,
    IDLE_P50,
    JOIN,
    REQUEUE,
    SLOW_RELAY,
    SLOW_WORKER,
    SLOW_V1,
];
