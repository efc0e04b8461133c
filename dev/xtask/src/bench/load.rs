//! Runs the load generator and reads its reports.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::contender::Contender;
use super::usage::Usage;
use crate::process::{self, Running};
use crate::{chat, clock};

const OPEN_LIMIT: Duration = Duration::from_secs(120);
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// The load generator.
#[derive(Debug)]
pub(crate) struct Load {
    /// Where its program and those of the contenders are.
    pub(crate) binaries: PathBuf,
    /// For its reports.
    pub(crate) folder: PathBuf,
    /// The stub backend behind all contenders.
    pub(crate) stub_url: String,
}

/// A distribution of times in microseconds.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Times {
    /// The median.
    pub(crate) p50_us: f64,
    /// All but one of a hundred are no longer.
    pub(crate) p99_us: f64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Requests {
    #[serde(default)]
    pub(crate) rps: f64,
    pub(crate) latency: Times,
    pub(crate) ok: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Streams {
    pub(crate) chunks_per_second: f64,
    pub(crate) chunks: u64,
    pub(crate) chunk_latency: Times,
    pub(crate) first_chunk: Times,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Cancels {
    pub(crate) noticed: u32,
    pub(crate) latency: Times,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Uploads {
    pub(crate) mb_per_second: f64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Flooded {
    pub(crate) failure: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Whole {
    #[serde(default)]
    failed: u64,
}

/// A load that goes on until it is dropped.
#[derive(Debug)]
pub(crate) struct Background {
    _running: Running,
}

impl Load {
    /// Runs one load, and returns its report and what the contender used meanwhile.
    ///
    /// # Errors
    /// When a request failed: a speed that comes with errors is none.
    pub(crate) fn run<R: DeserializeOwned>(
        &self,
        contender: &Contender,
        arguments: &str,
    ) -> Result<(R, Usage)> {
        self.run_watched(contender, arguments, || {})
    }

    /// As [`Load::run`], calling `look` many times a second.
    ///
    /// # Errors
    /// As [`Load::run`].
    pub(crate) fn run_watched<R: DeserializeOwned>(
        &self,
        contender: &Contender,
        arguments: &str,
        look: impl FnMut(),
    ) -> Result<(R, Usage)> {
        let mut command = self.command(contender, arguments);
        let before = contender.usage()?;
        let output = process::capture("dev-load", &mut command, look)?;
        let used = contender.usage()? - before;
        let whole: Whole =
            serde_json::from_str(&output).with_context(|| format!("read the report {output}"))?;
        if whole.failed > 0 {
            bail!("dev-load {arguments}: {} requests failed: {}", whole.failed, output.trim());
        }
        let report = serde_json::from_str(&output).with_context(|| format!("read the report {output}"))?;
        Ok((report, used))
    }

    /// Holds open streams, returns what the contender uses meanwhile, and closes them.
    ///
    /// # Errors
    /// When not all of them open, or they do not close.
    pub(crate) fn hold(&self, contender: &Contender, streams: u64) -> Result<Usage> {
        let held = self.start(contender, &format!("hold --duration 600 --streams {streams}"))?;
        let open = contender.usage()?;
        drop(held);
        let none_running = format!("{}/stub/running?n=0", self.stub_url);
        clock::poll("closed streams", Duration::from_millis(50), SETTLE_LIMIT, || {
            Ok(chat::answers(&none_running))
        })?;
        Ok(open)
    }

    /// Starts a load that reports when it is up and then goes on.
    ///
    /// # Errors
    /// When it does not come up whole.
    pub(crate) fn start(&self, contender: &Contender, arguments: &str) -> Result<Background> {
        let report = self.folder.join("background.json");
        let mut command = self.command(contender, arguments);
        let mut running = Running::start_logged("dev-load", &mut command, &report)?;
        let line = clock::poll("the load to come up", Duration::from_millis(50), OPEN_LIMIT, || {
            running.check_alive()?;
            let text = fs::read_to_string(&report).context("read the report")?;
            Ok(text.split_once('\n').map(|(line, _)| line.to_owned()))
        })?;
        let whole: Whole = serde_json::from_str(&line).with_context(|| format!("read the report {line}"))?;
        if whole.failed > 0 {
            bail!("dev-load {arguments} did not come up whole: {line}");
        }
        Ok(Background { _running: running })
    }

    fn command(&self, contender: &Contender, arguments: &str) -> Command {
        let mut command = Command::new(self.binaries.join("dev-load"));
        command.args(["--quiet", "--url", &contender.url]).args(arguments.split_whitespace());
        command
    }
}
