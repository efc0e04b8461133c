//! Who may use a worker's slots: the arbiter at the worker, a value without IO.
//!
//! The worker owns its slots and is the only arbiter. It lends idle slots to the relays that it is connected to, as
//! credits; a relay spends one for each request. What is lent and what runs never exceeds the slots, so nothing is ever
//! refused for being late.

use std::collections::BTreeMap;

/// Names one session at the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub u64);

/// What the worker must send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotAction {
    /// Send `grant`.
    Grant {
        /// To whom.
        session: SessionKey,
        /// How many.
        n: u32,
    },
    /// Send `recall`; exactly one `return` answers it.
    Recall {
        /// From whom.
        session: SessionKey,
        /// At most how many.
        n: u32,
    },
}

/// A relay sent a request without a credit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the relay has no credit left")]
pub struct NoCredit;

#[derive(Debug, Default)]
struct Account {
    lent: u32,
    running: u32,
    recalling: u32,
    /// The session ended; its running requests still hold their slots until their backend calls are closed.
    gone: bool,
}

/// Lends the slots of one worker.
#[derive(Debug)]
pub struct Arbiter {
    slots: u32,
    accounts: BTreeMap<SessionKey, Account>,
    withdrawn: bool,
}

impl Arbiter {
    /// Starts with all slots idle and nobody to lend them to.
    pub fn new(slots: u32) -> Self {
        Self { slots, accounts: BTreeMap::new(), withdrawn: false }
    }

    /// Returns how many requests run, over all sessions.
    pub fn running(&self) -> u32 {
        self.accounts.values().map(|account| account.running).sum()
    }

    /// Returns how many slots are lent but not in use, over all sessions.
    pub fn lent(&self) -> u32 {
        self.accounts.values().map(|account| account.lent).sum()
    }

    /// A session began. Idle slots are spread evenly over the sessions.
    pub fn joined(&mut self, session: SessionKey) -> Vec<SlotAction> {
        self.accounts.insert(session, Account::default());
        self.spread()
    }

    /// A session ended. Its idle credits are free at once, its running requests' slots when they have finished.
    pub fn left(&mut self, session: SessionKey) -> Vec<SlotAction> {
        if let Some(account) = self.accounts.get_mut(&session) {
            account.lent = 0;
            account.recalling = 0;
            account.gone = true;
            if account.running == 0 {
                self.accounts.remove(&session);
            }
        }
        self.spread()
    }

    /// A request arrived: one credit becomes a running request.
    ///
    /// # Errors
    /// The relay holds no credit.
    pub fn started(&mut self, session: SessionKey) -> Result<(), NoCredit> {
        let account = self.accounts.get_mut(&session).filter(|account| account.lent > 0).ok_or(NoCredit)?;
        account.lent -= 1;
        account.running += 1;
        Ok(())
    }

    /// A request ended. Returns whether its slot is lent to the same relay again, and what else must be sent.
    pub fn finished(&mut self, session: SessionKey) -> (bool, Vec<SlotAction>) {
        let Some(account) = self.accounts.get_mut(&session) else { return (false, Vec::new()) };
        account.running = account.running.saturating_sub(1);
        if account.gone && account.running == 0 {
            self.accounts.remove(&session);
            return (false, self.spread());
        }
        let share = self.share(session);
        let account = self.accounts.get_mut(&session).expect("it was there above");
        if !account.gone && !self.withdrawn && account.lent + account.running < share {
            account.lent += 1;
            return (true, Vec::new());
        }
        (false, self.spread())
    }

    /// A relay answered a recall with `n` credits.
    pub fn returned(&mut self, session: SessionKey, n: u32) -> Vec<SlotAction> {
        if let Some(account) = self.accounts.get_mut(&session) {
            account.lent = account.lent.saturating_sub(n);
            account.recalling = 0;
        }
        self.spread()
    }

    /// The worker drains: lends nothing more and takes idle credits back.
    pub fn withdraw(&mut self) -> Vec<SlotAction> {
        self.withdrawn = true;
        self.spread()
    }

    /// Returns the even part of one session; the first sessions get what is left over.
    fn share(&self, session: SessionKey) -> u32 {
        if self.withdrawn {
            return 0;
        }
        let open = || self.accounts.iter().filter(|(_, account)| !account.gone).map(|(key, _)| *key);
        let count = u32::try_from(open().count()).unwrap_or(u32::MAX).max(1);
        let position = open().position(|key| key == session).unwrap_or(0);
        self.slots / count + u32::from((position as u64) < u64::from(self.slots % count))
    }

    fn spread(&mut self) -> Vec<SlotAction> {
        let mut actions = Vec::new();
        let used: u32 = self.accounts.values().map(|account| account.lent + account.running).sum();
        let mut free = self.slots.saturating_sub(used);
        let keys: Vec<SessionKey> = self.accounts.keys().copied().collect();
        for session in keys {
            let share = self.share(session);
            let account = self.accounts.get_mut(&session).expect("the key was just listed");
            if account.gone {
                continue;
            }
            let held = account.lent + account.running;
            if held < share && free > 0 {
                let n = (share - held).min(free);
                account.lent += n;
                free -= n;
                actions.push(SlotAction::Grant { session, n });
            } else if held > share && account.lent > 0 && account.recalling == 0 {
                let n = (held - share).min(account.lent);
                account.recalling = n;
                actions.push(SlotAction::Recall { session, n });
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionKey = SessionKey(1);
    const B: SessionKey = SessionKey(2);

    #[test]
    fn one_relay_is_lent_every_slot_and_gets_each_back() {
        let mut arbiter = Arbiter::new(4);
        assert_eq!(arbiter.joined(A), [SlotAction::Grant { session: A, n: 4 }]);
        for _ in 0..4 {
            arbiter.started(A).unwrap();
        }
        assert_eq!(arbiter.started(A), Err(NoCredit));
        assert_eq!(arbiter.finished(A), (true, vec![]));
        assert_eq!((arbiter.lent(), arbiter.running()), (1, 3));
    }

    #[test]
    fn a_second_relay_gets_its_part_as_credits_come_back() {
        let mut arbiter = Arbiter::new(2);
        arbiter.joined(A);
        arbiter.started(A).unwrap();
        assert_eq!(arbiter.joined(B), [SlotAction::Recall { session: A, n: 1 }]);
        assert_eq!(arbiter.returned(A, 1), [SlotAction::Grant { session: B, n: 1 }]);
        assert_eq!(arbiter.finished(A), (true, vec![]));
    }

    #[test]
    fn a_lost_session_frees_idle_slots_at_once_and_running_ones_when_closed() {
        let mut arbiter = Arbiter::new(2);
        arbiter.joined(A);
        arbiter.started(A).unwrap();
        assert_eq!(arbiter.left(A), []);
        assert_eq!(arbiter.joined(B), [SlotAction::Grant { session: B, n: 1 }]);
        assert_eq!(arbiter.finished(A), (false, vec![SlotAction::Grant { session: B, n: 1 }]));
        assert_eq!((arbiter.lent(), arbiter.running()), (2, 0));
    }

    #[test]
    fn a_draining_worker_lends_nothing_more() {
        let mut arbiter = Arbiter::new(2);
        arbiter.joined(A);
        arbiter.started(A).unwrap();
        assert_eq!(arbiter.withdraw(), [SlotAction::Recall { session: A, n: 1 }]);
        assert_eq!(arbiter.returned(A, 1), []);
        assert_eq!(arbiter.finished(A), (false, vec![]));
        assert_eq!((arbiter.lent(), arbiter.running()), (0, 0));
    }
}
