//! Logging: where lines go and which ones.

mod json;
mod lines;

use std::io::{self, IsTerminal};

use modelrelay_protocol::wellknown::env;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use self::json::Json;
pub use self::lines::Lines;
use crate::settings::SettingsError;

/// Which lines are logged.
#[derive(Debug)]
pub struct LogFilter(EnvFilter);

/// Something else in this process logs already.
#[derive(Debug, thiserror::Error)]
#[error("logging is set up already")]
pub struct AlreadySet;

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

impl LogFilter {
    /// Reads `RUST_LOG`, else `LOG_LEVEL`, else `info`; both take a level or directives.
    ///
    /// # Errors
    /// The variable that cannot be understood.
    pub fn from_variables(rust_log: Option<&str>, log_level: Option<&str>) -> Result<Self, SettingsError> {
        let set = |value: Option<&str>| value.map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let (variable, value) = match (set(rust_log), set(log_level)) {
            (Some(value), _) => (env::RUST_LOG, value),
            (None, Some(value)) => (env::LOG_LEVEL, value),
            (None, None) => (env::LOG_LEVEL, "info".to_owned()),
        };
        let refused = || SettingsError::Value {
            origin: variable,
            problem: format!(
                "must be a level ({}) or directives such as info,hyper=warn, is {value:?}",
                LEVELS.join(", ")
            ),
        };
        // A lone word is a level; the library would take any other word for a module to trace.
        let lone_word = value.bytes().all(|b| b.is_ascii_alphanumeric());
        if lone_word && !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(&value)) {
            return Err(refused());
        }
        EnvFilter::try_new(&value).map(Self).map_err(|_| refused())
    }
}

/// Starts logging to standard error: text on a terminal, JSON otherwise. The last lines are written when what it returns
/// is dropped.
///
/// # Errors
/// When something in this process logs already.
pub fn init(filter: LogFilter) -> Result<Lines, AlreadySet> {
    let lines = Lines::to_stderr();
    let is_terminal = io::stderr().is_terminal();
    let logs = fmt().with_env_filter(filter.0).with_ansi(is_terminal).with_writer(lines.sender());
    let set = if is_terminal { logs.try_init() } else { logs.event_format(Json).try_init() };
    set.map(|()| lines).map_err(|_| AlreadySet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(rust_log: Option<&str>, log_level: Option<&str>) -> Result<String, String> {
        LogFilter::from_variables(rust_log, log_level).map(|f| f.0.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn rust_log_goes_before_log_level_and_info_is_the_default() {
        assert_eq!(filter(None, None), Ok("info".to_owned()));
        assert_eq!(filter(Some(""), Some(" ")), Ok("info".to_owned()));
        assert_eq!(filter(None, Some("DEBUG")), Ok("debug".to_owned()));
        assert_eq!(filter(Some("warn"), Some("debug")), Ok("warn".to_owned()));
        assert_eq!(filter(None, Some("hyper=warn")), Ok("hyper=warn".to_owned()));
    }

    #[test]
    fn a_filter_that_means_nothing_is_refused_by_name() {
        for (rust_log, log_level, start) in [
            (None, Some("verbose"), "LOG_LEVEL: must be a level"),
            (Some("info,hyper=loud"), Some("info"), "RUST_LOG: must be a level"),
            (Some("a=b=c"), None, "RUST_LOG: must be a level"),
        ] {
            let error = filter(rust_log, log_level).unwrap_err();
            assert!(error.starts_with(start), "{error}");
        }
    }
}
