//! A load generator that checks every byte it gets.
//!
//! Each module is one way to put load on a [`Target`]: an `Options`, a `run`, and a report that serializes
//! to JSON. Times of single chunks come from the marks that the stub backend writes into its streams, so
//! the backend behind the target has to be that stub. Nothing is ever ignored: an answer that is not exact
//! counts as failed.
//!
//! Some loads are a relay's workers as well: [`workers`], [`handover`] and [`flood`] open worker connections
//! of their own, so what they measure is the relay alone.

pub mod cancel;
mod check;
pub mod closed;
pub mod flood;
pub mod handover;
pub mod hold;
mod link;
pub mod open;
mod report;
mod session;
pub mod slow_reader;
pub mod streams;
mod target;
pub mod upload;
pub mod workers;

pub use check::{Fault, StreamCheck};
pub use report::{Failure, Meter, Tally, Times};
pub use target::{Target, TargetError};
