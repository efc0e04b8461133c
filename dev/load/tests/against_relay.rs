//! The loads that are workers themselves, against a relay in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dev_load::{Failure, Meter, Target, flood, handover, workers};
use modelrelay_protocol::config::RelayConfig;
use modelrelay_relay::app;
use modelrelay_relay::settings::Live;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(30);

/// A relay that takes any worker; dropping it ends it.
struct Relay {
    target: Target,
    relay: Arc<app::Relay>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Relay {
    async fn start() -> Self {
        let yaml = "listen: 127.0.0.1:0\nopsListen: 127.0.0.1:0\n";
        let config = RelayConfig::parse_strictly(yaml).expect("good settings");
        let bound = app::bind(Live::fixed(config).expect("good settings")).await.expect("free ports");
        let address: SocketAddr = bound.client_address().expect("it is bound");
        let target = Target::parse(&format!("http://{address}"), "m").expect("loopback");
        let (relay, stop) = (bound.relay(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let stopped = stop.clone();
        tasks.spawn(async move {
            bound.run(stopped.clone(), stopped).await;
        });
        Self { target, relay, stop, tasks }
    }

    async fn stop(mut self) {
        drop(self.relay);
        self.stop.cancel();
        timeout(LONG, self.tasks.join_next()).await.expect("the relay ends");
    }
}

#[tokio::test]
async fn idle_workers_of_both_kinds_stay_until_the_relay_ends() {
    let relay = Relay::start().await;
    let meter = Arc::new(Meter::default());
    let options = workers::Options { count: 20, ..workers::Options::default() };
    let mut extended = workers::open(&relay.target, &options, &meter).await;
    let options = workers::Options { v1: true, ..options };
    let mut plain = workers::open(&relay.target, &options, &meter).await;
    assert_eq!((extended.report.registered, plain.report.registered), (20, 20));
    assert_eq!((extended.lost(), plain.lost()), (0, 0));
    relay.stop().await;
    let all_lost = async {
        while extended.lost() + plain.lost() < 40 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, all_lost).await.expect("the relay closes its sessions");
}

#[tokio::test]
async fn every_request_is_handed_over_and_answered() {
    let relay = Relay::start().await;
    for when in [handover::When::Join, handover::When::Requeue] {
        let options = handover::Options { when, secret: String::new(), requests: 5, patience: LONG };
        let report = handover::run(&relay.target, &options, &Arc::default()).await;
        assert_eq!((report.tally.ok, report.tally.failed, report.latency.count), (5, 0, 5), "{when:?}");
        assert!(report.latency.max_us > 0.0 && report.latency.p50_us < 1e6, "{report:?}");
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_flood_that_nobody_reads_is_cancelled() {
    let relay = Relay::start().await;
    let options =
        flood::Options { bytes: 400_000_000, pause: Duration::ZERO, timeout: LONG, ..Default::default() };
    let report = flood::run(&relay.target, &options, &Arc::default()).await;
    assert_eq!((report.cancelled, report.failure), (true, None));
    assert!(report.sent_bytes < options.bytes, "{report:?}");
    relay.stop().await;
}

#[tokio::test]
async fn workers_without_a_relay_fail() {
    let target = Target::parse(&format!("http://{}", dev_backend::refused_addr().unwrap()), "m").unwrap();
    let options = workers::Options { count: 2, ..workers::Options::default() };
    let mut none = workers::open(&target, &options, &Arc::default()).await;
    assert_eq!((none.report.registered, none.lost()), (0, 0));
    assert_eq!(none.report.tally.failures.get(&Failure::Connect), Some(&2));
}
