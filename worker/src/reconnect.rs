//! One relay address and the connection that is kept to it: dial, serve, wait, again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Instrument, info, info_span, warn};

use crate::app::Core;
use crate::connect::{DialError, RelayUrl};
use crate::metrics::RelayState;
use crate::session::{self, Ended, Part};

/// The first wait is drawn from this much, and each further one from twice as much.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// No wait is longer, but for a refused credential.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// No wait is longer after a refused credential.
const LONGEST_REFUSED_WAIT: Duration = Duration::from_secs(30);

/// A session that lived this long was stable.
const STABLE: Duration = Duration::from_secs(30);

/// How long to wait before the next attempt: full jitter, so that workers who lost a relay together do not come
/// back together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

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

impl Backoff {
    /// Returns the next wait; `random` is drawn evenly from 0 to 1.
    pub(crate) fn next(&mut self, attempt: Attempt, random: f64) -> Duration {
        let longest = match attempt {
            Attempt::Again => return Duration::ZERO,
            Attempt::Ended { lived } if lived >= STABLE => {
                self.attempts = 0;
                LONGEST_WAIT
            }
            Attempt::Ended { .. } => LONGEST_WAIT,
            Attempt::Refused => LONGEST_REFUSED_WAIT,
        };
        let most = FIRST_WAIT.saturating_mul(1 << self.attempts.min(16)).min(longest);
        self.attempts = self.attempts.saturating_add(1);
        most.mul_f64(random.clamp(0.0, 1.0))
    }
}

/// Keeps a session with one relay until the worker leaves.
pub(crate) async fn keep(core: Arc<Core>, index: usize) {
    let relay = &core.relays[index];
    let span = info_span!("relay", url = %relay);
    async {
        let mut backoff = Backoff::default();
        let mut is_v1 = false;
        loop {
            let attempt = tokio::select! {
                attempt = attempt(&core, index, relay, &mut is_v1) => attempt,
                () = core.kill.cancelled() => return,
            };
            core.metrics.relay_state(index, RelayState::Disconnected);
            if core.drain.is_cancelled() {
                return;
            }
            let wait = backoff.next(attempt, rand::random());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = core.drain.cancelled() => return,
            }
        }
    }
    .instrument(span)
    .await;
}

async fn attempt(core: &Arc<Core>, index: usize, relay: &RelayUrl, is_v1: &mut bool) -> Attempt {
    core.metrics.relay_state(index, RelayState::Connecting);
    let secret = core.secret();
    // A worker that leaves needs no new connection.
    let dialled = tokio::select! {
        dialled = core.dialer.dial(relay, &core.provider, secret.as_ref()) => dialled,
        () = core.drain.cancelled() => return Attempt::Again,
    };
    let socket = match dialled {
        Ok(socket) => socket,
        Err(DialError::Refused(status)) => {
            warn!(%status, "The relay refused the connection; is the secret right?");
            return Attempt::Refused;
        }
        Err(error) => {
            warn!(error = %error, "Cannot reach the relay");
            return Attempt::Ended { lived: Duration::ZERO };
        }
    };
    let relays = u32::try_from(core.relays.len()).unwrap_or(u32::MAX);
    let slots = core.capacity.slots();
    let fixed = (slots / relays).max(1);
    let part = Part { slots: if *is_v1 { fixed } else { slots }, fixed };
    let begun = Instant::now();
    let mut accepted_at = None;
    let ended = session::run(core, socket, part, |v1| {
        *is_v1 = v1;
        accepted_at = Some(Instant::now());
        core.metrics.relay_state(index, RelayState::Connected);
    })
    .await;
    let lived = accepted_at.map_or(Duration::ZERO, |at| at.elapsed());
    report(&ended, begun.elapsed());
    match ended {
        Ended::Refused(_) => Attempt::Refused,
        Ended::TooManySlots => {
            *is_v1 = true;
            Attempt::Again
        }
        Ended::Closed { .. }
        | Ended::Broken(_)
        | Ended::Silent
        | Ended::Protocol(_)
        | Ended::Released
        | Ended::Leaving => Attempt::Ended { lived },
    }
}

fn report(ended: &Ended, lived: Duration) {
    let seconds = lived.as_secs();
    match ended {
        Ended::Refused(reason) => warn!(reason, "The relay refused this worker's credential"),
        Ended::Closed { code, reason } => info!(code, reason, seconds, "The relay closed the connection"),
        Ended::Broken(reason) => warn!(reason, seconds, "The connection to the relay broke"),
        Ended::Silent => warn!(seconds, "The relay fell silent"),
        Ended::Protocol(reason) => warn!(reason, seconds, "The relay does not keep to the protocol"),
        Ended::Released => info!(seconds, "The relay let this worker go"),
        Ended::Leaving => info!(seconds, "Left the relay"),
        Ended::TooManySlots => {
            info!("A plain v1 relay beside others: registering with its part of the slots")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Attempt = Attempt::Ended { lived: Duration::from_secs(3) };

    #[test]
    fn waits_grow_to_five_seconds_and_are_drawn_from_all_of_it() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..7).map(|_| backoff.next(SHORT, 1.0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(backoff.next(SHORT, 0.0), Duration::ZERO);
        assert_eq!(backoff.next(SHORT, 0.5).as_millis(), 2500);
    }

    #[test]
    fn only_a_stable_session_starts_over() {
        let mut backoff = Backoff { attempts: 6 };
        assert_eq!(backoff.next(SHORT, 1.0).as_secs(), 5);
        assert_eq!(backoff.next(Attempt::Ended { lived: STABLE }, 1.0).as_millis(), 250);
        assert_eq!(backoff.next(SHORT, 1.0).as_millis(), 500);
    }

    #[test]
    fn a_refused_credential_is_retried_up_to_every_thirty_seconds() {
        let mut backoff = Backoff::default();
        let longest = (0..100).map(|_| backoff.next(Attempt::Refused, 1.0)).max();
        assert_eq!(longest, Some(LONGEST_REFUSED_WAIT));
    }

    #[test]
    fn registering_again_does_not_wait() {
        let mut backoff = Backoff { attempts: 3 };
        assert_eq!(backoff.next(Attempt::Again, 1.0), Duration::ZERO);
        assert_eq!(backoff.attempts, 3);
    }
}
