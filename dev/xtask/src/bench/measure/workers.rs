//! What only a relay has: idle workers, workers that come and go, and the windows of slow readers.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{MIB, Plan};
use crate::bench::contender::{self, Contender};
use crate::bench::load::{Flooded, Load, Requests};
use crate::bench::table::{Figures, Measure};
use crate::bench::usage::Peak;
use crate::bench::{machine, rows};

const IDLE_WORKERS: u64 = 1000;
/// The time from one ping of a worker to the next, so that each is pinged once.
const IDLE: Duration = Duration::from_secs(15);

/// What a first stream costs once is not what a slow reader costs; small enough to leave no buffers behind.
const WARM_UP: &str = "streams --streams 1 --chunks 50";

/// Measures relays of their own, because what others left in memory would hide what these loads take.
pub(super) fn take(plan: &Plan, load: &Load, figures: &mut Figures) -> Result<()> {
    let folder = load.folder.join("workers");
    fs::create_dir(&folder).context("create a folder")?;
    let ours = Contender::modelrelay(&load.stub_url, &folder, &load.binaries)?;
    let secret = contender::secret_file(&load.binaries, &folder);
    slow_reader(&ours, load, figures)?;
    idle_workers(plan, &ours, &secret, load, figures)?;
    handover("join", rows::JOIN, &ours, &secret, load, figures)?;
    handover("requeue", rows::REQUEUE, &ours, &secret, load, figures)?;
    drop(ours);

    let folder = load.folder.join("flood");
    fs::create_dir(&folder).context("create a folder")?;
    let ours = Contender::modelrelay(&load.stub_url, &folder, &load.binaries)?;
    flood(&ours, &contender::secret_file(&load.binaries, &folder), load, figures)
}

fn slow_reader(ours: &Contender, load: &Load, figures: &mut Figures) -> Result<()> {
    load.run::<Value>(ours, WARM_UP)?;
    let (relay, worker) = (ours.first_usage()?, ours.last_usage()?);
    let (mut relay_peak, mut worker_peak) = (Peak::default(), Peak::default());
    let (report, _): (Value, _) = load.run_watched(ours, "slow-reader --megabytes 400 --pause 3", || {
        relay_peak.look(|| ours.first_usage());
        worker_peak.look(|| ours.last_usage());
    })?;
    if report["began"] != true || !report["failure"].is_null() {
        bail!("the stream that nobody reads failed: {report}");
    }
    figures.add(rows::SLOW_RELAY, ours.name, relay_peak.above(relay) / MIB);
    figures.add(rows::SLOW_WORKER, ours.name, worker_peak.above(worker) / MIB);
    Ok(())
}

fn idle_workers(
    plan: &Plan,
    ours: &Contender,
    secret: &Path,
    load: &Load,
    figures: &mut Figures,
) -> Result<()> {
    let requests = format!("open --rate 200 --duration {}", plan.seconds);
    let before = ours.first_usage()?;
    let arguments = format!("workers --count {IDLE_WORKERS} --secret-file {}", secret.display());
    let workers = load.start(ours, &arguments)?;
    // Registering itself is over, and nothing but pings goes on.
    machine::pause(Duration::from_secs(1))?;
    let began = ours.first_usage()?;
    machine::pause(IDLE)?;
    let ended = ours.first_usage()?;
    let (beside, _): (Requests, _) = load.run(ours, &requests)?;
    drop(workers);
    let (alone, _): (Requests, _) = load.run(ours, &requests)?;

    let memory = (ended - before).memory_bytes as f64;
    figures.add(rows::IDLE_MEMORY, ours.name, memory / 1024.0 / IDLE_WORKERS as f64);
    let used = (ended - began).processor;
    figures.add(rows::IDLE_CORES, ours.name, used.as_secs_f64() / IDLE.as_secs_f64());
    figures.add(rows::IDLE_P50, ours.name, beside.latency.p50_us / alone.latency.p50_us);
    Ok(())
}

fn handover(
    when: &str,
    row: Measure,
    ours: &Contender,
    secret: &Path,
    load: &Load,
    figures: &mut Figures,
) -> Result<()> {
    let arguments = format!("handover --when {when} --requests 50 --secret-file {}", secret.display());
    let (requests, _): (Requests, _) = load.run(ours, &arguments)?;
    figures.add(row, ours.name, requests.latency.p50_us / 1e3);
    Ok(())
}

fn flood(ours: &Contender, secret: &Path, load: &Load, figures: &mut Figures) -> Result<()> {
    load.run::<Value>(ours, WARM_UP)?;
    let before = ours.first_usage()?;
    let mut peak = Peak::default();
    let arguments = format!("flood --megabytes 400 --secret-file {}", secret.display());
    let (flooded, _): (Flooded, _) =
        load.run_watched(ours, &arguments, || peak.look(|| ours.first_usage()))?;
    if let Some(failure) = flooded.failure {
        bail!("the flood of a v1 worker failed: {failure}");
    }
    figures.add(rows::SLOW_V1, ours.name, peak.above(before) / MIB);
    Ok(())
}
