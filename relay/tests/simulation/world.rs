//! Relays, workers and the network between them: real schedulers and arbiters, on a virtual clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use modelrelay_protocol::slots::{Arbiter, SessionKey, Shared, Want};
use modelrelay_relay::scheduler::{Replica, RequestKey, Scheduler, SchedulerConfig, WorkerId};

use super::clock::{Agenda, MS, Random, SECOND, Time};
use super::meeting::Meetings;

/// Nothing heard for so long ends a session.
pub const SILENCE: Time = 45 * SECOND;

pub type LinkIx = usize;

/// What does not change in one history.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub workers: usize,
    /// Each worker has from the first to the second of these.
    pub slots: (u32, u32),
    pub models: usize,
    /// One way, drawn for each link.
    pub latency: (Time, Time),
    /// Added to each message, up to this.
    pub jitter: Time,
    /// Mean time that a request runs.
    pub service: Time,
    pub config: SchedulerConfig,
    /// Follow each pair of a queued request and an idle slot; costs a look at everything after each step.
    pub watch_pairs: bool,
}

impl Setup {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            workers: 1,
            slots: (1, 1),
            models: 1,
            latency: (10 * MS, 10 * MS),
            jitter: 0,
            service: SECOND,
            config: SchedulerConfig {
                max_requests: 1_000_000,
                queue_timeout: Duration::from_secs(3600),
                no_worker_timeout: Duration::from_secs(3600),
                max_requeues: 100,
                ..SchedulerConfig::default()
            },
            watch_pairs: true,
        }
    }

    /// Two round trips on the slowest link.
    pub fn two_round_trips(&self) -> Time {
        4 * (self.latency.1 + self.jitter)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Up,
    Draining,
    Down,
}

pub struct Relay {
    pub scheduler: Scheduler,
    pub phase: Phase,
    /// Clients still come to it.
    pub admits: bool,
    pub sessions: BTreeMap<WorkerId, LinkIx>,
    next_worker: u64,
    timer: Option<Time>,
    /// Has told its workers that it needs them no more.
    pub empty: bool,
}

#[derive(Debug)]
pub struct Job {
    pub link: LinkIx,
    /// Bears the end that was planned last; earlier plans are void.
    pub plan: u64,
    pub cancelled: bool,
}

pub struct Worker {
    pub arbiter: Arbiter,
    pub slots: u32,
    pub models: Vec<usize>,
    pub phase: Phase,
    /// Which process this is; a restart begins another.
    pub process: u32,
    pub jobs: BTreeMap<u64, Job>,
    pub links: Vec<LinkIx>,
    timer: Option<Time>,
    drain_began: Time,
    /// Since when it has had a slot all the time that lay idle within reach.
    pub idle_since: Option<Time>,
    /// Idle slots as last counted.
    pub idle: u32,
    /// When one of its connections last came, went or stalled.
    pub disturbed_at: Time,
}

/// One connection; a worker that dials again makes a new one.
pub struct Link {
    pub relay: usize,
    pub worker: usize,
    pub process: u32,
    pub key: SessionKey,
    pub id: WorkerId,
    latency: Time,
    /// Whether each end takes the session for alive.
    pub at_relay: bool,
    pub at_worker: bool,
    /// Nothing gets through until then; `Time::MAX` is for ever.
    pub stalled_until: Time,
    last: [Time; 2],
    /// Requests that the relay sent on it, by the number of the attempt.
    pub sent: BTreeMap<u64, Sent>,
    pub leave_when_idle: bool,
    pub up_since: Time,
    /// Requests on their way to the worker.
    pub arriving: u32,
    /// Slots that are lent to the relay again, which it does not know yet: the last frame of a response is on its way.
    pub lent_again: u32,
    /// Since when the worker has had idle slots other than these.
    pub idle_since: Option<Time>,
}

impl Link {
    /// Whether both ends hold the session and messages get through.
    pub fn is_sound(&self, now: Time) -> bool {
        self.at_relay && self.at_worker && self.stalled_until <= now
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub request: RequestKey,
    pub cancelled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Waiting,
    Running { attempt: u64 },
}

#[derive(Clone, Debug)]
pub struct Request {
    pub relay: usize,
    pub model: usize,
    pub service: Time,
    pub arrived: Time,
    pub waits_since: Time,
    pub state: State,
}

#[derive(Clone, Copy, Debug)]
pub enum ToRelay {
    Register,
    Grant(u32),
    Recall(u32),
    Load { shared: Shared, replicas: u128 },
    Plea { relay: usize, model: usize, n: u32, band: i32, age: Duration, number: u64 },
    Started { attempt: u64 },
    Done { attempt: u64, regrant: bool },
    Draining,
    Close,
}

#[derive(Clone, Copy, Debug)]
pub enum ToWorker {
    Ack,
    Request { attempt: u64, service: Time },
    Cancel { attempt: u64 },
    Want(Want),
    Return(u32),
    Plea { model: usize, n: u32, band: i32, age: Duration, number: u64 },
    Cede { n: u32, relay: usize },
    Goaway,
    Empty,
    Close,
}

#[derive(Clone, Copy, Debug)]
pub enum Event {
    Dial { worker: usize, process: u32, relay: usize },
    AtRelay { link: LinkIx, message: ToRelay },
    AtWorker { link: LinkIx, message: ToWorker },
    JobStarts { worker: usize, attempt: u64 },
    JobEnds { worker: usize, attempt: u64, plan: u64 },
    RelayTimer { relay: usize },
    WorkerTimer { worker: usize },
    RelaySilent { link: LinkIx },
    WorkerSilent { link: LinkIx },
    Arrival { stream: usize },
    StopsAdmitting { relay: usize },
    Restart { worker: usize },
    Fault,
}

/// How requests ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    pub answered: u64,
    pub rejected: u64,
    pub left: u64,
    pub crashed: u64,
}

/// Messages that exist only because slots are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    pub wants: u64,
    pub withdrawals: u64,
    pub recalls: u64,
    pub returns: u64,
    pub grants: u64,
    pub reports: u64,
    pub pleas: u64,
    pub cedes: u64,
}

impl Messages {
    pub fn add(&mut self, other: &Self) {
        self.wants += other.wants;
        self.withdrawals += other.withdrawals;
        self.recalls += other.recalls;
        self.returns += other.returns;
        self.grants += other.grants;
        self.reports += other.reports;
        self.pleas += other.pleas;
        self.cedes += other.cedes;
    }

    pub fn total(&self) -> u64 {
        let Self { wants, withdrawals, recalls, returns, grants, reports, pleas, cedes } = *self;
        wants + withdrawals + recalls + returns + grants + reports + pleas + cedes
    }
}

/// One dispatch.
#[derive(Clone, Copy, Debug)]
pub struct Dispatched {
    pub at: Time,
    pub arrived: Time,
    pub relay: usize,
    pub attempt: u64,
}

/// A source of requests: one client after another at random times.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Mean time between two; 0 stops it.
    pub every: Time,
    /// In proportion to these the relays get them.
    pub weights: Vec<u64>,
    pub band: i32,
    pub until: Time,
}

pub struct World {
    pub setup: Setup,
    pub random: Random,
    pub now: Time,
    origin: Instant,
    pub agenda: Agenda<Event>,
    pub relays: Vec<Relay>,
    pub workers: Vec<Worker>,
    pub links: Vec<Link>,
    pub requests: HashMap<RequestKey, Request>,
    /// Those that wait, by relay and model, by the time since when.
    pub queues: BTreeMap<(usize, usize), BTreeSet<(Time, RequestKey)>>,
    pub streams: Vec<Stream>,
    pub ends: Ends,
    pub messages: Messages,
    pub meetings: Meetings,
    pub dispatched: Vec<Dispatched>,
    /// When each attempt began and ended at its worker, while pairs are watched.
    pub spans: BTreeMap<u64, (Time, Time)>,
    pub faults: super::faults::Faults,
    pub next_request: u64,
    pub next_attempt: u64,
    next_plan: u64,
    models: Vec<Arc<str>>,
    pub steps: u64,
    /// The longest time that a request waited while a slot was idle for it.
    pub longest_wait: Time,
    /// Those that waited longer than two round trips.
    pub beside_idle: BTreeSet<RequestKey>,
}

#[allow(clippy::wrong_self_convention, reason = "messages to a relay and to a worker")]
impl World {
    #[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
    pub fn new(setup: Setup) -> Self {
        let mut world = Self {
            random: Random(setup.seed),
            now: 0,
            origin: Instant::now(),
            agenda: Agenda::new(),
            relays: Vec::new(),
            workers: Vec::new(),
            links: Vec::new(),
            requests: HashMap::new(),
            queues: BTreeMap::new(),
            streams: Vec::new(),
            ends: Ends::default(),
            messages: Messages::default(),
            meetings: Meetings::default(),
            dispatched: Vec::new(),
            spans: BTreeMap::new(),
            faults: super::faults::Faults::default(),
            next_request: 0,
            next_attempt: 0,
            next_plan: 0,
            models: (0..setup.models).map(|model| format!("m{model}").into()).collect(),
            steps: 0,
            longest_wait: 0,
            beside_idle: BTreeSet::new(),
            setup,
        };
        for worker in 0..world.setup.workers {
            let (low, high) = world.setup.slots;
            let slots = u32::try_from(world.random.between(low.into(), high.into())).expect("it was a u32");
            let only = world.random.index(world.setup.models);
            // One at least serves everything.
            let all = worker == 0 || world.random.chance(50);
            let models = (0..world.setup.models).filter(|&model| all || model == only).collect();
            world.workers.push(Worker::new(slots, models));
            world.note_idle(world.workers.len() - 1);
        }
        world
    }

    pub fn instant(&self) -> Instant {
        self.origin + Duration::from_nanos(self.now)
    }

    pub fn time_of(&self, instant: Instant) -> Time {
        let since = instant.saturating_duration_since(self.origin);
        u64::try_from(since.as_nanos()).unwrap_or(Time::MAX)
    }

    pub fn model_number(&self, name: &str) -> usize {
        self.models.iter().position(|model| &**model == name).expect("models have known names")
    }

    pub fn model_name(&self, model: usize) -> Arc<str> {
        self.models[model].clone()
    }

    /// Starts a relay; all workers dial it within `spread`.
    pub fn add_relay(&mut self, spread: Time) -> usize {
        let mut scheduler = Scheduler::new(self.setup.config.clone());
        let unix_time = Duration::from_secs(1_000_000) + Duration::from_nanos(self.now);
        scheduler.set_replica(Replica { seed: self.random.next(), at: self.instant(), unix_time });
        let relay = self.relays.len();
        self.relays.push(Relay {
            scheduler,
            phase: Phase::Up,
            admits: true,
            sessions: BTreeMap::new(),
            next_worker: 0,
            timer: None,
            empty: false,
        });
        for worker in 0..self.workers.len() {
            self.dial_within(worker, relay, spread);
        }
        relay
    }

    pub fn dial_within(&mut self, worker: usize, relay: usize, spread: Time) {
        let process = self.workers[worker].process;
        let at = self.now + self.random.between(0, spread);
        self.agenda.add(at, Event::Dial { worker, process, relay });
    }

    pub fn add_stream(&mut self, stream: Stream) {
        let at = self.now + self.random.spread_around(stream.every);
        self.streams.push(stream);
        self.agenda.add(at, Event::Arrival { stream: self.streams.len() - 1 });
    }

    pub fn run_until(&mut self, end: Time) {
        while let Some((at, event)) = self.agenda.next_before(end) {
            self.now = at;
            self.steps += 1;
            self.take(event);
            self.check_step();
        }
        self.now = end;
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Dial { worker, process, relay } => self.dial(worker, process, relay),
            Event::AtRelay { link, message } => self.at_relay(link, message),
            Event::AtWorker { link, message } => self.at_worker(link, message),
            Event::JobStarts { worker, attempt } => self.job_starts(worker, attempt),
            Event::JobEnds { worker, attempt, plan } => self.job_ends(worker, attempt, plan),
            Event::RelayTimer { relay } => self.relay_timer(relay),
            Event::WorkerTimer { worker } => self.worker_timer(worker),
            Event::RelaySilent { link } => self.end_at_relay(link),
            Event::WorkerSilent { link } => self.end_at_worker(link),
            Event::Arrival { stream } => self.arrival(stream),
            Event::StopsAdmitting { relay } => {
                self.relays[relay].admits = false;
                self.relay_may_go(relay);
            }
            Event::Restart { worker } => self.restart(worker),
            Event::Fault => self.fault(),
        }
    }

    /// One who dials reaches a relay that is up; others are tried again.
    fn dial(&mut self, worker: usize, process: u32, relay: usize) {
        let this = &self.workers[worker];
        if this.process != process || this.phase != Phase::Up || self.relays[relay].phase != Phase::Up {
            return;
        }
        let (low, high) = self.setup.latency;
        let latency = self.random.between(low, high);
        let link = self.links.len();
        self.links.push(Link {
            relay,
            worker,
            process,
            key: SessionKey(link as u64),
            id: WorkerId(0),
            latency,
            at_relay: false,
            at_worker: false,
            stalled_until: 0,
            last: [0; 2],
            sent: BTreeMap::new(),
            leave_when_idle: false,
            up_since: Time::MAX,
            arriving: 0,
            lent_again: 0,
            idle_since: Some(0),
        });
        // The handshake has taken a round trip.
        self.now += 2 * latency;
        self.to_relay(link, ToRelay::Register);
        self.now -= 2 * latency;
    }

    pub fn to_relay(&mut self, link: LinkIx, message: ToRelay) {
        match &message {
            ToRelay::Grant(_) => self.messages.grants += 1,
            ToRelay::Recall(_) => self.messages.recalls += 1,
            ToRelay::Load { .. } => self.messages.reports += 1,
            ToRelay::Plea { .. } => self.messages.pleas += 1,
            ToRelay::Register
            | ToRelay::Started { .. }
            | ToRelay::Done { .. }
            | ToRelay::Draining
            | ToRelay::Close => {}
        }
        if let Some(at) = self.arrives(link, 0) {
            self.agenda.add(at, Event::AtRelay { link, message });
        }
    }

    pub fn to_worker(&mut self, link: LinkIx, message: ToWorker) {
        match &message {
            ToWorker::Want(want) if want.n == 0 => self.messages.withdrawals += 1,
            ToWorker::Want(_) => self.messages.wants += 1,
            ToWorker::Return(_) => self.messages.returns += 1,
            ToWorker::Plea { .. } => self.messages.pleas += 1,
            ToWorker::Cede { .. } => self.messages.cedes += 1,
            ToWorker::Ack
            | ToWorker::Request { .. }
            | ToWorker::Cancel { .. }
            | ToWorker::Goaway
            | ToWorker::Empty
            | ToWorker::Close => {}
        }
        if let Some(at) = self.arrives(link, 1) {
            self.agenda.add(at, Event::AtWorker { link, message });
        }
    }

    /// When a message arrives that is sent now: in order, later while the link is stalled, or never.
    fn arrives(&mut self, link: LinkIx, direction: usize) -> Option<Time> {
        let jitter = self.random.between(0, self.setup.jitter);
        let link = &mut self.links[link];
        if link.stalled_until == Time::MAX {
            return None;
        }
        let at = self.now.max(link.stalled_until) + link.latency + jitter;
        let at = at.max(link.last[direction]);
        link.last[direction] = at;
        Some(at)
    }

    pub fn plan(&mut self) -> u64 {
        self.next_plan += 1;
        self.next_plan
    }

    pub fn set_relay_timer(&mut self, relay: usize) {
        let due = self.relays[relay].scheduler.poll_timeout().map(|due| self.time_of(due));
        let this = &mut self.relays[relay];
        if let Some(due) = due
            && this.timer.is_none_or(|timer| due < timer)
        {
            this.timer = Some(due);
            self.agenda.add(due.max(self.now), Event::RelayTimer { relay });
        }
    }

    pub fn set_worker_timer(&mut self, worker: usize) {
        let due = self.workers[worker].arbiter.poll_timeout().map(|due| self.time_of(due));
        let this = &mut self.workers[worker];
        if let Some(due) = due
            && this.timer.is_none_or(|timer| due < timer)
        {
            this.timer = Some(due);
            self.agenda.add(due.max(self.now), Event::WorkerTimer { worker });
        }
    }

    fn relay_timer(&mut self, relay: usize) {
        let now = self.instant();
        let this = &mut self.relays[relay];
        this.timer = None;
        if this.phase != Phase::Down {
            this.scheduler.handle_timeout(now);
            self.perform(relay);
        }
    }

    fn worker_timer(&mut self, worker: usize) {
        self.workers[worker].timer = None;
        if self.workers[worker].phase != Phase::Down {
            let now = self.instant();
            let actions = self.workers[worker].arbiter.handle_timeout(now);
            self.perform_slots(worker, actions);
            self.worker_may_go(worker);
        }
    }

    pub fn next_worker_id(&mut self, relay: usize) -> WorkerId {
        let this = &mut self.relays[relay];
        this.next_worker += 1;
        WorkerId(this.next_worker)
    }

    pub fn begin_drain(&mut self, worker: usize) {
        self.workers[worker].drain_began = self.now;
    }

    pub fn drained_for(&self, worker: usize) -> Time {
        self.now - self.workers[worker].drain_began
    }
}

impl Worker {
    fn new(slots: u32, models: Vec<usize>) -> Self {
        Self {
            arbiter: Arbiter::new(slots),
            slots,
            models,
            phase: Phase::Up,
            process: 0,
            jobs: BTreeMap::new(),
            links: Vec::new(),
            timer: None,
            drain_began: 0,
            idle_since: None,
            idle: 0,
            disturbed_at: 0,
        }
    }

    /// Another process takes this one's place.
    pub fn start_again(&mut self) {
        let old = Self::new(self.slots, std::mem::take(&mut self.models));
        *self = Self { process: self.process + 1, idle: self.idle, ..old };
    }

    pub fn running(&self) -> u32 {
        u32::try_from(self.jobs.len()).expect("jobs are few")
    }
}
