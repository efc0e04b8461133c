//! Several relays and their workers, each a process of its own: how slots are shared, what is lost when something dies,
//! leaves or cannot be reached, and how workers find all relays.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a test may fail; tasks end with the test"
)]

mod fairness;
mod finding;
mod fleet;
mod fresh;
mod kills;
mod limits;
mod messages;
mod partition;
mod plain;
mod rolling;
mod sharing;
mod storm;
mod wandering;
