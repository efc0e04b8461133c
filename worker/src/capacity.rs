//! The worker's slots, shared by the sessions of all its relays: the arbiter behind a lock, and the way its
//! decisions reach the right session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use modelrelay_protocol::frame::ToRelay;
use modelrelay_protocol::slots::{Arbiter, NoCredit, SessionKey, SlotAction};
use tokio::sync::Notify;

use crate::session::outbox::Control;

/// How a session takes part.
#[derive(Clone, Debug)]
pub(crate) enum Member {
    /// Slots are lent by `grant` and taken back by `recall`.
    Credits(Control),
    /// A relay without credits has a fixed part. What it is lent beyond that is taken back without asking it.
    Fixed { part: u32 },
}

#[derive(Debug)]
struct Account {
    member: Member,
    lent: u32,
    running: u32,
}

#[derive(Debug)]
struct Inner {
    arbiter: Arbiter,
    accounts: BTreeMap<SessionKey, Account>,
    next: u64,
    uncounted: u32,
}

/// The slots of one worker.
#[derive(Debug)]
pub(crate) struct Capacity {
    inner: Mutex<Inner>,
    slots: u32,
    /// Told whenever a request ends or a credit comes back.
    pub(crate) changed: Notify,
}

impl Capacity {
    /// Starts with all slots idle.
    pub(crate) fn new(slots: u32) -> Self {
        let inner = Inner { arbiter: Arbiter::new(slots), accounts: BTreeMap::new(), next: 0, uncounted: 0 };
        Self { inner: Mutex::new(inner), slots, changed: Notify::new() }
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

    /// Returns how many credits a relay could still spend.
    pub(crate) fn spendable(&self) -> u32 {
        let inner = self.lock();
        let asked = inner.accounts.values().filter(|account| matches!(account.member, Member::Credits(_)));
        asked.map(|account| account.lent).sum()
    }

    /// Says whether a relay without credits is connected.
    pub(crate) fn has_fixed(&self) -> bool {
        self.lock().accounts.values().any(|account| matches!(account.member, Member::Fixed { .. }))
    }

    /// A session began.
    pub(crate) fn join(&self, member: Member) -> SessionKey {
        let mut inner = self.lock();
        let key = SessionKey(inner.next);
        inner.next += 1;
        inner.accounts.insert(key, Account { member, lent: 0, running: 0 });
        let actions = inner.arbiter.joined(key);
        inner.perform(actions);
        key
    }

    /// A session ended and its jobs were told to stop; their slots are free when they have.
    pub(crate) fn leave(&self, key: SessionKey) {
        let mut inner = self.lock();
        inner.accounts.remove(&key);
        let actions = inner.arbiter.left(key);
        inner.perform(actions);
        self.changed.notify_waiters();
    }

    /// A relay returned credits.
    pub(crate) fn returned(&self, key: SessionKey, n: u32) {
        let mut inner = self.lock();
        inner.take_back(key, n);
        self.changed.notify_waiters();
    }

    /// Lends nothing more and takes idle credits back.
    pub(crate) fn withdraw(&self) {
        let mut inner = self.lock();
        let actions = inner.arbiter.withdraw();
        inner.perform(actions);
        self.changed.notify_waiters();
    }

    /// A request spends a credit.
    ///
    /// # Errors
    /// The relay has none.
    pub(crate) fn start(self: &Arc<Self>, key: SessionKey) -> Result<Ticket, NoCredit> {
        let mut inner = self.lock();
        inner.arbiter.started(key)?;
        if let Some(account) = inner.accounts.get_mut(&key) {
            account.lent = account.lent.saturating_sub(1);
            account.running += 1;
        }
        Ok(Ticket { capacity: Arc::clone(self), key: Some(key), open: true })
    }

    /// A request of a relay without credits, which may cross a change of its part and is never refused for that.
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
            let (regrant, actions) = inner.arbiter.finished(key);
            if let Some(account) = inner.accounts.get_mut(&key) {
                account.running = account.running.saturating_sub(1);
                account.lent += u32::from(regrant);
            }
            inner.perform(actions);
            regrant
        } else {
            inner.uncounted -= 1;
            false
        };
        drop(inner);
        self.changed.notify_waiters();
        regrant
    }

    /// A panic under the lock poisons nothing: each change below is complete before anything could panic.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Passes decisions on. Sending under the lock keeps them in the order in which they were made; it never waits.
    fn perform(&mut self, actions: Vec<SlotAction>) {
        let mut given_back = Vec::new();
        for action in actions {
            match action {
                SlotAction::Grant { session, n } => {
                    if let Some(account) = self.accounts.get_mut(&session) {
                        account.lent += n;
                        if let Member::Credits(control) = &account.member {
                            control.send(&ToRelay::Grant { n });
                        }
                    }
                }
                SlotAction::Recall { session, n } => {
                    if let Some(account) = self.accounts.get_mut(&session) {
                        match &account.member {
                            Member::Credits(control) => control.send(&ToRelay::Recall { n }),
                            Member::Fixed { part } => {
                                let usable = part.saturating_sub(account.running);
                                given_back.push((session, n.min(account.lent.saturating_sub(usable))));
                            }
                        }
                    }
                }
            }
        }
        for (session, n) in given_back {
            // A fixed part that keeps its credits must not be asked again at once.
            if n > 0 {
                self.take_back(session, n);
            }
        }
    }

    fn take_back(&mut self, key: SessionKey, n: u32) {
        let Some(account) = self.accounts.get_mut(&key) else { return };
        let n = n.min(account.lent);
        account.lent -= n;
        let actions = self.arbiter.returned(key, n);
        self.perform(actions);
    }
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
