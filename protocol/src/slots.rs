//! Who may use a worker's slots: the arbiter at the worker, a value without IO.
//!
//! A worker holds one session with every relay replica. It owns its slots and is their only arbiter: it lends them to
//! the relays as *credits*, and a relay spends one credit for each request. What is lent and what runs, summed over all
//! sessions, never exceeds the slots, so nothing is over-committed and no request is refused for being late. There is no
//! shared database, and relays do not talk to one another.
//!
//! # Messages
//! All are text frames of [`crate::frame`], in force with [`Extension::Slots`](crate::frame::Extension::Slots).
//!
//! | message | from | means |
//! | --- | --- | --- |
//! | `grant {n}` | worker | `n` more slots are lent to this relay |
//! | request | relay | spends one credit |
//! | last frame of a response with `REGRANT` | worker | the request's slot is lent to this relay again; without the flag it is the worker's |
//! | `recall {n}` | worker | asks for up to `n` unspent credits back |
//! | `return {n}` | relay | answers the oldest recall that is open, at once and exactly once: how many come back, from none to all asked for |
//! | `want {n, band, age_ms, received}` | relay | this relay lacks `n` slots beyond the credits it has received; of the requests that wait for them the next has this priority and has waited so long. Replaces the want before it; `n` = 0 withdraws it |
//! | `load {relays, replicas, idle_elsewhere}` | worker | how many relays share these slots, what those are called that take pleas, and whether idle ones are lent to others |
//! | `plea {model, n, band, age_ms, number}` | relay | this relay lacks `n` more slots for a model, of any worker: pass it on to other relays. `n` = 0 takes back all pleas for the model with a lower number |
//! | `plea {relay, model, n, …}` | worker | that relay lacks them |
//! | `cede {n, relay}` | relay | gives up `n` unspent credits of this worker for that relay |
//!
//! `plea` and `cede` are in force with [`Extension::Pleas`](crate::frame::Extension::Pleas) besides. `relay` is the name
//! that a replica's upgrade tells ([`REPLICA`](crate::wellknown::header::REPLICA)).
//!
//! # What a credit goes through
//! ```text
//!            grant, REGRANT                      request
//!   worker's ──────────────► lent, unspent ─────────────────► running
//!      ▲                         │                               │
//!      ├──── return, session end ┘                               │
//!      └──────────────────────────────── last frame, call closed ┘
//! ```
//! A credit that is ceded is lent at once to the relay that it was ceded for, whatever else is claimed; when that relay is
//! not connected or may not have more, the slot is free. A credit stays valid until it is returned or ceded: a request that
//! crosses a recall, a `goaway` or the worker's drain is served. When a session ends, its unspent credits are the worker's
//! at once; the slots of what ran there are when their backend calls are closed ([`Arbiter::finished`]).
//!
//! # How the arbiter decides
//! - **One relay** is lent every slot when it registers. Nothing is recalled, wanted or reported: no message more than
//!   without credits.
//! - **A free slot** goes to the best claim: the want of the highest band, then the one whose request is oldest. The
//!   worker lets a want grow older by itself. Each grant fills one of the `n`.
//! - **A request that ends** hands its slot back; without a better claim the same relay gets it again in the same frame.
//!   So slots gather where they are used, and stay there without a message.
//! - **Credits that crossed a want** fill it: `received` counts all that this session brought the relay, by `grant` and
//!   by `REGRANT`, so the worker takes off what is still on its way. Both ends then know the same of every want.
//! - **A want that no free slot fills** makes the worker recall as many *idle* credits from other relays. A relay that
//!   wants has none that are idle, and credits that were granted for a want count as spent until the relay says `want 0`,
//!   or for two seconds.
//! - **A recall that is not answered** for two seconds does not hold anything up: the worker recalls elsewhere too. What
//!   is with the silent relay stays lent until it answers or its session ends.
//! - **When a relay comes or goes**, idle slots are spread evenly: as many to each as to any other, and those that are
//!   left over to the sessions of the lowest rank, a random number, so that not every worker favours the same relay.
//! - **A relay that leaves** (`goaway`) gives its idle credits to those that stay; its wants are answered as ever.
//! - **A worker that drains** ([`Arbiter::withdraw`]) recalls what is idle and lends nothing more.
//! - **A relay without credits** (plain v1) has a fixed part, set aside for it as long as it is connected.
//! - No relay has more than the `max_concurrent` of its `register_ack`.
//! - **A plea** is passed on to [`MOST_HEARERS`] other relays: those that have idle slots here, then those that have heard
//!   none of this relay's pleas for longest. That nothing is lacking any more is passed on to all that have heard a plea of
//!   this relay within 250 ms.
//!
//! `load` says `idle_elsewhere` when that turns, and at once only to a relay that wants, or has wanted within two seconds
//! (that slots lie idle) or 250 ms (that none do any more). Others are told that slots lie idle after 250 ms at the latest,
//! and that none do any more after fifteen seconds. So a worker with one slot does not tell every relay of every request.
//! A relay with which pleas are in force is told only of idle slots with relays that do not hear its pleas.
//!
//! # What a relay does
//! It dispatches while it has credits. Which of them lie idle only it knows for sure: a worker learns of a request when
//! it arrives, and another relay later still. So a relay that lacks slots does not guess where there are some, it
//! **pleads**, by a worker that serves the model: by the same one until nothing waits any more or the plea is renewed,
//! then by the next. Where there are more relays than hear a plea, it says again after 50 ms what lacks still, and
//! others hear it. A relay that hears a plea cedes what it has idle for the model, of any worker, and remembers the rest
//! for 250 ms: a credit that comes to it and that nothing waits for it cedes at once, to the plea of the highest band,
//! then of the oldest request. What it gets and needs no more it cedes likewise. For a request that has waited for 250
//! ms it cedes credits of the worker by which the plea came first, since others may be out of reach where the plea came
//! from. It cedes none where the worker does not name that relay among its `replicas`, and of what it has to spare at a
//! worker no more for one plea than all slots: one that is ceded for a relay which left just then comes back. A relay
//! pleads for each request that begins to wait, for [`MOST_PLEADED`] slots at most; a plea that brought nothing for 250
//! ms it renews, and that one stands for all that waits until all that it asked for has come: then the relay pleads for
//! the rest, once again. When nothing waits any more it takes its pleas back. It does not act on a plea that came by a
//! worker which does not serve the model.
//!
//! An idle slot of any worker so reaches a queued request in four steps (`plea` twice, `cede`, `grant`): two round trips.
//! Since each relay gives away its own credits, two that lack slots at the same time are not promised the same one.
//!
//! One case takes longer: a slot that was given up for a relay which does not need it any more when it comes has to go
//! on, and one that lacks a slot meanwhile waits for up to a round trip more. Let each link take 20 ms. A pleads at 0
//! ms, and B, which has the only idle slot, gives it up at 40 ms. At 1 ms a request of A ends at another worker, so A
//! serves at 21 ms what it pleaded for and takes its plea back, which B hears at 61 ms. A request comes to C at 2 ms, of
//! which neither A nor B knows before 42 ms. The slot is at A at 80 ms and at C at 120 ms: C's request was queued for
//! 118 ms beside an idle slot, where two round trips are 80 ms. Several such in a row take longer. Of 781,174 simulated
//! requests 20 were queued beside an idle slot for more than 100 ms, the longest for 112 ms. To have workers tell each
//! relay of each request that ends at another, and to cap pleas by that, helps little or nothing: 18 of 782,781, the
//! longest for 127 ms, at 1.8 messages more a request. Workers that knew, for nothing, what waited at each relay one way
//! before, and sent what is ceded on to whoever lacks a slot still, would leave 4 of 781,076; to tell them, each request
//! that waits would take two messages to every worker.
//!
//! **Wants** remain for what pleas do not do. A relay that waits for 250 ms, or hears of a plea of another band than its own
//! request, claims slots at the workers that serve the model, at most 64, also where all are busy: there the better claim
//! takes the slot that ends first, so that bands and the order of arrival hold over all relays. Workers that report idle
//! slots with relays that do not take pleas are asked for them: as many as it lacks slots, and one more where it has few.
//! While requests wait it renews a want at most every 250 ms, and when none wait it withdraws what is open. A grant that it
//! has no use for it answers with `want 0`.
//!
//! Claims are as old as their last renewal, so a relay whose requests had all waited longest for a moment goes on to win
//! slots with them, and would serve what came seconds later than what waits elsewhere. It **gives way**: a credit that comes,
//! and that something waits for, it cedes where, by a plea of the same band, the oldest request came more than 500 ms before
//! its own oldest. What waits where the plea came from it takes to have come evenly: each credit that it cedes for a plea of
//! `n` is for a request younger by an `n`th of its age.
//!
//! # What it costs
//! A request whose relay has a credit, and every request with one relay: no message. A slot that lies idle at one of three
//! relays: `plea` to the worker and two others, the same when it is taken back, and `cede` and `grant` of each relay that had
//! one. A slot that is busy: a want to each worker that is asked, renewed or withdrawn, by time and not by request. Measured
//! with real schedulers and arbiters at 90 % of all slots, four of five requests at one relay, requests of one second (`cargo
//! run --release -p modelrelay-relay --example simulate`), all messages above together, per request:
//!
//! | workers | slots each | 1 relay | 3 relays | 10 relays |
//! |--:|--:|--:|--:|--:|
//! | 100 | 1 | 0 | 2.46 | 7.15 |
//! | 100 | 8 | 0 | 0.18 | 0.97 |
//! | 1,000 | 1 | 0 | 0.07 | 0.48 |
//! | 1,000 | 8 | 0 | 0.00 | 0.01 |
//! | 10,000 | 1 | 0 | 0.02 | 0.01 |
//! | 10,000 | 8 | 0 | 0.00 | 0.00 |

mod account;
mod decide;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use self::account::{Account, Claim, Phase};

/// How long a recall may stay unanswered before the worker recalls elsewhere too, and how long credits that were
/// granted for a want count as about to be spent.
pub const RECALL_LIMIT: Duration = Duration::from_secs(2);

/// The least time between two wants of a relay to a worker, and before a relay that wants nothing is told that slots lie
/// idle elsewhere.
pub const RENEWAL_INTERVAL: Duration = Duration::from_millis(250);

/// How long a relay that wants nothing may go on believing that slots lie idle elsewhere. It costs a round trip to find
/// out, and this bounds the reports that nobody needs.
pub const BELIEF_LIMIT: Duration = Duration::from_secs(15);

/// How many relays hear a plea, at most. Another plea by the same worker is for others.
pub const MOST_HEARERS: usize = 4;

/// Slots that one plea asks for, at most.
pub const MOST_PLEADED: u32 = 64;

/// Names one session at the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub u64);

/// How a session takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lending {
    /// Slots are lent as credits.
    Credits,
    /// A relay without credits: so many slots are set aside for it.
    Fixed {
        /// How many.
        part: u32,
    },
}

/// What holds for a session as long as it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How it takes part.
    pub lending: Lending,
    /// Slots that it may have at once: `max_concurrent` of its `register_ack`.
    pub most: u32,
    /// Who comes first where slots do not divide evenly; random.
    pub rank: u64,
    /// Whether its relay takes pleas and cedes credits.
    pub pleas: bool,
}

/// What a relay says that it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// How many slots; 0 withdraws the want.
    pub n: u32,
    /// Priority of the request that would be dispatched next.
    pub band: i32,
    /// How long that request has waited.
    pub age: Duration,
    /// Credits that the relay had received on this session when it said so, of grants and of responses.
    pub received: u64,
}

/// What the worker must send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotAction {
    /// Send `grant`.
    Grant {
        /// To whom.
        session: SessionKey,
        /// How many.
        n: u32,
    },
    /// Send `recall`; exactly one `return` answers it.
    Recall {
        /// From whom.
        session: SessionKey,
        /// At most how many.
        n: u32,
    },
    /// Send a load report.
    Report {
        /// To whom.
        session: SessionKey,
        /// What it says of the slots.
        shared: Shared,
    },
}

/// What a relay is told of slots that it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// How many relays the slots are lent to.
    pub relays: u32,
    /// Whether idle slots are lent to others.
    pub idle_elsewhere: bool,
}

impl Shared {
    /// What a relay assumes before it is told anything.
    pub const ALONE: Self = Self { relays: 1, idle_elsewhere: false };
}

/// A relay sent a request without a credit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the relay has no credit left")]
pub struct NoCredit;

/// A relay returned more than was asked for, or without being asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the relay returned {0} credits that were not recalled")]
pub struct NotRecalled(pub u32);

/// A relay ceded more than it has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the relay ceded {0} credits that it does not have")]
pub struct NotLent(pub u32);

/// Lends the slots of one worker; see the module.
///
/// Every method takes the time and returns what must be sent, in order. [`Arbiter::handle_timeout`] is due at
/// [`Arbiter::poll_timeout`].
///
/// ```
/// use std::time::{Duration, Instant};
/// use modelrelay_protocol::slots::*;
///
/// let now = Instant::now();
/// let (first, second) = (SessionKey(1), SessionKey(2));
/// let terms = |rank| Terms { lending: Lending::Credits, most: 1, rank, pleas: true };
/// let mut arbiter = Arbiter::new(1);
/// assert_eq!(arbiter.joined(first, terms(1), now), [SlotAction::Grant { session: first, n: 1 }]);
/// arbiter.joined(second, terms(2), now);
/// let want = Want { n: 1, band: 0, age: Duration::ZERO, received: 0 };
/// assert_eq!(arbiter.wanted(second, want, now), [SlotAction::Recall { session: first, n: 1 }]);
/// let actions = arbiter.returned(first, 1, now)?;
/// assert_eq!(actions[0], SlotAction::Grant { session: second, n: 1 });
/// arbiter.started(second, now)?;
/// assert_eq!((arbiter.lent(), arbiter.running()), (0, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Arbiter {
    slots: u32,
    accounts: BTreeMap<SessionKey, Account>,
    withdrawn: bool,
}

impl Arbiter {
    /// Starts with all slots idle and nobody to lend them to.
    pub fn new(slots: u32) -> Self {
        Self { slots, accounts: BTreeMap::new(), withdrawn: false }
    }

    /// Returns how many requests run, over all sessions.
    pub fn running(&self) -> u32 {
        self.accounts.values().map(|account| account.running).sum()
    }

    /// Returns how many slots are lent but not in use, over all sessions, fixed parts included.
    pub fn lent(&self) -> u32 {
        self.accounts.values().map(|account| account.lent).sum()
    }

    /// Returns how many credits the relays could still spend.
    pub fn spendable(&self) -> u32 {
        self.accounts.values().filter(|account| account.by_credits()).map(|account| account.lent).sum()
    }

    /// Returns how many credits were granted for wants and are about to be spent.
    pub fn promised(&self) -> u32 {
        self.accounts.values().map(|account| account.promised).sum()
    }

    /// Returns how many credits one session was lent so far.
    pub fn granted_to(&self, session: SessionKey) -> u64 {
        self.accounts.get(&session).map_or(0, |account| account.granted)
    }

    /// Returns how many slots one session has: unspent, and in use.
    pub fn held_by(&self, session: SessionKey) -> (u32, u32) {
        self.accounts.get(&session).map_or((0, 0), |account| (account.lent, account.running))
    }

    /// Says whether a relay without credits is connected.
    pub fn has_fixed(&self) -> bool {
        self.accounts.values().any(|account| account.is_here() && !account.by_credits())
    }

    /// Returns what a session was told last of slots that it does not have.
    pub fn told(&self, session: SessionKey) -> Shared {
        self.accounts.get(&session).map_or(Shared::ALONE, |account| account.told)
    }

    /// A session began.
    pub fn joined(&mut self, session: SessionKey, terms: Terms, now: Instant) -> Vec<SlotAction> {
        self.accounts.insert(session, Account::new(terms));
        self.membership_changed(now)
    }

    /// A session ended. Its idle credits are free at once, its running requests' slots when they have finished.
    pub fn left(&mut self, session: SessionKey, now: Instant) -> Vec<SlotAction> {
        let Some(account) = self.accounts.get_mut(&session) else { return Vec::new() };
        account.end();
        if account.running == 0 {
            self.accounts.remove(&session);
        }
        self.membership_changed(now)
    }

    /// A relay leaves (`goaway`): those that stay get its idle credits, and its wants are answered until it is gone.
    pub fn leaving(&mut self, session: SessionKey, now: Instant) -> Vec<SlotAction> {
        let Some(account) = self.accounts.get_mut(&session).filter(|account| account.is_here()) else {
            return Vec::new();
        };
        account.phase = Phase::Leaving;
        self.membership_changed(now)
    }

    /// The worker drains: it lends nothing more and takes idle credits back.
    pub fn withdraw(&mut self, now: Instant) -> Vec<SlotAction> {
        self.withdrawn = true;
        for account in self.accounts.values_mut().filter(|account| !account.by_credits()) {
            account.lent = 0;
        }
        let mut actions = Vec::new();
        self.recall_all(now, &mut actions);
        self.report(now, &mut actions);
        actions
    }

    /// A request arrived: one credit becomes a running request.
    ///
    /// # Errors
    /// The relay holds no credit.
    pub fn started(&mut self, session: SessionKey, now: Instant) -> Result<Vec<SlotAction>, NoCredit> {
        let account = self.accounts.get_mut(&session).filter(|account| account.lent > 0).ok_or(NoCredit)?;
        account.spend();
        let mut actions = Vec::new();
        // It may have spent what is being recalled for another: that one need not wait for the answer.
        self.recall_for_claims(now, &mut actions);
        self.report(now, &mut actions);
        Ok(actions)
    }

    /// A request ended and its backend call is closed. Returns whether its slot is lent to the same relay again, and
    /// what else must be sent.
    pub fn finished(&mut self, session: SessionKey, now: Instant) -> (bool, Vec<SlotAction>) {
        let mut actions = Vec::new();
        let Some(account) = self.accounts.get_mut(&session) else { return (false, actions) };
        account.running = account.running.saturating_sub(1);
        if !account.is_here() && account.running == 0 {
            self.accounts.remove(&session);
        }
        let again = self.gets_it_again(session);
        if again && let Some(account) = self.accounts.get_mut(&session) {
            account.lend_one(now);
        }
        self.settle(now, &mut actions);
        (again, actions)
    }

    /// A relay said what it lacks.
    pub fn wanted(&mut self, session: SessionKey, want: Want, now: Instant) -> Vec<SlotAction> {
        let mut actions = Vec::new();
        if let Some(account) = self.accounts.get_mut(&session).filter(|account| account.is_here()) {
            let since = now.checked_sub(want.age).unwrap_or(now);
            account.want(Claim { n: want.n, band: want.band, since }, want.received, now);
            self.settle(now, &mut actions);
        }
        actions
    }

    /// A relay answered its oldest recall with `n` credits.
    ///
    /// # Errors
    /// So many were not recalled. Nothing is changed then.
    pub fn returned(
        &mut self,
        session: SessionKey,
        n: u32,
        now: Instant,
    ) -> Result<Vec<SlotAction>, NotRecalled> {
        let account = self.accounts.get_mut(&session).ok_or(NotRecalled(n))?;
        account.take_back(n)?;
        let mut actions = Vec::new();
        if self.withdrawn {
            // A relay that had spent what was recalled may have been granted more since.
            self.recall_all(now, &mut actions);
        }
        self.settle(now, &mut actions);
        Ok(actions)
    }

    /// Returns to whom a relay's plea for `n` slots is passed on: first those that have idle slots here, then those that
    /// have heard none of its pleas for longest. That it lacks nothing any more (0) is for all that heard one lately.
    pub fn hearers(&mut self, session: SessionKey, n: u32, now: Instant) -> Vec<SessionKey> {
        let Some(pleader) = self.accounts.get(&session) else { return Vec::new() };
        let others = self.accounts.iter().filter(|(key, _)| **key != session);
        let here = others.filter(|(_, account)| account.pleads() && account.is_here());
        let heard = |key: &SessionKey| pleader.heard.get(key).copied();
        if n == 0 {
            let lately = |at: Instant| now < at + RENEWAL_INTERVAL;
            return here.filter(|(key, _)| heard(key).is_some_and(lately)).map(|(key, _)| *key).collect();
        }
        let order = |(key, account): (&SessionKey, &Account)| {
            (account.idle() == 0, heard(key), account.terms.rank, *key)
        };
        let mut order: Vec<_> = here.map(order).collect();
        order.sort_unstable();
        let hearers: Vec<SessionKey> = order.iter().map(|(.., key)| *key).take(MOST_HEARERS).collect();
        if let Some(pleader) = self.accounts.get_mut(&session) {
            pleader.heard.retain(|key, _| order.iter().any(|(.., here)| here == key));
            pleader.heard.extend(hearers.iter().map(|key| (*key, now)));
        }
        hearers
    }

    /// A relay gave up unspent credits for another that lacks slots.
    ///
    /// # Errors
    /// It has not so many. Nothing is changed then.
    pub fn ceded(
        &mut self,
        session: SessionKey,
        n: u32,
        to: Option<SessionKey>,
        now: Instant,
    ) -> Result<Vec<SlotAction>, NotLent> {
        let account =
            self.accounts.get_mut(&session).filter(|account| account.lent >= n).ok_or(NotLent(n))?;
        account.cede(n);
        let mut actions = Vec::new();
        for _ in 0..n {
            let Some(to) = to else { break };
            let room =
                self.accounts.get(&to).is_some_and(|account| account.by_credits() && account.room() > 0);
            if room && !self.withdrawn && self.free() > 0 {
                let wants = self.accounts.get(&to).is_some_and(|account| account.claim.is_some());
                self.lend(to, now, &mut actions);
                if let Some(account) = self.accounts.get_mut(&to).filter(|_| !wants) {
                    account.promise_one(now);
                }
            }
        }
        self.settle(now, &mut actions);
        Ok(actions)
    }

    /// Returns when [`Arbiter::handle_timeout`] is due; never with one relay.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.accounts.values().filter_map(Account::due).min()
    }

    /// Does what is due. Calling it too early does nothing.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<SlotAction> {
        for account in self.accounts.values_mut() {
            account.lapse(now);
        }
        let mut actions = Vec::new();
        self.settle(now, &mut actions);
        actions
    }
}
