//! `cargo xtask check` and `cargo xtask test`.

use std::env;
use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::clock::Stopwatch;
use crate::parts::Part;
use crate::{demo, images, process, workspace};

mod report;

use report::{Outcome, Report};

/// What `cargo xtask test` can be told.
#[derive(Debug, Args)]
pub(crate) struct TestOptions {
    /// Passed to every test program; with it, only tests are run.
    #[arg(last = true, value_name = "FILTER")]
    filter: Vec<String>,
}

/// Runs the checks and says how they went.
///
/// # Errors
/// When the user wants to stop.
pub(crate) fn check() -> Result<ExitCode> {
    let mut report = Report::default();
    run_checks(&mut report)?;
    Ok(report.finish(require_all()))
}

/// Runs the checks and all test suites and says how they went.
///
/// # Errors
/// When the user wants to stop.
pub(crate) fn test(options: &TestOptions) -> Result<ExitCode> {
    let mut report = Report::default();
    let filtered = !options.filter.is_empty();
    let engine = Parts::fetch(ENGINE, &mut report)?;
    let cluster = Parts::fetch(CLUSTER, &mut report)?;
    if !filtered {
        run_checks(&mut report)?;
    }
    cargo(&mut report, "build", &["build", "--workspace", "--bins"])?;
    build_images(&mut report)?;
    let mut tests = workspace::cargo(["test", "--workspace", "--no-fail-fast", "--"]);
    tests.env("MODELRELAY_IMAGES", images::folder());
    tests.args(&options.filter).envs(engine.environment).envs(cluster.environment);
    tests.env("MODELRELAY_BIN_DIR", workspace::binaries("debug"));
    tests.env("MODELRELAY_CHAT_TEMPLATE", workspace::sources().join("demo/chat.jinja"));
    command(&mut report, "tests", &mut tests)?;
    if !filtered && engine.complete {
        let options = demo::Options { once: true, ..demo::Options::default() };
        step(&mut report, "demo", || demo::run(&options, demo::Profile::Dev))?;
        if cluster.complete && dev_cluster::check_nodes_can_run().is_ok() {
            let options = demo::Options { cluster: true, ..options };
            step(&mut report, "demo --cluster", || demo::run(&options, demo::Profile::Dev))?;
        }
    }
    Ok(report.finish(require_all()))
}

/// Builds the images that pods of the tests run; without nodes there are no pods.
fn build_images(report: &mut Report) -> Result<()> {
    match dev_cluster::check_nodes_can_run() {
        Ok(()) => step(report, "images", || {
            images::build(images::Name::value_variants(), "dev", Some(images::Builder::Buildah)).map(drop)
        }),
        Err(error) => skip(report, "tests with nodes", &error),
    }
}

fn require_all() -> bool {
    env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1")
}

fn run_checks(report: &mut Report) -> Result<()> {
    cargo(report, "fmt", &["fmt", "--all", "--check"])?;
    cargo(report, "clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    let mut doc = workspace::cargo(["doc", "--workspace", "--no-deps"]);
    command(report, "doc", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    match Part::CargoDeny.path() {
        Ok(program) => {
            let mut deny = Command::new(program);
            deny.current_dir(workspace::root());
            deny.args(["--workspace", "--config", ".deny.toml", "check", "bans", "licenses", "sources"]);
            command(report, "deny", &mut deny)
        }
        Err(error) => skip(report, "deny", &error),
    }
}

/// What tests find through the environment; those that miss a part skip themselves.
const ENGINE: &[(&str, Part)] = &[
    ("MODELRELAY_LLAMA_SERVER", Part::LlamaServer),
    ("MODELRELAY_MODEL", Part::Model),
    ("MODELRELAY_TINY_MODEL", Part::TinyModel),
    ("MODELRELAY_PYTHON", Part::PythonSdks),
    ("MODELRELAY_PROMTOOL", Part::Promtool),
];
const CLUSTER: &[(&str, Part)] = &[
    (dev_cluster::KUBE, Part::Kube),
    (dev_cluster::ETCD, Part::Etcd),
    (dev_cluster::NODE_PATH, Part::NodePath),
    ("MODELRELAY_HELM", Part::Helm),
    ("MODELRELAY_LUA", Part::Lua),
    ("MODELRELAY_KWOK", Part::Kwok),
    ("MODELRELAY_BUSYBOX", Part::Busybox),
    ("MODELRELAY_PROMETHEUS", Part::Prometheus),
];

/// Parts and the variables that name them.
struct Parts {
    environment: Vec<(&'static str, OsString)>,
    complete: bool,
}

impl Parts {
    fn fetch(wanted: &[(&'static str, Part)], report: &mut Report) -> Result<Self> {
        let mut environment = Vec::new();
        for &(name, part) in wanted {
            match part.path() {
                Ok(path) => environment.push((name, path.into_os_string())),
                Err(error) => skip(report, &format!("tests that need {name}"), &error)?,
            }
        }
        let complete = environment.len() == wanted.len();
        Ok(Self { environment, complete })
    }
}

fn cargo(report: &mut Report, name: &str, arguments: &[&str]) -> Result<()> {
    command(report, name, &mut workspace::cargo(arguments.iter().copied()))
}

fn command(report: &mut Report, name: &str, command: &mut Command) -> Result<()> {
    step(report, name, || process::run(name, command))
}

fn step(report: &mut Report, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let watch = Stopwatch::start();
    let outcome = match work() {
        Err(error) if process::interrupted() => return Err(error),
        Err(error) => Outcome::Failed(format!("{error:#}")),
        Ok(()) => Outcome::Passed,
    };
    report.add(name, outcome, watch.elapsed());
    Ok(())
}

fn skip(report: &mut Report, name: &str, error: &anyhow::Error) -> Result<()> {
    if process::interrupted() {
        anyhow::bail!("interrupted");
    }
    report.add(name, Outcome::Skipped(format!("{error:#}")), std::time::Duration::ZERO);
    Ok(())
}
