//! One slot, three relays, one request at a time: the normal case at home.

use std::time::Duration;

use dev_e2e::client::Client;
use dev_e2e::{floor, percentile};

use crate::fleet::{Fleet, SETTINGS, ask_at_once};

const ONE_WAY: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_elsewhere_costs_two_round_trips_and_one_that_is_here_nothing() {
    let _floor = floor::alone().await;
    let alone = Fleet::start(1, &[1], ONE_WAY, "").await;
    let mut lone_client = Client::connect(alone.address(0)).await.unwrap();
    let fleet = Fleet::start(3, &[1], ONE_WAY, SETTINGS).await;
    let mut clients = Vec::new();
    for relay in 0..3 {
        clients.push(Client::connect(fleet.address(relay)).await.unwrap());
    }
    let (mut last, mut usual, mut here, mut elsewhere) = (None, Vec::new(), Vec::new(), Vec::new());
    for _ in 0..100 {
        // In turn, so that whatever slows the machine down meets both.
        usual.push(ask_at_once(&mut lone_client).await);
        let relay = rand::random_range(0..3);
        let took = ask_at_once(&mut clients[relay]).await;
        if last == Some(relay) {
            here.push(took)
        } else {
            elsewhere.push(took)
        }
        last = Some(relay);
    }
    fleet.assert_never_over_committed();
    let half = |times: &mut Vec<Duration>| percentile(times, 50);
    let [usual, here, moved] = [half(&mut usual), half(&mut here), half(&mut elsewhere)];
    eprintln!("alone {usual:?}, same relay again {here:?}, another relay {moved:?}");
    let noise = usual / 4;
    assert!(here <= usual + noise, "{here:?} instead of {usual:?}");
    // A request to a lone relay is itself a round trip, with all that the machine adds to one.
    let two_round_trips = 2 * usual;
    assert!(usual >= 2 * ONE_WAY && moved >= 4 * ONE_WAY, "nothing was delayed: {usual:?}, {moved:?}");
    assert!(moved <= usual + two_round_trips + noise, "{moved:?} instead of {usual:?}");
}
