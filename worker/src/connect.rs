//! How a relay is dialled: TCP, perhaps through a proxy, perhaps TLS, then the upgrade to WebSocket.

pub(crate) mod proxy;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use modelrelay_protocol::wellknown::{self, CONNECT_PATH};
use rustls::ClientConfig;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Error as WsError};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::settings::Secret;
use crate::socket::{Socket, bare_host, connect_tcp};
use proxy::ProxyRules;

/// The whole way to an open WebSocket takes no longer.
const DIAL_LIMIT: Duration = Duration::from_secs(15);

/// A message of a plain v1 relay is at most as large as a request body and its JSON escapes.
const MAX_MESSAGE_BYTES: usize = 128 * 1024 * 1024;

const READ_BUFFER_BYTES: usize = 16 * 1024;
const WRITE_BUFFER_BYTES: usize = 32 * 1024;

/// The largest frame that is written is a v1 completion of 16 MiB.
const MAX_WRITE_BUFFER_BYTES: usize = 20 * 1024 * 1024;

/// The address of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelayUrl {
    tls: bool,
    host: String,
    port: u16,
    /// Host and port as they were given.
    authority: String,
    path: String,
}

impl FromStr for RelayUrl {
    type Err = String;

    /// Reads `ws`, `wss`, `http` and `https` addresses; `http` means `ws`. The worker route is added unless it is there.
    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{text:?} is no address: {error}"))?;
        let tls = match uri.scheme_str() {
            Some("ws" | "http") => false,
            Some("wss" | "https") => true,
            _ => return Err(format!("must start with http://, https://, ws:// or wss://, is {text:?}")),
        };
        let authority = uri.authority().ok_or_else(|| format!("must name a host, is {text:?}"))?;
        let base = uri.path().trim_end_matches('/');
        let base = base.strip_suffix(CONNECT_PATH).unwrap_or(base);
        Ok(Self {
            tls,
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: format!("{base}{CONNECT_PATH}"),
        })
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.path.strip_suffix(CONNECT_PATH).unwrap_or(&self.path);
        write!(f, "{}://{}{base}", if self.tls { "wss" } else { "ws" }, self.authority)
    }
}

/// A lookup of a relay's name takes no longer.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

impl RelayUrl {
    /// Returns all addresses that the host has now.
    ///
    /// # Errors
    /// It has none, or nobody says so in time.
    pub(crate) async fn resolve(&self) -> io::Result<BTreeSet<SocketAddr>> {
        let looking = tokio::net::lookup_host((bare_host(&self.host), self.port));
        let found = tokio::time::timeout(LOOKUP_LIMIT, looking)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))??;
        let found: BTreeSet<SocketAddr> = found.collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(found)
    }
}

/// An open WebSocket to a relay, and what the upgrade's answer said of it.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) socket: WebSocketStream<Socket>,
    /// Names the relay's process; plain v1 relays have no name.
    pub(crate) replica: Option<String>,
    /// How many replicas there are.
    pub(crate) replicas: u32,
}

/// A name beyond this length is none of ours.
const MAX_REPLICA_NAME_BYTES: usize = 128;

impl Dialled {
    fn new(socket: WebSocketStream<Socket>, headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let named = |name: &&str| (1..=MAX_REPLICA_NAME_BYTES).contains(&name.len());
        let replica = text(wellknown::header::REPLICA).filter(named).map(str::to_owned);
        let replicas = text(wellknown::header::REPLICAS).and_then(|number| number.parse().ok());
        Self { socket, replica, replicas: replicas.unwrap_or(1) }
    }
}

/// Why a relay could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Neither the relay nor the proxy took the connection.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The relay, or something in front of it, refused the credential.
    #[error("refused with status {0}")]
    Refused(StatusCode),
    /// What answers is no relay.
    #[error("no upgrade: {0}")]
    Upgrade(String),
    /// It took too long.
    #[error("no connection in time")]
    TimedOut,
}

/// Dials relays.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) proxies: ProxyRules,
}

impl Dialer {
    /// Opens a WebSocket to a relay, at one of its addresses if one is given.
    ///
    /// # Errors
    /// How far it got.
    pub(crate) async fn dial(
        &self,
        relay: &RelayUrl,
        address: Option<SocketAddr>,
        provider: &str,
        secret: Option<&Secret>,
    ) -> Result<Dialled, DialError> {
        tokio::time::timeout(DIAL_LIMIT, self.open(relay, address, provider, secret))
            .await
            .unwrap_or(Err(DialError::TimedOut))
    }

    async fn open(
        &self,
        relay: &RelayUrl,
        address: Option<SocketAddr>,
        provider: &str,
        secret: Option<&Secret>,
    ) -> Result<Dialled, DialError> {
        let host = match address {
            Some(SocketAddr::V4(address)) => address.ip().to_string(),
            Some(SocketAddr::V6(address)) => format!("[{}]", address.ip()),
            None => relay.host.clone(),
        };
        let tcp = match self.proxies.find(relay.tls, &relay.host, relay.port) {
            Some(proxy) => proxy.connect(&host, relay.port, DIAL_LIMIT).await?,
            None => connect_tcp(&host, relay.port, DIAL_LIMIT).await?,
        };
        // The certificate is for the name, whatever address was dialled.
        let socket = if relay.tls {
            Socket::tls(tcp, &relay.host, &TlsConnector::from(Arc::clone(&self.tls))).await?
        } else {
            Socket::Plain(tcp)
        };
        let scheme = if relay.tls { "wss" } else { "ws" };
        let url = format!(
            "{scheme}://{}{}?{}={}",
            relay.authority,
            relay.path,
            wellknown::PROVIDER_QUERY,
            escape(provider)
        );
        let mut request = url.into_client_request().map_err(|error| DialError::Upgrade(error.to_string()))?;
        if let Some(secret) = secret {
            let mut value = HeaderValue::from_str(secret.expose())
                .map_err(|_| DialError::Upgrade(String::from("the secret cannot stand in a header")))?;
            value.set_sensitive(true);
            request.headers_mut().insert(wellknown::header::WORKER_SECRET, value);
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(WRITE_BUFFER_BYTES)
            .max_write_buffer_size(MAX_WRITE_BUFFER_BYTES)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        match client_async_with_config(request, socket, Some(config)).await {
            Ok((socket, answer)) => Ok(Dialled::new(socket, answer.headers())),
            Err(error) => Err(upgrade_error(error)),
        }
    }
}

fn upgrade_error(error: WsError) -> DialError {
    match error {
        WsError::Http(response)
            if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) =>
        {
            DialError::Refused(response.status())
        }
        WsError::Http(response) => DialError::Upgrade(format!("status {}", response.status())),
        WsError::Io(error) => DialError::Io(error),
        other => DialError::Upgrade(tungstenite::Error::to_string(&other)),
    }
}

/// Percent-encodes what may not stand in a query as it is.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_addresses_mean_websockets_and_the_route_is_added_once() {
        let table = [
            ("http://relay:8080", "ws://relay:8080", false, 8080, "/v1/worker/connect"),
            ("https://relay", "wss://relay", true, 443, "/v1/worker/connect"),
            ("ws://relay/", "ws://relay", false, 80, "/v1/worker/connect"),
            ("wss://relay/v1/worker/connect", "wss://relay", true, 443, "/v1/worker/connect"),
            ("https://gw/team/", "wss://gw/team", true, 443, "/team/v1/worker/connect"),
        ];
        for (text, shown, tls, port, path) in table {
            let url: RelayUrl = text.parse().unwrap();
            assert_eq!(
                (url.to_string().as_str(), url.tls, url.port, url.path.as_str()),
                (shown, tls, port, path)
            );
        }
        assert!("relay:8080".parse::<RelayUrl>().is_err());
        assert!("ftp://relay".parse::<RelayUrl>().is_err());
    }

    #[test]
    fn a_provider_is_escaped() {
        assert_eq!(escape("lab-1"), "lab-1");
        assert_eq!(escape("a b&c=ä"), "a%20b%26c%3D%C3%A4");
    }
}
