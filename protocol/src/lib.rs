//! What two processes of ModelRelay must agree on.

pub mod codec;
pub mod config;
pub mod frame;
pub mod slots;
pub mod wellknown;
pub mod window;
