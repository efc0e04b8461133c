//! Rate limits of client keys: requests and tokens per minute, requests at once.
//!
//! Two token buckets and a count per key. Buckets hold a minute's worth and start full. The token bucket admits
//! while it is above zero and is charged when a request ends, so it may go below zero and is waited out. Usage
//! belongs to a key's id and outlives a change of the settings. Several relay replicas divide a key's limits between
//! them, without asking one another: a client whose connection stays with one of them has that one's part.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a key may use; nothing is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests a minute, in bursts of as many.
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, in bursts of as many.
    pub tokens_per_minute: Option<u32>,
    /// Requests at once.
    pub max_concurrent: Option<u32>,
}

impl KeyLimits {
    /// The part of one of several relay replicas: rounded up, so that it is never nothing.
    pub fn part_of(self, replicas: u32) -> Self {
        let part = |limit: Option<u32>| limit.map(|limit| limit.div_ceil(replicas.max(1)).max(1));
        Self {
            requests_per_minute: part(self.requests_per_minute),
            tokens_per_minute: part(self.tokens_per_minute),
            max_concurrent: part(self.max_concurrent),
        }
    }
}

/// Which limit is reached, and when there is likely room again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverLimit {
    /// Too many requests in the last minute.
    #[error("over the limit of requests per minute")]
    Requests {
        /// When the next one is admitted.
        retry_after: Duration,
    },
    /// Too many tokens in the last minute.
    #[error("over the limit of tokens per minute")]
    Tokens {
        /// When the bucket is above zero again.
        retry_after: Duration,
    },
    /// Too many requests at once.
    #[error("over the limit of requests at once")]
    Concurrency {
        /// A guess: nobody knows when one ends.
        retry_after: Duration,
    },
}

impl OverLimit {
    /// When there is likely room again.
    pub fn retry_after(&self) -> Duration {
        match *self {
            Self::Requests { retry_after }
            | Self::Tokens { retry_after }
            | Self::Concurrency { retry_after } => retry_after,
        }
    }
}

const CONCURRENCY_RETRY: Duration = Duration::from_secs(1);

/// One unit of a bucket, in parts: at `n` units a minute, a nanosecond brings `n` parts, so no time is rounded away.
const PARTS_PER_UNIT: i128 = 60_000_000_000;

#[derive(Debug)]
struct Bucket {
    per_minute: u32,
    parts: i128,
    filled_at: Instant,
}

impl Bucket {
    fn full(per_minute: u32, now: Instant) -> Self {
        Self { per_minute, parts: i128::from(per_minute) * PARTS_PER_UNIT, filled_at: now }
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at).as_nanos();
        let brought = i128::try_from(elapsed).unwrap_or(i128::MAX).saturating_mul(self.per_minute.into());
        self.parts = self.parts.saturating_add(brought).min(i128::from(self.per_minute) * PARTS_PER_UNIT);
        self.filled_at = self.filled_at.max(now);
    }

    fn take(&mut self, units: u64) {
        self.parts = self.parts.saturating_sub(i128::from(units) * PARTS_PER_UNIT);
    }

    /// How long until the bucket holds `parts`; nothing when it does.
    fn wait_for(&self, parts: i128) -> Option<Duration> {
        let missing = parts - self.parts;
        if missing <= 0 {
            return None;
        }
        let rate = i128::from(self.per_minute.max(1));
        let nanoseconds = (missing + rate - 1) / rate;
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }
}

/// Follows a limit: a new one starts full, a lowered one caps what is there, a lifted one is forgotten.
fn follow(bucket: &mut Option<Bucket>, limit: Option<u32>, now: Instant) {
    match (bucket.as_mut(), limit) {
        (Some(bucket), Some(per_minute)) => {
            bucket.fill(now);
            bucket.per_minute = per_minute;
            bucket.parts = bucket.parts.min(i128::from(per_minute) * PARTS_PER_UNIT);
        }
        (None, Some(per_minute)) => *bucket = Some(Bucket::full(per_minute, now)),
        (_, None) => *bucket = None,
    }
}

/// What one key has used lately; pure.
#[derive(Debug, Default)]
struct Usage {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    running: u32,
}

impl Usage {
    fn start(&mut self, limits: KeyLimits, now: Instant) -> Result<(), OverLimit> {
        follow(&mut self.requests, limits.requests_per_minute, now);
        follow(&mut self.tokens, limits.tokens_per_minute, now);
        if limits.max_concurrent.is_some_and(|most| self.running >= most) {
            return Err(OverLimit::Concurrency { retry_after: CONCURRENCY_RETRY });
        }
        if let Some(retry_after) = self.tokens.as_ref().and_then(|tokens| tokens.wait_for(1)) {
            return Err(OverLimit::Tokens { retry_after });
        }
        if let Some(requests) = &mut self.requests {
            if let Some(retry_after) = requests.wait_for(PARTS_PER_UNIT) {
                return Err(OverLimit::Requests { retry_after });
            }
            requests.take(1);
        }
        self.running += 1;
        Ok(())
    }

    fn charge(&mut self, tokens: u64, now: Instant) {
        if let Some(bucket) = &mut self.tokens {
            bucket.fill(now);
            bucket.take(tokens);
        }
    }

    fn end(&mut self) {
        self.running = self.running.saturating_sub(1);
    }
}

/// The usage of one key, shared by its requests and by successive settings.
#[derive(Debug, Default)]
pub struct KeyUsage(Mutex<Usage>);

impl KeyUsage {
    /// Counts a request; a limit that changed since the last one applies at once.
    ///
    /// # Errors
    /// Which limit is reached. Then nothing was counted.
    pub fn try_acquire(self: &Arc<Self>, limits: KeyLimits, now: Instant) -> Result<Permit, OverLimit> {
        self.with(|usage| usage.start(limits, now))?;
        Ok(Permit { usage: self.clone() })
    }

    /// How many requests hold a permit.
    pub fn running(&self) -> u32 {
        self.with(|usage| usage.running)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Usage) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One request that was counted; dropping it ends the request.
#[derive(Debug)]
pub struct Permit {
    usage: Arc<KeyUsage>,
}

impl Permit {
    /// Charges tokens to the key's limit, once the request's usage is known.
    pub fn charge(&self, tokens: u64, now: Instant) {
        self.usage.with(|usage| usage.charge(tokens, now));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.usage.with(Usage::end);
    }
}

/// The usage of all keys by id, kept while the settings change.
#[derive(Debug, Default)]
pub struct Limiter {
    keys: HashMap<Arc<str>, Arc<KeyUsage>>,
}

impl Limiter {
    /// The usage of a key, new if it was never seen.
    pub fn usage(&mut self, id: &Arc<str>) -> Arc<KeyUsage> {
        self.keys.entry(id.clone()).or_default().clone()
    }

    /// Forgets all keys but these.
    pub fn keep_only(&mut self, ids: &HashSet<Arc<str>>) {
        self.keys.retain(|id, _| ids.contains(id));
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    const NONE: KeyLimits =
        KeyLimits { requests_per_minute: None, tokens_per_minute: None, max_concurrent: None };

    #[test]
    fn replicas_divide_limits_and_each_has_one_at_least() {
        let whole = KeyLimits { requests_per_minute: Some(10), max_concurrent: Some(2), ..NONE };
        let table = [(1, 10, 2), (3, 4, 1), (5, 2, 1), (100, 1, 1), (0, 10, 2)];
        for (replicas, requests, concurrent) in table {
            let part = whole.part_of(replicas);
            let expected =
                KeyLimits { requests_per_minute: Some(requests), max_concurrent: Some(concurrent), ..NONE };
            assert_eq!(part, expected, "{replicas} replicas");
        }
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn requests_are_admitted_at_their_exact_rate_after_a_burst() {
        let (usage, start) = (Arc::new(KeyUsage::default()), Instant::now());
        let limits = KeyLimits { requests_per_minute: Some(3), ..NONE };
        for _ in 0..3 {
            assert!(usage.try_acquire(limits, start).is_ok());
        }
        let over = |at, wait| {
            let refused = usage.try_acquire(limits, start + at).unwrap_err();
            assert_eq!(refused, OverLimit::Requests { retry_after: wait });
        };
        over(ms(0), ms(20_000));
        over(ms(19_999), ms(1));
        assert!(usage.try_acquire(limits, start + ms(20_000)).is_ok());
        over(ms(20_000), ms(20_000));
        assert!(usage.try_acquire(limits, start + ms(40_000)).is_ok());
        // A long rest fills one minute's worth and no more.
        for _ in 0..3 {
            assert!(usage.try_acquire(limits, start + ms(3_600_000)).is_ok());
        }
        over(ms(3_600_000), ms(20_000));
    }

    #[test]
    fn retry_after_is_long_enough_to_the_nanosecond() {
        let (usage, start) = (Arc::new(KeyUsage::default()), Instant::now());
        let limits = KeyLimits { requests_per_minute: Some(7), ..NONE };
        let mut now = start;
        for _ in 0..100 {
            while usage.try_acquire(limits, now).is_ok() {}
            let wait = usage.try_acquire(limits, now).unwrap_err().retry_after();
            assert!(usage.try_acquire(limits, now + wait - Duration::from_nanos(1)).is_err());
            now += wait;
            assert!(usage.try_acquire(limits, now).is_ok());
        }
    }

    #[test]
    fn tokens_admit_while_above_zero_and_are_charged_at_the_end() {
        let (usage, start) = (Arc::new(KeyUsage::default()), Instant::now());
        let limits = KeyLimits { tokens_per_minute: Some(600), ..NONE };
        let (one, two) =
            (usage.try_acquire(limits, start).unwrap(), usage.try_acquire(limits, start).unwrap());
        one.charge(599, start);
        assert!(usage.try_acquire(limits, start).is_ok(), "one token is left");
        two.charge(301, start);
        let refused = usage.try_acquire(limits, start).unwrap_err();
        // 300 below zero at ten a second, and above zero a moment later.
        assert_eq!(refused, OverLimit::Tokens { retry_after: ms(30_000) + Duration::from_nanos(1) });
        assert!(usage.try_acquire(limits, start + ms(30_000)).is_err());
        assert!(usage.try_acquire(limits, start + ms(30_001)).is_ok());
    }

    #[test]
    fn refused_requests_cost_nothing() {
        let (usage, start) = (Arc::new(KeyUsage::default()), Instant::now());
        let limits = KeyLimits { requests_per_minute: Some(2), max_concurrent: Some(1), ..NONE };
        let running = usage.try_acquire(limits, start).unwrap();
        for _ in 0..10 {
            let refused = usage.try_acquire(limits, start).unwrap_err();
            assert!(matches!(refused, OverLimit::Concurrency { .. }));
        }
        drop(running);
        assert!(usage.try_acquire(limits, start).is_ok());
    }

    #[test]
    fn a_dropped_permit_makes_room() {
        let (usage, now) = (Arc::new(KeyUsage::default()), Instant::now());
        let limits = KeyLimits { max_concurrent: Some(2), ..NONE };
        let first = usage.try_acquire(limits, now).unwrap();
        let _second = usage.try_acquire(limits, now).unwrap();
        assert!(usage.try_acquire(limits, now).is_err());
        assert_eq!(usage.running(), 2);
        drop(first);
        assert!(usage.try_acquire(limits, now).is_ok());
    }

    #[test]
    fn usage_survives_new_settings_and_lowered_limits_apply_at_once() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let id: Arc<str> = "app".into();
        let wide = KeyLimits { requests_per_minute: Some(100), max_concurrent: Some(10), ..NONE };
        let held: Vec<_> = (0..5).map(|_| limiter.usage(&id).try_acquire(wide, start).unwrap()).collect();

        limiter.keep_only(&HashSet::from([id.clone()]));
        let narrow = KeyLimits { requests_per_minute: Some(2), max_concurrent: Some(5), ..NONE };
        let usage = limiter.usage(&id);
        assert!(matches!(usage.try_acquire(narrow, start), Err(OverLimit::Concurrency { .. })));
        drop(held);
        let refused = |_| usage.try_acquire(narrow, start).is_err();
        assert_eq!([0; 4].map(refused), [false, false, true, true], "95 left in the bucket are cut to 2");

        limiter.keep_only(&HashSet::new());
        assert!(limiter.usage(&id).try_acquire(narrow, start).is_ok(), "a key that was removed starts anew");
    }

    #[test]
    fn a_limit_that_is_lifted_and_set_again_starts_full() {
        let (usage, now) = (Arc::new(KeyUsage::default()), Instant::now());
        let limits = KeyLimits { tokens_per_minute: Some(10), ..NONE };
        usage.try_acquire(limits, now).unwrap().charge(1000, now);
        assert!(usage.try_acquire(limits, now).is_err());
        usage.try_acquire(NONE, now).unwrap().charge(1000, now);
        assert!(usage.try_acquire(limits, now).is_ok());
    }

    #[test]
    fn time_that_runs_backwards_between_threads_does_no_harm() {
        let (usage, start) = (Arc::new(KeyUsage::default()), Instant::now());
        let limits = KeyLimits { requests_per_minute: Some(1), ..NONE };
        let later = start + ms(60_000);
        assert!(usage.try_acquire(limits, later).is_ok());
        assert!(usage.try_acquire(limits, start).is_err());
        assert!(usage.try_acquire(limits, later + ms(59_999)).is_err());
        assert!(usage.try_acquire(limits, later + ms(60_000)).is_ok());
    }
}
