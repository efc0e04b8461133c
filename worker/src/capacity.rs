//! The worker's slots, shared by the sessions of all its relays: the arbiter behind a lock, and the way its
//! decisions reach the right session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use modelrelay_protocol::frame::{LoadReport, ToRelay};
use modelrelay_protocol::slots::{
    Arbiter, Lending, NoCredit, NotLent, NotRecalled, SessionKey, Shared, SlotAction, Terms, Want,
};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::health::BackendState;
use crate::session::outbox::Control;

/// How a session takes part.
#[derive(Clone, Debug)]
pub(crate) enum Member {
    /// Slots are lent by `grant` and taken back by `recall`.
    Credits(Borrower),
    /// A relay without credits has a fixed part.
    Fixed { part: u32 },
}

/// What a relay lacks.
#[derive(Debug)]
pub(crate) struct Plea {
    pub(crate) model: String,
    pub(crate) n: u32,
    pub(crate) band: i32,
    pub(crate) age_ms: u64,
    pub(crate) number: u64,
}

/// A relay that is lent slots.
#[derive(Clone, Debug)]
pub(crate) struct Borrower {
    pub(crate) control: Control,
    /// What the relay is called; none when it does not take pleas.
    pub(crate) relay: Option<String>,
    /// Slots that it may have at once.
    pub(crate) most: u32,
    /// What load reports say of the backend; none when the relay takes no reports.
    pub(crate) state: Option<watch::Receiver<BackendState>>,
}

#[derive(Debug)]
struct Inner {
    arbiter: Arbiter,
    borrowers: BTreeMap<SessionKey, Borrower>,
    next: u64,
    uncounted: u32,
    /// When the timer is set to.
    armed: Option<std::time::Instant>,
}

/// The slots of one worker.
#[derive(Debug)]
pub(crate) struct Capacity {
    inner: Mutex<Inner>,
    slots: u32,
    /// Told whenever a request ends or a credit comes back.
    pub(crate) changed: Notify,
    timer: Notify,
}

impl Capacity {
    /// Starts with all slots idle.
    pub(crate) fn new(slots: u32) -> Self {
        let arbiter = Arbiter::new(slots);
        let inner = Inner { arbiter, borrowers: BTreeMap::new(), next: 0, uncounted: 0, armed: None };
        Self { inner: Mutex::new(inner), slots, changed: Notify::new(), timer: Notify::new() }
    }

    /// Returns how many slots there are.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// Returns how many requests run, over all relays.
    pub(crate) fn running(&self) -> u32 {
        let inner = self.lock();
        inner.arbiter.running() + inner.uncounted
    }

    /// Returns how many credits relays could still spend.
    pub(crate) fn spendable(&self) -> u32 {
        self.lock().arbiter.spendable()
    }

    /// Says whether a relay without credits is connected.
    pub(crate) fn has_fixed(&self) -> bool {
        self.lock().arbiter.has_fixed()
    }

    /// A session began.
    pub(crate) fn join(&self, member: Member) -> SessionKey {
        let mut inner = self.lock();
        let key = SessionKey(inner.next);
        inner.next += 1;
        let (lending, most, pleas) = match member {
            Member::Credits(borrower) => {
                let (most, pleas) = (borrower.most, borrower.relay.is_some());
                inner.borrowers.insert(key, borrower);
                (Lending::Credits, most, pleas)
            }
            Member::Fixed { part } => (Lending::Fixed { part }, part, false),
        };
        let terms = Terms { lending, most, rank: rand::random(), pleas };
        let actions = inner.arbiter.joined(key, terms, now());
        self.perform(&mut inner, actions);
        key
    }

    /// A session ended and its jobs were told to stop; their slots are free when they have.
    pub(crate) fn leave(&self, key: SessionKey) {
        let mut inner = self.lock();
        inner.borrowers.remove(&key);
        let actions = inner.arbiter.left(key, now());
        self.perform(&mut inner, actions);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// A relay leaves; it keeps no idle slot but may still want some.
    pub(crate) fn leaving(&self, key: SessionKey) {
        let mut inner = self.lock();
        let actions = inner.arbiter.leaving(key, now());
        self.perform(&mut inner, actions);
    }

    /// A relay said what it lacks.
    pub(crate) fn wanted(&self, key: SessionKey, want: Want) {
        let mut inner = self.lock();
        let actions = inner.arbiter.wanted(key, want, now());
        self.perform(&mut inner, actions);
    }

    /// A relay returned credits.
    ///
    /// # Errors
    /// They were not recalled.
    pub(crate) fn returned(&self, key: SessionKey, n: u32) -> Result<(), NotRecalled> {
        let mut inner = self.lock();
        let actions = inner.arbiter.returned(key, n, now())?;
        self.perform(&mut inner, actions);
        drop(inner);
        self.changed.notify_waiters();
        Ok(())
    }

    /// A relay lacks slots: others are told.
    pub(crate) fn pleaded(&self, key: SessionKey, plea: Plea) {
        let mut inner = self.lock();
        let name = inner.borrowers.get(&key).and_then(|borrower| borrower.relay.clone());
        let Some(relay) = name else { return };
        let Plea { model, n, band, age_ms, number } = plea;
        let message = ToRelay::Plea { relay, model, n, band, age_ms, number };
        for hearer in inner.arbiter.hearers(key, n, now()) {
            inner.send(hearer, &message);
        }
    }

    /// A relay gave up credits for another.
    ///
    /// # Errors
    /// It does not have them.
    pub(crate) fn ceded(&self, key: SessionKey, n: u32, relay: &str) -> Result<(), NotLent> {
        let mut inner = self.lock();
        let is_named = |borrower: &Borrower| borrower.relay.as_deref() == Some(relay);
        let to = inner.borrowers.iter().find(|(_, borrower)| is_named(borrower)).map(|(&key, _)| key);
        let actions = inner.arbiter.ceded(key, n, to, now())?;
        self.perform(&mut inner, actions);
        drop(inner);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Lends nothing more and takes idle credits back.
    pub(crate) fn withdraw(&self) {
        let mut inner = self.lock();
        let actions = inner.arbiter.withdraw(now());
        self.perform(&mut inner, actions);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// A request spends a credit.
    ///
    /// # Errors
    /// The relay has none.
    pub(crate) fn start(self: &Arc<Self>, key: SessionKey) -> Result<Ticket, NoCredit> {
        let mut inner = self.lock();
        let actions = inner.arbiter.started(key, now())?;
        self.perform(&mut inner, actions);
        Ok(Ticket { capacity: Arc::clone(self), key: Some(key), open: true })
    }

    /// A request of a relay without credits. It may come before the relay's part is whole, and is never refused for
    /// that.
    pub(crate) fn start_fixed(self: &Arc<Self>, key: SessionKey) -> Ticket {
        if let Ok(ticket) = self.start(key) {
            return ticket;
        }
        self.lock().uncounted += 1;
        Ticket { capacity: Arc::clone(self), key: None, open: true }
    }

    fn finish(&self, key: Option<SessionKey>) -> bool {
        let mut inner = self.lock();
        let regrant = if let Some(key) = key {
            let (regrant, actions) = inner.arbiter.finished(key, now());
            self.perform(&mut inner, actions);
            regrant
        } else {
            inner.uncounted -= 1;
            false
        };
        drop(inner);
        self.changed.notify_waiters();
        regrant
    }

    /// Sends a load report on one session. Under the lock, so that it says what the session was told last.
    pub(crate) fn report(&self, key: SessionKey) {
        let inner = self.lock();
        inner.report(key, inner.arbiter.told(key));
    }

    /// Keeps the arbiter's clock.
    pub(crate) async fn run_timers(&self) {
        loop {
            let due = {
                let mut inner = self.lock();
                inner.armed = inner.arbiter.poll_timeout();
                inner.armed
            };
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.timer.notified() => {}
                () = timer => {
                    let mut inner = self.lock();
                    let actions = inner.arbiter.handle_timeout(now());
                    self.perform(&mut inner, actions);
                }
            }
        }
    }

    /// Passes decisions on. Sending under the lock keeps them in the order in which they were made; it never waits.
    fn perform(&self, inner: &mut Inner, actions: Vec<SlotAction>) {
        for action in actions {
            match action {
                SlotAction::Grant { session, n } => inner.send(session, &ToRelay::Grant { n }),
                SlotAction::Recall { session, n } => inner.send(session, &ToRelay::Recall { n }),
                SlotAction::Report { session, shared } => inner.report(session, shared),
            }
        }
        if let Some(due) = inner.arbiter.poll_timeout()
            && inner.armed.is_none_or(|armed| due < armed)
        {
            self.timer.notify_one();
        }
    }

    /// A panic under the lock poisons nothing: each change below is complete before anything could panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn send(&self, session: SessionKey, message: &ToRelay) {
        if let Some(borrower) = self.borrowers.get(&session) {
            borrower.control.send(message);
        }
    }

    fn report(&self, session: SessionKey, shared: Shared) {
        let state = self.borrowers.get(&session).and_then(|borrower| borrower.state.as_ref());
        if let Some(state) = state {
            let Shared { relays, idle_elsewhere } = shared;
            let names = self.borrowers.values().filter_map(|borrower| borrower.relay.clone());
            let replicas = if relays > 1 { names.collect() } else { Vec::new() };
            let report = LoadReport { relays, replicas, idle_elsewhere, ..state.borrow().report_shown() };
            self.send(session, &ToRelay::Load(report));
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// One request's hold on a slot; given back when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    capacity: Arc<Capacity>,
    key: Option<SessionKey>,
    open: bool,
}

impl Ticket {
    /// Frees the slot, and says whether it is lent to the same relay again.
    pub(crate) fn finish(mut self) -> bool {
        self.open = false;
        self.capacity.finish(self.key)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            self.capacity.finish(self.key);
        }
    }
}
