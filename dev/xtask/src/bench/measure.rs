//! What is measured in one round: each measure of all contenders in turn, so that whatever disturbs the
//! machine meets all of them.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::contender::Contender;
use super::load::Load;
use super::table::Figures;
use crate::clock::Stopwatch;

mod memory;
mod traffic;
mod workers;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Of each load.
    pub(super) seconds: u32,
    /// Streams that are open and idle.
    held_streams: u64,
    /// Chunks of each of 9,000 streams.
    burst_chunks: u32,
}

impl Plan {
    /// Returns what takes two to three minutes a round.
    pub(crate) fn full(open_files: u64) -> Self {
        Self { seconds: 3, held_streams: held_streams(open_files), burst_chunks: 20 }
    }

    /// Returns what takes about two minutes in all.
    pub(crate) fn quick(open_files: u64) -> Self {
        Self { seconds: 2, held_streams: held_streams(open_files), burst_chunks: 10 }
    }
}

/// A proxy has two open files for each stream.
fn held_streams(open_files: u64) -> u64 {
    (open_files.saturating_sub(500) / 2).min(9_500)
}

/// A part of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Memory of open streams, and after they are closed.
    Memory,
    /// Small requests.
    Requests,
    /// Chunks of streams.
    Streams,
    /// Clients that go away.
    Cancels,
    /// Large request bodies.
    Uploads,
    /// Idle workers, workers that come and go, and clients that read nothing.
    Workers,
}

impl Part {
    /// All of them, in the order in which they have to be measured.
    pub(crate) const ALL: [Self; 6] = [
        // First, because idle memory is that of a process that has done nothing yet.
        Self::Memory,
        Self::Requests,
        Self::Streams,
        Self::Cancels,
        Self::Uploads,
        Self::Workers,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Memory => "memory of open and closed streams",
            Self::Requests => "small requests",
            Self::Streams => "chunks of streams",
            Self::Cancels => "clients that go away",
            Self::Uploads => "large request bodies",
            Self::Workers => "idle workers, workers that come and go, clients that read nothing",
        }
    }

    /// Measures it.
    ///
    /// # Errors
    /// When a contender does not carry the load.
    pub(crate) fn take(
        self,
        plan: &Plan,
        contenders: &[Contender],
        load: &Load,
        figures: &mut Figures,
    ) -> Result<()> {
        eprint!("   {} …", self.title());
        let watch = Stopwatch::start();
        let taken = match self {
            Self::Memory => memory::take(plan, contenders, load, figures),
            Self::Requests => traffic::requests(plan, contenders, load, figures),
            Self::Streams => traffic::streams(plan, contenders, load, figures),
            Self::Cancels => traffic::cancels(contenders, load, figures),
            Self::Uploads => traffic::uploads(plan, contenders, load, figures),
            Self::Workers => workers::take(plan, load, figures),
        };
        eprintln!(" {:.0} s", watch.elapsed().as_secs_f64());
        taken.with_context(|| format!("measure {}", self.title()))
    }
}

const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn per_million(processor: Duration, count: u64) -> f64 {
    processor.as_secs_f64() * 1e6 / count as f64
}
