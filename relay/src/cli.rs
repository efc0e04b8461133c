//! The command line: flags, environment variables, and `key new`.
//!
//! A flag goes before its variable, and both before the settings file. Nothing here reads a file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use modelrelay_protocol::config::{
    ClientKeyConfig, OnRemoval, RelayConfig, Secret, Sha256Hash, WorkerCredentialConfig, is_key_id,
};
use modelrelay_protocol::wellknown::env;

use crate::keys;
use crate::settings::{Given, Live, Overrides, SecretSource, SettingsError, Source, Startable};
use crate::telemetry::{self, LogFilter};

/// Flags and subcommands as they were typed.
#[derive(Clone, Debug, Default, Parser)]
#[command(
    name = "modelrelay-relay",
    version,
    about = "Takes requests from clients and hands them to workers"
)]
pub struct Args {
    /// The settings file [CONFIG_FILE]
    #[arg(long, value_name = "FILE")]
    config: Option<String>,

    /// Address of the client port, workers included [LISTEN_ADDR] [default: 0.0.0.0:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,

    /// Address of the operations port [OPS_LISTEN_ADDR] [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDRESS")]
    ops_listen: Option<String>,

    /// File with the secret that workers present [or WORKER_SECRET: the secret itself]
    #[arg(long, value_name = "FILE")]
    worker_secret_file: Option<String>,

    /// Lets workers serve without any secret
    #[arg(long)]
    insecure_no_worker_auth: bool,

    /// Validates the settings, refuses unknown fields, and ends
    #[arg(long)]
    check_config: bool,

    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Client keys and worker credentials
    #[command(subcommand)]
    Key(KeyCommand),
}

/// What can be done with keys.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Makes a key and prints it, once, with the lines for the settings file
    New(NewKey),
}

/// The options of `key new`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NewKey {
    /// Makes a worker credential instead of a client key
    #[arg(long)]
    worker: bool,

    /// The key's id: letters, digits and "-" [default: random]
    #[arg(long)]
    id: Option<String>,

    /// Who pays [default: the id]
    #[arg(long, conflicts_with_all = ["worker", "pool"])]
    tenant: Option<String>,

    /// The pool of the workers [default: default]
    #[arg(long, requires = "worker")]
    pool: Option<String>,

    /// A model it may be used for, repeatable [default: all]
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
}

/// How the program ends without serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code: 0 after help, 2 after a mistake.
    pub code: u8,
    /// What to print: on standard output for code 0, else on standard error.
    pub text: String,
}

impl From<SettingsError> for Exit {
    fn from(error: SettingsError) -> Self {
        Self { code: 2, text: error.to_string() }
    }
}

/// Everything the command line and the environment decide.
#[derive(Debug)]
pub struct Resolved {
    /// Where the settings come from.
    pub source: Source,
    /// What is logged.
    pub log_filter: LogFilter,
    /// Whether only to validate.
    pub check_config: bool,
    /// How many threads serve, where somebody says so.
    pub threads: Option<NonZeroUsize>,
}

/// Sets the number of threads by hand, as for any program of this runtime.
const THREADS: &str = "TOKIO_WORKER_THREADS";

/// The whole program around `serve`: reads the command line and the settings, starts logging, and turns whatever
/// ends it into an exit code (0 done, 1 failed while serving, 2 wrong flags or settings).
pub fn main(serve: impl FnOnce(Arc<Live>, Option<NonZeroUsize>) -> anyhow::Result<()>) -> ExitCode {
    match prepare(std::env::args_os(), process_environment) {
        // The lines of the log are written when this is over, whatever ends it.
        Ok(Prepared { live, threads, lines: _lines }) => match serve(live, threads) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("Stopped: {error:#}");
                ExitCode::FAILURE
            }
        },
        Err(Exit { code: 0, text }) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(Exit { code, text }) => {
            eprintln!("{text}");
            ExitCode::from(code)
        }
    }
}

/// What serving needs.
struct Prepared {
    live: Arc<Live>,
    threads: Option<NonZeroUsize>,
    lines: telemetry::Lines,
}

fn prepare(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Prepared, Exit> {
    let args = parse(arguments)?;
    if let Some(Command::Key(KeyCommand::New(options))) = &args.command {
        return Err(Exit { code: 0, text: new_key(options)? });
    }
    let Resolved { source, log_filter, check_config, threads } = resolve(&args, variable)?;
    if check_config {
        // The secret may be where the relay will run, and not here.
        let text = match Live::check(&source)? {
            Startable::Yes => "the settings are valid".to_owned(),
            Startable::WithWorkerAuth => {
                format!(
                    "the settings are valid, but as it is called here the relay would not start: {}",
                    SettingsError::NoWorkerAuth
                )
            }
        };
        return Err(Exit { code: 0, text });
    }
    // Before the settings are read: they may have something to say in the log.
    let lines = telemetry::init(log_filter).map_err(|error| Exit { code: 1, text: error.to_string() })?;
    Ok(Prepared { live: Live::start(source)?, threads, lines })
}

/// Reads the flags.
///
/// # Errors
/// Help and version, with code 0; mistakes, with code 2 and one line.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Args, Exit> {
    Args::try_parse_from(arguments).map_err(|error| {
        let text = error.render().to_string();
        if !error.use_stderr() {
            return Exit { code: 0, text };
        }
        // The library adds usage and tips after the first paragraph.
        let first = text.split("\n\n").next().unwrap_or_default();
        let line = first.split_whitespace().collect::<Vec<_>>().join(" ");
        Exit { code: 2, text: line.trim_start_matches("error: ").to_owned() }
    })
}

/// A variable of this process; bytes that are not UTF-8 are replaced.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Lays flags over variables.
///
/// # Errors
/// The flag or variable that says something wrong.
pub fn resolve(args: &Args, variable: impl Fn(&str) -> Option<String>) -> Result<Resolved, SettingsError> {
    // Set but empty is how compose files and pod templates say "not set".
    let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let from = |flag: Option<&String>, flag_name, variable_name| match flag {
        Some(value) => Some(Given { value: value.clone(), origin: flag_name }),
        None => variable(variable_name).map(|value| Given { value, origin: variable_name }),
    };
    let config_file = from(args.config.as_ref(), "--config", env::CONFIG_FILE);
    let overrides = Overrides {
        listen: address(from(args.listen.as_ref(), "--listen", env::LISTEN_ADDR))?,
        ops_listen: address(from(args.ops_listen.as_ref(), "--ops-listen", env::OPS_LISTEN_ADDR))?,
        max_requests: number(from(None, "", env::MAX_QUEUE_LEN))?,
        queue_timeout_seconds: number(from(None, "", env::QUEUE_TIMEOUT_SECS))?,
        first_byte_seconds: number(from(None, "", env::REQUEST_TIMEOUT_SECS))?,
    };
    let worker_secret = match (&args.worker_secret_file, variable(env::WORKER_SECRET)) {
        (Some(path), _) => SecretSource::File(path.into()),
        (None, Some(secret)) => SecretSource::Given(Secret::new(&secret)),
        (None, None) => SecretSource::Absent,
    };
    let (rust_log, log_level) = (variable(env::RUST_LOG), variable(env::LOG_LEVEL));
    Ok(Resolved {
        source: Source {
            config_file: config_file
                .map(|file| Given { value: PathBuf::from(file.value), origin: file.origin }),
            overrides,
            worker_secret,
            insecure_no_worker_auth: args.insecure_no_worker_auth,
        },
        log_filter: LogFilter::from_variables(rust_log.as_deref(), log_level.as_deref())?,
        check_config: args.check_config,
        threads: parsed(from(None, "", THREADS), "a whole number from 1 on")?.map(|given| given.value),
    })
}

fn address(given: Option<Given<String>>) -> Result<Option<Given<SocketAddr>>, SettingsError> {
    parsed(given, "an address and port such as 0.0.0.0:8080")
}

fn number(given: Option<Given<String>>) -> Result<Option<Given<u32>>, SettingsError> {
    parsed(given, "a whole number")
}

fn parsed<T: FromStr>(given: Option<Given<String>>, what: &str) -> Result<Option<Given<T>>, SettingsError> {
    let Some(Given { value, origin }) = given else { return Ok(None) };
    match value.trim().parse() {
        Ok(value) => Ok(Some(Given { value, origin })),
        Err(_) => Err(SettingsError::Value { origin, problem: format!("must be {what}, is {value:?}") }),
    }
}

/// Makes a key and says what to print on standard output: the key on the first line, then the settings file's lines.
///
/// # Errors
/// An option that cannot be, or no random bits, as an exit.
pub fn new_key(options: &NewKey) -> Result<String, Exit> {
    let no_random = |error| Exit { code: 1, text: format!("no random bits from the system: {error}") };
    let id = match &options.id {
        Some(id) => id.clone(),
        None => {
            let random = keys::generate("").map_err(no_random)?;
            random.expose().trim_start_matches("mr__").chars().take(8).collect()
        }
    };
    if !is_key_id(&id) {
        let problem = format!("must be 1 to 64 letters, digits and \"-\", is {id:?}");
        return Err(SettingsError::Value { origin: "--id", problem }.into());
    }
    let key = keys::generate(&id).map_err(no_random)?;
    let hash = keys::sha256(key.expose());
    let config =
        if options.worker { worker_entry(options, id, hash) } else { client_entry(options, id, hash) };
    config.validate().map_err(|invalid| Exit { code: 2, text: invalid.to_string() })?;
    let yaml = config.to_yaml();
    Ok(format!(
        "{}\n\n# The line above is shown only this once. For the relay's settings file:\n{yaml}",
        key.expose()
    ))
}

fn client_entry(options: &NewKey, id: String, sha256: Sha256Hash) -> RelayConfig {
    let entry = ClientKeyConfig {
        id,
        sha256,
        tenant: options.tenant.clone(),
        priority: None,
        models: options.models.clone(),
        requests_per_minute: None,
        tokens_per_minute: None,
        max_concurrent_requests: None,
    };
    RelayConfig { client_keys: vec![entry], ..RelayConfig::default() }
}

fn worker_entry(options: &NewKey, id: String, sha256: Sha256Hash) -> RelayConfig {
    let entry = WorkerCredentialConfig {
        name: Some(id),
        sha256,
        pool: options.pool.clone().unwrap_or_else(|| "default".to_owned()),
        namespace: None,
        models: options.models.clone(),
        labels: BTreeMap::new(),
        max_workers: None,
        max_concurrent_requests: None,
        on_removal: OnRemoval::Disconnect,
        forward_credentials: false,
    };
    RelayConfig { worker_credentials: vec![entry], ..RelayConfig::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn args(list: &[&str]) -> Args {
        parse(["modelrelay-relay"].iter().chain(list).map(OsString::from)).unwrap()
    }

    fn resolved(list: &[&str], variables: Variables<'_>) -> Result<Resolved, String> {
        let find =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        resolve(&args(list), find).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_go_before_variables() {
        let variables =
            [("LISTEN_ADDR", "127.0.0.1:1"), ("OPS_LISTEN_ADDR", "127.0.0.1:2"), ("CONFIG_FILE", "env.yaml")];
        let source =
            resolved(&["--listen", "127.0.0.1:9", "--config", "flag.yaml"], &variables).unwrap().source;
        let listen = source.overrides.listen.unwrap();
        assert_eq!((listen.value.port(), listen.origin), (9, "--listen"));
        let ops_listen = source.overrides.ops_listen.unwrap();
        assert_eq!((ops_listen.value.port(), ops_listen.origin), (2, "OPS_LISTEN_ADDR"));
        assert_eq!(source.config_file.unwrap().value, PathBuf::from("flag.yaml"));
    }

    #[test]
    fn variables_of_v1_are_understood() {
        let variables = [
            ("MAX_QUEUE_LEN", "7"),
            ("QUEUE_TIMEOUT_SECS", "8"),
            ("REQUEST_TIMEOUT_SECS", "9"),
            ("PROVIDER_NAME", "local"),
            ("WORKER_SECRET", " hush\n"),
        ];
        let source = resolved(&[], &variables).unwrap().source;
        let value = |given: Option<Given<u32>>| given.unwrap().value;
        let overrides = source.overrides;
        assert_eq!(value(overrides.max_requests), 7);
        assert_eq!(value(overrides.queue_timeout_seconds), 8);
        assert_eq!(value(overrides.first_byte_seconds), 9);
        assert_eq!(source.worker_secret, SecretSource::Given(Secret::new("hush")));
    }

    #[test]
    fn threads_are_a_number_that_can_serve() {
        assert_eq!(resolved(&[], &[("TOKIO_WORKER_THREADS", "3")]).unwrap().threads, NonZeroUsize::new(3));
        assert_eq!(resolved(&[], &[]).unwrap().threads, None);
        for wrong in ["0", "many", "-1"] {
            let error = resolved(&[], &[("TOKIO_WORKER_THREADS", wrong)]).unwrap_err();
            assert_eq!(
                error,
                format!("TOKIO_WORKER_THREADS: must be a whole number from 1 on, is \"{wrong}\"")
            );
        }
    }

    #[test]
    fn a_check_says_when_the_relay_would_not_start() {
        let check = |list: &[&str], secret: Option<&str>| {
            let arguments = ["modelrelay-relay", "--check-config"].iter().chain(list).map(OsString::from);
            let exit =
                prepare(arguments, |name| secret.filter(|_| name == env::WORKER_SECRET).map(str::to_owned));
            exit.map(|_| ()).unwrap_err()
        };
        let valid = Exit { code: 0, text: "the settings are valid".to_owned() };
        assert_eq!(check(&[], Some("hush")), valid);
        assert_eq!(check(&["--insecure-no-worker-auth"], None), valid);
        let exit = check(&[], None);
        assert_eq!(exit.code, 0);
        assert!(exit.text.starts_with("the settings are valid, but"), "{}", exit.text);
        assert!(exit.text.contains("WORKER_SECRET") && !exit.text.contains('\n'), "{}", exit.text);
    }

    #[test]
    fn a_secret_that_no_worker_could_send_is_refused() {
        for wrong in ["two\nlines", "caf\u{e9}", "tab\there"] {
            let exit = prepare(["modelrelay-relay".into(), "--check-config".into()], |name| {
                (name == env::WORKER_SECRET).then(|| wrong.to_owned())
            });
            let exit = exit.map(|_| ()).unwrap_err();
            assert_eq!(exit.code, 2, "{wrong:?}");
            assert!(
                exit.text.starts_with("WORKER_SECRET: must be one line of printable ASCII"),
                "{}",
                exit.text
            );
            assert!(!exit.text.contains(wrong));
        }
    }

    #[test]
    fn a_secret_file_goes_before_the_variable() {
        let source =
            resolved(&["--worker-secret-file", "secret"], &[("WORKER_SECRET", "hush")]).unwrap().source;
        assert_eq!(source.worker_secret, SecretSource::File("secret".into()));
    }

    #[test]
    fn variables_that_are_empty_are_not_set() {
        let variables = [("LISTEN_ADDR", ""), ("WORKER_SECRET", " "), ("CONFIG_FILE", ""), ("LOG_LEVEL", "")];
        assert_eq!(resolved(&[], &variables).unwrap().source, Source::default());
    }

    #[test]
    fn mistakes_are_one_line_that_names_flag_or_variable() {
        let table: [(&[&str], Variables<'_>, &str); 4] = [
            (
                &["--listen", "8080"],
                &[],
                "--listen: must be an address and port such as 0.0.0.0:8080, is \"8080\"",
            ),
            (
                &[],
                &[("LISTEN_ADDR", "here")],
                "LISTEN_ADDR: must be an address and port such as 0.0.0.0:8080, is \"here\"",
            ),
            (&[], &[("MAX_QUEUE_LEN", "many")], "MAX_QUEUE_LEN: must be a whole number, is \"many\""),
            (
                &[],
                &[("LOG_LEVEL", "loud")],
                "LOG_LEVEL: must be a level (error, warn, info, debug, trace, off) or directives such as info,hyper=warn, is \"loud\"",
            ),
        ];
        for (flags, variables, message) in table {
            assert_eq!(resolved(flags, variables).unwrap_err(), message);
        }
    }

    #[test]
    fn unknown_flags_end_with_code_2_and_one_line_and_help_with_0() {
        let exit = parse(["relay", "--listne", "x"].map(OsString::from)).unwrap_err();
        assert_eq!(exit, Exit { code: 2, text: "unexpected argument '--listne' found".to_owned() });
        let exit = parse(["relay", "--listen"].map(OsString::from)).unwrap_err();
        assert!(
            exit.code == 2 && exit.text.contains("--listen") && !exit.text.contains('\n'),
            "{}",
            exit.text
        );
        let exit = parse(["relay", "--help"].map(OsString::from)).unwrap_err();
        assert_eq!(exit.code, 0);
        for name in ["CONFIG_FILE", "LISTEN_ADDR", "OPS_LISTEN_ADDR", "WORKER_SECRET"] {
            assert!(exit.text.contains(name), "{name}");
        }
    }

    #[test]
    fn new_client_keys_come_with_lines_that_the_settings_take() {
        let Some(Command::Key(KeyCommand::New(options))) =
            args(&["key", "new", "--id", "app", "--tenant", "team", "--model", "m"]).command
        else {
            panic!("key new");
        };
        let printed = new_key(&options).unwrap();
        let (key, yaml) = printed.split_once('\n').unwrap();
        let config = RelayConfig::parse_strictly(yaml).unwrap();
        let entry = &config.client_keys[0];
        assert_eq!(config.validate(), Ok(()));
        assert_eq!((entry.id.as_str(), entry.tenant.as_deref()), ("app", Some("team")));
        assert_eq!((entry.models.clone(), entry.sha256), (vec!["m".to_owned()], keys::sha256(key)));
        assert!(!yaml.contains(key.trim_start_matches("mr_app_")));
    }

    #[test]
    fn new_worker_credentials_come_with_lines_that_the_settings_take() {
        let options = NewKey { worker: true, pool: Some("rack".to_owned()), ..NewKey::default() };
        let printed = new_key(&options).unwrap();
        let (key, yaml) = printed.split_once('\n').unwrap();
        let config = RelayConfig::parse_strictly(yaml).unwrap();
        let entry = &config.worker_credentials[0];
        assert_eq!((entry.pool.as_str(), entry.sha256), ("rack", keys::sha256(key)));
        assert_eq!(keys::key_id(key), entry.name.as_deref());
    }

    #[test]
    fn the_check_says_yes_or_names_the_field() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("relay.yaml");
        let check = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let arguments =
                ["relay".into(), "--check-config".into(), "--config".into(), file.clone().into_os_string()];
            prepare(arguments, |name| (name == env::WORKER_SECRET).then(|| "hush".to_owned()))
                .map(|_| ())
                .unwrap_err()
        };
        assert_eq!(check("{}"), Exit { code: 0, text: "the settings are valid".to_owned() });
        let text = format!("{}: retries.maxRequeues: must be at most 100, is 101", file.display());
        assert_eq!(check("retries: { maxRequeues: 101 }"), Exit { code: 2, text });
    }

    #[test]
    fn keys_with_a_bad_id_are_not_made() {
        for worker in [false, true] {
            let options = NewKey { worker, id: Some("a_b".to_owned()), ..NewKey::default() };
            let exit = new_key(&options).unwrap_err();
            let text = "--id: must be 1 to 64 letters, digits and \"-\", is \"a_b\"".to_owned();
            assert_eq!(exit, Exit { code: 2, text });
        }
    }

    #[test]
    fn options_of_clients_and_workers_do_not_mix() {
        for list in [
            ["--pool", "a", "--tenant", "b"],
            ["--worker", "--tenant", "b", "--id=x"],
            ["--pool", "a", "--id", "b"],
        ] {
            let arguments = ["relay", "key", "new"].into_iter().chain(list).map(OsString::from);
            assert_eq!(parse(arguments).unwrap_err().code, 2);
        }
    }
}
