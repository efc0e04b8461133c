//! Open loop: requests at a constant rate, whether or not earlier ones are answered. Latency counts from
//! when a request was due, so a stall shows in all the requests it delayed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::closed::{ask, within};
use crate::report::{Histograms, Meter, Tally, Times};
use crate::streams;
use crate::target::Target;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Requests per second.
    pub rate: f64,
    /// For how long.
    pub duration: Duration,
    /// Connections; a request waits for one when all are busy, and its time counts.
    pub connections: usize,
    /// Bytes of text in an answer.
    pub answer_bytes: u64,
    /// Streams that run at the same time, over connections of their own.
    pub streams: Option<streams::Options>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rate: 200.0,
            duration: Duration::from_secs(5),
            connections: 64,
            answer_bytes: 64,
            streams: None,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Report {
    /// Requests per second that were asked for.
    pub rate: f64,
    /// From when a request was due to having the whole answer.
    pub latency: Times,
    /// From when it was really sent, which leaves out the generator's own lateness.
    pub service: Times,
    /// All requests.
    #[serde(flatten)]
    pub tally: Tally,
    /// The streams beside them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<streams::Report>,
}

const GRACE: Duration = Duration::from_secs(10);
/// The system wakes a sleeping thread about this much late.
const WAKE: Duration = Duration::from_micros(80);
/// Up to this rate the last moment before a request is spent spinning.
const SPIN_RATE: f64 = 1000.0;

/// Hands requests that are due to connections that are idle.
#[derive(Debug, Default)]
struct Desk {
    idle: Vec<oneshot::Sender<Instant>>,
    /// Bounded by rate times duration.
    waiting: VecDeque<Instant>,
    over: bool,
}

/// Runs it.
pub async fn run(target: &Target, options: &Options, meter: &Arc<Meter>) -> Report {
    let beside = async {
        match &options.streams {
            Some(options) => Some(streams::run(target, options, &Arc::new(Meter::default())).await),
            None => None,
        }
    };
    let (report, streams) = tokio::join!(requests(target, options, meter), beside);
    Report { streams, ..report }
}

async fn requests(target: &Target, options: &Options, meter: &Arc<Meter>) -> Report {
    let desk = Arc::new(Mutex::new(Desk::default()));
    let latency = Arc::new(Histograms::default());
    let service = Arc::new(Histograms::default());
    let stub = if options.answer_bytes == 64 { json!({}) } else { json!({"bytes": options.answer_bytes}) };
    let body = target.body(false, &stub);
    let start = Instant::now() + Duration::from_millis(20);
    let deadline = start + options.duration + GRACE;

    let mut connections = JoinSet::new();
    for _ in 0..options.connections {
        let (target, body, desk, meter) = (target.clone(), body.clone(), desk.clone(), meter.clone());
        let (latency, service) = (latency.clone(), service.clone());
        connections.spawn(async move {
            let mut tally = Tally::default();
            let (mut latency, mut service) = (latency.recorder(), service.recorder());
            let mut link = None;
            while let Some(due) = next(&desk).await {
                let _underway = meter.begin();
                let sent = Instant::now();
                let mut status = None;
                let result = within(deadline, ask(&target, &body, &mut link, &mut status)).await;
                if result.is_ok() {
                    latency.record(due.elapsed());
                    service.record(sent.elapsed());
                }
                status.inspect(|status| tally.status(*status));
                tally.end(&result);
                meter.end(&result);
            }
            tally
        });
    }
    let (rate, duration, pacing) = (options.rate, options.duration, desk.clone());
    // Timers of the runtime are a millisecond coarse, which is more than what is to be measured.
    let pacer = tokio::task::spawn_blocking(move || pace(&pacing, start, rate, duration));
    pacer.await.expect("the pacer does not panic");
    let mut tally = Tally::default();
    while let Some(ended) = connections.join_next().await {
        tally.add(&ended.expect("a connection's task does not panic"));
    }
    Report { rate, latency: latency.times(), service: service.times(), tally, streams: None }
}

const NO_PANIC: &str = "no holder of this lock panics";

/// Returns when the next request for this connection was due, or `None` when there are no more.
async fn next(desk: &Mutex<Desk>) -> Option<Instant> {
    let due = {
        let mut desk = desk.lock().expect(NO_PANIC);
        if let Some(due) = desk.waiting.pop_front() {
            return Some(due);
        }
        if desk.over {
            return None;
        }
        let (wake, due) = oneshot::channel();
        desk.idle.push(wake);
        due
    };
    due.await.ok()
}

fn pace(desk: &Mutex<Desk>, start: Instant, rate: f64, duration: Duration) {
    let count = (rate * duration.as_secs_f64()).round() as u64;
    for number in 0..count {
        let due = start + Duration::from_secs_f64(number as f64 / rate);
        wait_until(due, rate <= SPIN_RATE);
        let mut desk = desk.lock().expect(NO_PANIC);
        let idle = desk.idle.pop();
        if idle.is_none_or(|idle| idle.send(due).is_err()) {
            desk.waiting.push_back(due);
        }
    }
    let mut desk = desk.lock().expect(NO_PANIC);
    desk.over = true;
    desk.idle.clear();
}

fn wait_until(due: Instant, spin: bool) {
    let left = due.saturating_duration_since(Instant::now());
    if spin {
        std::thread::sleep(left.saturating_sub(WAKE));
        while Instant::now() < due {
            std::hint::spin_loop();
        }
    } else {
        std::thread::sleep(left);
    }
}
