//! The scheduler against a plain restatement of its rules, over random histories.
//!
//! A failure prints the seed and the shortest history found; `SCHEDULER_SEED` runs a seed again.

#![allow(clippy::disallowed_methods, clippy::panic)]

#[path = "properties/reference.rs"]
mod reference;

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use modelrelay_relay::scheduler::{
    Action, Affinity, Capacity, Event, Plea, RefusalCause, RequestKey, Scheduler, SchedulerConfig,
    SessionNeeds, Strategy as Placement, Submission, Target, TenantId, WorkerId, WorkerInfo,
};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use self::reference::Reference;

/// One step of a history. Numbers that name a worker or request pick one of those there are.
#[derive(Clone, Debug)]
enum Step {
    Join { granted: bool, slots: u32, models: Vec<Arc<str>>, streams: bool, load: u32 },
    Models { worker: usize, models: Vec<Arc<str>> },
    Load { worker: usize, load: u32 },
    Grant { worker: usize, credits: u32 },
    Recall { worker: usize, credits: u32 },
    Share { worker: usize, relays: u32, idle: bool },
    Plea { worker: usize, model: Arc<str>, n: u32, band: i32 },
    Drain { worker: usize },
    Lose { worker: usize },
    Submit { targets: Arc<[Target]>, tenant: u32, band: i32, bytes: u64, kind: u8, limit: Option<u64> },
    Start { request: usize },
    Finish { request: usize },
    Refuse { request: usize, penalise: bool },
    Leave { request: usize },
    Wait { millis: u64 },
    Configure { config: Box<SchedulerConfig> },
}

fn model() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![4 => Just("a"), 3 => Just("b"), 1 => Just("c")].prop_map(Arc::from)
}

fn models() -> impl Strategy<Value = Vec<Arc<str>>> {
    prop_oneof![
        8 => prop::collection::vec(model(), 0..3),
        1 => prop::collection::vec(model(), 0..2).prop_map(|named| [vec!["*".into()], named].concat()),
    ]
}

fn targets() -> impl Strategy<Value = Arc<[Target]>> {
    let target = (model(), 0..3_u32).prop_map(|(model, weight)| Target { model, weight });
    prop_oneof![
        3 => model().prop_map(|model| vec![Target { model, weight: 1 }]),
        1 => prop::collection::vec(target, 2..4),
    ]
    .prop_map(Arc::from)
}

fn config() -> impl Strategy<Value = SchedulerConfig> {
    let weight = prop_oneof![Just(1_u32), Just(2), Just(4)];
    let tenants = prop::collection::btree_map((0..4_u32).prop_map(TenantId), weight, 0..3);
    let strategy =
        prop_oneof![Just(Placement::LeastLoad), Just(Placement::PrefixHash { max_load_percent: 125 })];
    (0..6_usize, 0..2000_u64, 1..20_u64, 1..20_u64, 0..4_u32, tenants, strategy).prop_map(
        |(max_requests, max_bytes, queue, no_worker, max_requeues, tenants, strategy)| SchedulerConfig {
            max_requests,
            max_bytes,
            queue_timeout: Duration::from_millis(queue * 500),
            no_worker_timeout: Duration::from_millis(no_worker * 500),
            max_requeues,
            tenants,
            strategy,
        },
    )
}

fn submit() -> impl Strategy<Value = Step> {
    let limit = prop::option::weighted(0.1, 0..5000_u64);
    (targets(), 0..4_u32, -1..2_i32, 0..100_u64, 0..10_u8, limit).prop_map(
        |(targets, tenant, band, bytes, kind, limit)| Step::Submit {
            targets,
            tenant,
            band,
            bytes,
            kind,
            limit,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let pick = 0..1000_usize;
    prop_oneof![
        5 => (any::<bool>(), 1..4_u32, models(), any::<bool>(), 0..2_u32).prop_map(
            |(granted, slots, models, streams, load)| Step::Join { granted, slots, models, streams, load }
        ),
        2 => (pick.clone(), models()).prop_map(|(worker, models)| Step::Models { worker, models }),
        2 => (pick.clone(), 0..4_u32).prop_map(|(worker, load)| Step::Load { worker, load }),
        10 => (pick.clone(), 1..3_u32).prop_map(|(worker, credits)| Step::Grant { worker, credits }),
        1 => (pick.clone(), 0..3_u32).prop_map(|(worker, credits)| Step::Recall { worker, credits }),
        4 => (pick.clone(), 1..4_u32, any::<bool>())
            .prop_map(|(worker, relays, idle)| Step::Share { worker, relays, idle }),
        4 => (pick.clone(), model(), 0..4_u32, -1..2_i32)
            .prop_map(|(worker, model, n, band)| Step::Plea { worker, model, n, band }),
        1 => pick.clone().prop_map(|worker| Step::Drain { worker }),
        5 => pick.clone().prop_map(|worker| Step::Lose { worker }),
        40 => submit(),
        8 => pick.clone().prop_map(|request| Step::Start { request }),
        24 => pick.clone().prop_map(|request| Step::Finish { request }),
        6 => (pick.clone(), any::<bool>()).prop_map(|(request, penalise)| Step::Refuse { request, penalise }),
        3 => pick.prop_map(|request| Step::Leave { request }),
        10 => (0..3000_u64).prop_map(|millis| Step::Wait { millis }),
        1 => config().prop_map(|config| Step::Configure { config: Box::new(config) }),
    ]
}

/// The scheduler, a twin that is told the same, and the reference.
struct History {
    scheduler: Scheduler,
    twin: Scheduler,
    reference: Reference,
    workers: u64,
    requests: u64,
    pleas: u64,
}

impl History {
    fn new(config: SchedulerConfig) -> Self {
        let scheduler = Scheduler::new(config.clone());
        let twin = Scheduler::new(config.clone());
        Self {
            scheduler,
            twin,
            reference: Reference::new(config, Instant::now()),
            workers: 0,
            requests: 0,
            pleas: 0,
        }
    }

    fn take(&mut self, step: Step) {
        let worker = |pick: usize| {
            let all = self.reference.workers();
            all.get(pick % all.len().max(1)).copied().unwrap_or(WorkerId(0))
        };
        let request = |pick: usize| {
            let all = self.reference.requests();
            all.get(pick % all.len().max(1)).copied().unwrap_or(RequestKey(0))
        };
        let event = match step {
            Step::Join { granted, slots, models, streams, load } => {
                self.workers += 1;
                let capacity = if granted { Capacity::Granted } else { Capacity::Declared { slots } };
                let identity = self.workers * 7919;
                let info = WorkerInfo {
                    capacity,
                    slots,
                    models,
                    streams,
                    identity,
                    reported_load: load,
                    pleas: streams,
                };
                Event::Joined { worker: WorkerId(self.workers), info }
            }
            Step::Models { worker: pick, models } => Event::ModelsChanged { worker: worker(pick), models },
            Step::Load { worker: pick, load } => Event::LoadReported { worker: worker(pick), load },
            Step::Grant { worker: pick, credits } => Event::Granted { worker: worker(pick), credits },
            Step::Recall { worker: pick, credits } => {
                let worker = worker(pick);
                let taken = self.scheduler.recall(worker, credits);
                assert_eq!(taken, self.twin.recall(worker, credits));
                assert_eq!(taken, self.reference.recall(worker, credits));
                return;
            }
            Step::Share { worker: pick, relays, idle } => {
                Event::SlotsShared { worker: worker(pick), relays, replicas: [].into(), idle_elsewhere: idle }
            }
            Step::Plea { worker: pick, model, n, band } => {
                self.pleas += 1;
                let (relay, age) = (Arc::from("another"), Duration::ZERO);
                let plea = Plea { relay, model, n, band, age, number: self.pleas };
                Event::Pleaded { worker: worker(pick), plea }
            }
            Step::Drain { worker: pick } => Event::Draining { worker: worker(pick) },
            Step::Lose { worker: pick } => Event::Lost { worker: worker(pick) },
            Step::Submit { targets, tenant, band, bytes, kind, limit } => {
                self.requests += 1;
                let hash = u64::from(kind) * 31;
                Event::Submitted(Submission {
                    request: RequestKey(self.requests),
                    targets,
                    tenant: TenantId(tenant),
                    band,
                    bytes,
                    affinity: match kind {
                        0 | 1 => Some(Affinity::Session(hash)),
                        2 | 3 => Some(Affinity::Prefix(hash)),
                        _ => None,
                    },
                    excluded: SessionNeeds { needs_streams: kind % 5 == 4 },
                    deadline: limit.map(|millis| self.reference.now + Duration::from_millis(millis)),
                })
            }
            Step::Start { request: pick } => Event::ResponseStarted { request: request(pick) },
            Step::Finish { request: pick } => Event::Finished { request: request(pick) },
            Step::Refuse { request: pick, penalise } => {
                let cause = RefusalCause::BackendReset;
                Event::Refused { request: request(pick), cause, penalise }
            }
            Step::Leave { request: pick } => Event::ClientGone { request: request(pick) },
            Step::Wait { millis } => return self.wait(Duration::from_millis(millis)),
            Step::Configure { config } => {
                let now = self.reference.now;
                self.scheduler.reconfigure((*config).clone(), now);
                self.twin.reconfigure((*config).clone(), now);
                self.reference.config = *config;
                return;
            }
        };
        self.reference.handle(&event);
        self.scheduler.handle(event.clone(), self.reference.now);
        self.twin.handle(event, self.reference.now);
        self.settle();
    }

    fn wait(&mut self, time: Duration) {
        let end = self.reference.now + time;
        while let Some(due) = self.scheduler.poll_timeout().filter(|due| *due <= end) {
            self.reference.advance(due.max(self.reference.now));
            self.reference.time_out();
            self.scheduler.handle_timeout(self.reference.now);
            self.twin.handle_timeout(self.reference.now);
            self.settle();
        }
        self.reference.advance(end);
        self.reference.time_out();
        self.reference.check_settled();
    }

    fn settle(&mut self) {
        while let Some(action) = self.scheduler.poll_action() {
            assert_eq!(
                self.twin.poll_action(),
                Some(action.clone()),
                "the same events give the same actions"
            );
            self.reference.observe(&action);
        }
        assert_eq!(self.twin.poll_action(), None);
        self.reference.check_settled();
        let counts = self.scheduler.counts();
        assert_eq!(counts.waiting, self.reference.count_waiting());
        assert_eq!(counts.waiting + counts.running, self.reference.requests().len());
    }

    /// Everybody leaves, and every request that still waits runs into a limit.
    fn end(&mut self) {
        for worker in self.reference.workers() {
            let event = Event::Lost { worker };
            self.reference.handle(&event);
            self.scheduler.handle(event.clone(), self.reference.now);
            self.twin.handle(event, self.reference.now);
            self.settle();
        }
        self.wait(Duration::from_secs(60));
        assert!(self.scheduler.is_idle());
        assert_eq!(self.reference.requests(), []);
        assert_eq!(self.scheduler.poll_timeout(), None);
        assert_eq!(self.scheduler.snapshot(self.reference.now).queues, []);
    }
}

/// Runs a property on `cases` random inputs; a failure names the seed.
fn check<S: Strategy>(cases: u32, input: &S, property: impl Fn(S::Value)) {
    let seed = std::env::var("SCHEDULER_SEED").map_or_else(
        |_| RandomState::new().hash_one(0),
        |seed| seed.parse().expect("SCHEDULER_SEED is a number"),
    );
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut bytes = [1; 16];
    bytes[..8].copy_from_slice(&u64::to_le_bytes(seed));
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &bytes);
    let outcome = TestRunner::new_with_rng(config, rng).run(input, |value| {
        property(value);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("SCHEDULER_SEED={seed}: {error}");
    }
}

#[test]
fn every_rule_holds_over_random_histories() {
    let steps = Cell::new(0);
    let histories = (config(), prop::collection::vec(step(), 1..900));
    check(300, &histories, |(config, history)| {
        let mut world = History::new(config);
        for step in history {
            world.take(step);
            steps.set(steps.get() + 1);
        }
        world.end();
    });
    assert!(steps.get() >= 100_000, "{} steps", steps.get());
}

/// The longest that a request holds a slot in [`backlogged_tenants_get_their_shares`].
const LONGEST: Duration = Duration::from_secs(20);

/// Tenants that always wait for the same slots, and what they got.
struct Competition {
    scheduler: Scheduler,
    now: Instant,
    requests: u64,
    tenants: BTreeMap<RequestKey, usize>,
    running: Vec<u32>,
    /// Seconds of slot time.
    used: Vec<f64>,
}

impl Competition {
    fn new(weights: &[u32], slots: &[u32]) -> Self {
        let tenants = (0..).map(TenantId).zip(weights.iter().copied()).collect();
        let queue_timeout = Duration::from_secs(1_000_000);
        let config = SchedulerConfig { tenants, queue_timeout, ..SchedulerConfig::default() };
        let mut scheduler = Scheduler::new(config);
        let now = Instant::now();
        for (id, &slots) in (1..).zip(slots) {
            let capacity = Capacity::Declared { slots };
            let models = vec!["m".into()];
            let info = WorkerInfo {
                capacity,
                slots,
                models,
                streams: false,
                identity: id,
                reported_load: 0,
                pleas: false,
            };
            scheduler.handle(Event::Joined { worker: WorkerId(id), info }, now);
        }
        let (running, used) = (vec![0; weights.len()], vec![0.0; weights.len()]);
        Self { scheduler, now, requests: 0, tenants: BTreeMap::new(), running, used }
    }

    fn submit(&mut self, tenant: usize) {
        self.requests += 1;
        let request = RequestKey(self.requests);
        self.tenants.insert(request, tenant);
        let submission = Submission {
            request,
            targets: [Target { model: "m".into(), weight: 1 }].into(),
            tenant: TenantId(tenant.try_into().expect("few tenants")),
            band: 0,
            bytes: 1,
            affinity: None,
            excluded: SessionNeeds::default(),
            deadline: None,
        };
        self.scheduler.handle(Event::Submitted(submission), self.now);
    }

    fn dispatched(&mut self) -> Vec<RequestKey> {
        let mut started = Vec::new();
        while let Some(action) = self.scheduler.poll_action() {
            let Action::Dispatch { request, .. } = action else { panic!("{action:?}") };
            self.running[self.tenants[&request]] += 1;
            started.push(request);
        }
        started
    }

    /// Lets time pass until a request ends; returns whose it was.
    fn finish(&mut self, request: RequestKey, end: Instant) -> usize {
        for (used, running) in self.used.iter_mut().zip(&self.running) {
            *used += f64::from(*running) * (end - self.now).as_secs_f64();
        }
        self.now = end;
        let tenant = self.tenants[&request];
        self.running[tenant] -= 1;
        self.scheduler.handle(Event::Finished { request }, end);
        tenant
    }
}

#[test]
fn backlogged_tenants_get_their_shares() {
    let weights = prop::collection::vec(1..5_u32, 2..5);
    let slots = prop::collection::vec(1..5_u32, 1..4);
    let longest: u64 = LONGEST.as_millis().try_into().expect("seconds");
    let durations = prop::collection::vec(1..=longest, 300);
    let head_start = 0..20_u32;
    check(100, &(weights, slots, durations, head_start), |(weights, slots, durations, head_start)| {
        let mut world = Competition::new(&weights, &slots);
        for _ in 0..head_start {
            world.submit(0);
            let request = world.dispatched()[0];
            world.finish(request, world.now + LONGEST);
        }
        world.used.fill(0.0);
        let total: u32 = slots.iter().sum();
        for _ in 0..2 * total {
            (0..weights.len()).for_each(|tenant| world.submit(tenant));
        }
        let mut ends = BinaryHeap::new();
        for millis in durations {
            for request in world.dispatched() {
                ends.push(Reverse((world.now + Duration::from_millis(millis), request)));
            }
            let Reverse((end, request)) = ends.pop().expect("slots are never idle");
            let tenant = world.finish(request, end);
            world.submit(tenant);
            let shares = || world.used.iter().zip(&weights).map(|(used, weight)| used / f64::from(*weight));
            let gap = shares().fold(0.0, f64::max) - shares().fold(f64::MAX, f64::min);
            let lightest = weights.iter().min().copied().unwrap_or(1);
            let bound = f64::from(total) * LONGEST.as_secs_f64() / f64::from(lightest);
            // The floor has not seen the last request that the first tenant ran alone.
            let at_start = LONGEST.as_secs_f64() / f64::from(weights[0]);
            assert!(gap <= bound + at_start, "{:?} by weights {weights:?}: {gap} of {bound}", world.used);
        }
    });
}
