//! What a process group has used, from the operating system.

use std::fs;
use std::ops::Sub;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::clock::Stopwatch;

/// Processor time and memory of all processes of one or more groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) processor: Duration,
    /// Resident memory, pages shared between processes counted once.
    pub(crate) memory_bytes: u64,
}

impl Usage {
    /// Adds another group's.
    pub(crate) fn plus(self, other: Self) -> Self {
        let processor = self.processor + other.processor;
        Self { processor, memory_bytes: self.memory_bytes + other.memory_bytes }
    }

    /// Reads what the processes of a group use now.
    ///
    /// # Errors
    /// When the group has no process, or nothing of its memory can be read.
    pub(crate) fn of_group(group: u32) -> Result<Self> {
        let mut members = 0;
        let mut usage = Self::default();
        for entry in fs::read_dir("/proc").context("list the processes")?.flatten() {
            // Whatever is no process, or has ended meanwhile, has no readable stat.
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let Some(stat) = Stat::parse(&stat).filter(|stat| stat.group == group) else { continue };
            members += 1;
            let processor = Duration::from_secs(stat.ticks) / ticks_per_second();
            usage = usage.plus(Self { processor, memory_bytes: memory_bytes(&entry.path()) });
        }
        if members == 0 {
            bail!("process group {group} is gone");
        }
        if usage.memory_bytes == 0 {
            bail!("the memory of process group {group} cannot be read from /proc");
        }
        Ok(usage)
    }
}

/// The most memory that was in use, looked at ten times a second.
#[derive(Debug, Default)]
pub(crate) struct Peak {
    last: Option<Stopwatch>,
    memory_bytes: u64,
}

impl Peak {
    /// Looks, unless it has just done so. Who cannot be read has ended, which whoever waits for it reports.
    pub(crate) fn look(&mut self, usage: impl FnOnce() -> Result<Usage>) {
        if self.last.is_some_and(|last| last.elapsed() < LOOK_INTERVAL) {
            return;
        }
        self.last = Some(Stopwatch::start());
        if let Ok(usage) = usage() {
            self.memory_bytes = self.memory_bytes.max(usage.memory_bytes);
        }
    }

    /// Returns the most bytes that were seen.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Returns by how many bytes that is more than before.
    pub(crate) fn above(&self, before: Usage) -> f64 {
        self.memory_bytes.saturating_sub(before.memory_bytes) as f64
    }
}

const LOOK_INTERVAL: Duration = Duration::from_millis(100);

impl Sub<Self> for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            processor: self.processor.saturating_sub(earlier.processor),
            memory_bytes: self.memory_bytes.saturating_sub(earlier.memory_bytes),
        }
    }
}

fn ticks_per_second() -> u32 {
    u32::try_from(rustix::param::clock_ticks_per_second()).expect("a clock has few ticks a second")
}

/// One that ends, or is just being made, has no memory of its own.
fn memory_bytes(process: &Path) -> u64 {
    let text = fs::read_to_string(process.join("smaps_rollup")).unwrap_or_default();
    proportional_kib(&text).unwrap_or(0) * 1024
}

fn proportional_kib(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok())
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    group: u32,
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The program's name is in brackets, and may hold spaces and brackets itself.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self { group: u32::try_from(number(2)?).ok()?, ticks: number(11)? + number(12)? })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::clock;
    use crate::process::Running;

    #[test]
    fn group_and_ticks_are_found_after_an_odd_name() {
        let text = "42 (a) b) S 1 40 40 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 100 1000 10";
        assert_eq!(Stat::parse(text), Some(Stat { group: 40, ticks: 12 }));
        assert_eq!(Stat::parse("42 (cut"), None);
    }

    #[test]
    fn proportional_memory_is_read_in_kib() {
        let text = "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:  900 kB\nPss:  512 kB\nPss_Anon: 1 kB\n";
        assert_eq!(proportional_kib(text), Some(512));
    }

    #[test]
    fn peak_is_the_most_that_was_seen_above_what_was_before() {
        let usage = |memory_bytes| Usage { memory_bytes, ..Usage::default() };
        let mut peak = Peak::default();
        peak.look(|| Ok(usage(500)));
        assert_eq!((peak.memory_bytes(), peak.above(usage(100)), peak.above(usage(600))), (500, 400.0, 0.0));
        peak.look(|| unreachable!("it has just looked"));
    }

    #[test]
    fn a_group_is_measured_with_all_its_processes() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60 & wait"]);
        let running = Running::start("two processes", &mut command).unwrap();
        let usage = clock::poll("memory", Duration::from_millis(1), Duration::from_secs(10), || {
            Ok(Usage::of_group(running.group()).ok())
        });
        assert!(usage.unwrap().memory_bytes > 0);
        let group = running.group();
        drop(running);
        assert!(Usage::of_group(group).is_err());
    }
}
