//! A harness for tests that need a relay, workers and a backend at once.
//!
//! | module | owns |
//! | --- | --- |
//! | [`client`] | clients that see every part of an answer and can leave at any moment |
//! | [`stack`] | relays and workers inside the test's own process |
//! | [`process`] | the same as processes, which can be killed and have a memory to measure |
//! | [`link`] | what lies between workers and relays: delays, partitions, load balancers |
//! | [`ops`] | what a relay's operations port says |
//! | [`floor`] | who may run beside whom: a test that measures runs alone |
//!
//! A wait that does not end in time fails the test with what was waited for.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what goes wrong here is a failed test; tasks belong to the values that abort them"
)]

pub mod client;
pub mod floor;
pub mod link;
pub mod ops;
pub mod process;
pub mod stack;

use std::time::Duration;

use tokio::time::{sleep, timeout};

/// What a test waits for at most.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Waits for a future, and fails the test when it does not end in time.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("did not happen in time: {what}"),
    }
}

/// Looks again and again until there is something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await
}

/// Returns the value that `percent` of the values do not exceed.
pub fn percentile(values: &mut [Duration], percent: usize) -> Duration {
    values.sort_unstable();
    values[(values.len() * percent / 100).min(values.len() - 1)]
}
