//! Clusters with nodes. `cargo xtask test` says where their programs are; without them, and on a machine that cannot run
//! nodes, each test says so on standard error and passes, or fails where `REQUIRE_ALL=1`.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

mod images;
mod leftovers;
mod losses;
mod pods;
mod support;
