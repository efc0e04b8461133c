//! The whole product on real nodes: the operator installed by its charts, relays and workers as pods.
//!
//! `cargo xtask test` builds the images and says where the parts are. Without them, and on a machine that cannot run nodes,
//! each test says so on standard error and passes, or fails where `REQUIRE_ALL=1`.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what goes wrong here is a failed test, and its tasks end with it"
)]

mod disturbances;
mod helm;
mod in_force;
mod load;
mod node_loss;
mod off_cluster;
mod placement;
mod pod_security;
mod policies;
mod quick_start;
mod rights;
mod scale;
mod scrape;
mod serving;
mod support;
