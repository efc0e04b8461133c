//! Encoded frames that must never change: other implementations, and our own of other versions, speak them.
//!
//! Each line of a file in `golden/` is a name and one frame: JSON text, or a binary frame in hexadecimal digits. A frame
//! that is encoded differently fails here; `UPDATE_GOLDEN=1` writes the files anew, for frames that were added.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests may fail like the tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write as _};
use std::path::PathBuf;

use bytes::Bytes;
use modelrelay_protocol::codec::{
    FailureCode, HeaderBlock, RelayFrame, RequestMeta, StreamId, WorkerFrame, decode_relay_frame,
    decode_worker_frame, encode_cancel, encode_cancelled, encode_failed, encode_request, encode_request_data,
    encode_response, encode_response_data, encode_window,
};
use modelrelay_protocol::frame::{
    CancelReason, Extensions, Headers, LoadReport, PROTOCOL_VERSION, Register, RegisterAck, TextError,
    ToRelay, ToWorker, TokenCounts, decode_to_relay, decode_to_worker, encode,
};
use serde::Serialize;
use serde_json::{Map, Value};

/// Type, fields that are always there, fields that may be left out.
type Fields = (&'static str, &'static [&'static str], &'static [&'static str]);

const V1_TO_RELAY: &[Fields] = &[
    ("register", &["worker_name", "models", "max_concurrent"], &["protocol_version", "current_load"]),
    ("models_update", &["models", "current_load"], &[]),
    ("pong", &["current_load"], &["timestamp_unix_ms"]),
    ("response_chunk", &["request_id", "chunk"], &[]),
    ("response_complete", &["request_id", "status_code"], &["headers", "body", "token_counts"]),
    ("error", &["code", "message"], &["request_id"]),
];

const V1_TO_WORKER: &[Fields] = &[
    ("register_ack", &["worker_id", "models"], &["warnings", "protocol_version"]),
    ("request", &["request_id", "model", "endpoint_path", "is_streaming", "body"], &["headers"]),
    ("cancel", &["request_id", "reason"], &[]),
    ("ping", &[], &["timestamp_unix_ms"]),
    ("graceful_shutdown", &[], &["reason", "drain_timeout_secs"]),
    ("models_refresh", &[], &["reason"]),
];

const EXTENSIONS_TO_RELAY: &[Fields] = &[
    (
        "register",
        &["worker_name", "models", "max_concurrent"],
        &["protocol_version", "current_load", "extensions", "instance", "request_window_bytes", "software"],
    ),
    ("grant", &["n"], &[]),
    ("recall", &["n"], &[]),
    ("plea", &["relay", "model", "n", "band", "age_ms", "number"], &[]),
    (
        "load",
        &["healthy"],
        &["running", "waiting", "loaded_models", "reason", "relays", "replicas", "idle_elsewhere"],
    ),
    ("draining", &["deadline_ms"], &[]),
];

const EXTENSIONS_TO_WORKER: &[Fields] = &[
    (
        "register_ack",
        &["worker_id", "models"],
        &["warnings", "protocol_version", "extensions", "max_concurrent", "response_window_bytes"],
    ),
    ("ping", &[], &["timestamp_unix_ms", "replicas"]),
    ("want", &["n", "band", "age_ms", "received"], &[]),
    ("return", &["n"], &[]),
    ("plea", &["model", "n", "band", "age_ms", "number"], &[]),
    ("cede", &["n", "relay"], &[]),
    ("goaway", &["deadline_ms"], &[]),
    ("empty", &[], &[]),
];

const STREAM: StreamId = StreamId(0x0102_0304);
const USAGE: TokenCounts =
    TokenCounts { prompt_tokens: Some(7), completion_tokens: Some(5), total_tokens: Some(12) };

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().copied().map(String::from).collect()
}

fn headers() -> Headers {
    [("accept", "text/event-stream"), ("content-type", "application/json")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn v1_to_relay() -> Vec<(&'static str, ToRelay)> {
    let id = || String::from("req-1");
    let register = Register {
        worker_name: "gpu-box".into(),
        models: strings(&["llama-3", "*"]),
        max_concurrent: 4,
        ..Register::default()
    };
    let full = Register {
        protocol_version: Some(PROTOCOL_VERSION.into()),
        current_load: Some(1),
        ..register.clone()
    };
    vec![
        ("register_minimal", ToRelay::Register(register)),
        ("register_full", ToRelay::Register(full)),
        ("models_update", ToRelay::ModelsUpdate { models: strings(&["llama-3"]), current_load: 2 }),
        ("pong_minimal", ToRelay::Pong { current_load: 1, timestamp_unix_ms: None }),
        ("pong_full", ToRelay::Pong { current_load: 0, timestamp_unix_ms: Some(1_775_000_000_123) }),
        (
            "response_chunk",
            ToRelay::ResponseChunk { request_id: id(), chunk: "data: {\"é\": \"\u{1F600}\"}\r\n\n".into() },
        ),
        (
            "response_complete_minimal",
            ToRelay::ResponseComplete {
                request_id: id(),
                status_code: 200,
                headers: Headers::new(),
                body: None,
                token_counts: None,
            },
        ),
        (
            "response_complete_full",
            ToRelay::ResponseComplete {
                request_id: id(),
                status_code: 404,
                headers: headers(),
                body: Some(r#"{"error":"no such model"}"#.into()),
                token_counts: Some(USAGE),
            },
        ),
        (
            "response_complete_with_some_counts",
            ToRelay::ResponseComplete {
                request_id: id(),
                status_code: 200,
                headers: Headers::new(),
                body: Some(String::new()),
                token_counts: Some(TokenCounts { completion_tokens: Some(5), ..TokenCounts::default() }),
            },
        ),
        (
            "error_minimal",
            ToRelay::Error {
                request_id: None,
                code: "internal".into(),
                message: "the backend is gone".into(),
            },
        ),
        (
            "error_full",
            ToRelay::Error {
                request_id: Some(id()),
                code: "backend_refused".into(),
                message: "connection refused".into(),
            },
        ),
    ]
}

fn v1_to_worker() -> Vec<(&'static str, ToWorker)> {
    let id = || String::from("req-1");
    let ack =
        RegisterAck { worker_id: "w1".into(), models: strings(&["llama-3", "*"]), ..RegisterAck::default() };
    let full = RegisterAck {
        warnings: strings(&["worker_name is blank"]),
        protocol_version: Some(PROTOCOL_VERSION.into()),
        ..ack.clone()
    };
    let request = |is_streaming, headers| ToWorker::Request {
        request_id: id(),
        model: "llama-3".into(),
        endpoint_path: "/v1/chat/completions?beta=true".into(),
        is_streaming,
        body: r#"{ "model":"llama-3", "n": 1.0 }"#.into(),
        headers,
    };
    let cancel = |reason| ToWorker::Cancel { request_id: id(), reason };
    let shutdown = |reason, drain_timeout_secs| ToWorker::GracefulShutdown { reason, drain_timeout_secs };
    vec![
        ("register_ack_minimal", ToWorker::RegisterAck(ack)),
        ("register_ack_full", ToWorker::RegisterAck(full)),
        ("request_minimal", request(false, Headers::new())),
        ("request_full", request(true, headers())),
        ("cancel_client_disconnect", cancel(CancelReason::ClientDisconnect)),
        ("cancel_timeout", cancel(CancelReason::Timeout)),
        ("cancel_graceful_shutdown", cancel(CancelReason::GracefulShutdown)),
        ("cancel_worker_disconnect", cancel(CancelReason::WorkerDisconnect)),
        ("cancel_requeue_exhausted", cancel(CancelReason::RequeueExhausted)),
        ("cancel_server_shutdown", cancel(CancelReason::ServerShutdown)),
        ("cancel_other", cancel(CancelReason::Other("moved".into()))),
        ("ping_minimal", ToWorker::Ping { timestamp_unix_ms: None, replicas: None }),
        ("ping_full", ToWorker::Ping { timestamp_unix_ms: Some(1_775_000_000_123), replicas: None }),
        ("graceful_shutdown_minimal", shutdown(None, None)),
        ("graceful_shutdown_full", shutdown(Some("the relay is draining".into()), Some(600))),
        ("models_refresh_minimal", ToWorker::ModelsRefresh { reason: None }),
        ("models_refresh_full", ToWorker::ModelsRefresh { reason: Some("model not found".into()) }),
    ]
}

fn extensions_to_relay() -> Vec<(&'static str, ToRelay)> {
    let register = Register {
        worker_name: "gpu-box".into(),
        models: strings(&["llama-3"]),
        max_concurrent: 4,
        ..Register::default()
    };
    let full = Register {
        protocol_version: Some(PROTOCOL_VERSION.into()),
        current_load: Some(1),
        extensions: Extensions::all(),
        instance: Some("6f1e0c5a9b3d47288c64d1f2a7b09e35".into()),
        request_window_bytes: Some(262_144),
        software: Some("modelrelay-worker/0.1.0".into()),
        ..register.clone()
    };
    let load = LoadReport {
        running: Some(3),
        waiting: Some(1),
        loaded_models: strings(&["llama-3"]),
        healthy: false,
        reason: Some("loading".into()),
        relays: 3,
        replicas: strings(&["8c64d1f2a7b09e35", "47288c64d1f2a7b0"]),
        idle_elsewhere: true,
    };
    vec![
        ("register_minimal", ToRelay::Register(register)),
        ("register_full", ToRelay::Register(full)),
        ("grant", ToRelay::Grant { n: 4 }),
        ("recall", ToRelay::Recall { n: 1 }),
        (
            "plea",
            ToRelay::Plea {
                relay: "8c64d1f2a7b09e35".into(),
                model: "llama-3".into(),
                n: 2,
                band: -1,
                age_ms: 40,
                number: 17,
            },
        ),
        ("load_minimal", ToRelay::Load(LoadReport { healthy: true, ..LoadReport::default() })),
        ("load_full", ToRelay::Load(load)),
        ("draining", ToRelay::Draining { deadline_ms: 600_000 }),
    ]
}

fn extensions_to_worker() -> Vec<(&'static str, ToWorker)> {
    let ack = RegisterAck { worker_id: "w1".into(), models: strings(&["llama-3"]), ..RegisterAck::default() };
    let full = RegisterAck {
        warnings: strings(&["max_concurrent is cut to 2"]),
        protocol_version: Some(PROTOCOL_VERSION.into()),
        extensions: Extensions::all(),
        max_concurrent: Some(2),
        response_window_bytes: Some(262_144),
        ..ack.clone()
    };
    vec![
        ("register_ack_minimal", ToWorker::RegisterAck(ack)),
        ("register_ack_full", ToWorker::RegisterAck(full)),
        ("ping_minimal", ToWorker::Ping { timestamp_unix_ms: None, replicas: None }),
        ("ping_full", ToWorker::Ping { timestamp_unix_ms: Some(1_775_000_000_123), replicas: Some(3) }),
        ("want", ToWorker::Want { n: 2, band: -1, age_ms: 1500, received: 17 }),
        ("want_withdrawn", ToWorker::Want { n: 0, band: 0, age_ms: 0, received: 17 }),
        ("return", ToWorker::Return { n: 1 }),
        ("plea", ToWorker::Plea { model: "llama-3".into(), n: 2, band: -1, age_ms: 20, number: 17 }),
        ("plea_withdrawn", ToWorker::Plea { model: "llama-3".into(), n: 0, band: 0, age_ms: 0, number: 18 }),
        ("cede", ToWorker::Cede { n: 1, relay: "8c64d1f2a7b09e35".into() }),
        ("goaway", ToWorker::Goaway { deadline_ms: 450_000 }),
        ("empty", ToWorker::Empty),
    ]
}

const PAIRS: [(&[u8], &[u8]); 2] = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=\xff")];

fn binary_to_worker() -> Vec<(&'static str, Bytes)> {
    let meta =
        |streaming| RequestMeta { body_bytes: 5, streaming, model: "llama-3", path: "/v1/chat/completions" };
    let request = |streaming, pairs: &[(&'static [u8], &'static [u8])], body: &[u8], end| {
        encode_request(STREAM, meta(streaming), pairs.iter().copied(), body, end).unwrap()
    };
    let mut all = vec![
        ("request_whole", request(true, &PAIRS, b"hello", true)),
        ("request_begins", request(false, &[], b"he", false)),
        ("request_data", encode_request_data(STREAM, b"l\xff", false)),
        ("request_data_ends", encode_request_data(STREAM, b"o", true)),
        ("window", encode_window(STREAM, 131_072)),
    ];
    let reasons = [
        ("cancel_client_disconnect", CancelReason::ClientDisconnect),
        ("cancel_timeout", CancelReason::Timeout),
        ("cancel_graceful_shutdown", CancelReason::GracefulShutdown),
        ("cancel_worker_disconnect", CancelReason::WorkerDisconnect),
        ("cancel_requeue_exhausted", CancelReason::RequeueExhausted),
        ("cancel_server_shutdown", CancelReason::ServerShutdown),
        ("cancel_other", CancelReason::Other("not on the wire".into())),
    ];
    all.extend(reasons.map(|(name, reason)| (name, encode_cancel(STREAM, &reason))));
    all
}

fn binary_to_relay() -> Vec<(&'static str, Bytes)> {
    let response = |status: Option<u16>, body: &[u8], end, usage, regrant| {
        let head = status.map(|status| (status, PAIRS.into_iter()));
        encode_response(STREAM, head, body, end, usage, regrant).unwrap()
    };
    let part = TokenCounts { completion_tokens: Some(5), ..TokenCounts::default() };
    let mut all = vec![
        ("response_head", response(Some(200), b"", false, None, false)),
        ("response_head_and_data", response(Some(200), b"data: \xff", false, None, false)),
        ("response_data", encode_response_data(STREAM, b"data: 1\n\n")),
        ("response_end", response(None, b"", true, None, false)),
        ("response_end_regrant", response(None, b"", true, None, true)),
        ("response_end_usage", response(None, b"data: [DONE]\n\n", true, Some(USAGE), true)),
        ("response_end_some_usage", response(None, b"", true, Some(part), false)),
        ("response_whole", response(Some(404), b"{}", true, Some(USAGE), true)),
        ("cancelled", encode_cancelled(STREAM, false)),
        ("cancelled_regrant", encode_cancelled(STREAM, true)),
        ("window", encode_window(STREAM, 131_072)),
    ];
    let codes = [
        ("failed_backend_refused", FailureCode::BackendRefused),
        ("failed_backend_reset", FailureCode::BackendReset),
        ("failed_backend_timeout", FailureCode::BackendTimeout),
        ("failed_backend_garbage", FailureCode::BackendGarbage),
        ("failed_model_not_found", FailureCode::ModelNotFound),
        ("failed_over_capacity", FailureCode::OverCapacity),
        ("failed_draining", FailureCode::Draining),
        ("failed_internal", FailureCode::Internal),
    ];
    all.extend(
        codes.map(|(name, code)| (name, encode_failed(STREAM, code, "why", code == FailureCode::Internal))),
    );
    all
}

/// A golden file, read; or written first where that is asked for.
struct Golden(BTreeMap<String, String>);

impl Golden {
    fn open(file: &str, encoded: &[(&str, String)]) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
        if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
            let mut text = String::new();
            for (name, frame) in encoded {
                writeln!(text, "{name} {frame}").unwrap();
            }
            std::fs::write(&path, text).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| line.split_once(' ').expect("a name and a frame"));
        let golden: BTreeMap<_, _> = lines.map(|(name, frame)| (name.to_owned(), frame.to_owned())).collect();
        let names: BTreeSet<_> = golden.keys().map(String::as_str).collect();
        assert_eq!(names, encoded.iter().map(|(name, _)| *name).collect(), "the frames of {file}");
        Self(golden)
    }

    fn frame(&self, name: &str) -> &str {
        &self.0[name]
    }
}

/// Every message is encoded as its golden line says, and that line decodes to the message.
fn messages_match<M>(file: &str, messages: &[(&str, M)], decode: fn(&str) -> Result<M, TextError>)
where
    M: Serialize + PartialEq + Debug,
{
    let encoded: Vec<_> = messages.iter().map(|(name, message)| (*name, encode(message))).collect();
    let golden = Golden::open(file, &encoded);
    for ((name, message), (_, encoded)) in messages.iter().zip(&encoded) {
        let frame = golden.frame(name);
        assert_eq!(encoded, frame, "{name}");
        let decoded = decode(frame).unwrap();
        assert_eq!(&decoded, message, "{name}");
        let (value, again): (Value, Value) =
            (serde_json::from_str(frame).unwrap(), serde_json::to_value(&decoded).unwrap());
        assert_eq!(value, again, "{name}");
    }
}

/// Every frame is encoded as its golden line says, and what that line decodes to is encoded to the same bytes.
fn frames_match(file: &str, frames: &[(&str, Bytes)], again: fn(Bytes) -> Bytes) {
    let encoded: Vec<_> = frames.iter().map(|(name, frame)| (*name, to_hex(frame))).collect();
    let golden = Golden::open(file, &encoded);
    for (name, encoded) in &encoded {
        let frame = golden.frame(name);
        assert_eq!(encoded, frame, "{name}");
        assert_eq!(to_hex(&again(from_hex(frame))), frame, "{name}, decoded and encoded");
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

fn from_hex(hex: &str) -> Bytes {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn owned(headers: &HeaderBlock) -> Vec<(Bytes, Bytes)> {
    headers.iter().collect()
}

fn borrowed(pairs: &[(Bytes, Bytes)]) -> impl Iterator<Item = (&[u8], &[u8])> {
    pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
}

fn relay_frame_again(bytes: Bytes) -> Bytes {
    match decode_relay_frame(bytes).unwrap() {
        RelayFrame::Request { stream, head, body, end } => {
            let meta = RequestMeta {
                body_bytes: head.body_bytes,
                streaming: head.streaming,
                model: &head.model,
                path: &head.path,
            };
            encode_request(stream, meta, borrowed(&owned(&head.headers)), &body, end).unwrap()
        }
        RelayFrame::RequestData { stream, body, end } => encode_request_data(stream, &body, end),
        RelayFrame::Cancel { stream, reason } => encode_cancel(stream, &reason),
        RelayFrame::Window { stream, bytes } => encode_window(stream, bytes),
    }
}

fn worker_frame_again(bytes: Bytes) -> Bytes {
    match decode_worker_frame(bytes).unwrap() {
        WorkerFrame::Response(stream, part) => {
            let head = part.head.map(|head| (head.status, owned(&head.headers)));
            let head = head.as_ref().map(|(status, pairs)| (*status, borrowed(pairs)));
            encode_response(stream, head, &part.body, part.end, part.usage, part.regrant).unwrap()
        }
        WorkerFrame::Failed { stream, code, message, regrant } => {
            encode_failed(stream, code, &message, regrant)
        }
        WorkerFrame::Cancelled { stream, regrant } => encode_cancelled(stream, regrant),
        WorkerFrame::Window { stream, bytes } => encode_window(stream, bytes),
    }
}

#[test]
fn the_base_is_what_other_implementations_speak() {
    messages_match("v1_to_relay.txt", &v1_to_relay(), decode_to_relay);
    messages_match("v1_to_worker.txt", &v1_to_worker(), decode_to_worker);
}

#[test]
fn our_messages_stay_as_they_are() {
    messages_match("extensions_to_relay.txt", &extensions_to_relay(), decode_to_relay);
    messages_match("extensions_to_worker.txt", &extensions_to_worker(), decode_to_worker);
}

#[test]
fn binary_frames_stay_as_they_are() {
    frames_match("binary_to_relay.txt", &binary_to_relay(), worker_frame_again);
    frames_match("binary_to_worker.txt", &binary_to_worker(), relay_frame_again);
}

fn object(message: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(message).unwrap() {
        Value::Object(object) => object,
        other => panic!("not an object: {other}"),
    }
}

/// The examples of each type have all fields of the table and no others between them, one has no optional field, and
/// what must be there cannot be left out.
fn fields_match<M: Serialize>(
    table: &[Fields],
    messages: &[(&str, M)],
    decode: fn(&str) -> Result<M, TextError>,
) {
    let decodes = |object: &Map<String, Value>| decode(&Value::Object(object.clone()).to_string()).is_ok();
    let mut examples = BTreeMap::<String, Vec<Map<String, Value>>>::new();
    for (_, message) in messages {
        let mut object = object(message);
        let tag = object["type"].as_str().unwrap().to_owned();
        assert!(decodes(&object));
        object.remove("type");
        examples.entry(tag).or_default().push(object);
    }
    let types: BTreeSet<_> = examples.keys().map(String::as_str).collect();
    assert_eq!(types, table.iter().map(|(tag, ..)| *tag).collect());
    for (tag, required, optional) in table {
        let seen: BTreeSet<_> = examples[*tag].iter().flat_map(Map::keys).map(String::as_str).collect();
        assert_eq!(seen, required.iter().chain(*optional).copied().collect(), "{tag}");
        let minimal = examples[*tag].iter().min_by_key(|example| example.len()).unwrap();
        assert_eq!(
            minimal.keys().map(String::as_str).collect::<BTreeSet<_>>(),
            required.iter().copied().collect(),
            "{tag}"
        );
        for field in *required {
            let mut less = minimal.clone();
            less.insert("type".into(), (*tag).into());
            less.remove(*field);
            // A relay may leave out what it does not know of the next request.
            let may_lack = ["want", "plea"].contains(tag) && ["band", "age_ms"].contains(field);
            assert_eq!(decodes(&less), may_lack, "{tag} without {field}");
        }
    }
}

#[test]
fn the_base_has_its_fields_and_no_others() {
    fields_match(V1_TO_RELAY, &v1_to_relay(), decode_to_relay);
    fields_match(V1_TO_WORKER, &v1_to_worker(), decode_to_worker);
}

#[test]
fn our_messages_have_their_fields_and_no_others() {
    fields_match(EXTENSIONS_TO_RELAY, &extensions_to_relay(), decode_to_relay);
    fields_match(EXTENSIONS_TO_WORKER, &extensions_to_worker(), decode_to_worker);
}

/// Each message type is named in a table above. A type that is added does not compile here until it is.
#[test]
fn no_message_is_left_out() {
    let to_relay: BTreeSet<_> = v1_to_relay()
        .iter()
        .chain(&extensions_to_relay())
        .map(|(_, message)| match message {
            ToRelay::Register(_) => 0,
            ToRelay::ModelsUpdate { .. } => 1,
            ToRelay::Pong { .. } => 2,
            ToRelay::ResponseChunk { .. } => 3,
            ToRelay::ResponseComplete { .. } => 4,
            ToRelay::Error { .. } => 5,
            ToRelay::Grant { .. } => 6,
            ToRelay::Recall { .. } => 7,
            ToRelay::Load(_) => 8,
            ToRelay::Draining { .. } => 9,
            ToRelay::Plea { .. } => 10,
        })
        .collect();
    assert_eq!(to_relay, (0..11).collect());
    let to_worker: BTreeSet<_> = v1_to_worker()
        .iter()
        .chain(&extensions_to_worker())
        .map(|(_, message)| match message {
            ToWorker::RegisterAck(_) => 0,
            ToWorker::Request { .. } => 1,
            ToWorker::Cancel { .. } => 2,
            ToWorker::Ping { .. } => 3,
            ToWorker::GracefulShutdown { .. } => 4,
            ToWorker::ModelsRefresh { .. } => 5,
            ToWorker::Want { .. } => 6,
            ToWorker::Return { .. } => 7,
            ToWorker::Goaway { .. } => 8,
            ToWorker::Empty => 9,
            ToWorker::Plea { .. } => 10,
            ToWorker::Cede { .. } => 11,
        })
        .collect();
    assert_eq!(to_worker, (0..12).collect());
}

#[test]
fn what_a_newer_version_adds_to_binary_frames_is_read() {
    let with = |hex: &str, at: usize, byte: u8| {
        let mut bytes = from_hex(hex).to_vec();
        bytes[at] = byte;
        Bytes::from(bytes)
    };
    let cancel = decode_relay_frame(with(&to_hex(&encode_cancel(STREAM, &CancelReason::Timeout)), 6, 99));
    assert!(matches!(cancel, Ok(RelayFrame::Cancel { stream: STREAM, reason: CancelReason::Other(_) })));
    let failed = to_hex(&encode_failed(STREAM, FailureCode::Draining, "why", false));
    let failed = decode_worker_frame(with(&failed, 6, 99));
    assert!(matches!(failed, Ok(WorkerFrame::Failed { code: FailureCode::Internal, .. })));
    let plain = to_hex(&encode_cancelled(STREAM, false));
    let cancelled = decode_worker_frame(with(&plain, 1, 0b1110_0000));
    assert_eq!(cancelled, decode_worker_frame(from_hex(&plain)), "flags that have no meaning");
}
