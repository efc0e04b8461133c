//! The settings files: what a person or the operator writes, and what relay and worker read.
//!
//! One YAML file per process: [`RelayConfig`] and [`WorkerConfig`]. Every field has a default, which its
//! documentation names together with unit and range; durations are whole seconds in fields named
//! `...Seconds`, sizes are bytes, plain or with a suffix (`256Mi`, see [`ByteSize`]).
//!
//! Reading is two steps, because flags and environment variables are laid over a file in between:
//! [`RelayConfig::parse`] knows the shape, [`RelayConfig::validate`] the ranges and relations.
//!
//! A field that this version does not know is refused, with its path and what stands there otherwise. A
//! file that says `generatedBy` may come from a newer writer: its unknown fields are listed instead
//! ([`Parsed::ignored`]) and the rest counts.
//!
//! ```
//! use modelrelay_protocol::config::RelayConfig;
//!
//! let parsed = RelayConfig::parse("queue: { maxRequests: 50 }").unwrap();
//! assert_eq!(parsed.config.queue.max_requests, 50);
//! parsed.config.validate().unwrap();
//!
//! let error = RelayConfig::parse("queue: { maxRequest: 50 }").unwrap_err();
//! assert!(error.to_string().starts_with("queue.maxRequest: unknown field, expected one of"));
//! ```

mod check;
mod read;
mod relay;
mod values;
mod worker;

#[cfg(test)]
mod tests;

pub use check::Invalid;
pub use read::{ConfigError, Parsed};
pub use relay::{
    AdminConfig, ClientAuth, ClientAuthConfig, ClientKeyConfig, CorsConfig, DrainConfig, HeadersConfig,
    LimitsConfig, ModelConfig, OnRemoval, PrefixHashConfig, PriorityConfig, QueueConfig, ReadinessConfig,
    RelayConfig, RetriesConfig, RoutingConfig, Strategy, TargetConfig, TenantConfig, TimeoutsConfig,
    WorkerCredentialConfig,
};
pub use values::{ByteSize, Secret, Sha256Hash, is_key_id};
pub use worker::{
    HealthConfig, RelayResolve, TlsConfig, WorkerConfig, WorkerDrainConfig, WorkerTimeoutsConfig,
};
