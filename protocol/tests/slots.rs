//! The arbiter against relays that do anything at any time, over connections that keep order and delay as they like.

#![allow(clippy::disallowed_methods, clippy::panic)]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use modelrelay_protocol::slots::{Arbiter, Lending, SessionKey, SlotAction, Terms, Want};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Join {
        most: u32,
        rank: u64,
        fixed: bool,
    },
    Leave {
        relay: usize,
    },
    Goaway {
        relay: usize,
    },
    /// The relay reads one message.
    Read {
        relay: usize,
    },
    /// The worker reads one message.
    Deliver {
        relay: usize,
    },
    /// The relay spends a credit, if it has one.
    Request {
        relay: usize,
    },
    /// A request that runs for the relay ends, whether its session lives or not.
    End {
        session: usize,
    },
    Want {
        relay: usize,
        n: u32,
        band: i32,
        age: u64,
    },
    /// The relay gives up a credit for one that may be gone, if it has one.
    Cede {
        relay: usize,
        to: usize,
    },
    Wait {
        millis: u64,
    },
    Withdraw,
}

fn step() -> impl Strategy<Value = Step> {
    let relay = 0..100_usize;
    prop_oneof![
        2 => (1..6_u32, any::<u64>(), prop::bool::weighted(0.2))
            .prop_map(|(most, rank, fixed)| Step::Join { most, rank, fixed }),
        1 => relay.clone().prop_map(|relay| Step::Leave { relay }),
        1 => relay.clone().prop_map(|relay| Step::Goaway { relay }),
        20 => relay.clone().prop_map(|relay| Step::Read { relay }),
        20 => relay.clone().prop_map(|relay| Step::Deliver { relay }),
        15 => relay.clone().prop_map(|relay| Step::Request { relay }),
        15 => relay.clone().prop_map(|session| Step::End { session }),
        6 => (relay.clone(), 0..100_usize).prop_map(|(relay, to)| Step::Cede { relay, to }),
        12 => (relay, 0..5_u32, -1..2_i32, 0..5000_u64)
            .prop_map(|(relay, n, band, age)| Step::Want { relay, n, band, age }),
        6 => (0..3000_u64).prop_map(|millis| Step::Wait { millis }),
        1 => prop::bool::weighted(0.1).prop_map(|really| if really { Step::Withdraw } else { Step::Wait { millis: 1 } }),
    ]
}

#[derive(Debug)]
enum Down {
    Credits(u32),
    Recall(u32),
}

#[derive(Debug)]
enum Up {
    Request,
    Return(u32),
    Cede(SessionKey),
    Want(Want),
}

#[derive(Debug)]
struct Relay {
    fixed: bool,
    most: u32,
    credits: u32,
    received: u64,
    down: VecDeque<Down>,
    up: VecDeque<Up>,
}

struct World {
    arbiter: Arbiter,
    slots: u32,
    now: Instant,
    relays: BTreeMap<SessionKey, Relay>,
    /// By session, ended ones included.
    running: BTreeMap<SessionKey, u32>,
    next: u64,
    withdrawn: bool,
}

impl World {
    fn new(slots: u32) -> Self {
        let (relays, running) = (BTreeMap::new(), BTreeMap::new());
        let (arbiter, now) = (Arbiter::new(slots), Instant::now());
        Self { arbiter, slots, now, relays, running, next: 0, withdrawn: false }
    }

    fn pick(&self, at: usize) -> Option<SessionKey> {
        self.relays.keys().nth(at.checked_rem(self.relays.len())?).copied()
    }

    fn perform(&mut self, actions: Vec<SlotAction>) {
        for action in actions {
            match action {
                SlotAction::Grant { session, n } => {
                    assert!(!self.withdrawn, "a worker that drains lends nothing");
                    let relay = self.relays.get_mut(&session).expect("only who is here is granted anything");
                    assert!(!relay.fixed, "a plain v1 relay understands no grant");
                    relay.down.push_back(Down::Credits(n));
                }
                SlotAction::Recall { session, n } => {
                    let relay = self.relays.get_mut(&session).expect("only who is here is asked");
                    assert!(n > 0 && !relay.fixed);
                    relay.down.push_back(Down::Recall(n));
                }
                SlotAction::Report { session, shared } => {
                    assert!(!self.relays[&session].fixed && shared.relays > 0);
                }
            }
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Join { most, rank, fixed } => {
                let key = SessionKey(self.next);
                self.next += 1;
                let lending = if fixed { Lending::Fixed { part: most } } else { Lending::Credits };
                let (down, up) = (VecDeque::new(), VecDeque::new());
                self.relays.insert(key, Relay { fixed, most, credits: 0, received: 0, down, up });
                let terms = Terms { lending, most, rank, pleas: rank % 2 == 0 };
                let actions = self.arbiter.joined(key, terms, self.now);
                self.perform(actions);
            }
            Step::Leave { relay } => {
                if let Some(key) = self.pick(relay) {
                    self.relays.remove(&key);
                    let actions = self.arbiter.left(key, self.now);
                    self.perform(actions);
                }
            }
            Step::Goaway { relay } => {
                if let Some(key) = self.pick(relay) {
                    let actions = self.arbiter.leaving(key, self.now);
                    self.perform(actions);
                }
            }
            Step::Read { relay } => {
                if let Some(key) = self.pick(relay) {
                    self.read(key);
                }
            }
            Step::Deliver { relay } => {
                if let Some(key) = self.pick(relay) {
                    self.deliver(key);
                }
            }
            Step::Request { relay } => {
                let Some(key) = self.pick(relay) else { return };
                let relay = self.relays.get_mut(&key).expect("it was picked");
                if relay.fixed && self.arbiter.held_by(key).0 > 0 {
                    self.start(key);
                } else if relay.credits > 0 {
                    relay.credits -= 1;
                    relay.up.push_back(Up::Request);
                }
            }
            Step::End { session } => {
                let busy: Vec<SessionKey> =
                    self.running.iter().filter(|(_, count)| **count > 0).map(|(key, _)| *key).collect();
                if !busy.is_empty() {
                    self.end(busy[session % busy.len()]);
                }
            }
            Step::Want { relay, n, band, age } => {
                if let Some(key) = self.pick(relay) {
                    let relay = self.relays.get_mut(&key).expect("it was picked");
                    let received = relay.received;
                    relay.up.push_back(Up::Want(Want { n, band, age: Duration::from_millis(age), received }));
                }
            }
            Step::Cede { relay, to } => {
                let (Some(key), to) = (self.pick(relay), SessionKey(to as u64 % (self.next + 1))) else {
                    return;
                };
                let relay = self.relays.get_mut(&key).expect("it was picked");
                if relay.credits > 0 {
                    relay.credits -= 1;
                    relay.up.push_back(Up::Cede(to));
                }
            }
            Step::Wait { millis } => {
                self.now += Duration::from_millis(millis);
                let actions = self.arbiter.handle_timeout(self.now);
                self.perform(actions);
                assert!(self.arbiter.poll_timeout().is_none_or(|due| due > self.now), "what is due is done");
            }
            Step::Withdraw => {
                self.withdrawn = true;
                let actions = self.arbiter.withdraw(self.now);
                self.perform(actions);
            }
        }
    }

    fn read(&mut self, key: SessionKey) {
        let relay = self.relays.get_mut(&key).expect("it is here");
        match relay.down.pop_front() {
            Some(Down::Credits(n)) => {
                relay.credits += n;
                relay.received += u64::from(n);
            }
            Some(Down::Recall(n)) => {
                let n = n.min(relay.credits);
                relay.credits -= n;
                relay.up.push_back(Up::Return(n));
            }
            None => {}
        }
    }

    fn deliver(&mut self, key: SessionKey) {
        let relay = self.relays.get_mut(&key).expect("it is here");
        match relay.up.pop_front() {
            Some(Up::Request) => self.start(key),
            Some(Up::Return(n)) => {
                let actions = self.arbiter.returned(key, n, self.now).expect("it was recalled");
                self.perform(actions);
            }
            Some(Up::Cede(to)) => {
                let to = self.relays.contains_key(&to).then_some(to);
                let actions = self.arbiter.ceded(key, 1, to, self.now).expect("it had one");
                self.perform(actions);
            }
            Some(Up::Want(want)) => {
                let actions = self.arbiter.wanted(key, want, self.now);
                self.perform(actions);
            }
            None => {}
        }
    }

    fn start(&mut self, key: SessionKey) {
        let actions = self.arbiter.started(key, self.now).expect("credits are valid until they are returned");
        *self.running.entry(key).or_default() += 1;
        self.perform(actions);
    }

    fn end(&mut self, key: SessionKey) {
        *self.running.get_mut(&key).expect("it runs") -= 1;
        let (again, actions) = self.arbiter.finished(key, self.now);
        // The response carries the credit ahead of what else is said.
        if again {
            let relay = self.relays.get_mut(&key).expect("only who is here is granted anything");
            if !relay.fixed {
                relay.down.push_back(Down::Credits(1));
            }
        }
        self.perform(actions);
    }

    fn check(&self) {
        let running: u32 = self.running.values().sum();
        assert_eq!(self.arbiter.running(), running);
        assert!(running + self.arbiter.lent() <= self.slots, "over-committed");
        for (&key, relay) in &self.relays {
            let (lent, running) = self.arbiter.held_by(key);
            assert!(relay.fixed || lent + running <= relay.most, "{key:?} has more than it may");
            if relay.fixed {
                continue;
            }
            let coming = |down: &Down| if let Down::Credits(n) = down { *n } else { 0 };
            let going = |up: &Up| match up {
                Up::Request | Up::Cede(_) => 1,
                Up::Return(n) => *n,
                Up::Want(_) => 0,
            };
            let somewhere: u32 =
                relay.down.iter().map(coming).sum::<u32>() + relay.up.iter().map(going).sum::<u32>();
            assert_eq!(lent, relay.credits + somewhere, "no credit of {key:?} is lost or made up");
        }
    }

    /// Lets all messages arrive and all requests end.
    fn settle(&mut self) {
        loop {
            let keys: Vec<SessionKey> = self.relays.keys().copied().collect();
            let quiet = self.relays.values().all(|relay| relay.down.is_empty() && relay.up.is_empty());
            let busy = self.running.iter().find(|(_, count)| **count > 0).map(|(key, _)| *key);
            for key in keys {
                self.read(key);
                self.deliver(key);
            }
            if let Some(key) = busy {
                self.end(key);
            } else if quiet {
                return;
            }
            self.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slots_are_never_over_committed_and_no_credit_is_lost(
        slots in 1..9_u32,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new(slots);
        for step in steps {
            world.take(step);
            world.check();
        }
        world.settle();
        let open: u32 = world.relays.values().map(|relay| relay.most).sum();
        let lent = world.arbiter.lent();
        prop_assert_eq!(world.arbiter.running(), 0);
        if !world.withdrawn {
            // Every slot is lent to somebody who may have it.
            prop_assert_eq!(lent, slots.min(open));
        }
        // And all of it comes back.
        world.take(Step::Withdraw);
        world.settle();
        prop_assert_eq!(world.arbiter.lent(), 0);
    }

    #[test]
    fn a_want_is_filled_by_the_next_slot_that_frees(
        slots in 1..9_u32,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new(slots);
        world.take(Step::Join { most: 8, rank: 1, fixed: false });
        world.take(Step::Join { most: 8, rank: 2, fixed: false });
        let wanting = SessionKey(1);
        for step in steps {
            match step {
                // The one that is looked at stays.
                Step::Leave { .. } | Step::Withdraw | Step::Goaway { .. } => {}
                step => world.take(step),
            }
        }
        // What was ceded counts as about to be spent for a while.
        world.settle();
        world.take(Step::Wait { millis: 3000 });
        // Nobody else has a use for what lies idle there.
        for relay in 0..world.relays.len() {
            world.take(Step::Want { relay, n: 0, band: 0, age: 0 });
        }
        world.settle();
        let before = world.arbiter.held_by(wanting).0;
        let received = world.relays[&wanting].received;
        let want = Want { n: 1, band: 9, age: Duration::ZERO, received };
        let relay = world.relays.get_mut(&wanting).expect("it stays");
        relay.up.push_back(Up::Want(want));
        world.settle();
        let fixed: u32 =
            world.relays.iter().filter(|(_, relay)| relay.fixed).map(|(key, _)| world.arbiter.held_by(*key).0).sum();
        let within_reach = (slots - fixed).min(8);
        prop_assert_eq!(world.arbiter.held_by(wanting).0, (before + 1).min(within_reach));
    }
}
