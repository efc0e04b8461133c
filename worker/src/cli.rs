//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Runs beside an inference server and brings it requests from one or more relays.
///
/// Flags win over environment variables, those over the settings file.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "modelrelay-worker", version)]
pub struct Flags {
    /// Settings file (YAML), read again when it changes [env: CONFIG_FILE]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address of a relay, http(s):// or ws(s)://; repeatable [env: RELAY_URL or PROXY_URL, separated by commas]
    #[arg(long, value_name = "URL")]
    pub relay_url: Vec<String>,

    /// What the host names of relays stand for: First, one way in, or All, a relay at each address [env: RELAY_RESOLVE] [default: First]
    #[arg(long, value_name = "WHAT")]
    pub relay_resolve: Option<String>,

    /// Address of the inference server [env: BACKEND_URL] [default: http://127.0.0.1:8000]
    #[arg(long, value_name = "URL")]
    pub backend_url: Option<String>,

    /// Models to advertise, separated by commas [env: MODELS] [default: what the backend lists]
    #[arg(long, value_name = "NAMES")]
    pub models: Option<String>,

    /// Requests that the backend takes at once [env: MAX_CONCURRENCY] [default: 1]
    #[arg(long, value_name = "N")]
    pub max_concurrency: Option<String>,

    /// Name of this worker [env: WORKER_NAME] [default: the host name]
    #[arg(long)]
    pub name: Option<String>,

    /// Provider that it joins [env: PROVIDER_NAME] [default: local]
    #[arg(long)]
    pub provider: Option<String>,

    /// File that holds the worker secret; the secret itself may stand in WORKER_SECRET
    #[arg(long, value_name = "FILE")]
    pub worker_secret_file: Option<PathBuf>,

    /// Address of the operations port: /livez, /readyz, /metrics [env: OPS_LISTEN_ADDR] [default: none]
    #[arg(long, value_name = "ADDRESS")]
    pub ops_listen: Option<String>,

    /// Check the settings and exit
    #[arg(long)]
    pub check_config: bool,
}
