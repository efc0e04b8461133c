//! What the worker knows of one session.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::{BELIEF_LIMIT, Lending, NotRecalled, RECALL_LIMIT, RENEWAL_INTERVAL, SessionKey, Shared, Terms};

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Takes part.
    Open,
    /// Its relay leaves: it keeps nothing idle.
    Leaving,
    /// It ended; its running requests still hold their slots until their backend calls are closed.
    Gone,
}

/// A want, with the time from which its request has waited.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) n: u32,
    pub(super) band: i32,
    pub(super) since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Recall {
    n: u32,
    /// When it counts as unanswered; none once it does.
    due: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Account {
    pub(super) terms: Terms,
    pub(super) phase: Phase,
    pub(super) lent: u32,
    /// Credits lent so far.
    pub(super) granted: u64,
    pub(super) running: u32,
    pub(super) claim: Option<Claim>,
    /// Of the credits lent, those that were granted for a want: they are about to be spent.
    pub(super) promised: u32,
    promised_until: Option<Instant>,
    /// Not answered yet, oldest first.
    recalls: VecDeque<Recall>,
    pub(super) told: Shared,
    told_at: Option<Instant>,
    wanted_at: Option<Instant>,
    report_due: Option<Instant>,
    /// When other sessions last heard a plea of its relay.
    pub(super) heard: BTreeMap<SessionKey, Instant>,
}

impl Account {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            phase: Phase::Open,
            lent: 0,
            granted: 0,
            running: 0,
            claim: None,
            promised: 0,
            promised_until: None,
            recalls: VecDeque::new(),
            told: Shared::ALONE,
            told_at: None,
            wanted_at: None,
            report_due: None,
            heard: BTreeMap::new(),
        }
    }

    pub(super) fn by_credits(&self) -> bool {
        matches!(self.terms.lending, Lending::Credits)
    }

    /// Whether its relay hears pleas.
    pub(super) fn pleads(&self) -> bool {
        self.terms.pleas && self.by_credits()
    }

    pub(super) fn is_here(&self) -> bool {
        self.phase != Phase::Gone
    }

    pub(super) fn held(&self) -> u32 {
        self.lent + self.running
    }

    /// How many more slots it may have.
    pub(super) fn room(&self) -> u32 {
        let most = match self.terms.lending {
            Lending::Credits => self.terms.most,
            Lending::Fixed { part } => part,
        };
        if self.is_here() { most.saturating_sub(self.held()) } else { 0 }
    }

    pub(super) fn recalling(&self) -> u32 {
        self.recalls.iter().map(|recall| recall.n).sum::<u32>().min(self.lent)
    }

    /// How many credits are on their way back, as far as can be hoped.
    pub(super) fn expected_back(&self) -> u32 {
        if self.is_silent() { 0 } else { self.recalling() }
    }

    /// Whether it leaves a recall unanswered.
    fn is_silent(&self) -> bool {
        self.recalls.front().is_some_and(|recall| recall.due.is_none())
    }

    /// How many credits lie idle at its relay, those that are being recalled included.
    pub(super) fn idle(&self) -> u32 {
        if self.claim.is_some() || self.is_silent() || !self.by_credits() || !self.is_here() {
            return 0;
        }
        self.lent - self.promised.min(self.lent)
    }

    /// How many idle credits can be recalled.
    pub(super) fn recallable(&self) -> u32 {
        self.idle().saturating_sub(self.recalling())
    }

    /// Notes a recall of `n`; says whether there is anything to recall.
    pub(super) fn recall(&mut self, n: u32, now: Instant) -> bool {
        if n > 0 {
            self.recalls.push_back(Recall { n, due: Some(now + RECALL_LIMIT) });
        }
        n > 0
    }

    pub(super) fn take_back(&mut self, n: u32) -> Result<(), NotRecalled> {
        match self.recalls.front() {
            Some(recall) if n <= recall.n && n <= self.lent => {}
            _ => return Err(NotRecalled(n)),
        }
        self.recalls.pop_front();
        self.lent -= n;
        self.promised = self.promised.min(self.lent);
        Ok(())
    }

    pub(super) fn cede(&mut self, n: u32) {
        self.lent -= n;
        self.promised = self.promised.min(self.lent);
    }

    /// One of its credits was ceded to it, and is about to be spent unless it had one from elsewhere meanwhile.
    pub(super) fn promise_one(&mut self, now: Instant) {
        self.promised = (self.promised + 1).min(self.lent);
        self.promised_until = self.promised_until.max(Some(now + RENEWAL_INTERVAL));
    }

    /// Lends one more slot; a want is filled first.
    pub(super) fn lend_one(&mut self, now: Instant) {
        self.lent += 1;
        self.granted += 1;
        if let Some(claim) = &mut self.claim {
            claim.n -= 1;
            if claim.n == 0 {
                self.claim = None;
            }
            self.promised += 1;
            self.promised_until = Some(now + RECALL_LIMIT);
        }
    }

    pub(super) fn spend(&mut self) {
        self.lent -= 1;
        self.running += 1;
        self.promised = self.promised.saturating_sub(1).min(self.lent);
        if self.promised == 0 {
            self.promised_until = None;
        }
    }

    pub(super) fn want(&mut self, mut claim: Claim, received: u64, now: Instant) {
        self.wanted_at = Some(now);
        let on_the_way = u32::try_from(self.granted.saturating_sub(received)).unwrap_or(u32::MAX);
        if claim.n > 0 {
            claim.n = claim.n.saturating_sub(on_the_way);
        } else {
            // Its relay has no use for what is on its way either.
            self.promised = 0;
        }
        self.claim = Some(claim).filter(|claim| claim.n > 0);
        if self.promised == 0 {
            self.promised_until = None;
        }
    }

    /// Its session ended.
    pub(super) fn end(&mut self) {
        let (terms, running) = (self.terms, self.running);
        *self = Self { phase: Phase::Gone, running, ..Self::new(terms) };
    }

    /// When something here is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let recall = self.recalls.front().and_then(|recall| recall.due);
        [recall, self.promised_until, self.report_due].into_iter().flatten().min()
    }

    /// Notes what time has done.
    pub(super) fn lapse(&mut self, now: Instant) {
        for recall in &mut self.recalls {
            recall.due = recall.due.filter(|due| now < *due);
        }
        if self.promised_until.is_some_and(|until| until <= now) {
            self.promised = 0;
            self.promised_until = None;
        }
    }

    /// Notes what is true of the slots that it does not have; says whether it must be told now.
    pub(super) fn tell(&mut self, shared: Shared, now: Instant) -> bool {
        if shared == self.told {
            self.report_due = None;
            return false;
        }
        // That slots are gone a relay finds out for the price of a want; that there are some it must be told.
        let lately = if shared.idle_elsewhere { RECALL_LIMIT } else { RENEWAL_INTERVAL };
        let at_once = shared.relays != self.told.relays
            || self.claim.is_some()
            || self.wanted_at.is_some_and(|at| now < at + lately);
        let patience = if shared.idle_elsewhere { RENEWAL_INTERVAL } else { BELIEF_LIMIT };
        let due = self.told_at.map_or(now, |at| at + patience);
        if !at_once && now < due {
            self.report_due = Some(due);
            return false;
        }
        self.told = shared;
        self.told_at = Some(now);
        self.report_due = None;
        true
    }
}
