//! `cargo xtask`: what developers run. It fetches the real parts that tests and the demo
//! need into a cache folder, runs the demo, and runs every check and test suite.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod cache;
mod chat;
mod clock;
mod cluster;
mod demo;
mod images;
mod parts;
mod process;
mod progress;
mod sbom;
mod stack;
mod suites;
mod workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Runs ModelRelay's demo, checks and tests")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a real engine, a relay and a worker, and stream an answer through them.
    Demo(demo::Options),
    /// Run the checks and every test suite; REQUIRE_ALL=1 makes a skipped suite a failure.
    Test(suites::TestOptions),
    /// Measure relay and worker against nginx and against no relay, and print one table.
    Bench(bench::Options),
    /// Start a real Kubernetes on this machine, and end it.
    Cluster {
        /// What to do.
        #[command(subcommand)]
        command: cluster::Command,
    },
    /// Build the images of the programs.
    Images(images::ImagesOptions),
    /// Print what a program is made of, in CycloneDX's form.
    Sbom {
        /// The program's package.
        package: String,
    },
    /// Formatting, lints, dependency rules and documentation, with warnings denied.
    Check,
    /// Fetch a part into the cache folder and print its path.
    Fetch {
        /// Which part.
        part: parts::Part,
    },
}

fn main() -> ExitCode {
    let outcome = process::end_children_on_signals().and_then(|()| run(Args::parse().command));
    match outcome {
        Ok(code) => code,
        Err(_) if process::interrupted() => {
            eprintln!("interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(options) => demo::run(&options, demo::Profile::Release).map(|()| ExitCode::SUCCESS),
        Command::Test(options) => suites::test(&options),
        Command::Bench(options) => bench::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Cluster { command } => cluster::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Images(options) => images::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Sbom { package } => {
            print!("{}", sbom::of(&package)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Check => suites::check(),
        Command::Fetch { part } => {
            println!("{}", part.path()?.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}
