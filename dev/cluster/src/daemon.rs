//! One process of a cluster, with a log.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

const LAST_LINES: usize = 15;

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    left: bool,
}

impl Daemon {
    /// Starts a command that writes its output to the end of a file named after it.
    pub(crate) fn start(name: &str, command: &mut Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone().context("share the log file")?).stderr(file);
        // A group of its own: a terminal's Ctrl-C is for the owner.
        let child = command.process_group(0).spawn();
        let child = child.with_context(|| format!("start {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log, left: false })
    }

    /// Waits until `ready` finds something.
    ///
    /// # Errors
    /// When the process ends, or nothing was found within `limit`; with the end of the log. When waiting was given up.
    pub(crate) fn wait_ready<T>(
        &mut self,
        limit: Duration,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let found = wait::until(&format!("{} is ready", self.name), limit, || {
            match self.child.try_wait().with_context(|| format!("look at {}", self.name))? {
                Some(status) => bail!("{} ended with {status}", self.name),
                None if wait::is_given_up() => bail!("interrupted"),
                None => Ok(ready()),
            }
        });
        if found.is_err() && wait::is_given_up() {
            // Nothing is wrong with it.
            return found;
        }
        found.with_context(|| format!("the end of {}:\n{}", self.log.display(), tail(&self.log)))
    }

    /// Returns its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// From now on it does not end with this value.
    pub(crate) fn leave(&mut self) {
        self.left = true;
    }

    pub(crate) fn is_left(&self) -> bool {
        self.left
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.left {
            // `nsenter` waits for what it started among other processes, and does not take it along.
            for inner in children(self.pid()) {
                kill(inner);
            }
            // It may have ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Returns the processes that a process with one thread has started and that have not ended.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // It may have ended.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}
