//! What clients and plain v1 workers see of a relay, over real sockets.

mod support;
mod v1;
