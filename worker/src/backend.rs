//! The client for the inference server beside the worker.
//!
//! Owns connections and what went wrong with them; what is asked and where the answer goes is the caller's.

pub(crate) mod body;
mod connect;
pub(crate) mod exchange;
mod names;
mod pool;

use std::error::Error as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::response::Parts;
use http::{Method, Request, Uri};
use modelrelay_protocol::codec::FailureCode;
use rustls::ClientConfig;
use tokio::time::Instant;

use body::RequestBody;
use connect::Target;
use exchange::Exchange;
use pool::Pool;

/// How often idle connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Connections kept beyond the number of slots, for probes.
const SPARE_CONNECTIONS: usize = 4;

/// Why a call has no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CallError {
    pub(crate) code: FailureCode,
    pub(crate) message: String,
}

impl CallError {
    pub(crate) fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Tells garbage from a connection that ended.
    fn from_hyper(error: &hyper::Error) -> Self {
        let mut cause = error.source();
        let mut malformed = error.is_parse();
        while let Some(source) = cause {
            if let Some(io) = source.downcast_ref::<std::io::Error>() {
                malformed |=
                    matches!(io.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput);
            }
            malformed |= source.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
            cause = source.source();
        }
        let detail = error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
        if malformed {
            Self::new(
                FailureCode::BackendGarbage,
                format!("backend sent something that is not HTTP: {detail}"),
            )
        } else {
            Self::new(
                FailureCode::BackendReset,
                format!("backend closed before its answer was whole: {detail}"),
            )
        }
    }
}

/// A request to the backend.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Path and query, without the base path.
    pub(crate) path: String,
    /// End-to-end headers; `host` and the length are added.
    pub(crate) headers: HeaderMap,
    pub(crate) body: RequestBody,
}

/// The inference server.
pub(crate) struct Backend {
    target: Target,
    pool: Arc<Pool>,
    tls: Arc<ClientConfig>,
    connect_limit: Duration,
}

impl Backend {
    /// Prepares to call a backend; nothing is dialled yet.
    ///
    /// # Errors
    /// The address is none.
    pub(crate) fn new(
        url: &str,
        slots: u32,
        connect_limit: Duration,
        tls: Arc<ClientConfig>,
    ) -> Result<Self, String> {
        let most = usize::try_from(slots).unwrap_or(usize::MAX).saturating_add(SPARE_CONNECTIONS);
        Ok(Self { target: Target::parse(url)?, pool: Arc::new(Pool::new(most)), tls, connect_limit })
    }

    /// Sends a request and waits for the head of its answer. Dropping this future, or the exchange that it
    /// returns, closes the connection.
    ///
    /// # Errors
    /// No connection, or none that carried an answer's head.
    pub(crate) async fn call(&self, call: Call) -> Result<(Parts, Exchange), CallError> {
        let path = format!("{}{}", self.target.base_path, call.path);
        let uri: Uri = path.parse().map_err(|error| {
            CallError::new(FailureCode::Internal, format!("cannot ask for {path:?}: {error}"))
        })?;
        let mut headers = call.headers;
        strip(&mut headers);
        headers.insert(header::HOST, self.target.authority.clone());
        let mut request = Request::new(call.body);
        *request.method_mut() = call.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;

        let idle = std::future::poll_fn(|cx| std::task::Poll::Ready(self.pool.take(cx))).await;
        let Some(mut connection) = idle else { return Box::pin(self.fresh(request)).await };
        let sent = pin!(connection.sender.try_send_request(request));
        match Exchange::head(&mut connection, sent).await {
            Ok(response) => Ok(Exchange::new(connection, Arc::clone(&self.pool), response)),
            // A request comes back when nothing of it was written: the connection had ended before. Once a byte was
            // written nobody can tell what the backend did with it, and it must not get the request a second time.
            Err(mut error) => match error.take_message() {
                Some(request) => Box::pin(self.fresh(request)).await,
                None => Err(CallError::from_hyper(error.error())),
            },
        }
    }

    /// Asks on a new connection. Boxed by its callers: dialling is rare, and would make every job larger by what it needs.
    async fn fresh(&self, request: Request<RequestBody>) -> Result<(Parts, Exchange), CallError> {
        let mut connection = self.target.connect(self.connect_limit, &self.tls).await?;
        let sent = pin!(connection.sender.send_request(request));
        match Exchange::head(&mut connection, sent).await {
            Ok(response) => Ok(Exchange::new(connection, Arc::clone(&self.pool), response)),
            Err(error) => Err(CallError::from_hyper(&error)),
        }
    }

    /// Fetches something small, for probes.
    ///
    /// # Errors
    /// As [`Self::call`], a body over `most` bytes, or no answer in time.
    pub(crate) async fn fetch(
        &self,
        path: &str,
        most: usize,
        limit: Duration,
    ) -> Result<(u16, Vec<u8>), CallError> {
        let whole = async {
            let headers = HeaderMap::new();
            let body = RequestBody::Whole(Bytes::new());
            let (head, mut exchange) =
                self.call(Call { method: Method::GET, path: path.to_owned(), headers, body }).await?;
            let mut all = Vec::new();
            loop {
                let batch = std::future::poll_fn(|cx| exchange.poll_batch(cx, 64 * 1024)).await?;
                all.extend_from_slice(batch.bytes());
                if all.len() > most {
                    return Err(CallError::new(FailureCode::BackendGarbage, format!("{path} is too long")));
                }
                if batch.end {
                    return Ok((head.status.as_u16(), all));
                }
            }
        };
        tokio::time::timeout(limit, whole).await.unwrap_or_else(|_| {
            Err(CallError::new(FailureCode::BackendTimeout, format!("backend did not answer {path} in time")))
        })
    }

    /// Closes connections that were idle for long, until it is dropped.
    pub(crate) async fn sweep_now_and_then(&self) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.pool.sweep(Instant::now());
        }
    }
}

/// Removes what concerns a single connection, in either direction: hop-by-hop headers, those that `connection`
/// names, and lengths, which each hop works out for itself.
pub(crate) fn strip(headers: &mut HeaderMap) {
    const HOP: [HeaderName; 10] = [
        header::CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::CONTENT_LENGTH,
    ];
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP {
        headers.remove(name);
    }
}

/// Builds a header map from names and values as they came; what is no header is left out. Values share the memory of
/// the frame that brought them.
pub(crate) fn header_map(pairs: impl Iterator<Item = (impl AsRef<[u8]>, Bytes)>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_ref()), HeaderValue::from_maybe_shared(value))
        {
            headers.append(name, value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_hop_do_not_pass_and_repeated_ones_do() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("proxy-authorization", "secret"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    }
}
