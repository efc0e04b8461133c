//! What a relay does around its scheduler: the dispatcher and the sessions, without bytes.

use std::sync::Arc;

use modelrelay_protocol::slots::{Shared, Want};
use modelrelay_relay::scheduler::{
    Action, Capacity, Event as Happened, Plea, RequestKey, SessionNeeds, Submission, Target, TenantId,
    WorkerInfo,
};

use super::clock::{MS, SECOND, Time};
use super::world::{Dispatched, Event, LinkIx, Phase, Request, Sent, State, ToRelay, ToWorker, World};

impl World {
    pub fn arrival(&mut self, stream: usize) {
        let this = self.streams[stream].clone();
        if self.now >= this.until {
            return;
        }
        let admits = |relay: usize| self.relays[relay].phase != Phase::Down && self.relays[relay].admits;
        let weights: Vec<u64> = (0..self.relays.len())
            .map(|at| if admits(at) { *this.weights.get(at).unwrap_or(&1) } else { 0 })
            .collect();
        let total: u64 = weights.iter().sum();
        if total > 0 {
            let mut point = self.random.between(0, total - 1);
            let relay = weights.iter().position(|weight| {
                let here = point < *weight;
                point = point.saturating_sub(*weight);
                here
            });
            let model = self.random.index(self.setup.models);
            let service = self.random.spread_around(self.setup.service).max(MS / 10);
            self.submit(relay.expect("the weights sum up to the total"), model, service, this.band);
        }
        let next = self.now + self.random.spread_around(this.every).max(1);
        self.agenda.add(next, Event::Arrival { stream });
    }

    pub fn submit(&mut self, relay: usize, model: usize, service: Time, band: i32) -> RequestKey {
        self.next_request += 1;
        let key = RequestKey(self.next_request);
        let (arrived, waits_since) = (self.now, self.now);
        self.requests
            .insert(key, Request { relay, model, service, arrived, waits_since, state: State::Waiting });
        self.begins_to_wait(key);
        let submission = Submission {
            request: key,
            targets: [Target { model: self.model_name(model), weight: 1 }].into(),
            tenant: TenantId(0),
            band,
            bytes: 100,
            affinity: None,
            excluded: SessionNeeds::default(),
            deadline: None,
        };
        self.tell(relay, Happened::Submitted(submission));
        key
    }

    pub fn client_leaves(&mut self, request: RequestKey) {
        if let Some(this) = self.requests.get(&request) {
            let relay = this.relay;
            self.end(request);
            self.ends.left += 1;
            self.tell(relay, Happened::ClientGone { request });
        }
    }

    /// A request is over; it must not have been before.
    pub fn end(&mut self, request: RequestKey) -> Request {
        let ended = self.requests.get(&request).expect("a request ends once").clone();
        if ended.state == State::Waiting {
            self.stops_waiting(request);
        }
        self.requests.remove(&request);
        ended
    }

    fn begins_to_wait(&mut self, key: RequestKey) {
        let request = self.requests.get_mut(&key).expect("what has ended does not wait");
        request.state = State::Waiting;
        request.waits_since = self.now;
        self.queues.entry((request.relay, request.model)).or_default().insert((self.now, key));
        self.meetings.waits(1, self.now);
    }

    fn stops_waiting(&mut self, key: RequestKey) {
        let request = &self.requests[&key];
        let queue = self.queues.get_mut(&(request.relay, request.model)).expect("it waits in a queue");
        assert!(queue.remove(&(request.waits_since, key)), "{key:?} does not wait");
        if queue.is_empty() {
            self.queues.remove(&(request.relay, request.model));
        }
        self.meetings.waits(-1, self.now);
    }

    pub fn tell(&mut self, relay: usize, event: Happened) {
        let now = self.instant();
        self.relays[relay].scheduler.handle(event, now);
        self.perform(relay);
    }

    pub fn perform(&mut self, relay: usize) {
        while let Some(action) = self.relays[relay].scheduler.poll_action() {
            match action {
                Action::Dispatch { request, worker, target: _ } => {
                    let link = self.relays[relay].sessions[&worker];
                    self.dispatch(request, link);
                }
                Action::Reject { request, reason: _ } => {
                    self.end(request);
                    self.ends.rejected += 1;
                }
                Action::Want { worker, n, band, age, received } => {
                    let link = self.relays[relay].sessions[&worker];
                    self.to_worker(link, ToWorker::Want(Want { n, band, age, received }));
                }
                Action::Plea { worker, model, n, band, age, number } => {
                    let link = self.relays[relay].sessions[&worker];
                    let model = self.model_number(&model);
                    self.to_worker(link, ToWorker::Plea { model, n, band, age, number });
                }
                Action::Cede { worker, n, relay: to } => {
                    let link = self.relays[relay].sessions[&worker];
                    let relay = to.parse().expect("relays are named by their numbers");
                    self.to_worker(link, ToWorker::Cede { n, relay });
                }
                Action::Cancel { request, worker, reason: _ } => {
                    let Some(&link) = self.relays[relay].sessions.get(&worker) else { continue };
                    let mut sent = self.links[link].sent.iter_mut();
                    let found = sent.rfind(|(_, sent)| sent.request == request && !sent.cancelled);
                    if let Some((&attempt, sent)) = found {
                        sent.cancelled = true;
                        self.to_worker(link, ToWorker::Cancel { attempt });
                    }
                }
            }
        }
        self.set_relay_timer(relay);
        self.relay_may_go(relay);
    }

    fn dispatch(&mut self, key: RequestKey, link: LinkIx) {
        self.next_attempt += 1;
        let attempt = self.next_attempt;
        self.stops_waiting(key);
        let request = self.requests.get_mut(&key).expect("it waits");
        assert_eq!(request.state, State::Waiting, "{key:?} runs already");
        request.state = State::Running { attempt };
        let Request { relay, service, arrived, waits_since, .. } = *request;
        self.meetings.meet(self.now, waits_since);
        let worker = self.links[link].worker;
        self.dispatched.push(Dispatched { at: self.now, arrived, relay, attempt });
        self.links[link].sent.insert(attempt, Sent { request: key, cancelled: false });
        // A ghost's slots are nobody's.
        if self.links[link].at_worker {
            self.links[link].arriving += 1;
            self.note_idle(worker);
        }
        self.to_worker(link, ToWorker::Request { attempt, service });
    }

    pub fn at_relay(&mut self, link: LinkIx, message: ToRelay) {
        let relay = self.links[link].relay;
        if let ToRelay::Register = message {
            return self.register(link);
        }
        if !self.links[link].at_relay {
            return;
        }
        let worker = self.links[link].id;
        match message {
            ToRelay::Register => {}
            ToRelay::Grant(credits) => self.tell(relay, Happened::Granted { worker, credits }),
            ToRelay::Recall(n) => {
                let n = self.relays[relay].scheduler.recall(worker, n);
                self.to_worker(link, ToWorker::Return(n));
            }
            ToRelay::Plea { relay: from, model, n, band, age, number } => {
                let model = self.model_name(model);
                let plea = Plea { relay: Arc::from(from.to_string()), model, n, band, age, number };
                self.tell(relay, Happened::Pleaded { worker, plea });
            }
            ToRelay::Load { shared, replicas } => {
                let Shared { relays, idle_elsewhere } = shared;
                let held = (0..self.relays.len()).filter(|relay| replicas & (1 << relay) != 0);
                let replicas = held.map(|relay| Arc::from(relay.to_string())).collect();
                self.tell(relay, Happened::SlotsShared { worker, relays, replicas, idle_elsewhere });
            }
            ToRelay::Started { attempt } => {
                if let Some(request) = self.running(link, attempt) {
                    self.tell(relay, Happened::ResponseStarted { request });
                }
            }
            ToRelay::Done { attempt, regrant } => {
                let running = self.running(link, attempt);
                self.links[link].sent.remove(&attempt);
                if let Some(request) = running {
                    self.end(request);
                    self.ends.answered += 1;
                    self.tell(relay, Happened::Finished { request });
                }
                if regrant {
                    self.links[link].lent_again -= 1;
                    self.tell(relay, Happened::Granted { worker, credits: 1 });
                    self.note_idle(self.links[link].worker);
                }
            }
            ToRelay::Draining => self.tell(relay, Happened::Draining { worker }),
            ToRelay::Close => self.end_at_relay(link),
        }
    }

    /// The request that an attempt still stands for.
    fn running(&self, link: LinkIx, attempt: u64) -> Option<RequestKey> {
        let sent = self.links[link].sent.get(&attempt).filter(|sent| !sent.cancelled)?;
        let state = self.requests.get(&sent.request)?.state;
        (state == State::Running { attempt }).then_some(sent.request)
    }

    fn register(&mut self, link: LinkIx) {
        let Some(&relay) = self.links.get(link).map(|link| &link.relay) else { return };
        if self.relays[relay].phase != Phase::Up {
            return self.to_worker(link, ToWorker::Close);
        }
        let (worker, process) = (self.links[link].worker, self.links[link].process);
        let same =
            |other: &LinkIx| self.links[*other].worker == worker && self.links[*other].process == process;
        let replaced: Vec<LinkIx> = self.relays[relay].sessions.values().copied().filter(same).collect();
        for old in replaced {
            self.end_at_relay(old);
        }
        let id = self.next_worker_id(relay);
        self.links[link].id = id;
        self.links[link].at_relay = true;
        self.relays[relay].sessions.insert(id, link);
        let this = &self.workers[worker];
        let info = WorkerInfo {
            capacity: Capacity::Granted,
            slots: this.slots,
            models: this.models.iter().map(|&model| self.model_name(model)).collect(),
            streams: true,
            identity: worker as u64,
            reported_load: 0,
            pleas: true,
        };
        self.to_worker(link, ToWorker::Ack);
        self.tell(relay, Happened::Joined { worker: id, info });
    }

    /// The relay takes a session for ended.
    pub fn end_at_relay(&mut self, link: LinkIx) {
        if !self.links[link].at_relay {
            return;
        }
        let (relay, worker) = (self.links[link].relay, self.links[link].id);
        self.links[link].at_relay = false;
        self.relays[relay].sessions.remove(&worker);
        self.to_worker(link, ToWorker::Close);
        // What has not begun there waits again, unless the scheduler rejects it.
        for (attempt, sent) in std::mem::take(&mut self.links[link].sent) {
            if self
                .requests
                .get(&sent.request)
                .is_some_and(|request| request.state == (State::Running { attempt }))
            {
                self.begins_to_wait(sent.request);
            }
        }
        self.tell(relay, Happened::Lost { worker });
    }

    /// A rolling update: another relay comes, this one finishes and goes.
    pub fn drain_relay(&mut self, relay: usize) {
        self.relays[relay].phase = Phase::Draining;
        for link in self.relays[relay].sessions.values().copied().collect::<Vec<_>>() {
            self.to_worker(link, ToWorker::Goaway);
        }
        self.agenda.add(self.now + SECOND, Event::StopsAdmitting { relay });
    }

    pub fn relay_may_go(&mut self, relay: usize) {
        let this = &mut self.relays[relay];
        if this.phase != Phase::Draining || this.admits || !this.scheduler.is_idle() {
            return;
        }
        if !this.empty {
            this.empty = true;
            for link in this.sessions.values().copied().collect::<Vec<_>>() {
                self.to_worker(link, ToWorker::Empty);
            }
        }
        if self.relays[relay].sessions.is_empty() {
            self.relays[relay].phase = Phase::Down;
        }
    }

    /// kill -9.
    pub fn crash_relay(&mut self, relay: usize) {
        self.relays[relay].phase = Phase::Down;
        let here: Vec<RequestKey> =
            self.requests.iter().filter(|(_, request)| request.relay == relay).map(|(&key, _)| key).collect();
        for request in here {
            self.end(request);
            self.ends.crashed += 1;
        }
        for link in std::mem::take(&mut self.relays[relay].sessions).into_values() {
            self.links[link].at_relay = false;
            self.to_worker(link, ToWorker::Close);
        }
    }
}
