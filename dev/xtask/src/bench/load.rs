//! Runs the load generator and reads its reports.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

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
    /// Its program.
    pub(crate) binary: PathBuf,
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
struct Whole {
    #[serde(default)]
    failed: u64,
}

/// Memory around a number of open streams that carry nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) idle: Usage,
    pub(crate) open: Usage,
    pub(crate) closed: Usage,
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
        let mut command = self.command(contender, arguments);
        let before = contender.usage()?;
        let output = process::capture("dev-load", &mut command, || {})?;
        let used = contender.usage()? - before;
        let whole: Whole =
            serde_json::from_str(&output).with_context(|| format!("read the report {output}"))?;
        if whole.failed > 0 {
            bail!("dev-load {arguments}: {} requests failed: {}", whole.failed, output.trim());
        }
        let report = serde_json::from_str(&output).with_context(|| format!("read the report {output}"))?;
        Ok((report, used))
    }

    /// Holds open streams, closes them, and returns the memory before, meanwhile and `settle` after.
    ///
    /// # Errors
    /// When not all of them open, or they do not close.
    pub(crate) fn hold(&self, contender: &Contender, streams: u64, settle: Duration) -> Result<Held> {
        let idle = contender.usage()?;
        let report = self.folder.join("held.json");
        let mut command = self.command(contender, &format!("hold --duration 600 --streams {streams}"));
        let mut running = Running::start_logged("dev-load", &mut command, &report)?;
        let line = clock::poll("open streams", Duration::from_millis(50), OPEN_LIMIT, || {
            running.check_alive()?;
            let text = fs::read_to_string(&report).context("read the report")?;
            Ok(text.split_once('\n').map(|(line, _)| line.to_owned()))
        })?;
        let whole: Whole = serde_json::from_str(&line).with_context(|| format!("read the report {line}"))?;
        if whole.failed > 0 {
            bail!("not all streams opened: {line}");
        }
        let open = contender.usage()?;
        drop(running);
        let none_running = format!("{}/stub/running?n=0", self.stub_url);
        clock::poll("closed streams", Duration::from_millis(50), SETTLE_LIMIT, || {
            Ok(chat::answers(&none_running))
        })?;
        thread::sleep(settle);
        Ok(Held { idle, open, closed: contender.usage()? })
    }

    fn command(&self, contender: &Contender, arguments: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["--quiet", "--url", &contender.url]).args(arguments.split_whitespace());
        command
    }
}
