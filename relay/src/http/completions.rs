//! Requests that go to a worker: admit, submit, respond.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use modelrelay_protocol::wellknown::header;
use tokio::time::Instant;

use super::body::{ResponseBody, is_plain_event_stream};
use super::error::{RateLimit, RelayError};
use super::headers::{self, RequestId};
use super::record::Record;
use super::route::{ApiRoute, BodyKind};
use super::{multipart, read, scan};
use crate::admission;
use crate::app::Relay;
use crate::dispatch::{Submit, Ticket, Work};
use crate::keys::{ClientCredential, ClientKey};
use crate::limits::OverLimit;
use crate::scheduler::{RequestKey, Submission};
use crate::session::pipe::{Head, Progress};
use crate::settings::Settings;

/// Answers one request of the client port.
pub async fn serve(relay: Arc<Relay>, route: ApiRoute, request: Request) -> Response {
    let arrived = Instant::now();
    let request_id = RequestId::of(request.headers());
    let mut record = Record::new(relay.metrics.clone(), route, request_id.clone(), arrived);
    match answer(&relay, route, request, &mut record).await {
        Ok(Answer { ticket, head, settings }) => respond(ticket, head, record, route, &settings),
        Err(error) => {
            record.failed(&error);
            let error = error
                .naming_served(|| relay.dispatcher.with_scheduler(|s| s.served_models().cloned().collect()));
            error.response(route.api(), &request_id)
        }
    }
}

struct Answer {
    ticket: Ticket,
    /// `None`: the client was promised an event stream before there was a head.
    head: Option<Head>,
    settings: Arc<Settings>,
}

async fn answer(
    relay: &Arc<Relay>,
    route: ApiRoute,
    request: Request,
    record: &mut Record,
) -> Result<Answer, RelayError> {
    let settings = relay.settings.load_full();
    if relay.drain.refuses_requests() {
        return Err(RelayError::Draining);
    }
    let (parts, body) = request.into_parts();
    // Key and rates before the body: a stranger's body is never read.
    let key = authenticate(&settings, &parts.headers)?;
    let permit = key.try_acquire(Instant::now().into_std()).map_err(over_limit)?;
    record.authenticated(&key, permit);
    let limits = &settings.config.limits;
    let mut held = relay.bodies.permit();
    let body =
        read::read(&parts.headers, body, limits.max_body_bytes.0, limits.body_timeout(), &mut held).await?;
    let read_at = Instant::now();
    let asked = Asked::parse(route, &parts.headers, &body)?;
    let is_served = |model: &str| relay.dispatcher.with_scheduler(|scheduler| scheduler.serves(model));
    let targets = admission::targets(&settings, &key, &asked.model, is_served)?;
    let affinity = admission::affinity(&settings, &parts.headers, |bytes| {
        asked.prompt.clone().map(|prompt| {
            let prompt = &body[prompt];
            admission::stable_hash(&prompt[..prompt.len().min(bytes)])
        })
    });
    let is_text = route.body() == BodyKind::Json || std::str::from_utf8(&body).is_ok();
    let submission = Submission {
        request: RequestKey(0),
        targets: targets.clone(),
        tenant: key.tenant,
        band: key.band,
        bytes: body.len() as u64,
        affinity,
        excluded: admission::needs(&body, is_text),
        deadline: settings.config.timeouts.request().map(|limit| (record.arrived() + limit).into_std()),
    };
    let path = parts.uri.path_and_query().map_or_else(|| route.path().to_owned(), ToString::to_string);
    let work = Work {
        path,
        streaming: asked.stream,
        headers: settings.allow.to_worker(&parts.headers, &record.request_id),
        credentials: headers::credentials(&parts.headers),
        body,
        model: asked.model_range,
        model_name: asked.model.clone(),
        json: route.body() == BodyKind::Json,
        is_text,
        targets,
        permit: held,
    };
    record.admitted(asked.model.clone(), read_at);
    let ticket = relay.dispatcher.submit(Submit {
        submission,
        work,
        request_id: record.request_id.as_str().into(),
        tenant: key.tenant_name.clone(),
        priority: key.priority.clone(),
        model: asked.model,
    });
    record.follow(&ticket.pipe);
    relay.metrics.overhead_admission.observe(read_at.elapsed().as_secs_f64());
    let keep_alive = settings.config.queue.keep_alive().filter(|_| asked.stream && route.can_stream_events());
    let head = wait_for_head(&ticket, keep_alive).await.transpose()?;
    Ok(Answer { ticket, head, settings })
}

fn authenticate(settings: &Settings, headers: &HeaderMap) -> Result<Arc<ClientKey>, RelayError> {
    let presented = ClientCredential::from_headers(headers);
    settings.keys.authenticate(presented.as_ref()).cloned().ok_or(RelayError::InvalidApiKey)
}

fn over_limit(over: OverLimit) -> RelayError {
    let limit = match over {
        OverLimit::Requests { .. } => RateLimit::Requests,
        OverLimit::Tokens { .. } => RateLimit::Tokens,
        OverLimit::Concurrency { .. } => RateLimit::Concurrency,
    };
    RelayError::RateLimited { limit, retry_after: over.retry_after() }
}

/// What a body says that the relay acts on.
struct Asked {
    model: Arc<str>,
    model_range: std::ops::Range<usize>,
    stream: bool,
    prompt: Option<std::ops::Range<usize>>,
}

impl Asked {
    fn parse(route: ApiRoute, headers: &HeaderMap, body: &Bytes) -> Result<Self, RelayError> {
        match route.body() {
            BodyKind::Json => {
                let scanned = scan::scan(body)
                    .map_err(|error| RelayError::invalid(error.to_string(), error.problem.param()))?;
                Ok(Self {
                    model: scanned.model.into(),
                    model_range: scanned.model_range,
                    stream: scanned.stream,
                    prompt: scanned.prompt_range,
                })
            }
            BodyKind::Multipart => {
                let content_type =
                    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
                let form = multipart::scan(content_type, body)
                    .map_err(|error| RelayError::invalid(error.to_string(), error.param()))?;
                let stream = form.stream;
                Ok(Self { model: form.model.into(), model_range: form.model_range, stream, prompt: None })
            }
        }
    }
}

/// Waits for the first byte of the answer; `None` when comments have to bridge the wait.
async fn wait_for_head(ticket: &Ticket, keep_alive: Option<Duration>) -> Option<Result<Head, RelayError>> {
    let head = std::future::poll_fn(|cx| ticket.pipe.poll_head(cx));
    let Some(patience) = keep_alive else { return Some(head.await) };
    tokio::select! {
        biased;
        head = head => Some(head),
        () = tokio::time::sleep(patience) => None,
    }
}

fn respond(
    ticket: Ticket,
    head: Option<Head>,
    mut record: Record,
    route: ApiRoute,
    settings: &Settings,
) -> Response {
    let api = route.api();
    let request_id = record.request_id.to_header();
    let progress = ticket.pipe.progress();
    let shown = settings.config.headers.expose.then(|| Shown::of(&progress, &record)).flatten();
    if head.is_some() {
        record.begins_to_answer(&progress);
    }
    let mut response = match head {
        Some(Head { status, headers }) => {
            let mut response = match ticket.pipe.take_whole() {
                Some(whole) => {
                    record.sent(whole.len());
                    record.complete(status.as_u16());
                    let mut response = Response::new(Body::from(whole));
                    *response.headers_mut() = headers;
                    // The length of what is sent, not of what an engine said it would send.
                    response.headers_mut().remove(CONTENT_LENGTH);
                    response
                }
                None => {
                    let events = is_plain_event_stream(&headers);
                    let body = ResponseBody::passing(ticket, record, api, status.as_u16(), events);
                    let mut response = Response::new(Body::new(body));
                    *response.headers_mut() = headers;
                    response
                }
            };
            *response.status_mut() = status;
            response
        }
        None => {
            let interval = settings.config.queue.keep_alive().unwrap_or(Duration::from_secs(15));
            let mut response = Response::new(Body::new(ResponseBody::waiting(ticket, record, api, interval)));
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static(header::REQUEST_ID), request_id);
    if let Some(shown) = shown {
        headers.insert(HeaderName::from_static(header::WORKER), shown.worker);
        headers.insert(HeaderName::from_static(header::QUEUE_MS), HeaderValue::from(shown.queue_ms));
    }
    response
}

/// What honest waiting looks like in headers.
struct Shown {
    worker: HeaderValue,
    queue_ms: u64,
}

impl Shown {
    fn of(progress: &Progress, record: &Record) -> Option<Self> {
        let attempt = progress.attempt.as_ref()?;
        let queued = record.queued_until(attempt.dispatched)?;
        Some(Self {
            worker: HeaderValue::from_str(&attempt.worker).ok()?,
            queue_ms: u64::try_from(queued.as_millis()).unwrap_or(u64::MAX),
        })
    }
}
