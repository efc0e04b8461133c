//! Elapsed time and deadlines for blocking code.

#![allow(clippy::disallowed_methods, reason = "no runtime here whose clock could be used instead")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process;

/// Measures from its creation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts measuring.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the time since the start.
    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Asks `ready` every `interval` until it gives a value.
///
/// # Errors
/// When `ready` fails, when `limit` has passed, and when the user wants to stop.
pub(crate) fn poll<T>(
    what: &str,
    interval: Duration,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let watch = Stopwatch::start();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if process::interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        if watch.elapsed() > limit {
            bail!("{what}: nothing within {} s", limit.as_secs());
        }
        thread::sleep(interval);
    }
}
