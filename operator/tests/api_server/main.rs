//! The operator on a real API server. `cargo xtask test` says where its programs are; without them each test says so on
//! standard error and passes, or fails where `REQUIRE_ALL=1`.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

mod apply;
mod examples;
mod examples_run;
mod faults;
mod follows;
mod lease;
mod outage;
mod pool;
mod pool_pods;
mod pool_serves;
mod program;
mod refusals;
mod relay;
mod scale;
mod support;
