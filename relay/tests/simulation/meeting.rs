//! How long idle slots and queued requests take to meet.

use super::clock::Time;

#[derive(Debug, Default)]
pub struct Meetings {
    waiting: u64,
    idle: u64,
    idle_since: Option<Time>,
    changed_at: Time,
    /// Slot time idle while as many requests waited.
    pub wasted: u128,
    /// For each dispatch since `from`, how long both had been there; 0 for a request that did not wait.
    pub times: Vec<Time>,
    pub from: Time,
}

impl Meetings {
    fn pass(&mut self, now: Time) {
        if now > self.from {
            let since = self.changed_at.max(self.from);
            self.wasted += u128::from(self.idle.min(self.waiting)) * u128::from(now - since);
        }
        self.changed_at = now;
    }

    pub fn waits(&mut self, change: i64, now: Time) {
        self.pass(now);
        self.waiting = self.waiting.checked_add_signed(change).expect("no less than nothing waits");
    }

    pub fn idle_changes(&mut self, from: u32, to: u32, now: Time) {
        self.pass(now);
        self.idle = self.idle + u64::from(to) - u64::from(from);
        if self.idle == 0 {
            self.idle_since = None;
        } else if self.idle_since.is_none() {
            self.idle_since = Some(now);
        }
    }

    pub fn meet(&mut self, now: Time, waits_since: Time) {
        if now >= self.from {
            let both = self.idle_since.unwrap_or(now).max(waits_since);
            self.times.push(now - both);
        }
    }

    /// The time within which `per_mille` of all requests met a slot.
    pub fn quantile(&mut self, per_mille: usize) -> Time {
        self.times.sort_unstable();
        let at = (self.times.len() * per_mille / 1000).min(self.times.len().saturating_sub(1));
        self.times.get(at).copied().unwrap_or(0)
    }
}
