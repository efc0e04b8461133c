//! The ways to the relays: each configured URL, the addresses that it stands for, and the sessions that are kept there.
//!
//! An address is dialled until it holds a session, and, where several replicas may hide behind it, until it has shown as
//! many as there are. A replica that is held already is left before the worker registers.

mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use modelrelay_protocol::config::RelayResolve;
use modelrelay_protocol::wellknown::CLOSE_GRACE;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use self::pace::{Attempt, Pace, Standing};
use crate::app::Core;
use crate::connect::{DialError, Dialled};
use crate::metrics::WayGauges;
use crate::replicas::Claim;
use crate::session::{self, Ended, Part};

/// How often the host name of a way is looked up, besides whenever a session ends, and sooner while it has no address.
const LOOK_UP_EVERY: Duration = Duration::from_secs(10);

/// Lookups are this far apart at least.
const LOOK_UP_PAUSE: Duration = Duration::from_secs(1);

/// What the addresses of one URL share.
struct Way {
    core: Arc<Core>,
    index: usize,
    /// Replicas that were reached here and are held, by whatever way.
    shown: Mutex<BTreeSet<String>>,
    /// Addresses that it has now.
    addresses: Mutex<usize>,
    /// Asks for a lookup.
    look_up: Notify,
    gauges: WayGauges,
}

/// A session that runs.
struct Open {
    claim: Arc<Claim>,
}

/// Keeps the sessions of one URL until the worker leaves.
pub(crate) async fn keep(core: Arc<Core>, index: usize) {
    let span = info_span!("relay", url = %core.relays[index]);
    let gauges = core.metrics.way(index);
    let way = Way {
        index,
        shown: Mutex::default(),
        addresses: Mutex::new(1),
        look_up: Notify::new(),
        gauges,
        core,
    };
    let way = Arc::new(way);
    async {
        match way.core.resolve {
            RelayResolve::First => keep_address(Arc::clone(&way), None, CancellationToken::new()).await,
            RelayResolve::All => keep_all(&way).await,
        }
    }
    .instrument(span)
    .await;
}

/// Keeps a session with each address of the host.
async fn keep_all(way: &Arc<Way>) {
    let core = &way.core;
    let mut tasks = JoinSet::new();
    let mut kept: BTreeMap<SocketAddr, CancellationToken> = BTreeMap::new();
    let mut pace = Pace::default();
    loop {
        let found = tokio::select! {
            found = core.relays[way.index].resolve() => found,
            () = core.drain.cancelled() => break,
            () = core.kill.cancelled() => return,
        };
        match found {
            Ok(found) => {
                *lock(&way.addresses) = found.len();
                kept.retain(|address, gone| {
                    let stays = found.contains(address);
                    if !stays {
                        info!(%address, "The relay's name lost an address");
                        gone.cancel();
                    }
                    stays
                });
                for address in found {
                    kept.entry(address).or_insert_with(|| {
                        let gone = CancellationToken::new();
                        let span = info_span!("address", %address);
                        let keeping = keep_address(Arc::clone(way), Some(address), gone.clone());
                        tasks.spawn(keeping.instrument(span));
                        gone
                    });
                }
            }
            Err(error) => warn!(%error, addresses = kept.len(), "Cannot resolve the relay's name"),
        }
        let asked = async {
            tokio::time::sleep(LOOK_UP_PAUSE).await;
            way.look_up.notified().await;
        };
        // A name that a cluster has not published yet comes soon, and nothing else is left to try.
        let wait = if kept.is_empty() {
            pace.after(Attempt::Ended { lived: Duration::ZERO }, rand::random())
        } else {
            pace = Pace::default();
            LOOK_UP_EVERY
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = asked => {}
            () = core.drain.cancelled() => break,
            () = core.kill.cancelled() => return,
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

/// Keeps sessions with what is behind one address, until the worker leaves or the address is `gone` and its sessions
/// have ended.
async fn keep_address(way: Arc<Way>, address: Option<SocketAddr>, gone: CancellationToken) {
    let core = &way.core;
    let _counted = core.count_address();
    let mut news = core.replicas.news();
    let mut pace = Pace::default();
    let mut due = Instant::now();
    let mut fails = false;
    let mut is_v1 = false;
    let mut open: BTreeMap<tokio::task::Id, Open> = BTreeMap::new();
    let mut sessions: JoinSet<(Attempt, bool)> = JoinSet::new();
    loop {
        if open.is_empty() && (gone.is_cancelled() || core.drain.is_cancelled()) {
            return;
        }
        let looks = !gone.is_cancelled() && !core.drain.is_cancelled();
        let dials = looks && way.standing(&open).is_lacking();
        tokio::select! {
            () = tokio::time::sleep_until(due), if dials => {
                let dialled = tokio::select! {
                    dialled = way.dial(address) => dialled,
                    // A worker that leaves needs no new connection.
                    () = core.drain.cancelled() => continue,
                    () = core.kill.cancelled() => return,
                };
                fails = matches!(dialled, Err(NoSession::Failed(_)));
                due = Instant::now() + match dialled {
                    Ok((dialled, claim)) => {
                        let claim = Arc::new(claim);
                        let running = way.clone().run(dialled, Arc::clone(&claim), is_v1);
                        let id = sessions.spawn(running.in_current_span()).id();
                        open.insert(id, Open { claim });
                        pace.after_found(rand::random())
                    }
                    Err(NoSession::Known) => pace.after_known(way.coverage(), rand::random()),
                    Err(NoSession::Failed(attempt)) => pace.after(attempt, rand::random()),
                };
            }
            Some(ended) = sessions.join_next_with_id() => {
                let (id, attempt) = match ended {
                    Ok((id, (attempt, v1))) => {
                        is_v1 = v1;
                        (id, attempt)
                    }
                    Err(error) => (error.id(), Attempt::Ended { lived: Duration::ZERO }),
                };
                open.remove(&id);
                way.look_up.notify_one();
                due = Instant::now() + pace.after(attempt, rand::random());
                fails = true;
                // The loss of its own session is no reason to dial sooner than that.
                news.mark_unchanged();
            }
            Ok(()) = news.changed() => {
                way.look_up.notify_one();
                core.replicas.retain_held(&mut lock(&way.shown));
                // Whom it cannot reach it tries again often enough.
                if !fails {
                    let now = Instant::now();
                    let soon = now + pace.after_news(rand::random());
                    due = if due <= now { soon } else { due.min(soon) };
                }
            }
            () = gone.cancelled(), if looks => {}
            () = core.drain.cancelled(), if looks => {}
            () = core.kill.cancelled() => return,
        }
    }
}

/// Why an attempt brought no session.
enum NoSession {
    /// It led to a replica that is held already.
    Known,
    /// It failed.
    Failed(Attempt),
}

impl Way {
    fn coverage(&self) -> crate::replicas::Coverage {
        self.core.replicas.coverage(&lock(&self.shown))
    }

    fn standing(&self, open: &BTreeMap<tokio::task::Id, Open>) -> Standing {
        Standing {
            own: open.values().filter(|session| session.claim.stays()).count(),
            may_hide: *lock(&self.addresses) == 1,
            coverage: self.coverage(),
        }
    }

    /// Dials, and leaves again when the relay is one that is held.
    async fn dial(&self, address: Option<SocketAddr>) -> Result<(Dialled, Claim), NoSession> {
        let core = &self.core;
        let _shown = self.gauges.dials();
        let secret = core.secret();
        let relay = &core.relays[self.index];
        let mut dialled =
            core.dialer.dial(relay, address, &core.provider, secret.as_ref()).await.map_err(|error| {
                NoSession::Failed(match error {
                    DialError::Refused(status) => {
                        warn!(%status, "The relay refused the connection; is the secret right?");
                        Attempt::Refused
                    }
                    DialError::Io(_) | DialError::Upgrade(_) | DialError::TimedOut => {
                        warn!(error = %error, "Cannot reach the relay");
                        Attempt::Ended { lived: Duration::ZERO }
                    }
                })
            })?;
        if let Some(replica) = &dialled.replica {
            lock(&self.shown).insert(replica.clone());
        }
        match core.replicas.claim(dialled.replica.as_deref(), dialled.replicas) {
            Ok(claim) => Ok((dialled, claim)),
            Err(crate::replicas::AlreadyHeld) => {
                debug!(replica = dialled.replica, "Reached a replica that is held already");
                let _ = tokio::time::timeout(CLOSE_GRACE, dialled.socket.close(None)).await;
                Err(NoSession::Known)
            }
        }
    }

    /// Runs a session to its end; says as well whether the relay speaks plain v1.
    async fn run(self: Arc<Self>, dialled: Dialled, claim: Arc<Claim>, mut is_v1: bool) -> (Attempt, bool) {
        let core = &self.core;
        let fixed = (core.capacity.slots() / core.addresses()).max(1);
        let part = Part { slots: if is_v1 { fixed } else { core.capacity.slots() }, fixed };
        let begun = Instant::now();
        let mut accepted = None;
        let replica = dialled.replica;
        let ended = session::run(core, dialled.socket, part, claim, |v1| {
            is_v1 = v1;
            accepted = Some((Instant::now(), self.gauges.opens()));
        })
        .await;
        let lived = accepted.map_or(Duration::ZERO, |(at, _)| at.elapsed());
        report(&ended, replica.as_deref(), begun.elapsed());
        let attempt = match ended {
            Ended::Refused(_) => Attempt::Refused,
            Ended::TooManySlots => {
                is_v1 = true;
                Attempt::Again
            }
            Ended::Closed { .. }
            | Ended::Broken(_)
            | Ended::Silent
            | Ended::Protocol(_)
            | Ended::Released
            | Ended::Leaving => Attempt::Ended { lived },
        };
        (attempt, is_v1)
    }
}

/// A panic under one of these locks leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn report(ended: &Ended, replica: Option<&str>, lived: Duration) {
    let seconds = lived.as_secs();
    match ended {
        Ended::Refused(reason) => warn!(reason, "The relay refused this worker's credential"),
        Ended::Closed { code, reason } => {
            info!(code, reason, replica, seconds, "The relay closed the connection");
        }
        Ended::Broken(reason) => warn!(reason, replica, seconds, "The connection to the relay broke"),
        Ended::Silent => warn!(replica, seconds, "The relay fell silent"),
        Ended::Protocol(reason) => {
            warn!(reason, replica, seconds, "The relay does not keep to the protocol");
        }
        Ended::Released => info!(replica, seconds, "The relay let this worker go"),
        Ended::Leaving => info!(replica, seconds, "Left the relay"),
        Ended::TooManySlots => {
            info!("A plain v1 relay beside others: registering with its part of the slots")
        }
    }
}
