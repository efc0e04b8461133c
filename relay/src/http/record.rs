//! What is remembered of one request until it has ended, for its log line, the metrics and the limits.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::info;

use super::error::RelayError;
use super::headers::RequestId;
use super::route::ApiRoute;
use crate::keys::ClientKey;
use crate::limits::Permit;
use crate::metrics::{Metrics, Origin, Outcome};
use crate::session::pipe::{Pipe, Progress};

/// A request on its way; dropping it unfinished means that the client left.
#[derive(Debug)]
pub struct Record {
    metrics: Arc<Metrics>,
    route: ApiRoute,
    /// The client's id or ours.
    pub request_id: RequestId,
    arrived: Instant,
    admitted: Option<Instant>,
    model: Arc<str>,
    model_label: Arc<str>,
    tenant: Arc<str>,
    permit: Option<Permit>,
    counts_tokens: bool,
    /// Events of the answer, counted only where a limit needs them.
    pub events: u64,
    pipe: Option<Arc<Pipe>>,
    progress: Progress,
    bytes_sent: u64,
    finished: bool,
}

impl Record {
    /// Starts when the head of a request has arrived.
    pub fn new(metrics: Arc<Metrics>, route: ApiRoute, request_id: RequestId, arrived: Instant) -> Self {
        let unknown: Arc<str> = Arc::from("");
        Self {
            metrics,
            route,
            request_id,
            arrived,
            admitted: None,
            model: unknown.clone(),
            model_label: Arc::from("other"),
            tenant: unknown,
            permit: None,
            counts_tokens: false,
            events: 0,
            pipe: None,
            progress: Progress::default(),
            bytes_sent: 0,
            finished: false,
        }
    }

    /// Notes who asks, and what the request holds of the key's limits.
    pub fn authenticated(&mut self, key: &ClientKey, permit: Permit) {
        self.tenant = key.tenant_name.clone();
        self.counts_tokens = key.limits.tokens_per_minute.is_some();
        self.permit = Some(permit);
    }

    /// Returns when the head of the request had arrived.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// Says whether the answer's events have to be counted.
    pub fn wants_events(&self) -> bool {
        self.counts_tokens
    }

    /// Notes that the request is about to wait for a worker.
    pub fn admitted(&mut self, model: Arc<str>, now: Instant) {
        self.model_label = self.metrics.model_label(&model);
        self.model = model;
        self.admitted = Some(now);
        self.metrics.tenant_requests.with_label_values(&[&*self.tenant, &*self.model_label]).inc();
    }

    /// Returns how long the request waited until it was handed to its worker.
    pub fn queued_until(&self, dispatched: Instant) -> Option<std::time::Duration> {
        self.admitted.map(|admitted| dispatched.saturating_duration_since(admitted))
    }

    /// Notes where the response arrives: at the end of the request it tells how that went.
    pub fn follow(&mut self, pipe: &Arc<Pipe>) {
        self.pipe = Some(pipe.clone());
    }

    /// Notes how long the first byte of the answer took from the worker's connection to the client's.
    pub fn begins_to_answer(&self, progress: &Progress) {
        if let Some(first_byte) = progress.first_byte {
            self.metrics.overhead_answer.observe(first_byte.elapsed().as_secs_f64());
        }
    }

    /// Counts bytes that the client got.
    pub fn sent(&mut self, bytes: usize) {
        self.bytes_sent += bytes as u64;
    }

    /// The client got the whole answer of the backend.
    pub fn complete(&mut self, status: u16) {
        self.finish(Outcome::Ok, status, None);
    }

    /// The client got an error of ours, as an answer or in place of the rest of one.
    pub fn failed(&mut self, error: &RelayError) {
        let attempted = self.pipe.as_ref().is_some_and(|pipe| pipe.progress().attempt.is_some());
        let outcome = if attempted { Outcome::Failed } else { Outcome::Rejected };
        if let RelayError::Internal(source) = error {
            tracing::error!(request_id = self.request_id.as_str(), error = %source, "Internal error");
        }
        self.finish(outcome, error.status().as_u16(), Some(error.code()));
    }

    /// The backend's answer could not follow what the client was promised; `status` is what it would have been.
    pub fn failed_with_status(&mut self, status: u16) {
        self.finish(Outcome::Failed, status, None);
    }

    fn finish(&mut self, outcome: Outcome, status: u16, code: Option<&'static str>) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        if let Some(pipe) = self.pipe.take() {
            self.progress = pipe.progress();
        }
        let now = Instant::now();
        let status_text = status_label(status);
        let code = code.unwrap_or(&status_text);
        let (api, operation) = (self.route.api().as_str(), operation(self.route));
        let (metrics, model) = (&self.metrics, &*self.model_label);
        metrics.requests.with_label_values(&[model, api, outcome.as_str(), code]).inc();
        let waited_until = self.progress.attempt.as_ref().map(|attempt| attempt.dispatched);
        let queued =
            self.admitted.map(|admitted| waited_until.unwrap_or(now).saturating_duration_since(admitted));
        if let Some(queued) = queued {
            let how = if waited_until.is_some() { "dispatched" } else { outcome.as_str() };
            metrics.queue_duration.with_label_values(&[how]).observe(queued.as_secs_f64());
        }
        let total = now - self.arrived;
        let first_byte = self.progress.first_byte.map(|at| at.saturating_duration_since(self.arrived));
        let labels = [operation, model];
        metrics.request_duration.with_label_values(&labels).observe(total.as_secs_f64());
        if let Some(first_byte) = first_byte {
            metrics.first_token.with_label_values(&labels).observe(first_byte.as_secs_f64());
        }
        if let (Some(first), Some(dispatched)) = (self.progress.first_byte, waited_until) {
            let leg = first.saturating_duration_since(dispatched);
            metrics.first_chunk.with_label_values(&labels).observe(leg.as_secs_f64());
            if let (Some(last), 2..) = (self.progress.last_byte, self.progress.chunks) {
                #[allow(clippy::cast_precision_loss, reason = "a mean")]
                let mean =
                    last.saturating_duration_since(first).as_secs_f64() / (self.progress.chunks - 1) as f64;
                metrics.per_chunk.with_label_values(&labels).observe(mean);
            }
        }
        self.count_tokens(now);
        if outcome == Outcome::ClientGone
            && let Some(usage) = self.progress.usage
        {
            metrics.wasted(&self.model, Origin::Client, usage);
        }
        info!(
            request_id = self.request_id.as_str(),
            tenant = &*self.tenant,
            model = &*self.model,
            worker = self.progress.attempt.as_ref().map(|attempt| &*attempt.worker),
            route = self.route.path(),
            status,
            code,
            outcome = outcome.as_str(),
            queue_ms = queued.map(|queued| queued.as_secs_f64() * 1000.0),
            first_byte_ms = first_byte.map(|first| first.as_secs_f64() * 1000.0),
            total_ms = total.as_secs_f64() * 1000.0,
            bytes = self.bytes_sent,
            "Request ended"
        );
    }

    fn count_tokens(&self, now: Instant) {
        let model = &*self.model_label;
        let usage = self.progress.usage.unwrap_or_default();
        for (kind, count) in [("input", usage.prompt_tokens), ("output", usage.completion_tokens)] {
            if let Some(count) = count {
                let usage = self.metrics.token_usage.with_label_values(&[kind, model]);
                usage.observe(f64::from(count));
            }
        }
        let told = usage.total();
        if let Some(total) = told {
            self.metrics.tenant_tokens.with_label_values(&[&*self.tenant, model]).inc_by(total);
        }
        if let Some(permit) = &self.permit {
            let guess = if self.events > 0 { self.events } else { self.progress.bytes / 4 };
            permit.charge(told.unwrap_or(guess), now.into_std());
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // nginx' number for a client that closed the connection; it is never sent.
        self.finish(Outcome::ClientGone, 499, Some("client_gone"));
    }
}

/// A label that no backend can make endless: statuses outside the registered classes are one.
fn status_label(status: u16) -> String {
    if (100..600).contains(&status) { status.to_string() } else { String::from("other") }
}

/// Returns OpenTelemetry's name for what a route does.
fn operation(route: ApiRoute) -> &'static str {
    match route {
        ApiRoute::ChatCompletions | ApiRoute::Messages | ApiRoute::Responses => "chat",
        ApiRoute::Completions => "text_completion",
        ApiRoute::Embeddings => "embeddings",
        ApiRoute::Rerank | ApiRoute::Score => "rerank",
        ApiRoute::CountTokens => "count_tokens",
        ApiRoute::Speech => "speech",
        ApiRoute::Transcriptions | ApiRoute::Translations => "transcription",
        ApiRoute::ImageGenerations => "image_generation",
    }
}
