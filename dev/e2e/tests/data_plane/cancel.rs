//! A client that leaves: the backend's connection closes, the slot is free, the next request runs.

use std::time::{Duration, Instant};

use dev_backend::Phase;
use dev_e2e::client::{Asked, CHAT, Ended, chat};
use dev_e2e::stack::Stack;
use dev_e2e::{eventually, floor, percentile};
use serde_json::{Value, json};

const REQUESTS: usize = 100;
/// From the client's close to the backend's, on one machine. The median has to meet it; a single one has ten times as
/// long, since other tests run beside this.
const CLOSED_WITHIN: Duration = Duration::from_millis(100);

/// A hundred requests over one slot: each waits in the queue while the one before it runs, and is dispatched because
/// that one's client left.
async fn each_close_lets_the_next_one_run(stream: bool, script: Value, phase: Phase) {
    let _floor = floor::shared().await;
    let stack = Stack::start(1, "").await;
    let ask = |number: usize| {
        let mut script = script.clone();
        script["id"] = json!(format!("request-{number}"));
        stack.relay.ask(CHAT, chat(stream, &script))
    };
    let mut latencies = Vec::new();
    let mut next = ask(0);
    for number in 0..REQUESTS {
        let id = format!("request-{number}");
        stack.backend.wait_phase(&id, phase, dev_e2e::LIMIT).await.unwrap();
        // Whichever of the two is held is the client's connection.
        let (mut asked, mut answer) = (Some(next), None);
        if phase == Phase::MidBody
            && let Some(asked) = asked.take()
        {
            answer.insert(asked.answer().await).part().await;
        }
        let is_last = number + 1 == REQUESTS;
        next = if is_last { stack.relay.ask(CHAT, chat(true, &json!({}))) } else { ask(number + 1) };
        stack.relay.ops.queued(1).await;
        let left = Instant::now();
        drop((asked, answer));
        let close = stack.backend.wait_closed(&id, CLOSED_WITHIN * 10).await.unwrap();
        latencies.push(left.elapsed());
        assert_eq!(close.phase, phase);
    }
    assert_eq!(next.answer().await.stream().await, Ended::Whole(20));
    let stats = stack.backend.stats();
    assert_eq!((stats.requests, stats.cancelled, stats.completed), (101, 100, 1), "{stats:?}");
    assert_eq!(stats.running, 0, "{stats:?}");
    let ops = stack.relay.ops;
    ops.settled().await;
    ops.idle_workers(&["worker"]).await;
    acknowledged(&stack, 100).await;
    assert_eq!(ops.metric(&by_the_client("acknowledged")).await, 100.0);
    let (median, worst) = (percentile(&mut latencies, 50), percentile(&mut latencies, 100));
    eprintln!("client gone to backend closed, {phase:?}: median {median:?}, worst {worst:?}");
    assert!(median < CLOSED_WITHIN, "median {median:?}");
}

/// The count of cancels of clients that left.
fn by_the_client(result: &str) -> String {
    format!("modelrelay_cancellations_total{{model=\"m\",origin=\"client\",result=\"{result}\"}}")
}

/// Waits until this many cancels were acknowledged and timed.
async fn acknowledged(stack: &Stack, n: u32) {
    eventually("the acknowledgements", async || {
        (stack.relay.ops.metric("modelrelay_cancel_ack_seconds_count").await == f64::from(n)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_gone_before_the_head_closes_the_backend_and_lets_the_next_one_run() {
    each_close_lets_the_next_one_run(true, json!({"fail": "stall"}), Phase::BeforeHead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_gone_before_the_first_byte_closes_the_backend_and_lets_the_next_one_run() {
    let script = json!({"fail": "stall", "at": "after_head"});
    each_close_lets_the_next_one_run(true, script, Phase::AfterHead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_gone_mid_stream_closes_the_backend_and_lets_the_next_one_run() {
    let script = json!({"chunks": 1_000_000, "interval_ms": 5});
    each_close_lets_the_next_one_run(true, script, Phase::MidBody).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_gone_while_a_stream_is_silent_closes_the_backend_and_lets_the_next_one_run() {
    let script = json!({"fail": "stall", "at": "mid_body", "after_chunks": 1});
    each_close_lets_the_next_one_run(true, script, Phase::MidBody).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_gone_from_a_request_without_stream_closes_the_backend_and_lets_the_next_one_run() {
    each_close_lets_the_next_one_run(false, json!({"fail": "stall"}), Phase::BeforeHead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_gone_from_the_queue_never_reaches_the_backend() {
    let _floor = floor::shared().await;
    let stack = Stack::start(1, "").await;
    let blocker = stack.relay.ask(CHAT, chat(true, &json!({"fail": "stall", "id": "blocker"})));
    stack.backend.wait_phase("blocker", Phase::BeforeHead, dev_e2e::LIMIT).await.unwrap();
    let waiting: Vec<Asked> =
        (0..REQUESTS).map(|number| stack.relay.ask(CHAT, chat(number % 2 == 0, &json!({})))).collect();
    stack.relay.ops.queued(100).await;
    let stays = stack.relay.ask(CHAT, chat(true, &json!({"id": "stays"})));
    stack.relay.ops.queued(101).await;
    drop(waiting);
    stack.relay.ops.queued(1).await;
    assert_eq!(stack.backend.stats().requests, 1);
    drop(blocker);
    assert_eq!(stays.answer().await.stream().await, Ended::Whole(20));
    assert_eq!(stack.backend.stats().requests, 2);
    stack.relay.ops.settled().await;
    assert_eq!(stack.relay.ops.metric(&by_the_client("queued")).await, 100.0);
    // What never ran needs no acknowledgement.
    acknowledged(&stack, 1).await;
}
