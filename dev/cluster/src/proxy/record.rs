//! What went through the proxy.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::call::{Call, Verb};

/// Calls that are kept whole; counts go on without them.
const KEPT: usize = 20_000;

/// A call and what became of it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// What was asked.
    pub call: Call,
    /// When, counted from the start of the proxy.
    pub at: Duration,
    /// The status that the client was given, or is about to be given; none while it waits, and when the connection broke.
    pub status: Option<u16>,
}

/// What calls are counted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Who asked, when the proxy gave them their token.
    pub user: Option<String>,
    /// What was asked.
    pub verb: Verb,
    /// The API group; empty for the core group.
    pub group: String,
    /// The kind in plural, with the part of it after a slash.
    pub resource: String,
}

#[derive(Debug, Default)]
pub(crate) struct Record(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The number of the first call that is kept.
    first: u64,
    calls: VecDeque<Recorded>,
    counts: BTreeMap<Kind, u64>,
}

impl Record {
    /// Adds a call and returns its number.
    pub(crate) fn begin(&self, call: Call, at: Duration) -> u64 {
        let mut inner = self.lock();
        let kind = Kind {
            user: call.user.clone(),
            verb: call.verb,
            group: call.group.clone(),
            resource: call.resource.clone(),
        };
        *inner.counts.entry(kind).or_default() += 1;
        if inner.calls.len() == KEPT {
            inner.calls.pop_front();
            inner.first += 1;
        }
        inner.calls.push_back(Recorded { call, at, status: None });
        inner.first + inner.calls.len() as u64 - 1
    }

    /// Says how a call was answered.
    pub(crate) fn answered(&self, number: u64, status: u16) {
        let mut inner = self.lock();
        let index = number.checked_sub(inner.first).and_then(|index| usize::try_from(index).ok());
        // It may have been forgotten.
        if let Some(recorded) = index.and_then(|index| inner.calls.get_mut(index)) {
            recorded.status = Some(status);
        }
    }

    pub(crate) fn calls(&self) -> Vec<Recorded> {
        self.lock().calls.iter().cloned().collect()
    }

    pub(crate) fn counts(&self) -> BTreeMap<Kind, u64> {
        self.lock().counts.clone()
    }

    pub(crate) fn forget(&self) {
        let mut inner = self.lock();
        inner.first += inner.calls.len() as u64;
        inner.calls.clear();
        inner.counts.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn call() -> Call {
        Call::read(&Method::GET, &"/api/v1/pods".parse().unwrap())
    }

    #[test]
    fn an_answer_to_a_call_that_was_forgotten_is_not_taken_for_another() {
        let record = Record::default();
        let forgotten = record.begin(call(), Duration::ZERO);
        record.forget();
        let kept = record.begin(call(), Duration::ZERO);
        record.answered(forgotten, 500);
        record.answered(kept, 200);
        let statuses: Vec<_> = record.calls().iter().map(|recorded| recorded.status).collect();
        assert_eq!(statuses, [Some(200)]);
    }

    #[test]
    fn counts_go_on_when_calls_are_no_longer_kept() {
        let record = Record::default();
        for _ in 0..KEPT + 2 {
            record.begin(call(), Duration::ZERO);
        }
        assert_eq!(record.calls().len(), KEPT);
        assert_eq!(record.counts().into_values().sum::<u64>(), KEPT as u64 + 2);
    }
}
