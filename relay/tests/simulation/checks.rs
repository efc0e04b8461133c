//! What must hold after every step, and at the end.

use std::time::Duration;

use modelrelay_protocol::slots::{RECALL_LIMIT, RENEWAL_INTERVAL};
use modelrelay_relay::scheduler::RequestKey;

use super::clock::{SECOND, Time};
use super::world::{LinkIx, Phase, World};

impl World {
    /// Counts a worker's idle slots again, and checks that it has not more in use than it declared.
    pub fn note_idle(&mut self, worker: usize) {
        let this = &mut self.workers[worker];
        let running = this.running();
        assert!(running <= this.slots, "{running} requests run in {} slots", this.slots);
        let (lent, charged) = (this.arbiter.lent(), this.arbiter.running());
        assert!(lent + charged <= this.slots, "{lent} lent and {charged} running of {} slots", this.slots);
        assert!(this.phase == Phase::Down || charged == running, "the arbiter counts {charged} of {running}");
        let arriving: u32 = this.links.iter().map(|&link| self.links[link].arriving).sum();
        let idle = if this.phase == Phase::Up { this.slots.saturating_sub(running + arriving) } else { 0 };
        // A slot that was granted for another's want is not idle: its request is on the way. One that is lent over a
        // dead connection is out of reach.
        let promised = this.arbiter.promised().saturating_sub(arriving);
        let dead = this.links.iter().filter(|&&link| !self.links[link].is_sound(self.now));
        let out_of_reach: u32 = dead.map(|&link| this.arbiter.held_by(self.links[link].key).0).sum();
        let at_rest = idle.saturating_sub(promised + out_of_reach);
        this.idle_since = this.idle_since.or(Some(self.now)).filter(|_| at_rest > 0);
        for &link in &this.links {
            // The relay spends those at once that are lent to it again, if it has a use for them.
            let link = &mut self.links[link];
            link.idle_since = link.idle_since.or(Some(self.now)).filter(|_| at_rest > link.lent_again);
        }
        let before = std::mem::replace(&mut this.idle, idle);
        self.meetings.idle_changes(before, idle, self.now);
    }

    /// Something is wrong with a connection of a worker, until then.
    pub fn disturb(&mut self, worker: usize, until: Time) {
        let this = &mut self.workers[worker];
        this.disturbed_at = this.disturbed_at.max(until);
    }

    /// A queued request and an idle slot meet within two round trips, unless others are after the same slots: each race
    /// that is lost costs as much again. What is said over a dead connection is lost, and said again by another way after a
    /// while; what other workers do not get back from one is waited for until then as well, and twice as many are asked the
    /// next time; and this one may have a dead connection itself.
    fn slowest_meeting(&self, worker: usize) -> Time {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).expect("it is short");
        let (races, renewals) = if self.faults.every > 0 { (5, 3) } else { (4, 0) };
        let dead_ends = renewals * nanoseconds(RENEWAL_INTERVAL);
        let is_dead = |&link: &LinkIx| !self.links[link].is_sound(self.now);
        let recall = self.workers[worker].links.iter().any(is_dead).then_some(nanoseconds(RECALL_LIMIT));
        races * self.setup.two_round_trips() + dead_ends + recall.unwrap_or(0)
    }

    /// No request waits long while a worker that its relay is connected to has an idle slot for it.
    pub fn check_step(&mut self) {
        if !self.setup.watch_pairs {
            return;
        }
        let bound = self.setup.two_round_trips();
        let late: Vec<(usize, usize, (Time, RequestKey))> = self
            .queues
            .iter()
            .map(|(&(relay, model), queue)| (relay, model, *queue.first().expect("no queue is empty")))
            .filter(|&(relay, _, (since, _))| {
                self.now > since + bound && self.relays[relay].phase != Phase::Down
            })
            .collect();
        for (relay, model, (since, request)) in late {
            for &link in self.relays[relay].sessions.values() {
                let idle_since = self.idle_for(link, model, bound);
                let both = idle_since.map_or(self.now, |idle| idle.max(since));
                let waited = self.now - both;
                self.longest_wait = self.longest_wait.max(waited);
                if waited > bound {
                    self.beside_idle.insert(request);
                }
                let worker = self.links[link].worker;
                let slowest = self.slowest_meeting(worker);
                assert!(
                    waited <= slowest,
                    "at {} us {request:?} of relay {relay} for model {model} had waited for {} us, worker {worker} been \
                     idle for {} us: {:?}",
                    self.now / 1000,
                    (self.now - since) / 1000,
                    waited / 1000,
                    self.workers[worker].arbiter,
                );
            }
        }
    }

    /// Since when a worker has had an idle slot for a model that can reach this relay, if nothing disturbed it.
    fn idle_for(&self, link: LinkIx, model: usize, bound: Time) -> Option<Time> {
        let (this, worker) = (&self.links[link], &self.workers[self.links[link].worker]);
        let recall = u64::try_from(RECALL_LIMIT.as_nanos()).expect("it is short");
        if !this.is_sound(self.now)
            || this.process != worker.process
            || worker.phase != Phase::Up
            || !worker.models.contains(&model)
            || self.now < worker.disturbed_at + bound + recall
        {
            return None;
        }
        worker.idle_since.zip(this.idle_since).map(|(all, others)| all.max(others))
    }

    /// Lets everything end and come back: no client, no fault; then nothing may be left over.
    pub fn check_end(&mut self) {
        for stream in &mut self.streams {
            stream.until = 0;
        }
        self.faults.until = 0;
        // Silent sessions have ended by then, and all that ran.
        self.run_until(self.now + 300 * SECOND);
        assert!(self.requests.is_empty(), "{} requests never ended", self.requests.len());
        let ends = self.ends;
        assert_eq!(ends.answered + ends.rejected + ends.left + ends.crashed, self.next_request);
        let up = (0..self.relays.len()).filter(|&relay| self.relays[relay].phase == Phase::Up).count();
        for worker in 0..self.workers.len() {
            let this = &self.workers[worker];
            assert_eq!(this.phase, Phase::Up);
            assert_eq!(this.links.len(), up, "worker {worker} holds a session with every relay");
            assert_eq!((this.arbiter.lent(), this.arbiter.running()), (this.slots, 0), "worker {worker}");
        }
        for relay in 0..self.relays.len() {
            if self.relays[relay].phase == Phase::Up {
                assert_eq!(
                    self.relays[relay].scheduler.poll_timeout(),
                    None,
                    "nothing is due at relay {relay}"
                );
            }
            for view in self.relays[relay].scheduler.snapshot(self.instant()).workers {
                let Some(link) = self.relays[relay].sessions.get(&view.worker) else { continue };
                let (lent, _) = self.workers[self.links[*link].worker].arbiter.held_by(self.links[*link].key);
                assert_eq!(view.free, lent, "relay {relay} and its worker count the same credits");
            }
        }
        // Everything lent comes back.
        for worker in 0..self.workers.len() {
            let now = self.instant();
            let actions = self.workers[worker].arbiter.withdraw(now);
            self.perform_slots(worker, actions);
        }
        self.run_until(self.now + SECOND);
        for worker in &self.workers {
            assert_eq!(worker.arbiter.lent(), 0);
        }
        for relay in 0..self.relays.len() {
            let none = self.relays[relay].scheduler.snapshot(self.instant());
            let free: u32 = none.workers.iter().map(|worker| worker.free).sum();
            assert!(
                self.relays[relay].phase == Phase::Down || free == 0,
                "relay {relay} kept {free} credits"
            );
        }
    }
}
