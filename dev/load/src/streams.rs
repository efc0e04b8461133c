//! Many streams at once, each checked, with the time of every chunk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dev_backend::micros_now;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::check::StreamCheck;
use crate::closed::within;
use crate::link::Link;
use crate::report::{Failure, Histograms, Meter, Recorder, Tally, Times};
use crate::target::Target;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Streams at once.
    pub streams: usize,
    /// Chunks of each.
    pub chunks: u32,
    /// Bytes of each chunk.
    pub chunk_bytes: usize,
    /// Time from one chunk to the next; zero is full speed.
    pub interval: Duration,
    /// Chunks that the backend writes at once at full speed.
    pub batch: u32,
    /// Opens the next stream when one ends, until this time has passed; zero is one stream each.
    pub duration: Duration,
    /// Spreads the starts over this time.
    pub stagger: Duration,
    /// The longest that one stream may take.
    pub timeout: Duration,
    /// Uses Anthropic's route and events.
    pub anthropic: bool,
    /// More of the stub's script, for instance a fault to find.
    pub stub: serde_json::Map<String, serde_json::Value>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            streams: 50,
            chunks: 1000,
            chunk_bytes: 200,
            interval: Duration::ZERO,
            batch: 1,
            duration: Duration::ZERO,
            stagger: Duration::ZERO,
            timeout: Duration::from_secs(120),
            anthropic: false,
            stub: serde_json::Map::new(),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Report {
    /// Chunks of all streams per second, from the first start to the last end.
    pub chunks_per_second: f64,
    /// Chunks that came.
    pub chunks: u64,
    /// Bytes of all bodies.
    pub bytes: u64,
    /// Seconds from the first start to the last end.
    pub seconds: f64,
    /// The most streams that were open at once.
    pub peak: u64,
    /// From the backend's writing a chunk to having it.
    pub chunk_latency: Times,
    /// From sending a request to its first chunk.
    pub first_chunk: Times,
    /// Streams by how they ended; one that is not exact counts as failed.
    #[serde(flatten)]
    pub tally: Tally,
}

/// Connections being opened at once; more would overrun a server's backlog.
pub(crate) const OPENING: usize = 256;

#[derive(Debug, Default)]
struct Measured {
    chunk_latency: Histograms,
    first_chunk: Histograms,
}

#[derive(Debug, Default)]
struct Counted {
    tally: Tally,
    chunks: u64,
    bytes: u64,
}

/// Runs it.
pub async fn run(target: &Target, options: &Options, meter: &Arc<Meter>) -> Report {
    let measured = Arc::new(Measured::default());
    let opening = Arc::new(Semaphore::new(OPENING));
    let path = if options.anthropic { "/v1/messages" } else { "/v1/chat/completions" };
    let body = body(target, options);
    let started = Instant::now();
    let end = started + options.duration;
    let mut slots = JoinSet::new();
    for number in 0..options.streams {
        let offset = options.stagger.mul_f64(number as f64 / options.streams as f64);
        let (target, options, body) = (target.clone(), options.clone(), body.clone());
        let (measured, opening, meter) = (measured.clone(), opening.clone(), meter.clone());
        slots.spawn(async move {
            if !offset.is_zero() {
                sleep(offset).await;
            }
            let mut counted = Counted::default();
            let mut link = None;
            loop {
                let deadline = Instant::now() + options.timeout;
                let stream =
                    stream(&target, path, &body, &mut link, &opening, &measured, &meter, &mut counted);
                let result = within(deadline, stream).await;
                counted.tally.end(&result);
                meter.end(&result);
                // A target that is down must not be asked in a spin.
                if Instant::now() >= end || matches!(result, Err(Failure::Connect)) {
                    return counted;
                }
            }
        });
    }
    let mut all = Counted::default();
    while let Some(ended) = slots.join_next().await {
        let counted = ended.expect("a connection's task does not panic");
        all.tally.add(&counted.tally);
        all.chunks += counted.chunks;
        all.bytes += counted.bytes;
    }
    let seconds = started.elapsed().as_secs_f64();
    let Counted { tally, chunks, bytes } = all;
    Report {
        chunks_per_second: chunks as f64 / seconds,
        chunks,
        bytes,
        seconds,
        peak: meter.peak(),
        chunk_latency: measured.chunk_latency.times(),
        first_chunk: measured.first_chunk.times(),
        tally,
    }
}

fn body(target: &Target, options: &Options) -> Bytes {
    let mut stub = json!({
        "chunks": options.chunks, "chunk_bytes": options.chunk_bytes, "batch": options.batch,
        "interval_ms": options.interval.as_millis() as u64,
    });
    for (name, value) in &options.stub {
        stub[name] = value.clone();
    }
    target.body(true, &stub)
}

#[allow(clippy::too_many_arguments, reason = "one stream's share of the run's state, all of it borrowed")]
async fn stream(
    target: &Target,
    path: &str,
    body: &Bytes,
    link: &mut Option<Link>,
    opening: &Semaphore,
    measured: &Measured,
    meter: &Meter,
    counted: &mut Counted,
) -> Result<(), Failure> {
    let mut using = match link.take() {
        Some(link) => link,
        None => {
            let _permit = opening.acquire().await;
            Link::open(target).await?
        }
    };
    let _underway = meter.begin();
    let sent = Instant::now();
    let response = using.send(target.post(path, body.clone())).await?;
    counted.tally.status(response.status().as_u16());
    if response.status() != 200 {
        return Err(Failure::Status);
    }
    let mut check = StreamCheck::default();
    let mut body = response.into_body();
    let mut latency = measured.chunk_latency.recorder();
    while let Some(piece) = using.piece(&mut body).await? {
        let first = check.events() == 0;
        counted.bytes += piece.len() as u64;
        counted.chunks += take(&mut check, &piece, &mut latency);
        if first && check.events() > 0 {
            measured.first_chunk.recorder().record(sent.elapsed());
        }
    }
    check.finish().map_err(|_| Failure::Mismatch)?;
    if using.is_usable().await {
        *link = Some(using);
    }
    Ok(())
}

/// Feeds the check and returns the number of chunks in the piece.
fn take(check: &mut StreamCheck, piece: &[u8], latency: &mut Recorder<'_>) -> u64 {
    let now = micros_now();
    let mut chunks = 0;
    check.feed(piece, |at_micros| {
        chunks += 1;
        latency.record(Duration::from_micros(now.saturating_sub(at_micros)));
    });
    chunks
}
