//! Slots that come free here while requests at another relay have waited for much longer.
//!
//! When everything is busy the claims of all relays meet at the workers, and the oldest request wins. A claim is brought up
//! to date every 250 ms only: until then a relay goes on to win slots for requests that it has served already, and would
//! serve with them what came seconds later than that which waits elsewhere. From the pleas of the others it knows about
//! since when they wait, and gives way.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use modelrelay_protocol::slots::RENEWAL_INTERVAL;

use super::super::Scheduler;
use super::super::event::Action;
use super::super::models::ANY;
use super::super::workers::WorkerIx;
use super::Heard;

/// How much sooner a request must have come at another relay than the first here. What is known of others may be as old
/// as a plea, on either side: less than this, and two relays could give a slot to each other by turns.
const LEAD: Duration = RENEWAL_INTERVAL.saturating_mul(2);

impl Scheduler {
    /// Cedes a free slot for which something waits here if it is another relay's turn by far; says whether it was. Within
    /// a band the oldest requests of both are compared, whatever tenant's turn it is at either.
    pub(in super::super) fn gives_way(&mut self, worker: WorkerIx, now: Instant) -> bool {
        if self.pleading.heard.is_empty() {
            return false;
        }
        let Some((band, since)) = self.first_waiting_at(worker) else { return false };
        let is_far_older =
            |plea: &Heard| plea.n > 0 && plea.until > now && plea.band == band && plea.next + LEAD < since;
        let mut heard = std::mem::take(&mut self.pleading.heard);
        let to = heard.iter_mut().find(|plea| {
            is_far_older(plea) && self.may_give(worker, plea, false) && self.serves_named(worker, &plea.model)
        });
        let relay = to.map(|plea| {
            self.give_up(worker, plea, now);
            plea.relay.clone()
        });
        self.pleading.heard = heard;
        let Some(relay) = relay else { return false };
        let worker = self.workers[worker].id;
        self.actions.push_back(Action::Cede { worker, n: 1, relay });
        true
    }

    /// Of what waits for the models of a worker, the highest band and when the oldest request in it came.
    fn first_waiting_at(&self, worker: WorkerIx) -> Option<(i32, Instant)> {
        let first = |model| self.models[model].queue.first(1).first().copied();
        let serves = &self.workers[worker].serves;
        let first = if serves.contains(&ANY) {
            self.models.waited_for().filter_map(first).min()
        } else {
            serves.iter().copied().filter_map(first).min()
        };
        first.map(|(Reverse(band), request)| (band, self.requests[&request].submitted))
    }
}
