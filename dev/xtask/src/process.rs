//! Child processes that never outlive this program: each leads a process group of its own,
//! and the group is ended when its owner is dropped or a signal arrives.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::clock::{self, Stopwatch};

const GRACE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(10);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static GROUPS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn groups() -> MutexGuard<'static, BTreeSet<u32>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether a signal asked this program to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// From now on, signals that ask to stop end all children, after which whoever waits for them returns, and nobody waits for
/// a cluster to start.
///
/// # Errors
/// When the operating system refuses the handlers.
pub(crate) fn end_children_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("watch for signals")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            // Politely first; a second signal does not wait.
            let signal = if INTERRUPTED.swap(true, Ordering::SeqCst) { Signal::KILL } else { Signal::TERM };
            groups().iter().for_each(|&group| signal_group(group, signal));
            dev_cluster::wait::give_up();
        }
    });
    Ok(())
}

fn signal_group(group: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        // It fails when every process of the group has ended, which is what is wanted.
        let _ = kill_process_group(pid, signal);
    }
}

/// A running child and everything it started; dropping it ends them.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
    log: Option<PathBuf>,
}

impl Running {
    /// Starts a command without standard input.
    ///
    /// # Errors
    /// When it cannot be started, or this program was asked to stop.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        let child = {
            // Under the lock, so that a signal finds either the group or the flag that forbids starting it.
            let mut groups = groups();
            if interrupted() {
                bail!("interrupted before starting {name}");
            }
            let child = command
                .stdin(Stdio::null())
                .process_group(0)
                .spawn()
                .with_context(|| format!("start {name} ({})", command.get_program().display()))?;
            groups.insert(child.id());
            child
        };
        Ok(Self { name: name.to_owned(), child, log: None })
    }

    /// Starts a command that writes its output to a file, whose end explains a failure.
    ///
    /// # Errors
    /// When the file cannot be made, and as [`Running::start`].
    pub(crate) fn start_logged(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdout(file.try_clone().context("share the log file")?).stderr(file);
        let mut running = Self::start(name, command)?;
        running.log = Some(log.to_owned());
        Ok(running)
    }

    /// Returns the id of its process group.
    pub(crate) fn group(&self) -> u32 {
        self.child.id()
    }

    /// Fails when the child has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait().with_context(|| format!("look at {}", self.name))? else {
            return Ok(());
        };
        bail!("{} ended with {status}{}", self.name, self.log_tail())
    }

    /// Returns the last lines of the log, introduced, or nothing when there is none.
    pub(crate) fn log_tail(&self) -> String {
        let Some(text) = self.log.as_ref().and_then(|log| fs::read(log).ok()) else {
            return String::new();
        };
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(15)..];
        format!("; the end of its log:\n  {}", last.join("\n  "))
    }

    fn wait(&mut self, mut tick: impl FnMut()) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("wait for {}", self.name))? {
                return Ok(status);
            }
            tick();
            thread::sleep(TICK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = self.child.id();
        signal_group(group, Signal::TERM);
        let watch = Stopwatch::start();
        while watch.elapsed() < GRACE && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(TICK);
        }
        // Also for what the leader left behind in its group.
        signal_group(group, Signal::KILL);
        let _ = self.child.wait();
        groups().remove(&group);
    }
}

/// Runs a command to its end with this program's own output.
///
/// # Errors
/// When it cannot be started or fails.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<()> {
    run_watched(name, command, || {})
}

/// Runs a command to its end, calling `tick` many times a second.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_watched(name: &str, command: &mut Command, tick: impl FnMut()) -> Result<()> {
    let mut running = Running::start(name, command)?;
    let status = running.wait(tick)?;
    if !status.success() {
        bail!("{name} failed with {status}");
    }
    Ok(())
}

/// Runs a command quietly to its end, calling `tick` many times a second, and returns what it printed.
///
/// # Errors
/// As [`run`], with the end of what it printed.
pub(crate) fn capture(name: &str, command: &mut Command, tick: impl FnMut()) -> Result<String> {
    let output = tempfile::NamedTempFile::new().context("create a temporary file")?;
    let mut running = Running::start_logged(name, command, output.path())?;
    let status = running.wait(tick)?;
    if !status.success() {
        bail!("{name} failed with {status}{}", running.log_tail());
    }
    fs::read_to_string(output.path()).with_context(|| format!("read the output of {name}"))
}

/// Waits until `ready` gives a value while every one of `running`, the newest first, stays alive.
///
/// # Errors
/// When one of them ends, the limit passes, or the user wants to stop; with the end of a log that may explain it.
pub(crate) fn wait_ready<T>(
    what: &str,
    limit: Duration,
    running: &mut [Running],
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T> {
    let waited = clock::poll(what, Duration::from_millis(50), limit, || {
        running.iter_mut().try_for_each(Running::check_alive)?;
        Ok(ready())
    });
    waited.map_err(|error| {
        let newest = running.first_mut();
        // The log of one that has ended is in the message already.
        match newest.and_then(|newest| newest.check_alive().is_ok().then(|| newest.log_tail())) {
            Some(tail) => anyhow!("{error:#}{tail}"),
            None => error,
        }
    })
}
