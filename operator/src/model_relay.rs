//! The reconciler of `ModelRelay`.

pub mod access;
