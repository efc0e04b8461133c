//! Three relays, twenty workers, nearly all slots in use, most clients at one relay.

use std::net::SocketAddr;
use std::time::Duration;

use dev_e2e::client::Client;
use dev_e2e::{floor, percentile};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::fleet::{Fleet, SETTINGS, Served, ask_at_once, draw, gap, serve};

/// What the proxy adds, each way.
const ONE_WAY: Duration = Duration::from_millis(20);
const LENGTH: Duration = Duration::from_secs(15);
const RUNS: Duration = Duration::from_secs(1);

/// When the machine kept this process from running, as start and end.
async fn stalls(until: Instant) -> Vec<(u64, u64)> {
    const STEP: Duration = Duration::from_millis(5);
    let mut stalls = Vec::new();
    let mut due = Instant::now();
    while due < until {
        due = due.max(Instant::now()) + STEP;
        sleep_until(due).await;
        let late = due.elapsed();
        if late > STEP {
            let now = dev_backend::micros_now();
            stalls.push((now - late.as_micros() as u64, now));
        }
    }
    stalls
}

/// When a request has left its relay's queue, at the latest: the proxy holds it so long at least before it can begin.
fn left_queue(one: &Served) -> u64 {
    one.began - u64::try_from(ONE_WAY.as_micros()).unwrap()
}

fn began(one: &Served) -> u64 {
    one.began
}

/// When the request waited although a slot was idle that nobody else took before it did, as start and end: the longest such
/// time. `takes` says what ends a wait.
fn beside_idle(one: &Served, all: &[Served], slots: i64, takes: fn(&Served) -> u64) -> (u64, u64) {
    let taken = takes(one);
    // Idle slots, less the requests that wait as well and take one earlier.
    let mut changes: Vec<(u64, i64)> = vec![(0, slots)];
    for other in all {
        changes.extend([(takes(other), -1), (other.ended, 1)]);
        if takes(other) < taken {
            changes.extend([(other.sent, -1), (takes(other), 1)]);
        }
    }
    changes.sort_unstable();
    let (mut spare, mut since, mut longest) = (0, None, (0, 0));
    for (at, change) in changes {
        let before = spare;
        spare += change;
        let at = at.clamp(one.sent, taken.max(one.sent));
        if before <= 0 && spare > 0 {
            since = Some(at);
        } else if before > 0
            && spare <= 0
            && let Some(start) = since.take()
            && at - start > longest.1 - longest.0
        {
            longest = (start, at);
        }
    }
    match since {
        Some(start) if taken.saturating_sub(start) > longest.1 - longest.0 => (start, taken),
        _ => longest,
    }
}

/// Requests that need one round trip, one after another, at a relay and a worker that have nothing else to do: what the proxies
/// delay, and what the machine adds to it at the moment. As start and end.
async fn round_trips(alone: SocketAddr, until: Instant) -> Vec<(u64, u64)> {
    let mut client = Client::connect(alone).await.unwrap();
    let mut trips = Vec::new();
    while Instant::now() < until {
        let start = dev_backend::micros_now();
        ask_at_once(&mut client).await;
        trips.push((start, dev_backend::micros_now()));
    }
    trips
}

/// Two round trips, as long as they take meanwhile, and 20 ms.
fn bound_meanwhile(trips: &[(u64, u64)], wait: (u64, u64)) -> u64 {
    let slowest = trips.iter().filter(|trip| overlap(**trip, wait) > 0).map(|(start, end)| end - start).max();
    2 * slowest.expect("they go on as long as requests are served") + 20_000
}

fn overlap(one: (u64, u64), other: (u64, u64)) -> u64 {
    one.1.min(other.1).saturating_sub(one.0.max(other.0))
}

/// What a run showed.
struct Run {
    /// How long each request waited beside an idle slot before it began at its worker, in order; in microseconds.
    waits: Vec<u64>,
    /// Those that were queued beside one for longer than two round trips and 20 ms.
    queued: Vec<Duration>,
    round_trip: Duration,
}

/// Nine of ten slots in use, four of five requests to one relay.
async fn run(fleet: &Fleet, alone: SocketAddr) -> Run {
    let mean = RUNS * 10 / (9 * fleet.total() as u32);
    let begun = Instant::now();
    let stalled = AbortOnDropHandle::new(tokio::spawn(stalls(begun + LENGTH + 3 * RUNS)));
    let trips = AbortOnDropHandle::new(tokio::spawn(round_trips(alone, begun + LENGTH + 3 * RUNS)));
    let over = dev_backend::micros_now() + u64::try_from(LENGTH.as_micros()).unwrap();
    let (mut due, mut clients) = (begun, JoinSet::new());
    while due < begun + LENGTH {
        sleep_until(due).await;
        let relay = draw(&[8, 1, 1]);
        let runs = RUNS.mul_f64(rand::random_range(0.5..1.5));
        clients.spawn(serve(fleet.address(relay), relay, runs));
        due += gap(mean);
    }
    let served: Vec<Served> = clients.join_all().await.into_iter().map(Result::unwrap).collect();
    let (stalled, trips) = (stalled.await.unwrap(), trips.await.unwrap());
    let loaded = trips.iter().filter(|(start, _)| *start < over);
    let mut loaded: Vec<_> = loaded.map(|(start, end)| Duration::from_micros(end - start)).collect();
    // All but the slowest tenth.
    let round_trip = percentile(&mut loaded, 90);

    let from = served.iter().map(|one| one.sent).min().unwrap() + 2_000_000;
    let (mut waits, mut queued) = (Vec::new(), Vec::new());
    for one in served.iter().filter(|one| one.sent > from) {
        let wait = beside_idle(one, &served, fleet.total().cast_signed(), left_queue);
        if wait.1 > wait.0 && wait.1 - wait.0 > bound_meanwhile(&trips, wait) {
            queued.push(Duration::from_micros(wait.1 - wait.0));
        }
        let beside = beside_idle(one, &served, fleet.total().cast_signed(), began);
        let lost: u64 = stalled.iter().map(|stall| overlap(*stall, beside)).sum();
        waits.push((beside.1 - beside.0).saturating_sub(lost));
    }
    waits.sort_unstable();
    Run { waits, queued, round_trip }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_not_queued_beside_an_idle_slot_for_longer_than_two_round_trips_and_20_ms() {
    let _floor = floor::alone().await;
    let slots: Vec<u32> = (0..20).map(|n| n % 4 + 1).collect();
    let fleet = Fleet::start(3, &slots, ONE_WAY, SETTINGS).await;
    let alone = Fleet::start(1, &[1], ONE_WAY, "").await;
    // In the simulation 20 of 781,174 are: one in sixty runs as long as these may have one, and the machine may stop a
    // process for a while. Three in a row may not.
    for left in (0..3).rev() {
        let Run { waits, queued, round_trip } = run(&fleet, alone.address(0)).await;
        fleet.assert_never_over_committed();
        let at = |per_mille: usize| Duration::from_micros(waits[(waits.len() - 1) * per_mille / 1000]);
        let bound = 2 * round_trip + Duration::from_millis(20);
        let beyond = waits.iter().filter(|wait| Duration::from_micros(**wait) > bound).count();
        eprintln!(
            "{} requests waited beside an idle slot: half {:?}, 90 % {:?}, 99 % {:?}, all {:?}; {beyond} longer than \
             {bound:?}; queued longer than two round trips of that moment and 20 ms: {queued:?}",
            waits.len(),
            at(500),
            at(900),
            at(990),
            at(1000)
        );
        assert!(
            queued.len() * 100 <= waits.len(),
            "{} of {} were queued for longer",
            queued.len(),
            waits.len()
        );
        // Those have the way to their workers before them. In the simulation fewer than one in a thousand; here the machine
        // adds to what the proxies do.
        assert!(beyond * 50 <= waits.len(), "{beyond} of {} waited longer than {bound:?}", waits.len());
        assert!(at(1000) <= 5 * 2 * round_trip, "{:?}", at(1000));
        if queued.is_empty() {
            return;
        }
        assert!(left > 0, "no run without a request that was queued for longer");
    }
}
