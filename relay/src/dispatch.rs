//! Owns the scheduler and performs what it decides.
//!
//! The scheduler is a value behind one lock. Whoever brings an event (a client's task, a session, the timer) handles it
//! and performs the actions while holding the lock, so that they happen in the order in which they were decided: a
//! cancel cannot overtake its dispatch. Performing never waits: work is put into a session's outbox, a client's pipe is
//! ended. There is no task in between, so that a request costs no wake-up that its bytes do not need.
//!
//! Locks nest in one order: dispatcher, session, pipe. Response bytes never come here; only a response's first byte
//! and its end do.

mod running;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use modelrelay_protocol::frame::{CancelReason, ToWorker};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::running::RunLimits;
use self::running::{Assigned, Running};
pub use self::work::{BodyBudget, BodyPermit, Work};
use crate::http::error::RelayError;
use crate::metrics::{Cancelled, Metrics, Origin};
use crate::scheduler::{
    Action, CancelReason as Cause, Event, RefusalCause, Reject, Replica, RequestKey, Scheduler,
    SchedulerConfig, Submission, WorkerId, WorkerInfo,
};
use crate::session::pipe::{Attempt, Pipe};
use crate::session::{Close, Session};

/// How often time limits of running requests are checked.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Requests for which there is room at all times.
const KEPT_CAPACITY: usize = 256;

struct Inner {
    scheduler: Scheduler,
    requests: HashMap<RequestKey, Running>,
    sessions: BTreeMap<WorkerId, Arc<Session>>,
    limits: RunLimits,
    next_request: u64,
    next_worker: u64,
    timer_at: Option<std::time::Instant>,
}

/// See the module.
pub struct Dispatcher {
    inner: Mutex<Inner>,
    timer: Notify,
    became_idle: Notify,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").finish_non_exhaustive()
    }
}

/// A request that is about to be submitted.
#[derive(Debug)]
pub struct Submit {
    /// What the scheduler needs; its `request` is set on submission.
    pub submission: Submission,
    /// What a worker needs.
    pub work: Work,
    /// The client's id or ours, for the admin API.
    pub request_id: Arc<str>,
    /// Name of the tenant, for the admin API.
    pub tenant: Arc<str>,
    /// Name of the priority, for gauges.
    pub priority: Arc<str>,
    /// Model as the client named it.
    pub model: Arc<str>,
}

/// A credential's workers are all here: as many as it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany(pub u32);

/// One running or waiting request as the admin API shows it.
#[derive(Debug, serde::Serialize)]
pub struct RequestView {
    /// The client's or our own id.
    pub request_id: Arc<str>,
    /// Model as the client named it.
    pub model: Arc<str>,
    /// Name of the tenant.
    pub tenant: Arc<str>,
    /// `queued`, `dispatched` or `streaming`.
    pub state: &'static str,
    /// Milliseconds since it was admitted.
    pub age_ms: u64,
    /// Name of the worker that runs it.
    pub worker: Option<String>,
}

/// Where a request is, for gauges. One that waits for any of several models is in several places.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The model whose queue it stands in, or as which it runs.
    pub model: &'a str,
    /// Name of its priority.
    pub priority: &'a str,
    /// Bytes of its body.
    pub bytes: u64,
    /// Whether a worker has it.
    pub is_running: bool,
}

/// The client's hold on its request: dropping it before the response has ended cancels the request.
#[derive(Debug)]
pub struct Ticket {
    dispatcher: Arc<Dispatcher>,
    /// The request.
    pub key: RequestKey,
    /// Where its response arrives.
    pub pipe: Arc<Pipe>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.pipe.has_ended() {
            self.dispatcher.client_gone(self.key);
        }
    }
}

impl Dispatcher {
    /// Starts with no worker and no request.
    pub fn new(config: SchedulerConfig, limits: RunLimits, metrics: Arc<Metrics>) -> Arc<Self> {
        let mut scheduler = Scheduler::new(config);
        scheduler.set_replica(replica());
        Arc::new(Self {
            inner: Mutex::new(Inner {
                scheduler,
                requests: HashMap::new(),
                sessions: BTreeMap::new(),
                limits,
                next_request: 0,
                next_worker: 0,
                timer_at: None,
            }),
            timer: Notify::new(),
            became_idle: Notify::new(),
            metrics,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds this lock")
    }

    /// Puts new settings in force.
    pub fn reconfigure(&self, config: SchedulerConfig, limits: RunLimits) {
        let mut inner = self.lock();
        inner.limits = limits;
        inner.scheduler.reconfigure(config, now());
        self.perform(&mut inner);
    }

    /// Hands a request in. The answer, or the error that is the answer, comes through the ticket's pipe.
    pub fn submit(self: &Arc<Self>, submit: Submit) -> Ticket {
        let pipe = Pipe::new();
        let Submit { mut submission, work, request_id, tenant, priority, model } = submit;
        let mut inner = self.lock();
        inner.next_request += 1;
        let key = RequestKey(inner.next_request);
        submission.request = key;
        let running = Running {
            pipe: pipe.clone(),
            work: Some(Arc::new(work)),
            request_id,
            model,
            tenant,
            priority,
            last_error: None,
            deadline: submission.deadline.map(Instant::from_std),
            submitted: Instant::now(),
            assigned: None,
        };
        inner.requests.insert(key, running);
        self.handle(&mut inner, Event::Submitted(submission));
        drop(inner);
        Ticket { dispatcher: self.clone(), key, pipe }
    }

    /// The client left.
    fn client_gone(&self, request: RequestKey) {
        let mut inner = self.lock();
        self.end_early(&mut inner, request, &CancelReason::ClientDisconnect);
    }

    /// Returns the id of the next session.
    pub fn next_worker_id(&self) -> WorkerId {
        let mut inner = self.lock();
        inner.next_worker += 1;
        WorkerId(inner.next_worker)
    }

    /// A worker registered. An older session of the same worker process under the same credential is closed.
    ///
    /// # Errors
    /// As many workers as the credential allows are connected.
    pub fn join(&self, session: &Arc<Session>, info: WorkerInfo) -> Result<(), TooMany> {
        let mut inner = self.lock();
        if let Some(most) = session.credential.max_workers {
            let counts = |other: &&Arc<Session>| {
                other.credential.is_same(&session.credential) && !session.replaces(other)
            };
            if inner.sessions.values().filter(counts).count() >= most as usize {
                return Err(TooMany(most));
            }
        }
        let replaced: Vec<Arc<Session>> =
            inner.sessions.values().filter(|other| session.replaces(other)).cloned().collect();
        for old in replaced {
            old.close(Close::Replaced);
            self.lose(&mut inner, old.id);
        }
        inner.sessions.insert(session.id, session.clone());
        self.handle(&mut inner, Event::Joined { worker: session.id, info });
        Ok(())
    }

    /// Something changed at a worker that is connected.
    pub fn worker_event(&self, event: Event) {
        let mut inner = self.lock();
        self.handle(&mut inner, event);
    }

    /// A session ended.
    pub fn leave(&self, worker: WorkerId) {
        self.lose(&mut self.lock(), worker);
    }

    fn lose(&self, inner: &mut Inner, worker: WorkerId) {
        let Some(session) = inner.sessions.remove(&worker) else { return };
        session.abandon_cancels();
        let mut leaving = Vec::new();
        for (key, running) in inner.requests.iter_mut().filter(|(_, running)| running.is_at(worker)) {
            if running.work.is_some() {
                // It moves or waits: from here on no clock of that worker runs.
                running.assigned = None;
                leaving.push(*key);
            }
        }
        self.handle(inner, Event::Lost { worker });
        for request in leaving {
            self.count_requeue(inner, request, "worker_lost");
        }
    }

    /// Takes unspent credits back; returns how many.
    pub fn recall(&self, worker: WorkerId, n: u32) -> u32 {
        self.lock().scheduler.recall(worker, n)
    }

    /// The first byte of the response is here. Returns false when the request is not this worker's any more.
    pub fn started(&self, worker: WorkerId, request: RequestKey) -> bool {
        let mut inner = self.lock();
        let Some(running) = inner.requests.get_mut(&request).filter(|running| running.is_at(worker)) else {
            return false;
        };
        running.work = None;
        self.handle(&mut inner, Event::ResponseStarted { request });
        true
    }

    /// The response is whole, or has failed for good. Returns false when the request is not this worker's any more.
    pub fn ended(&self, worker: WorkerId, request: RequestKey, regrant: bool) -> bool {
        let mut inner = self.lock();
        let ours = inner.requests.get(&request).is_some_and(|running| running.is_at(worker));
        if ours {
            self.handle(&mut inner, Event::Finished { request });
            self.remove(&mut inner, request);
        }
        if regrant {
            self.handle(&mut inner, Event::Granted { worker, credits: 1 });
        }
        ours
    }

    /// The worker could not answer, for a cause that may be another elsewhere, before the first byte. The request moves
    /// or ends with `error`. Returns false when the request is not this worker's any more.
    pub fn refused(
        &self,
        worker: WorkerId,
        request: RequestKey,
        cause: RefusalCause,
        error: RelayError,
        regrant: bool,
    ) -> bool {
        let mut inner = self.lock();
        let ours = inner.requests.get(&request).is_some_and(|running| running.is_at(worker));
        if ours {
            let running = inner.requests.get_mut(&request).expect("it was there above");
            running.assigned = None;
            // A backend that refuses answers fastest, and must not draw all traffic until its worker has noticed.
            let penalise = cause == RefusalCause::BackendRefused;
            running.last_error = Some(error);
            self.handle(&mut inner, Event::Refused { request, cause, penalise });
            self.count_requeue(&inner, request, cause.as_str());
        }
        if regrant {
            self.handle(&mut inner, Event::Granted { worker, credits: 1 });
        }
        ours
    }

    /// A request that left its worker counts unless that was its end.
    fn count_requeue(&self, inner: &Inner, request: RequestKey, reason: &str) {
        if let Some(running) = inner.requests.get(&request) {
            self.metrics.requeued(&running.model, reason);
        }
    }

    /// Says whether another worker could take the request now.
    pub fn can_move(&self, worker: WorkerId, request: RequestKey) -> bool {
        let inner = self.lock();
        inner.requests.get(&request).is_some_and(|running| running.is_at(worker))
            && inner.scheduler.can_move(request)
    }

    /// Ends every request that still waits, at the end of a drain.
    pub fn reject_queued(&self) {
        let mut inner = self.lock();
        inner.scheduler.reject_queued(Reject::Draining);
        self.perform(&mut inner);
    }

    /// Breaks every request off that still runs, at the end of a drain.
    pub fn break_running(&self) {
        let mut inner = self.lock();
        let keys: Vec<RequestKey> = inner.requests.keys().copied().collect();
        for request in keys {
            self.expire(&mut inner, request, &CancelReason::ServerShutdown, RelayError::Draining);
        }
    }

    /// Says whether no request waits or runs.
    pub fn is_idle(&self) -> bool {
        self.lock().requests.is_empty()
    }

    /// Waits until no request waits for a worker.
    pub async fn queue_empty(&self) {
        // Looked at now and then: this is asked once, while the relay drains.
        while self.with_scheduler(|scheduler| scheduler.counts().waiting) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until no request waits or runs.
    pub async fn idle(&self) {
        loop {
            let notified = self.became_idle.notified();
            if self.is_idle() {
                return;
            }
            notified.await;
        }
    }

    /// Runs `read` on the scheduler, for views and gauges.
    pub fn with_scheduler<T>(&self, read: impl FnOnce(&Scheduler) -> T) -> T {
        read(&self.lock().scheduler)
    }

    /// Returns the open sessions.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.values().cloned().collect()
    }

    /// Shows each place where a request waits or runs.
    pub fn each_request(&self, mut show: impl FnMut(Place<'_>)) {
        let inner = self.lock();
        for (key, running) in &inner.requests {
            let Some((bytes, is_running, models)) = inner.scheduler.places(*key) else { continue };
            for model in models {
                show(Place { model, priority: &running.priority, bytes, is_running });
            }
        }
    }

    /// Returns all requests that wait or run, oldest first.
    pub fn requests(&self) -> Vec<RequestView> {
        let inner = self.lock();
        let mut all: Vec<(&RequestKey, &Running)> = inner.requests.iter().collect();
        all.sort_by_key(|(key, _)| **key);
        all.into_iter()
            .map(|(_, running)| RequestView {
                request_id: running.request_id.clone(),
                model: running.model.clone(),
                tenant: running.tenant.clone(),
                state: match (&running.assigned, &running.work) {
                    (None, _) => "queued",
                    (Some(_), Some(_)) => "dispatched",
                    (Some(_), None) => "streaming",
                },
                age_ms: running.submitted.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
                worker: running
                    .assigned
                    .as_ref()
                    .and_then(|assigned| inner.sessions.get(&assigned.worker))
                    .map(|session| session.name.to_string()),
            })
            .collect()
    }

    /// Keeps the scheduler's clock and the limits of running requests until `stop`.
    pub async fn run_timers(&self, stop: CancellationToken) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = self.arm();
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.timer.notified() => {}
                () = timer => {
                    let mut inner = self.lock();
                    inner.scheduler.handle_timeout(now());
                    self.perform(&mut inner);
                }
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    fn arm(&self) -> Option<Instant> {
        let mut inner = self.lock();
        inner.timer_at = inner.scheduler.poll_timeout();
        inner.timer_at.map(Instant::from_std)
    }

    /// Ends requests whose time is over.
    fn sweep(&self) {
        let mut inner = self.lock();
        let now = Instant::now();
        let limits = inner.limits;
        let over: Vec<(RequestKey, RelayError)> = inner
            .requests
            .iter()
            .filter_map(|(key, running)| running.over(now, limits).map(|error| (*key, error)))
            .collect();
        // What a burst needed is given back.
        if inner.requests.len() < inner.requests.capacity() / 8 {
            inner.requests.shrink_to(KEPT_CAPACITY);
        }
        for (request, error) in over {
            self.expire(&mut inner, request, &CancelReason::Timeout, error);
        }
    }

    fn expire(&self, inner: &mut Inner, request: RequestKey, reason: &CancelReason, error: RelayError) {
        if let Some(running) = inner.requests.get(&request) {
            running.pipe.fail(error);
            self.end_early(inner, request, reason);
        }
    }

    /// Nobody waits for the answer any more. What comes of a cancel that goes to a worker, its session counts.
    fn end_early(&self, inner: &mut Inner, request: RequestKey, reason: &CancelReason) {
        let Some(running) = inner.requests.get(&request) else { return };
        if running.assigned.is_none() {
            self.metrics.cancelled(&running.model, Origin::of(reason), Cancelled::Queued);
        }
        self.handle_with(inner, Event::ClientGone { request }, reason);
        self.remove(inner, request);
    }

    fn remove(&self, inner: &mut Inner, request: RequestKey) {
        inner.requests.remove(&request);
        if inner.requests.is_empty() {
            self.became_idle.notify_waiters();
        }
    }

    fn handle(&self, inner: &mut Inner, event: Event) {
        self.handle_with(inner, event, &CancelReason::ClientDisconnect);
    }

    fn handle_with(&self, inner: &mut Inner, event: Event, reason: &CancelReason) {
        inner.scheduler.handle(event, now());
        self.perform_with(inner, reason);
    }

    fn perform(&self, inner: &mut Inner) {
        self.perform_with(inner, &CancelReason::ClientDisconnect);
    }

    fn perform_with(&self, inner: &mut Inner, reason: &CancelReason) {
        while let Some(action) = inner.scheduler.poll_action() {
            match action {
                Action::Dispatch { request, worker, target } => dispatch(inner, request, worker, target),
                Action::Cancel { request, worker, reason: cause } => {
                    if let Some(session) = inner.sessions.get(&worker)
                        && let Some(running) = inner.requests.get(&request)
                        && let Some(assigned) = &running.assigned
                        && assigned.worker == worker
                    {
                        let reason = match cause {
                            Cause::ClientGone => reason.clone(),
                            Cause::DeadlineExceeded => CancelReason::Timeout,
                        };
                        session.cancel(assigned.stream, reason);
                    }
                }
                Action::Want { worker, n, band, age, received } => {
                    if let Some(session) = inner.sessions.get(&worker) {
                        let age_ms = age.as_millis().try_into().unwrap_or(u64::MAX);
                        session.send(ToWorker::Want { n, band, age_ms, received });
                    }
                }
                Action::Plea { worker, model, n, band, age, number } => {
                    if let Some(session) = inner.sessions.get(&worker) {
                        let age_ms = age.as_millis().try_into().unwrap_or(u64::MAX);
                        session.send(ToWorker::Plea { model: model.to_string(), n, band, age_ms, number });
                    }
                }
                Action::Cede { worker, n, relay } => {
                    if let Some(session) = inner.sessions.get(&worker) {
                        session.cede(n, &relay);
                    }
                }
                Action::Reject { request, reason } => {
                    if let Some(running) = inner.requests.get_mut(&request) {
                        let is_text = running.work.as_ref().is_some_and(|work| work.is_text);
                        let error = match (running.last_error.take(), reason) {
                            (Some(error), Reject::Refused(_)) => error,
                            // Text is refused only for its size.
                            (_, Reject::Unsupported) if is_text => RelayError::RequestTooLarge,
                            _ => RelayError::from_reject(reason, &running.model),
                        };
                        running.pipe.fail(error);
                    }
                    self.remove(inner, request);
                }
            }
        }
        if inner.scheduler.poll_timeout() < inner.timer_at || inner.timer_at.is_none() {
            let due = inner.scheduler.poll_timeout();
            if due.is_some() && due != inner.timer_at {
                self.timer.notify_one();
            }
        }
    }
}

fn dispatch(inner: &mut Inner, request: RequestKey, worker: WorkerId, target: usize) {
    let (Some(running), Some(session)) = (inner.requests.get_mut(&request), inner.sessions.get(&worker))
    else {
        return;
    };
    let Some(work) = running.work.clone() else { return };
    let since = Instant::now();
    running.pipe.attempt(Attempt { worker: session.name.clone(), dispatched: since });
    let stream = session.dispatch(request, work, target, running.pipe.clone());
    running.assigned = Some(Assigned { worker, stream, since });
}

#[allow(clippy::disallowed_methods, reason = "replicas agree on whom to ask by the time of day")]
fn replica() -> Replica {
    let unix_time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Replica { seed: rand::random(), at: now(), unix_time }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
