//! The scheduler's vocabulary: what happened, what to do about it, and the settings in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One request in this relay process; keys grow in the order of arrival.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct RequestKey(pub u64);

/// One session of one worker; a worker that reconnects gets a new one.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct WorkerId(pub u64);

/// Whom slot time is charged to, usually one client key. Tenants come from the settings, never from a
/// request, so the accounts kept for them are bounded.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct TenantId(pub u32);

/// A request that was admitted and wants a slot.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Names the request; its order is the order of arrival.
    pub request: RequestKey,
    /// The models that may answer, any one of them.
    pub targets: Arc<[Target]>,
    /// Who is charged.
    pub tenant: TenantId,
    /// Priority; higher goes first, always.
    pub band: i32,
    /// Bytes of body held while it waits.
    pub bytes: u64,
    /// Which worker it would rather go to.
    pub affinity: Option<Affinity>,
    /// Which workers are ruled out from the start.
    pub excluded: SessionNeeds,
    /// When the request ends whatever it does; none without an overall limit.
    pub deadline: Option<Instant>,
}

/// One model that may answer, with its share of a weighted split.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Target {
    /// The name that workers list.
    pub model: Arc<str>,
    /// Its share among the targets that can take the request now. A target of weight 0 gets nothing
    /// while another has more.
    pub weight: u32,
}

/// What makes a request prefer a worker; already hashed.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Affinity {
    /// Keeps a session on one worker while it is there and has a free slot.
    Session(u64),
    /// Sends equal prompt openings to the same worker, within a bound on its load.
    Prefix(u64),
}

/// What a request demands of the session that carries it.
#[derive(Copy, Clone, Default, Eq, PartialEq, Debug)]
pub struct SessionNeeds {
    /// The body cannot go to a plain v1 worker: it is not UTF-8 or too large for one frame.
    pub needs_streams: bool,
}

/// How a worker's slots are counted.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Capacity {
    /// Slots come as credits ([`Event::Granted`]); each dispatch spends one.
    Granted,
    /// A plain v1 worker: a slot is taken by a dispatch and free again when the request ends here.
    Declared {
        /// What it registered with.
        slots: u32,
    },
}

/// What a worker said when it registered.
#[derive(Clone, Debug)]
pub struct WorkerInfo {
    /// How its slots are counted.
    pub capacity: Capacity,
    /// All its slots, whoever uses them; the base of its relative load.
    pub slots: u32,
    /// The models it serves; `*` stands for any.
    pub models: Vec<Arc<str>>,
    /// Whether it takes bodies that a plain v1 worker cannot.
    pub streams: bool,
    /// A hash that is the same in every relay replica and after a reconnect; affinity goes by it.
    pub identity: u64,
    /// The load it registered with; counts at once.
    pub reported_load: u32,
    /// Whether it passes pleas on to other relays, and what this one cedes.
    pub pleas: bool,
}

/// Why a worker did not take a request that may move.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum RefusalCause {
    /// The worker is leaving.
    WorkerDraining,
    /// The worker no longer serves the model.
    ModelGone,
    /// The worker had no slot after all.
    OverCapacity,
    /// Its backend refused the connection.
    BackendRefused,
    /// Its backend reset the connection before the first byte.
    BackendReset,
    /// Its backend answered 503.
    BackendUnavailable,
}

impl RefusalCause {
    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WorkerDraining => "worker_draining",
            Self::ModelGone => "model_gone",
            Self::OverCapacity => "over_capacity",
            Self::BackendRefused => "backend_refused",
            Self::BackendReset => "backend_reset",
            Self::BackendUnavailable => "backend_unavailable",
        }
    }
}

/// What happened outside. An event about a request or worker that is gone does nothing.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker registered.
    Joined {
        /// Its session.
        worker: WorkerId,
        /// What it said.
        info: WorkerInfo,
    },
    /// A worker serves other models now; what runs there goes on.
    ModelsChanged {
        /// Its session.
        worker: WorkerId,
        /// All it serves now.
        models: Vec<Arc<str>>,
    },
    /// A worker told its whole load, this relay's requests included.
    LoadReported {
        /// Its session.
        worker: WorkerId,
        /// Requests it runs for anybody.
        load: u32,
    },
    /// A worker lent slots.
    Granted {
        /// Its session.
        worker: WorkerId,
        /// How many more.
        credits: u32,
    },
    /// A worker told who else uses its slots.
    SlotsShared {
        /// Its session.
        worker: WorkerId,
        /// How many relays it lends them to, this one included.
        relays: u32,
        /// Names of those that take pleas; empty when the worker does not tell.
        replicas: BTreeSet<Arc<str>>,
        /// Whether idle ones are lent to others.
        idle_elsewhere: bool,
    },
    /// A worker passed on what another relay lacks.
    Pleaded {
        /// The worker's session.
        worker: WorkerId,
        /// What lacks, and who.
        plea: Plea,
    },
    /// A worker takes nothing new; what runs there goes on.
    Draining {
        /// Its session.
        worker: WorkerId,
    },
    /// A session ended.
    Lost {
        /// The session.
        worker: WorkerId,
    },
    /// A request wants a slot.
    Submitted(Submission),
    /// The first byte of an answer's body came, or its end; the request cannot move any more.
    ResponseStarted {
        /// The request.
        request: RequestKey,
    },
    /// A request was answered, or failed in a way that does not move.
    Finished {
        /// The request.
        request: RequestKey,
    },
    /// A worker or its backend refused a request before the first byte of the answer.
    Refused {
        /// The request.
        request: RequestKey,
        /// What the client is told when there is nowhere left to go.
        cause: RefusalCause,
        /// Whether to send others elsewhere first for a while, since a fast failure looks idle.
        penalise: bool,
    },
    /// Nobody wants the answer any more.
    ClientGone {
        /// The request.
        request: RequestKey,
    },
}

/// Another relay replica lacks slots.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plea {
    /// The replica's name.
    pub relay: Arc<str>,
    /// The model that requests wait for there.
    pub model: Arc<str>,
    /// How many slots.
    pub n: u32,
    /// Band of the first of these requests.
    pub band: i32,
    /// How long that one has waited.
    pub age: Duration,
    /// Grows with each plea of the replica. One for no slots takes back those before it.
    pub number: u64,
}

/// What the dispatcher has to do.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Action {
    /// Send a request to a worker.
    Dispatch {
        /// The request.
        request: RequestKey,
        /// The session to send it on.
        worker: WorkerId,
        /// Which of the request's targets it goes as.
        target: usize,
    },
    /// End a request towards its client. The scheduler has forgotten it.
    Reject {
        /// The request.
        request: RequestKey,
        /// Why.
        reason: Reject,
    },
    /// Tell a worker how many of its slots are lacking here; replaces what it was told before.
    Want {
        /// Its session.
        worker: WorkerId,
        /// How many; 0 withdraws.
        n: u32,
        /// Band of the request that would go there next.
        band: i32,
        /// How long that request has waited.
        age: Duration,
        /// Credits that its session brought so far.
        received: u64,
    },
    /// Ask other relays, by way of a worker, for slots.
    Plea {
        /// The worker's session.
        worker: WorkerId,
        /// The model that requests wait for.
        model: Arc<str>,
        /// How many slots are lacking beyond those that were pleaded for; 0 takes all back.
        n: u32,
        /// Band of the first of these requests.
        band: i32,
        /// How long that one has waited.
        age: Duration,
        /// Grows with each plea.
        number: u64,
    },
    /// Give up unspent credits of a worker for another relay. The scheduler has taken them off.
    Cede {
        /// The worker's session.
        worker: WorkerId,
        /// How many.
        n: u32,
        /// The relay that lacks them.
        relay: Arc<str>,
    },
    /// Stop a request at a worker. The scheduler has forgotten it.
    Cancel {
        /// The request.
        request: RequestKey,
        /// The session it runs on.
        worker: WorkerId,
        /// Why.
        reason: CancelReason,
    },
}

/// Why a request ended without an answer.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Reject {
    /// No room in the queue, or a newcomer had the better claim to the place.
    QueueFull {
        /// When there is likely to be room.
        retry_after: Duration,
    },
    /// Waited too long while workers served a target.
    QueueTimeout,
    /// Waited too long while no worker served a target.
    NoWorker,
    /// Requests that nobody serves hold their share of the body memory already.
    NoWorkerQueueFull,
    /// Its worker was lost before the first byte, and it may not move again.
    WorkerLost,
    /// Its worker was lost after the first byte: the answer is to be broken off.
    LostAfterStart,
    /// It was refused, and nothing is left to try.
    Refused(RefusalCause),
    /// The overall limit passed. When it was running, a [`Action::Cancel`] comes first.
    DeadlineExceeded,
    /// Only plain v1 workers serve it, and its body cannot go there.
    Unsupported,
    /// The relay stops.
    Draining,
}

/// Why a running request is stopped.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum CancelReason {
    /// Nobody wants the answer any more.
    ClientGone,
    /// The overall limit passed.
    DeadlineExceeded,
}

/// Tells one relay replica from others that share the same workers.
#[derive(Copy, Clone, Debug)]
pub struct Replica {
    /// Random: replicas that look for an idle slot try the workers in different orders.
    pub seed: u64,
    /// When `unix_time` was read.
    pub at: Instant,
    /// Time since 1970, by which replicas that find no idle slot make their claims at the same workers. Clocks
    /// that differ cost some order between the replicas' queues, nothing else.
    pub unix_time: Duration,
}

/// Settings of the scheduler; all may change while it runs.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Requests that may wait for one model.
    pub max_requests: usize,
    /// Body bytes that may be held in all. Enforced where bodies are read; here it only bounds what
    /// waits for models that nobody serves.
    pub max_bytes: u64,
    /// How long a request waits while workers serve a target of it.
    pub queue_timeout: Duration,
    /// How long a request waits while none does.
    pub no_worker_timeout: Duration,
    /// How often a request may move to another worker.
    pub max_requeues: u32,
    /// Shares of the tenants; 1 for those not named.
    pub tenants: BTreeMap<TenantId, u32>,
    /// How a worker is chosen among those with a free slot.
    pub strategy: Strategy,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_requests: 1000,
            max_bytes: 1 << 30,
            queue_timeout: Duration::from_secs(30),
            no_worker_timeout: Duration::from_secs(30),
            max_requeues: 3,
            tenants: BTreeMap::new(),
            strategy: Strategy::LeastLoad,
        }
    }
}

/// How a worker is chosen among those with a free slot. Session affinity comes before either.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Strategy {
    /// The lowest relative load, ties in turn.
    LeastLoad,
    /// By [`Affinity::Prefix`] where a request has one, else the lowest relative load.
    PrefixHash {
        /// How far above the mean relative load a worker may get before it is passed over, in percent
        /// of the mean; 125 is usual.
        max_load_percent: u32,
    },
}
