//! The worker against a scripted relay over real sockets. JSON frames are written by hand from the protocol's text.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests may fail like the tests")]

mod backend;
mod cancel;
mod drain;
mod kept_connections;
mod metrics;
#[path = "../../../relay/tests/it/support/metrics_table.rs"]
#[allow(unreachable_pub, reason = "the relay's tests share it")]
mod metrics_table;
mod pause;
mod program;
mod relays;
mod replicas;
mod slots;
mod streams;
mod support;
mod v1;
mod v1_text;
