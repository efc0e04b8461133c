//! Leader election on a Lease: one operator acts, the others stand by.
//!
//! The holder renews at a third of the lease's duration and stops acting before it can expire. Others count from when
//! they saw the last renewal, by their own clock, so that clocks need not agree. A holder that is told to stop gives the
//! lease back at once. One that could not renew it stands by like the others, and goes on as soon as it finds the lease
//! still in its own name: after an outage of the API server nobody waits for a lease to expire.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cache::{Causes, Retry};
use crate::naming::FIELD_MANAGER;

/// Which lease, who asks for it, and how fast.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// Who asks: unique among all processes that may.
    pub identity: String,
    /// How long a holder that is heard of no more keeps it.
    pub duration: Duration,
}

impl LeaseSettings {
    /// Ten seconds: a killed holder is replaced within eleven.
    pub const DURATION: Duration = Duration::from_secs(10);

    fn renew_every(&self) -> Duration {
        self.duration / 3
    }

    /// The holder stops acting so long after its last renewal: before anybody else may begin.
    fn stop_after(&self) -> Duration {
        self.duration * 3 / 4
    }
}

/// Who stands by waits no longer for an answer: it may have asked an API server that just went, and asks the one that came.
const ANSWER_LIMIT: Duration = Duration::from_millis(1500);
/// And asks again after this time at the latest.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The lease as it was written, and when that began: others count from later.
#[derive(Debug)]
struct Held {
    lease: Lease,
    renewed: Instant,
}

/// What is known of a lease that somebody else may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Changes with every renewal.
    version: Option<String>,
    holder: Option<String>,
    duration: Duration,
    /// When this version was first seen, by the own clock.
    since: Instant,
}

impl Seen {
    fn next(previous: Option<&Self>, lease: &Lease, now: Instant) -> Self {
        let version = lease.metadata.resource_version.clone();
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds =
            spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
        let since = match previous {
            Some(previous) if previous.version == version => previous.since,
            _ => now,
        };
        let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
        Self { version, holder, duration: Duration::from_secs(seconds), since }
    }

    /// When `identity` may take the lease.
    fn free_at(&self, identity: &str) -> Instant {
        match &self.holder {
            Some(holder) if holder != identity => self.since + self.duration,
            _ => self.since,
        }
    }
}

/// A lease to be held while something runs.
#[derive(Clone, Debug)]
pub struct Elector {
    api: Api<Lease>,
    settings: LeaseSettings,
}

impl Elector {
    /// Asks for a lease through `client`.
    pub fn new(client: Client, settings: LeaseSettings) -> Self {
        Self { api: Api::namespaced(client, &settings.namespace), settings }
    }

    /// Waits for the lease, runs `work` while it is held, and gives it back. Returns when `work` does, or when `stop` came
    /// before the lease. When the lease is lost, `work` is dropped, and begins anew once it is held again.
    pub async fn run<F: Future>(&self, stop: &CancellationToken, work: impl Fn() -> F) -> Option<F::Output> {
        loop {
            let held = stop.run_until_cancelled(self.acquire()).await?;
            info!(lease = self.settings.name, identity = self.settings.identity, "Leading");
            let problem = tokio::select! {
                done = work() => {
                    self.release().await;
                    return Some(done);
                }
                problem = self.keep(held) => problem,
            };
            warn!(lease = self.settings.name, problem, "Lost the lease; standing by");
        }
    }

    /// Returns when the lease is held.
    async fn acquire(&self) -> Held {
        let fields = format!("metadata.name={}", self.settings.name);
        let config = watcher::Config::default().timeout(20).fields(&fields);
        // A watch tells at once when the lease is given back.
        let mut changes = pin!(watcher(self.api.clone(), config).backoff(Retry::default()));
        let mut seen: Option<Seen> = None;
        let mut read = true;
        loop {
            let lease = self.get(ANSWER_LIMIT).await;
            // Once for each outage, not for each attempt.
            if let (true, Err(error)) = (std::mem::replace(&mut read, lease.is_ok()), &lease) {
                warn!(error, "The lease cannot be read; asking until it can");
            }
            match lease {
                Ok(None) => {
                    if let Some(held) = self.make().await {
                        return held;
                    }
                    sleep(jittered(ASK_AGAIN)).await;
                }
                Ok(Some(lease)) => {
                    let now = Instant::now();
                    let known = Seen::next(seen.as_ref(), &lease, now);
                    let free_at = known.free_at(&self.settings.identity);
                    seen = Some(known);
                    if free_at <= now {
                        if let Some(held) = self.take(lease).await {
                            return held;
                        }
                        // Somebody else was faster, or nobody answers.
                        sleep(jittered(Duration::from_millis(200))).await;
                        continue;
                    }
                    tokio::select! {
                        () = sleep_until(free_at) => {}
                        _ = changes.next() => {}
                    }
                }
                Err(_) => sleep(jittered(ASK_AGAIN)).await,
            }
        }
    }

    /// Renews until that fails for too long, and says why.
    async fn keep(&self, held: Held) -> String {
        let Held { lease: mut held, mut renewed } = held;
        loop {
            sleep_until(renewed + self.settings.renew_every()).await;
            let stop_at = renewed + self.settings.stop_after();
            loop {
                let began = Instant::now();
                let mut next = held.clone();
                let spec = next.spec.get_or_insert_default();
                spec.renew_time = Some(MicroTime(Timestamp::now()));
                let problem = match self.replace(&next, stop_at).await {
                    Ok(lease) => {
                        (held, renewed) = (lease, began);
                        break;
                    }
                    Err(Problem::Conflict) => match self.get(self.settings.renew_every()).await {
                        Ok(Some(lease)) if self.holds(&lease) => {
                            held = lease;
                            String::from("somebody else changed the lease")
                        }
                        Ok(_) => return String::from("somebody else holds it"),
                        Err(problem) => problem,
                    },
                    Err(Problem::Other(problem)) => problem,
                };
                if Instant::now() + Duration::from_millis(500) >= stop_at {
                    return format!("it could not be renewed in time: {problem}");
                }
                warn!(problem, "The lease was not renewed; trying again");
                sleep(Duration::from_millis(500)).await;
            }
        }
    }

    fn holds(&self, lease: &Lease) -> bool {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        holder == Some(&self.settings.identity)
    }

    /// Gives the lease back, so that the next one need not wait for it to expire.
    async fn release(&self) {
        for _ in 0..3 {
            let Ok(Some(mut lease)) = self.get(ANSWER_LIMIT).await else { return };
            if !self.holds(&lease) {
                return;
            }
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = Some(String::new());
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            if self.replace(&lease, Instant::now() + Duration::from_secs(1)).await.is_ok() {
                info!(lease = self.settings.name, "Gave the lease back");
                return;
            }
        }
    }

    async fn get(&self, limit: Duration) -> Result<Option<Lease>, String> {
        match timeout(limit, self.api.get_opt(&self.settings.name)).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(error)) => Err(Causes(&error).to_string()),
            Err(_) => Err(String::from("the API server did not answer in time")),
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: Some(
                i32::try_from(self.settings.duration.as_secs().max(1)).unwrap_or(i32::MAX),
            ),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(if before.is_some() { transitions.saturating_add(1) } else { 0 }),
            ..LeaseSpec::default()
        }
    }

    async fn make(&self) -> Option<Held> {
        let renewed = Instant::now();
        let metadata = ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(self.spec(None)) };
        match timeout(ANSWER_LIMIT, self.api.create(&params(), &lease)).await {
            Ok(Ok(lease)) => Some(Held { lease, renewed }),
            Ok(Err(error)) => {
                warn!(error = %Causes(&error), "The lease cannot be made");
                None
            }
            Err(_) => None,
        }
    }

    async fn take(&self, mut lease: Lease) -> Option<Held> {
        let renewed = Instant::now();
        lease.spec = Some(self.spec(lease.spec.as_ref()));
        let lease = self.replace(&lease, renewed + ANSWER_LIMIT).await.ok()?;
        Some(Held { lease, renewed })
    }

    /// Replaces this very version of the lease.
    async fn replace(&self, lease: &Lease, until: Instant) -> Result<Lease, Problem> {
        let limit = until.saturating_duration_since(Instant::now()).min(self.settings.renew_every());
        let params = params();
        let replaced = self.api.replace(&self.settings.name, &params, lease);
        match timeout(limit, replaced).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Problem::Conflict),
            Ok(Err(error)) => Err(Problem::Other(Causes(&error).to_string())),
            Err(_) => Err(Problem::Other(String::from("the API server did not answer in time"))),
        }
    }
}

/// Those that wait for the same thing do not ask at the same time.
fn jittered(most: Duration) -> Duration {
    most.mul_f64(rand::random_range(0.5..=1.0))
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

enum Problem {
    Conflict,
    Other(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(version: &str, holder: &str) -> Lease {
        let metadata = ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() };
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(10),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    #[tokio::test]
    async fn a_lease_expires_a_whole_duration_after_its_last_renewal_was_seen() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let first = Seen::next(None, &lease("1", "a"), start);
        assert_eq!(first.free_at("b"), start + 10 * second);
        let same = Seen::next(Some(&first), &lease("1", "a"), start + 5 * second);
        assert_eq!(same.free_at("b"), start + 10 * second);
        let renewed = Seen::next(Some(&same), &lease("2", "a"), start + 6 * second);
        assert_eq!(renewed.free_at("b"), start + 16 * second);
    }

    #[tokio::test]
    async fn a_lease_that_was_given_back_or_is_ones_own_is_free_at_once() {
        let now = Instant::now();
        assert_eq!(Seen::next(None, &lease("1", ""), now).free_at("b"), now);
        assert_eq!(Seen::next(None, &lease("1", "b"), now).free_at("b"), now);
    }
}
