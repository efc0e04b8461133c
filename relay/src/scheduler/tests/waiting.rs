//! Clocks, limits, and what others see of a queue.

use super::*;

fn config(queue: u64, no_worker: u64) -> SchedulerConfig {
    SchedulerConfig {
        queue_timeout: Duration::from_secs(queue),
        no_worker_timeout: Duration::from_secs(no_worker),
        ..SchedulerConfig::default()
    }
}

#[test]
fn request_waits_for_a_model_nobody_serves_and_runs_when_it_comes() {
    let mut world = World::new(config(10, 20));
    assert_eq!(world.submit(request(1)), []);
    assert_eq!(world.join(W1, declared(1, &["other"])), []);
    assert_eq!(world.wait(19), []);
    assert_eq!(world.models(W1, &["other", "m"]), [dispatch(1, W1)]);
    assert_eq!(world.scheduler.poll_timeout(), None, "clocks run only while it waits");
}

#[test]
fn each_clock_has_its_own_reason() {
    let mut world = World::new(config(10, 20));
    world.join(W1, declared(1, &["m"]));
    world.submit(request(1));
    world.submit(request(2));
    world.submit(for_model(3, "n"));
    assert_eq!(world.wait(10), [reject(2, Reject::QueueTimeout)]);
    assert_eq!(world.wait(10), [reject(3, Reject::NoWorker)]);
}

#[test]
fn clocks_pause_while_the_other_runs() {
    let mut world = World::new(config(10, 20));
    world.submit(request(1));
    world.wait(15);
    world.join(W1, WorkerInfo { reported_load: 1, ..declared(1, &["m"]) });
    assert_eq!(world.wait(9), []);
    world.drain(W1);
    assert_eq!(world.wait(4), [], "19 of 20 seconds without a worker, 9 of 10 with one");
    world.join(W2, WorkerInfo { reported_load: 1, ..declared(1, &["*"]) });
    assert_eq!(world.wait(1), [reject(1, Reject::QueueTimeout)]);

    let mut world = World::new(config(10, 20));
    world.submit(request(1));
    world.wait(15);
    world.join(W1, WorkerInfo { reported_load: 1, ..declared(1, &["m"]) });
    world.wait(9);
    world.models(W1, &[]);
    assert_eq!(world.wait(5), [reject(1, Reject::NoWorker)]);
}

#[test]
fn split_waits_on_the_queue_clock_while_one_target_is_served() {
    let mut world = World::new(config(10, 20));
    world.join(W1, WorkerInfo { reported_load: 1, ..declared(1, &["a"]) });
    world.submit(split(1, &[("a", 1), ("b", 1)]));
    assert_eq!(world.wait(10), [reject(1, Reject::QueueTimeout)]);
}

#[test]
fn changed_limits_hold_for_those_that_wait() {
    let mut world = World::new(config(10, 20));
    world.submit(request(1));
    world.wait(5);
    world.scheduler.reconfigure(config(10, 7), world.now);
    assert_eq!(world.wait(1), []);
    assert_eq!(world.wait(1), [reject(1, Reject::NoWorker)]);
}

#[test]
fn overall_limit_goes_on_in_every_phase() {
    let mut world = World::with_workers([(W1, 1)]);
    let limited = |world: &World, key| {
        let deadline = Some(world.now + Duration::from_secs(5));
        Submission { deadline, ..request(key) }
    };
    let (first, second) = (limited(&world, 1), limited(&world, 2));
    let third = Submission { deadline: Some(world.now), ..request(3) };
    assert_eq!(world.submit(first), [dispatch(1, W1)]);
    assert_eq!(world.submit(second), []);
    assert_eq!(world.submit(third), [reject(3, Reject::DeadlineExceeded)]);
    assert_eq!(world.submit(request(4)), []);
    world.start(1);
    let over = Reject::DeadlineExceeded;
    let stopped = cancel(1, W1, CancelReason::DeadlineExceeded);
    assert_eq!(world.wait(5), [stopped, reject(1, over), reject(2, over), dispatch(4, W1)]);
}

#[test]
fn client_that_leaves_while_it_waits_takes_its_place_along() {
    let mut world = World::with_workers([(W1, 1)]);
    (1..=3).for_each(|key| drop(world.submit(request(key))));
    assert_eq!(world.leave(2), []);
    assert_eq!(world.finish(1), [dispatch(3, W1)]);
    assert_eq!(world.leave(3), [cancel(3, W1, CancelReason::ClientGone)]);
    assert!(world.scheduler.is_idle());
    assert_eq!(world.scheduler.poll_timeout(), None);
}

#[test]
fn body_that_no_v1_worker_can_take_waits_for_one_that_can() {
    let mut world = World::new(config(10, 20));
    assert_eq!(world.submit(any_body(1)), [], "nobody serves it yet");
    assert_eq!(world.join(W1, declared(5, &["m"])), []);
    assert_eq!(world.submit(any_body(2)), [reject(2, Reject::Unsupported)]);
    assert_eq!(world.wait(20), [reject(1, Reject::Unsupported)], "on the clock for want of a worker");
    world.join(W2, granted(1, &["m"]));
    assert_eq!(world.submit(any_body(3)), [], "a worker with no credit yet is one");
    assert_eq!(world.grant(W2, 1), [dispatch(3, W2)]);
    assert_eq!(world.refuse(3), [reject(3, Reject::Refused(RefusalCause::OverCapacity))]);
}

#[test]
fn v1_worker_passes_over_bodies_it_cannot_take() {
    let mut world = World::with_workers([(W1, 1)]);
    world.join(W2, granted(1, &["m"]));
    world.submit(request(1));
    world.submit(any_body(2));
    world.submit(request(3));
    assert_eq!(world.finish(1), [dispatch(3, W1)]);
    assert_eq!(world.grant(W2, 1), [dispatch(2, W2)]);
}

#[test]
fn models_nobody_serves_hold_a_quarter_of_the_bytes_together() {
    let mut world = World::new(SchedulerConfig { max_bytes: 400, ..SchedulerConfig::default() });
    let big = |key, model| Submission { bytes: 40, ..for_model(key, model) };
    assert_eq!(world.submit(big(1, "a")), []);
    assert_eq!(world.submit(big(2, "b")), []);
    assert_eq!(world.submit(big(3, "c")), [reject(3, Reject::NoWorkerQueueFull)]);
    world.join(W1, WorkerInfo { reported_load: 1, ..declared(1, &["a"]) });
    assert_eq!(world.submit(big(4, "a")), [], "the bound is not for models that are served");
    assert_eq!(world.submit(big(5, "c")), [], "and 1 counts no longer");
    assert_eq!(world.submit(big(6, "d")), [reject(6, Reject::NoWorkerQueueFull)]);
    world.leave(2);
    assert_eq!(world.submit(big(7, "d")), []);
    assert_eq!(world.scheduler.counts().waiting_bytes, 160);
}

#[test]
fn drain_ends_what_waits() {
    let mut world = World::with_workers([(W1, 1)]);
    world.submit(request(1));
    world.submit(request(2));
    world.submit(split(3, &[("m", 1), ("n", 1)]));
    world.scheduler.reject_queued(Reject::Draining);
    assert_eq!(world.actions(), [reject(2, Reject::Draining), reject(3, Reject::Draining)]);
    assert_eq!(world.finish(1), []);
    assert!(world.scheduler.is_idle());
}

#[test]
fn models_are_forgotten_with_the_last_that_wanted_them() {
    let mut world = World::new(config(10, 20));
    (0..50).for_each(|key| drop(world.submit(for_model(key, &format!("made-up-{key}")))));
    assert_eq!(world.scheduler.snapshot(world.now).queues.len(), 50);
    assert_eq!(world.wait(20).len(), 50);
    world.join(W1, declared(1, &["m"]));
    world.lose(W1);
    assert_eq!(world.scheduler.snapshot(world.now).queues, []);
}

#[test]
fn views_show_what_there_is() {
    let mut world = World::new(SchedulerConfig::default());
    world.join(W2, granted(4, &["m"]));
    world.grant(W2, 2);
    world.join(W1, declared(3, &["n"]));
    world.submit(request(1));
    world.submit(request(2));
    world.submit(Submission { band: 3, ..request(3) });
    let since = world.now;
    world.start(1);
    world.wait(2);
    world.submit(request(4));
    let Snapshot { queues, workers, running } = world.scheduler.snapshot(world.now);
    let oldest = Some(Duration::from_secs(2));
    let m = QueueView { model: "m".into(), length: 2, bytes: 20, oldest, workers: 1 };
    let n = QueueView { model: "n".into(), length: 0, bytes: 0, oldest: None, workers: 1 };
    assert_eq!(queues, [m, n]);
    assert_eq!(
        workers.iter().map(|view| (view.worker, view.free, view.running)).collect::<Vec<_>>(),
        [(W1, 3, 0), (W2, 0, 2)]
    );
    let first = RunningView { request: RequestKey(1), worker: W2, model: "m".into(), since, started: true };
    assert_eq!(running[0], first);
    assert!(!running[1].started);
    assert_eq!(world.scheduler.demand(W1, world.now), None);
    let shortage = Shortage { lacking: 2, band: 3, submitted: since };
    assert_eq!(world.scheduler.demand(W2, world.now), Some(shortage));
    let counts = Counts { waiting: 2, waiting_bytes: 20, running: 2, workers: 2 };
    assert_eq!(world.scheduler.counts(), counts);
}
