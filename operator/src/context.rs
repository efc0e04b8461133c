//! What every reconcile is given.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::timeout;
use tracing::warn;

use crate::apply::Remembered;
use crate::cache::{Caches, Causes};
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::model_relay;
use crate::options::Options;
use crate::relay_client::OpsClient;
use crate::triggers::Triggers;
use crate::worker_pool::Memory;

/// How long one call to the API server may take.
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// What every reconcile is given.
pub struct Context {
    /// Writes, and reads what the caches do not hold.
    pub client: Client,
    /// What the watches told.
    pub caches: Arc<Caches>,
    /// Asks for a look at other objects.
    pub triggers: Arc<Triggers>,
    /// Images, names and other things that the operator was told at start.
    pub options: Options,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Asks relays and workers on their operations ports.
    pub ops: OpsClient,
    /// What the relays said of their workers.
    pub fleet: Fleet,
    pub(crate) pools: Memory,
    pub(crate) relays: model_relay::Memories,
    pub(crate) applied: Mutex<BTreeMap<String, Remembered>>,
    recorder: Recorder,
    reporter: Reporter,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Context {
    /// Puts the parts together.
    pub fn new(
        client: Client,
        caches: Arc<Caches>,
        triggers: Arc<Triggers>,
        options: Options,
        metrics: Arc<Metrics>,
    ) -> Self {
        let reporter =
            Reporter { controller: String::from("modelrelay-operator"), instance: options.pod_name.clone() };
        Self {
            recorder: Recorder::new(client.clone(), reporter.clone()),
            reporter,
            client,
            caches,
            triggers,
            options,
            metrics,
            ops: OpsClient::default(),
            fleet: Fleet::default(),
            pools: Memory::default(),
            relays: model_relay::Memories::default(),
            applied: Mutex::default(),
        }
    }

    /// Tells the users of `about` what was done or refused. An event that cannot be written is only logged.
    pub async fn event(
        &self,
        about: &ObjectReference,
        kind: EventType,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let event = event(kind, reason, action, note, None);
        publish(&self.recorder, &event, about).await;
    }

    /// Tells the users of `about` what was done to a child of it.
    pub(crate) async fn child_event(
        &self,
        about: &ObjectReference,
        child: ObjectReference,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let event = event(EventType::Normal, reason, action, note, Some(child));
        // A recorder remembers each event for minutes, to count those that repeat. What is made or deleted is so once, and of
        // a thousand pools that would be many.
        if reason == "Updated" {
            publish(&self.recorder, &event, about).await;
        } else {
            publish(&Recorder::new(self.client.clone(), self.reporter.clone()), &event, about).await;
        }
    }

    /// Runs one call to the API server within [`CALL_LIMIT`].
    ///
    /// # Errors
    /// What the API server answered, or that it did not.
    pub async fn call<T>(
        &self,
        what: impl Into<String>,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, CallError> {
        match timeout(CALL_LIMIT, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(CallError::Failed { what: what.into(), source: Box::new(source) }),
            Err(_) => Err(CallError::TimedOut { what: what.into(), seconds: CALL_LIMIT.as_secs() }),
        }
    }

    pub(crate) fn remembered<T>(&self, act: impl FnOnce(&mut BTreeMap<String, Remembered>) -> T) -> T {
        act(&mut self.applied.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn event(
    kind: EventType,
    reason: &str,
    action: &str,
    note: String,
    concerned: Option<ObjectReference>,
) -> Event {
    Event {
        type_: kind,
        reason: reason.to_owned(),
        note: Some(cut(note)),
        action: action.to_owned(),
        secondary: concerned,
    }
}

async fn publish(recorder: &Recorder, event: &Event, about: &ObjectReference) {
    let reason = &event.reason;
    match timeout(CALL_LIMIT, recorder.publish(event, about)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(reason, error = %Causes(&error), "An event was not written"),
        Err(_) => warn!(reason, "An event was not written in time"),
    }
}

/// Events hold notes of up to 1024 bytes.
fn cut(mut note: String) -> String {
    let end = (0..=note.len().min(1000)).rev().find(|&at| note.is_char_boundary(at)).unwrap_or(0);
    note.truncate(end);
    note
}

/// A call to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It answered with an error, or could not be reached.
    #[error("{what}: {}", explained(source))]
    Failed {
        /// What was asked.
        what: String,
        /// What came back.
        source: Box<kube::Error>,
    },
    /// It did not answer.
    #[error("{what}: the API server did not answer within {seconds} s")]
    TimedOut {
        /// What was asked.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
}

fn explained(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => Causes(other).to_string(),
    }
}

impl CallError {
    /// The HTTP status that the API server answered with.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Failed { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::TimedOut { .. } => None,
        }
    }

    /// Whether the API server understood the request and refused it for what it says: asking again cannot help.
    pub fn is_refusal(&self) -> bool {
        matches!(self.status(), Some(400 | 422)) || self.is_forbidden()
    }

    /// Whether an admission rule or missing rights refused the request.
    pub fn is_forbidden(&self) -> bool {
        self.status() == Some(403)
    }
}
