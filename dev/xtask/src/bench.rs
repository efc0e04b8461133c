//! `cargo xtask bench`: the same load, in turn, on a stub backend directly, through nginx, and
//! through a relay and a worker, all on loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::clock::Stopwatch;
use crate::{process, workspace};

mod contender;
mod load;
mod measure;
mod table;
mod usage;

use contender::Contender;
use measure::Plan;
use table::Figures;

/// What `cargo xtask bench` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// One short round instead of five.
    #[arg(long)]
    quick: bool,
    /// Rounds to take the median of.
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Write every round's figures to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures and prints the table.
///
/// # Errors
/// When a part cannot be had, or a contender does not carry the load.
pub(crate) fn run(options: &Options) -> Result<()> {
    let watch = Stopwatch::start();
    let binaries = build()?;
    let open_files = raise_open_files()?;
    let (plan, rounds) =
        if options.quick { (Plan::quick(open_files), 1) } else { (Plan::full(open_files), 5) };
    let rounds = options.rounds.unwrap_or(rounds);
    let mut figures = Figures::new(&measure::ALL);
    for round in 1..=rounds {
        run_round(&plan, round, rounds, &binaries, &mut figures)?;
    }
    let machine = machine()?;
    println!("\n{machine}, median of {rounds} rounds, {:.0} s in all\n", watch.elapsed().as_secs_f64());
    print!("{}", figures.markdown(&["direct", "nginx", "modelrelay"]));
    if let Some(file) = &options.json {
        let report = json!({ "machine": machine, "rounds": rounds, "figures": figures.json() });
        fs::write(file, format!("{report:#}\n")).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn run_round(plan: &Plan, round: u32, rounds: u32, binaries: &Path, figures: &mut Figures) -> Result<()> {
    // All of them new in each round, because memory is measured from the start of a process.
    let folder = tempfile::Builder::new().prefix("modelrelay-bench-").tempdir().context("create a folder")?;
    let (_stub, stub_url) = contender::stub(binaries, folder.path())?;
    let contenders = [
        Contender::direct(&stub_url),
        Contender::nginx(&stub_url, folder.path())?,
        Contender::modelrelay(&stub_url, folder.path(), binaries)?,
    ];
    let load = load::Load { binary: binaries.join("dev-load"), folder: folder.path().to_owned(), stub_url };
    let mut direct = None;
    for contender in &contenders {
        eprintln!("== round {round} of {rounds}: {}", contender.name);
        let delays = measure::take(plan, contender, &load, direct.as_ref(), figures)
            .with_context(|| format!("measure {}", contender.name))?;
        direct.get_or_insert(delays);
    }
    Ok(())
}

fn build() -> Result<PathBuf> {
    eprintln!("Building the relay, the worker, the stub and the load; the first time takes minutes …");
    let packages = ["modelrelay-relay", "modelrelay-worker", "dev-backend", "dev-load"];
    let mut cargo = workspace::cargo(["build", "--release"]);
    cargo.args(packages.iter().flat_map(|name| ["-p", name]));
    process::run("cargo build", &mut cargo)?;
    Ok(workspace::binaries("release"))
}

/// Raises the limit on open files as far as it goes, for this process and its children, and returns it.
fn raise_open_files() -> Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("raise the limit on open files")?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Returns the day and what runs here, for whoever reads the figures later.
fn machine() -> Result<String> {
    let day = process::capture("date", Command::new("date").args(["-u", "+%Y-%m-%d"]), || {})?;
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut names =
        processors.lines().filter_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1));
    let first = names.next().map_or("processor unknown", str::trim);
    Ok(format!("{}, {} cores of {first}", day.trim(), names.count() + 1))
}
