//! A stub OpenAI and Anthropic backend that streams, stalls and fails on cue.
//!
//! Each request can say what it wants, in a member `stub` of its body or in `x-stub-*` headers (see
//! [`Script`]). Streams carry numbers, times and a CRC32 (see [`Mark`]), so that whoever reads them can
//! tell whether anything was lost, changed or late. Every other answer carries its CRC32 in the header
//! `x-stub-crc32`. The stub counts what it saw and notices at once when a client closes its connection.
//!
//! HTTP/1 is written by hand on the socket: resets, garbage, half events and stalls have to fall exactly
//! where a test wants them.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use dev_backend::{Backend, Config};
//! use std::time::Duration;
//!
//! let backend = Backend::start(Config::default()).await?;
//! // … send `{"model":"m","stream":true,"stub":{"id":"a","chunks":1000,"interval_ms":10}}`, close …
//! let close = backend.wait_closed("a", Duration::from_secs(1)).await?;
//! # Ok(()) }
//! ```

mod backend;
mod clock;
mod connection;
mod control;
mod fill;
mod flavour;
mod mark;
mod perform;
mod plan;
mod request;
mod script;
mod shape;
mod stats;

pub use backend::{Backend, Config, Seen, refused_addr};
pub use clock::micros_now;
pub use fill::{Fill, Filler, crc32_of};
pub use flavour::Flavour;
pub use mark::Mark;
pub use script::{Answer, At, Fail, Script};
pub use stats::{CloseEvent, Overdue, Phase, Stats};
