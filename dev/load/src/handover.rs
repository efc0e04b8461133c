//! How long a request that could not run goes on waiting once a worker can take it.

use std::sync::Arc;
use std::time::Duration;

use dev_backend::micros_now;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::closed::within;
use crate::link::Link;
use crate::report::{Failure, Histograms, Meter, Tally, Times};
use crate::session::{Registration, Session};
use crate::target::Target;

/// What happens while the request is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// It is queued, and the first worker that serves its model joins.
    Join,
    /// The worker that has it is gone, and another one is idle.
    Requeue,
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
    /// What happens.
    pub when: When,
    /// The secret that workers show.
    pub secret: String,
    /// Requests, one after another.
    pub requests: u32,
    /// The longest that one may take.
    pub patience: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Report {
    /// From the worker's registering, or from the first worker's end, to the client's having the whole answer.
    pub latency: Times,
    /// All requests.
    #[serde(flatten)]
    pub tally: Tally,
}

/// Time for a request to get into the queue. A request that needs more only makes its own figure worse.
const QUEUED: Duration = Duration::from_millis(20);
const ANSWER: &str = r#"{"id":"1","object":"chat.completion","choices":[]}"#;

/// Runs it.
pub async fn run(target: &Target, options: &Options, meter: &Arc<Meter>) -> Report {
    let latency = Histograms::default();
    let mut recorder = latency.recorder();
    let mut tally = Tally::default();
    for number in 0..options.requests {
        // A model of its own, so that no other worker serves it and no earlier one is remembered.
        let model = format!("handover-{}-{number}", micros_now());
        let target = target.clone().asking_for(&model);
        let deadline = Instant::now() + options.patience;
        let result = match options.when {
            When::Join => within(deadline, join(&target, &options.secret, &model)).await,
            When::Requeue => within(deadline, requeue(&target, &options.secret, &model)).await,
        };
        if let Ok(time) = &result {
            recorder.record(*time);
        }
        tally.end(&result);
        meter.end(&result);
    }
    drop(recorder);
    Report { latency: latency.times(), tally }
}

async fn join(target: &Target, secret: &str, model: &str) -> Result<Duration, Failure> {
    let worker = async {
        let mut session = Session::connect(target, secret).await?;
        sleep(QUEUED).await;
        let joining = Instant::now();
        session.announce(v1("joins", model)).await?;
        let request = session.request().await?;
        session.answer(&request, ANSWER).await?;
        Ok((joining, session))
    };
    // The session stays until the client has its answer.
    let ((joining, _session), answered) = tokio::try_join!(worker, ask(target))?;
    Ok(answered - joining)
}

async fn requeue(target: &Target, secret: &str, model: &str) -> Result<Duration, Failure> {
    let mut one = Session::connect(target, secret).await?;
    one.register(v1("one", model)).await?;
    let mut two = Session::connect(target, secret).await?;
    two.register(v1("two", model)).await?;
    let workers = async {
        // Reading a session can be given up at any time: what has come stays in its buffer.
        let (first, mut second) = tokio::select! {
            request = one.request() => request.map(|_| (one, two))?,
            request = two.request() => request.map(|_| (two, one))?,
        };
        let gone = Instant::now();
        drop(first);
        let request = second.request().await?;
        second.answer(&request, ANSWER).await?;
        Ok((gone, second))
    };
    let ((gone, _second), answered) = tokio::try_join!(workers, ask(target))?;
    Ok(answered - gone)
}

fn v1<'a>(name: &'a str, model: &'a str) -> Registration<'a> {
    Registration { name, model, slots: 1, extended: false }
}

/// Asks, and returns when the whole answer was there.
async fn ask(target: &Target) -> Result<Instant, Failure> {
    let mut link = Link::open(target).await?;
    let request = target.post("/v1/chat/completions", target.body(false, &json!({})));
    let response = link.send(request).await?;
    let good = response.status() == 200;
    let answer = link.whole(response.into_body()).await?;
    let answered = Instant::now();
    match (good, answer == ANSWER.as_bytes()) {
        (false, _) => Err(Failure::Status),
        (true, false) => Err(Failure::Mismatch),
        (true, true) => Ok(answered),
    }
}
