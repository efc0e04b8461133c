//! What clients and plain v1 workers see of a relay, over real sockets.

#![allow(clippy::panic, clippy::unwrap_used, unreachable_pub, reason = "a test may fail")]

mod support;
mod v1;
