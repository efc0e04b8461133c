//! A real engine behind the relay: llama.cpp's server, with a tiny model that answers nonsense quickly and a small one
//! that answers sense.
//!
//! `cargo xtask test` says where the parts are. Without them each test says so on standard error and passes, or fails
//! where `REQUIRE_ALL=1`.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what goes wrong here is a failed test, and its tasks end with it"
)]

mod engine;
mod failures;
mod sdks;
mod streams;
mod tap;
