//! What a free slot takes, and who loses a place in a full queue.

use super::*;

fn config(max_requests: usize, weights: &[(u32, u32)]) -> SchedulerConfig {
    let tenants = weights.iter().map(|&(tenant, weight)| (TenantId(tenant), weight)).collect();
    SchedulerConfig {
        max_requests,
        tenants,
        queue_timeout: Duration::from_secs(1_000_000),
        ..SchedulerConfig::default()
    }
}

/// One worker with one slot, taken by request 0 of tenant 9.
fn busy(config: SchedulerConfig) -> World {
    let mut world = World::new(config);
    world.join(W1, declared(1, &["m"]));
    assert_eq!(world.submit(of_tenant(0, 9)), [dispatch(0, W1)]);
    world
}

/// Ends what runs on the only slot, one after the other, each after a second; returns the order.
fn run_dry(world: &mut World, mut running: u64) -> Vec<u64> {
    let mut order = Vec::new();
    loop {
        world.wait(1);
        let next = dispatched(&world.finish(running));
        let [next] = next[..] else { return order };
        order.push(next);
        running = next;
    }
}

#[test]
fn band_comes_first_then_slot_time_then_arrival() {
    let mut world = busy(config(100, &[]));
    world.submit(of_tenant(1, 1));
    world.submit(of_tenant(2, 1));
    world.submit(of_tenant(3, 2));
    world.submit(of_tenant(4, 1));
    world.submit(Submission { band: 5, ..of_tenant(5, 1) });
    world.submit(Submission { band: -1, ..of_tenant(6, 3) });
    // Tenant 1 has the high one, so tenant 2 is next, and from then on tenant 1 is alone in the band.
    assert_eq!(run_dry(&mut world, 0), [5, 3, 1, 2, 4, 6]);
}

#[test]
fn tenants_of_equal_weight_alternate() {
    let mut world = busy(config(100, &[]));
    (1..=4).for_each(|key| drop(world.submit(of_tenant(key, 1))));
    (5..=8).for_each(|key| drop(world.submit(of_tenant(key, 2))));
    assert_eq!(run_dry(&mut world, 0), [1, 5, 2, 6, 3, 7, 4, 8]);
}

#[test]
fn weight_multiplies_the_share() {
    let mut world = busy(config(100, &[(1, 3)]));
    (1..=12).for_each(|key| drop(world.submit(of_tenant(key, 1))));
    (21..=32).for_each(|key| drop(world.submit(of_tenant(key, 2))));
    let order = run_dry(&mut world, 0);
    let of_the_first = order[..12].iter().filter(|key| **key < 20).count();
    assert_eq!(of_the_first, 9, "three quarters: {order:?}");
}

#[test]
fn slot_time_counts_while_a_request_runs() {
    let mut world = World::new(config(100, &[]));
    world.join(W1, declared(2, &["m"]));
    world.submit(of_tenant(1, 1));
    world.submit(of_tenant(2, 2));
    world.submit(of_tenant(3, 1));
    world.submit(of_tenant(4, 2));
    world.submit(of_tenant(5, 2));
    world.wait(10);
    // Tenant 2 has as much behind it as tenant 1 has, but nothing running any more.
    assert_eq!(world.finish(2), [dispatch(4, W1)]);
    world.wait(10);
    assert_eq!(world.finish(4), [dispatch(5, W1)], "tenant 1 holds its slot all the time");
    world.wait(1);
    assert_eq!(world.finish(1), [dispatch(3, W1)]);
}

#[test]
fn slots_that_come_at_one_instant_are_shared() {
    let mut world = World::new(config(100, &[]));
    (1..=4).for_each(|key| drop(world.submit(of_tenant(key, 1))));
    (5..=8).for_each(|key| drop(world.submit(of_tenant(key, 2))));
    assert_eq!(dispatched(&world.join(W1, declared(4, &["m"]))), [1, 5, 2, 6]);
}

#[test]
fn account_is_one_over_all_models() {
    let mut world = World::new(config(100, &[]));
    world.join(W1, declared(1, &["m"]));
    world.join(W2, declared(1, &["n"]));
    assert_eq!(world.submit(of_tenant(1, 1)), [dispatch(1, W1)]);
    assert_eq!(world.submit(Submission { tenant: TenantId(9), ..for_model(2, "n") }), [dispatch(2, W2)]);
    world.submit(Submission { tenant: TenantId(1), ..for_model(3, "n") });
    world.submit(Submission { tenant: TenantId(2), ..for_model(4, "n") });
    world.wait(10);
    assert_eq!(world.finish(2), [dispatch(4, W2)], "tenant 1 has had the slot of the other model");
}

#[test]
fn tenant_that_was_idle_saves_nothing_up() {
    let mut world = busy(config(100, &[]));
    (1..=6).for_each(|key| drop(world.submit(of_tenant(key, 1))));
    let mut running = 0;
    for next in 1..=3 {
        world.wait(100);
        assert_eq!(world.finish(running), [dispatch(next, W1)]);
        running = next;
    }
    (11..=16).for_each(|key| drop(world.submit(of_tenant(key, 2))));
    assert_eq!(run_dry(&mut world, 3), [11, 4, 12, 5, 13, 6, 14, 15, 16], "in turn, as if both began now");
}

#[test]
fn use_of_idle_slots_does_not_shut_a_tenant_out() {
    let mut world = World::new(config(100, &[]));
    world.join(W1, declared(1, &["m"]));
    world.join(W2, declared(1, &["n"]));
    world.submit(Submission { tenant: TenantId(1), ..for_model(1, "n") });
    world.wait(100_000);
    assert_eq!(world.submit(of_tenant(2, 2)), [dispatch(2, W1)]);
    (11..=13).for_each(|key| drop(world.submit(of_tenant(key, 2))));
    world.finish(1);
    world.submit(of_tenant(3, 1));
    world.wait(400);
    assert_eq!(world.finish(2), [dispatch(11, W1)]);
    world.wait(400);
    assert_eq!(world.finish(11), [dispatch(3, W1)], "ten minutes behind, not a day");
}

#[test]
fn changed_weights_hold_from_then_on() {
    let mut world = busy(config(100, &[]));
    (1..=8).for_each(|key| drop(world.submit(of_tenant(key, 1))));
    (11..=18).for_each(|key| drop(world.submit(of_tenant(key, 2))));
    world.scheduler.reconfigure(config(100, &[(2, 3)]), world.now);
    let order = run_dry(&mut world, 0);
    assert_eq!(order[..8].iter().filter(|key| **key > 10).count(), 6, "{order:?}");
}

#[test]
fn newcomer_displaces_the_newest_of_the_lowest_band() {
    let mut world = busy(config(4, &[]));
    world.submit(in_band(1, 0));
    world.submit(in_band(2, -1));
    world.submit(in_band(3, -1));
    world.submit(in_band(4, 1));
    assert_eq!(world.submit(in_band(5, 0)), [queue_full(3)]);
    assert_eq!(world.submit(in_band(6, 2)), [queue_full(2)]);
    assert_eq!(world.submit(in_band(7, 1)), [queue_full(5)]);
    assert_eq!(world.submit(in_band(8, -1)), [queue_full(8)], "those above are safe");
    assert_eq!(run_dry(&mut world, 0), [6, 4, 7, 1]);
}

#[test]
fn newcomer_displaces_the_newest_of_the_tenant_with_most_waiting() {
    let mut world = busy(config(4, &[]));
    world.submit(of_tenant(1, 1));
    world.submit(of_tenant(2, 2));
    world.submit(of_tenant(3, 1));
    world.submit(of_tenant(4, 1));
    assert_eq!(world.submit(of_tenant(5, 1)), [queue_full(5)], "it has most itself");
    assert_eq!(world.submit(of_tenant(6, 3)), [queue_full(4)]);
    assert_eq!(world.submit(of_tenant(7, 4)), [queue_full(3)]);
    assert_eq!(world.submit(of_tenant(8, 5)), [queue_full(8)], "all have one");
    assert_eq!(world.submit(of_tenant(9, 2)), [queue_full(9)], "a swap would gain nothing");
}

#[test]
fn weights_count_in_a_full_queue() {
    let mut world = busy(config(4, &[(1, 3)]));
    (1..=3).for_each(|key| drop(world.submit(of_tenant(key, 1))));
    world.submit(of_tenant(4, 2));
    assert_eq!(world.submit(of_tenant(5, 2)), [queue_full(5)], "three of weight 3 against two of weight 1");
    world.scheduler.reconfigure(config(4, &[(2, 3)]), world.now);
    assert_eq!(world.submit(of_tenant(6, 2)), [queue_full(3)]);
}

#[test]
fn full_queue_of_one_model_does_not_concern_another() {
    let mut world = busy(config(1, &[]));
    assert_eq!(world.submit(request(1)), []);
    assert_eq!(world.submit(request(2)), [queue_full(2)]);
    assert_eq!(world.submit(for_model(3, "n")), []);
    assert_eq!(world.submit(split(4, &[("m", 1), ("o", 1)])), [], "one queue with room is enough");
    assert_eq!(world.submit(split(5, &[("m", 1), ("o", 1)])), [queue_full(5)]);
    world.submit(in_band(6, 1));
    assert_eq!(world.scheduler.counts().waiting, 3);
}

#[test]
fn refused_client_is_told_when_half_the_queue_will_have_gone() {
    let mut world = busy(config(8, &[]));
    (1..=8).for_each(|key| drop(world.submit(request(key))));
    for key in 0..4 {
        world.wait(4);
        assert_eq!(world.finish(key), [dispatch(key + 1, W1)]);
        assert_eq!(world.submit(request(100 + key)), []);
    }
    let retry_after = Duration::from_secs(4 * 8 / 2);
    assert_eq!(world.submit(request(200)), [reject(200, Reject::QueueFull { retry_after })]);
}
