//! Long streams and small requests without a pause, each byte of which is checked, and what went wrong when.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dev_e2e::client::{Answer, CHAT, Client, chat_for, post, try_ask};
use dev_load::StreamCheck;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Events of the shortest stream, 250 ms apart: eight seconds. The others are up to two seconds longer.
const EVENTS: u32 = 33;
const MORE: u32 = 8;
/// From one small request on a connection of its own to the next.
const FRESH_EVERY: Duration = Duration::from_millis(50);
/// Connections that are kept for one small request after the other.
const KEPT: u32 = 4;
/// From the end of one exchange to the client's next: less than the time for which a relay that leaves still takes requests,
/// so that who keeps a connection learns from an answer that it ends.
const PAUSE: Duration = Duration::from_millis(200);
/// How long any exchange may take; what waits in the queue is refused after a minute.
const LIMIT: Duration = Duration::from_secs(120);
/// Small requests of each sort that have to be answered after a disturbance before it counts as over.
const AFTERWARDS: u32 = 10;

/// How a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    /// A stream of many seconds.
    Stream,
    /// A small request on a connection of its own.
    Fresh,
    /// A small request on a connection that had others before.
    Kept,
}

const SORTS: [Sort; 3] = [Sort::Stream, Sort::Fresh, Sort::Kept];

/// What became of the load.
#[derive(Debug)]
struct Record {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is being done to the cluster.
    step: String,
    /// The number of the next exchange.
    next: u64,
    open: BTreeMap<u64, Sort>,
    /// Exchanges that went well since the step began.
    good: BTreeMap<Sort, u32>,
    /// The number of the first exchange after the disturbance.
    mark: u64,
    /// Exchanges from there on that have ended.
    after_mark: BTreeMap<Sort, u32>,
    /// The longest that a small request waited in the queue since the step began.
    waited: Duration,
    failures: Vec<String>,
}

impl State {
    /// The first of them: when one thing fails, so does much after it.
    fn failures(&self) -> String {
        self.failures.iter().take(20).map(|failure| format!("{failure}\n")).collect()
    }
}

impl Record {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Runs an exchange and notes how it went.
    async fn note(&self, sort: Sort, exchange: impl Future<Output = Result<Duration, String>>) {
        let (number, began) = {
            let mut state = self.state();
            let number = state.next;
            state.next += 1;
            state.open.insert(number, sort);
            (number, format!("at {:.1} s, during {:?}", self.seconds(), state.step))
        };
        let outcome = timeout(LIMIT, exchange).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no end within {} s", LIMIT.as_secs())));
        let mut state = self.state();
        state.open.remove(&number);
        if number >= state.mark {
            *state.after_mark.entry(sort).or_default() += 1;
        }
        match outcome {
            Ok(waited) => {
                *state.good.entry(sort).or_default() += 1;
                state.waited = state.waited.max(waited);
            }
            Err(error) => {
                let (ended, step) = (self.seconds(), &state.step);
                let text =
                    format!("{sort:?}, begun {began}, ended at {ended:.1} s, during {step:?}: {error}");
                state.failures.push(text);
            }
        }
    }

    /// Whether all that was under way at the mark has ended, and enough after it.
    fn is_settled(&self) -> bool {
        let state = self.state();
        let ended = state.open.range(..state.mark).next().is_none();
        let after = |sort| state.after_mark.get(&sort).is_some_and(|&count| count >= AFTERWARDS);
        ended && after(Sort::Fresh) && after(Sort::Kept)
    }
}

/// Clients that go on until this ends.
#[derive(Debug)]
pub(crate) struct Load {
    record: Arc<Record>,
    streams: u32,
    over: CancellationToken,
    clients: JoinSet<()>,
}

impl Load {
    /// Begins to ask for these models at an address, with so many streams at once.
    pub(crate) fn start(address: SocketAddr, models: &[&str], streams: u32) -> Self {
        let record = Arc::new(Record { start: Instant::now(), state: Mutex::default() });
        let (over, mut clients) = (CancellationToken::new(), JoinSet::new());
        let models: Vec<_> = models.iter().map(|&model| model.to_owned()).collect();
        let model = |number: u32| models[number as usize % models.len()].clone();
        for number in 0..streams {
            let events = EVENTS + MORE * number / streams;
            clients.spawn(stream(record.clone(), over.clone(), address, model(number), events));
        }
        for number in 0..KEPT {
            clients.spawn(kept(record.clone(), over.clone(), address, model(number)));
        }
        clients.spawn(fresh(record.clone(), over.clone(), address, models));
        Self { record, streams, over, clients }
    }

    /// Disturbs the cluster, waits until all that ran meanwhile has ended, and fails the test when any of it failed. Returns
    /// the longest that a small request waited in the queue.
    pub(crate) async fn during(&self, step: &str, disturb: impl Future<Output = ()>) -> Duration {
        let began = Instant::now();
        {
            let mut state = self.record.state();
            step.clone_into(&mut state.step);
            state.good.clear();
            state.waited = Duration::ZERO;
        }
        disturb.await;
        let disturbed = began.elapsed();
        {
            let mut state = self.record.state();
            state.mark = state.next;
            state.after_mark.clear();
        }
        let settled = async {
            while !self.record.is_settled() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, settled).await.unwrap_or_else(|_| panic!("{step}: {:#?}", self.record.state()));
        let state = self.record.state();
        let good = SORTS.map(|sort| state.good.get(&sort).copied().unwrap_or_default());
        let [streams, fresh, kept] = good;
        let text = format!(
            "{step}: {:.1} s, with what ran {:.1} s; whole: {streams} streams, {} small requests; failed: {}; \
             longest wait {} ms\n",
            disturbed.as_secs_f64(),
            began.elapsed().as_secs_f64(),
            fresh + kept,
            state.failures.len(),
            state.waited.as_millis(),
        );
        // Not by a macro: what those print is shown for failed tests only.
        io::stderr().write_all(text.as_bytes()).unwrap();
        assert!(state.failures.is_empty(), "{step}:\n{}", state.failures());
        // Each client has ended the stream that it had.
        let least = [self.streams, AFTERWARDS, AFTERWARDS];
        assert!(
            good.iter().zip(least).all(|(&good, least)| good >= least),
            "{step}: hardly any load: {good:?}"
        );
        state.waited
    }

    /// Lets what runs end, and fails the test when any of it fails.
    pub(crate) async fn end(mut self) {
        self.over.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        let state = self.record.state();
        assert!(state.failures.is_empty(), "at the end:\n{}", state.failures());
    }
}

/// Opens one stream after the other.
async fn stream(
    record: Arc<Record>,
    over: CancellationToken,
    address: SocketAddr,
    model: String,
    events: u32,
) {
    while !over.is_cancelled() {
        let script = json!({ "chunks": events, "interval_ms": 250 });
        let request = post(CHAT, chat_for(&model, true, &script));
        let exchange = async {
            let answer = try_ask(address, request).await.map_err(|error| error.to_string())?;
            whole(well(answer).await?, events).await?;
            Ok(Duration::ZERO)
        };
        record.note(Sort::Stream, exchange).await;
        sleep(PAUSE).await;
    }
}

/// Sends a small request every while, whatever becomes of those before it.
async fn fresh(record: Arc<Record>, over: CancellationToken, address: SocketAddr, models: Vec<String>) {
    let (mut clients, mut due) = (JoinSet::new(), interval(FRESH_EVERY));
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for model in models.into_iter().cycle() {
        due.tick().await;
        if over.is_cancelled() {
            break;
        }
        let record = record.clone();
        clients.spawn(async move {
            let exchange = async {
                let answer = try_ask(address, small(&model)).await.map_err(|error| error.to_string())?;
                exact(well(answer).await?).await
            };
            record.note(Sort::Fresh, exchange).await;
        });
        while let Some(ended) = clients.try_join_next() {
            ended.unwrap();
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}

/// Sends small requests on one connection, until an answer says that it is the last one there. Nothing is sent again: a
/// connection may end at no other time.
async fn kept(record: Arc<Record>, over: CancellationToken, address: SocketAddr, model: String) {
    let mut kept = None;
    while !over.is_cancelled() {
        let exchange = async {
            let error = |error: io::Error| error.to_string();
            let mut client = match kept.take() {
                Some(client) => client,
                None => Client::connect(address).await.map_err(error)?,
            };
            let answer = well(client.send(small(&model)).await.map_err(error)?).await?;
            let is_last = answer.header("connection") == Some("close");
            let waited = exact(answer).await?;
            kept = (!is_last).then_some(client);
            Ok(waited)
        };
        record.note(Sort::Kept, exchange).await;
        sleep(PAUSE).await;
    }
}

fn small(model: &str) -> Request<Full<Bytes>> {
    post(CHAT, chat_for(model, false, &json!({})))
}

/// Returns an answer whose status is good; otherwise what it says.
async fn well(mut answer: Answer) -> Result<Answer, String> {
    if answer.status() == 200 {
        return Ok(answer);
    }
    let mut text = format!("{}: ", answer.status());
    while let Some(Ok(part)) = answer.next().await {
        text += &String::from_utf8_lossy(&part);
    }
    Err(text)
}

/// Reads a stream, which has to be what the stub sent to its last byte.
async fn whole(mut answer: Answer, events: u32) -> Result<(), String> {
    let (mut check, mut last) = (StreamCheck::default(), Bytes::new());
    while let Some(part) = answer.next().await {
        let part = part.map_err(|error| {
            format!("{error} after {} events; the last: {}", check.events(), String::from_utf8_lossy(&last))
        })?;
        check.feed(&part, |_| {});
        last = part;
    }
    match check.finish() {
        Ok(came) if came == events => Ok(()),
        Ok(came) => Err(format!("a stream of {events} events has {came}")),
        Err(fault) => Err(fault.to_string()),
    }
}

/// Reads an answer, which has to be what the stub sent to its last byte; returns how long the request had waited.
async fn exact(mut answer: Answer) -> Result<Duration, String> {
    let number = |name| answer.header(name).and_then(|text| text.parse::<u64>().ok());
    let missing = |name| format!("no header {name}");
    let crc32 = number("x-stub-crc32").ok_or_else(|| missing("x-stub-crc32"))?;
    let waited = number("x-modelrelay-queue-ms").ok_or_else(|| missing("x-modelrelay-queue-ms"))?;
    let mut sum = crc32fast::Hasher::new();
    while let Some(part) = answer.next().await {
        sum.update(&part.map_err(|error| error.to_string())?);
    }
    if u64::from(sum.finalize()) != crc32 {
        return Err("the bytes do not fit their CRC".to_owned());
    }
    Ok(Duration::from_millis(waited))
}
