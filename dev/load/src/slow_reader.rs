//! A client that asks for a long stream and then reads nothing.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::check::StreamCheck;
use crate::closed::within;
use crate::link::Link;
use crate::report::{Failure, Meter};
use crate::streams::{self, Report as Streamed};
use crate::target::Target;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Length of the stream, in bytes.
    pub bytes: u64,
    /// How long to read nothing, after the first chunk.
    pub pause: Duration,
    /// Then reads the rest and checks it; otherwise the connection is closed.
    pub finish: bool,
    /// The longest that the rest may take.
    pub timeout: Duration,
    /// Streams at the same time that do read, over connections of their own.
    pub beside: Option<streams::Options>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bytes: 400_000_000,
            pause: Duration::from_secs(10),
            finish: false,
            timeout: Duration::from_secs(120),
            beside: None,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Report {
    /// Whether the stream began.
    pub began: bool,
    /// What went wrong, if anything did.
    pub failure: Option<Failure>,
    /// Data events read in the end; 0 when the rest was not read.
    pub events: u32,
    /// Seconds from sending the request to the end.
    pub seconds: f64,
    /// The streams beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<Streamed>,
}

const CHUNK_BYTES: u64 = 16 * 1024;

/// Runs it.
pub async fn run(target: &Target, options: &Options, meter: &Arc<Meter>) -> Report {
    let started = Instant::now();
    let mut report = Report::default();
    let slow = async {
        let result = read(target, options, &mut report).await;
        meter.end(&result);
        report.failure = result.err();
    };
    let beside = async {
        match &options.beside {
            Some(beside) => Some(streams::run(target, beside, &Arc::new(Meter::default())).await),
            None => None,
        }
    };
    let ((), beside) = tokio::join!(slow, beside);
    Report { seconds: started.elapsed().as_secs_f64(), beside, ..report }
}

async fn read(target: &Target, options: &Options, report: &mut Report) -> Result<(), Failure> {
    let chunks = options.bytes.div_ceil(CHUNK_BYTES);
    let body = target.body(true, &json!({"chunks": chunks, "chunk_bytes": CHUNK_BYTES}));
    let deadline = Instant::now() + options.timeout;
    let mut link = within(deadline, Link::open(target)).await?;
    let response = within(deadline, link.send(target.post("/v1/chat/completions", body))).await?;
    if response.status() != 200 {
        return Err(Failure::Status);
    }
    let mut body = response.into_body();
    let mut check = StreamCheck::default();
    while check.events() == 0 {
        let Some(piece) = within(deadline, link.piece(&mut body)).await? else {
            return Err(Failure::Mismatch);
        };
        check.feed(&piece, |_| {});
    }
    report.began = true;
    // Nobody polls the connection meanwhile, so nothing is read from its socket.
    sleep(options.pause).await;
    if !options.finish {
        return Ok(());
    }
    let rest = async {
        while let Some(piece) = link.piece(&mut body).await? {
            check.feed(&piece, |_| {});
        }
        check.finish().map_err(|_| Failure::Mismatch)
    };
    report.events = timeout(options.timeout, rest).await.unwrap_or(Err(Failure::Timeout))?;
    Ok(())
}
