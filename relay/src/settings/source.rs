//! Where settings come from: a file, what is laid over it, and the worker secret.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use modelrelay_protocol::config::{ConfigError, Invalid, RelayConfig, Secret};

use crate::keys::sha256;

/// Why settings cannot be used; one line that names the field, flag or variable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A file that is not there or not readable.
    #[error("{origin}: cannot read {}: {problem}", path.display())]
    Unreadable {
        /// The flag or variable that names the file.
        origin: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        problem: String,
    },
    /// A settings file that says something wrong.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: ConfigError,
    },
    /// A flag or variable that says something wrong.
    #[error("{origin}: {problem}")]
    Value {
        /// The flag or variable.
        origin: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Nothing says who may serve.
    #[error(
        "no worker secret: give --worker-secret-file or WORKER_SECRET, list workerCredentials in the settings file, \
         or say --insecure-no-worker-auth to let anybody serve"
    )]
    NoWorkerAuth,
}

/// A value from outside the file, and the flag or variable it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given<T> {
    /// The value.
    pub value: T,
    /// The flag or variable, for messages.
    pub origin: &'static str,
}

/// What flags and environment say; it goes before the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `listen`.
    pub listen: Option<Given<SocketAddr>>,
    /// `opsListen`.
    pub ops_listen: Option<Given<SocketAddr>>,
    /// `queue.maxRequests`.
    pub max_requests: Option<Given<u32>>,
    /// `queue.timeoutSeconds` and `queue.noWorkerTimeoutSeconds`.
    pub queue_timeout_seconds: Option<Given<u32>>,
    /// `timeouts.firstByteSeconds`.
    pub first_byte_seconds: Option<Given<u32>>,
}

impl Overrides {
    fn apply(&self, config: &mut RelayConfig) {
        let Self { listen, ops_listen, max_requests, queue_timeout_seconds, first_byte_seconds } = self;
        set(&mut config.listen, listen.as_ref());
        set(&mut config.ops_listen, ops_listen.as_ref());
        set(&mut config.queue.max_requests, max_requests.as_ref());
        set(&mut config.queue.timeout_seconds, queue_timeout_seconds.as_ref());
        set(&mut config.queue.no_worker_timeout_seconds, queue_timeout_seconds.as_ref());
        set(&mut config.timeouts.first_byte_seconds, first_byte_seconds.as_ref());
    }

    /// Which flag or variable set a field, if one did.
    fn origin(&self, field: &str) -> Option<&'static str> {
        match field {
            "listen" => self.listen.as_ref().map(|given| given.origin),
            "opsListen" => self.ops_listen.as_ref().map(|given| given.origin),
            "queue.maxRequests" => self.max_requests.as_ref().map(|given| given.origin),
            "queue.timeoutSeconds" | "queue.noWorkerTimeoutSeconds" => {
                self.queue_timeout_seconds.as_ref().map(|given| given.origin)
            }
            "timeouts.firstByteSeconds" => self.first_byte_seconds.as_ref().map(|given| given.origin),
            _ => None,
        }
    }
}

fn set<T: Clone>(field: &mut T, given: Option<&Given<T>>) {
    if let Some(given) = given {
        *field = given.value.clone();
    }
}

/// Where the shared worker secret comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SecretSource {
    /// There is none.
    #[default]
    Absent,
    /// The variable `WORKER_SECRET`.
    Given(Secret),
    /// The file that `--worker-secret-file` names, read again when it changes.
    File(PathBuf),
}

/// Everything that settings are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The settings file, if there is one, and who named it.
    pub config_file: Option<Given<PathBuf>>,
    /// What goes before it.
    pub overrides: Overrides,
    /// The shared worker secret.
    pub worker_secret: SecretSource,
    /// Whether a worker may come without any secret.
    pub insecure_no_worker_auth: bool,
}

/// What the files held at one moment.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Contents {
    config: Option<Result<String, String>>,
    secret: Option<Result<String, String>>,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Contents(***)")
    }
}

/// Valid settings on their way to being in force.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) config: RelayConfig,
    pub(super) revision: Arc<str>,
    pub(super) ignored: Vec<String>,
    pub(super) worker_secret: Option<Secret>,
    pub(super) open_to_workers: bool,
}

impl Source {
    /// Reads the files; blocks.
    pub(super) fn read(&self) -> Contents {
        let text = |path: &Path| fs::read_to_string(path).map_err(|error| system_words(&error));
        Contents {
            config: self.config_file.as_ref().map(|file| text(&file.value)),
            secret: match &self.worker_secret {
                SecretSource::File(path) => Some(text(path)),
                SecretSource::Absent | SecretSource::Given(_) => None,
            },
        }
    }

    /// Makes sense of what was read.
    pub(super) fn interpret(&self, contents: &Contents, strictly: bool) -> Result<Draft, SettingsError> {
        let (mut config, ignored, revision) = self.file_config(contents, strictly)?;
        self.overrides.apply(&mut config);
        config.validate().map_err(|invalid| self.blame(invalid))?;
        Ok(Draft {
            config,
            ignored,
            revision,
            worker_secret: self.shared_secret(contents)?,
            open_to_workers: self.insecure_no_worker_auth,
        })
    }

    fn file_config(
        &self,
        contents: &Contents,
        strictly: bool,
    ) -> Result<(RelayConfig, Vec<String>, Arc<str>), SettingsError> {
        let (Some(file), Some(text)) = (&self.config_file, &contents.config) else {
            return Ok((RelayConfig::default(), Vec::new(), "none".into()));
        };
        let text = text.as_ref().map_err(|problem| SettingsError::Unreadable {
            origin: file.origin,
            path: file.value.clone(),
            problem: problem.clone(),
        })?;
        let wrong = |error| SettingsError::File { path: file.value.clone(), error };
        let revision = &sha256(text).to_hex()[..16];
        if strictly {
            let config = RelayConfig::parse_strictly(text).map_err(wrong)?;
            return Ok((config, Vec::new(), revision.into()));
        }
        let parsed = RelayConfig::parse(text).map_err(wrong)?;
        Ok((parsed.config, parsed.ignored, revision.into()))
    }

    fn shared_secret(&self, contents: &Contents) -> Result<Option<Secret>, SettingsError> {
        let path = match &self.worker_secret {
            SecretSource::Absent => return Ok(None),
            SecretSource::Given(secret) => return sendable("WORKER_SECRET", secret.clone()).map(Some),
            SecretSource::File(path) => path,
        };
        let origin = "--worker-secret-file";
        match &contents.secret {
            Some(Ok(text)) if Secret::new(text).is_empty() => {
                Err(SettingsError::Value { origin, problem: format!("{} is empty", path.display()) })
            }
            Some(Ok(text)) => sendable(origin, Secret::new(text)).map(Some),
            Some(Err(problem)) => {
                Err(SettingsError::Unreadable { origin, path: path.clone(), problem: problem.clone() })
            }
            None => Ok(None),
        }
    }

    /// Names the flag or variable behind a value that cannot be, else the file.
    fn blame(&self, invalid: Invalid) -> SettingsError {
        match (self.overrides.origin(&invalid.field), &self.config_file) {
            (Some(origin), _) => SettingsError::Value { origin, problem: invalid.to_string() },
            (None, Some(file)) => SettingsError::File { path: file.value.clone(), error: invalid.into() },
            (None, None) => SettingsError::Value { origin: "settings", problem: invalid.to_string() },
        }
    }
}

/// Refuses a secret that no worker could present.
fn sendable(origin: &'static str, secret: Secret) -> Result<Secret, SettingsError> {
    if secret.expose().bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Ok(secret);
    }
    let problem = "must be one line of printable ASCII, since workers send it in a header".to_owned();
    Err(SettingsError::Value { origin, problem })
}

fn system_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        _ => error.to_string(),
    }
}
