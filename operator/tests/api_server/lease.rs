//! Who acts: replicas, a holder that is killed, one that stops, one that is cut off.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::PostParams;
use modelrelay_operator::lease::{Elector, LeaseSettings};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{LIMIT, Place, eventually};

fn elector(place: &Place, identity: &str, seconds: u64) -> Elector {
    let settings = LeaseSettings {
        namespace: place.name().to_owned(),
        name: String::from("operator"),
        identity: identity.to_owned(),
        duration: Duration::from_secs(seconds),
    };
    Elector::new(place.client.clone(), settings)
}

async fn holder(place: &Place) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(place.client.clone(), place.name());
    leases.get_opt("operator").await.unwrap()?.spec?.holder_identity.filter(|holder| !holder.is_empty())
}

#[tokio::test]
async fn one_of_many_acts_and_the_next_one_at_once_when_it_stops() {
    let Some(place) = Place::new("lease").await else { return };
    let acting = Arc::new(AtomicUsize::new(0));
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut replicas = JoinSet::new();
    let mut stops = Vec::new();
    for number in 0..3 {
        // So long that nobody would be replaced by expiry within this test.
        let elector = elector(&place, &format!("replica-{number}"), 600);
        let (acting, order, stop) = (acting.clone(), order.clone(), CancellationToken::new());
        stops.push(stop.clone());
        replicas.spawn(async move {
            let work = || async {
                assert_eq!(acting.fetch_add(1, Ordering::SeqCst), 0, "two replicas act at once");
                order.lock().unwrap().push(number);
                stop.cancelled().await;
                acting.fetch_sub(1, Ordering::SeqCst);
            };
            elector.run(&stop, work).await;
        });
    }
    for turn in 1..=3 {
        let number = eventually("the next one acts", async || {
            let order = order.lock().unwrap();
            (order.len() == turn).then(|| *order.last().unwrap())
        })
        .await;
        stops[number].cancel();
    }
    timeout(LIMIT, async { while replicas.join_next().await.transpose().unwrap().is_some() {} })
        .await
        .unwrap();
    assert_eq!(holder(&place).await, None, "the last one gave the lease back");
}

#[tokio::test]
async fn a_holder_that_is_killed_is_replaced_when_its_lease_expires_and_not_before() {
    let Some(place) = Place::new("lease").await else { return };
    let (first, second) = (elector(&place, "first", 4), elector(&place, "second", 4));
    let stop = CancellationToken::new();
    let mut killed = Box::pin(first.run(&stop, std::future::pending::<()>));
    let held = async { eventually("the first one holds", async || holder(&place).await).await };
    tokio::select! {
        _ = &mut killed => panic!("it does not end by itself"),
        holder = held => assert_eq!(holder, "first"),
    }
    drop(killed);
    let died = Instant::now();
    let acted = second.run(&stop, || async { died.elapsed() });
    let waited = timeout(LIMIT, acted).await.unwrap().unwrap();
    assert!(waited >= Duration::from_secs(3), "the lease was still good: {waited:?}");
}

/// Counts those that act, as long as it is there.
struct Acts<'a>(&'a AtomicUsize);

impl<'a> Acts<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Acts<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_holder_whose_lease_somebody_took_stops_acting_until_it_is_given_back() {
    let Some(place) = Place::new("lease").await else { return };
    let (stop, acting) = (CancellationToken::new(), AtomicUsize::new(0));
    let elector = elector(&place, "victim", 3);
    let leases: Api<Lease> = Api::namespaced(place.client.clone(), place.name());
    let hand_to = async |holder: &str| {
        eventually("the lease is another one's", async || {
            let mut lease = leases.get("operator").await.unwrap();
            let spec = lease.spec.as_mut().unwrap();
            spec.holder_identity = Some(holder.to_owned());
            // Nobody is replaced by expiry within this test.
            spec.lease_duration_seconds = Some(600);
            leases.replace("operator", &PostParams::default(), &lease).await.ok()
        })
        .await;
    };
    let acts = async |count: usize| {
        let now = async || (acting.load(Ordering::SeqCst) == count).then_some(());
        eventually("it acts, or not", now).await;
    };
    let rob = async {
        acts(1).await;
        hand_to("thief").await;
        acts(0).await;
        assert_eq!(
            holder(&place).await.as_deref(),
            Some("thief"),
            "what another one holds is not given back"
        );
        hand_to("").await;
        acts(1).await;
        assert_eq!(holder(&place).await.as_deref(), Some("victim"));
    };
    let work = || async {
        let _acts = Acts::begin(&acting);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = elector.run(&stop, work) => unreachable!("its work never ends"),
        () = rob => {}
    }
}
