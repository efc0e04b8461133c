//! One client's connection: what it asks, what it gets.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, RETRY_AFTER, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::Broken;
use super::call::{Call, Verb};
use super::record::Record;
use super::rules::{Fault, Rules};
use super::upstream::{ApiServer, Line};
use super::watches::Watches;

// Twice what the API server takes.
const BODY_BYTES: usize = 6 << 20;
const USER: HeaderName = HeaderName::from_static("x-remote-user");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");

type Answer = Response<UnsyncBoxBody<Bytes, Broken>>;

/// A user and the groups they are in.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

/// What all connections of a proxy share.
pub(crate) struct Shared {
    pub(crate) api_server: ApiServer,
    pub(crate) users: RwLock<HashMap<String, User>>,
    pub(crate) rules: Rules,
    pub(crate) watches: Watches,
    pub(crate) record: Record,
    pub(crate) tasks: TaskTracker,
    pub(crate) started: Instant,
}

impl Shared {
    /// Serves a connection until its end.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream, acceptor: TlsAcceptor) {
        // A client that gives up early is none of the proxy's business.
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let line = Arc::new(Mutex::new(Line::default()));
        let service = service_fn(|request| {
            let (shared, line) = (Arc::clone(&self), Arc::clone(&line));
            async move { shared.answer(request, &line).await }
        });
        // Faults end it with an error.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, request: Request<Incoming>, line: &Mutex<Line>) -> Result<Answer, Broken> {
        let (parts, body) = request.into_parts();
        let mut call = Call::read(&parts.method, &parts.uri);
        let user = self.user(&parts.headers);
        call.user = user.as_ref().map(|user| user.name.clone());
        let body = Limited::new(body, BODY_BYTES).collect().await.map_err(|_| Broken)?.to_bytes();
        if call.verb.writes() {
            call.body = body.clone();
        }
        let number = self.record.begin(call.clone(), self.started.elapsed());
        let fault = if parts.headers.contains_key(UPGRADE) {
            Some(Fault::Answer { status: 501, retry_after_seconds: None })
        } else {
            self.rules.meet(&call)
        };
        match fault {
            Some(Fault::Answer { status, retry_after_seconds }) => {
                self.record.answered(number, status);
                return refusal(status, retry_after_seconds);
            }
            Some(Fault::BreakBefore) => return Err(Broken),
            Some(Fault::Hang) => return std::future::pending().await,
            Some(Fault::BreakAfter | Fault::Silence) | None => {}
        }
        let trusted = user.is_some();
        let request = forwarded(parts, user.as_ref(), body)?;
        let answer = line.lock().await.send(&self.api_server, trusted, &self.tasks, request).await;
        let answer = answer.map_err(|_| Broken)?;
        if fault == Some(Fault::BreakAfter) {
            // The status comes when it is done, the body may come later.
            return Err(Broken);
        }
        self.record.answered(number, answer.status().as_u16());
        let silent = fault == Some(Fault::Silence);
        if call.verb == Verb::Watch || silent {
            return Ok(answer.map(|body| self.watches.open(call, body, silent).boxed_unsync()));
        }
        Ok(answer.map(|body| body.map_err(|_| Broken).boxed_unsync()))
    }

    fn user(&self, headers: &HeaderMap) -> Option<User> {
        let token = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
        self.users.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }
}

/// Makes the request that the API server gets, in which only the proxy says who asks.
fn forwarded(
    parts: http::request::Parts,
    user: Option<&User>,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, Broken> {
    let mut headers = parts.headers;
    for name in [USER, GROUP] {
        headers.remove(name);
    }
    headers.remove(CONTENT_LENGTH);
    headers.insert(HOST, HeaderValue::from_static("kubernetes"));
    if let Some(user) = user {
        headers.remove(AUTHORIZATION);
        headers.insert(USER, user.name.parse().map_err(|_| Broken)?);
        for group in &user.groups {
            headers.append(GROUP, group.parse().map_err(|_| Broken)?);
        }
    }
    let path = parts.uri.path_and_query().cloned().ok_or(Broken)?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = parts.method;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = headers;
    Ok(request)
}

/// Writes an error as the API server does.
fn refusal(status: u16, retry_after_seconds: Option<u32>) -> Result<Answer, Broken> {
    let reason = match status {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "",
    };
    let text = json!({
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "message": "a fault that a test asked for",
        "reason": reason,
        "code": status,
    })
    .to_string();
    let mut answer =
        Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = StatusCode::from_u16(status).map_err(|_| Broken)?;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after_seconds {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    Ok(answer)
}
