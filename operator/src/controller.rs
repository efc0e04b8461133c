//! Runs both reconcilers: watches in, reconciles out, each with a deadline, counted, and tried again with a back-off of its
//! own.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use kube::runtime::controller::{Action, Error as ApplierError};
use kube::runtime::reflector::Store;
use kube::runtime::{Config, applier};
use kube::{Client, Resource, ResourceExt as _};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::cache::{Causes, Feeds, caches};
use crate::context::Context;
use crate::error::ReconcileError;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::triggers::{Pending, Triggering, Triggers};
use crate::{model_relay, worker_pool};

/// How long one reconcile may take, all its calls together.
const RECONCILE_LIMIT: Duration = Duration::from_secs(60);
/// How long the first look at the cluster may take before work begins with what is known.
const FIRST_LISTS: Duration = Duration::from_secs(5);
/// How long reconciles that run have to end when the operator stops: each may be cut anywhere.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Reconciles of one kind that run at once.
const CONCURRENCY: u16 = 16;
/// Waits between attempts: the first, the longest, and the longest while the API server cannot be reached.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(60);
const OUTAGE_RETRY: Duration = Duration::from_secs(3);

/// An operator, before it runs.
#[derive(Debug)]
pub struct Operator {
    context: Arc<Context>,
    feeds: Feeds,
}

impl Operator {
    /// Prepares an operator that works through `client`.
    pub fn new(client: Client, options: Options, metrics: Arc<Metrics>) -> Self {
        let (caches, feeds) = caches(&client, &options.scope);
        let triggers = Arc::new(Triggers::new(&options.scope));
        let context = Context::new(client, Arc::new(caches), triggers, options, metrics);
        Self { context: Arc::new(context), feeds }
    }

    /// Reconciles until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Self { context, feeds } = self;
        let tasks = TaskTracker::new();
        // Also ends the watches when this future is dropped, as it is when the lease is lost.
        let watching = stop.child_token();
        let _ended = watching.clone().drop_guard();
        let observer = Arc::new(Triggering::new(context.caches.clone(), context.triggers.clone()));
        feeds.run(&tasks, &watching, &context.metrics, &observer);
        tasks.close();
        let known = async {
            while !context.caches.are_ready() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if stop.run_until_cancelled(timeout(FIRST_LISTS, known)).await.is_none() {
            return;
        }
        let relays = drive(
            &context,
            context.caches.model_relays.stores(),
            context.triggers.relay_queues(),
            model_relay::reconcile,
            &stop,
        );
        let pools = drive(
            &context,
            context.caches.worker_pools.stores(),
            context.triggers.pool_queues(),
            worker_pool::reconcile,
            &stop,
        );
        let both = async { tokio::join!(relays, pools) };
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            _ = both => {}
            () = late => {}
        }
    }
}

/// How often in a row each object failed.
#[derive(Debug, Default)]
struct Attempts(Mutex<BTreeMap<(String, String), u32>>);

impl Attempts {
    fn failed(&self, namespace: &str, name: &str) -> u32 {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry((namespace.to_owned(), name.to_owned())).or_insert(0);
        *count = count.saturating_add(1);
        *count
    }

    fn succeeded(&self, namespace: &str, name: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

/// Full jitter over a doubling wait: objects that failed together do not come back together.
fn backoff(attempt: u32, outage: bool) -> Duration {
    let longest = if outage { OUTAGE_RETRY } else { LAST_RETRY };
    let wait = FIRST_RETRY.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(longest);
    wait.mul_f64(rand::random_range(0.5..=1.0))
}

/// A reconcile that failed, with the time until the next attempt.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
struct Failed {
    retry: Duration,
    source: Box<Failure>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    #[error("the reconcile did not end within {} s", RECONCILE_LIMIT.as_secs())]
    TimedOut,
}

impl Failure {
    fn reason(&self) -> &'static str {
        match self {
            Self::Reconcile(error) => error.reason(),
            Self::TimedOut => "timeout",
        }
    }

    fn is_outage(&self) -> bool {
        match self {
            Self::Reconcile(error) => matches!(error.reason(), "unreachable" | "timed_out" | "not_ready"),
            Self::TimedOut => true,
        }
    }
}

/// Reconciles every object of one kind whenever it is asked for, until `stop`.
async fn drive<K, R, F>(
    context: &Arc<Context>,
    stores: &[Store<K>],
    queues: Vec<Arc<Pending>>,
    reconcile: R,
    stop: &CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    R: Fn(Arc<K>, Arc<Context>) -> F + Copy + Send + Sync + 'static,
    F: Future<Output = Result<Action, ReconcileError>> + Send + 'static,
{
    let attempts = Arc::new(Attempts::default());
    let running = stores.iter().cloned().zip(queues).map(|(store, queue)| {
        let attempts = attempts.clone();
        let guarded = move |object: Arc<K>, context: Arc<Context>| {
            attempt(object, context, attempts.clone(), reconcile).boxed()
        };
        let policy = |_: Arc<K>, failed: &Failed, _: Arc<Context>| Action::requeue(failed.retry);
        let requests = queue.stream::<K>().take_until(stop.clone().cancelled_owned());
        let config = Config::default().concurrency(CONCURRENCY);
        let results = applier(guarded, policy, context.clone(), store, Box::pin(requests), config);
        results.for_each(|result| {
            match result {
                // Deleted meanwhile: its children are collected by their owner references.
                Ok(_) | Err(ApplierError::ObjectNotFound(_)) => {}
                Err(error) => debug!(error = %Causes(&error), "Will try again"),
            }
            std::future::ready(())
        })
    });
    futures_util::future::join_all(running).await;
}

async fn attempt<K, F>(
    object: Arc<K>,
    context: Arc<Context>,
    attempts: Arc<Attempts>,
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F,
) -> Result<Action, Failed>
where
    K: Resource<DynamicType = ()>,
    F: Future<Output = Result<Action, ReconcileError>>,
{
    let kind = K::kind(&());
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let began = Instant::now();
    context.metrics.reconcile_started(&kind);
    let result = match timeout(RECONCILE_LIMIT, reconcile(object, context.clone())).await {
        Ok(ended) => ended.map_err(Failure::from),
        Err(_) => Err(Failure::TimedOut),
    };
    let failure = result.as_ref().err().map(Failure::reason);
    context.metrics.reconcile_ended(&kind, began.elapsed(), failure);
    match result {
        Ok(action) => {
            attempts.succeeded(&namespace, &name);
            Ok(action)
        }
        Err(source) => {
            let count = attempts.failed(&namespace, &name);
            let retry = backoff(count, source.is_outage());
            warn!(kind = %kind, namespace, name, attempt = count, error = %source, "Reconcile failed");
            Err(Failed { retry, source: Box::new(source) })
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::{reflector, watcher};

    use super::*;
    use crate::api::ModelRelay;
    use crate::cache::Scope;
    use crate::resync::resync;

    /// Its API server is never asked for anything.
    fn context(scope: Scope) -> Arc<Context> {
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
        let (caches, _) = caches(&client, &scope);
        let triggers = Arc::new(Triggers::new(&scope));
        let options = Options {
            scope,
            pod_name: None,
            namespace: String::from("modelrelay-system"),
            relay_image: String::from("relay"),
            worker_image: String::from("worker"),
            image_pull_secrets: Vec::new(),
        };
        Arc::new(Context::new(client, Arc::new(caches), triggers, options, Metrics::new()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_as_it_should_be_is_looked_at_again_every_ten_minutes_or_so() {
        static LOOKS: Mutex<BTreeMap<String, Vec<Instant>>> = Mutex::new(BTreeMap::new());
        async fn look(relay: Arc<ModelRelay>, _: Arc<Context>) -> Result<Action, ReconcileError> {
            LOOKS.lock().unwrap().entry(relay.name_any()).or_default().push(Instant::now());
            Ok(Action::requeue(resync()))
        }
        let context = context(Scope::Cluster);
        let (store, mut writer) = reflector::store();
        writer.apply_watcher_event(&watcher::Event::Init);
        for n in 0..50 {
            let mut relay = ModelRelay::new(&format!("relay-{n}"), Default::default());
            relay.metadata.namespace = Some(String::from("default"));
            context.triggers.relay("default", &relay.name_any());
            writer.apply_watcher_event(&watcher::Event::InitApply(relay));
        }
        writer.apply_watcher_event(&watcher::Event::InitDone);
        let stop = CancellationToken::new();
        let (stores, queues) = ([store], context.triggers.relay_queues());
        let an_hour = timeout(Duration::from_secs(3600), drive(&context, &stores, queues, look, &stop));
        assert!(an_hour.await.is_err(), "it goes on");
        let looks = LOOKS.lock().unwrap();
        assert_eq!(looks.len(), 50);
        for times in looks.values() {
            assert!(times.len() >= 6, "{times:?}");
            for gap in times.windows(2).map(|pair| pair[1] - pair[0]) {
                assert!((539..=661).contains(&gap.as_secs()), "{gap:?}");
            }
        }
        let seconds: std::collections::BTreeSet<_> =
            looks.values().map(|times| (times[1] - times[0]).as_secs()).collect();
        assert!(seconds.len() > 20, "they do not come together: {seconds:?}");
    }

    #[test]
    fn waits_double_up_to_a_limit_that_is_short_during_an_outage() {
        for (attempt, outage, most) in
            [(1, false, 250), (3, false, 1000), (40, false, 60_000), (40, true, 3000)]
        {
            let most = Duration::from_millis(most);
            let wait = backoff(attempt, outage);
            assert!(wait <= most && wait >= most / 2, "{attempt}: {wait:?}");
        }
    }
}
