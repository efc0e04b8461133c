//! What moves to another worker, how often, and what ends instead.

use super::*;

const OVER: Reject = Reject::Refused(RefusalCause::OverCapacity);

#[test]
fn request_moves_to_another_worker_until_its_response_starts() {
    let mut world = World::with_workers([(W1, 1), (W2, 1)]);
    assert_eq!(world.submit(request(1)), [dispatch(1, W1)]);
    assert_eq!(world.lose(W1), [dispatch(1, W2)]);
    assert_eq!(world.start(1), []);
    assert_eq!(world.lose(W2), [reject(1, Reject::LostAfterStart)]);
    assert!(world.scheduler.is_idle());
}

#[test]
fn request_whose_only_worker_died_waits_for_a_new_one() {
    let mut world = World::with_workers([(W1, 1)]);
    world.submit(request(1));
    assert_eq!(world.lose(W1), []);
    assert_eq!(world.wait(29), []);
    assert_eq!(world.join(W2, declared(1, &["m"])), [dispatch(1, W2)]);
    assert_eq!(world.lose(W2), []);
    assert_eq!(world.wait(29), [], "its clock started afresh");
    assert_eq!(world.wait(1), [reject(1, Reject::NoWorker)]);
}

#[test]
fn request_moves_three_times_at_most() {
    let mut world = World::new(SchedulerConfig::default());
    world.submit(request(1));
    for id in 1..=3 {
        assert_eq!(world.join(WorkerId(id), declared(1, &["m"])), [dispatch(1, WorkerId(id))]);
        assert_eq!(world.lose(WorkerId(id)), []);
    }
    assert_eq!(world.join(WorkerId(4), declared(1, &["m"])), [dispatch(1, WorkerId(4))]);
    assert_eq!(world.lose(WorkerId(4)), [reject(1, Reject::WorkerLost)]);
}

#[test]
fn refused_request_moves_until_nobody_is_left() {
    let mut world = World::with_workers([(W1, 1), (W2, 1)]);
    assert_eq!(world.submit(request(1)), [dispatch(1, W1)]);
    assert!(world.scheduler.can_move(RequestKey(1)));
    assert_eq!(world.refuse(1), [dispatch(1, W2)]);
    assert!(!world.scheduler.can_move(RequestKey(1)));
    assert_eq!(world.refuse(1), [reject(1, OVER)], "W1 is free and has had it");
}

#[test]
fn refused_request_moves_three_times_at_most() {
    let mut world = World::with_workers([(W1, 1), (W2, 1), (W3, 1), (WorkerId(4), 1), (WorkerId(5), 1)]);
    world.submit(request(1));
    for worker in [W2, W3, WorkerId(4)] {
        assert_eq!(world.refuse(1), [dispatch(1, worker)]);
    }
    assert_eq!(world.refuse(1), [reject(1, OVER)]);
}

#[test]
fn refused_request_waits_for_a_busy_worker_that_has_not_had_it() {
    let mut world = World::with_workers([(W1, 1), (W2, 1)]);
    assert_eq!(world.submit(request(1)), [dispatch(1, W1)]);
    assert_eq!(world.submit(request(2)), [dispatch(2, W2)]);
    assert_eq!(world.submit(request(3)), []);
    assert_eq!(world.refuse(1), [dispatch(3, W1)], "the slot it leaves goes to the next");
    assert_eq!(world.submit(request(4)), []);
    assert_eq!(world.finish(3), [dispatch(4, W1)], "not to W1 again");
    assert_eq!(world.finish(2), [dispatch(1, W2)]);
}

#[test]
fn draining_worker_is_nowhere_to_go() {
    let mut world = World::with_workers([(W1, 1), (W2, 1)]);
    world.submit(request(1));
    world.drain(W2);
    assert_eq!(world.refuse(1), [reject(1, OVER)]);
}

#[test]
fn requeued_request_keeps_its_order_of_arrival() {
    let mut world = World::with_workers([(W1, 2)]);
    world.join(W2, declared(1, &["m"]));
    let order: Vec<Action> = (1..=3).flat_map(|key| world.submit(request(key))).collect();
    assert_eq!(workers(&order), [W1, W2, W1]);
    assert_eq!(world.submit(request(4)), []);
    assert_eq!(world.lose(W1), [], "1 and 3 wait again");
    assert_eq!(world.finish(2), [dispatch(1, W2)]);
    assert_eq!(world.finish(1), [dispatch(3, W2)]);
    assert_eq!(world.finish(3), [dispatch(4, W2)]);
}

#[test]
fn requests_of_a_lost_worker_compete_for_what_is_free_elsewhere() {
    let mut world = World::with_workers([(W1, 3)]);
    (1..=2).for_each(|key| drop(world.submit(request(key))));
    world.submit(in_band(3, 1));
    world.join(W2, declared(1, &["m"]));
    assert_eq!(world.lose(W1), [dispatch(3, W2)]);
    assert_eq!(world.finish(3), [dispatch(1, W2)]);
}

#[test]
fn requeued_request_is_not_held_against_a_full_queue() {
    let mut world = World::new(SchedulerConfig { max_requests: 1, ..SchedulerConfig::default() });
    world.join(W1, declared(1, &["m"]));
    world.submit(request(1));
    world.submit(request(2));
    assert_eq!(world.lose(W1), []);
    assert_eq!(world.join(W2, declared(2, &["m"])), [dispatch(1, W2), dispatch(2, W2)]);
}

#[test]
fn refusal_after_the_first_byte_breaks_the_answer() {
    let mut world = World::with_workers([(W1, 1), (W2, 1)]);
    world.submit(request(1));
    world.start(1);
    assert!(!world.scheduler.can_move(RequestKey(1)));
    assert_eq!(world.refuse(1), [reject(1, Reject::LostAfterStart)]);
}

#[test]
fn late_and_unknown_events_do_nothing() {
    let mut world = World::with_workers([(W1, 1)]);
    world.submit(request(1));
    assert_eq!(world.submit(request(1)), [], "a key is used once");
    world.finish(1);
    for request in [1, 77] {
        assert_eq!(world.start(request), []);
        assert_eq!(world.finish(request), []);
        assert_eq!(world.leave(request), []);
        assert_eq!(world.refuse(request), []);
    }
    assert_eq!(world.grant(W2, 1), []);
    assert_eq!(world.models(W2, &["m"]), []);
    assert_eq!(world.report(W2, 1), []);
    assert_eq!(world.drain(W2), []);
    assert_eq!(world.lose(W2), []);
    assert_eq!(world.join(W1, declared(9, &["m"])), [], "it is here already");
    world.submit(request(2));
    world.submit(request(3));
    assert_eq!(world.finish(3), [], "it waits, so this is about an earlier attempt");
    assert_eq!(world.finish(2), [dispatch(3, W1)]);
}
