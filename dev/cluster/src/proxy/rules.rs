//! Which faults meet which calls.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::call::Call;

/// What happens to a call instead of what should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The proxy answers with this status, and the API server never hears of the call.
    Answer {
        /// The status.
        status: u16,
        /// The value of `Retry-After`.
        retry_after_seconds: Option<u32>,
    },
    /// The connection breaks, and the API server never hears of the call.
    BreakBefore,
    /// The API server does what it is asked, and the connection breaks before its answer.
    BreakAfter,
    /// Nothing happens until the client goes away; the API server never hears of the call.
    Hang,
    /// The answer begins, and nothing of its body comes until the client goes away.
    Silence,
}

impl Fault {
    /// Somebody else changed the object.
    pub const CONFLICT: Self = Self::Answer { status: 409, retry_after_seconds: None };
    /// The user may not do that.
    pub const FORBIDDEN: Self = Self::Answer { status: 403, retry_after_seconds: None };
    /// The API server has too much to do, and asks for one second.
    pub const TOO_MANY_REQUESTS: Self = Self::Answer { status: 429, retry_after_seconds: Some(1) };
    /// The API server is broken.
    pub const INTERNAL_ERROR: Self = Self::Answer { status: 500, retry_after_seconds: None };
}

/// A fault that meets some of the calls.
#[derive(Clone)]
pub struct Rule {
    fault: Fault,
    /// The first of the matching calls that it meets, counted from one, and how many it meets.
    first: u64,
    times: u64,
    matches: Arc<dyn Fn(&Call) -> bool + Send + Sync>,
    seen: u64,
    hits: Arc<watch::Sender<u64>>,
}

impl Rule {
    /// Meets every call that matches.
    pub fn new(fault: Fault, matches: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Self {
        let hits = Arc::new(watch::Sender::new(0));
        Self { fault, first: 1, times: u64::MAX, matches: Arc::new(matches), seen: 0, hits }
    }

    /// Meets only the `n`-th call that matches; the first is 1.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        self.from(n).times(1)
    }

    /// Meets the `n`-th call that matches and those after it.
    #[must_use]
    pub fn from(mut self, n: u64) -> Self {
        self.first = n;
        self
    }

    /// Meets so many calls and no more.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    fn meets(&mut self, call: &Call) -> bool {
        if !(self.matches)(call) {
            return false;
        }
        self.seen += 1;
        self.seen >= self.first && self.seen - self.first < self.times
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, first, times, matches: _, seen, hits } = self;
        formatter
            .debug_struct("Rule")
            .field("fault", fault)
            .field("first", first)
            .field("times", times)
            .field("seen", seen)
            .field("hits", &*hits.borrow())
            .finish_non_exhaustive()
    }
}

/// Tells how often a rule met a call, also after it was removed.
#[derive(Debug, Clone)]
pub struct Hits(watch::Receiver<u64>);

impl Hits {
    /// Returns how many calls it met so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        *self.0.borrow()
    }

    /// Waits until it has met so many calls. The wait has no limit of its own.
    pub async fn reach(&mut self, count: u64) {
        if self.0.wait_for(|&hits| hits >= count).await.is_err() {
            // The rule is gone, and with it every chance of more.
            std::future::pending::<()>().await;
        }
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(crate) struct Rules(Mutex<Vec<Rule>>);

impl Rules {
    pub(crate) fn add(&self, rule: Rule) -> Hits {
        let hits = Hits(rule.hits.subscribe());
        self.lock().push(rule);
        hits
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// Counts the call for each rule that it matches, and returns the fault of the first that meets it.
    pub(crate) fn meet(&self, call: &Call) -> Option<Fault> {
        let mut first = None;
        for rule in self.lock().iter_mut() {
            if rule.meets(call) && first.is_none() {
                first = Some(rule.fault);
                rule.hits.send_modify(|hits| *hits += 1);
            }
        }
        first
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn met(rules: &Rules, paths: [&str; 4]) -> [Option<Fault>; 4] {
        paths.map(|path| rules.meet(&Call::read(&Method::POST, &path.parse().unwrap())))
    }

    #[test]
    fn a_rule_meets_the_calls_that_it_is_told_to_count_to() {
        let rules = Rules::default();
        let hits = rules.add(Rule::new(Fault::CONFLICT, |call| call.resource == "pods").from(2).times(1));
        let pods = "/api/v1/namespaces/a/pods";
        let calls = [pods, "/api/v1/namespaces/a/secrets", pods, pods];
        assert_eq!(met(&rules, calls), [None, None, Some(Fault::CONFLICT), None]);
        assert_eq!(hits.count(), 1);
    }

    #[test]
    fn the_first_of_two_rules_wins_and_both_count() {
        let rules = Rules::default();
        let first = rules.add(Rule::new(Fault::CONFLICT, |_| true).nth(2));
        let second = rules.add(Rule::new(Fault::FORBIDDEN, |_| true).from(2));
        let calls = ["/api/v1/namespaces"; 4];
        let forbidden = Some(Fault::FORBIDDEN);
        assert_eq!(met(&rules, calls), [None, Some(Fault::CONFLICT), forbidden, forbidden]);
        assert_eq!((first.count(), second.count()), (1, 2));
    }

    #[test]
    fn no_rule_is_in_force_after_all_were_cleared() {
        let rules = Rules::default();
        let hits = rules.add(Rule::new(Fault::Hang, |_| true));
        rules.clear();
        assert_eq!(met(&rules, ["/api/v1/namespaces"; 4]), [None; 4]);
        assert_eq!(hits.count(), 0);
    }
}
