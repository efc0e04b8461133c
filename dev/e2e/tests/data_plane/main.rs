//! What a client sees of a relay, workers and a backend together.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what goes wrong here is a failed test, and its tasks end with it"
)]

mod bytes;
mod cancel;
mod chaos;
mod credentials;
mod drains;
mod failures;
mod kills;
mod models;
mod relays;
mod slow_reader;
mod support;
