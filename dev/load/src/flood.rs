//! A plain v1 worker, which no window holds back, answers with a long stream of which the client reads nothing.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::closed::within;
use crate::link::Link;
use crate::report::{Failure, Meter};
use crate::session::{Registration, Session};
use crate::target::Target;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The secret that the worker shows.
    pub secret: String,
    /// Length of the stream, in bytes.
    pub bytes: u64,
    /// How long the client reads nothing after all of it was sent, or the relay has cancelled it.
    pub pause: Duration,
    /// The longest that sending may take.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            secret: String::new(),
            bytes: 400_000_000,
            pause: Duration::from_secs(2),
            timeout: Duration::from_secs(60),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Report {
    /// Bytes that the worker sent.
    pub sent_bytes: u64,
    /// Whether the relay cancelled the stream.
    pub cancelled: bool,
    /// What went wrong, if anything did.
    pub failure: Option<Failure>,
}

const CHUNK_BYTES: usize = 16 * 1024;
const MODEL: &str = "flood";

/// Runs it.
pub async fn run(target: &Target, options: &Options, meter: &Arc<Meter>) -> Report {
    let mut report = Report::default();
    let result = flood(&target.clone().asking_for(MODEL), options, &mut report).await;
    meter.end(&result);
    report.failure = result.err();
    report
}

async fn flood(target: &Target, options: &Options, report: &mut Report) -> Result<(), Failure> {
    let deadline = Instant::now() + options.timeout;
    let mut session = Session::connect(target, &options.secret).await?;
    session.register(Registration { name: "flood", model: MODEL, slots: 1, extended: false }).await?;
    let mut link = Link::open(target).await?;
    let answer = async {
        let asked = target.post("/v1/chat/completions", target.body(true, &json!({})));
        let response = link.send(asked).await?;
        if response.status() == 200 { Ok(response) } else { Err(Failure::Status) }
    };
    let sending = async {
        let request = session.request().await?;
        send(&mut session, &request, options.bytes, report).await
    };
    // From its head on the client only keeps the answer: nobody polls its connection.
    let (_response, ()) = within(deadline, async { tokio::try_join!(answer, sending) }).await?;
    sleep(options.pause).await;
    Ok(())
}

async fn send(
    session: &mut Session,
    request: &Value,
    bytes: u64,
    report: &mut Report,
) -> Result<(), Failure> {
    let text = format!("data: {}\n\n", "x".repeat(CHUNK_BYTES - 8));
    let chunk = json!({"type": "response_chunk", "request_id": request, "chunk": text});
    while report.sent_bytes < bytes {
        if session.is_cancelled(request)? {
            report.cancelled = true;
            return Ok(());
        }
        session.send(&chunk).await?;
        report.sent_bytes += text.len() as u64;
    }
    Ok(())
}
