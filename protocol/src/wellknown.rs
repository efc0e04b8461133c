//! Names and numbers that more than one process has to know: paths, headers, environment, limits.

use std::time::Duration;

/// Where workers connect, on the relay's client port.
pub const CONNECT_PATH: &str = "/v1/worker/connect";
/// The query parameter of [`CONNECT_PATH`] that names the provider.
pub const PROVIDER_QUERY: &str = "provider";
/// The provider of a worker that names none.
pub const DEFAULT_PROVIDER: &str = "local";
/// The query parameter that carries the worker secret when [`header::WORKER_SECRET`] does not.
pub const WORKER_SECRET_QUERY: &str = "worker_secret";
/// A model name that stands for any model; never listed to clients.
pub const ANY_MODEL: &str = "*";

/// The client port's own health route, for v1 probes.
pub const HEALTH_PATH: &str = "/health";
/// On the operations port: the process runs.
pub const LIVEZ_PATH: &str = "/livez";
/// On the operations port: the process takes work.
pub const READYZ_PATH: &str = "/readyz";
/// On the operations port: Prometheus text.
pub const METRICS_PATH: &str = "/metrics";
/// On the operations port: the admin API, below this prefix.
pub const ADMIN_PREFIX: &str = "/admin/v1";

/// Header names, in lower case.
pub mod header {
    /// The secret of a worker that connects.
    pub const WORKER_SECRET: &str = "x-worker-secret";
    /// A client's key, Anthropic's way; OpenAI's is `authorization: Bearer`.
    pub const API_KEY: &str = "x-api-key";
    /// The id of a request: the client's if sane, else the relay's, on every response.
    pub const REQUEST_ID: &str = "x-request-id";
    /// Which worker answered.
    pub const WORKER: &str = "x-modelrelay-worker";
    /// How many milliseconds the request waited in the queue.
    pub const QUEUE_MS: &str = "x-modelrelay-queue-ms";
    /// On the 101 to a worker: the relay replica, random per start.
    pub const REPLICA: &str = "x-modelrelay-replica";
    /// On the 101 to a worker: how many replicas there are.
    pub const REPLICAS: &str = "x-modelrelay-replicas";
    /// Marks a client of Anthropic's API.
    pub const ANTHROPIC_VERSION: &str = "anthropic-version";
}

/// Codes of WebSocket close frames.
pub mod close {
    /// Done, nothing is wrong.
    pub const NORMAL: u16 = 1000;
    /// The relay drains and takes no new sessions.
    pub const GOING_AWAY: u16 = 1001;
    /// The other end broke the protocol.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// The secret is missing, wrong or withdrawn.
    pub const POLICY: u16 = 1008;
    /// A frame was larger than allowed.
    pub const TOO_BIG: u16 = 1009;
}

/// Environment variables.
pub mod env {
    /// Relay: the client port's address.
    pub const LISTEN_ADDR: &str = "LISTEN_ADDR";
    /// Both: the operations port's address.
    pub const OPS_LISTEN_ADDR: &str = "OPS_LISTEN_ADDR";
    /// Both: the settings file.
    pub const CONFIG_FILE: &str = "CONFIG_FILE";
    /// Both: the worker secret itself.
    pub const WORKER_SECRET: &str = "WORKER_SECRET";
    /// Relay: `queue.maxRequests`.
    pub const MAX_QUEUE_LEN: &str = "MAX_QUEUE_LEN";
    /// Relay: `queue.timeoutSeconds` and `queue.noWorkerTimeoutSeconds`.
    pub const QUEUE_TIMEOUT_SECS: &str = "QUEUE_TIMEOUT_SECS";
    /// Relay: `timeouts.firstByteSeconds`.
    pub const REQUEST_TIMEOUT_SECS: &str = "REQUEST_TIMEOUT_SECS";
    /// Worker: `provider`. A relay takes workers of any provider and accepts the variable for v1's sake.
    pub const PROVIDER_NAME: &str = "PROVIDER_NAME";
    /// Worker: relays, separated by commas.
    pub const RELAY_URL: &str = "RELAY_URL";
    /// Worker: v1's name for [`RELAY_URL`].
    pub const PROXY_URL: &str = "PROXY_URL";
    /// Worker: `relayResolve`.
    pub const RELAY_RESOLVE: &str = "RELAY_RESOLVE";
    /// Worker: `backendUrl`.
    pub const BACKEND_URL: &str = "BACKEND_URL";
    /// Worker: `models`, separated by commas.
    pub const MODELS: &str = "MODELS";
    /// Worker: `maxConcurrency`.
    pub const MAX_CONCURRENCY: &str = "MAX_CONCURRENCY";
    /// Worker: `name`.
    pub const WORKER_NAME: &str = "WORKER_NAME";
    /// Both: log filter; goes before [`LOG_LEVEL`].
    pub const RUST_LOG: &str = "RUST_LOG";
    /// Both: log level.
    pub const LOG_LEVEL: &str = "LOG_LEVEL";
}

/// The largest frame that a v1 worker or relay takes.
pub const MAX_V1_FRAME_BYTES: usize = 16 << 20;
/// The largest text frame taken from a registered v1 worker: a whole answer in one completion.
pub const MAX_V1_WORKER_FRAME_BYTES: usize = 128 << 20;
/// The largest frame taken from a worker before it registered.
pub const MAX_REGISTER_FRAME_BYTES: usize = 1 << 20;
/// What a relay holds of one answer of a v1 worker, which has no window, for a client that does not read.
pub const MAX_V1_BUFFERED_BYTES: usize = 16 << 20;

/// How long after the upgrade a worker may take to register.
pub const REGISTER_DEADLINE: Duration = Duration::from_secs(10);
/// The time between pings, from either end.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A connection without any frame for so long is gone.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(45);
/// How long the first chunks of a v1 worker's stream wait for a completion that carries an error status.
pub const V1_FIRST_CHUNK_HOLD: Duration = Duration::from_millis(5);
/// How long either end waits for the other's close frame.
pub const CLOSE_GRACE: Duration = Duration::from_secs(2);
