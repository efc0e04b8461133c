//! Requests, streams, cancels and uploads of all contenders.

use anyhow::Result;

use super::{MIB, Plan, per_million};
use crate::bench::contender::Contender;
use crate::bench::load::{Cancels, Load, Requests, Streams, Times, Uploads};
use crate::bench::rows;
use crate::bench::table::{Figures, Measure};
use crate::bench::usage::Peak;

pub(super) fn requests(
    plan: &Plan,
    contenders: &[Contender],
    load: &Load,
    figures: &mut Figures,
) -> Result<()> {
    let seconds = plan.seconds;
    for contender in contenders {
        let (requests, used): (Requests, _) = load.run(contender, &format!("closed --duration {seconds}"))?;
        figures.add(rows::RATE, contender.name, requests.rps);
        if contender.has_processes() {
            figures.add(rows::REQUEST_CPU, contender.name, per_million(used.processor, requests.ok));
        }
    }
    let mut added = Added::new(rows::REQUEST_P50, rows::REQUEST_P99);
    for contender in contenders {
        let arguments = format!("open --rate 200 --duration {seconds}");
        let (requests, _): (Requests, _) = load.run(contender, &arguments)?;
        added.take(contender, requests.latency, figures);
    }
    Ok(())
}

pub(super) fn streams(
    plan: &Plan,
    contenders: &[Contender],
    load: &Load,
    figures: &mut Figures,
) -> Result<()> {
    let seconds = plan.seconds;
    for contender in contenders {
        let (burst, used): (Streams, _) = load.run(contender, &format!("streams --duration {seconds}"))?;
        figures.add(rows::CHUNK_RATE, contender.name, burst.chunks_per_second);
        if contender.has_processes() {
            figures.add(rows::BURST_CPU, contender.name, per_million(used.processor, burst.chunks));
        }
    }
    let mut added = Added::new(rows::CHUNK_P50, rows::CHUNK_P99);
    for contender in contenders {
        let chunks = seconds * 50;
        let paced = format!("streams --streams 50 --interval-ms 20 --stagger-ms 1000 --chunks {chunks}");
        let (paced, used): (Streams, _) = load.run(contender, &paced)?;
        if contender.has_processes() {
            figures.add(rows::PACED_CPU, contender.name, per_million(used.processor, paced.chunks));
        }
        added.take(contender, paced.chunk_latency, figures);
    }
    // Short ones, one after another, for many first chunks at a modest load.
    let mut added = Added::new(rows::FIRST_P50, rows::FIRST_P99);
    for contender in contenders {
        let short =
            format!("streams --streams 8 --chunks 5 --interval-ms 10 --stagger-ms 50 --duration {seconds}");
        let (short, _): (Streams, _) = load.run(contender, &short)?;
        added.take(contender, short.first_chunk, figures);
    }
    Ok(())
}

const CANCEL_PHASES: [&str; 5] =
    ["before-head", "before-first-byte", "mid-stream", "mid-stream-idle", "non-streaming"];

pub(super) fn cancels(contenders: &[Contender], load: &Load, figures: &mut Figures) -> Result<()> {
    for contender in contenders {
        let mut fewest = u32::MAX;
        for phase in CANCEL_PHASES {
            let arguments = format!("cancel --when {phase} --requests 100 --stub-url {}", load.stub_url);
            let (cancels, _): (Cancels, _) = load.run(contender, &arguments)?;
            fewest = fewest.min(cancels.noticed);
            if phase == "mid-stream" {
                figures.add(rows::CANCEL_P50, contender.name, cancels.latency.p50_us / 1e3);
                figures.add(rows::CANCEL_P99, contender.name, cancels.latency.p99_us / 1e3);
            }
        }
        figures.add(rows::CANCELS, contender.name, f64::from(fewest));
    }
    Ok(())
}

pub(super) fn uploads(
    plan: &Plan,
    contenders: &[Contender],
    load: &Load,
    figures: &mut Figures,
) -> Result<()> {
    let seconds = plan.seconds;
    for contender in contenders {
        let name = contender.name;
        let (small, _): (Uploads, _) =
            load.run(contender, &format!("upload --mib 1 --duration {seconds}"))?;
        let mut peak = Peak::default();
        let (large, _): (Uploads, _) =
            load.run_watched(contender, &format!("upload --mib 10 --duration {seconds}"), || {
                peak.look(|| contender.first_usage());
            })?;
        figures.add(rows::UPLOAD, name, small.mb_per_second);
        figures.add(rows::UPLOAD_10, name, large.mb_per_second);
        figures.add(rows::UPLOAD_KEPT, name, large.mb_per_second / small.mb_per_second);
        if contender.has_processes() {
            figures.add(rows::UPLOAD_MEMORY, name, peak.memory_bytes() as f64 / MIB);
        }
    }
    Ok(())
}

/// Enters times as what a contender adds to those of the first one, the stub itself.
struct Added {
    p50: Measure,
    p99: Measure,
    direct: Option<Times>,
}

impl Added {
    fn new(p50: Measure, p99: Measure) -> Self {
        Self { p50, p99, direct: None }
    }

    fn take(&mut self, contender: &Contender, times: Times, figures: &mut Figures) {
        let Some(direct) = self.direct else {
            self.direct = Some(times);
            return;
        };
        figures.add(self.p50, contender.name, (times.p50_us - direct.p50_us) / 1e3);
        figures.add(self.p99, contender.name, (times.p99_us - direct.p99_us) / 1e3);
    }
}
