//! Relays, turn by turn: the reconciler is called by the tests, so that what it writes and what not can be told exactly.

mod children;
mod keys;
mod pods;
pub(crate) mod process;
mod rig;
mod running;
