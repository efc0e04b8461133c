//! The JSON messages: the v1 base as other implementations speak it, and our session-level extensions.
//!
//! Each message is one object in one text frame, tagged by `"type"`. Unknown fields are ignored, unknown types are
//! reported by name so that the session can decide: fatal between plain v1 peers, skipped where extensions are in force.
//!
//! An optional field that has nothing to say is left out, never `null`; extensions add only such fields to messages of the
//! base, so to a plain v1 peer each message has exactly the fields that it knows. [`ToRelay`] and [`ToWorker`] list all
//! messages, their variants' names in snake case being the types. The [crate] says who may send which, and when.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version that v1 peers name in `register` and `register_ack`.
pub const PROTOCOL_VERSION: &str = "2026-04-bridge-v1";

/// Something that only peers which announced it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Extension {
    /// Binary frames with windows, acknowledged cancels and typed errors ([`crate::codec`]).
    Streams,
    /// Slots lent as credits ([`crate::slots`]).
    Slots,
    /// `goaway`, `empty` and `draining`: make before break.
    Goaway,
    /// Load reports in `load` messages.
    Load,
    /// Slots that relays give up for one another, beside [`Extension::Slots`] ([`crate::slots`]).
    Pleas,
}

impl Extension {
    /// All extensions of this version, in the order in which they are announced.
    pub const ALL: [Self; 5] = [Self::Streams, Self::Slots, Self::Goaway, Self::Load, Self::Pleas];

    /// Returns the name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Streams => "streams.v1",
            Self::Slots => "slots.v1",
            Self::Goaway => "goaway.v1",
            Self::Load => "load.v1",
            Self::Pleas => "pleas.v1",
        }
    }
}

/// A set of extensions, written as a list of names.
///
/// Names that this version does not know are dropped while reading. Without [`Extension::Streams`] no other
/// extension is in force, see [`Extensions::in_force`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions(u8);

impl Extensions {
    /// Returns the set of everything that this version speaks.
    pub fn all() -> Self {
        Extension::ALL.into_iter().collect()
    }

    /// Returns the empty set: a plain v1 peer.
    pub fn none() -> Self {
        Self(0)
    }

    /// Says whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// Says whether one extension is in the set.
    pub fn has(&self, extension: Extension) -> bool {
        self.0 & (1 << extension as u8) != 0
    }

    /// Returns what is in force between two peers: the intersection, or nothing when it lacks [`Extension::Streams`].
    pub fn in_force(self, other: Self) -> Self {
        let both = Self(self.0 & other.0);
        if both.has(Extension::Streams) { both } else { Self::none() }
    }
}

impl FromIterator<Extension> for Extensions {
    fn from_iter<I: IntoIterator<Item = Extension>>(iter: I) -> Self {
        Self(iter.into_iter().fold(0, |bits, extension| bits | 1 << extension as u8))
    }
}

impl Serialize for Extensions {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(Extension::ALL.into_iter().filter(|one| self.has(*one)).map(Extension::name))
    }
}

impl<'de> Deserialize<'de> for Extensions {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        Ok(Extension::ALL.into_iter().filter(|one| names.iter().any(|name| name == one.name())).collect())
    }
}

/// A worker's first frame.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Register {
    /// The name that people read; blank names are accepted with a warning.
    pub worker_name: String,
    /// Models it serves, unsanitised; `*` matches any.
    pub models: Vec<String>,
    /// Slots; 0 means 1.
    pub max_concurrent: u32,
    /// [`PROTOCOL_VERSION`] when present; a different one is closed with 1002.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<String>,
    /// Requests that run at the worker now, from anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_load: Option<u32>,
    /// Extensions that the worker speaks.
    #[serde(default, skip_serializing_if = "Extensions::is_empty")]
    pub extensions: Extensions,
    /// Random per worker process: a newer session of the same instance replaces the older at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Window that the worker grants to each request body, in bytes ([`crate::window`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_window_bytes: Option<u32>,
    /// Name and version of the software, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software: Option<String>,
}

/// The relay's answer to [`Register`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RegisterAck {
    /// The relay's name for this session.
    pub worker_id: String,
    /// Models as accepted; the worker never serves more than these.
    pub models: Vec<String>,
    /// What was accepted but looks wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// As the worker sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<String>,
    /// Extensions in force; empty for a plain v1 worker.
    #[serde(default, skip_serializing_if = "Extensions::is_empty")]
    pub extensions: Extensions,
    /// Slots that the relay takes of this worker, at most; fewer than declared when its credential says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u32>,
    /// Window that the relay grants to each response body, in bytes ([`crate::window`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_window_bytes: Option<u32>,
}

/// Token counts as an engine reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Tokens of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u32>,
    /// Tokens of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u32>,
    /// Both together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_tokens: Option<u32>,
}

impl TokenCounts {
    /// Returns all tokens: as told, or the sum of what was told.
    pub fn total(&self) -> Option<u64> {
        self.total_tokens.map(u64::from).or_else(|| {
            let both = [self.prompt_tokens, self.completion_tokens];
            both.iter().any(Option::is_some).then(|| both.into_iter().flatten().map(u64::from).sum())
        })
    }
}

/// What the engine behind a worker says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Requests that the engine runs, from anywhere, when it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    /// Requests that wait inside the engine, when it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
    /// Models that are in memory, when the engine tells (Ollama loads on demand).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loaded_models: Vec<String>,
    /// Whether the backend answers its health check.
    pub healthy: bool,
    /// Why not, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many relays the slots are lent to, this one included; left out for one ([`crate::slots`]).
    #[serde(default, skip_serializing_if = "is_alone")]
    pub relays: u32,
    /// Names of those that take pleas, this one included, as their upgrades tell; left out for one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<String>,
    /// Idle slots of this worker are lent to other relays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idle_elsewhere: bool,
}

/// Headers of the base: one value each.
pub type Headers = BTreeMap<String, String>;

/// What a worker sends in text frames.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToRelay {
    /// The first frame.
    Register(Register),
    /// Replaces models and load.
    ModelsUpdate {
        /// Models it serves now.
        models: Vec<String>,
        /// Requests that run at the worker now.
        current_load: u32,
    },
    /// Answers `ping`.
    Pong {
        /// Requests that run at the worker now.
        current_load: u32,
        /// Echo of the ping's time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timestamp_unix_ms: Option<u64>,
    },
    /// Part of a streamed answer (base only).
    ResponseChunk {
        /// As in `request`.
        request_id: String,
        /// Text as the backend sent it.
        chunk: String,
    },
    /// The end of an answer (base only).
    ResponseComplete {
        /// As in `request`.
        request_id: String,
        /// Status of the backend's answer.
        status_code: u16,
        /// Headers of the backend's answer.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
        headers: Headers,
        /// The whole body when the answer was not streamed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        /// The engine's own usage.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_counts: Option<TokenCounts>,
    },
    /// Something went wrong. Never sent to a plain v1 relay, accepted from any worker.
    Error {
        /// The request it concerns; absent for the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// Machine-readable.
        code: String,
        /// For people.
        message: String,
    },
    /// Lends `n` slots ([`Extension::Slots`]).
    Grant {
        /// How many.
        n: u32,
    },
    /// Asks for unspent credits back; answered by one `return` ([`Extension::Slots`]).
    Recall {
        /// At most how many.
        n: u32,
    },
    /// Passes on what another relay lacks ([`Extension::Pleas`]).
    Plea {
        /// That relay's name, as its upgrade told it.
        relay: String,
        /// The model that requests wait for there, as that relay names it.
        model: String,
        /// How many slots, beyond those of its earlier pleas.
        n: u32,
        /// Priority band of the first of these requests, higher first.
        #[serde(default)]
        band: i32,
        /// How long that request has waited, in milliseconds.
        #[serde(default)]
        age_ms: u64,
        /// Grows with each plea of that relay; one with `n` = 0 takes back those before it.
        number: u64,
    },
    /// What the engine says of itself ([`Extension::Load`]).
    Load(LoadReport),
    /// The worker takes nothing new, finishes what runs and leaves ([`Extension::Goaway`]).
    Draining {
        /// Milliseconds until it leaves whatever still runs.
        deadline_ms: u64,
    },
}

/// What a relay sends in text frames.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// Answers `register`.
    RegisterAck(RegisterAck),
    /// A request (base only).
    Request {
        /// Opaque.
        request_id: String,
        /// Name of the model that the backend knows.
        model: String,
        /// Path and query.
        endpoint_path: String,
        /// Whether the client asked for a stream.
        is_streaming: bool,
        /// The client's bytes.
        body: String,
        /// End-to-end headers.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
        headers: Headers,
    },
    /// Ends a request early (base only).
    Cancel {
        /// As in `request`.
        request_id: String,
        /// Why.
        reason: CancelReason,
    },
    /// Asks for a sign of life.
    Ping {
        /// Milliseconds since 1970, echoed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timestamp_unix_ms: Option<u64>,
        /// How many relay replicas there are, when that changed since the worker was told last (extension).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replicas: Option<u32>,
    },
    /// The relay leaves: finish what runs; nothing new comes.
    GracefulShutdown {
        /// For people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Seconds until the relay closes whatever still runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drain_timeout_secs: Option<u64>,
    },
    /// Asks for a `models_update`.
    ModelsRefresh {
        /// For people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Says how many slots the relay lacks; replaces the last one, 0 withdraws it ([`Extension::Slots`]).
    Want {
        /// How many requests wait for a slot of this worker.
        n: u32,
        /// Priority band of the request that would be dispatched next, higher first.
        #[serde(default)]
        band: i32,
        /// How long that request has waited, in milliseconds.
        #[serde(default)]
        age_ms: u64,
        /// Credits that this session has brought the relay so far: those that are on their way fill the want.
        received: u64,
    },
    /// Answers one `recall` ([`Extension::Slots`]).
    Return {
        /// How many credits come back, at most as many as recalled.
        n: u32,
    },
    /// Asks other relays, by way of this worker, for slots of any worker ([`Extension::Pleas`]).
    Plea {
        /// The model that requests wait for; this worker serves it.
        model: String,
        /// How many slots, beyond those of its earlier pleas.
        n: u32,
        /// Priority band of the first of these requests, higher first.
        #[serde(default)]
        band: i32,
        /// How long that request has waited, in milliseconds.
        #[serde(default)]
        age_ms: u64,
        /// Grows with each plea of this relay; one with `n` = 0 takes back those before it.
        number: u64,
    },
    /// Gives up unspent credits for a relay that lacks slots ([`Extension::Pleas`]).
    Cede {
        /// How many.
        n: u32,
        /// The name of that relay, as in its `plea`.
        relay: String,
    },
    /// Hold another replica, leave when this relay says `empty` ([`Extension::Goaway`]).
    Goaway {
        /// Milliseconds until the relay closes whatever still runs, jittered per session.
        deadline_ms: u64,
    },
    /// The relay needs this worker no more: leave when idle ([`Extension::Goaway`]).
    Empty,
}

/// Why a request is cancelled. On the wire a string of this list, or `{"other": "text"}`: v1 workers drop their
/// session on any other string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// The client left.
    ClientDisconnect,
    /// A limit of time ran out.
    Timeout,
    /// The relay drains and its deadline is over.
    GracefulShutdown,
    /// The worker's session ended.
    WorkerDisconnect,
    /// No attempt is left.
    RequeueExhausted,
    /// The relay ends now.
    ServerShutdown,
    /// Anything else.
    Other(String),
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it a reference")]
fn is_alone(relays: &u32) -> bool {
    *relays <= 1
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Why a text frame is not a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Well-formed, with a type that this version does not know.
    #[error("unknown message type {0:?}")]
    UnknownType(String),
    /// Not JSON, no type, or a known type with missing or ill-typed fields.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// Decodes a worker's text frame. Total: any text gives a message or an error.
pub fn decode_to_relay(text: &str) -> Result<ToRelay, TextError> {
    decode(
        text,
        &[
            "register",
            "models_update",
            "pong",
            "response_chunk",
            "response_complete",
            "error",
            "grant",
            "recall",
            "plea",
            "load",
            "draining",
        ],
    )
}

/// Decodes a relay's text frame. Total: any text gives a message or an error.
pub fn decode_to_worker(text: &str) -> Result<ToWorker, TextError> {
    decode(
        text,
        &[
            "register_ack",
            "request",
            "cancel",
            "ping",
            "graceful_shutdown",
            "models_refresh",
            "want",
            "return",
            "plea",
            "cede",
            "goaway",
            "empty",
        ],
    )
}

fn decode<'de, T: Deserialize<'de>>(text: &'de str, known: &[&str]) -> Result<T, TextError> {
    serde_json::from_str(text).map_err(|error| {
        #[derive(Deserialize)]
        struct Tag {
            r#type: String,
        }
        match serde_json::from_str::<Tag>(text) {
            Ok(tag) if !known.contains(&tag.r#type.as_str()) => TextError::UnknownType(tag.r#type),
            _ => TextError::Malformed(error.to_string()),
        }
    })
}

/// Encodes a message as the text of one frame.
pub fn encode(message: &impl Serialize) -> String {
    serde_json::to_string(message)
        .expect("messages hold only strings, numbers, lists and maps with string keys")
}

/// Sanitises a model list: trims, drops empties and exact repeats in first-seen order, keeps case.
pub fn sanitize_models(models: &[String]) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    models
        .iter()
        .map(|model| model.trim())
        .filter(|model| !model.is_empty() && seen.insert(*model))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_without_streams_are_not_in_force() {
        let slots: Extensions = [Extension::Slots, Extension::Load].into_iter().collect();
        assert!(Extensions::all().in_force(slots).is_empty());
        let some: Extensions = [Extension::Streams, Extension::Load].into_iter().collect();
        assert_eq!(Extensions::all().in_force(some), some);
    }

    #[test]
    fn unknown_extension_names_are_dropped() {
        let read: Extensions = serde_json::from_str(r#"["warp.v9","streams.v1"]"#).unwrap();
        assert_eq!(read, [Extension::Streams].into_iter().collect());
    }

    #[test]
    fn unknown_types_are_named_and_bad_fields_are_malformed() {
        assert_eq!(decode_to_relay(r#"{"type":"warp","x":1}"#), Err(TextError::UnknownType("warp".into())));
        assert!(matches!(decode_to_relay(r#"{"type":"pong"}"#), Err(TextError::Malformed(_))));
        assert!(matches!(decode_to_relay("[]"), Err(TextError::Malformed(_))));
        assert!(matches!(decode_to_worker("{"), Err(TextError::Malformed(_))));
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let ping = decode_to_worker(r#"{"type":"ping","timestamp_unix_ms":5,"later":true}"#).unwrap();
        assert_eq!(ping, ToWorker::Ping { timestamp_unix_ms: Some(5), replicas: None });
    }

    #[test]
    fn models_are_trimmed_and_listed_once() {
        let given = [" a ", "", "B", "a", "b"].map(String::from);
        assert_eq!(sanitize_models(&given), ["a", "B", "b"]);
    }
}
