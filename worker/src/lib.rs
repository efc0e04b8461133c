//! The worker of ModelRelay: it stands beside an inference server, dials out to relays, and answers their requests.
//!
//! | module | owns |
//! | --- | --- |
//! | [`app`] | starting and draining; what the tasks share |
//! | [`cli`], [`settings`] | flags, environment and file, checked as a whole |
//! | `reconnect`, `replicas` | finding every relay replica and holding a session with each: addresses, back-off |
//! | `connect` | dialling: proxies, TLS |
//! | `session` | one connection's life, for relays with our extensions and for plain v1 relays |
//! | `jobs`, `job` | running requests: from the frame to the backend and back, under windows |
//! | `backend` | HTTP connections to the inference server |
//! | `capacity` | the slots, lent to relays as credits |
//! | `health` | probes, discovery of models, load of the engines |
//! | `usage`, `text` | token counts and whole characters out of byte streams |
//! | `admin`, `metrics`, [`telemetry`] | the operations port, metrics, logs |
//!
//! Arrows go one way: `main → app → reconnect → session → job → backend`. Each request is a task that drives its own
//! connection to the backend, so ending the task closes that connection: that is how a cancel reaches the engine.

pub mod app;
pub mod cli;
pub mod settings;
pub mod telemetry;

mod admin;
mod backend;
mod capacity;
mod connect;
mod health;
mod job;
mod jobs;
mod metrics;
mod reconnect;
mod replicas;
mod session;
mod socket;
mod text;
mod tls;

pub use connect::proxy::ProxyRules;
