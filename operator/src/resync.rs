//! When what is as it should be is looked at again: something may have changed that no watch tells of.

use std::time::Duration;

/// Everything is looked at so often, give or take a tenth, even when nothing seems to happen.
const RESYNC: Duration = Duration::from_secs(600);

/// Returns how long to wait: each time another, so that objects that were looked at together drift apart.
pub(crate) fn resync() -> Duration {
    RESYNC.mul_f64(rand::random_range(0.9..=1.1))
}
