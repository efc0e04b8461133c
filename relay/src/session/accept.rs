//! From an upgraded connection to a registered worker.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use modelrelay_protocol::frame::{
    self, Extension, Extensions, PROTOCOL_VERSION, Register, RegisterAck, ToRelay, ToWorker,
};
use modelrelay_protocol::wellknown::{MAX_V1_WORKER_FRAME_BYTES, REGISTER_DEADLINE};
use modelrelay_protocol::window::{DEFAULT_WINDOW_BYTES, MIN_WINDOW_BYTES};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tracing::{info, warn};

use super::gate::Gate;
use super::link::{Ended, Link};
use super::table::MAX_STREAMS;
use super::{Close, Session};
use crate::admission::stable_hash;
use crate::app::Relay;
use crate::dispatch::TooMany;
use crate::keys::WorkerCredential;
use crate::metrics::Metrics;
use crate::scheduler::{Capacity, WorkerId, WorkerInfo};

/// Read from the socket at once. The library's own size would cost 128 KiB for each idle worker.
const READ_BUFFER_BYTES: usize = 8 * 1024;
/// Written to the socket at once when much is ready.
const WRITE_BUFFER_BYTES: usize = 64 * 1024;
/// How long a close may take to be written.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// Addresses whose failures are remembered.
const MAX_ADDRESSES: usize = 4096;

/// A worker that has dialled.
#[derive(Debug)]
pub struct Arrival {
    /// What the secret that it presented stands for; `None` when it stands for nothing.
    pub credential: Option<Arc<WorkerCredential>>,
    /// Where it dialled from.
    pub remote: SocketAddr,
    /// How many replicas the upgrade's answer said there are.
    pub replicas: u32,
}

type Socket = WebSocketStream<Gate<TcpStream>>;

/// Registers the worker and runs its session to the end.
pub async fn run(relay: Arc<Relay>, stream: TcpStream, read: Bytes, arrival: Arrival) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(Some(MAX_V1_WORKER_FRAME_BYTES))
        .max_frame_size(Some(MAX_V1_WORKER_FRAME_BYTES));
    let gate = Gate::new(stream);
    // A codec that starts with an empty part keeps its read buffer at the size of that part and reads every frame in
    // two pieces; workers usually wait for the upgrade before they send anything.
    let mut socket = if read.is_empty() {
        WebSocketStream::from_raw_socket(gate, Role::Server, Some(config)).await
    } else {
        WebSocketStream::from_partially_read(gate, read.into(), Role::Server, Some(config)).await
    };
    let Some(credential) = arrival.credential else {
        let wait = relay.refusals.failed(arrival.remote.ip());
        warn!(remote = %arrival.remote, "A worker presented no valid secret");
        let _ = timeout(wait, relay.stop_sessions.cancelled()).await;
        return refuse(socket, 1008, "the worker secret is missing or wrong").await;
    };
    if relay.drain.refuses_workers() {
        return refuse_while_draining(socket).await;
    }
    let registering = timeout(REGISTER_DEADLINE, first_frame(&mut socket));
    let register = match relay.stop_sessions.run_until_cancelled(registering).await {
        Some(Ok(Ok(register))) => register,
        Some(Ok(Err(reason))) => return refuse(socket, 1002, &reason).await,
        Some(Err(_)) => return refuse(socket, 1002, "no register frame in time").await,
        None => return refuse_while_draining(socket).await,
    };
    if relay.drain.refuses_workers() {
        return refuse_while_draining(socket).await;
    }
    if register.protocol_version.as_deref().is_some_and(|version| version != PROTOCOL_VERSION) {
        return refuse(socket, 1002, &format!("this relay speaks {PROTOCOL_VERSION}")).await;
    }
    socket.get_mut().open();
    let id = relay.dispatcher.next_worker_id();
    let window = u32::try_from(relay.settings.load().config.limits.response_window_bytes.0);
    let window = window.unwrap_or(DEFAULT_WINDOW_BYTES);
    let session = session(id, &register, credential, arrival.remote, window, relay.metrics.clone());
    let session = Arc::new(session);
    let models = session.accept_models(&register.models);
    relay.metrics.know_models(&models);
    session.send(ToWorker::RegisterAck(acknowledge(&session, &register, &models)));
    let info = worker_info(&session, &register, models.clone());
    if let Err(TooMany(most)) = relay.dispatcher.join(&session, info) {
        let reason = format!("pool {} has its {most} workers already", session.credential.pool);
        return refuse(socket, 1008, &reason).await;
    }
    relay.found_by_worker();
    // From here on changes reach the session; this is for one that came between the upgrade and now.
    let replicas = relay.settings.replicas().get();
    if replicas != arrival.replicas {
        session.tell_replicas(replicas);
    }
    let registered = Registered { relay: relay.clone(), session: session.clone() };
    relay.judge(&session, &relay.settings.load_full());
    let request_window = register.request_window_bytes.unwrap_or(DEFAULT_WINDOW_BYTES).max(MIN_WINDOW_BYTES);
    let link =
        Link::new(socket, session.clone(), relay.dispatcher.clone(), relay.metrics.clone(), request_window);
    info!(
        worker = %session.name, id = id.0, pool = %session.credential.pool, remote = %session.remote,
        slots = session.slots, models = ?models, ours = session.is_ours(), "Worker joined"
    );
    let ended = link.run().await;
    drop(registered);
    let reason = match &ended {
        Ended::ByWorker(_) => "worker",
        Ended::ByRelay(_) => "relay",
    };
    relay.metrics.worker_sessions_ended.with_label_values(&[&*session.credential.pool, reason]).inc();
    info!(worker = %session.name, id = id.0, ?ended, "Worker left");
}

/// A worker that counts as connected; dropping it is how it leaves, whatever ended its task.
struct Registered {
    relay: Arc<Relay>,
    session: Arc<Session>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.relay.dispatcher.leave(self.session.id);
    }
}

async fn first_frame(socket: &mut Socket) -> Result<Register, String> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                return match frame::decode_to_relay(&text) {
                    Ok(ToRelay::Register(register)) => Ok(register),
                    Ok(_) => Err("the first frame must be register".into()),
                    Err(error) => Err(error.to_string()),
                };
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(_) | Message::Frame(_) | Message::Close(_))) => {
                return Err("the first frame must be register".into());
            }
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("closed before it registered".into()),
        }
    }
}

fn session(
    id: WorkerId,
    register: &Register,
    credential: Arc<WorkerCredential>,
    remote: SocketAddr,
    window_bytes: u32,
    metrics: Arc<Metrics>,
) -> Session {
    let extensions = Extensions::all().in_force(register.extensions);
    let most = credential.max_slots.unwrap_or(u32::MAX).min(MAX_STREAMS);
    let registration = super::Registration {
        id,
        name: display_name(&register.worker_name),
        instance: register.instance.clone().filter(|instance| instance.len() <= 128),
        extensions,
        slots: register.max_concurrent.max(1).min(most.max(1)),
        software: register.software.as_deref().map(display_name).map(|name| name.to_string()),
        credential,
        remote,
        since: Instant::now(),
        window_bytes: window_bytes.max(MIN_WINDOW_BYTES),
    };
    Session::new(registration, metrics)
}

/// A name for logs, headers and pages: printable, and not endless.
fn display_name(name: &str) -> Arc<str> {
    let clean: String = name.trim().chars().filter(|c| !c.is_control()).take(128).collect();
    if clean.is_empty() { Arc::from("unnamed") } else { Arc::from(clean) }
}

fn worker_info(session: &Session, register: &Register, models: Vec<Arc<str>>) -> WorkerInfo {
    let by_credits = session.extensions.has(Extension::Slots);
    WorkerInfo {
        capacity: if by_credits { Capacity::Granted } else { Capacity::Declared { slots: session.slots } },
        slots: session.slots,
        models,
        streams: session.is_ours(),
        identity: stable_hash(format!("{}/{}", session.credential.pool, session.name).as_bytes()),
        reported_load: if by_credits { 0 } else { register.current_load.unwrap_or(0) },
        pleas: by_credits && session.extensions.has(Extension::Pleas),
    }
}

fn acknowledge(session: &Session, register: &Register, models: &[Arc<str>]) -> RegisterAck {
    let mut warnings = Vec::new();
    if register.worker_name.trim().is_empty() {
        warnings.push("worker_name is blank".to_owned());
    }
    if register.models.is_empty() {
        warnings.push("models is empty: nothing will be dispatched here".to_owned());
    } else if models.is_empty() {
        warnings.push("none of these models is allowed for this worker's credential".to_owned());
    }
    if register.max_concurrent.max(1) > session.slots {
        warnings.push(format!("max_concurrent is cut to {}", session.slots));
    }
    RegisterAck {
        worker_id: format!("w{}", session.id.0),
        models: models.iter().map(ToString::to_string).collect(),
        warnings,
        protocol_version: register.protocol_version.clone(),
        extensions: session.extensions,
        max_concurrent: session.is_ours().then_some(session.slots),
        response_window_bytes: session.is_ours().then_some(session.window_bytes),
    }
}

async fn refuse_while_draining(socket: Socket) {
    let (code, reason) = Close::GoingAway.parts();
    refuse(socket, code, reason).await;
}

async fn refuse(mut socket: Socket, code: u16, reason: &str) {
    let reason = reason[..reason.floor_char_boundary(120)].to_owned();
    let frame = CloseFrame { code: code.into(), reason: reason.into() };
    let close = async {
        let _ = socket.send(Message::Close(Some(frame))).await;
        // The worker's own close, or its hanging up: until then the reason may still be on its way.
        while let Some(Ok(_)) = socket.next().await {}
    };
    let _ = timeout(CLOSE_DEADLINE, close).await;
}

/// Slows down whoever presents wrong secrets, by address. A right secret is never delayed.
#[derive(Debug, Default)]
pub struct Refusals {
    failures: Mutex<HashMap<IpAddr, (u32, Option<Instant>)>>,
}

impl Refusals {
    /// Notes a failure; returns how long its answer has to wait.
    fn failed(&self, address: IpAddr) -> Duration {
        let now = Instant::now();
        let mut failures = self.failures.lock().expect("no code panics while it holds this lock");
        if failures.len() >= MAX_ADDRESSES {
            failures.clear();
        }
        let (count, last) = failures.entry(address).or_insert((0, None));
        if last.is_some_and(|last| now.duration_since(last) > Duration::from_secs(60)) {
            *count = 0;
        }
        *last = Some(now);
        let wait = Duration::from_millis(100) * (*count).min(50);
        *count = count.saturating_add(1);
        wait
    }
}
