//! Opens streams and keeps them open and idle, for measuring what an open stream costs.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::check::StreamCheck;
use crate::closed::within;
use crate::link::Link;
use crate::report::{Failure, Meter, Tally};
use crate::streams::OPENING;
use crate::target::Target;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Streams to hold.
    pub streams: usize,
    /// Time in which all of them have to be open.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { streams: 1000, timeout: Duration::from_secs(60) }
    }
}

/// What was opened.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Report {
    /// Streams that are open: their first chunk came, and nothing after it will.
    pub open: usize,
    /// Seconds until then.
    pub seconds: f64,
    /// All attempts.
    #[serde(flatten)]
    pub tally: Tally,
}

/// Open streams, closed when dropped.
#[derive(Debug)]
pub struct Held {
    /// How they were opened.
    pub report: Report,
    streams: Vec<(Link, Incoming)>,
}

impl Held {
    /// Returns how many of the streams the other side has ended meanwhile.
    pub async fn broken(&mut self) -> usize {
        // Lets the runtime see what happened on the sockets meanwhile.
        tokio::task::yield_now().await;
        let mut broken = 0;
        for (link, _) in &mut self.streams {
            broken += usize::from(link.has_ended().await);
        }
        broken
    }

    /// Closes all streams.
    pub fn release(self) {
        drop(self);
    }
}

/// Opens the streams.
pub async fn open(target: &Target, options: &Options, meter: &Arc<Meter>) -> Held {
    let started = Instant::now();
    let deadline = started + options.timeout;
    let opening = Arc::new(Semaphore::new(OPENING));
    let body = target.body(true, &json!({"chunks": 2, "fail": "stall", "at": "mid_body", "after_chunks": 1}));
    let mut attempts = JoinSet::new();
    for _ in 0..options.streams {
        let (target, body, opening, meter) = (target.clone(), body.clone(), opening.clone(), meter.clone());
        attempts.spawn(async move {
            let mut status = None;
            let attempt = async {
                let _permit = opening.acquire().await;
                let mut link = Link::open(&target).await?;
                let response = link.send(target.post("/v1/chat/completions", body)).await?;
                status = Some(response.status().as_u16());
                if response.status() != 200 {
                    return Err(Failure::Status);
                }
                let mut body = response.into_body();
                first_chunk(&mut link, &mut body).await?;
                Ok((link, body))
            };
            let result = within(deadline, attempt).await;
            meter.end(&result);
            (status, result)
        });
    }
    let mut tally = Tally::default();
    let mut streams = Vec::with_capacity(options.streams);
    while let Some(ended) = attempts.join_next().await {
        let (status, result) = ended.expect("a connection's task does not panic");
        status.inspect(|status| tally.status(*status));
        tally.end(&result);
        streams.extend(result.ok());
    }
    let report = Report { open: streams.len(), seconds: started.elapsed().as_secs_f64(), tally };
    Held { report, streams }
}

/// Reads until the first data event is there.
pub(crate) async fn first_chunk(link: &mut Link, body: &mut Incoming) -> Result<(), Failure> {
    let mut check = StreamCheck::default();
    while check.events() == 0 {
        let Some(piece) = link.piece(body).await? else { return Err(Failure::Mismatch) };
        check.feed(&piece, |_| {});
    }
    Ok(())
}
