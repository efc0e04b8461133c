//! Where the backend is, and how a connection to it is made.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Uri};
use modelrelay_protocol::codec::FailureCode;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::CallError;
use super::names::Names;
use super::pool::Connection;
use crate::socket::{Socket, bare_host, connected};

/// The address of a backend, taken apart once.
#[derive(Clone, Debug)]
pub(super) struct Target {
    host: String,
    port: u16,
    tls: bool,
    names: Arc<Names>,
    /// What the `host` header says.
    pub(super) authority: HeaderValue,
    /// What every path begins with.
    pub(super) base_path: String,
}

impl Target {
    /// Takes `http://host:port/base` apart. A base of `/v1`, as OpenAI's clients spell it, counts as none: the
    /// paths of requests have it.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
        let tls = uri.scheme_str() == Some("https");
        let authority = uri.authority().ok_or("must name a host")?;
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path().trim_end_matches('/');
        let base_path = path.strip_suffix("/v1").unwrap_or(path).to_owned();
        let header = HeaderValue::from_str(authority.as_str()).map_err(|error| error.to_string())?;
        let (host, names) = (authority.host().to_owned(), Arc::default());
        Ok(Self { host, port, tls, names, authority: header, base_path })
    }

    /// Connects.
    pub(super) async fn connect(
        &self,
        limit: Duration,
        tls: &Arc<ClientConfig>,
    ) -> Result<Box<Connection>, CallError> {
        let refused = |error: std::io::Error| {
            CallError::new(
                FailureCode::BackendRefused,
                format!("backend does not accept connections: {error}"),
            )
        };
        let connecting = async {
            let lookup = tokio::net::lookup_host((bare_host(&self.host), self.port));
            TcpStream::connect(&*self.names.find(lookup).await?).await
        };
        let tcp = connected(connecting, limit).await.map_err(refused)?;
        let socket = if self.tls {
            let connector = TlsConnector::from(Arc::clone(tls));
            let handshake = Socket::tls(tcp, &self.host, &connector);
            match tokio::time::timeout(limit, handshake).await {
                Ok(done) => done.map_err(refused)?,
                Err(_) => return Err(refused(std::io::ErrorKind::TimedOut.into())),
            }
        } else {
            Socket::Plain(tcp)
        };
        Connection::start(socket).await.map(Box::new).map_err(|error| CallError::from_hyper(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_path_is_kept_and_a_trailing_v1_is_not_doubled() {
        let table = [
            ("http://a", ("a", 80, "")),
            ("http://a:8000/", ("a", 8000, "")),
            ("https://a/v1", ("a", 443, "")),
            ("https://a/v1/", ("a", 443, "")),
            ("http://a/engine/v1", ("a", 80, "/engine")),
            ("http://[::1]:9/engine", ("[::1]", 9, "/engine")),
        ];
        for (url, (host, port, base)) in table {
            let target = Target::parse(url).unwrap();
            assert_eq!(
                (target.host.as_str(), target.port, target.base_path.as_str()),
                (host, port, base),
                "{url}"
            );
        }
    }
}
