//! Everything is busy and all relays have queues: one minute for real.

use std::time::Duration;

use dev_e2e::floor;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::fleet::{Fleet, SETTINGS, Served, draw, gap, serve};

const LENGTH: Duration = Duration::from_secs(60);
const RUNS: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_come_is_first_served_over_all_relays() {
    let _floor = floor::shared().await;
    let slots: Vec<u32> = (0..20).map(|n| n % 2 + 1).collect();
    let fleet = Fleet::start(3, &slots, Duration::ZERO, SETTINGS).await;
    // Six requests for every five that can be served.
    let mean = RUNS * 5 / (6 * fleet.total() as u32);
    let begun = Instant::now();
    let (mut due, mut clients) = (begun, JoinSet::new());
    while due < begun + LENGTH {
        sleep_until(due).await;
        let relay = draw(&[8, 1, 1]);
        clients.spawn(serve(fleet.address(relay), relay, RUNS.mul_f64(rand::random_range(0.5..1.5))));
        due += gap(mean);
    }
    let mut served: Vec<Served> = clients.join_all().await.into_iter().map(Result::unwrap).collect();
    fleet.assert_never_over_committed();
    served.sort_unstable_by_key(|one| one.began);

    // How much later the youngest had come of those that overtook a request.
    let from = served.iter().map(|one| one.sent).min().unwrap() + 10_000_000;
    let (mut youngest, mut overtaken) = (0, Vec::new());
    for one in served.iter().filter(|one| one.sent > from) {
        overtaken.push(Duration::from_micros(youngest.max(one.sent) - one.sent));
        youngest = youngest.max(one.sent);
    }
    overtaken.sort_unstable();
    let at = |per_mille: usize| overtaken[(overtaken.len() - 1) * per_mille / 1000];
    let longest = served.iter().map(|one| one.began - one.sent).max().unwrap();
    eprintln!(
        "{} requests, overtaken by: half {:?}, 99 % {:?}, all {:?}; the longest wait was {} ms",
        overtaken.len(),
        at(500),
        at(990),
        at(1000),
        longest / 1000
    );
    assert!(longest > 3_000_000, "not everything was busy");
    // What a relay lets others go ahead for, what it may not know yet, and half a second for the machine.
    let bound = Duration::from_millis(500 + 250 + 500);
    assert!(at(990) <= bound && at(1000) <= 2 * bound, "overtaken by {:?} and {:?}", at(990), at(1000));
    // Nobody starves: in each ten seconds each relay is served about what came to it.
    let last = served.iter().map(|one| one.sent).max().unwrap();
    for start in (from..last - 10_000_000).step_by(10_000_000) {
        let window = start..start + 10_000_000;
        let within: Vec<&Served> = served.iter().filter(|one| window.contains(&one.began)).collect();
        for (relay, share) in [0.8, 0.1, 0.1].into_iter().enumerate() {
            let part = within.iter().filter(|one| one.relay == relay).count() as f64 / within.len() as f64;
            assert!((share / 3.0..share * 3.0).contains(&part), "relay {relay}: {part} instead of {share}");
        }
    }
}
