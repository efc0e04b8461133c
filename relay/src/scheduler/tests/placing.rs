//! Which worker a request goes to, and when a slot is free.

use super::*;

#[test]
fn workers_of_equal_load_take_turns() {
    let mut world = World::with_workers([(W1, 4), (W2, 4), (W3, 4)]);
    let order: Vec<Action> = (1..=6).flat_map(|key| world.submit(request(key))).collect();
    assert_eq!(workers(&order), [W1, W2, W3, W1, W2, W3]);
    for key in 1..=6 {
        world.finish(key);
    }
    assert_eq!(world.submit(request(7)), [dispatch(7, W1)]);
}

#[test]
fn load_is_relative_to_the_slots() {
    let mut world = World::with_workers([(W1, 2), (W2, 8)]);
    let order: Vec<Action> = (1..=10).flat_map(|key| world.submit(request(key))).collect();
    let to_w1: Vec<usize> = (0..10).filter(|&n| workers(&order)[n] == W1).collect();
    assert_eq!(to_w1, [0, 5], "one of W1's two slots counts as much as four of W2's eight");
}

#[test]
fn workers_of_every_kind_compete_by_load() {
    let mut world = World::with_workers([(W1, 4)]);
    world.join(W2, granted(4, &["m"]));
    world.grant(W2, 4);
    world.join(W3, declared(4, &["*"]));
    world.report(W1, 1);
    world.report(W3, 2);
    let order: Vec<Action> = (1..=6).flat_map(|key| world.submit(request(key))).collect();
    assert_eq!(workers(&order), [W2, W1, W2, W3, W1, W2]);
}

#[test]
fn foreign_load_is_what_was_reported_less_what_is_in_flight() {
    let mut world = World::new(SchedulerConfig::default());
    world.join(W1, WorkerInfo { reported_load: 1, ..declared(2, &["m"]) });
    assert_eq!(world.submit(request(1)), [dispatch(1, W1)]);
    assert_eq!(world.submit(request(2)), [], "one slot was taken when it joined");
    assert_eq!(world.report(W1, 2), [], "its own request is in that figure");
    assert_eq!(world.report(W1, 1), [dispatch(2, W1)], "the other load is gone");
    assert_eq!(world.report(W1, 5), []);
    assert_eq!(world.finish(1), []);
    assert_eq!(world.submit(request(3)), [], "three foreign ones and one of its own");
    assert_eq!(world.report(W1, 0), [dispatch(3, W1)], "never below nothing");
    assert_eq!(world.submit(request(4)), []);
}

#[test]
fn one_slot_worker_is_free_after_its_completion_whatever_it_reported_meanwhile() {
    let mut world = World::with_workers([(W1, 1)]);
    assert_eq!(world.submit(request(1)), [dispatch(1, W1)]);
    world.report(W1, 1);
    world.finish(1);
    assert_eq!(world.submit(request(2)), [dispatch(2, W1)]);
}

#[test]
fn dispatch_spends_a_credit_and_only_a_grant_brings_one_back() {
    let mut world = World::new(SchedulerConfig::default());
    world.join(W1, granted(4, &["m"]));
    assert_eq!(world.submit(request(1)), []);
    assert_eq!(world.grant(W1, 1), [dispatch(1, W1)]);
    assert_eq!(world.submit(request(2)), []);
    assert_eq!(world.finish(1), []);
    assert_eq!(world.grant(W1, 2), [dispatch(2, W1)]);
    assert_eq!(world.leave(2), [cancel(2, W1, CancelReason::ClientGone)]);
    assert_eq!(world.submit(request(3)), [dispatch(3, W1)], "the second credit");
    assert_eq!(world.submit(request(4)), [], "a cancel gives none back");
}

#[test]
fn recalled_credits_are_gone() {
    let mut world = World::new(SchedulerConfig::default());
    world.join(W1, granted(4, &["m"]));
    world.grant(W1, 3);
    assert_eq!(world.scheduler.recall(W1, 2), 2);
    assert_eq!(world.submit(request(1)), [dispatch(1, W1)]);
    assert_eq!(world.submit(request(2)), []);
    assert_eq!(world.scheduler.recall(W1, 5), 0);
    assert_eq!(world.scheduler.recall(W2, 5), 0);
}

#[test]
fn cancelled_slot_of_a_v1_worker_is_free_at_once() {
    let mut world = World::with_workers([(W1, 1)]);
    world.submit(request(1));
    world.submit(request(2));
    assert_eq!(world.leave(1), [cancel(1, W1, CancelReason::ClientGone), dispatch(2, W1)]);
    assert_eq!(world.finish(1), [], "a late completion frees nothing again");
    assert_eq!(world.submit(request(3)), []);
}

#[test]
fn wildcard_serves_any_model_and_is_not_listed() {
    let mut world = World::new(SchedulerConfig::default());
    assert_eq!(world.submit(for_model(1, "a")), []);
    assert_eq!(world.submit(for_model(2, "b")), []);
    assert_eq!(world.join(W1, declared(3, &["*", "z", "z"])), [dispatch(1, W1), dispatch(2, W1)]);
    assert_eq!(world.submit(for_model(3, "c")), [dispatch(3, W1)]);
    world.join(W2, declared(1, &["b"]));
    assert_eq!(world.scheduler.served_models().map(|name| &**name).collect::<Vec<_>>(), ["b", "z"]);
    assert_eq!(world.submit(for_model(4, "b")), [dispatch(4, W2)]);
}

#[test]
fn draining_worker_gets_nothing_new_and_keeps_what_runs() {
    let mut world = World::with_workers([(W1, 2)]);
    assert_eq!(world.submit(request(1)), [dispatch(1, W1)]);
    assert_eq!(world.drain(W1), []);
    assert_eq!(world.scheduler.served_models().count(), 0);
    assert_eq!(world.submit(request(2)), []);
    assert_eq!(world.models(W1, &["m"]), []);
    assert_eq!(world.start(1), []);
    assert_eq!(world.finish(1), []);
    assert_eq!(world.lose(W1), []);
    assert_eq!(world.join(W2, declared(1, &["m"])), [dispatch(2, W2)]);
}

#[test]
fn models_changed_moves_a_worker_between_queues() {
    let mut world = World::with_workers([(W1, 2)]);
    assert_eq!(world.submit(request(1)), [dispatch(1, W1)]);
    assert_eq!(world.submit(for_model(2, "n")), []);
    assert_eq!(world.models(W1, &["n"]), [dispatch(2, W1)]);
    assert_eq!(world.submit(request(3)), []);
    assert_eq!(world.models(W1, &[]), []);
    assert_eq!(world.finish(1), []);
    assert_eq!(world.models(W1, &["m", "n"]), [dispatch(3, W1)]);
}

#[test]
fn session_stays_with_its_worker_while_that_has_a_free_slot() {
    let mut world = World::new(SchedulerConfig::default());
    for worker in [W1, W2, W3] {
        world.join(worker, WorkerInfo { identity: worker.0 * 31, ..declared(2, &["m"]) });
    }
    let session = |key| Submission { affinity: Some(Affinity::Session(99)), ..request(key) };
    let order: Vec<Action> = (1..=6).flat_map(|key| world.submit(session(key))).collect();
    let [first, _, second, _, third, _] = workers(&order)[..] else { panic!("{order:?}") };
    assert_eq!(workers(&order), [first, first, second, second, third, third]);
    world.finish(5);
    world.finish(2);
    assert_eq!(world.submit(session(7)), [dispatch(7, first)]);
    (1..=7).for_each(|key| drop(world.finish(key)));
    world.lose(first);
    assert_eq!(world.submit(session(9)), [dispatch(9, second)], "the next in the order");
    world.finish(9);
    let others: Vec<WorkerId> = (100..150)
        .flat_map(|key| {
            let affinity = Some(Affinity::Session(key * 7919));
            let placed = workers(&world.submit(Submission { affinity, ..request(key) }));
            world.finish(key);
            placed
        })
        .collect();
    assert!(others.contains(&second) && others.contains(&third), "{others:?}");
}

#[test]
fn equal_prefixes_share_a_worker_within_the_bound_on_every_replica() {
    let strategy = Strategy::PrefixHash { max_load_percent: 150 };
    let replica = |workers_in_order: [u64; 4]| {
        let mut world = World::new(SchedulerConfig { strategy, ..SchedulerConfig::default() });
        for id in workers_in_order {
            let identity = id * 1_000_003;
            world.join(WorkerId(id), WorkerInfo { identity, ..declared(10, &["m"]) });
        }
        let prefix = |key| Submission { affinity: Some(Affinity::Prefix(5)), ..request(key) };
        let order: Vec<Action> = (1..=8).flat_map(|key| world.submit(prefix(key))).collect();
        workers(&order)
    };
    let placed = replica([1, 2, 3, 4]);
    assert_eq!(placed, replica([3, 1, 4, 2]));
    let on_first = placed.iter().filter(|worker| **worker == placed[0]).count();
    assert_eq!(on_first, 3, "half as much again as the mean of eight over four: {placed:?}");
}

#[test]
fn least_load_takes_no_notice_of_prefixes() {
    let mut world = World::with_workers([(W1, 4), (W2, 4)]);
    let prefix = |key| Submission { affinity: Some(Affinity::Prefix(5)), ..request(key) };
    let order: Vec<Action> = (1..=4).flat_map(|key| world.submit(prefix(key))).collect();
    assert_eq!(workers(&order), [W1, W2, W1, W2]);
}

#[test]
fn split_goes_by_weight_among_the_targets_with_a_free_slot() {
    let mut world = World::new(SchedulerConfig::default());
    world.join(W1, declared(1000, &["a"]));
    world.join(W2, declared(1000, &["b"]));
    let shares = [("a", 3), ("b", 1), ("c", 9), ("z", 0)];
    let order: Vec<Action> = (0..1000).flat_map(|key| world.submit(split(key, &shares))).collect();
    let to_a = workers(&order).iter().filter(|worker| **worker == W1).count();
    assert!((700..800).contains(&to_a), "{to_a} of 1000 with three quarters of the weight");
    world.report(W1, 2000);
    let full = Action::Dispatch { request: RequestKey(1000), worker: W2, target: 1 };
    assert_eq!(world.submit(split(1000, &shares)), [full]);
}

#[test]
fn queued_split_takes_a_slot_of_any_target() {
    let mut world = World::new(SchedulerConfig::default());
    for key in 1..=3 {
        assert_eq!(world.submit(split(key, &[("a", 1), ("b", 1), ("z", 0)])), []);
    }
    let to = |request, worker, target| Action::Dispatch { request: RequestKey(request), worker, target };
    assert_eq!(world.join(W2, declared(1, &["b"])), [to(1, W2, 1)]);
    assert_eq!(world.join(W3, declared(5, &["z"])), [], "a weight of 0 is none");
    assert_eq!(world.join(W1, declared(1, &["a"])), [to(2, W1, 0)]);
    assert_eq!(world.finish(1), [to(3, W2, 1)]);
    let queues = world.scheduler.snapshot(world.now).queues;
    assert!(queues.iter().all(|queue| queue.length == 0), "{queues:?}");
}

#[test]
fn lone_target_needs_no_weight() {
    let mut world = World::with_workers([(W1, 1)]);
    assert_eq!(world.submit(split(1, &[("m", 0)])), [dispatch(1, W1)]);
}

#[test]
fn worker_whose_backend_refused_comes_last_for_a_while() {
    let mut world = World::with_workers([(W1, 9), (W2, 9)]);
    let refuse = |world: &mut World, request| {
        let cause = RefusalCause::BackendRefused;
        world.handle(Event::Refused { request: RequestKey(request), cause, penalise: true })
    };
    assert_eq!(world.submit(request(1)), [dispatch(1, W1)]);
    assert_eq!(refuse(&mut world, 1), [dispatch(1, W2)]);
    assert_eq!(world.submit(request(2)), [dispatch(2, W2)], "W1 is idle, and suspect");
    assert_eq!(world.wait(5), []);
    assert_eq!(world.submit(request(3)), [dispatch(3, W1)]);
    assert_eq!(world.submit(request(4)), [dispatch(4, W1)]);
    assert_eq!(refuse(&mut world, 4), [dispatch(4, W2)]);
    world.start(3);
    assert_eq!(world.submit(request(5)), [dispatch(5, W1)], "an answer clears it");
    assert_eq!(refuse(&mut world, 5), [dispatch(5, W2)]);
    assert_eq!(world.drain(W2), []);
    assert_eq!(world.submit(request(6)), [dispatch(6, W1)], "better than nobody");
}
