//! `cargo xtask bench`: the same load, in turn, on a stub backend directly, through nginx, and
//! through a relay and a worker, all on loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::clock::Stopwatch;
use crate::{process, workspace};

mod contender;
mod load;
mod machine;
mod measure;
mod replicas;
mod rows;
mod table;
mod usage;

use contender::Contender;
use load::Load;
use machine::Surroundings;
use measure::{Part, Plan};
use table::Figures;

/// What `cargo xtask bench` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// One short round instead of five: about two minutes.
    #[arg(long)]
    quick: bool,
    /// Rounds to take the median of.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Only these parts of each round.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Measure one relay and this many on the same workers instead: throughput and processor time per request.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=16))]
    replicas: Option<u32>,
    /// Seconds to wait, before each round, for others to leave the processors alone.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    patience: u64,
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
    let load_before = machine::load_average()?;
    let mut figures = Figures::new(if options.replicas.is_some() { &replicas::ROWS } else { &rows::ALL });
    let mut others = Vec::new();
    for round in 1..=rounds {
        machine::wait_until_quiet(Duration::from_secs(options.patience))?;
        eprintln!("round {round} of {rounds}");
        let busy = machine::Watch::start()?;
        match options.replicas {
            Some(relays) => replicas::run_round(relays, plan.seconds, &binaries, &mut figures)?,
            None => run_round(&plan, &options.only, &binaries, &mut figures)?,
        }
        others.push(busy.others()?);
    }
    let surroundings = Surroundings { load_before, load_after: machine::load_average()?, others };
    let machine = machine::describe()?;
    println!("\n{machine}, median of {rounds} rounds, {:.0} s in all.", watch.elapsed().as_secs_f64());
    println!("{}\n", surroundings.sentence());
    let contenders: &[&str] =
        if options.replicas.is_some() { &replicas::NAMES } else { &["direct", "nginx", "modelrelay"] };
    print!("{}", figures.markdown(contenders));
    if let Some(file) = &options.json {
        let report = json!({
            "machine": machine, "surroundings": surroundings, "rounds": rounds, "figures": figures.json(),
        });
        fs::write(file, format!("{report:#}\n")).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Measures once, with processes that are new because memory is measured from their start.
fn run_round(plan: &Plan, only: &[Part], binaries: &Path, figures: &mut Figures) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("modelrelay-bench-").tempdir().context("create a folder")?;
    let (_stub, stub_url) = contender::stub(binaries, folder.path())?;
    let contenders = [
        Contender::direct(&stub_url),
        Contender::nginx(&stub_url, folder.path())?,
        Contender::modelrelay(&stub_url, folder.path(), binaries)?,
    ];
    let load = Load { binaries: binaries.to_owned(), folder: folder.path().to_owned(), stub_url };
    let wanted = |part: &Part| only.is_empty() || only.contains(part);
    Part::ALL.into_iter().filter(wanted).try_for_each(|part| part.take(plan, &contenders, &load, figures))
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
