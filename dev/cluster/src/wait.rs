//! Waiting for something in blocking code, never for ever.

#![allow(clippy::disallowed_methods, reason = "no runtime here whose clock could be used instead")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const INTERVAL: Duration = Duration::from_millis(20);

static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// From now on nothing waits for a program of a cluster to be ready: whoever starts one gets an error, and ends what it has
/// started. For programs that are told to stop by a signal.
pub fn give_up() {
    GIVEN_UP.store(true, Ordering::SeqCst);
}

pub(crate) fn is_given_up() -> bool {
    GIVEN_UP.load(Ordering::SeqCst)
}

/// Asks `look` many times a second until it finds something.
///
/// # Errors
/// When `look` fails, and when `limit` has passed.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        thread::sleep(INTERVAL);
    }
}
