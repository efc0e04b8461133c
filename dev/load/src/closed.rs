//! Closed loop: each connection sends its next request when it has the answer to the last.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderName;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::link::Link;
use crate::report::{Failure, Histograms, Meter, Tally, Times};
use crate::target::Target;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// For how long.
    pub duration: Duration,
    /// Time at the start that is not measured.
    pub warmup: Duration,
    /// Requests of each connection, when the time does not end them before.
    pub requests: u64,
    /// Bytes of text in an answer.
    pub answer_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 64,
            duration: Duration::from_secs(5),
            warmup: Duration::ZERO,
            requests: u64::MAX,
            answer_bytes: 64,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Report {
    /// Requests answered well, per second.
    pub rps: f64,
    /// Seconds measured.
    pub seconds: f64,
    /// From sending the request to having the whole answer.
    pub latency: Times,
    /// All requests, those of the warm-up left out.
    #[serde(flatten)]
    pub tally: Tally,
}

/// Time after the end in which the last answers may come.
const GRACE: Duration = Duration::from_secs(10);
/// Keeps a connection that fails at once from spinning.
const RETRY: Duration = Duration::from_millis(10);

/// Runs it.
pub async fn run(target: &Target, options: &Options, meter: &Arc<Meter>) -> Report {
    let latency = Arc::new(Histograms::default());
    let begin = Instant::now() + options.warmup;
    let end = begin + options.duration;
    let stub = if options.answer_bytes == 64 { json!({}) } else { json!({"bytes": options.answer_bytes}) };
    let body = target.body(false, &stub);
    let mut connections = JoinSet::new();
    for _ in 0..options.connections {
        let (target, body, latency, meter) = (target.clone(), body.clone(), latency.clone(), meter.clone());
        let requests = options.requests;
        connections.spawn(async move {
            let mut tally = Tally::default();
            let mut recorder = latency.recorder();
            let mut link = None;
            for _ in 0..requests {
                let started = Instant::now();
                if started >= end {
                    break;
                }
                let mut status = None;
                let _underway = meter.begin();
                let result = within(end + GRACE, ask(&target, &body, &mut link, &mut status)).await;
                if started >= begin {
                    if result.is_ok() {
                        recorder.record(started.elapsed());
                    }
                    status.inspect(|status| tally.status(*status));
                    tally.end(&result);
                }
                meter.end(&result);
                if result.is_err() && link.is_none() {
                    tokio::time::sleep(RETRY).await;
                }
            }
            tally
        });
    }
    let mut tally = Tally::default();
    while let Some(ended) = connections.join_next().await {
        tally.add(&ended.expect("a connection's task does not panic"));
    }
    let seconds = Instant::now().saturating_duration_since(begin).as_secs_f64();
    let rps = if seconds > 0.0 { tally.ok as f64 / seconds } else { 0.0 };
    Report { rps, seconds, latency: latency.times(), tally }
}

pub(crate) async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout_at(deadline, work).await.unwrap_or(Err(Failure::Timeout))
}

/// Sends one request over the link, opened if need be, and checks the answer. The link stays if it can
/// serve another request.
pub(crate) async fn ask(
    target: &Target,
    body: &Bytes,
    link: &mut Option<Link>,
    status: &mut Option<u16>,
) -> Result<(), Failure> {
    let mut using = match link.take() {
        Some(link) => link,
        None => Link::open(target).await?,
    };
    let response = using.send(target.post("/v1/chat/completions", body.clone())).await?;
    *status = Some(response.status().as_u16());
    let good = response.status() == 200;
    let crc32 = response.headers().get(STUB_CRC32).cloned();
    let mut body = response.into_body();
    let mut crc = crc32fast::Hasher::new();
    while let Some(piece) = using.piece(&mut body).await? {
        crc.update(&piece);
    }
    if using.is_usable().await {
        *link = Some(using);
    }
    if !good {
        return Err(Failure::Status);
    }
    // The header is the stub's; without it there is nothing to hold the bytes against.
    let expected = crc32.as_ref().and_then(|crc32| crc32.to_str().ok()?.parse().ok());
    if expected == Some(crc.finalize()) { Ok(()) } else { Err(Failure::Mismatch) }
}

const STUB_CRC32: HeaderName = HeaderName::from_static("x-stub-crc32");
