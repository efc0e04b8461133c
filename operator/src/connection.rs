//! How long the operator waits for the API server, whatever it asks.

use std::time::Duration;

use kube::Config;

use crate::cache::WATCH_SECONDS;

/// A machine that is gone says nothing, and the one that takes its place is to be found within seconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// A list that stays away as long as this is as dead as a watch that does.
const SILENCE_LIMIT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);

/// Returns the same place with the operator's deadlines, which are for connections: each call has one of its own, except
/// for the lists that watches begin with.
pub fn patient(mut config: Config) -> Config {
    config.connect_timeout = Some(CONNECT_LIMIT);
    config.write_timeout = Some(WRITE_LIMIT);
    config.read_timeout = Some(SILENCE_LIMIT);
    // The time that a connection waited for its next request does not count.
    config.reset_reader_on_write = true;
    // Retries are the reconcilers' business.
    config.default_retry = false;
    config
}
