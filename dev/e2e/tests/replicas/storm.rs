//! A thousand workers lose a relay at the same moment.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dev_backend::{Backend, Config};
use dev_e2e::client::{get, try_ask};
use dev_e2e::process::{RelayProcess, SECRET};
use dev_e2e::stack::{worker_config, worker_with};
use dev_e2e::{eventually, floor, percentile};
use modelrelay_worker::settings::Secret;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

const WORKERS: usize = 1000;
const BACK_WITHIN: Duration = Duration::from_secs(30);
const CLIENT_EVERY: Duration = Duration::from_millis(4);

async fn connected(relay: &RelayProcess) -> usize {
    relay.ops.metric_sum("modelrelay_workers").await as usize
}

/// Asks what clients ask, one client after another whether or not those before have their answers, until it is over;
/// returns how long each answer took.
async fn clients(relay: SocketAddr, over: CancellationToken) -> Vec<Duration> {
    let (mut due, mut asking) = (Instant::now(), JoinSet::new());
    while !over.is_cancelled() {
        asking.spawn(async move {
            let asked = Instant::now();
            let answer = timeout(BACK_WITHIN, try_ask(relay, get("/v1/models"))).await;
            assert_eq!(answer.expect("an answer in time").expect("an answer").status(), 200);
            asked.elapsed()
        });
        due += CLIENT_EVERY;
        sleep_until(due.into()).await;
    }
    asking.join_all().await
}

/// When workers joined, by the relay's log, as milliseconds after the first of them.
fn joined(relay: &RelayProcess) -> Vec<u64> {
    let log = relay.program.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let times = lines.filter(|line| line["message"] == "Worker joined").map(|line| {
        let time = line["timestamp"].as_str().unwrap();
        let part = |from: usize, to: usize| time[from..to].parse::<u64>().unwrap();
        ((part(11, 13) * 60 + part(14, 16)) * 60 + part(17, 19)) * 1000 + part(20, 23)
    });
    let times: Vec<u64> = times.collect();
    times.iter().map(|time| time.saturating_sub(times[0])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_workers_come_back_without_a_storm() {
    let _floor = floor::alone().await;
    let backend = Backend::start(Config { keep_requests: 0, ..Config::default() }).await.unwrap();
    let mut relay = RelayProcess::start("").await;
    let mut starting = JoinSet::new();
    for n in 0..WORKERS {
        let mut config = worker_config(&format!("w{n}"), &[relay.url()], &backend.url(), 1);
        config.models = vec!["m".to_owned()];
        config.health.interval_seconds = 3600;
        starting.spawn(worker_with(config, Some(Secret::new(SECRET))));
    }
    let workers = starting.join_all().await;
    eventually("all workers", async || (connected(&relay).await == WORKERS).then_some(())).await;

    let address = relay.address;
    relay.program.kill();
    relay = RelayProcess::at(address, "", Some(SECRET), "warn,modelrelay_relay=info").await;
    let back = Instant::now();
    let over = CancellationToken::new();
    let asking = tokio::spawn(clients(address, over.clone()));
    while connected(&relay).await < WORKERS {
        assert!(back.elapsed() < BACK_WITHIN, "{} of {WORKERS} are back", connected(&relay).await);
        sleep(Duration::from_millis(20)).await;
    }
    let took = back.elapsed();
    over.cancel();
    let mut answers = asking.await.unwrap();
    let (half, most) = (percentile(&mut answers, 50), percentile(&mut answers, 99));
    // Lines of the log may be a moment behind.
    let joined = eventually("a line for each worker", async || {
        Some(joined(&relay)).filter(|joined| joined.len() == WORKERS)
    })
    .await;
    let part = |per_mille: usize| joined[(joined.len() - 1) * per_mille / 1000];
    eprintln!(
        "all {WORKERS} were back {took:?} after the relay, a tenth {} ms, half {} ms, all {} ms after the first; it answered \
         {} clients meanwhile, half within {half:?}, 99 % within {most:?}",
        part(100),
        part(500),
        part(1000),
        answers.len()
    );
    assert!(took <= BACK_WITHIN, "{took:?}");
    assert!(answers.len() >= 50, "{} clients show nothing", answers.len());
    assert!(most <= Duration::from_secs(1), "clients waited for {most:?}");
    assert!(part(1000) - part(100) >= 200, "they came all at once");
    for worker in workers {
        worker.kill().await;
    }
}
