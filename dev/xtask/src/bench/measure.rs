//! What is measured of one contender in one round, and the goals.

use std::time::Duration;

use anyhow::Result;

use super::contender::Contender;
use super::load::{Cancels, Load, Requests, Streams, Times, Uploads};
use super::table::{Figures, Goal, Measure};

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    seconds: u32,
    held_streams: u64,
    settle: Duration,
}

impl Plan {
    /// Returns what takes a few minutes.
    pub(crate) fn full(open_files: u64) -> Self {
        Self { seconds: 5, held_streams: held_streams(open_files), settle: Duration::from_secs(10) }
    }

    /// Returns what takes seconds.
    pub(crate) fn quick(open_files: u64) -> Self {
        Self { seconds: 2, held_streams: held_streams(open_files), settle: Duration::from_secs(3) }
    }
}

/// A proxy has two open files for each stream.
fn held_streams(open_files: u64) -> u64 {
    (open_files.saturating_sub(500) / 2).min(9_500)
}

/// What the contenders' delays are compared with: those of the stub itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delays {
    request: Times,
    chunk: Times,
    first_chunk: Times,
}

const fn row(name: &'static str, unit: &'static str, goal: Goal) -> Measure {
    Measure { name, unit, goal }
}

const HELD: Measure = row("memory per open idle stream", "KiB", Goal::AtMost(28.0));
const RELEASED: Measure = row("memory after all of them closed, of idle", "×", Goal::AtMost(1.6));
const RATE: Measure = row("small requests, 64 at once", "per s", Goal::RatioAtLeast(0.5));
const REQUEST_CPU: Measure = row("processor time per small request", "µs", Goal::RatioAtMost(2.4));
const REQUEST_P50: Measure = row("added latency at 200/s, p50", "ms", Goal::RatioAtMost(2.5));
const REQUEST_P99: Measure = row("added latency at 200/s, p99", "ms", Goal::RatioAtMost(4.0));
const CHUNK_RATE: Measure = row("chunks of 50 streams at full speed", "per s", Goal::Any);
const BURST_CPU: Measure = row("processor time per million chunks, full speed", "s", Goal::RatioAtMost(1.6));
const PACED_CPU: Measure = row("processor time per million chunks, paced", "s", Goal::RatioAtMost(1.8));
const CHUNK_P50: Measure = row("added latency per chunk, p50", "ms", Goal::Any);
const CHUNK_P99: Measure = row("added latency per chunk, p99", "ms", Goal::Any);
const FIRST_P50: Measure = row("added time to the first chunk, p50", "ms", Goal::Any);
const FIRST_P99: Measure = row("added time to the first chunk, p99", "ms", Goal::Any);
const CANCEL_P50: Measure = row("client gone to backend connection closed, p50", "ms", Goal::AtMost(0.6));
const CANCEL_P99: Measure = row("client gone to backend connection closed, p99", "ms", Goal::Any);
const CANCELS: Measure = row("such closes in the worst phase", "of 100", Goal::AtLeast(100.0));
const UPLOAD: Measure = row("request bodies of 1 MiB", "MB/s", Goal::Any);

/// All measures in the order of the table.
pub(crate) const ALL: [Measure; 17] = [
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
    HELD,
    RELEASED,
    CANCEL_P50,
    CANCEL_P99,
    CANCELS,
    UPLOAD,
];

const CANCEL_PHASES: [&str; 5] =
    ["before-head", "before-first-byte", "mid-stream", "mid-stream-idle", "non-streaming"];

/// Takes all measures of a contender, and returns its delays.
///
/// # Errors
/// When it does not carry the load.
pub(crate) fn take(
    plan: &Plan,
    contender: &Contender,
    load: &Load,
    direct: Option<&Delays>,
    figures: &mut Figures,
) -> Result<Delays> {
    let name = contender.name;
    let compared = direct.is_some();
    let seconds = plan.seconds;
    // First of all, because idle memory is that of a process that has done nothing yet.
    if compared {
        let held = load.hold(contender, plan.held_streams, plan.settle)?;
        let grown = (held.open - held.idle).memory_bytes as f64;
        figures.add(HELD, name, grown / 1024.0 / plan.held_streams as f64);
        figures.add(RELEASED, name, held.closed.memory_bytes as f64 / held.idle.memory_bytes as f64);
    }

    let (requests, used): (Requests, _) = load.run(contender, &format!("closed --duration {seconds}"))?;
    figures.add(RATE, name, requests.rps);
    if compared {
        figures.add(REQUEST_CPU, name, used.processor.as_secs_f64() * 1e6 / requests.ok as f64);
    }
    let (requests, _): (Requests, _) =
        load.run(contender, &format!("open --rate 200 --duration {seconds}"))?;

    let (burst, used): (Streams, _) = load.run(contender, &format!("streams --duration {seconds}"))?;
    figures.add(CHUNK_RATE, name, burst.chunks_per_second);
    let per_million = |processor: Duration, chunks: u64| processor.as_secs_f64() * 1e6 / chunks as f64;
    if compared {
        figures.add(BURST_CPU, name, per_million(used.processor, burst.chunks));
    }
    let chunks = seconds * 50;
    let paced = format!("streams --streams 50 --interval-ms 20 --stagger-ms 1000 --chunks {chunks}");
    let (paced, used): (Streams, _) = load.run(contender, &paced)?;
    if compared {
        figures.add(PACED_CPU, name, per_million(used.processor, paced.chunks));
    }

    let delays =
        Delays { request: requests.latency, chunk: paced.chunk_latency, first_chunk: paced.first_chunk };
    if let Some(direct) = direct {
        add_delays(figures, name, &delays, direct);
    }
    measure_cancels(contender, load, figures)?;
    let (uploads, _): (Uploads, _) = load.run(contender, &format!("upload --duration {seconds}"))?;
    figures.add(UPLOAD, name, uploads.mb_per_second);
    Ok(delays)
}

fn add_delays(figures: &mut Figures, name: &'static str, delays: &Delays, direct: &Delays) {
    let rows = [
        (REQUEST_P50, REQUEST_P99, delays.request, direct.request),
        (CHUNK_P50, CHUNK_P99, delays.chunk, direct.chunk),
        (FIRST_P50, FIRST_P99, delays.first_chunk, direct.first_chunk),
    ];
    for (p50, p99, measured, direct) in rows {
        figures.add(p50, name, (measured.p50_us - direct.p50_us) / 1e3);
        figures.add(p99, name, (measured.p99_us - direct.p99_us) / 1e3);
    }
}

fn measure_cancels(contender: &Contender, load: &Load, figures: &mut Figures) -> Result<()> {
    let mut fewest = u32::MAX;
    for phase in CANCEL_PHASES {
        let arguments = format!("cancel --when {phase} --requests 100 --stub-url {}", load.stub_url);
        let (cancels, _): (Cancels, _) = load.run(contender, &arguments)?;
        fewest = fewest.min(cancels.noticed);
        if phase == "mid-stream" {
            figures.add(CANCEL_P50, contender.name, cancels.latency.p50_us / 1e3);
            figures.add(CANCEL_P99, contender.name, cancels.latency.p99_us / 1e3);
        }
    }
    figures.add(CANCELS, contender.name, f64::from(fewest));
    Ok(())
}
