//! The wall clock in the unit that marks and close events use.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns microseconds since the epoch, comparable between processes of one machine.
#[allow(
    clippy::disallowed_methods,
    reason = "two processes compare these figures, so no process clock will do"
)]
pub fn micros_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
