//! What is asked of other replicas, and what is given up for them.

use super::*;

const W4: WorkerId = WorkerId(4);

impl World {
    /// Workers with one slot each that several replicas share, and that pass pleas on.
    pub(super) fn pleading<const N: usize>(workers: [WorkerId; N]) -> Self {
        let mut world = Self::new(SchedulerConfig::default());
        for worker in workers {
            assert_eq!(world.join_pleading(worker, &["m"]), []);
        }
        world
    }

    pub(super) fn join_pleading(&mut self, worker: WorkerId, models: &[&str]) -> Vec<Action> {
        self.join(worker, WorkerInfo { identity: worker.0, pleas: true, ..granted(1, models) });
        self.among(worker, 3)
    }

    fn among(&mut self, worker: WorkerId, relays: u32) -> Vec<Action> {
        self.handle(Event::SlotsShared { worker, relays, replicas: [].into(), idle_elsewhere: false })
    }

    pub(super) fn hear(&mut self, worker: WorkerId, plea: Plea) -> Vec<Action> {
        self.handle(Event::Pleaded { worker, plea })
    }

    pub(super) fn pass(&mut self, ms: u64) -> Vec<Action> {
        self.now += Duration::from_millis(ms);
        self.scheduler.handle_timeout(self.now);
        self.actions()
    }
}

pub(super) fn pleads(worker: WorkerId, n: u32, age_ms: u64, number: u64) -> Action {
    Action::Plea { worker, model: "m".into(), n, band: 0, age: Duration::from_millis(age_ms), number }
}

pub(super) fn cedes(worker: WorkerId, relay: &str) -> Action {
    Action::Cede { worker, n: 1, relay: relay.into() }
}

pub(super) fn plea(relay: &str, n: u32, age_ms: u64) -> Plea {
    let age = Duration::from_millis(age_ms);
    Plea { relay: relay.into(), model: "m".into(), n, band: 0, age, number: 1 }
}

#[test]
fn what_lacks_is_pleaded_for_once_and_taken_back_by_the_same_worker_and_then_it_is_anothers_turn() {
    let mut world = World::pleading([W1, W2, W3]);
    assert_eq!(world.submit(request(1)), [pleads(W2, 1, 0, 1)]);
    world.now += Duration::from_millis(30);
    assert_eq!(world.submit(request(2)), [pleads(W2, 1, 30, 2)]);
    assert_eq!(dispatched(&world.grant(W2, 1)), [1]);
    assert_eq!(world.grant(W1, 1), [dispatch(2, W1), pleads(W2, 0, 0, 3)], "nobody is to cede any more");
    assert_eq!(world.scheduler.poll_timeout(), None);
    assert_eq!(world.submit(request(3)), [pleads(W3, 1, 0, 4)]);
}

#[test]
fn a_plea_goes_by_another_worker_when_its_own_is_gone() {
    let mut world = World::pleading([W1, W2, W3]);
    assert_eq!(world.submit(request(1)), [pleads(W2, 1, 0, 1)]);
    assert_eq!(world.handle(Event::Lost { worker: W2 }), [pleads(W3, 1, 0, 2)]);
    world.handle(Event::Lost { worker: W1 });
    assert_eq!(world.grant(W3, 1), [dispatch(1, W3), pleads(W3, 0, 0, 3)]);
}

#[test]
fn others_hear_a_plea_that_brought_nothing_soon_until_all_have_heard_it() {
    let mut world = World::pleading([W1, W2]);
    for worker in [W1, W2] {
        world.among(worker, 10);
    }
    assert_eq!(world.submit(request(1)), [pleads(W2, 1, 0, 1)]);
    assert_eq!(world.pass(49), []);
    assert_eq!(world.pass(1), [pleads(W2, 1, 50, 2)], "eight of nine have heard it");
    assert_eq!(world.submit(request(2)), [pleads(W2, 1, 50, 3)]);
    assert_eq!(world.pass(199), [], "all have");

    let mut world = World::pleading([W1, W2]);
    for worker in [W1, W2] {
        world.among(worker, 6);
    }
    world.submit(request(1));
    world.submit(request(2));
    assert_eq!(dispatched(&world.grant(W1, 1)), [1]);
    assert_eq!(world.pass(249), [], "the two pleas were heard by all five");
}

#[test]
fn a_plea_that_brought_nothing_is_renewed_and_stands_for_all_that_waits() {
    let mut world = World::pleading([W1, W2]);
    world.submit(request(1));
    assert_eq!(world.pass(249), []);
    let said = world.pass(1);
    assert_eq!(said[0], pleads(W1, 1, 250, 2));
    let wants = |action: &Action| matches!(action, Action::Want { n: 1, .. });
    assert!(said[1..].iter().all(wants) && said.len() == 3, "and busy slots are claimed: {said:?}");
    assert_eq!(world.submit(request(2)), [], "nobody had anything to spare for the first");
    assert!(world.pass(250).contains(&pleads(W2, 2, 500, 3)));
}

#[test]
fn what_is_left_when_a_want_has_brought_all_of_a_renewed_plea_is_pleaded_for_at_once() {
    let mut world = World::pleading([W1, W2]);
    world.submit(request(1));
    world.pass(250);
    assert_eq!(world.submit(request(2)), []);
    assert_eq!(world.grant(W1, 1), [dispatch(1, W1), pleads(W1, 1, 0, 3)]);
}

#[test]
fn what_is_left_when_others_have_given_up_all_of_a_renewed_plea_is_pleaded_for_at_once_and_no_sooner() {
    let mut world = World::pleading([W1, W2]);
    world.submit(request(1));
    world.pass(250);
    world.join_pleading(W3, &["m"]);
    for id in 2..=4 {
        assert_eq!(world.submit(request(id)), []);
    }
    assert_eq!(world.grant(W3, 1), [dispatch(1, W3), pleads(W1, 3, 0, 3)], "nothing was wanted of W3");
    assert_eq!(world.submit(request(5)), [], "that one stands for all that waits, too");
    assert_eq!(world.grant(W3, 1), [dispatch(2, W3)]);
    assert_eq!(world.grant(W3, 2), [dispatch(3, W3), dispatch(4, W3), pleads(W1, 1, 0, 4)]);
}

#[test]
fn a_plea_that_is_renewed_goes_by_each_worker_in_turn_whatever_else_is_pleaded_for() {
    let mut world = World::pleading([W1]);
    world.join_pleading(W2, &["m", "other"]);
    world.submit(for_model(1, "other"));
    world.submit(request(2));
    let messengers: Vec<Option<WorkerId>> = (0..4)
        .map(|_| {
            world.pass(250).into_iter().find_map(|action| match action {
                Action::Plea { worker, model, .. } if &*model == "m" => Some(worker),
                _ => None,
            })
        })
        .collect();
    assert_eq!(messengers, [W2, W1, W2, W1].map(Some));
}

#[test]
fn what_is_to_spare_is_ceded_at_once_and_the_last_choice_first() {
    let mut world = World::pleading([W1, W2, W3]);
    for worker in [W1, W2] {
        world.grant(worker, 1);
    }
    let first = workers(&world.submit(request(1)))[0];
    assert_eq!(first, W1);
    world.finish(1);
    world.grant(W1, 1);
    assert_eq!(world.hear(W3, plea("b", 1, 0)), [cedes(W1, "b")], "the one that was used last");
    assert_eq!(workers(&world.submit(request(2))), [W2]);
    assert_eq!(world.submit(request(3)).len(), 1, "it lacks a slot now");
}

#[test]
fn for_what_has_waited_long_credits_of_the_worker_by_which_the_plea_came_are_ceded_first() {
    let mut world = World::pleading([W1, W2, W3]);
    for worker in [W1, W2, W3] {
        world.grant(worker, 1);
    }
    assert_eq!(world.hear(W2, plea("b", 1, 250)), [cedes(W2, "b")], "others may be out of reach there");
    assert_eq!(world.hear(W1, plea("b", 1, 249)), [cedes(W3, "b")]);
}

#[test]
fn a_slot_that_comes_back_at_once_is_given_up_for_the_next_plea() {
    let mut world = World::pleading([W1, W2]);
    world.grant(W1, 1);
    assert_eq!(world.hear(W2, plea("lost by W1", 64, 20)), [cedes(W1, "lost by W1")]);
    world.hear(W2, plea("b", 1, 10));
    assert_eq!(world.grant(W1, 1), [cedes(W1, "b")]);
    assert_eq!(world.grant(W1, 1), []);
    assert_eq!(world.grant(W2, 1), [cedes(W2, "lost by W1")]);
}

#[test]
fn nothing_is_ceded_where_its_worker_says_that_whoever_pleads_is_not_connected() {
    let mut world = World::pleading([W1, W2, W3]);
    for worker in [W1, W2, W3] {
        world.grant(worker, 1);
    }
    let held_by = |replicas: &[&str]| replicas.iter().map(|&name| name.into()).collect();
    for (worker, replicas) in [(W1, held_by(&["a", "b"])), (W3, held_by(&["a", "c"]))] {
        world.handle(Event::SlotsShared { worker, relays: 2, replicas, idle_elsewhere: false });
    }
    assert_eq!(world.hear(W2, plea("b", 3, 0)), [cedes(W1, "b"), cedes(W2, "b")], "W2 does not tell");
    let replicas = held_by(&["a", "b", "c"]);
    let joined = Event::SlotsShared { worker: W3, relays: 3, replicas, idle_elsewhere: false };
    assert_eq!(world.handle(joined), [cedes(W3, "b")]);
}

#[test]
fn a_plea_is_remembered_until_a_request_ends_here_or_it_is_taken_back() {
    let mut world = World::pleading([W1]);
    world.grant(W1, 1);
    world.submit(request(1));
    assert_eq!(world.hear(W1, plea("b", 1, 0)), []);
    world.finish(1);
    assert_eq!(world.grant(W1, 1), [cedes(W1, "b")]);
    assert_eq!(world.grant(W1, 1), [], "one was all that it lacked");

    world.submit(request(2));
    world.hear(W1, plea("b", 1, 0));
    assert_eq!(world.hear(W1, Plea { number: 2, ..plea("b", 0, 0) }), []);
    world.hear(W1, Plea { number: 2, ..plea("c", 1, 0) });
    assert_eq!(world.hear(W1, Plea { number: 1, ..plea("c", 0, 0) }), [], "a newer one came by a faster way");
    world.finish(2);
    assert_eq!(world.grant(W1, 1), [cedes(W1, "c")]);

    world.grant(W1, 1);
    world.submit(request(3));
    world.hear(W1, plea("b", 1, 0));
    world.pass(250);
    world.finish(3);
    assert_eq!(world.grant(W1, 1), [], "it was not renewed");
}

#[test]
fn pleas_go_by_band_then_by_age_and_after_what_waits_here() {
    let mut world = World::pleading([W1]);
    world.grant(W1, 1);
    world.submit(request(1));
    world.hear(W1, plea("young", 1, 10));
    world.hear(W1, plea("old", 1, 20));
    world.hear(W1, Plea { band: 1, ..plea("urgent", 1, 0) });
    world.submit(request(2));
    world.finish(1);
    assert_eq!(dispatched(&world.grant(W1, 1)), [2]);
    world.finish(2);
    for next in ["urgent", "old", "young"] {
        assert!(world.grant(W1, 1).contains(&cedes(W1, next)), "{next}");
    }
}

#[test]
fn others_of_its_band_go_before_who_was_given_much_and_those_of_lower_bands_do_not() {
    let urgent = |relay| Plea { band: 1, ..plea(relay, 1, 0) };
    let mut world = World::pleading([W1]);
    for _ in 0..3 {
        world.hear(W1, urgent("lost"));
        assert!(world.grant(W1, 1).contains(&cedes(W1, "lost")));
    }
    world.hear(W1, urgent("lost"));
    world.hear(W1, plea("lower", 1, 0));
    world.hear(W1, urgent("equal"));
    for next in ["equal", "lost", "lower"] {
        assert!(world.grant(W1, 1).contains(&cedes(W1, next)), "{next}");
    }
}

#[test]
fn busy_slots_are_claimed_at_once_where_another_band_waits() {
    let mut world = World::pleading([W1, W2]);
    world.hear(W1, plea("b", 5, 1000));
    let said = world.submit(Submission { band: 5, ..request(1) });
    let wants = said.iter().filter(|action| matches!(action, Action::Want { n: 1, band: 5, .. }));
    assert_eq!(wants.count(), 2, "{said:?}");
}

#[test]
fn only_credits_for_the_model_are_ceded_and_only_of_workers_that_others_share() {
    let mut world = World::pleading([W1]);
    world.join_pleading(W2, &["other"]);
    world.join(W3, WorkerInfo { identity: 3, pleas: true, ..granted(1, &["m"]) });
    world.join_pleading(W4, &["*"]);
    for worker in [W2, W3, W4] {
        world.grant(worker, 1);
    }
    assert_eq!(world.hear(W1, plea("b", 5, 0)), [cedes(W4, "b")]);
    assert_eq!(world.hear(W1, Plea { model: "other".into(), ..plea("b", 1, 0) }), [], "W1 does not serve it");
    let other = Plea { model: "other".into(), ..plea("c", 1, 0) };
    assert_eq!(world.hear(W4, other), [cedes(W2, "c")]);
}

#[test]
fn with_one_replica_nobody_is_pleaded_with() {
    let mut world = World::new(SchedulerConfig::default());
    world.join(W1, WorkerInfo { pleas: true, ..granted(1, &["m"]) });
    assert_eq!(world.submit(request(1)), []);
    assert_eq!(world.scheduler.poll_timeout(), Some(world.now + SchedulerConfig::default().queue_timeout));
}

#[test]
fn a_plea_asks_for_a_bounded_number_and_is_ceded_no_more() {
    let mut world = World::new(SchedulerConfig::default());
    world.join(W1, WorkerInfo { pleas: true, ..granted(200, &["m"]) });
    world.handle(Event::SlotsShared { worker: W1, relays: 2, replicas: [].into(), idle_elsewhere: false });
    world.grant(W1, 200);
    let said = world.hear(W1, plea("b", u32::MAX, 0));
    assert_eq!(said, [Action::Cede { worker: W1, n: 64, relay: "b".into() }]);
    for key in 1..=136 {
        world.submit(request(key));
    }
    let pleaded: u32 = (200..300)
        .flat_map(|key| world.submit(request(key)))
        .map(|action| if let Action::Plea { n, .. } = action { n } else { 0 })
        .sum();
    assert_eq!(pleaded, 64);
}
