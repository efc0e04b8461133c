//! What is asked of workers that lend their slots to other replicas as well.

use super::*;

const W4: WorkerId = WorkerId(4);

impl World {
    /// Workers with one slot each that is lent to another replica.
    fn sharing<const N: usize>(workers: [WorkerId; N]) -> Self {
        let mut world = Self::new(SchedulerConfig::default());
        for worker in workers {
            let info = WorkerInfo { identity: worker.0, ..granted(1, &["m"]) };
            world.join(worker, info);
            assert_eq!(world.share(worker, true), []);
        }
        world
    }

    fn share(&mut self, worker: WorkerId, idle_elsewhere: bool) -> Vec<Action> {
        self.handle(Event::SlotsShared { worker, relays: 2, replicas: [].into(), idle_elsewhere })
    }

    fn wait_ms(&mut self, ms: u64) -> Vec<Action> {
        self.now += Duration::from_millis(ms);
        self.scheduler.handle_timeout(self.now);
        self.actions()
    }
}

fn want(worker: WorkerId, n: u32, age_ms: u64) -> Action {
    Action::Want { worker, n, band: 0, age: Duration::from_millis(age_ms), received: 0 }
}

/// Whom the wants go to, and for how many slots.
fn wanted(actions: &[Action]) -> Vec<(WorkerId, u32)> {
    let mut wanted: Vec<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Want { worker, n, .. } => Some((*worker, *n)),
            Action::Dispatch { .. }
            | Action::Reject { .. }
            | Action::Cancel { .. }
            | Action::Plea { .. }
            | Action::Cede { .. } => None,
        })
        .collect();
    wanted.sort_unstable();
    wanted
}

#[test]
fn with_one_replica_nothing_is_ever_asked() {
    let mut world = World::new(SchedulerConfig::default());
    world.join(W1, granted(1, &["m"]));
    world.handle(Event::SlotsShared { worker: W1, relays: 1, replicas: [].into(), idle_elsewhere: false });
    world.grant(W1, 1);
    assert_eq!(workers(&world.submit(request(1))), [W1]);
    assert_eq!(world.submit(request(2)), []);
    assert_eq!(world.wait(10), []);
    assert_eq!(world.finish(1), []);
    assert_eq!(dispatched(&world.grant(W1, 1)), [2]);
}

#[test]
fn as_many_idle_workers_are_asked_at_once_as_slots_are_lacking() {
    let mut world = World::sharing(std::array::from_fn::<_, 80, _>(|n| WorkerId(n as u64 + 1)));
    let first = wanted(&world.submit(request(1)));
    assert!(matches!(first[..], [(_, 1)]), "{first:?}");
    let second = wanted(&world.submit(request(2)));
    assert!(matches!(second[..], [(_, 1)]), "{second:?}");
    assert_ne!(first, second);
    let lent = first[0].0;
    assert_eq!(world.grant(lent, 1), [dispatch(1, lent)], "a want that is filled needs no word");
    assert_eq!(world.share(lent, false), []);
    assert_eq!(wanted(&world.submit(request(3))).len(), 1);
}

#[test]
fn in_a_small_fleet_one_worker_more_is_asked_than_is_needed() {
    let mut world = World::sharing([W1, W2, W3]);
    let first = wanted(&world.submit(request(1)));
    assert!(matches!(first[..], [(_, 1), (_, 1)]), "{first:?}");
    // The first to answer serves it, and the other keeps its slot.
    let (lent, spare) = (first[0].0, first[1].0);
    assert_eq!(world.grant(lent, 1), [dispatch(1, lent), want(spare, 0, 0)]);
}

#[test]
fn one_worker_with_many_slots_is_asked_for_all_that_are_lacking() {
    let mut world = World::new(SchedulerConfig::default());
    world.join(W1, granted(3, &["m"]));
    world.share(W1, true);
    assert_eq!(wanted(&world.submit(request(1))), [(W1, 1)]);
    assert_eq!(wanted(&world.submit(request(2))), [(W1, 2)]);
    assert_eq!(dispatched(&world.grant(W1, 1)), [1]);
    assert_eq!(wanted(&world.submit(request(3))), [(W1, 2)]);
    assert_eq!(wanted(&world.submit(request(4))), [(W1, 3)]);
    assert_eq!(wanted(&world.submit(request(5))), [], "it has no more");
    assert_eq!(dispatched(&world.grant(W1, 2)), [2, 3]);
}

#[test]
fn when_nobody_is_idle_all_that_serve_the_model_are_asked() {
    let mut world = World::sharing([W1, W2, W3]);
    world.join(W4, granted(1, &["other"]));
    world.share(W4, true);
    for worker in [W1, W2, W3] {
        world.share(worker, false);
    }
    assert_eq!(wanted(&world.submit(request(1))), [(W1, 1), (W2, 1), (W3, 1)]);
    // One that turns idle has been asked already.
    assert_eq!(world.share(W2, true), []);
    assert_eq!(world.grant(W2, 1)[0], dispatch(1, W2));
    let open = wanted(&world.actions());
    assert_eq!(open, [], "what was open was withdrawn in the same step");
}

#[test]
fn wants_are_withdrawn_when_nothing_waits_any_more() {
    let mut world = World::sharing([W1, W2]);
    world.share(W1, false);
    world.share(W2, false);
    assert_eq!(wanted(&world.submit(request(1))), [(W1, 1), (W2, 1)]);
    assert_eq!(wanted(&world.leave(1)), [(W1, 0), (W2, 0)]);
    assert_eq!(world.scheduler.poll_timeout(), None);
}

#[test]
fn a_slot_that_came_too_late_is_declined() {
    let mut world = World::sharing([W1, W2]);
    world.share(W1, false);
    world.share(W2, false);
    world.submit(request(1));
    world.submit(request(2));
    world.wait_ms(250);
    assert_eq!(dispatched(&world.grant(W1, 1)), [1]);
    let said = world.grant(W2, 2);
    assert_eq!(dispatched(&said), [2]);
    assert_eq!(wanted(&said), [(W2, 0)]);
    assert_eq!(workers(&world.submit(request(3))), [W2], "and stays of use");
}

#[test]
fn a_request_that_lost_the_race_for_an_idle_slot_tries_the_next() {
    let mut world = World::sharing([W1, W2, W3]);
    let asked = wanted(&world.submit(request(1)));
    let [(first, _), (second, _)] = asked[..] else { panic!("{asked:?}") };
    let third = [W1, W2, W3].into_iter().find(|worker| ![first, second].contains(worker)).unwrap();
    assert_eq!(wanted(&world.share(first, false)), []);
    assert_eq!(wanted(&world.share(second, false)), [(third, 1)]);
    // All wants stay: the first to free a slot serves it, and the others are told.
    let told = wanted(&world.grant(first, 1));
    let mut others = [(second, 0), (third, 0)];
    others.sort_unstable();
    assert_eq!(told, others);
}

#[test]
fn wants_carry_the_next_requests_band_and_age_and_are_renewed_when_they_change() {
    let mut world = World::sharing([W1]);
    world.share(W1, false);
    assert_eq!(world.submit(request(1)), [want(W1, 1, 0)]);
    assert_eq!(world.wait_ms(100), []);
    assert_eq!(world.submit(Submission { band: 5, ..request(2) }), []);
    let age = Duration::from_millis(150);
    assert_eq!(world.wait_ms(150), [Action::Want { worker: W1, n: 2, band: 5, age, received: 0 }]);
    assert_eq!(world.wait_ms(250), [], "the worker counts on by itself");
    assert_eq!(world.leave(2), []);
    assert_eq!(world.wait_ms(250), [want(W1, 1, 750)]);
}

#[test]
fn models_are_asked_for_where_they_are_served() {
    let mut world = World::sharing([W1, W2]);
    let other = |key| Submission { targets: targets(&[("other", 1)]), ..request(key) };
    world.join(W3, granted(1, &["other"]));
    world.share(W3, true);
    assert_eq!(wanted(&world.submit(other(1))), [(W3, 1)]);
    assert_eq!(wanted(&world.models(W3, &["m"])), [], "nobody serves it now");
    assert_eq!(wanted(&world.wait_ms(250)), [(W3, 0)]);
    assert_eq!(wanted(&world.models(W2, &["other"])), [(W2, 1)]);
}

#[test]
fn workers_that_drain_or_are_lost_are_asked_nothing() {
    let mut world = World::sharing([W1, W2, W3]);
    world.drain(W1);
    world.lose(W2);
    assert_eq!(wanted(&world.submit(request(1))), [(W3, 1)]);
    assert_eq!(wanted(&world.lose(W3)), []);
    assert_eq!(wanted(&world.leave(1)), []);
}

#[test]
fn each_want_at_a_busy_worker_stands_for_another_of_the_requests() {
    let mut world = World::sharing([W1, W2, W3]);
    for worker in [W1, W2, W3] {
        world.share(worker, false);
    }
    world.submit(request(1));
    world.wait_ms(10);
    world.submit(Submission { band: 1, ..request(2) });
    world.wait_ms(10);
    for key in 3..=6 {
        world.submit(request(key));
    }
    let said = world.wait_ms(230);
    let mut claims: Vec<(u32, i32, u128)> = said
        .iter()
        .filter_map(|action| match action {
            Action::Want { n, band, age, .. } => Some((*n, *band, age.as_millis())),
            Action::Dispatch { .. }
            | Action::Reject { .. }
            | Action::Cancel { .. }
            | Action::Plea { .. }
            | Action::Cede { .. } => None,
        })
        .collect();
    claims.sort_unstable();
    assert_eq!(claims, [(2, 0, 230), (2, 0, 250), (2, 1, 240)], "six requests, two for each worker");
}

#[test]
fn wants_are_withdrawn_where_they_mean_nothing_any_more() {
    let mut world = World::sharing([W1, W2]);
    world.share(W1, false);
    world.share(W2, false);
    world.submit(request(1));
    assert_eq!(wanted(&world.drain(W1)), [(W1, 0)]);
    let alone = Event::SlotsShared { worker: W2, relays: 1, replicas: [].into(), idle_elsewhere: false };
    assert_eq!(wanted(&world.handle(alone)), [(W2, 0)]);
}

#[test]
fn of_many_busy_workers_all_replicas_ask_the_same_and_others_in_the_next_second() {
    let asked = |seed, unix_ms: u64| {
        let mut world = World::new(SchedulerConfig::default());
        let unix_time = Duration::from_millis(unix_ms);
        world.scheduler.set_replica(Replica { seed, at: world.now, unix_time });
        for worker in 1..=200 {
            world.join(WorkerId(worker), WorkerInfo { identity: worker, ..granted(1, &["m"]) });
            world.share(WorkerId(worker), false);
        }
        wanted(&world.submit(request(1))).into_iter().map(|(worker, _)| worker).collect::<Vec<_>>()
    };
    assert_eq!(asked(1, 5100).len(), 64);
    assert_eq!(asked(1, 5100), asked(2, 5900));
    assert_ne!(asked(1, 5100), asked(1, 6100));
}

#[test]
fn replicas_try_idle_workers_in_orders_of_their_own() {
    let first = |seed| {
        let mut world = World::new(SchedulerConfig::default());
        world.scheduler.set_replica(Replica { seed, at: world.now, unix_time: Duration::ZERO });
        for worker in 1..=50 {
            world.join(WorkerId(worker), WorkerInfo { identity: worker, ..granted(1, &["m"]) });
            world.share(WorkerId(worker), true);
        }
        wanted(&world.submit(request(1)))
    };
    let firsts: BTreeSet<_> = (0..20).map(first).collect();
    assert!(firsts.len() > 10, "{firsts:?}");
}
