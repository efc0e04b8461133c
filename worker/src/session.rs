//! The life of one connection to a relay: registration, then reading, writing, announcing and watching at once.
//!
//! The halves live as long as the connection does and are polled by one task, so that no frame is lost between them.
//! Requests belong to the two forms of the protocol: `streams` and `v1`.

pub(crate) mod outbox;
pub(crate) mod streams;
pub(crate) mod v1;

mod announce;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{Sink, SinkExt, Stream, StreamExt};
use modelrelay_protocol::frame::{
    Extension, Extensions, PROTOCOL_VERSION, Register, RegisterAck, ToRelay, ToWorker, decode_to_worker,
    encode,
};
use modelrelay_protocol::wellknown::{CLOSE_GRACE, REGISTER_DEADLINE, SILENCE_LIMIT};
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Error as WsError, Message};
use tracing::{debug, info, warn};

use crate::app::Core;
use crate::capacity::{Borrower, Member};
use crate::job::mailbox::Abort;
use crate::replicas::Claim;
use crate::socket::Socket;
use outbox::Outbox;

/// A plain v1 relay pings at least every 60 s.
const SILENCE_V1: Duration = Duration::from_secs(90);

/// Frames that are fed to the socket before it is flushed and the other half gets its turn.
const FRAMES_AT_ONCE: usize = 64;

/// A control message of a relay of ours, at most.
const MAX_TEXT_BYTES: usize = 1024 * 1024;

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The relay refused the credential, with its reason.
    Refused(String),
    /// The relay closed.
    Closed { code: u16, reason: String },
    /// The connection broke.
    Broken(String),
    /// The relay sent nothing for too long.
    Silent,
    /// The relay did not keep to the protocol.
    Protocol(String),
    /// The relay said that it needs this worker no more.
    Released,
    /// The worker leaves.
    Leaving,
    /// It is a plain v1 relay beside others, so it may register a part of the slots only.
    TooManySlots,
}

/// How the worker registers with a relay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Slots to register.
    pub(crate) slots: u32,
    /// Slots that a relay without credits may have.
    pub(crate) fixed: u32,
}

/// Either form of the protocol.
enum Form {
    Streams(streams::Session),
    V1(v1::Session),
}

/// What runs on a session, seen from beside the half that reads.
pub(crate) enum Running {
    Streams(Arc<streams::Link>),
    V1(Arc<v1::Link>),
}

impl Running {
    fn is_empty(&self) -> bool {
        match self {
            Self::Streams(link) => link.jobs.is_empty(),
            Self::V1(link) => link.jobs.is_empty(),
        }
    }

    fn abort_all(&self, why: Abort) {
        match self {
            Self::Streams(link) => link.jobs.abort_all(why),
            Self::V1(link) => link.jobs.abort_all(why),
        }
    }
}

/// When the relay was heard last. Both halves look at it, so it is an atomic although one task polls them.
struct Heard {
    begun: Instant,
    after_ms: AtomicU64,
}

impl Heard {
    fn new() -> Self {
        Self { begun: Instant::now(), after_ms: AtomicU64::new(0) }
    }

    fn now(&self) {
        let after = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.after_ms.store(after, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.after_ms.load(Ordering::Relaxed))
    }
}

/// What both forms do with what arrives.
pub(crate) enum Handled {
    Done,
    /// The relay sent something that it must not.
    Violation(String),
}

/// Registers, serves, and returns why the session ended. `accepted` is called once it is registered.
pub(crate) async fn run(
    core: &Arc<Core>,
    socket: WebSocketStream<Socket>,
    part: Part,
    claim: Arc<Claim>,
    accepted: impl FnOnce(bool),
) -> Ended {
    let (mut sink, mut stream) = socket.split();
    let ack =
        match tokio::time::timeout(REGISTER_DEADLINE, register(core, &mut sink, &mut stream, part)).await {
            Ok(Ok(ack)) => ack,
            Ok(Err(ended)) => return ended,
            Err(_) => return Ended::Silent,
        };
    for warning in &ack.warnings {
        warn!(%warning, "The relay accepted the registration with a warning");
    }
    let extensions = Extensions::all().in_force(ack.extensions);
    let is_v1 = extensions.is_empty();
    if is_v1 && part.slots > part.fixed {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "registering again".into() };
        let _ = tokio::time::timeout(CLOSE_GRACE, sink.send(Message::Close(Some(frame)))).await;
        return Ended::TooManySlots;
    }
    info!(worker_id = %ack.worker_id, replica = claim.name(), plain_v1 = is_v1, "Registered");
    accepted(is_v1);

    let (control, jobs, outbox) = Outbox::new();
    let credits = extensions.has(Extension::Slots);
    let member = if credits {
        let state = extensions.has(Extension::Load).then(|| core.state.subscribe());
        let most = ack.max_concurrent.unwrap_or(part.slots);
        let named = extensions.has(Extension::Pleas).then(|| claim.name().to_owned());
        Member::Credits(Borrower { control: control.clone(), relay: named, most, state })
    } else {
        Member::Fixed { part: part.fixed }
    };
    let key = core.capacity.join(member);
    let form = if is_v1 {
        Form::V1(v1::Session::new(core, key, control.clone(), jobs))
    } else {
        let window = ack.response_window_bytes.unwrap_or(DEFAULT_WINDOW_BYTES);
        Form::Streams(streams::Session::new(core, key, control.clone(), jobs, window, credits))
    };
    let announcer = announce::Announcer::new(core, key, claim, control, extensions, form.running());
    serve(form, &announcer, outbox, sink, stream).await
}

/// Sends `register` and waits for the answer.
async fn register(
    core: &Core,
    sink: &mut (impl Sink<Message, Error = WsError> + Unpin),
    stream: &mut (impl Stream<Item = Result<Message, WsError>> + Unpin),
    part: Part,
) -> Result<RegisterAck, Ended> {
    let register = ToRelay::Register(Register {
        worker_name: core.name.clone(),
        models: core.models_shown(),
        max_concurrent: part.slots,
        protocol_version: Some(PROTOCOL_VERSION.to_owned()),
        current_load: Some(core.load_shown()),
        extensions: Extensions::all(),
        instance: Some(core.instance.clone()),
        request_window_bytes: Some(DEFAULT_WINDOW_BYTES),
        software: Some(concat!("modelrelay-worker/", env!("CARGO_PKG_VERSION")).to_owned()),
    });
    sink.send(Message::text(encode(&register))).await.map_err(|error| broken(&error))?;
    loop {
        match next(stream).await? {
            Message::Text(text) => match decode_to_worker(&text) {
                Ok(ToWorker::RegisterAck(ack)) => return Ok(ack),
                // Nothing else means anything before the answer.
                Ok(other) => debug!(?other, "Skipped a message before the registration was answered"),
                Err(error) => return Err(Ended::Protocol(error.to_string())),
            },
            Message::Binary(_) => {
                return Err(Ended::Protocol(String::from("a binary frame before register_ack")));
            }
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
        }
    }
}

async fn serve(
    mut form: Form,
    announcer: &announce::Announcer,
    mut outbox: Outbox,
    mut sink: impl Sink<Message, Error = WsError> + Unpin,
    mut stream: impl Stream<Item = Result<Message, WsError>> + Unpin,
) -> Ended {
    let heard = Heard::new();
    let silence = if matches!(form, Form::V1(_)) { SILENCE_V1 } else { SILENCE_LIMIT };
    let overflowed = outbox.overflowed.clone();
    let ended = tokio::select! {
        biased;
        ended = read(&mut stream, &mut form, announcer, &heard) => ended,
        ended = write(&mut sink, &mut outbox) => ended,
        ended = announcer.run() => ended,
        () = silent(&heard, silence) => Ended::Silent,
        () = overflowed.cancelled() => Ended::Broken(String::from("the relay does not read what it asks for")),
    };
    // Requests stop, and their sockets close, before anything else is done for this session.
    drop(form);
    let code = match &ended {
        Ended::Protocol(reason) => Some((CloseCode::Protocol, reason.as_str())),
        Ended::Released => Some((CloseCode::Normal, "released")),
        Ended::Refused(_)
        | Ended::Closed { .. }
        | Ended::Broken(_)
        | Ended::Silent
        | Ended::Leaving
        | Ended::TooManySlots => None,
    };
    if let Some((code, reason)) = code {
        let reason = reason[..reason.floor_char_boundary(120)].to_owned();
        let frame = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        // Politeness has a limit: the socket is closed when this returns.
        let _ = tokio::time::timeout(CLOSE_GRACE, sink.send(frame)).await;
    }
    ended
}

async fn read(
    stream: &mut (impl Stream<Item = Result<Message, WsError>> + Unpin),
    form: &mut Form,
    announcer: &announce::Announcer,
    heard: &Heard,
) -> Ended {
    loop {
        let message = match next(stream).await {
            Ok(message) => message,
            Err(ended) => return ended,
        };
        heard.now();
        let handled = match message {
            Message::Binary(frame) => form.binary(frame),
            Message::Text(text) => form.text(&text, announcer),
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => Handled::Done,
        };
        if let Handled::Violation(reason) = handled {
            return Ended::Protocol(reason);
        }
    }
}

/// Writes what is ready together at once; nothing waits for more.
async fn write(sink: &mut (impl Sink<Message, Error = WsError> + Unpin), outbox: &mut Outbox) -> Ended {
    let written = async {
        while let Some(first) = outbox.next().await {
            let mut next = Some(first);
            let mut fed = 0;
            while let Some(frame) = next {
                if frame.is_close() {
                    // Last frames that jobs have queued go ahead of the goodbye.
                    while let Some(frame) = outbox.ready_of_jobs() {
                        sink.feed(frame).await?;
                    }
                    return sink.send(frame).await;
                }
                sink.feed(frame).await?;
                fed += 1;
                next = if fed < FRAMES_AT_ONCE { outbox.ready() } else { None };
            }
            sink.flush().await?;
        }
        Ok(())
    };
    match written.await {
        Ok(()) => Ended::Leaving,
        Err(error) => broken(&error),
    }
}

/// Ends when the relay sent nothing for too long, whatever the other halves wait for.
async fn silent(heard: &Heard, limit: Duration) {
    loop {
        let due = heard.last() + limit;
        tokio::time::sleep_until(due).await;
        if heard.last() + limit <= due {
            return;
        }
    }
}

/// Reads the next message; a close or a broken connection is an error.
async fn next(stream: &mut (impl Stream<Item = Result<Message, WsError>> + Unpin)) -> Result<Message, Ended> {
    match stream.next().await {
        Some(Ok(Message::Close(frame))) => Err(closed(frame)),
        Some(Ok(message)) => Ok(message),
        Some(Err(error)) => Err(broken(&error)),
        None => Err(Ended::Broken(String::from("the connection ended"))),
    }
}

fn closed(frame: Option<CloseFrame>) -> Ended {
    let Some(CloseFrame { code, reason }) = frame else {
        return Ended::Closed { code: 1005, reason: String::new() };
    };
    match code {
        CloseCode::Policy => Ended::Refused(reason.to_string()),
        code => Ended::Closed { code: code.into(), reason: reason.to_string() },
    }
}

fn broken(error: &WsError) -> Ended {
    Ended::Broken(error.to_string())
}

impl Form {
    fn running(&self) -> Running {
        match self {
            Self::Streams(session) => Running::Streams(session.link()),
            Self::V1(session) => Running::V1(session.link()),
        }
    }

    fn binary(&mut self, frame: Bytes) -> Handled {
        match self {
            Self::Streams(session) => session.binary(frame),
            Self::V1(_) => Handled::Violation(String::from("a binary frame without the extension for it")),
        }
    }

    fn text(&mut self, text: &str, announcer: &announce::Announcer) -> Handled {
        if matches!(self, Self::Streams(_)) && text.len() > MAX_TEXT_BYTES {
            return Handled::Violation(format!("a text frame of {} bytes", text.len()));
        }
        let message = match decode_to_worker(text) {
            Ok(message) => message,
            Err(modelrelay_protocol::frame::TextError::UnknownType(name)) => {
                debug!(r#type = name, "Skipped a message of an unknown type");
                return Handled::Done;
            }
            Err(error) => return Handled::Violation(error.to_string()),
        };
        match self {
            Self::Streams(session) => session.text(message, announcer),
            Self::V1(session) => session.text(message, announcer),
        }
    }
}
