//! Counts what runs and what ended how, and lets tests wait for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::micros_now;

/// Ends of requests that are remembered by id.
const MAX_CLOSES: usize = 20_000;

/// How long after a client closed its connection that may be noticed.
const NOTICE: Duration = Duration::from_secs(1);

/// How far the answer to a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The head is there, the body not yet.
    ReadingBody,
    /// The request is there, nothing of the answer was sent.
    BeforeHead,
    /// The head was sent, nothing of the body.
    AfterHead,
    /// Some of the body was sent.
    MidBody,
}

/// A client closed its connection while its request ran.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct CloseEvent {
    /// The request's `x-stub-id`, empty if it had none.
    pub id: String,
    /// When the stub noticed, in microseconds since the epoch.
    pub at_micros: u64,
    /// How far the answer was.
    pub phase: Phase,
}

/// What happened so far. Only requests to model routes count, `probes` apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Stats {
    /// Requests that came.
    pub requests: u64,
    /// Requests running now.
    pub running: u64,
    /// The most that ever ran at once.
    pub max_running: u64,
    /// The same, but a request does not count beside those that began in the second before the stub noticed that its
    /// client has closed: the client knew that earlier.
    pub max_open: u64,
    /// Requests answered to the end.
    pub completed: u64,
    /// Requests whose client closed the connection before the end.
    pub cancelled: u64,
    /// Requests that failed because their script said so.
    pub failed: u64,
    /// Requests cut off by the end of the backend.
    pub aborted: u64,
    /// Requests to all other routes, those of the stub itself not counted.
    pub probes: u64,
    /// Connections that came.
    pub connections: u64,
    /// Connections open now.
    pub open_connections: u64,
}

/// A wait that did not end in time, with what was seen instead.
#[derive(Debug, Clone)]
pub struct Overdue {
    /// What was waited for.
    pub waited_for: String,
    /// The figures at the deadline.
    pub stats: Stats,
}

impl std::fmt::Display for Overdue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no {} in time; the stub has {:?}", self.waited_for, self.stats)
    }
}

impl std::error::Error for Overdue {}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    requests: AtomicU64,
    running: AtomicU64,
    max_running: AtomicU64,
    begun: Mutex<Begun>,
    completed: AtomicU64,
    cancelled: AtomicU64,
    failed: AtomicU64,
    aborted: AtomicU64,
    pub(crate) probes: AtomicU64,
    connections: AtomicU64,
    open_connections: AtomicU64,
    named: Mutex<Named>,
    changed: Notify,
}

/// What is kept of requests that have an id.
#[derive(Debug, Default)]
struct Named {
    running: BTreeMap<String, Phase>,
    closes: VecDeque<CloseEvent>,
}

/// How many ran when each request began, of those that began lately.
#[derive(Debug, Default)]
struct Begun {
    lately: VecDeque<Start>,
    /// Requests that began.
    count: u64,
    /// The most that ran when any before those began.
    most: u64,
}

#[derive(Clone, Copy, Debug)]
struct Start {
    number: u64,
    at: Instant,
    running: u64,
}

impl Begun {
    /// Notes that a request began and how many run with it; returns its number.
    fn note(&mut self, running: u64) -> u64 {
        let at = Instant::now();
        while let Some(start) = self.lately.pop_front_if(|start| start.at + NOTICE < at) {
            self.most = self.most.max(start.running);
        }
        self.count += 1;
        self.lately.push_back(Start { number: self.count, at, running });
        self.count
    }

    /// A request's client has closed: it may not have run any more when those began that did so lately.
    fn was_closed(&mut self, number: u64) {
        let now = Instant::now();
        for start in self.lately.iter_mut().filter(|start| start.number > number && now <= start.at + NOTICE)
        {
            start.running -= 1;
        }
    }

    fn most(&self) -> u64 {
        self.lately.iter().map(|start| start.running).fold(self.most, u64::max)
    }
}

impl Ledger {
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            requests: self.requests.load(Relaxed),
            running: self.running.load(Relaxed),
            max_running: self.max_running.load(Relaxed),
            max_open: self.begun().most(),
            completed: self.completed.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            failed: self.failed.load(Relaxed),
            aborted: self.aborted.load(Relaxed),
            probes: self.probes.load(Relaxed),
            connections: self.connections.load(Relaxed),
            open_connections: self.open_connections.load(Relaxed),
        }
    }

    fn begun(&self) -> std::sync::MutexGuard<'_, Begun> {
        self.begun.lock().expect("no holder of this lock panics")
    }

    fn named(&self) -> std::sync::MutexGuard<'_, Named> {
        self.named.lock().expect("no holder of this lock panics")
    }

    pub(crate) fn close_of(&self, id: &str) -> Option<CloseEvent> {
        self.named().closes.iter().rev().find(|close| close.id == id).cloned()
    }

    pub(crate) fn closes(&self) -> Vec<CloseEvent> {
        self.named().closes.iter().cloned().collect()
    }

    pub(crate) fn phase_of(&self, id: &str) -> Option<Phase> {
        self.named().running.get(id).copied()
    }

    /// Waits until `look` finds something, for at most `within`.
    pub(crate) async fn wait<T>(
        &self,
        within: Duration,
        waited_for: impl FnOnce() -> String,
        mut look: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T, Overdue> {
        let search = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // Registered before looking, so that no change falls between.
                changed.as_mut().enable();
                if let Some(found) = look(self) {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(within, search)
            .await
            .map_err(|_| Overdue { waited_for: waited_for(), stats: self.stats() })
    }

    pub(crate) fn connection(&self) -> OpenConnection<'_> {
        self.connections.fetch_add(1, Relaxed);
        self.open_connections.fetch_add(1, Relaxed);
        self.changed.notify_waiters();
        OpenConnection { ledger: self }
    }

    /// Counts a request in, until the guard is dropped.
    pub(crate) fn begin(&self) -> Running<'_> {
        self.requests.fetch_add(1, Relaxed);
        let mut begun = self.begun();
        let running = self.running.fetch_add(1, Relaxed) + 1;
        self.max_running.fetch_max(running, Relaxed);
        let number = begun.note(running);
        drop(begun);
        self.changed.notify_waiters();
        Running {
            ledger: self,
            number,
            id: None,
            phase: AtomicU8::new(Phase::ReadingBody as u8),
            counter: &self.aborted,
        }
    }
}

/// A connection that is open as long as this lives.
#[derive(Debug)]
pub(crate) struct OpenConnection<'a> {
    ledger: &'a Ledger,
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.ledger.open_connections.fetch_sub(1, Relaxed);
        self.ledger.changed.notify_waiters();
    }
}

/// A request that runs as long as this lives. Unless told otherwise it ends as aborted.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    ledger: &'a Ledger,
    number: u64,
    id: Option<String>,
    phase: AtomicU8,
    counter: &'a AtomicU64,
}

impl Running<'_> {
    pub(crate) fn name(&mut self, id: Option<&str>) {
        if self.id.as_deref() == id {
            return;
        }
        self.forget();
        self.id = id.map(str::to_owned);
        self.enter(self.phase());
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::ReadingBody,
            1 => Phase::BeforeHead,
            2 => Phase::AfterHead,
            _ => Phase::MidBody,
        }
    }

    /// Notes how far the answer has come.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        if let Some(id) = &self.id {
            self.ledger.named().running.insert(id.clone(), phase);
            self.ledger.changed.notify_waiters();
        }
    }

    pub(crate) fn completed(mut self) {
        self.counter = &self.ledger.completed;
    }

    pub(crate) fn failed(mut self) {
        self.counter = &self.ledger.failed;
    }

    /// The client closed its connection just now.
    pub(crate) fn cancelled(mut self) {
        let at_micros = micros_now();
        self.counter = &self.ledger.cancelled;
        let close = CloseEvent { id: self.id.clone().unwrap_or_default(), at_micros, phase: self.phase() };
        let mut named = self.ledger.named();
        if named.closes.len() == MAX_CLOSES {
            named.closes.pop_front();
        }
        named.closes.push_back(close);
    }

    fn forget(&self) {
        if let Some(id) = &self.id {
            self.ledger.named().running.remove(id);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.forget();
        self.counter.fetch_add(1, Relaxed);
        let mut begun = self.ledger.begun();
        self.ledger.running.fetch_sub(1, Relaxed);
        if std::ptr::eq(self.counter, &raw const self.ledger.cancelled) {
            begun.was_closed(self.number);
        }
        drop(begun);
        self.ledger.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_whose_client_had_closed_does_not_count_beside_the_next() {
        let ledger = Ledger::default();
        let (first, second) = (ledger.begin(), ledger.begin());
        first.cancelled();
        let third = ledger.begin();
        assert_eq!((ledger.stats().max_running, ledger.stats().max_open), (2, 2));
        second.cancelled();
        assert_eq!((ledger.stats().max_running, ledger.stats().max_open), (2, 1));
        let fourth = ledger.begin();
        third.completed();
        fourth.cancelled();
        assert_eq!(ledger.stats().max_open, 2, "what ended otherwise ran until then");
    }
}
