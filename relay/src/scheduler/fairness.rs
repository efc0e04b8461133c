//! Slot time that tenants used: one account per tenant, over all models.
//!
//! An account holds slot time divided by the tenant's weight, and grows while requests run. Tenants are
//! compared only while they wait, so what an account says of other times is limited: a tenant that begins
//! to wait is moved into the range that starts at the queue's *floor*, the highest account that queue and
//! band has served so far, and reaches [`CARRIED_OVER`] above it. Below, it would cash in time in which it
//! asked for nothing; above, use of idle slots in other queues would shut it out for as long as it lasted.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::event::TenantId;

/// What a running request is expected to use beyond what it has: without it, all slots that come free at
/// one instant would go to one tenant.
pub(super) const EXPECTED: Duration = Duration::from_secs(1);

/// The most slot time per weight by which a tenant that begins to wait may be behind the floor.
pub(super) const CARRIED_OVER: Duration = Duration::from_secs(600);

/// Fraction bits of an account, so that dividing by a weight loses nothing that matters.
const SCALE: u32 = 16;

/// Position of an account in [`Accounts`].
pub(super) type TenantIx = usize;

/// Slot time per weight, in fractions of nanoseconds.
pub(super) type Share = u128;

#[derive(Debug)]
struct Account {
    weight: u32,
    used: Share,
    settled: Instant,
    running: u32,
    waiting: u32,
}

impl Account {
    fn used_at(&self, now: Instant) -> Share {
        if self.running == 0 {
            return self.used;
        }
        let elapsed = now.saturating_duration_since(self.settled);
        self.used + share(elapsed, self.weight) * Share::from(self.running)
    }

    fn settle(&mut self, now: Instant) {
        self.used = self.used_at(now);
        self.settled = self.settled.max(now);
    }
}

fn share(time: Duration, weight: u32) -> Share {
    (time.as_nanos() << SCALE) / Share::from(weight)
}

/// The accounts of all tenants seen so far.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    by_tenant: HashMap<TenantId, TenantIx>,
    accounts: Vec<Account>,
}

impl Accounts {
    /// The tenant's account, opened when it has none.
    pub(super) fn of(
        &mut self,
        tenant: TenantId,
        weights: &BTreeMap<TenantId, u32>,
        now: Instant,
    ) -> TenantIx {
        *self.by_tenant.entry(tenant).or_insert_with(|| {
            let weight = weight_of(tenant, weights);
            self.accounts.push(Account { weight, used: 0, settled: now, running: 0, waiting: 0 });
            self.accounts.len() - 1
        })
    }

    /// Applies changed weights from now on.
    pub(super) fn reweigh(&mut self, weights: &BTreeMap<TenantId, u32>, now: Instant) {
        for (&tenant, &index) in &self.by_tenant {
            let account = &mut self.accounts[index];
            account.settle(now);
            account.weight = weight_of(tenant, weights);
        }
    }

    pub(super) fn weight(&self, tenant: TenantIx) -> u32 {
        self.accounts[tenant].weight
    }

    pub(super) fn used(&self, tenant: TenantIx, now: Instant) -> Share {
        self.accounts[tenant].used_at(now)
    }

    /// What tenants are compared by; the lowest goes first.
    pub(super) fn rank(&self, tenant: TenantIx, now: Instant) -> Share {
        let account = &self.accounts[tenant];
        account.used_at(now) + share(EXPECTED, account.weight) * Share::from(account.running)
    }

    pub(super) fn starts_running(&mut self, tenant: TenantIx, now: Instant) {
        self.accounts[tenant].settle(now);
        self.accounts[tenant].running += 1;
    }

    pub(super) fn stops_running(&mut self, tenant: TenantIx, now: Instant) {
        self.accounts[tenant].settle(now);
        self.accounts[tenant].running -= 1;
    }

    /// One more request of the tenant waits, in a queue whose floor is `floor`.
    pub(super) fn starts_waiting(&mut self, tenant: TenantIx, floor: Share, now: Instant) {
        let account = &mut self.accounts[tenant];
        account.waiting += 1;
        if account.waiting == 1 {
            account.settle(now);
            account.used = account.used.clamp(floor, floor + share(CARRIED_OVER, 1));
        }
    }

    pub(super) fn stops_waiting(&mut self, tenant: TenantIx) {
        self.accounts[tenant].waiting -= 1;
    }
}

fn weight_of(tenant: TenantId, weights: &BTreeMap<TenantId, u32>) -> u32 {
    weights.get(&tenant).copied().unwrap_or(1).max(1)
}
