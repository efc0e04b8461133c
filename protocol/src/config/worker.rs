//! The worker's settings file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::check::{self, Invalid};
use super::read::{self, ConfigError, Parsed};
use super::relay::AdminConfig;

/// A worker file in which every field stands once.
const EXAMPLE: &str = include_str!("worker.example.yaml");

/// Everything a worker can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerConfig {
    /// Which program wrote the file; absent in hand-written ones. Set, it makes unknown fields harmless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generated_by: Option<String>,
    /// Relays to dial, `http`, `https`, `ws` or `wss`. At least 1 and at most 64, by file, flag or environment.
    pub relay_urls: Vec<String>,
    /// What the host names of `relayUrls` stand for. Default `First`. Read at start only.
    pub relay_resolve: RelayResolve,
    /// The inference server. `$(NODE_IP)` and `$(NODE_NAME)` stand for the environment variables. Default `http://127.0.0.1:8000`.
    pub backend_url: String,
    /// Models to advertise as they stand, without asking the backend. Default: what `/v1/models` lists.
    pub models: Vec<String>,
    /// Requests that the backend takes at once. Default 1, 1 to 100,000.
    pub max_concurrency: u32,
    /// What relays call this worker. Default: the host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The provider it joins. Default `local`.
    pub provider: String,
    /// A file that holds the worker secret; blanks at its end do not count. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_secret_file: Option<PathBuf>,
    /// The operations port. Default: none. Read at start only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_listen: Option<SocketAddr>,
    /// How the backend is watched.
    pub health: HealthConfig,
    /// How the worker stops.
    pub drain: WorkerDrainConfig,
    /// How long the backend may take.
    pub timeouts: WorkerTimeoutsConfig,
    /// Whom it trusts when it dials `https` or `wss`.
    pub tls: TlsConfig,
    /// Who may use `/admin/v1` on the operations port.
    pub admin: AdminConfig,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            generated_by: None,
            relay_urls: Vec::new(),
            relay_resolve: RelayResolve::default(),
            backend_url: "http://127.0.0.1:8000".to_owned(),
            models: Vec::new(),
            max_concurrency: 1,
            name: None,
            provider: "local".to_owned(),
            worker_secret_file: None,
            ops_listen: None,
            health: HealthConfig::default(),
            drain: WorkerDrainConfig::default(),
            timeouts: WorkerTimeoutsConfig::default(),
            tls: TlsConfig::default(),
            admin: AdminConfig::default(),
        }
    }
}

/// What a relay's host name stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayResolve {
    /// One way in: a relay, or a load balancer in front of several, which the worker dials until it holds a session with
    /// each.
    #[default]
    First,
    /// One relay for each address, as the name of a headless Service: a session with each, looked up again every ten
    /// seconds.
    All,
}

impl FromStr for RelayResolve {
    type Err = String;

    /// Reads a flag or variable; case does not count.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            first if first.eq_ignore_ascii_case("first") => Ok(Self::First),
            all if all.eq_ignore_ascii_case("all") => Ok(Self::All),
            other => Err(format!("must be First or All, is {other:?}")),
        }
    }
}

/// `health`: probes of the backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthConfig {
    /// The route to probe. Default: `/health`, and where there is no such route `/v1/models`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seconds between probes. Default 10, 1 to 3,600.
    pub interval_seconds: u32,
    /// Probes in a row that fail before the worker advertises nothing. Default 3, 1 to 100.
    pub failure_threshold: u32,
    /// Seconds from the start in which a backend that was never healthy counts as starting. Default 1800, 0 to 604,800.
    pub startup_timeout_seconds: u32,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self { path: None, interval_seconds: 10, failure_threshold: 3, startup_timeout_seconds: 1800 }
    }
}

impl HealthConfig {
    /// The time between probes.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_seconds.into())
    }

    /// The time in which a backend that was never healthy counts as starting.
    pub fn startup_timeout(&self) -> Duration {
        Duration::from_secs(self.startup_timeout_seconds.into())
    }
}

/// `drain`: what happens from SIGTERM on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerDrainConfig {
    /// Seconds until what still runs is broken off. Default 300, 1 to 604,800.
    pub deadline_seconds: u32,
}

impl Default for WorkerDrainConfig {
    fn default() -> Self {
        Self { deadline_seconds: 300 }
    }
}

impl WorkerDrainConfig {
    /// The time until what still runs is broken off.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_seconds.into())
    }
}

/// `timeouts`: how long the backend may take. The relay has clocks of its own, which usually end first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkerTimeoutsConfig {
    /// Seconds to connect. Default 2, 1 to 3,600.
    pub connect_seconds: u32,
    /// Seconds between two reads of an answer, its head included. Default 600, 0 (unbounded) to 604,800.
    pub idle_seconds: u32,
}

impl Default for WorkerTimeoutsConfig {
    fn default() -> Self {
        Self { connect_seconds: 2, idle_seconds: 600 }
    }
}

impl WorkerTimeoutsConfig {
    /// The time to connect.
    pub fn connect(&self) -> Duration {
        Duration::from_secs(self.connect_seconds.into())
    }

    /// The longest silence of the backend.
    pub fn idle(&self) -> Option<Duration> {
        (self.idle_seconds > 0).then(|| Duration::from_secs(self.idle_seconds.into()))
    }
}

/// `tls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsConfig {
    /// A PEM file of authorities to trust besides the system's. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl WorkerConfig {
    /// Reads a file; unknown fields are refused unless it says `generatedBy`.
    ///
    /// # Errors
    /// What is wrong with its text, types or field names; ranges are for [`Self::validate`].
    pub fn parse(text: &str) -> Result<Parsed<Self>, ConfigError> {
        read::leniently(text, EXAMPLE, |config: &Self| config.generated_by.is_some())
    }

    /// Reads a file and refuses unknown fields whoever wrote it.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_strictly(text: &str) -> Result<Self, ConfigError> {
        read::leniently(text, EXAMPLE, |_| false).map(|parsed| parsed.config)
    }

    /// The file's text with each field at its default left out.
    pub fn to_yaml(&self) -> String {
        read::to_yaml(self)
    }

    /// Everything in force, defaults included: fit to be shown.
    pub fn shown(&self) -> Value {
        read::shown(self)
    }

    /// Checks ranges and relations.
    ///
    /// # Errors
    /// The first field that cannot be so, by its path.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.relay_urls.is_empty() {
            return Err(Invalid::new("relayUrls", "must name at least one relay"));
        }
        if self.relay_urls.len() > 64 {
            let problem = format!("must have at most 64 entries, has {}", self.relay_urls.len());
            return Err(Invalid::new("relayUrls", problem));
        }
        for (index, url) in self.relay_urls.iter().enumerate() {
            check::url(&format!("relayUrls[{index}]"), url, &["http", "https", "ws", "wss"])?;
        }
        check::distinct("relayUrls", "", self.relay_urls.iter())?;
        check::url("backendUrl", &self.backend_url, &["http", "https"])?;
        check::models("models", &self.models)?;
        check::range("maxConcurrency", &self.max_concurrency, &(1..=100_000))?;
        if let Some(name) = &self.name {
            check::name("name", name, 253)?;
        }
        check::name("provider", &self.provider, 128)?;
        if let Some(path) = &self.health.path
            && !path.starts_with('/')
        {
            return Err(Invalid::new("health.path", format!("must start with \"/\", is {path:?}")));
        }
        check::range("health.intervalSeconds", &self.health.interval_seconds, &(1..=3600))?;
        check::range("health.failureThreshold", &self.health.failure_threshold, &(1..=100))?;
        check::seconds_or_off("health.startupTimeoutSeconds", self.health.startup_timeout_seconds)?;
        check::seconds("drain.deadlineSeconds", self.drain.deadline_seconds)?;
        check::range("timeouts.connectSeconds", &self.timeouts.connect_seconds, &(1..=3600))?;
        check::seconds_or_off("timeouts.idleSeconds", self.timeouts.idle_seconds)
    }
}
