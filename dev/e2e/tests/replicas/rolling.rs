//! Every relay and every worker is replaced while they are in use.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dev_e2e::client::{CHAT, Ended, chat, get, post, try_ask};
use dev_e2e::floor;
use dev_e2e::process::{RelayProcess, SECRET};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::fleet::{Fleet, start_worker};

const STREAMS: usize = 200;
/// Events of one stream, 250 ms apart: ten seconds.
const EVENTS: u32 = 41;
const SMALL_EVERY: Duration = Duration::from_millis(20);
/// How long after the first the next worker is told to leave.
const STAGGER: Duration = Duration::from_millis(1500);
const SETTINGS: &str = "replicas: 3\ndrain: { delaySeconds: 2, deadlineSeconds: 60 }\n";

/// A load balancer's list: relays whose operations port says that they are ready.
#[derive(Clone, Default)]
struct Ready(Arc<Mutex<Vec<SocketAddr>>>);

impl Ready {
    fn pick(&self) -> SocketAddr {
        let ready = self.0.lock().unwrap();
        ready[rand::random_range(0..ready.len())]
    }

    /// Looks at the relays again and again, as a load balancer does.
    async fn follow(self, relays: Arc<Mutex<Vec<(SocketAddr, SocketAddr)>>>) {
        loop {
            let all = relays.lock().unwrap().clone();
            let mut ready = Vec::new();
            for (client, operations) in all {
                let looked = timeout(Duration::from_secs(1), try_ask(operations, get("/readyz"))).await;
                if looked.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status() == 200)) {
                    ready.push(client);
                }
            }
            // An empty list would leave nobody to ask, so the last one stands.
            if !ready.is_empty() {
                *self.0.lock().unwrap() = ready;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Asks for a stream; says what was wrong with it, if anything was.
async fn stream(address: SocketAddr, events: u32) -> Result<(), String> {
    let script = json!({"chunks": events, "interval_ms": 250});
    let answer = match try_ask(address, post(CHAT, chat(true, &script))).await {
        Ok(answer) if answer.status() == 200 => answer,
        Ok(answer) => return Err(format!("{:?}", answer.error().await)),
        Err(error) => return Err(format!("{address}: {error}")),
    };
    match answer.stream().await {
        Ended::Whole(n) if n == events => Ok(()),
        other => Err(format!("a stream of {events} ended as {other:?}")),
    }
}

/// Clients that open one stream after another until it is over.
async fn streamer(ready: Ready, first: Instant, over: CancellationToken) -> (usize, Vec<String>) {
    let (mut whole, mut faults) = (0, Vec::new());
    sleep_until(first).await;
    while !over.is_cancelled() {
        match stream(ready.pick(), EVENTS).await {
            Ok(()) => whole += 1,
            Err(fault) => faults.push(fault),
        }
    }
    (whole, faults)
}

async fn small_requests(ready: Ready, over: CancellationToken) -> (usize, Vec<String>) {
    let (mut due, mut clients) = (Instant::now(), JoinSet::new());
    let (mut whole, mut faults) = (0, Vec::new());
    let mut note = |outcome| match outcome {
        Ok(()) => whole += 1,
        Err(fault) => faults.push(fault),
    };
    while !over.is_cancelled() {
        sleep_until(due).await;
        clients.spawn(stream(ready.pick(), 1));
        due += SMALL_EVERY;
        while let Some(ended) = clients.try_join_next() {
            note(ended.unwrap());
        }
    }
    while let Some(ended) = clients.join_next().await {
        note(ended.unwrap());
    }
    (whole, faults)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_relays_and_workers_loses_nothing() {
    let _floor = floor::shared().await;
    let slots = [24; 20];
    let mut fleet = Fleet::start(3, &slots, Duration::ZERO, SETTINGS).await;
    let relays = fleet.relays.iter().map(|relay| (relay.address, relay.ops.0)).collect();
    let relays: Arc<Mutex<Vec<(SocketAddr, SocketAddr)>>> = Arc::new(Mutex::new(relays));
    let ready = Ready::default();
    *ready.0.lock().unwrap() = fleet.relays.iter().map(|relay| relay.address).collect();
    let over = CancellationToken::new();
    let mut follower = JoinSet::new();
    follower.spawn(ready.clone().follow(relays.clone()));
    let begun = Instant::now();
    let streamers: Vec<_> = (0..STREAMS)
        .map(|n| {
            // Spread, so that at any moment some are near their end and some at their beginning.
            let first = begun + Duration::from_millis(10_000 * n as u64 / STREAMS as u64 / 2);
            tokio::spawn(streamer(ready.clone(), first, over.clone()))
        })
        .collect();
    let small = tokio::spawn(small_requests(ready.clone(), over.clone()));
    sleep_until(begun + Duration::from_secs(5)).await;

    let (ways, backends): (Vec<String>, Vec<String>) =
        (fleet.ways.clone(), fleet.backends.iter().map(dev_backend::Backend::url).collect());
    let old: Vec<_> = std::mem::take(&mut fleet.workers);
    let workers = async {
        let mut leaving = JoinSet::new();
        for (index, mut worker) in old.into_iter().enumerate() {
            sleep(STAGGER).await;
            worker.terminate();
            let (ways, backend) = (ways.clone(), backends[index].clone());
            leaving.spawn(async move {
                assert_eq!(worker.ended().await.code(), Some(0));
                start_worker(&format!("worker-{index}"), &ways, &backend, 24, &json!({}))
            });
        }
        leaving.join_all().await
    };
    let roll = async {
        for index in 0..fleet.relays.len() {
            let address = fleet.relays[index].address;
            fleet.relays[index].program.terminate();
            assert_eq!(fleet.relays[index].program.ended().await.code(), Some(0));
            let relay = RelayProcess::at(address, SETTINGS, Some(SECRET), "info").await;
            relays.lock().unwrap()[index] = (address, relay.ops.0);
            dev_e2e::eventually("a relay that is ready", async || {
                (relay.ops.readiness().await == 200).then_some(())
            })
            .await;
            fleet.relays[index] = relay;
        }
    };
    let (workers, ()) = tokio::join!(workers, roll);
    fleet.workers = workers;
    let rolled = begun.elapsed();
    over.cancel();
    let (mut whole, mut faults) = (0, Vec::new());
    for streamer in streamers {
        let (streams, wrong) = streamer.await.unwrap();
        whole += streams;
        faults.extend(wrong);
    }
    let (answered, wrong) = small.await.unwrap();
    faults.extend(wrong);
    eprintln!("{whole} streams and {answered} small requests; all were replaced after {rolled:?}");
    assert!(
        faults.is_empty(),
        "{} of {}: {:#?}",
        faults.len(),
        whole + answered,
        &faults[..faults.len().min(10)]
    );
    assert!(whole >= 2 * STREAMS && answered > 1000);
    fleet.all_connected().await;
    fleet.assert_never_over_committed();
    for backend in &fleet.backends {
        let stats = backend.stats();
        assert_eq!((stats.cancelled, stats.failed, stats.requests), (0, 0, stats.completed), "{stats:?}");
    }
}
