//! `cargo xtask bench --replicas N`: what a request costs with one relay and with several, on the same workers.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::contender::{Contender, Fleet};
use super::load::{Load, Requests};
use super::measure::per_million;
use super::table::{Figures, Goal, Measure};
use super::usage::Usage;
use super::{contender, machine};

const fn row(name: &'static str, unit: &'static str) -> Measure {
    Measure { name, unit, goal: Goal::Any }
}

const RATE: Measure = row("small requests, 64 at once, over all relays", "per s");
const CPU: Measure = row("processor time per small request, relays and workers", "µs");
const RELAY_CPU: Measure = row("processor time per small request, relays alone", "µs");
const BUSY_CPU: Measure = row("processor time per small request, twice as many at once as slots", "µs");
const P50: Measure = row("latency at 200/s, p50, of the slowest relay", "ms");
const P99: Measure = row("latency at 200/s, p99, of the slowest relay", "ms");

pub(super) const ROWS: [Measure; 6] = [RATE, CPU, RELAY_CPU, BUSY_CPU, P50, P99];
pub(super) const NAMES: [&str; 2] = ["one relay", "several relays"];

/// Connections of all loads together, divided among as many loads as there are relays at most.
const CONNECTIONS: u32 = 64;

/// Workers, and slots of each where requests have to wait.
const WORKERS: u32 = 4;
const FEW_SLOTS: u32 = CONNECTIONS / 2 / WORKERS;

/// Measures once.
///
/// # Errors
/// When something does not start or does not carry the load.
pub(super) fn run_round(relays: u32, seconds: u32, binaries: &Path, figures: &mut Figures) -> Result<()> {
    for (name, count) in NAMES.into_iter().zip([1, relays]) {
        let folder =
            tempfile::Builder::new().prefix("modelrelay-bench-").tempdir().context("create a folder")?;
        let (_stub, stub_url) = contender::stub(binaries, folder.path())?;
        let load = Load { binaries: binaries.to_owned(), folder: folder.path().to_owned(), stub_url };
        eprint!("   {name} …");
        {
            let fleet = Fleet::start(count, WORKERS, None, &load)?;
            let (all, used) = loads(&fleet, relays, &load, &|share| {
                format!("closed --connections {share} --duration {seconds}")
            })?;
            let ok: u64 = all.iter().map(|requests| requests.ok).sum();
            figures.add(RATE, name, all.iter().map(|requests| requests.rps).sum());
            figures.add(CPU, name, per_million(used.relays.processor + used.workers.processor, ok));
            figures.add(RELAY_CPU, name, per_million(used.relays.processor, ok));
            let (all, _) = loads(&fleet, relays, &load, &|_| {
                let rate = 200.0 / f64::from(relays);
                format!("open --rate {rate} --duration {seconds}")
            })?;
            let slowest = |of: fn(&Requests) -> f64| all.iter().map(of).fold(0.0, f64::max);
            figures.add(P50, name, slowest(|requests| requests.latency.p50_us) / 1e3);
            figures.add(P99, name, slowest(|requests| requests.latency.p99_us) / 1e3);
        }
        let fleet = Fleet::start(count, WORKERS, Some(FEW_SLOTS), &load)?;
        let (all, used) = loads(&fleet, relays, &load, &|share| {
            format!("closed --connections {share} --duration {seconds}")
        })?;
        let ok: u64 = all.iter().map(|requests| requests.ok).sum();
        figures.add(BUSY_CPU, name, per_million(used.relays.processor + used.workers.processor, ok));
        eprintln!(" done");
    }
    machine::pause(Duration::from_millis(100))
}

/// What both kinds of processes used.
struct Used {
    relays: Usage,
    workers: Usage,
}

/// Puts as many loads on the fleet at once as there may be relays, each on the next relay in turn.
fn loads(
    fleet: &Fleet,
    loads: u32,
    load: &Load,
    arguments: &(dyn Fn(u32) -> String + Sync),
) -> Result<(Vec<Requests>, Used)> {
    let before = (fleet.relay_usage()?, fleet.worker_usage()?);
    let reports = thread::scope(|scope| {
        let running: Vec<_> = (0..loads)
            .map(|number| {
                let target = Contender::direct(fleet.url(number));
                let arguments = arguments((CONNECTIONS / loads).max(1));
                scope.spawn(move || load.run::<Requests>(&target, &arguments).map(|(report, _)| report))
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Requests>>| {
            thread.join().map_err(|_| anyhow!("a load panicked"))?
        };
        running.into_iter().map(join).collect::<Result<Vec<Requests>>>()
    })?;
    let used = Used { relays: fleet.relay_usage()? - before.0, workers: fleet.worker_usage()? - before.1 };
    Ok((reports, used))
}
