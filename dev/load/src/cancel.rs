//! Closes the client's connection in a given phase of a request and asks the stub when its own was closed.

use std::sync::Arc;
use std::time::Duration;

use dev_backend::{CloseEvent, micros_now};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::hold::first_chunk;
use crate::link::Link;
use crate::report::{Failure, Histograms, Meter, Times};
use crate::target::Target;

/// When the client goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// The backend has sent nothing of a stream.
    BeforeHead,
    /// The backend has sent its head and no byte of the body.
    BeforeFirstByte,
    /// Chunks are coming.
    MidStream,
    /// Some chunks came, and nothing is being sent.
    MidStreamIdle,
    /// The answer is no stream, and the backend works on it.
    NonStreaming,
}

impl When {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::BeforeHead, Self::BeforeFirstByte, Self::MidStream, Self::MidStreamIdle, Self::NonStreaming];

    fn stub(self) -> Value {
        match self {
            Self::BeforeHead | Self::NonStreaming => json!({"fail": "stall", "at": "before_head"}),
            Self::BeforeFirstByte => json!({"fail": "stall", "at": "after_head"}),
            Self::MidStream => json!({"chunks": 1_000_000, "interval_ms": 5}),
            Self::MidStreamIdle => json!({"fail": "stall", "at": "mid_body", "after_chunks": 1}),
        }
    }

    /// The phase that the backend has to have reached.
    fn phase(self) -> &'static str {
        match self {
            Self::BeforeHead | Self::NonStreaming => "before_head",
            Self::BeforeFirstByte => "after_head",
            Self::MidStream | Self::MidStreamIdle => "mid_body",
        }
    }

    fn has_chunk(self) -> bool {
        matches!(self, Self::MidStream | Self::MidStreamIdle)
    }
}

impl std::str::FromStr for When {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        serde_json::from_value(Value::from(name)).map_err(|error| error.to_string())
    }
}

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// When the client goes away.
    pub when: When,
    /// Requests, one after another.
    pub requests: u32,
    /// The longest that a request may take to get there, and then the backend to notice.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { when: When::MidStream, requests: 100, patience: Duration::from_secs(5) }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Report {
    /// Requests sent.
    pub requests: u32,
    /// Requests that came to the phase in which they were to be closed.
    pub reached: u32,
    /// Requests whose close the backend noticed, of those.
    pub noticed: u32,
    /// From the client's close to the backend's connection being closed.
    pub latency: Times,
}

/// Runs it, asking the stub at `stub` directly.
///
/// # Errors
/// When the stub cannot be asked.
pub async fn run(
    target: &Target,
    stub: &Target,
    options: &Options,
    meter: &Arc<Meter>,
) -> Result<Report, Failure> {
    let Options { when, requests, patience } = *options;
    let latency = Histograms::default();
    let mut recorder = latency.recorder();
    let mut control = Link::open(stub).await?;
    let mut report = Report { requests, ..Report::default() };
    for number in 0..requests {
        // The time keeps ids of one run apart from those of another against the same stub.
        let id = format!("cancel-{}-{number}", micros_now());
        let mut script = when.stub();
        script["id"] = id.clone().into();
        let Ok(link) = reach(target, stub, &mut control, when, &script, patience).await else {
            meter.end::<()>(&Err(Failure::Timeout));
            // What was asked last may still be under way on it.
            control = Link::open(stub).await?;
            continue;
        };
        report.reached += 1;
        let closing = micros_now();
        drop(link);
        let path = format!("/stub/closed?id={id}&within_ms={}", patience.as_millis());
        let close: Option<CloseEvent> = get(stub, &mut control, &path).await?;
        if let Some(close) = close {
            report.noticed += 1;
            recorder.record(Duration::from_micros(close.at_micros.saturating_sub(closing)));
        }
        meter.end(&if report.noticed == report.reached { Ok(()) } else { Err(Failure::Timeout) });
    }
    drop(recorder);
    Ok(Report { latency: latency.times(), ..report })
}

/// Sends a request and returns its connection when both sides are where they should be.
async fn reach(
    target: &Target,
    stub: &Target,
    control: &mut Link,
    when: When,
    script: &Value,
    patience: Duration,
) -> Result<(Link, Option<hyper::body::Incoming>), Failure> {
    let mut link = Link::open(target).await?;
    let body = target.body(when != When::NonStreaming, script);
    let mut incoming = None;
    let client = async {
        let response = link.send(target.post("/v1/chat/completions", body)).await?;
        if response.status() != 200 {
            return Err(Failure::Status);
        }
        let body = incoming.insert(response.into_body());
        if when.has_chunk() { first_chunk(&mut link, body).await } else { std::future::pending().await }
    };
    let id = script["id"].as_str().unwrap_or_default();
    let path = format!("/stub/phase?id={id}&phase={}&within_ms={}", when.phase(), patience.as_millis());
    let backend = async {
        let reached: Option<Value> = get(stub, control, &path).await?;
        reached.map(|_| ()).ok_or(Failure::Timeout)
    };
    let both = async {
        if when.has_chunk() {
            return client.await;
        }
        // The client is polled only to send its request and to notice a failure.
        tokio::select! {
            reached = backend => reached,
            failed = client => failed,
        }
    };
    timeout(patience, both).await.unwrap_or(Err(Failure::Timeout))?;
    Ok((link, incoming))
}

async fn get<T: serde::de::DeserializeOwned>(
    stub: &Target,
    control: &mut Link,
    path: &str,
) -> Result<Option<T>, Failure> {
    let response = control.send(stub.get(path)).await?;
    let found = response.status() == 200;
    let body = control.whole(response.into_body()).await?;
    if !found {
        return Ok(None);
    }
    serde_json::from_slice(&body).map(Some).map_err(|_| Failure::Garbage)
}
