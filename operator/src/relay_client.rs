//! Asks relays and workers on their operations ports.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use modelrelay_protocol::wellknown::ADMIN_PREFIX;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// How long one question may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The longest answer that is read: 10,000 workers at about half a kilobyte each.
const ANSWER_BYTES: usize = 16 << 20;

/// Asks relays and workers on their operations ports.
#[derive(Clone, Debug)]
pub struct OpsClient {
    http: Client<HttpConnector, Full<Bytes>>,
}

impl Default for OpsClient {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(ANSWER_LIMIT));
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(1)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector);
        Self { http }
    }
}

/// A pod did not answer as it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It cannot be reached, or did not answer in time.
    #[error("{address} cannot be reached: {problem}")]
    Unreachable {
        /// Whom was asked.
        address: String,
        /// What went wrong.
        problem: String,
    },
    /// It answered something else.
    #[error("{address} answered {status}")]
    Refused {
        /// Whom was asked.
        address: String,
        /// The HTTP status.
        status: StatusCode,
    },
    /// Its answer cannot be read.
    #[error("{address} answered what this version cannot read: {problem}")]
    Unreadable {
        /// Whom was asked.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// What a relay says of the settings in force (`/admin/v1/config`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ConfigReport {
    /// The first 16 hexadecimal digits of the SHA-256 of the file in force.
    pub revision: String,
    /// Fields of it that the relay's version does not know.
    #[serde(default)]
    pub ignored: Vec<String>,
    /// Why the newest file is not in force.
    #[serde(default)]
    pub problem: Option<String>,
}

/// A worker as a relay sees it (one of `/admin/v1/workers`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct WorkerReport {
    /// Its name.
    pub name: String,
    /// Tells processes of the same name apart; a worker has the same one at every relay.
    #[serde(default)]
    pub instance: Option<String>,
    /// The pool that its credential names.
    pub pool: String,
    /// The pool's namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// `ready`, `not_ready` or `draining`.
    pub state: String,
    /// Why it is not ready.
    #[serde(default)]
    pub reason: Option<String>,
    /// What it serves now.
    #[serde(default)]
    pub models: Vec<String>,
}

impl OpsClient {
    /// Asks a relay for the settings in force.
    ///
    /// # Errors
    /// It did not answer as it should.
    pub async fn config(&self, pod: IpAddr, port: u16, token: &str) -> Result<ConfigReport, AskError> {
        self.ask(Method::GET, pod, port, "/config", token).await
    }

    /// Asks a relay for its workers.
    ///
    /// # Errors
    /// It did not answer as it should.
    pub async fn workers(&self, pod: IpAddr, port: u16, token: &str) -> Result<Vec<WorkerReport>, AskError> {
        self.ask(Method::GET, pod, port, "/workers", token).await
    }

    /// Sends a request below `/admin/v1` and reads the JSON answer.
    ///
    /// # Errors
    /// It did not answer as it should.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        pod: IpAddr,
        port: u16,
        path: &str,
        token: &str,
    ) -> Result<T, AskError> {
        let address = std::net::SocketAddr::new(pod, port).to_string();
        let unreachable = |problem: String| AskError::Unreachable { address: address.clone(), problem };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{address}{ADMIN_PREFIX}{path}"))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Full::default())
            .map_err(|error| unreachable(error.to_string()))?;
        let answer = async {
            let response = self
                .http
                .request(request)
                .await
                .map_err(|error| unreachable(crate::cache::Causes(&error).to_string()))?;
            if !response.status().is_success() {
                return Err(AskError::Refused { address: address.clone(), status: response.status() });
            }
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
            body.map(http_body_util::Collected::to_bytes).map_err(|error| unreachable(error.to_string()))
        };
        let bytes = timeout(ANSWER_LIMIT, answer)
            .await
            .map_err(|_| unreachable(format!("no answer within {} s", ANSWER_LIMIT.as_secs())))??;
        serde_json::from_slice(&bytes)
            .map_err(|error| AskError::Unreadable { address: address.clone(), problem: error.to_string() })
    }
}
