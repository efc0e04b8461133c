//! What the worker was told: flags over environment over file, checked as a whole.

use std::fmt;
use std::path::{Path, PathBuf};

use modelrelay_protocol::config::{ConfigError, Invalid, Sha256Hash, WorkerConfig};
use modelrelay_protocol::wellknown::env;
use sha2::{Digest as _, Sha256};

use crate::cli::Flags;
use crate::connect::proxy::ProxyRules;

/// The SHA-256 of a text, as settings files carry it.
pub(crate) fn sha256(text: &str) -> Sha256Hash {
    Sha256Hash(Sha256::digest(text.as_bytes()).into())
}

/// A secret; it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the secret itself, for the one header that carries it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Why the worker cannot start, or a changed file cannot be used. One line that names the field.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("{what}: cannot read {}: {source}", path.display())]
    Read {
        /// The flag or field that names the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The settings file is malformed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// A value of any origin is out of range.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Everything a worker needs to start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file's fields, with flags and environment laid over.
    pub config: WorkerConfig,
    /// The first 16 hexadecimal digits of the SHA-256 of the settings file, or `none`.
    pub revision: String,
    /// The worker secret.
    pub secret: Option<Secret>,
    /// How to reach relays through proxies.
    pub proxies: ProxyRules,
}

impl Settings {
    /// Uses a configuration as it stands.
    ///
    /// # Errors
    /// The first field that cannot be so.
    pub fn new(
        config: WorkerConfig,
        secret: Option<Secret>,
        proxies: ProxyRules,
    ) -> Result<Self, SettingsError> {
        config.validate()?;
        Ok(Self { config, revision: String::from("none"), secret, proxies })
    }
}

/// Where settings come from; read again whenever the file may have changed.
#[derive(Clone, Debug)]
pub struct Source {
    flags: Flags,
    variables: Vec<(String, String)>,
}

impl Source {
    /// Reads flags and the process environment.
    pub fn of_process(flags: Flags) -> Self {
        Self::new(
            flags,
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// Uses flags and variables as given.
    pub fn new(flags: Flags, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { flags, variables: variables.into_iter().collect() }
    }

    /// Returns the settings file, if there is one.
    pub fn file(&self) -> Option<PathBuf> {
        self.flags.config.clone().or_else(|| self.variable(env::CONFIG_FILE).map(PathBuf::from))
    }

    /// Reads everything and checks it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(&self) -> Result<Settings, SettingsError> {
        let (mut config, revision) = match self.file() {
            Some(path) => self.parse(&path)?,
            None => (WorkerConfig::default(), String::from("none")),
        };
        let secret = self.overlay(&mut config)?;
        config.backend_url = self.expand(&config.backend_url)?;
        let proxies = ProxyRules::from_variables(|name| self.variable(name)).map_err(|error| {
            let (field, problem) = error.split_once(": ").unwrap_or(("HTTPS_PROXY", &error));
            Invalid::new(field, problem)
        })?;
        if config.name.is_none() {
            config.name = Some(self.host_name());
        }
        Ok(Settings { revision, ..Settings::new(config, secret, proxies)? })
    }

    fn parse(&self, path: &Path) -> Result<(WorkerConfig, String), SettingsError> {
        let text = read("--config", path)?;
        let revision = sha256(&text).to_hex()[..16].to_owned();
        let malformed = |source| SettingsError::File { path: path.to_owned(), source };
        if self.flags.check_config {
            return Ok((WorkerConfig::parse_strictly(&text).map_err(malformed)?, revision));
        }
        let parsed = WorkerConfig::parse(&text).map_err(malformed)?;
        for field in &parsed.ignored {
            tracing::warn!(field, "Ignored a setting that this version does not know");
        }
        Ok((parsed.config, revision))
    }

    /// Lays flags and variables over the file, and returns the secret.
    fn overlay(&self, config: &mut WorkerConfig) -> Result<Option<Secret>, SettingsError> {
        let flags = &self.flags;
        let list = |text: String| -> Vec<String> {
            text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
        };
        let one = |flag: &Option<String>, name: &str| flag.clone().or_else(|| self.variable(name));
        if !flags.relay_url.is_empty() {
            config.relay_urls.clone_from(&flags.relay_url);
        } else if let Some(urls) = self.variable(env::RELAY_URL).or_else(|| self.variable(env::PROXY_URL)) {
            config.relay_urls = list(urls);
        }
        if let Some(what) = one(&flags.relay_resolve, env::RELAY_RESOLVE) {
            let wrong = |problem| Invalid::new("relayResolve", problem);
            config.relay_resolve = what.parse().map_err(wrong)?;
        }
        if let Some(url) = one(&flags.backend_url, env::BACKEND_URL) {
            config.backend_url = url;
        }
        if let Some(models) = one(&flags.models, env::MODELS) {
            config.models = list(models);
        }
        if let Some(number) = one(&flags.max_concurrency, env::MAX_CONCURRENCY) {
            config.max_concurrency = number.trim().parse().map_err(|_| {
                Invalid::new(
                    "maxConcurrency",
                    format!("must be a whole number from 1 to 100000, is {number:?}"),
                )
            })?;
        }
        if let Some(name) = one(&flags.name, env::WORKER_NAME) {
            config.name = Some(name);
        }
        if let Some(provider) = one(&flags.provider, env::PROVIDER_NAME) {
            config.provider = provider;
        }
        if let Some(address) = one(&flags.ops_listen, env::OPS_LISTEN_ADDR) {
            let wrong = || {
                Invalid::new(
                    "opsListen",
                    format!("must be an address such as 127.0.0.1:8082, is {address:?}"),
                )
            };
            config.ops_listen = Some(address.parse().map_err(|_| wrong())?);
        }
        if flags.worker_secret_file.is_none()
            && let Some(secret) = self.variable(env::WORKER_SECRET)
        {
            return Ok(Some(checked(env::WORKER_SECRET, secret)?));
        }
        if let Some(path) = &flags.worker_secret_file {
            config.worker_secret_file = Some(path.clone());
        }
        let Some(path) = &config.worker_secret_file else { return Ok(None) };
        let secret = read("workerSecretFile", path)?.trim_end().to_owned();
        if secret.is_empty() {
            return Err(
                Invalid::new("workerSecretFile", format!("{} holds no secret", path.display())).into()
            );
        }
        Ok(Some(checked("workerSecretFile", secret)?))
    }

    /// Replaces `$(NODE_IP)` and `$(NODE_NAME)`.
    fn expand(&self, text: &str) -> Result<String, Invalid> {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("$(") {
            let (name, behind) = after.split_once(')').ok_or_else(|| {
                Invalid::new("backendUrl", format!("has no \")\" for its \"$(\", is {text:?}"))
            })?;
            if !["NODE_IP", "NODE_NAME"].contains(&name) {
                let problem = format!("knows $(NODE_IP) and $(NODE_NAME) only, has $({name})");
                return Err(Invalid::new("backendUrl", problem));
            }
            let value = self.variable(name).ok_or_else(|| {
                Invalid::new("backendUrl", format!("has $({name}), but the environment has no {name}"))
            })?;
            expanded.push_str(before);
            if value.contains(':') {
                expanded.push_str(&format!("[{value}]"))
            } else {
                expanded.push_str(&value)
            }
            rest = behind;
        }
        expanded.push_str(rest);
        Ok(expanded)
    }

    /// An empty variable counts as none: that is how people unset one in a manifest.
    fn variable(&self, name: &str) -> Option<String> {
        let found = self.variables.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    }

    fn host_name(&self) -> String {
        let from_file = || std::fs::read_to_string("/etc/hostname").ok().map(|name| name.trim().to_owned());
        self.variable("HOSTNAME")
            .or_else(|| self.variable("COMPUTERNAME"))
            .or_else(from_file)
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| String::from("worker"))
    }
}

fn checked(field: &str, secret: String) -> Result<Secret, Invalid> {
    if secret.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Ok(Secret(secret));
    }
    Err(Invalid::new(field, "must be one line of printable ASCII, since it travels in a header"))
}

fn read(what: &'static str, path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
        what,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: Flags, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Source::new(flags, variables).load()
    }

    fn relay() -> Flags {
        Flags { relay_url: vec![String::from("http://relay")], ..Flags::default() }
    }

    #[test]
    fn flags_win_over_variables_and_variables_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("worker.yaml");
        std::fs::write(&file, "{relayUrls: ['http://a'], name: file, maxConcurrency: 2, provider: file}")
            .unwrap();
        let flags = Flags { config: Some(file), name: Some(String::from("flag")), ..Flags::default() };
        let variables = [
            ("WORKER_NAME", "env"),
            ("MAX_CONCURRENCY", "3"),
            ("RELAY_URL", "http://b, http://c"),
            ("MODELS", "m, n"),
            ("RELAY_RESOLVE", "all"),
        ];
        let config = load(flags, &variables).unwrap().config;
        assert_eq!((config.name.as_deref(), config.max_concurrency), (Some("flag"), 3));
        assert_eq!(config.provider, "file");
        assert_eq!(config.relay_urls, ["http://b", "http://c"]);
        assert_eq!(config.models, ["m", "n"]);
        assert_eq!(config.relay_resolve, modelrelay_protocol::config::RelayResolve::All);
    }

    #[test]
    fn names_that_v1_users_know_keep_working() {
        let variables = [
            ("PROXY_URL", "http://relay:8080"),
            ("WORKER_SECRET", "s3cret"),
            ("BACKEND_URL", "http://gpu:11434"),
            ("PROVIDER_NAME", "lab"),
            ("MODELS", ""),
        ];
        let settings = load(Flags::default(), &variables).unwrap();
        assert_eq!(settings.config.relay_urls, ["http://relay:8080"]);
        assert_eq!(settings.config.backend_url, "http://gpu:11434");
        assert_eq!(settings.config.provider, "lab");
        assert!(settings.config.models.is_empty());
        assert_eq!(settings.secret, Some(Secret::new("s3cret")));
        assert!(!format!("{settings:?}").contains("s3cret"));
    }

    #[test]
    fn a_secret_file_is_read_without_the_blanks_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "from-file\n").unwrap();
        let flags = Flags { worker_secret_file: Some(file.clone()), ..relay() };
        let settings = load(flags.clone(), &[("WORKER_SECRET", "from-env")]).unwrap();
        assert_eq!(settings.secret, Some(Secret::new("from-file")));
        std::fs::write(&file, "\n").unwrap();
        assert!(load(flags, &[]).unwrap_err().to_string().starts_with("workerSecretFile: "));
    }

    #[test]
    fn errors_are_one_line_that_names_the_field() {
        let table: [(&[(&str, &str)], &str); 7] = [
            (
                &[("RELAY_URL", "http://r"), ("RELAY_RESOLVE", "some")],
                "relayResolve: must be First or All, is \"some\"",
            ),
            (&[], "relayUrls: must name at least one relay"),
            (&[("RELAY_URL", "relay:80")], "relayUrls[0]: must start with"),
            (
                &[("RELAY_URL", "http://r"), ("MAX_CONCURRENCY", "many")],
                "maxConcurrency: must be a whole number",
            ),
            (&[("RELAY_URL", "http://r"), ("MAX_CONCURRENCY", "0")], "maxConcurrency: must be at least 1"),
            (&[("RELAY_URL", "http://r"), ("OPS_LISTEN_ADDR", "8082")], "opsListen: must be an address"),
            (
                &[("RELAY_URL", "http://r"), ("BACKEND_URL", "http://$(POD_IP)")],
                "backendUrl: knows $(NODE_IP)",
            ),
        ];
        for (variables, message) in table {
            let error = load(Flags::default(), variables).unwrap_err().to_string();
            assert!(error.starts_with(message) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_node_stands_in_the_backends_address() {
        let backend = |ip| {
            let flags = Flags { backend_url: Some(String::from("http://$(NODE_IP):8000")), ..relay() };
            load(flags, &[("NODE_IP", ip)]).unwrap().config.backend_url
        };
        assert_eq!(backend("10.0.0.7"), "http://10.0.0.7:8000");
        assert_eq!(backend("fd00::7"), "http://[fd00::7]:8000");
    }
}
