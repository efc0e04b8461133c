//! Pleas that are passed on, and slots that are ceded for them.

use super::*;

#[test]
fn what_is_ceded_goes_to_the_relay_that_lacks_it() {
    let mut desk = Desk::pleading(2, &[A, B, C]);
    assert_eq!(desk.held(), [(1, 0), (1, 0), (0, 0)]);
    desk.start(B, 1);
    desk.want(B, 1, 1, 5000);
    assert_eq!(desk.cede(A, 1, Some(C)), [grant(C, 1)], "whatever else is claimed here");
    assert_eq!(desk.arbiter.promised(), 1, "its request is on the way");
    desk.start(C, 1);
    assert_eq!(desk.held(), [(0, 0), (0, 1), (0, 1)]);
    assert_eq!(desk.finish(C), (false, vec![grant(B, 1)]), "then the claim has its turn");
}

#[test]
fn what_is_ceded_to_a_relay_that_is_gone_is_free() {
    let mut desk = Desk::pleading(2, &[A, B, C]);
    desk.start(B, 1);
    desk.want(B, 1, 0, 0);
    assert_eq!(desk.cede(A, 1, None), [grant(B, 1)]);
    let mut desk = Desk::pleading(1, &[A, B]);
    assert_eq!(desk.cede(A, 1, Some(SessionKey(9))), [grant(A, 1)], "nobody else would have it");
}

#[test]
fn more_than_there_is_cannot_be_ceded() {
    let mut desk = Desk::pleading(1, &[A, B]);
    assert_eq!(desk.arbiter.ceded(A, 2, Some(B), desk.now), Err(NotLent(2)));
    assert_eq!(desk.arbiter.ceded(SessionKey(9), 1, Some(B), desk.now), Err(NotLent(1)));
    assert_eq!(desk.held(), [(1, 0), (0, 0), (0, 0)]);
}

#[test]
fn a_worker_that_drains_keeps_what_is_ceded() {
    let mut desk = Desk::pleading(1, &[A, B]);
    assert_eq!(desk.arbiter.withdraw(desk.now), [recall(A, 1)]);
    assert_eq!(desk.cede(A, 1, Some(B)), []);
    assert_eq!(desk.returned(A, 0), []);
    assert_eq!(desk.arbiter.lent(), 0);
}

#[test]
fn four_others_hear_a_plea_those_with_idle_slots_first_and_the_rest_in_turn() {
    let sessions: Vec<SessionKey> = (1..=9).map(SessionKey).collect();
    let mut desk = Desk::pleading(1, &sessions);
    assert_eq!(desk.held()[0], (1, 0));
    let mut heard = std::collections::BTreeSet::new();
    for pleas in 1..=2 {
        for _ in 0..7_u32.div_ceil(3) {
            let hearers = desk.arbiter.hearers(C, 1, desk.now);
            assert_eq!((hearers.len(), hearers[0]), (MOST_HEARERS, A), "{hearers:?}");
            assert!(!hearers.contains(&C));
            heard.extend(hearers);
            desk.wait(1);
        }
        assert_eq!(heard.len(), 8, "all but the one that pleads, round {pleas}: {heard:?}");
        heard.clear();
    }
    let mut desk = Desk::pleading(1, &[A, B]);
    desk.join(C);
    assert_eq!(desk.arbiter.hearers(A, 1, desk.now), [B], "C does not take pleas");
}

#[test]
fn those_who_heard_a_plea_lately_hear_that_it_is_over_and_nobody_else() {
    let sessions: Vec<SessionKey> = (1..=9).map(SessionKey).collect();
    let mut desk = Desk::pleading(1, &sessions);
    let over = |desk: &mut Desk| {
        let mut hearers = desk.arbiter.hearers(C, 0, desk.now);
        hearers.sort_unstable();
        hearers
    };
    assert_eq!(over(&mut desk), []);
    let mut first = desk.arbiter.hearers(C, 1, desk.now);
    first.sort_unstable();
    assert_eq!(over(&mut desk), first);
    desk.wait(100);
    let second = desk.arbiter.hearers(C, 1, desk.now);
    let mut both = [first, second.clone()].concat();
    both.sort_unstable();
    both.dedup();
    assert_eq!((over(&mut desk), both.len()), (both, 7));
    desk.arbiter.left(second[1], desk.now);
    assert_eq!(over(&mut desk).len(), 6);
    desk.wait(160);
    assert_eq!(over(&mut desk).len(), 3, "the others have forgotten it");
    desk.arbiter.hearers(A, 1, desk.now);
    desk.wait(250);
    assert_eq!(over(&mut desk), []);
}

#[test]
fn idle_slots_are_told_only_where_pleas_do_not_reach() {
    let mut desk = Desk::pleading(2, &[A, B]);
    desk.wait(20_000);
    assert_eq!(told_of_start(&mut desk, A), []);
    assert_eq!(told_of_end(&mut desk, A), []);
    let said = reports(desk.join(C));
    assert!(said.contains(&report(C, 3, true)), "C does not plead: {said:?}");
    desk.start(A, 1);
    assert_eq!(desk.want(C, 1, 0, 0), [recall(B, 1)]);
    assert_eq!(reports(desk.arbiter.returned(B, 1, desk.now).unwrap()), [report(C, 3, false)]);
    desk.start(C, 1);
    desk.wait(250);
    let said = told_of_end(&mut desk, C);
    assert_eq!(said, [report(A, 3, true), report(B, 3, true)], "C does not hear their pleas");
}
