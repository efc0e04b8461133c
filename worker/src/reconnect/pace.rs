//! When to dial next: after a failure, in search of replicas that hide behind an address, or not at all.

use std::time::Duration;

use crate::replicas::Coverage;

/// The first wait is drawn from this much, and each further one from twice as much.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// No wait is longer, but for a refused credential.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// No wait is longer after a refused credential.
const LONGEST_REFUSED_WAIT: Duration = Duration::from_secs(30);

/// A session that lived this long was stable.
const STABLE: Duration = Duration::from_secs(30);

/// No wait is longer while replicas are missing for certain.
const LONGEST_SEARCH: Duration = Duration::from_secs(30);

/// While replicas are missing for certain, the wait grows only after so many dials in vain for each replica that there is:
/// behind an address that balances at random one dial in as many finds the one that is missing.
const DIALS_PER_REPLICA: usize = 2;

/// No wait is longer when what is missing here may be held by another way.
const LONGEST_LOOK: Duration = Duration::from_secs(300);

/// When replicas come or go all workers look again, each at a moment of its own within this time.
const NEWS_SPREAD: Duration = Duration::from_secs(1);

/// What the last attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// A session of this length, or none at all (zero).
    Ended { lived: Duration },
    /// The credential was refused.
    Refused,
    /// Nothing is wrong: dial again at once.
    Again,
}

/// How long to wait before the next attempt: full jitter, so that workers who lost a relay together do not come
/// back together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// Attempts since a session was stable.
    attempts: u32,
    /// Times in a row that a replica was found which is held already.
    in_vain: u32,
}

/// How an address stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// Sessions by it with relays that stay.
    pub(crate) own: usize,
    /// Whether other replicas may be behind it.
    pub(crate) may_hide: bool,
    /// How far its way in has been explored.
    pub(crate) coverage: Coverage,
}

impl Standing {
    /// Says whether there is a reason to dial.
    pub(crate) fn is_lacking(&self) -> bool {
        self.own == 0 || (self.may_hide && self.coverage.lacks())
    }
}

impl Pace {
    /// Returns the wait after an attempt that failed or a session that ended; `random` is drawn evenly from 0 to 1.
    pub(crate) fn after(&mut self, attempt: Attempt, random: f64) -> Duration {
        let longest = match attempt {
            Attempt::Again => return Duration::ZERO,
            Attempt::Ended { lived } if lived >= STABLE => {
                self.attempts = 0;
                LONGEST_WAIT
            }
            Attempt::Ended { .. } => LONGEST_WAIT,
            Attempt::Refused => LONGEST_REFUSED_WAIT,
        };
        self.attempts = self.attempts.saturating_add(1);
        drawn(self.attempts - 1, longest, random)
    }

    /// Returns the wait after a replica was found that is held already.
    pub(crate) fn after_known(&mut self, coverage: Coverage, random: f64) -> Duration {
        let before = self.in_vain;
        self.in_vain = before.saturating_add(1);
        if coverage.may_be_complete() {
            return drawn(before, LONGEST_LOOK, random);
        }
        let usual = u32::try_from(coverage.wanted.saturating_mul(DIALS_PER_REPLICA)).unwrap_or(u32::MAX);
        drawn(before / usual.max(1), LONGEST_SEARCH, random)
    }

    /// Returns the wait after a replica was found that was not held before: there may be more.
    pub(crate) fn after_found(&mut self, random: f64) -> Duration {
        self.in_vain = 0;
        drawn(0, LONGEST_SEARCH, random)
    }

    /// Returns the wait after replicas came or went.
    pub(crate) fn after_news(&mut self, random: f64) -> Duration {
        self.in_vain = 0;
        NEWS_SPREAD.mul_f64(random.clamp(0.0, 1.0))
    }
}

fn drawn(doublings: u32, longest: Duration, random: f64) -> Duration {
    let most = FIRST_WAIT.saturating_mul(1 << doublings.min(16)).min(longest);
    most.mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Attempt = Attempt::Ended { lived: Duration::from_secs(3) };

    #[test]
    fn waits_grow_to_five_seconds_and_are_drawn_from_all_of_it() {
        let mut pace = Pace::default();
        let waits: Vec<_> = (0..7).map(|_| pace.after(SHORT, 1.0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(pace.after(SHORT, 0.0), Duration::ZERO);
        assert_eq!(pace.after(SHORT, 0.5).as_millis(), 2500);
    }

    #[test]
    fn only_a_stable_session_starts_over() {
        let mut pace = Pace { attempts: 6, in_vain: 0 };
        assert_eq!(pace.after(SHORT, 1.0).as_secs(), 5);
        assert_eq!(pace.after(Attempt::Ended { lived: STABLE }, 1.0).as_millis(), 250);
        assert_eq!(pace.after(SHORT, 1.0).as_millis(), 500);
    }

    #[test]
    fn a_refused_credential_is_retried_up_to_every_thirty_seconds() {
        let mut pace = Pace::default();
        let longest = (0..100).map(|_| pace.after(Attempt::Refused, 1.0)).max();
        assert_eq!(longest, Some(LONGEST_REFUSED_WAIT));
    }

    #[test]
    fn registering_again_does_not_wait() {
        let mut pace = Pace { attempts: 3, in_vain: 0 };
        assert_eq!(pace.after(Attempt::Again, 1.0), Duration::ZERO);
        assert_eq!(pace.attempts, 3);
    }

    const MISSING: Coverage = Coverage { held: 1, wanted: 3, everywhere: 2 };

    #[test]
    fn a_search_in_vain_slows_down_and_more_so_where_nothing_need_be_missing() {
        let elsewhere = Coverage { everywhere: 3, ..MISSING };
        let waits = |coverage| {
            let mut pace = Pace::default();
            (0..48).map(|_| pace.after_known(coverage, 1.0).as_millis()).collect::<Vec<_>>()
        };
        for (step, six) in waits(MISSING)[..42].chunks(6).enumerate() {
            assert_eq!(six, [250 << step; 6]);
        }
        assert_eq!(waits(MISSING)[42..], [30_000; 6]);
        let growing = [250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, 256_000, 300_000];
        assert_eq!(waits(elsewhere)[..12], growing);
    }

    #[test]
    fn a_replica_that_is_back_is_found_within_five_seconds_behind_an_address_that_balances_at_random() {
        let mut draw = 7_u64;
        let mut random = || {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (draw >> 11) as f64 / (1_u64 << 53) as f64
        };
        let late = (0..10_000).filter(|_| {
            let mut pace = Pace::default();
            let mut passed = pace.after_news(random());
            while random() >= 1.0 / 3.0 {
                passed += pace.after_known(MISSING, random());
            }
            passed > Duration::from_secs(5)
        });
        let late = late.count();
        assert!(late < 50, "{late} of 10,000 workers took longer");
    }

    #[test]
    fn what_is_found_and_what_changes_make_the_search_quick_again() {
        let mut pace = Pace { attempts: 0, in_vain: 9 };
        assert_eq!(pace.after_found(1.0).as_millis(), 250);
        let mut pace = Pace { attempts: 0, in_vain: 9 };
        assert_eq!(pace.after_news(0.5).as_millis(), 500);
        assert_eq!(pace.after_known(Coverage::default(), 1.0).as_millis(), 250);
    }

    #[test]
    fn an_address_needs_a_session_of_its_own_and_as_many_as_hide_behind_it() {
        let standing = |own, may_hide, held, wanted| {
            Standing { own, may_hide, coverage: Coverage { held, wanted, everywhere: 9 } }.is_lacking()
        };
        assert!(standing(0, false, 3, 3));
        assert!(standing(1, true, 1, 3));
        assert!(!standing(3, true, 3, 3));
        assert!(!standing(1, false, 1, 3), "each replica has an address of its own");
    }
}
