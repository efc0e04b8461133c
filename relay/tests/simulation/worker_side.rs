//! What a worker does around its arbiter: sessions and jobs, without a backend.

use modelrelay_protocol::slots::{Lending, SlotAction, Terms};

use super::clock::{MS, SECOND, Time};
use super::world::{Event, Job, LinkIx, Phase, ToRelay, ToWorker, World};

impl World {
    pub fn perform_slots(&mut self, worker: usize, actions: Vec<SlotAction>) {
        for action in actions {
            match action {
                SlotAction::Grant { session, n } => self.to_relay(link_of(session), ToRelay::Grant(n)),
                SlotAction::Recall { session, n } => self.to_relay(link_of(session), ToRelay::Recall(n)),
                SlotAction::Report { session, shared } => {
                    let relays = self.workers[worker].links.iter().map(|&link| self.links[link].relay);
                    let replicas = relays.fold(0_u128, |all, relay| all | 1 << relay);
                    self.to_relay(link_of(session), ToRelay::Load { shared, replicas })
                }
            }
        }
        self.set_worker_timer(worker);
    }

    pub fn at_worker(&mut self, link: LinkIx, message: ToWorker) {
        let (worker, key) = (self.links[link].worker, self.links[link].key);
        let same_process = self.links[link].process == self.workers[worker].process;
        if let ToWorker::Ack = message {
            if same_process && self.workers[worker].phase != Phase::Down {
                self.accepted(link);
            }
            return;
        }
        if let ToWorker::Request { .. } = message
            && same_process
            && self.links[link].at_worker
        {
            self.links[link].arriving -= 1;
        }
        if !self.links[link].at_worker {
            if let ToWorker::Close = message {
                self.redial(link);
            }
            return;
        }
        let now = self.instant();
        let arbiter = &mut self.workers[worker].arbiter;
        match message {
            ToWorker::Ack => {}
            ToWorker::Request { attempt, service } => {
                let actions =
                    arbiter.started(key, now).expect("a relay sends a request against a credit only");
                let plan = self.plan();
                self.workers[worker].jobs.insert(attempt, Job { link, plan, cancelled: false });
                self.perform_slots(worker, actions);
                self.agenda.add(self.now + service, Event::JobEnds { worker, attempt, plan });
                if self.setup.watch_pairs {
                    self.spans.insert(attempt, (self.now, Time::MAX));
                    self.agenda.add(self.now + service / 2, Event::JobStarts { worker, attempt });
                }
            }
            ToWorker::Cancel { attempt } => self.abort(worker, attempt),
            ToWorker::Want(want) => {
                let actions = arbiter.wanted(key, want, now);
                self.perform_slots(worker, actions);
            }
            ToWorker::Return(n) => {
                let actions = arbiter.returned(key, n, now).expect("only what was recalled is returned");
                self.perform_slots(worker, actions);
                self.worker_may_go(worker);
            }
            ToWorker::Plea { model, n, band, age, number } => {
                let from = self.links[link].relay;
                let hearers = arbiter.hearers(key, n, now);
                for hearer in hearers {
                    self.to_relay(
                        link_of(hearer),
                        ToRelay::Plea { relay: from, model, n, band, age, number },
                    );
                }
            }
            ToWorker::Cede { n, relay } => {
                let same = |other: &&LinkIx| self.links[**other].relay == relay;
                let to = self.workers[worker].links.iter().find(same).map(|&other| self.links[other].key);
                let arbiter = &mut self.workers[worker].arbiter;
                let actions = arbiter.ceded(key, n, to, now).expect("only what it has is ceded");
                self.perform_slots(worker, actions);
                self.worker_may_go(worker);
            }
            ToWorker::Goaway => {
                let actions = arbiter.leaving(key, now);
                self.perform_slots(worker, actions);
            }
            ToWorker::Empty => {
                self.links[link].leave_when_idle = true;
                self.leave_if_idle(link);
            }
            ToWorker::Close => self.end_at_worker(link),
        }
        self.note_idle(worker);
    }

    fn accepted(&mut self, link: LinkIx) {
        let worker = self.links[link].worker;
        self.links[link].at_worker = true;
        self.links[link].up_since = self.now;
        self.workers[worker].links.push(link);
        self.disturb(worker, self.now);
        let terms =
            Terms { lending: Lending::Credits, most: u32::MAX, rank: self.random.next(), pleas: true };
        let now = self.instant();
        let actions = self.workers[worker].arbiter.joined(self.links[link].key, terms, now);
        self.perform_slots(worker, actions);
        if self.workers[worker].phase == Phase::Draining {
            self.to_relay(link, ToRelay::Draining);
        }
        self.note_idle(worker);
    }

    pub fn job_starts(&mut self, worker: usize, attempt: u64) {
        if let Some(job) = self.workers[worker].jobs.get(&attempt).filter(|job| !job.cancelled) {
            self.to_relay(job.link, ToRelay::Started { attempt });
        }
    }

    pub fn job_ends(&mut self, worker: usize, attempt: u64, plan: u64) {
        let jobs = &mut self.workers[worker].jobs;
        if jobs.get(&attempt).is_none_or(|job| job.plan != plan) {
            return;
        }
        let job = jobs.remove(&attempt).expect("it was there above");
        if let Some((_, ended)) = self.spans.get_mut(&attempt) {
            *ended = self.now;
        }
        let now = self.instant();
        let (regrant, actions) = self.workers[worker].arbiter.finished(self.links[job.link].key, now);
        self.perform_slots(worker, actions);
        if self.links[job.link].at_worker {
            self.links[job.link].lent_again += u32::from(regrant);
            self.to_relay(job.link, ToRelay::Done { attempt, regrant });
            self.leave_if_idle(job.link);
        }
        self.worker_may_go(worker);
        self.note_idle(worker);
    }

    /// The backend call is closed, which takes a moment.
    fn abort(&mut self, worker: usize, attempt: u64) {
        let (plan, delay) = (self.plan(), self.random.between(0, 5 * MS));
        if let Some(job) = self.workers[worker].jobs.get_mut(&attempt) {
            job.plan = plan;
            job.cancelled = true;
            self.agenda.add(self.now + delay, Event::JobEnds { worker, attempt, plan });
        }
    }

    fn leave_if_idle(&mut self, link: LinkIx) {
        let worker = self.links[link].worker;
        let busy = self.workers[worker].jobs.values().any(|job| job.link == link);
        if self.links[link].leave_when_idle && !busy && self.links[link].at_worker {
            self.end_at_worker(link);
        }
    }

    /// The worker takes a session for ended.
    pub fn end_at_worker(&mut self, link: LinkIx) {
        let worker = self.links[link].worker;
        if !self.links[link].at_worker {
            return;
        }
        self.links[link].at_worker = false;
        self.to_relay(link, ToRelay::Close);
        self.workers[worker].links.retain(|other| *other != link);
        let jobs = self.workers[worker].jobs.iter();
        let here: Vec<u64> = jobs.filter(|(_, job)| job.link == link).map(|(&attempt, _)| attempt).collect();
        for attempt in here {
            self.abort(worker, attempt);
        }
        // What was on its way never arrives.
        self.links[link].arriving = 0;
        self.disturb(worker, self.now);
        let now = self.instant();
        let actions = self.workers[worker].arbiter.left(self.links[link].key, now);
        self.perform_slots(worker, actions);
        self.redial(link);
        self.worker_may_go(worker);
        self.note_idle(worker);
    }

    fn redial(&mut self, link: LinkIx) {
        let (worker, relay, process) =
            (self.links[link].worker, self.links[link].relay, self.links[link].process);
        let this = &self.workers[worker];
        if this.process == process && this.phase == Phase::Up && self.relays[relay].phase == Phase::Up {
            let held = this.links.iter().any(|&other| self.links[other].relay == relay);
            if !held {
                self.dial_within(worker, relay, SECOND);
            }
        }
    }

    pub fn drain_worker(&mut self, worker: usize) {
        self.workers[worker].phase = Phase::Draining;
        self.begin_drain(worker);
        for link in self.workers[worker].links.clone() {
            self.to_relay(link, ToRelay::Draining);
        }
        let now = self.instant();
        let actions = self.workers[worker].arbiter.withdraw(now);
        self.perform_slots(worker, actions);
        self.worker_may_go(worker);
    }

    /// A worker that drains leaves once nothing runs and nothing can come.
    pub fn worker_may_go(&mut self, worker: usize) {
        let this = &self.workers[worker];
        let back = this.arbiter.spendable() == 0 || self.drained_for(worker) >= 2 * SECOND;
        if this.phase != Phase::Draining || !this.jobs.is_empty() || !back {
            return;
        }
        self.stop_worker(worker);
        for link in std::mem::take(&mut self.workers[worker].links) {
            self.links[link].at_worker = false;
            self.links[link].arriving = 0;
            self.to_relay(link, ToRelay::Close);
        }
        self.note_idle(worker);
    }

    fn stop_worker(&mut self, worker: usize) {
        self.workers[worker].phase = Phase::Down;
        self.workers[worker].jobs.clear();
        self.note_idle(worker);
        self.agenda.add(self.now + SECOND, Event::Restart { worker });
    }

    /// kill -9, or its machine is gone without a word.
    pub fn crash_worker(&mut self, worker: usize, without_a_word: bool) {
        self.stop_worker(worker);
        for link in std::mem::take(&mut self.workers[worker].links) {
            self.links[link].at_worker = false;
            self.links[link].arriving = 0;
            if without_a_word {
                self.cut(link);
            } else {
                self.to_relay(link, ToRelay::Close);
            }
        }
    }

    pub fn restart(&mut self, worker: usize) {
        self.workers[worker].start_again();
        self.note_idle(worker);
        for relay in 0..self.relays.len() {
            self.dial_within(worker, relay, SECOND);
        }
    }
}

fn link_of(session: modelrelay_protocol::slots::SessionKey) -> LinkIx {
    usize::try_from(session.0).expect("sessions are numbered by their links")
}
