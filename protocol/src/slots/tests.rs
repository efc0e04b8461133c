#![allow(clippy::disallowed_methods, clippy::panic)]

mod pleas;

use super::*;

const A: SessionKey = SessionKey(1);
const B: SessionKey = SessionKey(2);
const C: SessionKey = SessionKey(3);

fn grant(session: SessionKey, n: u32) -> SlotAction {
    SlotAction::Grant { session, n }
}

fn recall(session: SessionKey, n: u32) -> SlotAction {
    SlotAction::Recall { session, n }
}

fn report(session: SessionKey, relays: u32, idle_elsewhere: bool) -> SlotAction {
    SlotAction::Report { session, shared: Shared { relays, idle_elsewhere } }
}

/// What is sent but for reports, which have tests of their own.
fn moves(mut actions: Vec<SlotAction>) -> Vec<SlotAction> {
    actions.retain(|action| !matches!(action, SlotAction::Report { .. }));
    actions
}

fn reports(mut actions: Vec<SlotAction>) -> Vec<SlotAction> {
    actions.retain(|action| matches!(action, SlotAction::Report { .. }));
    actions
}

/// An arbiter and its clock.
struct Desk {
    arbiter: Arbiter,
    now: Instant,
}

impl Desk {
    /// Relays join with a rank equal to their number.
    fn new(slots: u32, relays: &[SessionKey]) -> Self {
        let mut desk = Self { arbiter: Arbiter::new(slots), now: Instant::now() };
        for &relay in relays {
            for action in desk.join(relay) {
                desk.answer(action);
            }
        }
        // What there was to tell has been told, long ago.
        desk.now += BELIEF_LIMIT;
        desk.arbiter.handle_timeout(desk.now);
        desk.now += BELIEF_LIMIT;
        desk
    }

    fn wait(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    fn join(&mut self, session: SessionKey) -> Vec<SlotAction> {
        self.join_with(session, Lending::Credits, u32::MAX)
    }

    fn join_with(&mut self, session: SessionKey, lending: Lending, most: u32) -> Vec<SlotAction> {
        self.join_on(session, Terms { lending, most, rank: session.0, pleas: false })
    }

    fn join_on(&mut self, session: SessionKey, terms: Terms) -> Vec<SlotAction> {
        self.arbiter.joined(session, terms, self.now)
    }

    /// As [`Desk::new`], of relays that take pleas.
    fn pleading(slots: u32, relays: &[SessionKey]) -> Self {
        let mut desk = Self::new(slots, &[]);
        for &relay in relays {
            let terms = Terms { lending: Lending::Credits, most: u32::MAX, rank: relay.0, pleas: true };
            for action in desk.join_on(relay, terms) {
                desk.answer(action);
            }
        }
        desk
    }

    fn cede(&mut self, session: SessionKey, n: u32, to: Option<SessionKey>) -> Vec<SlotAction> {
        moves(self.arbiter.ceded(session, n, to, self.now).unwrap())
    }

    /// Returns all that is recalled, as a relay does that uses none of it.
    fn answer(&mut self, action: SlotAction) {
        if let SlotAction::Recall { session, n } = action {
            for action in self.arbiter.returned(session, n, self.now).unwrap() {
                self.answer(action);
            }
        }
    }

    fn start(&mut self, session: SessionKey, n: u32) -> Vec<SlotAction> {
        moves((0..n).flat_map(|_| self.arbiter.started(session, self.now).unwrap()).collect())
    }

    fn finish(&mut self, session: SessionKey) -> (bool, Vec<SlotAction>) {
        let (again, actions) = self.arbiter.finished(session, self.now);
        (again, moves(actions))
    }

    fn want(&mut self, session: SessionKey, n: u32, band: i32, age_ms: u64) -> Vec<SlotAction> {
        let received = self.arbiter.granted_to(session);
        let want = Want { n, band, age: Duration::from_millis(age_ms), received };
        moves(self.arbiter.wanted(session, want, self.now))
    }

    fn returned(&mut self, session: SessionKey, n: u32) -> Vec<SlotAction> {
        moves(self.arbiter.returned(session, n, self.now).unwrap())
    }

    fn timeout(&mut self) -> Vec<SlotAction> {
        moves(self.arbiter.handle_timeout(self.now))
    }

    fn held(&self) -> Vec<(u32, u32)> {
        [A, B, C].map(|session| self.arbiter.held_by(session)).into()
    }
}

#[test]
fn one_relay_is_lent_every_slot_and_never_told_or_asked_anything() {
    let mut desk = Desk::new(4, &[]);
    assert_eq!(desk.join(A), [grant(A, 4)]);
    for _ in 0..100 {
        assert_eq!(desk.start(A, 4), []);
        assert_eq!(desk.arbiter.started(A, desk.now), Err(NoCredit));
        for _ in 0..4 {
            assert_eq!(desk.finish(A), (true, vec![]));
        }
        desk.wait(300);
        assert_eq!(desk.arbiter.poll_timeout(), None);
    }
    assert_eq!((desk.arbiter.lent(), desk.arbiter.running()), (4, 0));
}

#[test]
fn idle_slots_are_spread_evenly_as_relays_come_and_go() {
    // Slots, and what A, B and C hold when the first, the second and the third has joined.
    let table = [
        (1, [[1, 0, 0], [1, 0, 0], [1, 0, 0]]),
        (2, [[2, 0, 0], [1, 1, 0], [1, 1, 0]]),
        (3, [[3, 0, 0], [2, 1, 0], [1, 1, 1]]),
        (8, [[8, 0, 0], [4, 4, 0], [3, 3, 2]]),
    ];
    for (slots, states) in table {
        let mut desk = Desk::new(slots, &[]);
        for (relay, state) in [A, B, C].into_iter().zip(states) {
            for action in desk.join(relay) {
                desk.answer(action);
            }
            assert_eq!(desk.held(), state.map(|lent| (lent, 0)), "{slots} slots");
        }
        for (relay, left) in [(C, states[1]), (B, states[0])] {
            for action in desk.arbiter.left(relay, desk.now) {
                desk.answer(action);
            }
            assert_eq!(desk.held(), left.map(|lent| (lent, 0)), "{slots} slots");
        }
    }
}

#[test]
fn what_does_not_divide_goes_by_rank_whoever_came_first() {
    let mut desk = Desk::new(1, &[C]);
    assert_eq!(moves(desk.join(A)), [recall(C, 1)]);
    assert_eq!(desk.returned(C, 1), [grant(A, 1)]);
    assert_eq!(moves(desk.join(B)), []);
    assert_eq!(desk.held(), [(1, 0), (0, 0), (0, 0)]);
}

#[test]
fn slots_stay_where_they_are_used_without_a_message() {
    let mut desk = Desk::new(2, &[A, B]);
    for _ in 0..100 {
        assert_eq!(desk.start(A, 1), []);
        assert_eq!(desk.finish(A), (true, vec![]));
    }
}

#[test]
fn a_want_meets_an_idle_slot_in_four_steps_and_keeps_it() {
    let mut desk = Desk::new(1, &[A, B]);
    assert_eq!(desk.want(B, 1, 0, 0), [recall(A, 1)]);
    assert_eq!(desk.returned(A, 1), [grant(B, 1)]);
    assert_eq!(desk.start(B, 1), []);
    assert_eq!(desk.finish(B), (true, vec![]), "it is lent to the same relay again");
    assert_eq!(desk.held(), [(0, 0), (1, 0), (0, 0)]);
}

#[test]
fn a_want_is_filled_when_a_slot_frees() {
    let mut desk = Desk::new(1, &[A, B]);
    desk.start(A, 1);
    assert_eq!(desk.want(B, 2, 0, 0), [], "the slot is in use");
    assert_eq!(desk.finish(A), (false, vec![grant(B, 1)]));
    desk.start(B, 1);
    assert_eq!(desk.finish(B), (true, vec![]), "and again: it wanted two");
    desk.start(B, 1);
    assert_eq!(desk.want(B, 0, 0, 0), []);
    assert!(desk.finish(B).0);
}

#[test]
fn the_better_claim_wins_by_band_then_by_age_and_ages_by_itself() {
    // Bands and ages in ms of the wants of B and C; whether B gets A's slot.
    let table = [
        ((0, 10), (0, 20), false),
        ((0, 20), (0, 10), true),
        ((1, 10), (0, 2000), true),
        ((-1, 2000), (0, 10), false),
        // C's comes 50 ms later.
        ((0, 10), (0, 40), true),
        ((0, 10), (0, 70), false),
    ];
    for (at, (b, c, b_wins)) in table.into_iter().enumerate() {
        let mut desk = Desk::new(1, &[A, B, C]);
        desk.start(A, 1);
        desk.want(B, 1, b.0, b.1);
        if at >= 4 {
            desk.wait(50);
        }
        desk.want(C, 1, c.0, c.1);
        let (again, said) = desk.finish(A);
        assert_eq!((again, said[0]), (false, grant(if b_wins { B } else { C }, 1)), "row {at}");
    }
}

#[test]
fn the_same_relay_gets_its_slot_again_when_its_own_claim_is_the_best() {
    let mut desk = Desk::new(1, &[A, B]);
    desk.start(A, 1);
    desk.want(A, 3, 0, 500);
    desk.want(B, 3, 0, 100);
    assert_eq!(desk.finish(A), (true, vec![]));
    desk.start(A, 1);
    desk.want(A, 2, 0, 50);
    assert_eq!(desk.finish(A).1, [grant(B, 1)]);
}

#[test]
fn a_newer_want_replaces_the_older() {
    let mut desk = Desk::new(2, &[A, B]);
    desk.start(A, 1);
    desk.start(B, 1);
    desk.want(B, 5, 0, 0);
    desk.want(B, 1, 0, 0);
    assert_eq!(desk.finish(A).1[0], grant(B, 1));
    desk.start(B, 1);
    assert!(desk.finish(B).0);
    assert_eq!(desk.held(), [(0, 0), (1, 1), (0, 0)]);
}

#[test]
fn credits_that_cross_a_want_fill_it() {
    let mut desk = Desk::new(4, &[A, B]);
    desk.start(A, 2);
    desk.start(B, 2);
    desk.want(B, 1, 0, 0);
    let received = desk.arbiter.granted_to(B);
    assert_eq!(desk.finish(A), (false, vec![grant(B, 1)]));
    // Said before the grant arrived: two more than there were, so one more than there are.
    let want = Want { n: 2, band: 0, age: Duration::ZERO, received };
    desk.arbiter.wanted(B, want, desk.now);
    desk.start(B, 1);
    assert_eq!(desk.finish(A), (false, vec![grant(B, 1)]));
    desk.start(B, 1);
    assert!(desk.finish(B).0);
    assert_eq!(desk.want(A, 1, 0, 0), [recall(B, 1)], "it was given all that it wanted: this one lies idle");
}

#[test]
fn credits_of_a_relay_that_wants_or_was_just_granted_them_are_not_idle() {
    let mut desk = Desk::new(2, &[A, B]);
    desk.start(A, 1);
    desk.start(B, 1);
    desk.want(B, 1, 0, 0);
    assert_eq!(desk.finish(A).1, [grant(B, 1)]);
    // B has a credit that its request is on the way for.
    assert_eq!(desk.want(A, 1, 0, 0), []);
    assert_eq!(desk.want(B, 0, 0, 0)[0], recall(B, 1), "now it says that it has no use for it");
}

#[test]
fn a_promise_lapses() {
    let mut desk = Desk::new(1, &[A, B]);
    desk.start(A, 1);
    desk.want(B, 1, 0, 0);
    desk.finish(A);
    assert_eq!(desk.want(A, 1, 0, 0), []);
    assert_eq!(desk.arbiter.poll_timeout(), Some(desk.now + RECALL_LIMIT));
    desk.wait(2000);
    assert_eq!(desk.timeout(), [recall(B, 1)]);
}

#[test]
fn an_unanswered_recall_does_not_hold_a_want_up() {
    let mut desk = Desk::new(3, &[A, B, C]);
    desk.start(C, 1);
    assert_eq!(desk.want(C, 1, 0, 0), [recall(B, 1)]);
    desk.wait(1999);
    assert_eq!(desk.timeout(), []);
    desk.wait(1);
    assert_eq!(desk.timeout(), [recall(A, 1)]);
    assert_eq!(desk.returned(A, 1)[0], grant(C, 1));
    assert_eq!(desk.held(), [(0, 0), (1, 0), (1, 1)], "what is with B stays lent");
    assert_eq!(desk.arbiter.poll_timeout(), Some(desk.now + RECALL_LIMIT), "C's promise; B's recall is over");
    // The late answer counts.
    assert!(desk.returned(B, 1).iter().any(|action| matches!(action, SlotAction::Grant { .. })));
    assert_eq!(desk.arbiter.lent() + desk.arbiter.running(), 3);
}

#[test]
fn a_silent_relays_slots_come_back_with_the_end_of_its_session() {
    let mut desk = Desk::new(1, &[A, B]);
    assert_eq!(desk.want(B, 1, 0, 0), [recall(A, 1)]);
    desk.wait(2000);
    assert_eq!(desk.timeout(), []);
    assert_eq!(moves(desk.arbiter.left(A, desk.now)), [grant(B, 1)]);
}

#[test]
fn a_recall_that_is_spent_meanwhile_goes_elsewhere_at_once() {
    let mut desk = Desk::new(3, &[A, B, C]);
    desk.start(C, 1);
    assert_eq!(desk.want(C, 1, 0, 0), [recall(B, 1)]);
    assert_eq!(desk.start(B, 1), [recall(A, 1)]);
    assert_eq!(desk.returned(B, 0), []);
    assert_eq!(desk.returned(A, 1)[0], grant(C, 1));
}

#[test]
fn answers_that_were_not_asked_for_are_refused() {
    let mut desk = Desk::new(2, &[A, B]);
    assert_eq!(desk.arbiter.returned(A, 0, desk.now), Err(NotRecalled(0)));
    desk.want(B, 1, 0, 0);
    assert_eq!(desk.arbiter.returned(A, 2, desk.now), Err(NotRecalled(2)));
    assert!(desk.arbiter.returned(A, 1, desk.now).is_ok());
    assert_eq!(desk.arbiter.returned(A, 0, desk.now), Err(NotRecalled(0)));
    assert_eq!(desk.arbiter.returned(SessionKey(9), 0, desk.now), Err(NotRecalled(0)));
}

#[test]
fn a_lost_session_frees_idle_slots_at_once_and_running_ones_when_closed() {
    let mut desk = Desk::new(2, &[A]);
    desk.start(A, 1);
    assert_eq!(desk.arbiter.left(A, desk.now), []);
    assert_eq!(desk.join(B), [grant(B, 1)]);
    assert_eq!(desk.finish(A), (false, vec![grant(B, 1)]));
    assert_eq!((desk.arbiter.lent(), desk.arbiter.running()), (2, 0));
}

#[test]
fn a_relay_that_leaves_keeps_nothing_idle_but_is_still_served() {
    let mut desk = Desk::new(4, &[A, B]);
    desk.start(A, 1);
    assert_eq!(desk.arbiter.leaving(A, desk.now), [recall(A, 1)]);
    assert_eq!(desk.returned(A, 1)[0], grant(B, 1));
    assert_eq!(desk.want(A, 1, 0, 0), [recall(B, 1)]);
    assert_eq!(desk.returned(B, 1)[0], grant(A, 1));
    desk.start(A, 1);
    assert_eq!(desk.finish(A), (false, vec![grant(B, 1)]), "what it used goes to those that stay");
    assert_eq!(desk.finish(A), (false, vec![grant(B, 1)]));
    assert_eq!(desk.held(), [(0, 0), (4, 0), (0, 0)]);
}

#[test]
fn the_only_relay_keeps_its_slots_while_it_leaves() {
    let mut desk = Desk::new(2, &[A]);
    desk.start(A, 1);
    assert_eq!(desk.arbiter.leaving(A, desk.now), []);
    assert_eq!(desk.finish(A), (true, vec![]));
    let said = desk.join(B);
    assert!(said.contains(&recall(A, 2)), "{said:?}");
}

#[test]
fn a_draining_worker_lends_nothing_more_and_serves_what_crosses() {
    let mut desk = Desk::new(4, &[A, B]);
    desk.start(A, 1);
    assert_eq!(desk.arbiter.withdraw(desk.now), [recall(A, 1), recall(B, 2)]);
    assert_eq!(desk.start(B, 1), []);
    desk.returned(A, 1);
    desk.returned(B, 1);
    assert_eq!(desk.want(A, 5, 0, 0), []);
    assert_eq!(desk.finish(A), (false, vec![]));
    assert_eq!(desk.finish(B), (false, vec![]));
    assert_eq!(desk.join(C).iter().filter(|action| matches!(action, SlotAction::Grant { .. })).count(), 0);
    assert_eq!((desk.arbiter.lent(), desk.arbiter.running()), (0, 0));
}

#[test]
fn a_draining_worker_asks_again_for_credits_that_came_after_a_recall_that_was_spent() {
    let mut desk = Desk::pleading(2, &[A, B]);
    assert_eq!(desk.want(B, 1, 0, 0), [recall(A, 1)]);
    assert_eq!(desk.start(A, 1), [], "its request crossed the recall");
    assert_eq!(desk.cede(B, 1, Some(A)), [grant(A, 1)]);
    assert_eq!(desk.arbiter.withdraw(desk.now), [], "one is on its way back, as far as can be known");
    assert_eq!(desk.returned(A, 0), [recall(A, 1)]);
    assert_eq!(desk.returned(A, 1), []);
    assert_eq!(desk.arbiter.spendable(), 0);
}

#[test]
fn no_relay_has_more_than_its_acknowledgement_allows() {
    let mut desk = Desk::new(8, &[]);
    assert_eq!(desk.join_with(A, Lending::Credits, 2), [grant(A, 2)]);
    assert_eq!(desk.want(A, 5, 0, 0), [], "it has what it may have");
    assert_eq!(desk.join(B)[0], grant(B, 6));
    desk.start(A, 2);
    assert_eq!(desk.want(A, 5, 0, 0), []);
    assert_eq!(desk.finish(A), (true, vec![]));
}

#[test]
fn a_relay_without_credits_has_a_fixed_part_that_nobody_borrows() {
    let mut desk = Desk::new(4, &[A]);
    let said = desk.join_with(B, Lending::Fixed { part: 2 }, 2);
    assert_eq!(said, [recall(A, 2)], "it is set aside at once");
    assert_eq!(desk.returned(A, 2), [], "nothing is sent to a plain v1 relay");
    assert_eq!(desk.held(), [(2, 0), (2, 0), (0, 0)]);
    desk.start(A, 2);
    assert_eq!(desk.want(A, 1, 0, 0), []);
    desk.start(B, 2);
    assert_eq!(desk.finish(B), (true, vec![]));
    assert_eq!(desk.arbiter.started(B, desk.now), Ok(vec![]));
    assert_eq!(desk.arbiter.spendable(), 0);
    assert_eq!(desk.arbiter.left(B, desk.now), []);
    assert_eq!(desk.finish(B).1, [grant(A, 1)]);
}

/// Starts a request of a relay and returns who is told what.
fn told_of_start(desk: &mut Desk, session: SessionKey) -> Vec<SlotAction> {
    reports(desk.arbiter.started(session, desk.now).unwrap())
}

fn told_of_end(desk: &mut Desk, session: SessionKey) -> Vec<SlotAction> {
    reports(desk.arbiter.finished(session, desk.now).1)
}

#[test]
fn newcomers_and_those_that_stay_are_told_how_many_share() {
    let mut desk = Desk::new(2, &[]);
    assert_eq!(reports(desk.join(A)), []);
    assert_eq!(reports(desk.join(B)), [report(A, 2, false), report(B, 2, true)]);
    assert_eq!(reports(desk.arbiter.left(B, desk.now)), [report(A, 1, false)]);
}

#[test]
fn idle_slots_elsewhere_are_told_when_that_turns() {
    let mut desk = Desk::new(4, &[A, B]);
    assert_eq!(told_of_start(&mut desk, A), []);
    assert_eq!(told_of_start(&mut desk, A), [report(B, 2, false)]);
    desk.wait(250);
    assert_eq!(told_of_end(&mut desk, A), [report(B, 2, true)]);
    assert_eq!(told_of_end(&mut desk, A), []);
}

#[test]
fn who_wants_nothing_is_told_twice_in_fifteen_seconds_at_most() {
    let mut desk = Desk::new(1, &[A, B]);
    let mut told = 0;
    // Three thousand requests in thirty seconds.
    for _ in 0..3000 {
        told += told_of_start(&mut desk, A).len();
        desk.wait(5);
        told += reports(desk.arbiter.handle_timeout(desk.now)).len();
        told += told_of_end(&mut desk, A).len();
        desk.wait(5);
        told += reports(desk.arbiter.handle_timeout(desk.now)).len();
    }
    desk.now += BELIEF_LIMIT;
    told += reports(desk.arbiter.handle_timeout(desk.now)).len();
    assert!((2..=6).contains(&told), "{told}");
    assert_eq!(desk.arbiter.told(B), Shared { relays: 2, idle_elsewhere: true }, "the last word is true");
    assert_eq!(desk.arbiter.poll_timeout(), None);
}

#[test]
fn who_wants_is_told_at_once() {
    let mut desk = Desk::new(1, &[A, B, C]);
    desk.start(A, 1);
    let want = |n| Want { n, band: 0, age: Duration::ZERO, received: 0 };
    assert_eq!(desk.arbiter.wanted(B, want(1), desk.now), []);
    assert_eq!(desk.arbiter.wanted(B, want(0), desk.now), []);
    assert_eq!(told_of_end(&mut desk, A), [report(B, 3, true)], "C may wait");
    assert_eq!(told_of_start(&mut desk, A), [report(B, 3, false)]);
    assert_eq!(desk.arbiter.wanted(C, want(1), desk.now), []);
}

#[test]
fn what_was_granted_for_a_want_does_not_count_as_idle() {
    let mut desk = Desk::new(1, &[A, B]);
    desk.want(B, 1, 0, 0);
    assert_eq!(reports(desk.arbiter.returned(A, 1, desk.now).unwrap()), [report(B, 2, false)]);
    let want = Want { n: 1, band: 0, age: Duration::ZERO, received: 1 };
    assert_eq!(reports(desk.arbiter.wanted(A, want, desk.now)), []);
}
