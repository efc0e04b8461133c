//! What a worker says unasked: models, load, drain; and the answers to pings.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use modelrelay_protocol::frame::{Extension, Extensions, ToRelay};
use modelrelay_protocol::slots::SessionKey;
use modelrelay_protocol::wellknown::{CLOSE_GRACE, PING_INTERVAL};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tracing::info;

use super::outbox::Control;
use super::{Ended, Running};
use crate::app::Core;
use crate::job::mailbox::Abort;
use crate::replicas::Claim;

/// Speaks for the worker on one session.
pub(crate) struct Announcer {
    core: Arc<Core>,
    key: SessionKey,
    claim: Arc<Claim>,
    control: Control,
    extensions: Extensions,
    running: Running,
    released: AtomicBool,
    /// Told when something was said that `run` has to look at.
    nudge: Notify,
    leave_at: Mutex<Option<Instant>>,
}

impl Announcer {
    pub(super) fn new(
        core: &Arc<Core>,
        key: SessionKey,
        claim: Arc<Claim>,
        control: Control,
        extensions: Extensions,
        running: Running,
    ) -> Self {
        Self {
            core: Arc::clone(core),
            key,
            claim,
            control,
            extensions,
            running,
            released: AtomicBool::new(false),
            nudge: Notify::new(),
            leave_at: Mutex::new(None),
        }
    }

    /// Answers a ping.
    pub(super) fn pong(&self, timestamp_unix_ms: Option<u64>) {
        self.control.send(&ToRelay::Pong { current_load: self.core.load_shown(), timestamp_unix_ms });
        self.load();
    }

    /// The relay said how many replicas there are.
    pub(super) fn counted(&self, replicas: u32) {
        self.claim.told(replicas);
    }

    /// Says again what is served, because the relay asked.
    pub(super) fn refresh(&self) {
        self.models();
        self.core.look_again();
    }

    /// The relay leaves. In so many milliseconds this worker goes, or when what runs has ended; the relay itself
    /// breaks off what is left at the end of its time.
    pub(super) fn goaway(&self, deadline_ms: u64) {
        info!(deadline_ms, "The relay leaves");
        let at = Instant::now() + Duration::from_millis(deadline_ms.min(24 * 3600 * 1000));
        *self.leave_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        self.claim.leaves();
        self.core.capacity.leaving(self.key);
        self.nudge.notify_one();
    }

    /// The relay needs this worker no more.
    pub(super) fn released(&self) {
        self.released.store(true, Ordering::Relaxed);
        self.nudge.notify_one();
    }

    /// Announces until the session has a reason to end.
    pub(super) async fn run(&self) -> Ended {
        let core = &self.core;
        let mut state = core.state.subscribe();
        let mut said = state.borrow_and_update().clone();
        // A plain v1 relay looks at its queue only when it hears from a worker.
        self.models();
        self.load();
        // Pings of our own keep middle boxes from forgetting a quiet connection.
        let mut ping = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut draining, mut forced) = (false, false);
        loop {
            let leave_at = *self.leave_at.lock().unwrap_or_else(PoisonError::into_inner);
            // Created before the look, so that what happens in between is not missed.
            let finished = core.capacity.changed.notified();
            let is_over = leave_at.is_some_and(|at| at <= Instant::now());
            let released = is_over || self.released.load(Ordering::Relaxed);
            if released && self.running.is_empty() {
                return Ended::Released;
            }
            tokio::select! {
                Ok(()) = state.changed() => {
                    let now = state.borrow_and_update().clone();
                    if now.models_shown() != said.models_shown() {
                        self.models();
                    }
                    if now.report_shown() != said.report_shown() {
                        self.load();
                    }
                    said = now;
                }
                () = core.drain.cancelled(), if !draining => {
                    draining = true;
                    self.draining();
                }
                () = core.force.cancelled(), if !forced => {
                    forced = true;
                    self.running.abort_all(Abort::Draining);
                }
                () = core.stop.cancelled() => return self.goodbye().await,
                () = at(leave_at), if !released => {}
                _ = ping.tick() => self.control.push(Message::Ping(tokio_tungstenite::tungstenite::Bytes::new())),
                () = self.nudge.notified() => {}
                () = finished, if released => {}
            }
        }
    }

    fn models(&self) {
        let update =
            ToRelay::ModelsUpdate { models: self.core.models_shown(), current_load: self.core.load_shown() };
        self.control.send(&update);
    }

    fn load(&self) {
        self.core.capacity.report(self.key);
    }

    fn draining(&self) {
        if self.extensions.has(Extension::Goaway) {
            let deadline_ms = u64::try_from(self.core.drain_limit.as_millis()).unwrap_or(u64::MAX);
            self.control.send(&ToRelay::Draining { deadline_ms });
        } else {
            self.models();
        }
    }

    /// Queues the close frame behind what waits already; the write half ends the session once it is written.
    async fn goodbye(&self) -> Ended {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "the worker leaves".into() };
        self.control.close(frame);
        tokio::time::sleep(CLOSE_GRACE).await;
        Ended::Leaving
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
