//! Memory of a process that has done nothing yet, with thousands of streams open, and after they are gone.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::{MIB, Plan};
use crate::bench::contender::Contender;
use crate::bench::load::Load;
use crate::bench::machine;
use crate::bench::rows::{HELD, IDLE, RELEASED};
use crate::bench::table::Figures;

/// An allocator gives memory back after a while.
const SETTLE: Duration = Duration::from_secs(10);

pub(super) fn take(plan: &Plan, contenders: &[Contender], load: &Load, figures: &mut Figures) -> Result<()> {
    let mut idle = Vec::new();
    for contender in contenders.iter().filter(|contender| contender.has_processes()) {
        let before = contender.usage()?;
        figures.add(IDLE, contender.name, before.memory_bytes as f64 / MIB);
        let open = load.hold(contender, plan.held_streams)?;
        let grown = (open - before).memory_bytes as f64;
        figures.add(HELD, contender.name, grown / 1024.0 / plan.held_streams as f64);
        let burst = format!("burst --streams 9000 --interval-ms 100 --chunks {}", plan.burst_chunks);
        load.run::<Value>(contender, &burst)?;
        idle.push((contender, before));
    }
    machine::pause(SETTLE)?;
    for (contender, before) in idle {
        let after = contender.usage()?.memory_bytes as f64;
        figures.add(RELEASED, contender.name, after / before.memory_bytes as f64);
    }
    Ok(())
}
