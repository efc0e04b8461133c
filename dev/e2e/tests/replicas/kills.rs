//! A relay that dies without a word.

use std::time::{Duration, Instant};

use dev_e2e::client::{Answer, Asked, CHAT, chat, post};
use dev_e2e::process::{RelayProcess, SECRET};
use dev_e2e::{eventually, floor};
use serde_json::json;

use crate::fleet::{Fleet, SETTINGS, serve};

/// A request that runs until its client leaves, on a connection of its own.
fn endless(fleet: &Fleet, relay: usize) -> Asked {
    let script = json!({"chunks": 1_000_000, "interval_ms": 50});
    Asked::new(fleet.address(relay), post(CHAT, chat(true, &script)))
}

async fn streams(asked: Vec<Asked>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for asked in asked {
        let mut answer = asked.answer().await;
        assert_eq!(answer.status(), 200);
        answer.part().await;
        answers.push(answer);
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_of_a_relay_that_was_killed_are_lent_again_within_a_second() {
    let _floor = floor::alone().await;
    let slots: Vec<u32> = (0..20).map(|n| n % 2 + 1).collect();
    let mut fleet = Fleet::start(3, &slots, Duration::ZERO, SETTINGS).await;
    let total = fleet.total() as usize;
    // Half of all slots run for the first relay, the rest for the others, where as many wait again.
    let doomed = streams((0..total / 2).map(|_| endless(&fleet, 0)).collect()).await;
    let mut others = streams((0..total - total / 2).map(|n| endless(&fleet, n % 2 + 1)).collect()).await;
    assert_eq!(fleet.running(), total as u64);
    let waiting: Vec<Asked> = (0..total / 2).map(|n| endless(&fleet, n % 2 + 1)).collect();
    eventually("all wait", async || {
        let mut length = 0;
        for relay in &fleet.relays[1..] {
            let queues = relay.ops.admin("queue").await["queues"].as_array()?.clone();
            length += queues.iter().map(|queue| queue["length"].as_u64().unwrap()).sum::<u64>();
        }
        (length == total as u64 / 2).then_some(())
    })
    .await;

    let killed = Instant::now();
    fleet.relays[0].program.kill();
    let cancelled = || fleet.backends.iter().map(|backend| backend.stats().cancelled).sum::<u64>();
    eventually("all slots run for the others", async || {
        (cancelled() == total as u64 / 2 && fleet.running() == total as u64).then_some(())
    })
    .await;
    let took = killed.elapsed();
    eprintln!("{} slots of the relay that was killed were in use again after {took:?}", total / 2);
    assert!(took <= Duration::from_secs(1), "{took:?}");
    // Its own clients see that their answers are not whole; nobody else sees anything.
    for answer in doomed {
        assert!(!answer.broken().await.contains("[DONE]"));
    }
    others.extend(streams(waiting).await);
    for answer in &mut others {
        answer.part().await;
    }

    // It comes back, and carries its share although everything is in use: what it is asked first waits for the oldest.
    let again = Instant::now();
    let address = fleet.address(0);
    fleet.relays[0] = RelayProcess::at(address, SETTINGS, Some(SECRET), "info").await;
    let share: Vec<_> =
        (0..total / 3).map(|_| tokio::spawn(serve(address, 0, Duration::from_millis(100)))).collect();
    drop(others.split_off(total / 2));
    for served in share {
        served.await.unwrap().unwrap();
    }
    let took = again.elapsed();
    fleet.relays[0].ops.workers_ready(slots.len()).await;
    eprintln!(
        "it carried a third of all slots {took:?} after its start, and had all workers at {:?}",
        again.elapsed()
    );
    assert!(again.elapsed() <= Duration::from_secs(5), "{took:?}, {:?}", again.elapsed());
    for answer in &mut others {
        answer.part().await;
    }
    drop(others);
    fleet.assert_never_over_committed();
}
