//! Slots that a worker lends: a relay spends them, returns them when asked, and sends nothing without one.

use modelrelay_protocol::codec::{self, FailureCode};
use serde_json::json;

use crate::support::ours::JSON;
use crate::support::{CHAT, OurWorker, TestRelay, chat, eventually};

#[tokio::test]
async fn nothing_is_sent_without_a_credit() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join_as(&relay, &OurWorker::register(&["m"], 2)).await;
    let asked = [relay.ask(CHAT, chat("m", false)), relay.ask(CHAT, chat("m", false))];
    relay.queued(2).await;
    worker.send(json!({ "type": "grant", "n": 1 })).await;
    let (first, ..) = worker.request().await;
    relay.queued(1).await;
    // The end of a request does not lend the slot again unless it says so.
    worker.frame(codec::encode_failed(first, FailureCode::BackendGarbage, "", false)).await;
    eventually("one is answered", || asked.iter().any(|one| one.is_answered()).then_some(())).await;
    relay.queued(1).await;
    worker.send(json!({ "type": "grant", "n": 1 })).await;
    let (second, ..) = worker.request().await;
    worker.answer(second, 200, JSON, b"two").await;
    let mut statuses = Vec::new();
    for asked in asked {
        statuses.push(asked.answer().await.status());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 502]);
    assert_eq!(worker.lent(&relay), 1, "the last answer lent its slot again");
    relay.settled().await;
}

#[tokio::test]
async fn a_recall_is_answered_once_with_what_is_unspent() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 3).await;
    let asked = relay.ask(CHAT, chat("m", false));
    let (stream, ..) = worker.request().await;
    for (recalled, returned) in [(1, 1), (5, 1), (2, 0)] {
        worker.send(json!({ "type": "recall", "n": recalled })).await;
        assert_eq!(worker.message().await, json!({ "type": "return", "n": returned }));
    }
    let waiting = relay.ask(CHAT, chat("m", false));
    relay.queued(1).await;
    worker.answer(stream, 200, JSON, b"").await;
    let (stream, ..) = worker.request().await;
    worker.answer(stream, 200, JSON, b"").await;
    assert_eq!((asked.answer().await.status(), waiting.answer().await.status()), (200, 200));
    relay.settled().await;
}

#[tokio::test]
async fn credits_beyond_a_workers_slots_are_not_used_until_there_is_room() {
    let relay = TestRelay::start("").await;
    let mut worker = OurWorker::join(&relay, &["m"], 2).await;
    worker.send(json!({ "type": "grant", "n": 3 })).await;
    let asked: Vec<_> = (0..4).map(|_| relay.ask(CHAT, chat("m", false))).collect();
    relay.queued(2).await;
    let (first, ..) = worker.request().await;
    let (second, ..) = worker.request().await;
    // Two of the three come back; the third takes the place of one that is not lent again.
    worker.send(json!({ "type": "recall", "n": 2 })).await;
    assert_eq!(worker.message().await, json!({ "type": "return", "n": 2 }));
    worker.frame(codec::encode_failed(first, FailureCode::BackendGarbage, "", false)).await;
    let (third, ..) = worker.request().await;
    worker.frame(codec::encode_failed(second, FailureCode::BackendGarbage, "", false)).await;
    eventually("two are answered", || {
        (asked.iter().filter(|one| one.is_answered()).count() == 2).then_some(())
    })
    .await;
    relay.queued(1).await;
    worker.answer(third, 200, JSON, b"").await;
    let (fourth, ..) = worker.request().await;
    worker.answer(fourth, 200, JSON, b"").await;
    for asked in asked {
        asked.answer().await;
    }
    relay.settled().await;
    assert_eq!(worker.lent(&relay), 1);
}
