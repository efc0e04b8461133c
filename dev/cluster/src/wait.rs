//! Waiting for something in blocking code, never for ever.

#![allow(clippy::disallowed_methods, reason = "no runtime here whose clock could be used instead")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const INTERVAL: Duration = Duration::from_millis(20);

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
