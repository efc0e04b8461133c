//! Slots that are given up although something waits here.

use super::pleading::{cedes, plea, pleads};
use super::*;

const FAR: u64 = 501;

/// What becomes of a slot that comes.
fn use_of(actions: &[Action]) -> &Action {
    let is_use = |action: &&Action| matches!(action, Action::Cede { .. } | Action::Dispatch { .. });
    let mut uses = actions.iter().filter(is_use);
    let first = uses.next().expect("it is used");
    assert_eq!(uses.next(), None);
    first
}

#[test]
fn a_slot_that_comes_goes_to_a_relay_where_a_request_has_waited_for_much_longer() {
    let mut world = World::pleading([W1, W2]);
    world.submit(request(1));
    assert_eq!(world.hear(W2, plea("b", 1, FAR)), []);
    assert_eq!(use_of(&world.grant(W1, 1)), &cedes(W1, "b"));
    assert_eq!(use_of(&world.grant(W1, 1)), &dispatch(1, W1), "it lacked one");
}

#[test]
fn a_slot_that_ends_here_goes_there_as_well() {
    let mut world = World::pleading([W1, W2]);
    world.grant(W1, 1);
    assert_eq!(dispatched(&world.submit(request(1))), [1]);
    world.submit(request(2));
    world.hear(W2, plea("b", 1, FAR));
    assert_eq!(world.finish(1), []);
    assert_eq!(use_of(&world.grant(W1, 1)), &cedes(W1, "b"));
}

#[test]
fn what_has_waited_about_as_long_elsewhere_does_not_go_first() {
    let mut world = World::pleading([W1, W2]);
    world.submit(request(1));
    world.hear(W2, plea("b", 1, FAR - 1));
    assert_eq!(use_of(&world.grant(W1, 1)), &dispatch(1, W1));
}

#[test]
fn each_slot_given_up_is_for_a_request_that_came_later() {
    let mut world = World::pleading([W1, W2, W3]);
    world.submit(request(1));
    world.hear(W2, plea("b", 3, 3 * 300));
    assert_eq!(use_of(&world.grant(W1, 1)), &cedes(W1, "b"), "for one of 900 ms");
    assert_eq!(use_of(&world.grant(W2, 1)), &cedes(W2, "b"), "for one of 600 ms");
    assert_eq!(use_of(&world.grant(W3, 1)), &dispatch(1, W3), "before one of 300 ms");
}

#[test]
fn the_oldest_that_waits_here_decides_and_not_whose_turn_it_is() {
    let mut world = World::pleading([W1, W2]);
    world.grant(W1, 1);
    // Tenant 2 has had nothing yet, so its request is next though another is as old as the one elsewhere.
    world.submit(of_tenant(1, 1));
    world.submit(of_tenant(2, 1));
    world.pass(600);
    world.submit(of_tenant(3, 2));
    world.hear(W2, plea("b", 1, 700));
    world.finish(1);
    assert_eq!(use_of(&world.grant(W1, 1)), &dispatch(3, W1));
}

#[test]
fn requests_of_another_band_are_not_compared_by_age() {
    let mut world = World::pleading([W1, W2]);
    world.submit(request(1));
    world.hear(W2, Plea { band: -1, ..plea("b", 1, FAR) });
    assert_eq!(use_of(&world.grant(W1, 1)), &dispatch(1, W1));
}

#[test]
fn a_plea_that_is_old_takes_nothing_from_those_that_wait_here() {
    let mut world = World::pleading([W1, W2]);
    world.pass(1000);
    world.submit(request(1));
    world.hear(W2, plea("b", 1, FAR));
    world.now += Duration::from_millis(250);
    assert_eq!(use_of(&world.grant(W1, 1)), &dispatch(1, W1));
}

#[test]
fn a_slot_that_comes_back_again_and_again_is_kept() {
    let mut world = World::pleading([W1, W2]);
    world.submit(request(1));
    for _ in 0..3 {
        world.hear(W2, plea("b", 1, 10_000));
        assert_eq!(use_of(&world.grant(W1, 1)), &cedes(W1, "b"));
    }
    world.hear(W2, plea("b", 1, 10_000));
    assert_eq!(use_of(&world.grant(W1, 1)), &dispatch(1, W1), "that relay has lost the worker");
}

#[test]
fn a_slot_that_was_given_back_is_given_up_once_more_when_nothing_waits_for_it() {
    let mut world = World::pleading([W1, W2]);
    world.submit(request(1));
    world.hear(W2, plea("b", 2, 700));
    assert_eq!(use_of(&world.grant(W1, 1)), &cedes(W1, "b"));
    assert_eq!(use_of(&world.grant(W1, 1)), &dispatch(1, W1));
    world.finish(1);
    assert_eq!(world.grant(W1, 1), [cedes(W1, "b")]);
}

#[test]
fn a_slot_that_was_given_up_is_pleaded_for_again() {
    let mut world = World::pleading([W1, W2]);
    world.submit(request(1));
    assert_eq!(world.pass(250)[0], pleads(W1, 1, 250, 2));
    world.hear(W2, plea("b", 1, 250 + FAR));
    assert_eq!(world.grant(W1, 1), [cedes(W1, "b"), pleads(W1, 1, 250, 3)]);
}

#[test]
fn what_waits_for_another_model_is_given_slots_of_workers_that_serve_it() {
    let mut world = World::pleading([W1]);
    world.join_pleading(W2, &["m", "other"]);
    world.submit(request(1));
    world.hear(W2, Plea { model: "other".into(), ..plea("b", 1, FAR) });
    assert_eq!(use_of(&world.grant(W1, 1)), &dispatch(1, W1));
    world.submit(request(2));
    assert_eq!(use_of(&world.grant(W2, 1)), &cedes(W2, "b"));
}
