//! What goes wrong, at random times.

use super::clock::{MS, SECOND, Time};
use super::world::{Event, LinkIx, Phase, World};

#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Mean time between two.
    pub every: Time,
    pub until: Time,
}

impl World {
    pub fn add_faults(&mut self, every: Time, until: Time) {
        self.faults = Faults { every, until };
        let first = self.now + self.random.spread_around(every);
        self.agenda.add(first, Event::Fault);
    }

    pub fn fault(&mut self) {
        if self.now >= self.faults.until {
            return;
        }
        match self.random.next() % 16 {
            0..4 => self.some_client_leaves(),
            4..8 => {
                let time = self.random.between(10 * MS, 4 * SECOND);
                self.some_link(|world, link| world.stall(link, time));
            }
            8 => self.some_link(Self::cut),
            9 => self.some_relay(|world, relay| {
                world.crash_relay(relay);
                world.add_relay(SECOND);
            }),
            10..12 => self.some_relay(|world, relay| {
                world.add_relay(SECOND);
                world.drain_relay(relay);
            }),
            12 => {
                let silent = self.random.chance(50);
                self.some_worker(|world, worker| world.crash_worker(worker, silent));
            }
            13..15 => self.some_worker(Self::drain_worker),
            _ => {
                // A scale-up, taken back later by a fault that finds more than there should be.
                if self.relays_up().len() < 4 {
                    self.add_relay(SECOND);
                } else {
                    self.some_relay(Self::drain_relay);
                }
            }
        }
        let next = self.now + self.random.spread_around(self.faults.every);
        self.agenda.add(next, Event::Fault);
    }

    fn relays_up(&self) -> Vec<usize> {
        (0..self.relays.len()).filter(|&relay| self.relays[relay].phase == Phase::Up).collect()
    }

    fn some_relay(&mut self, act: impl FnOnce(&mut Self, usize)) {
        let up = self.relays_up();
        if !up.is_empty() {
            let relay = up[self.random.index(up.len())];
            act(self, relay);
        }
    }

    fn some_worker(&mut self, act: impl FnOnce(&mut Self, usize)) {
        let worker = self.random.index(self.workers.len());
        if self.workers[worker].phase == Phase::Up {
            act(self, worker);
        }
    }

    fn some_link(&mut self, act: impl FnOnce(&mut Self, LinkIx)) {
        let worker = self.random.index(self.workers.len());
        let links = &self.workers[worker].links;
        if !links.is_empty() {
            let link = links[self.random.index(links.len())];
            act(self, link);
        }
    }

    fn some_client_leaves(&mut self) {
        let mut all: Vec<_> = self.requests.keys().copied().collect();
        all.sort_unstable();
        if !all.is_empty() {
            let request = all[self.random.index(all.len())];
            self.client_leaves(request);
        }
    }

    /// Nothing gets through for a while; then everything does, in order.
    fn stall(&mut self, link: LinkIx, time: Time) {
        let this = &mut self.links[link];
        this.stalled_until = this.stalled_until.max(self.now + time);
        let (worker, until) = (this.worker, this.stalled_until.min(self.now + 10 * SECOND));
        self.disturb(worker, until);
    }

    /// The connection is dead and neither end knows.
    pub fn cut(&mut self, link: LinkIx) {
        self.links[link].stalled_until = Time::MAX;
        let worker = self.links[link].worker;
        self.disturb(worker, self.now);
        let heard = self.now + super::world::SILENCE;
        self.agenda.add(heard, Event::RelaySilent { link });
        self.agenda.add(heard, Event::WorkerSilent { link });
    }
}
