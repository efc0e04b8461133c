//! The stub against a raw client on real sockets.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like the tests")]

mod answers;
mod client;
mod engines;
mod failures;
mod streams;
mod watching;
