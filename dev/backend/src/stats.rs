//! Counts what runs and what ended how, and lets tests wait for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::clock::micros_now;

/// Ends of requests that are remembered by id.
const MAX_CLOSES: usize = 20_000;

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

impl Ledger {
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            requests: self.requests.load(Relaxed),
            running: self.running.load(Relaxed),
            max_running: self.max_running.load(Relaxed),
            completed: self.completed.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            failed: self.failed.load(Relaxed),
            aborted: self.aborted.load(Relaxed),
            probes: self.probes.load(Relaxed),
            connections: self.connections.load(Relaxed),
            open_connections: self.open_connections.load(Relaxed),
        }
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
        let running = self.running.fetch_add(1, Relaxed) + 1;
        self.max_running.fetch_max(running, Relaxed);
        self.changed.notify_waiters();
        Running {
            ledger: self,
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
        self.ledger.running.fetch_sub(1, Relaxed);
        self.ledger.changed.notify_waiters();
    }
}
