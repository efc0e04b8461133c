//! The client port: routes and layers, nothing else.

pub mod error;
pub mod headers;
pub mod scan;
