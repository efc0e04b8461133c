//! Where requests go, and what they all carry.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use serde_json::{Value, json};

/// Why a target was refused.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The URL is not one.
    #[error("{0:?} is no http://address:port URL")]
    Url(String),
    /// The URL leads off this machine.
    #[error("{0:?} is not on loopback; this program puts load on this machine only")]
    NotLoopback(String),
    /// A header is not `name=value`.
    #[error("{0:?} is no header, written name=value")]
    Header(String),
}

/// A server on this machine, and what each request to it carries.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where to connect.
    pub addr: SocketAddr,
    authority: HeaderValue,
    base: String,
    model: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Target {
    /// Parses a base URL on loopback.
    ///
    /// # Errors
    /// When it is no such URL.
    pub fn parse(url: &str, model: &str) -> Result<Self, TargetError> {
        let malformed = || TargetError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| malformed())?;
        if uri.scheme_str() != Some("http") {
            return Err(malformed());
        }
        let authority = uri.authority().ok_or_else(malformed)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let ip = match host {
            "localhost" => IpAddr::from(Ipv4Addr::LOCALHOST),
            host => host.parse().map_err(|_| TargetError::NotLoopback(url.to_owned()))?,
        };
        if !ip.is_loopback() {
            return Err(TargetError::NotLoopback(url.to_owned()));
        }
        Ok(Self {
            addr: SocketAddr::new(ip, authority.port_u16().unwrap_or(80)),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| malformed())?,
            base: uri.path().trim_end_matches('/').to_owned(),
            model: model.to_owned(),
            headers: Vec::new(),
        })
    }

    /// Adds a header, written `name=value`, to every request.
    ///
    /// # Errors
    /// When it cannot be a header.
    pub fn with_header(mut self, header: &str) -> Result<Self, TargetError> {
        let parsed =
            header.split_once('=').and_then(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
        self.headers.push(parsed.ok_or_else(|| TargetError::Header(header.to_owned()))?);
        Ok(self)
    }

    /// Asks for another model.
    #[must_use]
    pub fn asking_for(mut self, model: &str) -> Self {
        model.clone_into(&mut self.model);
        self
    }

    /// Returns where workers connect.
    pub(crate) fn connect_url(&self) -> String {
        let authority = self.authority.to_str().unwrap_or_default();
        format!("ws://{authority}{}/v1/worker/connect", self.base)
    }

    /// Returns a `GET` request without the target's headers, for the stub's own routes.
    pub(crate) fn get(&self, path: &str) -> Request<Full<Bytes>> {
        self.request(Method::GET, path, Bytes::new())
    }

    /// Returns a `POST` request with a JSON body.
    pub(crate) fn post(&self, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = self.request(Method::POST, path, body);
        let headers = request.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        request
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.base).parse().unwrap_or_default();
        request.headers_mut().insert(http::header::HOST, self.authority.clone());
        request
    }

    /// Returns a chat request's body, with what the stub is to do.
    pub(crate) fn body(&self, stream: bool, stub: &Value) -> Bytes {
        let mut body = json!({
            "model": self.model, "stream": stream, "messages": [{"role": "user", "content": "hello"}],
        });
        if stub.as_object().is_some_and(|stub| !stub.is_empty()) {
            body["stub"] = stub.clone();
        }
        Bytes::from(body.to_string())
    }

    /// Returns a body of about `bytes` bytes.
    pub(crate) fn large_body(&self, bytes: usize) -> Bytes {
        let body = json!({"model": self.model, "messages": [{"role": "user", "content": "x".repeat(bytes)}]});
        Bytes::from(body.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_a_target() {
        for url in
            ["http://127.0.0.1:80", "http://127.9.9.9:1/base/", "http://localhost:8080", "http://[::1]:9"]
        {
            assert!(Target::parse(url, "m").is_ok(), "{url}");
        }
        for url in
            ["http://10.0.0.1:80", "http://example.com", "http://0.0.0.0:80", "http://127.0.0.1.example:80"]
        {
            assert!(matches!(Target::parse(url, "m"), Err(TargetError::NotLoopback(_))), "{url}");
        }
        for url in ["127.0.0.1:80", "https://127.0.0.1", "", "http://"] {
            assert!(matches!(Target::parse(url, "m"), Err(TargetError::Url(_))), "{url}");
        }
    }

    #[test]
    fn requests_carry_base_path_host_and_headers() {
        let target = Target::parse("http://127.0.0.1:81/base/", "m").unwrap().with_header("x-a=b=c").unwrap();
        let request = target.post("/v1/x", Bytes::new());
        assert_eq!(request.uri(), "/base/v1/x");
        assert_eq!(request.headers()["host"], "127.0.0.1:81");
        assert_eq!(request.headers()["x-a"], "b=c");
        assert_eq!(target.connect_url(), "ws://127.0.0.1:81/base/v1/worker/connect");
        let asking = target.clone().asking_for("other");
        assert!(asking.body(false, &json!({})).starts_with(br#"{"messages":"#));
        assert!(asking.body(false, &json!({})).windows(15).any(|part| part == br#""model":"other""#));
        assert!(target.with_header("no header").is_err());
    }
}
