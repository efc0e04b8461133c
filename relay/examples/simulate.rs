//! Measures how several relay replicas share their workers, on a virtual clock: the table in the README.
//!
//! ```text
//! cargo run --release -p modelrelay-relay --example simulate
//! ```
//! Every link takes 10 ms each way; requests run for one second on average; they come at 90 % of what all slots can
//! bear, four of five to the first relay. Figures are of ten seconds after ten of warming up. In a small fleet, which
//! `-- --quick` measures, they depend on how long all slots happen to be in use: there it is two hundred seconds, forty times.

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, unreachable_pub, dead_code)]

#[path = "../tests/simulation/checks.rs"]
mod checks;
#[path = "../tests/simulation/clock.rs"]
mod clock;
#[path = "../tests/simulation/faults.rs"]
mod faults;
#[path = "../tests/simulation/meeting.rs"]
mod meeting;
#[path = "../tests/simulation/relay_side.rs"]
mod relay_side;
#[path = "../tests/simulation/worker_side.rs"]
mod worker_side;
#[path = "../tests/simulation/world.rs"]
mod world;

use self::clock::{MS, SECOND};
use self::meeting::Meetings;
use self::world::{Messages, Setup, Stream, World};

const WARM_UP: clock::Time = 10 * SECOND;

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let sizes: &[usize] = if quick { &[100] } else { &[1000, 10_000] };
    println!(
        "| relays | workers | slots each | met at once | slot and request meet, p50 / p99 / max of the others, ms \
         | messages per request: plea, cede | want | recall, return | grant | report | all | idle while requests wait |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for &workers in sizes {
        for slots in [1, 8] {
            for relays in [1, 3, 10] {
                measure(relays, workers, slots);
            }
        }
    }
}

fn measure(relays: usize, workers: usize, slots: u32) {
    // A small fleet differs from one run to another, a large one hardly.
    let seeds = if workers > 100 { 7..8 } else { 7..47 };
    let worlds: Vec<World> = seeds.map(|seed| run(relays, workers, slots, seed)).collect();
    let requests = worlds.iter().map(|world| world.meetings.times.len()).sum::<usize>() as f64;
    let mut messages = Messages::default();
    worlds.iter().for_each(|world| messages.add(&world.messages));
    let Messages { wants, withdrawals, recalls, returns, grants, reports, pleas, cedes } = messages;
    let each = |count: u64| count as f64 / requests;
    let all = each(messages.total());
    let mut late = Meetings::default();
    late.times.extend(worlds.iter().flat_map(|world| &world.meetings.times).filter(|time| **time > 0));
    let met_at_once = 1.0 - late.times.len() as f64 / requests;
    let [p50, p99, max] = [500, 990, 1000].map(|part| late.quantile(part) as f64 / MS as f64);
    let wasted = worlds.iter().map(|world| world.meetings.wasted).sum::<u128>() as f64;
    let slot_time = measured(workers) as f64 * (workers * worlds.len()) as f64 * f64::from(slots);
    println!(
        "| {relays} | {workers} | {slots} | {:.1} % | {p50:.0} / {p99:.0} / {max:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} \
         | {all:.2} | {:.2} % |",
        met_at_once * 100.0,
        each(pleas + cedes),
        each(wants + withdrawals),
        each(recalls + returns),
        each(grants),
        each(reports),
        wasted / slot_time * 100.0,
    );
}

fn measured(workers: usize) -> clock::Time {
    if workers > 100 { 10 * SECOND } else { 200 * SECOND }
}

fn run(relays: usize, workers: usize, slots: u32, seed: u64) -> World {
    let setup = Setup {
        workers,
        slots: (slots, slots),
        latency: (10 * MS, 10 * MS),
        service: SECOND,
        watch_pairs: false,
        ..Setup::new(seed)
    };
    let mut world = World::new(setup);
    for _ in 0..relays {
        world.add_relay(SECOND);
    }
    world.run_until(2 * SECOND);
    let total = workers as u64 * u64::from(slots);
    let others = if relays > 1 { 20.0 / (relays - 1) as f64 } else { 0.0 };
    let weights = (0..relays).map(|relay| if relay == 0 { 8000 } else { (others * 100.0) as u64 }).collect();
    let until = WARM_UP + measured(workers);
    // 90 % of all slots.
    world.add_stream(Stream { every: SECOND * 10 / (9 * total), weights, band: 0, until });
    world.meetings.from = WARM_UP;
    world.run_until(WARM_UP);
    world.messages = Messages::default();
    world.run_until(until);
    world
}
