//! Everything a client can be told instead of an answer, and the one table from it to HTTP.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use modelrelay_protocol::codec::FailureCode;
use modelrelay_protocol::wellknown::header;
use serde::Serialize;
use thiserror::Error;

use super::headers::RequestId;
use super::route::Api;
use crate::scheduler::{RefusalCause, Reject};

/// When to come back after an error whose end nobody can foretell.
const RETRY_SOON: Duration = Duration::from_secs(1);
const RETRY_LATER: Duration = Duration::from_secs(5);
/// Names listed in a message; a relay may serve hundreds.
const MAX_NAMES_IN_MESSAGE: usize = 20;

/// Which limit of a key a request is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RateLimit {
    /// Requests per minute.
    #[error("requests per minute")]
    Requests,
    /// Tokens per minute.
    #[error("tokens per minute")]
    Tokens,
    /// Requests at once.
    #[error("requests at once")]
    Concurrency,
}

/// Why a client gets no answer, or not the whole of it.
#[derive(Debug, Clone, Error)]
pub enum RelayError {
    /// The request says nothing the relay could act on.
    #[error("{message}")]
    InvalidRequest {
        /// What is wrong, where, and what would be right.
        message: Cow<'static, str>,
        /// The field it is about.
        param: Option<&'static str>,
    },
    /// There is no such route.
    #[error("there is nothing at this path; see the list of routes in the documentation")]
    RouteNotFound,
    /// The settings rule the model out.
    #[error("model \"{model}\" is not served here; ask /v1/models for what is")]
    ModelNotFound {
        /// As the client wrote it.
        model: Arc<str>,
    },
    /// No key, or none that is known: which, is not said.
    #[error("a valid API key is required; send it as `authorization: Bearer KEY` or `x-api-key: KEY`")]
    InvalidApiKey,
    /// The key is known and does not cover the model.
    #[error("this key may not use model \"{model}\"; ask for a key that may")]
    ModelNotAllowed {
        /// As the client wrote it.
        model: Arc<str>,
    },
    /// The key has used up what it may.
    #[error("this key is over its limit of {limit}; try again later")]
    RateLimited {
        /// Which limit.
        limit: RateLimit,
        /// When there is room again.
        retry_after: Duration,
    },
    /// The body is larger than any may be, or than the model's workers can take.
    #[error("the body is too large; send a smaller one")]
    RequestTooLarge,
    /// The body is not text, and the model's workers take only text.
    #[error("the workers of this model take only text bodies; send UTF-8")]
    UnsupportedBody,
    /// The body did not come in time.
    #[error("the body did not arrive in time; send it faster or in one piece")]
    RequestTimeout,
    /// No room in the queue, or no longer.
    #[error("the queue for model \"{model}\" is full; try again later")]
    QueueFull {
        /// As the client wrote it.
        model: Arc<str>,
        /// When there is likely to be room.
        retry_after: Duration,
    },
    /// All bodies held together are at their bound.
    #[error("the relay holds as many request bodies as it may; try again later")]
    BodyMemoryFull,
    /// Waited too long while workers for the model exist.
    #[error("no worker for model \"{model}\" became free in time; try again later")]
    QueueTimeout {
        /// As the client wrote it.
        model: Arc<str>,
    },
    /// Nobody serves the model.
    #[error("no worker serves model \"{model}\" now; {}", Served(served))]
    NoWorker {
        /// As the client wrote it.
        model: Arc<str>,
        /// What is served instead; see [`RelayError::naming_served`].
        served: Vec<Arc<str>>,
    },
    /// The worker went away with the request.
    #[error("the worker was lost before it answered; try again")]
    WorkerLost,
    /// The backend gave no answer that could be passed on.
    #[error("{0}; try again")]
    BackendError(Cow<'static, str>),
    /// The backend was silent for too long.
    #[error("the backend did not answer in time; try again later or ask for less")]
    BackendTimeout,
    /// The whole request took longer than requests may.
    #[error("the request took longer than requests may take here; ask for less")]
    DeadlineExceeded,
    /// The client reads more slowly than its answer comes, and the worker cannot wait.
    #[error("the answer was not read in time; read it faster")]
    ClientTooSlow,
    /// The relay stops.
    #[error("this relay is shutting down; try again")]
    Draining,
    /// Our fault. The message says nothing; the text here is for the log.
    #[error("internal error; its details are in the relay's log")]
    Internal(Arc<str>),
}

/// One row of the error table.
struct Row {
    status: StatusCode,
    code: &'static str,
    openai_type: &'static str,
    anthropic_type: &'static str,
    retry_after: Option<Duration>,
}

impl Row {
    fn new(
        status: StatusCode,
        code: &'static str,
        openai_type: &'static str,
        anthropic_type: &'static str,
    ) -> Self {
        Self { status, code, openai_type, anthropic_type, retry_after: None }
    }

    fn retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

impl RelayError {
    /// Makes an [`RelayError::InvalidRequest`] about a field, or about none.
    pub fn invalid(message: impl Into<Cow<'static, str>>, param: Option<&'static str>) -> Self {
        Self::InvalidRequest { message: message.into(), param }
    }

    /// Keeps the text of what went wrong on our side, with its causes, for the log; clients see none of it.
    pub fn internal(source: &dyn StdError) -> Self {
        let mut text = source.to_string();
        let mut cause = source.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Self::Internal(text.into())
    }

    /// Makes a [`RelayError::BackendError`]; `detail` goes to the client.
    pub fn backend(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::BackendError(detail.into())
    }

    /// Translates what a worker said. Its own words may name hosts behind it, so clients do not get them.
    pub fn from_failure(code: FailureCode, message: &str) -> Self {
        match code {
            FailureCode::BackendRefused => Self::backend("the backend refused the connection"),
            FailureCode::BackendReset => Self::backend("the backend broke the connection"),
            FailureCode::BackendGarbage => Self::backend("the backend's answer is not HTTP"),
            FailureCode::BackendTimeout => Self::BackendTimeout,
            FailureCode::ModelNotFound => Self::backend("the worker does not serve the model any more"),
            FailureCode::OverCapacity => Self::backend("the worker has no free slot"),
            FailureCode::Draining => Self::backend("the worker is leaving"),
            FailureCode::Internal => Self::Internal(format!("worker: {message}").into()),
        }
    }

    /// Translates the end that the scheduler gave to a request for `model`.
    pub fn from_reject(reject: Reject, model: &Arc<str>) -> Self {
        let model = model.clone();
        match reject {
            Reject::QueueFull { retry_after } => Self::QueueFull { model, retry_after },
            Reject::QueueTimeout => Self::QueueTimeout { model },
            Reject::NoWorker | Reject::NoWorkerQueueFull => Self::NoWorker { model, served: Vec::new() },
            Reject::WorkerLost | Reject::LostAfterStart => Self::WorkerLost,
            Reject::Refused(cause) => Self::from_refusal(cause),
            Reject::DeadlineExceeded => Self::DeadlineExceeded,
            Reject::Unsupported => Self::UnsupportedBody,
            Reject::Draining => Self::Draining,
        }
    }

    fn from_refusal(cause: RefusalCause) -> Self {
        Self::backend(match cause {
            RefusalCause::WorkerDraining => "the worker is leaving",
            RefusalCause::ModelGone => "the worker does not serve the model any more",
            RefusalCause::OverCapacity => "the worker has no free slot",
            RefusalCause::BackendRefused => "the backend refused the connection",
            RefusalCause::BackendReset => "the backend broke the connection",
            RefusalCause::BackendUnavailable => "the backend answered 503",
        })
    }

    /// Adds what is served to a [`RelayError::NoWorker`]; other errors stay as they are.
    #[must_use]
    pub fn naming_served(self, served: impl FnOnce() -> Vec<Arc<str>>) -> Self {
        match self {
            Self::NoWorker { model, .. } => Self::NoWorker { model, served: served() },
            other => other,
        }
    }

    /// The only place that maps errors to HTTP.
    fn row(&self) -> Row {
        const INVALID: &str = "invalid_request_error";
        const NOT_FOUND: &str = "not_found_error";
        const TOO_LARGE: &str = "request_too_large";
        const RATE: &str = "rate_limit_error";
        const SERVER: &str = "server_error";
        const API: &str = "api_error";
        const OVERLOADED: &str = "overloaded_error";
        match self {
            Self::InvalidRequest { .. } => {
                Row::new(StatusCode::BAD_REQUEST, "invalid_request", INVALID, INVALID)
            }
            Self::RouteNotFound => Row::new(StatusCode::NOT_FOUND, "not_found", INVALID, NOT_FOUND),
            Self::ModelNotFound { .. } => {
                Row::new(StatusCode::NOT_FOUND, "model_not_found", INVALID, NOT_FOUND)
            }
            Self::InvalidApiKey => Row::new(
                StatusCode::UNAUTHORIZED,
                "invalid_api_key",
                "authentication_error",
                "authentication_error",
            ),
            Self::ModelNotAllowed { .. } => {
                Row::new(StatusCode::FORBIDDEN, "model_not_allowed", "permission_error", "permission_error")
            }
            Self::RateLimited { retry_after, .. } => {
                Row::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", RATE, RATE).retry(*retry_after)
            }
            Self::RequestTooLarge => {
                Row::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", INVALID, TOO_LARGE)
            }
            Self::UnsupportedBody => {
                Row::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_body", INVALID, INVALID)
            }
            Self::RequestTimeout => {
                Row::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", INVALID, INVALID)
            }
            Self::QueueFull { retry_after, .. } => {
                Row::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", RATE, RATE).retry(*retry_after)
            }
            Self::BodyMemoryFull => {
                Row::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", RATE, RATE).retry(RETRY_SOON)
            }
            Self::QueueTimeout { .. } => {
                Row::new(StatusCode::SERVICE_UNAVAILABLE, "queue_timeout", SERVER, OVERLOADED)
                    .retry(RETRY_LATER)
            }
            Self::NoWorker { .. } => {
                Row::new(StatusCode::SERVICE_UNAVAILABLE, "no_worker", SERVER, OVERLOADED).retry(RETRY_LATER)
            }
            Self::WorkerLost => Row::new(StatusCode::BAD_GATEWAY, "worker_lost", SERVER, API),
            Self::BackendError(_) => Row::new(StatusCode::BAD_GATEWAY, "backend_error", SERVER, API),
            Self::BackendTimeout | Self::DeadlineExceeded => {
                Row::new(StatusCode::GATEWAY_TIMEOUT, "backend_timeout", SERVER, API)
            }
            // Only ever breaks an answer off; the status is what the log says.
            Self::ClientTooSlow => Row::new(StatusCode::REQUEST_TIMEOUT, "client_too_slow", INVALID, INVALID),
            Self::Draining => {
                Row::new(StatusCode::SERVICE_UNAVAILABLE, "draining", SERVER, OVERLOADED).retry(RETRY_SOON)
            }
            Self::Internal(_) => Row::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", SERVER, API),
        }
    }

    /// Returns the status of its response.
    pub fn status(&self) -> StatusCode {
        self.row().status
    }

    /// Returns the code for clients, logs and metrics.
    pub fn code(&self) -> &'static str {
        self.row().code
    }

    /// Returns when trying again may help, where the table says so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.row().retry_after
    }

    /// Returns the whole response in the shape of the API that was called.
    pub fn response(&self, api: Api, request_id: &RequestId) -> Response {
        let row = self.row();
        let mut response = Response::new(Body::from(self.json(&row, api, request_id)));
        *response.status_mut() = row.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(HeaderName::from_static(header::REQUEST_ID), request_id.to_header());
        if let Some(after) = row.retry_after {
            // Rounded up: a client that comes back too early is refused again.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }

    /// Returns the last event of a `text/event-stream` that breaks off here, to be sent at the start of a line.
    pub fn last_event(&self, api: Api, request_id: &RequestId) -> Bytes {
        let mut event = match api {
            Api::OpenAi => b"data: ".to_vec(),
            Api::Anthropic => b"event: error\ndata: ".to_vec(),
        };
        event.extend_from_slice(&self.json(&self.row(), api, request_id));
        event.extend_from_slice(b"\n\n");
        event.into()
    }

    fn json(&self, row: &Row, api: Api, request_id: &RequestId) -> Vec<u8> {
        let message = self.to_string();
        let written = match api {
            Api::OpenAi => serde_json::to_vec(&OpenAiShape {
                error: OpenAiError {
                    message: &message,
                    kind: row.openai_type,
                    code: row.code,
                    param: self.param(),
                },
            }),
            Api::Anthropic => serde_json::to_vec(&AnthropicShape {
                kind: "error",
                error: AnthropicError { kind: row.anthropic_type, message: &message },
                request_id: request_id.as_str(),
            }),
        };
        written.expect("strings always have a JSON form")
    }

    fn param(&self) -> Option<&'static str> {
        match self {
            Self::InvalidRequest { param, .. } => *param,
            Self::ModelNotFound { .. } | Self::ModelNotAllowed { .. } | Self::NoWorker { .. } => {
                Some("model")
            }
            Self::RouteNotFound
            | Self::InvalidApiKey
            | Self::RateLimited { .. }
            | Self::RequestTooLarge
            | Self::UnsupportedBody
            | Self::RequestTimeout
            | Self::QueueFull { .. }
            | Self::BodyMemoryFull
            | Self::QueueTimeout { .. }
            | Self::WorkerLost
            | Self::BackendError(_)
            | Self::BackendTimeout
            | Self::DeadlineExceeded
            | Self::ClientTooSlow
            | Self::Draining
            | Self::Internal(_) => None,
        }
    }
}

/// Says what is served, in a message.
struct Served<'a>(&'a [Arc<str>]);

impl std::fmt::Display for Served<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some((first, others)) = self.0.split_first() else {
            return out.write_str("try again later");
        };
        write!(out, "served are: {first}")?;
        for name in others.iter().take(MAX_NAMES_IN_MESSAGE - 1) {
            write!(out, ", {name}")?;
        }
        match self.0.len().saturating_sub(MAX_NAMES_IN_MESSAGE) {
            0 => Ok(()),
            more => write!(out, " and {more} more"),
        }
    }
}

#[derive(Serialize)]
struct OpenAiShape<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    code: &'static str,
    param: Option<&'static str>,
}

#[derive(Serialize)]
struct AnthropicShape<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: AnthropicError<'a>,
    request_id: &'a str,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    fn model() -> Arc<str> {
        "llama-3".into()
    }

    async fn body(response: Response) -> Value {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn every_row_of_the_table_has_its_status_code_and_retry_after() {
        let second = Duration::from_secs(1);
        let table = [
            (RelayError::invalid("x", None), 400, "invalid_request", false),
            (RelayError::RouteNotFound, 404, "not_found", false),
            (RelayError::ModelNotFound { model: model() }, 404, "model_not_found", false),
            (RelayError::InvalidApiKey, 401, "invalid_api_key", false),
            (RelayError::ModelNotAllowed { model: model() }, 403, "model_not_allowed", false),
            (
                RelayError::RateLimited { limit: RateLimit::Tokens, retry_after: second },
                429,
                "rate_limited",
                true,
            ),
            (RelayError::RequestTooLarge, 413, "request_too_large", false),
            (RelayError::UnsupportedBody, 415, "unsupported_body", false),
            (RelayError::RequestTimeout, 408, "request_timeout", false),
            (RelayError::QueueFull { model: model(), retry_after: second }, 429, "queue_full", true),
            (RelayError::BodyMemoryFull, 429, "queue_full", true),
            (RelayError::QueueTimeout { model: model() }, 503, "queue_timeout", true),
            (RelayError::NoWorker { model: model(), served: vec![] }, 503, "no_worker", true),
            (RelayError::WorkerLost, 502, "worker_lost", false),
            (RelayError::backend("x"), 502, "backend_error", false),
            (RelayError::BackendTimeout, 504, "backend_timeout", false),
            (RelayError::DeadlineExceeded, 504, "backend_timeout", false),
            (RelayError::ClientTooSlow, 408, "client_too_slow", false),
            (RelayError::Draining, 503, "draining", true),
            (RelayError::Internal("x".into()), 500, "internal_error", false),
        ];
        for (error, status, code, retries) in table {
            assert_eq!(error.status().as_u16(), status, "{error:?}");
            assert_eq!(error.code(), code, "{error:?}");
            assert_eq!(error.retry_after().is_some(), retries, "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_response_has_the_shape_of_the_api_that_was_called() {
        let id = RequestId::from_text("abc").unwrap();
        let error = RelayError::QueueFull { model: model(), retry_after: Duration::from_millis(1500) };

        let response = error.response(Api::OpenAi, &id);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["x-request-id"], "abc");
        assert_eq!(response.headers()["content-type"], "application/json");
        let message = "the queue for model \"llama-3\" is full; try again later";
        assert_eq!(
            body(response).await,
            json!({"error": {"message": message, "type": "rate_limit_error", "code": "queue_full", "param": null}})
        );
        assert_eq!(
            body(error.response(Api::Anthropic, &id)).await,
            json!({"type": "error", "error": {"type": "rate_limit_error", "message": message}, "request_id": "abc"})
        );
    }

    #[test]
    fn the_last_event_of_a_stream_carries_the_same_body() {
        let id = RequestId::from_text("abc").unwrap();
        let openai = RelayError::WorkerLost.last_event(Api::OpenAi, &id);
        let data = openai.strip_prefix(b"data: ").unwrap().strip_suffix(b"\n\n").unwrap();
        let data: Value = serde_json::from_slice(data).unwrap();
        assert_eq!(data["error"]["code"], "worker_lost");

        let anthropic = RelayError::WorkerLost.last_event(Api::Anthropic, &id);
        let data = anthropic.strip_prefix(b"event: error\ndata: ").unwrap().strip_suffix(b"\n\n").unwrap();
        let data: Value = serde_json::from_slice(data).unwrap();
        assert_eq!(data["error"]["type"], "api_error");
        assert_eq!(data["request_id"], "abc");
    }

    #[test]
    fn internal_errors_keep_their_details_to_themselves() {
        let id = RequestId::from_text("abc").unwrap();
        let source = std::io::Error::other("secret path");
        let error = RelayError::internal(&source);
        assert!(matches!(&error, RelayError::Internal(text) if text.contains("secret path")));
        let shown = error.last_event(Api::OpenAi, &id);
        assert!(!String::from_utf8_lossy(&shown).contains("secret"), "{shown:?}");
        let failure = RelayError::from_failure(FailureCode::BackendRefused, "10.0.0.7:8000 refused");
        assert!(!failure.to_string().contains("10.0.0.7"));
    }

    #[test]
    fn no_worker_names_what_is_served_and_not_too_much_of_it() {
        let error = RelayError::NoWorker { model: model(), served: vec![] };
        assert_eq!(error.to_string(), "no worker serves model \"llama-3\" now; try again later");
        let few = error.clone().naming_served(|| vec!["a".into(), "b/c:d".into()]);
        assert_eq!(few.to_string(), "no worker serves model \"llama-3\" now; served are: a, b/c:d");
        let many = error.naming_served(|| (0..25).map(|n| format!("m{n}").into()).collect());
        assert!(many.to_string().ends_with(", m19 and 5 more"), "{many}");
    }
}
