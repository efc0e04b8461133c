//! Where free slots go and whose idle ones are taken back.

use std::cmp::Reverse;
use std::time::Instant;

use super::account::{Account, Phase};
use super::{Arbiter, SessionKey, Shared, SlotAction};

impl Arbiter {
    /// Gives away what is free, takes back what is wanted elsewhere, and reports what turned.
    pub(super) fn settle(&mut self, now: Instant, actions: &mut Vec<SlotAction>) {
        let mut free = self.free();
        if free > 0 && !self.withdrawn {
            while free > 0
                && let Some(session) = self.best_claim().or_else(|| self.emptiest())
            {
                self.lend(session, now, actions);
                free -= 1;
            }
        }
        self.recall_for_claims(now, actions);
        self.report(now, actions);
    }

    /// A relay came, goes or went: free slots are given away, and idle ones spread evenly again.
    pub(super) fn membership_changed(&mut self, now: Instant) -> Vec<SlotAction> {
        let mut actions = Vec::new();
        self.settle(now, &mut actions);
        if !self.withdrawn {
            self.level(now, &mut actions);
        }
        actions
    }

    pub(super) fn free(&self) -> u32 {
        self.slots.saturating_sub(self.accounts.values().map(Account::held).sum())
    }

    /// Says whether a session's slot goes back to it now that a request there has ended.
    pub(super) fn gets_it_again(&self, session: SessionKey) -> bool {
        let Some(account) = self.accounts.get(&session) else { return false };
        if self.withdrawn || account.room() == 0 || self.free() == 0 {
            return false;
        }
        match self.best_claim() {
            Some(best) => best == session,
            None => account.phase == Phase::Open || !self.someone_stays(),
        }
    }

    fn someone_stays(&self) -> bool {
        self.accounts.values().any(|account| account.phase == Phase::Open && account.by_credits())
    }

    /// The session whose turn it is: one whose fixed part is not whole, else the highest band, else the oldest request.
    fn best_claim(&self) -> Option<SessionKey> {
        let claims = self.accounts.iter().filter(|(_, account)| account.room() > 0);
        let rank = |(&session, account): (&SessionKey, &Account)| {
            if !account.by_credits() {
                return Some((true, 0, None, Reverse(session)));
            }
            account.claim.map(|claim| (false, claim.band, Some(Reverse(claim.since)), Reverse(session)))
        };
        claims.filter_map(rank).max().map(|(.., Reverse(session))| session)
    }

    /// The session that has fewest slots, of those whose relays stay.
    fn emptiest(&self) -> Option<SessionKey> {
        let open = self.accounts.iter().filter(|(_, account)| account.by_credits() && account.room() > 0);
        let key = |account: &Account| (account.phase == Phase::Leaving, account.held(), account.terms.rank);
        open.min_by_key(|(_, account)| key(account)).map(|(&session, _)| session)
    }

    pub(super) fn lend(&mut self, session: SessionKey, now: Instant, actions: &mut Vec<SlotAction>) {
        let Some(account) = self.accounts.get_mut(&session) else { return };
        account.lend_one(now);
        if !account.by_credits() {
            return;
        }
        let before = actions.iter_mut().find_map(|action| match action {
            SlotAction::Grant { session: to, n } if *to == session => Some(n),
            SlotAction::Grant { .. } | SlotAction::Recall { .. } | SlotAction::Report { .. } => None,
        });
        match before {
            Some(n) => *n += 1,
            None => actions.push(SlotAction::Grant { session, n: 1 }),
        }
    }

    /// Recalls idle credits for the claims that what is on its way back will not fill.
    pub(super) fn recall_for_claims(&mut self, now: Instant, actions: &mut Vec<SlotAction>) {
        if self.withdrawn {
            return;
        }
        let lacking = |account: &Account| {
            if account.by_credits() {
                account.claim.map_or(0, |claim| claim.n.min(account.room()))
            } else {
                account.room()
            }
        };
        let lacking: u32 = self.accounts.values().map(lacking).sum();
        let expected: u32 = self.accounts.values().map(Account::expected_back).sum();
        let mut missing = lacking.saturating_sub(expected);
        while missing > 0 {
            // Relays that leave first, then whoever has most.
            let key = |account: &Account| (account.phase == Phase::Leaving, account.recallable());
            let holders = self.accounts.iter_mut().filter(|(_, account)| account.recallable() > 0);
            let Some((&session, holder)) = holders.max_by_key(|(_, account)| key(account)) else { return };
            let n = missing.min(holder.recallable());
            holder.recall(n, now);
            actions.push(SlotAction::Recall { session, n });
            missing -= n;
        }
    }

    /// Recalls every credit that is not on its way back.
    pub(super) fn recall_all(&mut self, now: Instant, actions: &mut Vec<SlotAction>) {
        for (&session, account) in self.accounts.iter_mut().filter(|(_, account)| account.by_credits()) {
            let n = account.lent - account.recalling();
            actions.extend(account.recall(n, now).then_some(SlotAction::Recall { session, n }));
        }
    }

    /// Recalls idle credits from sessions that have more than others, or leave; they are given away when they come back.
    fn level(&mut self, now: Instant, actions: &mut Vec<SlotAction>) {
        // What each will have when all that is on its way back has been given away.
        let mut plan: Vec<Plan> =
            self.accounts.iter().filter_map(|(key, account)| Plan::of(*key, account)).collect();
        let mut arriving: u32 = plan.iter().map(|plan| plan.expected).sum();
        while let Some(taker) = Plan::taker(&plan) {
            if arriving > 0 {
                arriving -= 1;
            } else {
                let Some(giver) = Plan::giver(&plan, taker) else { break };
                plan[giver].held -= 1;
                plan[giver].idle -= 1;
                plan[giver].recall += 1;
            }
            plan[taker].held += 1;
            plan[taker].room -= 1;
        }
        for Plan { session, recall: n, .. } in plan {
            if let Some(account) = self.accounts.get_mut(&session) {
                actions.extend(account.recall(n, now).then_some(SlotAction::Recall { session, n }));
            }
        }
    }

    /// Tells relays what turned for them.
    pub(super) fn report(&mut self, now: Instant, actions: &mut Vec<SlotAction>) {
        let here = || self.accounts.values().filter(|account| account.is_here() && account.by_credits());
        let relays = u32::try_from(here().count()).unwrap_or(u32::MAX);
        if relays <= 1 && here().all(|account| account.told == Shared::ALONE) {
            return;
        }
        let idle: u32 = here().map(Account::idle).sum();
        // Idle slots with relays that hear pleas need no report to one that pleads.
        let unheard: u32 = here().filter(|account| !account.pleads()).map(Account::idle).sum();
        for (&session, account) in &mut self.accounts {
            if account.by_credits() && account.is_here() {
                let idle_elsewhere = if account.pleads() { unheard > 0 } else { idle > account.idle() };
                let shared = Shared { relays, idle_elsewhere };
                if account.tell(shared, now) {
                    actions.push(SlotAction::Report { session, shared });
                }
            }
        }
    }
}

/// What becomes of a session while idle slots are spread.
#[derive(Debug)]
struct Plan {
    session: SessionKey,
    phase: Phase,
    rank: u64,
    held: u32,
    room: u32,
    idle: u32,
    /// On its way back already.
    expected: u32,
    recall: u32,
}

impl Plan {
    fn of(session: SessionKey, account: &Account) -> Option<Self> {
        if !account.by_credits() || !account.is_here() {
            return None;
        }
        let expected = account.expected_back();
        Some(Self {
            session,
            phase: account.phase,
            rank: account.terms.rank,
            held: account.held() - expected,
            room: account.room() + expected,
            idle: account.recallable(),
            expected,
            recall: 0,
        })
    }

    /// Who gets the next slot.
    fn taker(plan: &[Self]) -> Option<usize> {
        let takers = (0..plan.len()).filter(|&at| plan[at].room > 0 && plan[at].phase == Phase::Open);
        takers.min_by_key(|&at| plan[at].order())
    }

    /// Who gives it up, if anybody should.
    fn giver(plan: &[Self], taker: usize) -> Option<usize> {
        let givers = (0..plan.len()).filter(|&at| plan[at].idle > 0);
        let giver = givers.max_by_key(|&at| (plan[at].phase == Phase::Leaving, plan[at].order()));
        giver.filter(|&giver| plan[taker].is_owed_by(&plan[giver]))
    }

    fn order(&self) -> (u32, u64) {
        (self.held, self.rank)
    }

    /// Whether one slot should move here from `giver`.
    fn is_owed_by(&self, giver: &Self) -> bool {
        if self.session == giver.session {
            return false;
        }
        giver.phase == Phase::Leaving
            || giver.held > self.held + 1
            || (giver.held == self.held + 1 && giver.rank > self.rank)
    }
}
