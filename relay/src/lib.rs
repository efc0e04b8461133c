//! The relay: takes requests from clients over HTTP and hands them to workers that dialled in.
//!
//! | module | owns |
//! | --- | --- |
//! | [`app`] | wiring: bind, run, drain |
//! | [`edge`] | the accept loop: connections, head checks, time-outs, limits |
//! | [`http`] | the client port's routes, body scanning, errors |
//! | [`admission`] | pure: request parts and settings to an admitted request or an error |
//! | [`dispatch`] | owns the scheduler, performs its actions |
//! | [`scheduler`] | pure: queues, fairness, placement |
//! | [`session`] | the relay's side of one worker connection |
//! | [`settings`], [`keys`], [`limits`] | what the settings file says, credentials, rate limits |
//! | [`replicas`] | how many relays there are |
//! | [`cli`] | flags, environment variables, `key new` |
//! | [`admin`], [`metrics`], [`telemetry`] | the operations port and what it shows |

pub mod admin;
pub mod admission;
pub mod app;
pub mod cli;
pub mod dispatch;
pub mod edge;
pub mod http;
pub mod keys;
pub mod limits;
pub mod metrics;
pub mod replicas;
pub mod scheduler;
pub mod session;
pub mod settings;
pub mod telemetry;
