//! What two processes of ModelRelay must agree on: the protocol between workers and relays, and the settings files.
//!
//! Everything here is pure: bytes and events in, values out. Sockets, clocks and tasks are the relay's and the worker's.
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`frame`] | the JSON messages: the base that other implementations speak, and our extensions |
//! | [`codec`] | the binary frames that carry requests and responses between our own peers |
//! | [`window`] | how much of a body may be on its way |
//! | [`slots`] | who may use a worker's slots: the messages, and the arbiter at the worker |
//! | [`usage`] | how many tokens an answer says it cost |
//! | [`wellknown`] | paths, headers, close codes, limits and times |
//! | [`config`] | the settings files of both processes |
//!
//! What follows specifies the protocol; with the modules it is meant to suffice for another implementation. Encoded
//! examples of every message and frame stand in `tests/golden/`, one a line.
//!
//! # A session
//! A *worker* stands beside an inference server, its *backend*. It dials the *relay*, which clients ask. One WebSocket
//! carries everything; its life is a *session*. In the picture each arrow is one frame, with [all
//! extensions](frame::Extension) in force:
//!
//! ```text
//!  worker                                                             relay
//!    │   GET /v1/worker/connect?provider=local, x-worker-secret         │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │                 101, x-modelrelay-replica, x-modelrelay-replicas │
//!    │◄─────────────────────────────────────────────────────────────────┤
//!    │   register {models, max_concurrent, extensions, instance, ..}    │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │         register_ack {models, extensions, response_window_bytes} │
//!    │◄─────────────────────────────────────────────────────────────────┤
//!    │   grant {4}    models_update {models}    load {healthy}          │
//!    ├────────────┬────────────────────────────┬───────────────────────►│
//!    │                                                                  │
//!    │                    Request 7: head, first part of the body       │ spends a credit
//!    │◄─────────────────────────────────────────────────────────────────┤
//!    │                                          RequestData 7 .. END    │ only large bodies
//!    │◄─────────────────────────────────────────────────────────────────┤
//!    │   Window 7: the backend took some of it                          │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │   Response 7 HEAD: status, headers                               │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │   Response 7: bytes, as the backend sends them                   │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │                                Window 7: the client took some    │
//!    │◄─────────────────────────────────────────────────────────────────┤
//!    │   Response 7 END USAGE REGRANT: the slot is lent again           │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │                                                                  │
//!    │                                                   Request 8      │
//!    │◄─────────────────────────────────────────────────────────────────┤
//!    │                                      Cancel 8: the client left   │
//!    │◄─────────────────────────────────────────────────────────────────┤
//!    │   Cancelled 8 REGRANT: the backend call is closed                │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │                                                                  │
//!    │                                   goaway {deadline_ms}           │ the relay leaves
//!    │◄─────────────────────────────────────────────────────────────────┤
//!    │   recall {n}                                                     │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │                                        return {n}    empty       │
//!    │◄────────────────────────────────────────────────────┬────────────┤
//!    │   close 1000                                                     │
//!    ├─────────────────────────────────────────────────────────────────►│
//! ```
//!
//! The same without sockets:
//!
//! ```
//! use modelrelay_protocol::codec::{
//!     RelayFrame, RequestMeta, StreamId, WorkerFrame, decode_relay_frame, decode_worker_frame, encode_request,
//!     encode_response,
//! };
//! use modelrelay_protocol::frame::{
//!     Extension, Extensions, RegisterAck, ToRelay, ToWorker, decode_to_relay, decode_to_worker, encode,
//!     sanitize_models,
//! };
//! use modelrelay_protocol::window::{ReceiveWindow, SendWindow, cost};
//!
//! // At the relay: who is it, and what do both ends speak?
//! let first = r#"{"type":"register","worker_name":"gpu","models":[" m "],"max_concurrent":2,
//!                 "extensions":["streams.v1","slots.v1","warp.v9"]}"#;
//! let ToRelay::Register(register) = decode_to_relay(first)? else { panic!("another message") };
//! let ack = encode(&ToWorker::RegisterAck(RegisterAck {
//!     worker_id: "w1".into(),
//!     models: sanitize_models(&register.models),
//!     extensions: Extensions::all().in_force(register.extensions),
//!     response_window_bytes: Some(262_144),
//!     ..RegisterAck::default()
//! }));
//!
//! // At the worker: the answer says what is in force.
//! let ToWorker::RegisterAck(ack) = decode_to_worker(&ack)? else { panic!("another message") };
//! assert!(ack.extensions.has(Extension::Slots) && !ack.extensions.has(Extension::Goaway));
//! assert_eq!(ack.models, ["m"]);
//!
//! // The worker lends its slots, and the relay spends one.
//! assert_eq!(encode(&ToRelay::Grant { n: 2 }), r#"{"type":"grant","n":2}"#);
//! let meta = RequestMeta { body_bytes: 2, streaming: true, model: "m", path: "/v1/chat/completions" };
//! let request = encode_request(StreamId(7), meta, std::iter::empty(), b"{}", true)?;
//! let RelayFrame::Request { stream, head, body, end } = decode_relay_frame(request)? else { panic!("another frame") };
//! assert_eq!((head.model.as_str(), &body[..], end), ("m", &b"{}"[..], true));
//!
//! // The worker answers as far as the window allows.
//! let mut window = SendWindow::new(ack.response_window_bytes.expect("it was announced"));
//! let bytes = b"data: 1\n\n";
//! assert!(bytes.len() <= window.budget());
//! window.spend(bytes.len());
//! let headers = [(&b"content-type"[..], &b"text/event-stream"[..])];
//! let response = encode_response(stream, Some((200, headers.into_iter())), bytes, false, None, false)?;
//!
//! // The relay counts the same, and opens the window when its client has taken enough.
//! let mut received = ReceiveWindow::new(262_144);
//! let WorkerFrame::Response(_, part) = decode_worker_frame(response)? else { panic!("another frame") };
//! received.receive(part.body.len())?;
//! assert_eq!(received.take(cost(part.body.len())), None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Connecting
//! - `GET` [`CONNECT_PATH`](wellknown::CONNECT_PATH), upgraded to a WebSocket (RFC 6455, version 13) without extensions
//!   or subprotocols. The query may name a [`provider`](wellknown::PROVIDER_QUERY); a relay takes any.
//! - The secret stands in the header [`x-worker-secret`](wellknown::header::WORKER_SECRET), else in the query
//!   [`worker_secret`](wellknown::WORKER_SECRET_QUERY). The header wins.
//! - The relay answers 101 in any case and refuses afterwards, by close code [1008](wellknown::close::POLICY): v1 workers
//!   take an HTTP status for a network error. Repeated failures of one address are answered later and later; a right
//!   secret is never delayed.
//! - The 101 names the replica, random per start, and how many replicas there are
//!   ([`REPLICA`](wellknown::header::REPLICA), [`REPLICAS`](wellknown::header::REPLICAS)). See [replicas](#replicas).
//! - After a session ended a worker dials again after a random time of up to 0.25 s, doubled with each attempt to at
//!   most 5 s, or 30 s after a 1008. It starts over once a session has lasted 30 s.
//!
//! # Replicas
//! Several relays may stand behind one address, or at several. They do not know one another: a worker holds a session with
//! each, and so each relay answers as if it were alone.
//!
//! - A worker that reaches a replica which it holds a session with, by whatever address, closes before it registers.
//! - Where it holds fewer replicas than the 101 says there are, and they may be behind the address that it dialled, it
//!   dials again: after a random time of up to 0.25 s, doubled each time that this leads to a replica it holds, to at most
//!   30 s, or 300 s where those that this address has not shown may be the ones it holds by other addresses.
//! - When the number changes, the relay says so at once: a `ping` with `replicas` to each session with `slots.v1`. Then, and
//!   when a replica leaves or is lost, a worker looks again within a random second.
//! - A host name that is known to stand for one relay at each of its addresses, such as that of a headless Service, is
//!   resolved again every ten seconds and when a session ends, and each address holds a session. TLS checks the name.
//!
//! # Registering
//! The worker's first frame is [`register`](frame::Register), within [`REGISTER_DEADLINE`](wellknown::REGISTER_DEADLINE)
//! of the upgrade. The relay's first frame is [`register_ack`](frame::RegisterAck).
//!
//! - Models are [sanitised](frame::sanitize_models) and cut to what the secret allows; a worker serves no more than what
//!   the ack lists, nor do later updates bring more. [`*`](wellknown::ANY_MODEL) matches any model. An empty list and a
//!   blank name are accepted with a warning.
//! - `extensions` of the ack are [those of both ends](frame::Extensions::in_force). A missing or empty list means a
//!   [plain v1 peer](#plain-v1-peers): nothing of an extension may be sent to it.
//! - `max_concurrent` of the ack, where it is there, bounds what the relay uses at once, whatever is lent.
//! - A newer session of the same `instance` and secret replaces the older one at once, so a connection that a middle box
//!   has forgotten leaves no ghost.
//!
//! # Who may send what
//! All messages but `register` and `register_ack` may come at any time after these two, in any order. Whoever gets one that
//! is not in force, or that stands in its own column, may close with 1002.
//!
//! | needs | worker | relay |
//! | --- | --- | --- |
//! | nothing | [`models_update`](frame::ToRelay::ModelsUpdate) on change and when asked; [`pong`](frame::ToRelay::Pong) for each ping | [`ping`](frame::ToWorker::Ping), [`models_refresh`](frame::ToWorker::ModelsRefresh) |
//! | no extensions at all | [`response_chunk`](frame::ToRelay::ResponseChunk), [`response_complete`](frame::ToRelay::ResponseComplete) | [`request`](frame::ToWorker::Request), [`cancel`](frame::ToWorker::Cancel), [`graceful_shutdown`](frame::ToWorker::GracefulShutdown) |
//! | any extension | [`error`](frame::ToRelay::Error); a relay accepts it from every worker | |
//! | [`streams.v1`](frame::Extension::Streams) | [`Response`, `Failed`, `Cancelled`, `Window`](codec::WorkerFrame) | [`Request`, `RequestData`, `Cancel`, `Window`](codec::RelayFrame) |
//! | [`slots.v1`](frame::Extension::Slots) | [`grant`](frame::ToRelay::Grant), [`recall`](frame::ToRelay::Recall) | [`want`](frame::ToWorker::Want), [`return`](frame::ToWorker::Return) |
//! | [`pleas.v1`](frame::Extension::Pleas) | [`plea`](frame::ToRelay::Plea), a relay's, to others | [`plea`](frame::ToWorker::Plea), [`cede`](frame::ToWorker::Cede) |
//! | [`goaway.v1`](frame::Extension::Goaway) | [`draining`](frame::ToRelay::Draining) | [`goaway`](frame::ToWorker::Goaway), [`empty`](frame::ToWorker::Empty) |
//! | [`load.v1`](frame::Extension::Load) | [`load`](frame::LoadReport) on change and with each pong | |
//!
//! # Requests and responses
//! With `streams.v1` they travel as binary frames; [`codec`] has their bytes.
//!
//! - The relay sends `Request` with a stream number that no unfinished request of the session has; a number in use
//!   breaks the protocol. With `slots.v1` it spends a credit that the worker [lent](slots); a request without credit is
//!   answered by `Failed` with [`OverCapacity`](codec::FailureCode::OverCapacity). Without `slots.v1` at most
//!   `max_concurrent` requests are unfinished at once.
//! - A body that is larger than [`MAX_PAYLOAD_BYTES`](codec::MAX_PAYLOAD_BYTES) goes on in `RequestData` frames, under the
//!   window that `register` announced ([`request_window_bytes`](frame::Register::request_window_bytes)). The part inside
//!   `Request` is not charged. The last part has `END`; `Request` has it when the body is whole.
//! - The worker answers with `Response`. Status and headers come first, with `HEAD`, as soon as the backend sent them and
//!   before any byte of the body; all bytes are charged to the window that the ack announced
//!   ([`response_window_bytes`](frame::RegisterAck::response_window_bytes)). Bytes are passed on unchanged, as they come;
//!   hop-by-hop headers and trailers are not.
//! - Exactly one *last frame* ends each request: `Response` with `END`, [`Failed`](codec::FailureCode) or `Cancelled`. The
//!   worker sends it when the backend call is closed and the slot is free, never before. Then the number may be used
//!   again. What still arrives for a stream that has ended crossed its last frame: it is skipped.
//! - `Failed` before a byte of the body lets the relay move the request to another worker, if that may help: after
//!   [`BackendTimeout`](codec::FailureCode::BackendTimeout), [`BackendGarbage`](codec::FailureCode::BackendGarbage) and
//!   [`Internal`](codec::FailureCode::Internal) the client gets an error. Once a byte of the body was sent, the response
//!   breaks off at the client. No other request notices.
//! - `Cancel` ends a request early, in any phase. The worker closes the backend call and sends the last frame, which may
//!   have crossed the `Cancel`. The relay drops whatever comes before it.
//! - A sender that exceeds its [window] loses that request, not the session.
//! - Frames of one stream stay in order. Between streams there is no order, and none waits for another: data frames are
//!   small, and a stream whose window is used up sends nothing.
//!
//! # Slots
//! With `slots.v1` the worker lends its slots as credits to all relays that it is connected to, and a relay sends a request
//! only against a credit. With `pleas.v1` relays give up credits for one another. [`slots`] specifies the messages and how
//! worker and relay decide.
//!
//! # Life and death
//! - The relay sends `ping` every [`PING_INTERVAL`](wellknown::PING_INTERVAL); the worker answers with `pong` at once and
//!   echoes the timestamp. It may send pings of WebSocket's own to keep middle boxes awake; those prove nothing, since
//!   libraries answer them on behalf of a hung process.
//! - Any frame is a sign of life. After [`SILENCE_LIMIT`](wellknown::SILENCE_LIMIT) without one, either end gives the
//!   session up, also while a write is blocked.
//! - When a session ends, however it ends, the worker closes the backend calls of its requests, and the relay moves those
//!   requests whose response has not begun. Unspent credits are void.
//!
//! # Leaving
//! **A worker** sends `draining` and recalls its idle credits. Requests against credits that are still out are served. When
//! nothing runs, or at its own deadline, it closes with 1000; what it breaks off then is `Failed` with
//! [`Draining`](codec::FailureCode::Draining). Where `goaway.v1` is not in force it sends `models_update` without models
//! and with its full load instead.
//!
//! **A relay** sends `goaway` with a deadline, drawn at random for each session so that workers do not come back in a
//! storm. The worker makes sure that it holds the other replicas, and takes its idle credits back, but still answers this
//! one's wants, so that no queued request is refused. When the relay needs no worker any more it sends `empty`. After
//! `empty`, or after the deadline, the worker closes with 1000 once nothing of this relay runs there; what runs longer the
//! relay itself breaks off at the end of its drain. Workers that come while a relay leaves are closed with 1001.
//!
//! # Close codes
//! | code | from | when |
//! | --- | --- | --- |
//! | [1000](wellknown::close::NORMAL) | both | done: drained, released, or replaced by a newer session of the same instance |
//! | [1001](wellknown::close::GOING_AWAY) | relay | it leaves and takes no new session, or heard nothing for too long |
//! | [1002](wellknown::close::PROTOCOL_ERROR) | both | the other end broke the protocol; the reason says how. Also: no `register` in time, or with another `protocol_version` |
//! | [1008](wellknown::close::POLICY) | relay | the secret is missing, wrong or withdrawn, or as many workers as it allows are here |
//! | [1009](wellknown::close::TOO_BIG) | both | a message beyond its limit; an end may also drop the connection without a word |
//!
//! The end that closes waits at most [`CLOSE_GRACE`](wellknown::CLOSE_GRACE) for the other's close frame, and nothing that
//! comes meanwhile counts.
//!
//! # Limits
//! | what | limit |
//! | --- | --- |
//! | bytes that a worker sends before it has registered | [`MAX_REGISTER_FRAME_BYTES`](wellknown::MAX_REGISTER_FRAME_BYTES) |
//! | time from the upgrade to `register` | [`REGISTER_DEADLINE`](wellknown::REGISTER_DEADLINE) |
//! | one binary frame | [`MAX_BINARY_FRAME_BYTES`](codec::MAX_BINARY_FRAME_BYTES) |
//! | body bytes in one binary frame | [`MAX_PAYLOAD_BYTES`](codec::MAX_PAYLOAD_BYTES) |
//! | names and values of one head | [`MAX_HEAD_BYTES`](codec::MAX_HEAD_BYTES) |
//! | message of a `Failed` | 1 KiB |
//! | window of a body | [`DEFAULT_WINDOW_BYTES`](window::DEFAULT_WINDOW_BYTES) where none is announced, at least [`MIN_WINDOW_BYTES`](window::MIN_WINDOW_BYTES) |
//! | text message of a relay with extensions | 1 MiB |
//! | text message to a plain v1 peer | [`MAX_V1_FRAME_BYTES`](wellknown::MAX_V1_FRAME_BYTES) |
//! | text message of a registered worker | [`MAX_V1_WORKER_FRAME_BYTES`](wellknown::MAX_V1_WORKER_FRAME_BYTES) |
//! | what a relay holds of one response without a window | [`MAX_V1_BUFFERED_BYTES`](wellknown::MAX_V1_BUFFERED_BYTES) |
//! | slots of one session | 65,536; more are cut, with a warning in the ack |
//! | `instance` | 128 bytes; a longer one is ignored |
//! | time between pings, silence, close | [`PING_INTERVAL`](wellknown::PING_INTERVAL), [`SILENCE_LIMIT`](wellknown::SILENCE_LIMIT), [`CLOSE_GRACE`](wellknown::CLOSE_GRACE) |
//! | unanswered recall, renewal of a want | [`RECALL_LIMIT`](slots::RECALL_LIMIT), [`RENEWAL_INTERVAL`](slots::RENEWAL_INTERVAL) |
//!
//! # What this version does not know
//! | unknown | what happens |
//! | --- | --- |
//! | field of a message | ignored |
//! | name of an extension | dropped while reading: it is not in force |
//! | type of a message | skipped where extensions are in force, and by a worker; a relay closes a plain v1 worker with 1002 |
//! | kind of a binary frame | 1002: new kinds come with a new extension |
//! | flag of a binary frame | ignored |
//! | cancel reason, in a binary frame | read as [`Other`](frame::CancelReason::Other) |
//! | failure code | read as [`Internal`](codec::FailureCode::Internal) |
//!
//! A message that is not JSON, has no type, or lacks a field that it must have, and a binary frame that
//! [does not decode](codec::DecodeError), close the session with 1002. Decoding is total: any bytes give a frame or an
//! error.
//!
//! # Plain v1 peers
//! A peer that names no extensions speaks the base alone ([`PROTOCOL_VERSION`](frame::PROTOCOL_VERSION)): JSON text only.
//! Requests have a `request_id`, an opaque string; bodies are JSON strings, so they are UTF-8; there are no windows, no
//! credits, and no answer to a cancel. An unknown type is fatal to it.
//!
//! ```text
//!  worker                                                             relay
//!    │   register {worker_name, models, max_concurrent}                 │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │                                 register_ack {worker_id, models} │
//!    │◄─────────────────────────────────────────────────────────────────┤
//!    │   models_update {models, current_load}                           │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │                    request {request_id, is_streaming: true, ..}  │
//!    │◄─────────────────────────────────────────────────────────────────┤
//!    │   response_chunk {request_id, chunk}, as often as it takes       │
//!    ├─────────────────────────────────────────────────────────────────►│
//!    │   response_complete {request_id, status_code, headers, ..}       │
//!    ├─────────────────────────────────────────────────────────────────►│
//! ```
//!
//! **A relay with a plain v1 worker**
//! - sends the six types of the base only, and cancel reasons as [`CancelReason`](frame::CancelReason) writes them: any
//!   other string ends a v1 worker's session;
//! - counts slots itself: its own requests, and those of others, which is what the worker's `current_load` says beyond
//!   what this relay had running there. It looks at its queue when a worker joins and when a request comes back, since
//!   v1 workers never ask;
//! - frees the slot when it sends a cancel. The worker stays silent; late, foreign and unknown chunks and completions are
//!   dropped and never reach a client;
//! - holds the first chunk of a stream for [`V1_FIRST_CHUNK_HOLD`](wellknown::V1_FIRST_CHUNK_HOLD), with all that come
//!   meanwhile: a backend's error comes as chunks, and its status only with the completion. If that is 400 or more the
//!   chunks become the body of that status. Otherwise a stream is 200 and `text/event-stream`, its chunks are the body,
//!   and status, headers and body of the completion count only when there was no chunk;
//! - takes the answer of a request that is not streamed from the completion alone;
//! - removes hop-by-hop and length headers from replies: v1 workers pass them on;
//! - never stops reading: of a response that its client does not read it holds
//!   [`MAX_V1_BUFFERED_BYTES`](wellknown::MAX_V1_BUFFERED_BYTES), then breaks it off and cancels;
//! - sends it no body that is not UTF-8 and no frame beyond [`MAX_V1_FRAME_BYTES`](wellknown::MAX_V1_FRAME_BYTES);
//! - sends `graceful_shutdown` when it leaves and no queued request needs the worker, then nothing but cancels and
//!   pings, and closes with 1000 itself when the worker is idle or the deadline is over;
//! - closes with 1002 on a binary frame, a message of an extension, or a second `register`.
//!
//! **A worker with a plain v1 relay**
//! - sends `models_update` right after the ack: a v1 relay looks at its queue then;
//! - sends `response_complete` after every cancel as well: the relay frees the slot only then. Our worker says 499;
//! - remembers a cancel that comes before its request, and drops that request when it comes;
//! - holds an incomplete UTF-8 sequence at the end of a chunk back until its rest arrives, and answers 502 for a body that
//!   is not text;
//! - sends no chunk after the completion, no frame beyond the limit, no `content-length` or `transfer-encoding` in
//!   `headers`, and never `error`;
//! - leaves after 90 s of silence, since a v1 relay may ping once a minute only;
//! - registers with a fixed part of its slots where it has other relays beside this one.

pub mod codec;
pub mod config;
pub mod frame;
pub mod slots;
pub mod usage;
pub mod wellknown;
pub mod window;
