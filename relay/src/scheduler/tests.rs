//! Each rule with exact actions. The properties over random histories are in `tests/properties.rs`.

#![allow(clippy::disallowed_methods)]

mod borrowing;
mod giving_way;
mod moving;
mod order;
mod placing;
mod pleading;
mod waiting;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;

const W1: WorkerId = WorkerId(1);
const W2: WorkerId = WorkerId(2);
const W3: WorkerId = WorkerId(3);

/// A scheduler with a clock of its own, and a shorter way to say what happens to it.
struct World {
    scheduler: Scheduler,
    now: Instant,
}

impl World {
    fn new(config: SchedulerConfig) -> Self {
        Self { scheduler: Scheduler::new(config), now: Instant::now() }
    }

    /// v1 workers with these slots, all serving `m`.
    fn with_workers<const N: usize>(workers: [(WorkerId, u32); N]) -> Self {
        let mut world = Self::new(SchedulerConfig::default());
        for (worker, slots) in workers {
            assert_eq!(world.join(worker, declared(slots, &["m"])), []);
        }
        world
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.scheduler.handle(event, self.now);
        self.actions()
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.scheduler.poll_action()).collect()
    }

    /// Lets time pass, with each limit handled when it is due.
    fn wait(&mut self, seconds: u64) -> Vec<Action> {
        let end = self.now + Duration::from_secs(seconds);
        let mut actions = Vec::new();
        while let Some(due) = self.scheduler.poll_timeout().filter(|due| *due <= end) {
            self.now = due;
            self.scheduler.handle_timeout(self.now);
            actions.extend(self.actions());
        }
        self.now = end;
        actions
    }

    fn join(&mut self, worker: WorkerId, info: WorkerInfo) -> Vec<Action> {
        self.handle(Event::Joined { worker, info })
    }

    fn submit(&mut self, submission: Submission) -> Vec<Action> {
        self.handle(Event::Submitted(submission))
    }

    fn grant(&mut self, worker: WorkerId, credits: u32) -> Vec<Action> {
        self.handle(Event::Granted { worker, credits })
    }

    fn models(&mut self, worker: WorkerId, models: &[&str]) -> Vec<Action> {
        self.handle(Event::ModelsChanged { worker, models: names(models) })
    }

    fn report(&mut self, worker: WorkerId, load: u32) -> Vec<Action> {
        self.handle(Event::LoadReported { worker, load })
    }

    fn drain(&mut self, worker: WorkerId) -> Vec<Action> {
        self.handle(Event::Draining { worker })
    }

    fn lose(&mut self, worker: WorkerId) -> Vec<Action> {
        self.handle(Event::Lost { worker })
    }

    fn start(&mut self, request: u64) -> Vec<Action> {
        self.handle(Event::ResponseStarted { request: RequestKey(request) })
    }

    fn finish(&mut self, request: u64) -> Vec<Action> {
        self.handle(Event::Finished { request: RequestKey(request) })
    }

    fn leave(&mut self, request: u64) -> Vec<Action> {
        self.handle(Event::ClientGone { request: RequestKey(request) })
    }

    fn refuse(&mut self, request: u64) -> Vec<Action> {
        let cause = RefusalCause::OverCapacity;
        self.handle(Event::Refused { request: RequestKey(request), cause, penalise: false })
    }
}

fn names(models: &[&str]) -> Vec<Arc<str>> {
    models.iter().map(|&model| model.into()).collect()
}

/// A plain v1 worker.
fn declared(slots: u32, models: &[&str]) -> WorkerInfo {
    WorkerInfo {
        capacity: Capacity::Declared { slots },
        slots,
        models: names(models),
        streams: false,
        identity: 0,
        reported_load: 0,
        pleas: false,
    }
}

/// A worker of ours, before it lends anything.
fn granted(slots: u32, models: &[&str]) -> WorkerInfo {
    WorkerInfo { capacity: Capacity::Granted, streams: true, ..declared(slots, models) }
}

/// A request of tenant 0 for `m`.
fn request(key: u64) -> Submission {
    Submission {
        request: RequestKey(key),
        targets: targets(&[("m", 1)]),
        tenant: TenantId(0),
        band: 0,
        bytes: 10,
        affinity: None,
        excluded: SessionNeeds::default(),
        deadline: None,
    }
}

fn of_tenant(key: u64, tenant: u32) -> Submission {
    Submission { tenant: TenantId(tenant), ..request(key) }
}

fn in_band(key: u64, band: i32) -> Submission {
    Submission { band, ..request(key) }
}

fn for_model(key: u64, model: &str) -> Submission {
    split(key, &[(model, 1)])
}

fn split(key: u64, shares: &[(&str, u32)]) -> Submission {
    Submission { targets: targets(shares), ..request(key) }
}

fn any_body(key: u64) -> Submission {
    Submission { excluded: SessionNeeds { needs_streams: true }, ..request(key) }
}

fn targets(shares: &[(&str, u32)]) -> Arc<[Target]> {
    shares.iter().map(|&(model, weight)| Target { model: model.into(), weight }).collect()
}

fn dispatch(request: u64, worker: WorkerId) -> Action {
    Action::Dispatch { request: RequestKey(request), worker, target: 0 }
}

fn reject(request: u64, reason: Reject) -> Action {
    Action::Reject { request: RequestKey(request), reason }
}

fn queue_full(request: u64) -> Action {
    reject(request, Reject::QueueFull { retry_after: Duration::from_secs(1) })
}

fn cancel(request: u64, worker: WorkerId, reason: CancelReason) -> Action {
    Action::Cancel { request: RequestKey(request), worker, reason }
}

/// The worker of each dispatch.
fn workers(actions: &[Action]) -> Vec<WorkerId> {
    let worker = |action: &Action| match action {
        Action::Dispatch { worker, .. } => Some(*worker),
        Action::Reject { .. }
        | Action::Cancel { .. }
        | Action::Want { .. }
        | Action::Plea { .. }
        | Action::Cede { .. } => None,
    };
    actions.iter().filter_map(worker).collect()
}

/// The request of each dispatch.
fn dispatched(actions: &[Action]) -> Vec<u64> {
    let request = |action: &Action| match action {
        Action::Dispatch { request, .. } => Some(request.0),
        Action::Reject { .. }
        | Action::Cancel { .. }
        | Action::Want { .. }
        | Action::Plea { .. }
        | Action::Cede { .. } => None,
    };
    actions.iter().filter_map(request).collect()
}
