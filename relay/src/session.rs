//! The relay's side of one worker connection.
//!
//! A [`Session`] is what the rest of the relay sees of a worker: it takes requests, cancels and messages without ever
//! waiting. [`link`] owns the socket: one task that reads and writes, so that frames which are ready together are
//! written together. The outbox between the two is bounded by what the worker lent: a request spends a slot, and a
//! request has at most one cancel and, for each window that its client took, two openings.

pub mod accept;
mod credits;
pub mod gate;
pub mod link;
pub mod pipe;
pub mod table;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use modelrelay_protocol::codec::StreamId;
use modelrelay_protocol::frame::{
    CancelReason, Extension, Extensions, LoadReport, ToWorker, sanitize_models,
};
use modelrelay_protocol::wellknown::ANY_MODEL;
use tokio::time::Instant;

use self::pipe::{Opener, Pipe};
use self::table::{Outgoing, Stream, Table};
use crate::dispatch::Work;
use crate::keys::WorkerCredential;
use crate::metrics::{Cancelled, Metrics, Origin};
use crate::scheduler::{RequestKey, WorkerId};

/// Why the relay ends a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Close {
    /// A newer session of the same worker process is there.
    Replaced,
    /// The credential was withdrawn from the settings.
    Revoked,
    /// The worker is idle and was told to leave, or the relay's drain is over.
    Done,
    /// The relay is draining and takes no new worker.
    GoingAway,
    /// The worker broke the protocol.
    Protocol(String),
    /// Nothing came for too long.
    Silent,
}

impl Close {
    /// Returns the WebSocket close code and the reason on the wire.
    pub fn parts(&self) -> (u16, &str) {
        match self {
            Self::Replaced => (1000, "replaced by a newer session of the same worker"),
            Self::Revoked => (1008, "the worker credential was withdrawn"),
            Self::Done => (1000, "done"),
            Self::GoingAway => (1001, "the relay is draining"),
            Self::Protocol(reason) => (1002, reason),
            Self::Silent => (1001, "nothing was received for too long"),
        }
    }
}

/// What changes while a worker is connected.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Models as accepted.
    pub models: Vec<Arc<str>>,
    /// What the engine says of itself.
    pub load: Option<LoadReport>,
    /// Nothing new is dispatched to it.
    pub draining: bool,
    /// When what still runs is broken off.
    pub deadline: Option<Instant>,
    /// The last measured round trip.
    pub round_trip: Option<Duration>,
}

/// What is known of a worker when it has registered.
#[derive(Debug)]
pub struct Registration {
    /// Unique in this relay process.
    pub id: WorkerId,
    /// Name that the worker gave, made printable.
    pub name: Arc<str>,
    /// What its credential said of it when it registered; nothing that the worker claims counts.
    pub credential: Arc<WorkerCredential>,
    /// Random per worker process.
    pub instance: Option<String>,
    /// Extensions in force; empty for a plain v1 worker.
    pub extensions: Extensions,
    /// Slots that it declared, cut to what its credential allows.
    pub slots: u32,
    /// Name and version of its software.
    pub software: Option<String>,
    /// Where it dialled from.
    pub remote: std::net::SocketAddr,
    /// When it registered.
    pub since: Instant,
    /// Window for each of its responses, in bytes.
    pub window_bytes: u32,
}

/// One connected worker.
pub struct Session {
    registration: Registration,
    metrics: Arc<Metrics>,
    entry: ArcSwap<WorkerCredential>,
    live: Mutex<Live>,
    table: Mutex<Table>,
    outbox: Mutex<VecDeque<Outgoing>>,
    close: OnceLock<Close>,
    /// A number of replicas that the worker does not know yet; 0 when there is none.
    untold_replicas: AtomicU32,
    /// Credits that were ceded and not yet taken off what the worker lent.
    ceded: AtomicU32,
    writer: AtomicWaker,
}

impl std::ops::Deref for Session {
    type Target = Registration;

    fn deref(&self) -> &Registration {
        &self.registration
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Session {
    /// Makes the session of a worker that has registered.
    pub fn new(registration: Registration, metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            entry: ArcSwap::new(registration.credential.clone()),
            registration,
            live: Mutex::default(),
            table: Mutex::default(),
            outbox: Mutex::default(),
            close: OnceLock::new(),
            untold_replicas: AtomicU32::new(0),
            ceded: AtomicU32::new(0),
            writer: AtomicWaker::new(),
        }
    }

    /// Says whether the worker speaks our extensions.
    pub fn is_ours(&self) -> bool {
        self.extensions.has(Extension::Streams)
    }

    /// Says whether this is a newer session of the same worker process. Only the same credential may replace.
    pub fn replaces(&self, older: &Self) -> bool {
        self.instance.is_some()
            && self.instance == older.instance
            && self.credential.is_same(&older.credential)
    }

    /// Returns what the settings say of the credential now: labels and the like may change under a session.
    pub fn entry(&self) -> Arc<WorkerCredential> {
        self.entry.load_full()
    }

    /// Puts a changed entry of the settings in force.
    pub fn set_entry(&self, entry: Arc<WorkerCredential>) {
        self.entry.store(entry);
    }

    /// Hands a request to the worker.
    pub fn dispatch(&self, request: RequestKey, work: Arc<Work>, target: usize, pipe: Arc<Pipe>) -> StreamId {
        let since = Instant::now();
        let stream = Stream {
            request,
            pipe,
            model: work.model_name.clone(),
            streaming: work.streaming,
            head: None,
            started: false,
            cancelled: None,
        };
        let stream = self.table().insert(stream).expect("a session has no more slots than streams");
        self.push(Outgoing::Request { stream, work, target, since });
        stream
    }

    /// Cancels a request. A plain v1 worker stays silent afterwards, so its stream is forgotten at once.
    pub fn cancel(&self, stream: StreamId, reason: CancelReason) {
        let origin = Origin::of(&reason);
        let mut table = self.table();
        if self.is_ours() {
            let Some(entry) = table.get_mut(stream).filter(|entry| entry.cancelled.is_none()) else { return };
            entry.cancelled = Some((Instant::now(), origin));
        } else {
            let Some(entry) = table.remove(stream) else { return };
            self.metrics.cancelled(&entry.model, origin, Cancelled::Unacknowledged);
        }
        drop(table);
        self.push(Outgoing::Cancel { stream, reason });
    }

    /// The session is over: what it has not said of cancels it will not say any more.
    pub fn abandon_cancels(&self) {
        for entry in self.table().remove_cancelled() {
            if let Some((_, origin)) = entry.cancelled {
                self.metrics.cancelled(&entry.model, origin, Cancelled::SessionLost);
            }
        }
    }

    /// Sends a message that concerns the session.
    pub fn send(&self, message: ToWorker) {
        self.push(Outgoing::Message(message));
    }

    /// Has the worker told how many replicas there are now, unless it would not understand.
    pub fn tell_replicas(&self, replicas: u32) {
        if self.extensions.has(Extension::Slots) {
            self.untold_replicas.store(replicas, Ordering::Release);
            self.writer.wake();
        }
    }

    /// Gives up credits of the worker for another relay.
    pub fn cede(&self, n: u32, relay: &str) {
        self.ceded.fetch_add(n, Ordering::AcqRel);
        self.send(ToWorker::Cede { n, relay: relay.to_owned() });
    }

    /// Takes the number of credits that were ceded since it was last asked.
    fn take_ceded(&self) -> u32 {
        self.ceded.swap(0, Ordering::AcqRel)
    }

    /// Takes the number that the worker has to be told.
    fn untold_replicas(&self) -> Option<u32> {
        Some(self.untold_replicas.swap(0, Ordering::AcqRel)).filter(|replicas| *replicas > 0)
    }

    /// Ends the session; the first reason counts. What is in the outbox by then is still written, requests excepted.
    pub fn close(&self, close: Close) {
        let _ = self.close.set(close);
        self.writer.wake();
    }

    /// Returns why the session ends, once it does.
    fn closing(&self) -> Option<&Close> {
        self.close.get()
    }

    /// Returns what changes while the worker is connected.
    pub fn live(&self) -> Live {
        self.live_mut().clone()
    }

    /// Returns how many requests it runs for this relay, cancels that it did not answer yet included.
    pub fn running(&self) -> usize {
        self.table().len()
    }

    /// Takes a worker's list of models: sanitised, and cut to what its credential allows.
    pub fn accept_models(&self, models: &[String]) -> Vec<Arc<str>> {
        let accepted = accepted_models(models, &self.credential);
        self.live_mut().models.clone_from(&accepted);
        accepted
    }

    /// Returns by when what still runs is broken off, once nothing new goes to the worker and the relay is to close.
    fn draining_until(&self) -> Option<Instant> {
        self.live_mut().deadline
    }

    /// Notes that nothing new goes to the worker, and by when it has to be done.
    pub fn note_draining(&self, deadline: Instant) {
        let mut live = self.live_mut();
        live.draining = true;
        live.deadline = Some(live.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        drop(live);
        self.writer.wake();
    }

    fn live_mut(&self) -> std::sync::MutexGuard<'_, Live> {
        self.live.lock().expect("no code panics while it holds this lock")
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().expect("no code panics while it holds this lock")
    }

    fn push(&self, outgoing: Outgoing) {
        self.outbox.lock().expect("no code panics while it holds this lock").push_back(outgoing);
        self.writer.wake();
    }

    fn has_outgoing(&self) -> bool {
        !self.outbox.lock().expect("no code panics while it holds this lock").is_empty()
    }

    fn pop(&self) -> Option<Outgoing> {
        self.outbox.lock().expect("no code panics while it holds this lock").pop_front()
    }
}

/// Sanitises a worker's list of models and cuts it to what its credential allows. A worker that brings any model gets
/// the credential's list.
pub fn accepted_models(models: &[String], credential: &WorkerCredential) -> Vec<Arc<str>> {
    let models = sanitize_models(models);
    if credential.allows_any() {
        return models.into_iter().map(Arc::from).collect();
    }
    if models.iter().any(|model| model == ANY_MODEL) {
        return credential.models().to_vec();
    }
    models.into_iter().filter(|model| credential.allows(model)).map(Arc::from).collect()
}

impl Opener for Session {
    fn open_window(&self, stream: StreamId, bytes: u32) {
        self.push(Outgoing::Window { stream, bytes });
    }
}
