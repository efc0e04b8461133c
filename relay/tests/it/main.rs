//! What clients and workers see of a relay, over real sockets.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test may fail")]
#![allow(unreachable_pub, reason = "modules of one test binary")]

mod admin;
mod affinity;
mod browsers;
mod cancel;
mod clock;
mod credentials;
mod credits;
mod drain;
mod errors;
mod keys;
mod metrics;
mod models;
mod ours;
mod queue;
mod replicas;
mod requeue;
mod streaming;
mod support;
mod v1;
mod v1_usage;
