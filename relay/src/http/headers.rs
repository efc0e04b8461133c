//! Which headers pass between client and worker, and the request id.

use http::StatusCode;
use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderMap,
    HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use modelrelay_protocol::wellknown::header;

/// The longest request id that is taken over from a client.
const MAX_REQUEST_ID: usize = 128;

/// Decides which of a client's headers go to a worker.
#[derive(Debug, Clone, Default)]
pub struct AllowList {
    names: Vec<String>,
    prefixes: Vec<String>,
}

impl AllowList {
    /// Makes the list of the built-in names and what the settings add.
    ///
    /// Added names never open the way for credentials or for headers that end at the relay.
    /// An added name that ends in `*` stands for all names that begin with what is before it.
    pub fn new<'a>(extra: impl IntoIterator<Item = &'a str>) -> Self {
        let mut list = Self::default();
        for name in extra {
            match name.strip_suffix('*') {
                Some(prefix) => list.prefixes.push(prefix.to_ascii_lowercase()),
                None => list.names.push(name.to_ascii_lowercase()),
            }
        }
        list
    }

    /// Returns the headers for the worker, the request's id among them whatever the client sent.
    pub fn to_worker(&self, headers: &HeaderMap, request_id: &RequestId) -> HeaderMap {
        let named = connection_names(headers);
        let mut passed = HeaderMap::with_capacity(headers.len() + 1);
        for (name, value) in headers {
            if self.allows(name) && !named.contains(name) {
                passed.append(name, value.clone());
            }
        }
        passed.insert(HeaderName::from_static(header::REQUEST_ID), request_id.to_header());
        passed
    }

    fn allows(&self, name: &HeaderName) -> bool {
        let text = name.as_str();
        if ends_here(name) || is_credential(name) || text.starts_with("x-forwarded-") || text == "x-real-ip" {
            return false;
        }
        text.starts_with("x-")
            || text.starts_with("anthropic-")
            || text.starts_with("openai-")
            || [CONTENT_TYPE, CONTENT_ENCODING, ACCEPT, USER_AGENT].contains(name)
            || ["traceparent", "tracestate", "baggage"].contains(&text)
            || self.names.iter().any(|allowed| allowed == text)
            || self.prefixes.iter().any(|prefix| text.starts_with(prefix.as_str()))
    }
}

/// Returns a client's credentials, for a pool that opted in to them.
pub fn credentials(headers: &HeaderMap) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for (name, value) in headers {
        if is_credential(name) && name.as_str() != header::WORKER_SECRET {
            passed.append(name, value.clone());
        }
    }
    passed
}

fn is_credential(name: &HeaderName) -> bool {
    [AUTHORIZATION, COOKIE].contains(name)
        || [header::API_KEY, header::WORKER_SECRET].contains(&name.as_str())
}

/// Removes what belongs to the connection to the worker or its backend and not to the response.
pub fn strip_response(headers: &mut HeaderMap) {
    for name in connection_names(headers) {
        headers.remove(name);
    }
    // Rarely any, so names are collected only when there are some.
    let hops: Vec<HeaderName> = headers.keys().filter(|name| ends_here(name)).cloned().collect();
    for name in hops {
        headers.remove(name);
    }
}

/// Returns the status of an answer; what cannot be the last word on a request is the backend's fault.
pub fn final_status(status: u16) -> StatusCode {
    StatusCode::from_u16(status)
        .ok()
        .filter(|status| !status.is_informational())
        .unwrap_or(StatusCode::BAD_GATEWAY)
}

/// Hop-by-hop and length headers.
fn ends_here(name: &HeaderName) -> bool {
    [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, CONTENT_LENGTH].contains(name)
        || ["keep-alive", "host", "expect"].contains(&name.as_str())
        || name.as_str().starts_with("proxy-")
}

/// The names that a message itself declares to belong to its connection.
fn connection_names(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Not the message's to take away.
        .filter(|name| ![CONTENT_TYPE, CONTENT_ENCODING].contains(name))
        .collect()
}

/// The id of a request: the client's own if it sent a sane one, else ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// Takes the client's id over, or makes one.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut sent = headers.get_all(header::REQUEST_ID).iter();
        match (sent.next(), sent.next()) {
            (Some(value), None) if is_sane(value.as_bytes()) => Self(value.clone()),
            _ => Self::random(),
        }
    }

    /// Makes a new id that nobody can guess.
    pub fn random() -> Self {
        let text = format!("{:032x}", rand::random::<u128>());
        Self(HeaderValue::try_from(text).expect("hex digits may stand in a header"))
    }

    /// Takes a text as an id, if it is a sane one.
    pub fn from_text(text: &str) -> Option<Self> {
        is_sane(text.as_bytes()).then(|| HeaderValue::from_str(text).ok().map(Self)).flatten()
    }

    /// Returns the id.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("only printable ASCII gets in")
    }

    /// Returns the id as the value of a header.
    pub fn to_header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.as_str())
    }
}

fn is_sane(id: &[u8]) -> bool {
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.iter().all(|byte| (b' '..=b'~').contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn only_listed_headers_go_to_a_worker() {
        let sent = map(&[
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
            ("accept", "*/*"),
            ("user-agent", "curl"),
            ("anthropic-version", "2023-06-01"),
            ("openai-organization", "o"),
            ("traceparent", "t"),
            ("tracestate", "t"),
            ("baggage", "b"),
            ("x-custom", "1"),
            ("x-custom", "2"),
            ("idempotency-key", "k"),
            ("host", "relay"),
            ("content-length", "5"),
            ("accept-encoding", "gzip"),
            ("authorization", "Bearer k"),
            ("x-api-key", "k"),
            ("cookie", "c"),
            ("x-worker-secret", "s"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "http"),
            ("x-real-ip", "1.2.3.4"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("referer", "r"),
        ]);
        let list = AllowList::new(["Idempotency-Key", "authorization", "proxy-*"]);
        let passed = list.to_worker(&sent, &RequestId::from_text("id").unwrap());
        assert_eq!(
            names(&passed),
            [
                "accept",
                "anthropic-version",
                "baggage",
                "content-encoding",
                "content-type",
                "idempotency-key",
                "openai-organization",
                "traceparent",
                "tracestate",
                "user-agent",
                "x-custom",
                "x-request-id",
            ]
        );
        assert_eq!(passed.get_all("x-custom").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(passed["x-request-id"], "id");
    }

    #[test]
    fn credentials_are_the_clients_and_never_a_workers() {
        let sent = map(&[
            ("authorization", "Bearer k"),
            ("x-api-key", "k"),
            ("cookie", "c"),
            ("x-worker-secret", "s"),
            ("x-custom", "1"),
        ]);
        assert_eq!(names(&credentials(&sent)), ["authorization", "cookie", "x-api-key"]);
    }

    #[test]
    fn a_response_loses_its_hop_by_hop_headers_and_keeps_all_values_of_the_others() {
        let mut headers = map(&[
            ("content-type", "text/plain"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("connection", "close, X-Hop"),
            ("connection", "Content-Type"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("trailer", "x-sum"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authenticate", "Basic"),
            ("content-length", "5"),
        ]);
        strip_response(&mut headers);
        assert_eq!(names(&headers), ["content-type", "set-cookie"]);
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn a_sane_request_id_is_kept_and_others_are_replaced() {
        let long = "x".repeat(128);
        for id in ["a", "7f3e-1", "with space", &long] {
            assert_eq!(RequestId::of(&map(&[("x-request-id", id)])).as_str(), id);
        }
        for id in ["", "tab\there", "k\u{f6}ln", &"x".repeat(129)] {
            let ours = RequestId::of(&map(&[("x-request-id", id)]));
            assert_ne!(ours.as_str(), id);
            assert_eq!(ours.as_str().len(), 32);
        }
        let twice = RequestId::of(&map(&[("x-request-id", "a"), ("x-request-id", "b")]));
        assert_eq!(twice.as_str().len(), 32);
        assert_ne!(RequestId::random(), RequestId::random());
    }
}
