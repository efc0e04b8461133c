//! What else goes on on this machine, without which no figure means anything.

use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::clock::Stopwatch;
use crate::process;

/// Others may use this part of the processors before their use is worth a warning.
const QUIET: f64 = 0.05;
const SAMPLE: Duration = Duration::from_secs(1);

/// Returns the day and what runs here, for whoever reads the figures later.
pub(crate) fn describe() -> Result<String> {
    let day = process::capture("date", Command::new("date").args(["-u", "+%Y-%m-%d"]), || {})?;
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut names =
        processors.lines().filter_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1));
    let first = names.next().map_or("processor unknown", str::trim);
    Ok(format!("{}, {} cores of {first}", day.trim(), names.count() + 1))
}

/// Returns the load average of the last minute.
pub(crate) fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("read the load average")?;
    let first = text.split_whitespace().next().and_then(|number| number.parse().ok());
    first.with_context(|| format!("{text:?} is no load average"))
}

/// Waits until hardly anyone uses the processors, or for as long as `patience` lasts.
///
/// # Errors
/// When `/proc` cannot be read, and when the user wants to stop.
pub(crate) fn wait_until_quiet(patience: Duration) -> Result<()> {
    let watch = Stopwatch::start();
    let mut told = false;
    loop {
        let before = Watch::start()?;
        pause(SAMPLE)?;
        let share = before.others()?;
        if share <= QUIET {
            return Ok(());
        }
        if watch.elapsed() > patience {
            eprintln!("measuring all the same, while others use {:.0} % of the processors", share * 100.0);
            return Ok(());
        }
        if !told {
            let (share, patience) = (share * 100.0, patience.as_secs());
            eprintln!("others use {share:.0} % of the processors; waiting up to {patience} s for them …");
            told = true;
        }
    }
}

/// Sleeps, unless the user wants to stop.
///
/// # Errors
/// When the user wants to stop.
pub(crate) fn pause(time: Duration) -> Result<()> {
    let watch = Stopwatch::start();
    loop {
        let left = time.saturating_sub(watch.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        if process::interrupted() {
            bail!("interrupted");
        }
        thread::sleep(left.min(Duration::from_millis(100)));
    }
}

/// What was going on during a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Surroundings {
    /// Load average of the minute before.
    pub(crate) load_before: f64,
    /// Load average of its last minute, this program's own part of it included.
    pub(crate) load_after: f64,
    /// Part of the processors that others used, by round.
    pub(crate) others: Vec<f64>,
}

impl Surroundings {
    /// Says it in a sentence or two.
    pub(crate) fn sentence(&self) -> String {
        let Self { load_before, load_after, others } = self;
        let most = others.iter().copied().fold(0.0, f64::max);
        let each: Vec<String> = others.iter().map(|share| format!("{:.0} %", share * 100.0)).collect();
        let verdict = if most > QUIET { ": **the machine was not quiet**" } else { "" };
        format!(
            "Load average {load_before:.2} before and {load_after:.2} at the end; \
             others used {} of the processors{verdict}.",
            each.join(", ")
        )
    }
}

/// Processor time since its start, of this program with its children, and of all others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    machine: Ticks,
    own: u64,
}

impl Watch {
    /// Starts watching.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub(crate) fn start() -> Result<Self> {
        let machine = fs::read_to_string("/proc/stat").context("read the machine's processor time")?;
        let own = fs::read_to_string("/proc/self/stat").context("read this program's processor time")?;
        Ok(Self {
            machine: Ticks::parse(&machine).context("/proc/stat has no line for all processors")?,
            own: own_ticks(&own).context("/proc/self/stat has too few fields")?,
        })
    }

    /// Returns which part of the processors others used since the start. Children that still run count as
    /// others, so it is to be asked when they have ended.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub(crate) fn others(&self) -> Result<f64> {
        let now = Self::start()?;
        let busy = now.machine.busy.saturating_sub(self.machine.busy);
        let all = now.machine.all.saturating_sub(self.machine.all).max(1);
        let own = now.own.saturating_sub(self.own);
        Ok(busy.saturating_sub(own) as f64 / all as f64)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
}

impl Ticks {
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        // user, nice, system, idle, iowait, irq, softirq, steal; what guests use is in user already.
        let fields: Vec<u64> =
            line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let idle = fields.get(3)? + fields.get(4)?;
        let all: u64 = fields.iter().sum();
        Some(Self { busy: all - idle, all })
    }
}

/// User and system time of a process and of its children that have ended.
fn own_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_time_is_not_busy() {
        let text = "cpu  10 20 30 400 50 1 2 3 7 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(Ticks::parse(text), Some(Ticks { busy: 66, all: 516 }));
        assert_eq!(Ticks::parse("cpu0 1 1 1 1\n"), None);
    }

    #[test]
    fn own_time_holds_that_of_ended_children() {
        let text = "42 (a b) S 1 40 40 0 -1 4194560 100 0 0 0 7 5 3 2 20 0 1 0 100 1000 10";
        assert_eq!(own_ticks(text), Some(17));
    }

    #[test]
    fn a_busy_round_is_named() {
        let busy = Surroundings { load_before: 0.5, load_after: 2.0, others: vec![0.01, 0.3] };
        assert_eq!(
            busy.sentence(),
            "Load average 0.50 before and 2.00 at the end; others used 1 %, 30 % of the processors: \
             **the machine was not quiet**."
        );
        let quiet = Surroundings { others: vec![0.01], ..busy };
        assert!(quiet.sentence().ends_with("others used 1 % of the processors."));
    }
}
