//! Which worker gets a request that would rather have one than another.

use std::collections::BTreeSet;

use modelrelay_protocol::codec::StreamId;
use serde_json::json;

use crate::support::{CHAT, OurWorker, TestRelay, chat, request};

const NAMES: [&str; 3] = ["a", "b", "c"];
const SLOTS: u32 = 4;

async fn three_workers(relay: &TestRelay) -> Vec<OurWorker> {
    let mut workers = Vec::new();
    for name in NAMES {
        workers.push(OurWorker::join_named(relay, name, &["m"], SLOTS).await);
    }
    workers
}

/// The worker that gets the next request, and its number there.
async fn taken(workers: &mut [OurWorker]) -> (usize, StreamId) {
    let requests = workers.iter_mut().map(|worker| Box::pin(worker.request()));
    let ((stream, ..), index, rest) = futures_util::future::select_all(requests).await;
    drop(rest);
    (index, stream)
}

/// A chat whose first words are longer than what is hashed of a prompt.
fn prompt(opening: u32, question: u32) -> String {
    let opening = format!("conversation {opening} ").repeat(400);
    let messages = json!([{ "role": "user", "content": format!("{opening}question {question}") }]);
    json!({ "model": "m", "messages": messages }).to_string()
}

#[tokio::test]
async fn equal_prompt_openings_go_to_the_same_worker_at_every_relay() {
    let mut homes = Vec::new();
    for _ in 0..2 {
        let relay = TestRelay::start("routing: { strategy: PrefixHash }\n").await;
        let mut workers = three_workers(&relay).await;
        let mut home_of = Vec::new();
        for opening in 0..12 {
            let mut served = BTreeSet::new();
            for question in 0..4 {
                let asked = relay.ask(CHAT, prompt(opening, question));
                let (index, stream) = taken(&mut workers).await;
                workers[index].answer(stream, 200, &[], b"").await;
                assert_eq!(asked.answer().await.header("x-modelrelay-worker"), Some(NAMES[index]));
                relay.settled().await;
                served.insert(index);
            }
            assert_eq!(served.len(), 1, "conversation {opening} went to {served:?}");
            home_of.extend(served);
        }
        assert_eq!(home_of.iter().collect::<BTreeSet<_>>().len(), NAMES.len(), "{home_of:?}");
        homes.push(home_of);
    }
    assert_eq!(homes[0], homes[1], "another relay with the same workers agrees without a word");
}

#[tokio::test]
async fn an_opening_that_everybody_has_does_not_overload_its_worker() {
    let relay =
        TestRelay::start("routing: { strategy: PrefixHash, prefixHash: { maxLoadPercent: 125 } }\n").await;
    let mut workers = three_workers(&relay).await;
    let mut running = [0_usize; 3];
    let mut asked = Vec::new();
    for question in 0..12 {
        asked.push(relay.ask(CHAT, prompt(1, question)));
        let (index, _) = taken(&mut workers).await;
        running[index] += 1;
        // A quarter more than its part of all that run, rounded up.
        let most = (asked.len() * 125).div_ceil(300);
        assert!(running[index] <= most, "{running:?}");
    }
    assert_eq!(running, [4, 4, 4]);
    drop(asked);
}

#[tokio::test]
async fn a_session_stays_with_its_worker() {
    let relay = TestRelay::start("routing: { sessionAffinityHeader: x-session }\n").await;
    let mut workers = three_workers(&relay).await;
    for session in ["s1", "s2", "s3", "s4"] {
        let mut served = BTreeSet::new();
        for _ in 0..5 {
            let asked = relay.ask_with(request("POST", CHAT, &[("x-session", session)], chat("m", false)));
            let (index, stream) = taken(&mut workers).await;
            workers[index].answer(stream, 200, &[], b"").await;
            served.insert(asked.answer().await.header("x-modelrelay-worker").unwrap().to_owned());
        }
        assert_eq!(served.len(), 1, "{served:?}");
    }
    relay.settled().await;
}
