//! Large request bodies, of which the stub counts the bytes and takes the CRC.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::closed::within;
use crate::link::Link;
use crate::report::{Failure, Histograms, Meter, Tally, Times};
use crate::target::Target;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Bytes of a body.
    pub bytes: usize,
    /// For how long.
    pub duration: Duration,
    /// Requests of each connection, when the time does not end them before.
    pub requests: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { connections: 4, bytes: 1 << 20, duration: Duration::from_secs(5), requests: u64::MAX }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Report {
    /// Megabytes (10⁶) of bodies per second that arrived exactly.
    pub mb_per_second: f64,
    /// Seconds from the first request to the last answer.
    pub seconds: f64,
    /// From sending a request to having its answer.
    pub latency: Times,
    /// All requests.
    #[serde(flatten)]
    pub tally: Tally,
}

/// What the stub says about a body it did not keep.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Received {
    bytes: u64,
    crc32: u32,
}

const GRACE: Duration = Duration::from_secs(30);

/// Runs it.
pub async fn run(target: &Target, options: &Options, meter: &Arc<Meter>) -> Report {
    let latency = Arc::new(Histograms::default());
    let body = target.large_body(options.bytes);
    let length = body.len() as u64;
    let expected = Arc::new(Received { bytes: length, crc32: crc32fast::hash(&body) });
    let started = Instant::now();
    let end = started + options.duration;
    let mut connections = JoinSet::new();
    for _ in 0..options.connections {
        let (target, body, expected) = (target.clone(), body.clone(), expected.clone());
        let (latency, meter, requests) = (latency.clone(), meter.clone(), options.requests);
        connections.spawn(async move {
            let mut tally = Tally::default();
            let mut recorder = latency.recorder();
            let mut link = None;
            for _ in 0..requests {
                let sent = Instant::now();
                if sent >= end {
                    break;
                }
                let upload = upload(&target, body.clone(), &expected, &mut link, &mut tally);
                let result = within(end + GRACE, upload).await;
                if result.is_ok() {
                    recorder.record(sent.elapsed());
                }
                tally.end(&result);
                meter.end(&result);
                if matches!(result, Err(Failure::Connect)) {
                    break;
                }
            }
            tally
        });
    }
    let mut tally = Tally::default();
    while let Some(ended) = connections.join_next().await {
        tally.add(&ended.expect("a connection's task does not panic"));
    }
    let seconds = started.elapsed().as_secs_f64();
    let mb_per_second = (tally.ok * length) as f64 / 1e6 / seconds;
    Report { mb_per_second, seconds, latency: latency.times(), tally }
}

async fn upload(
    target: &Target,
    body: Bytes,
    expected: &Received,
    link: &mut Option<Link>,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut using = match link.take() {
        Some(link) => link,
        None => Link::open(target).await?,
    };
    let mut request = target.post("/v1/chat/completions", body);
    request.headers_mut().insert("x-stub-skip-body", http::HeaderValue::from_static("true"));
    let response = using.send(request).await?;
    tally.status(response.status().as_u16());
    let good = response.status() == 200;
    let answer = using.whole(response.into_body()).await?;
    if using.is_usable().await {
        *link = Some(using);
    }
    if !good {
        return Err(Failure::Status);
    }
    let received: Option<Received> = serde_json::from_slice(&answer).ok();
    if received.as_ref() == Some(expected) { Ok(()) } else { Err(Failure::Mismatch) }
}
