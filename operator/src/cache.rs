//! What the operator knows of the cluster: one watch per kind and namespace, each with a back-off of its own.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::api::{ModelRelay, WorkerPool};
use crate::metrics::Metrics;
use crate::naming::{CLIENT_KEY, MANAGED_BY, OPERATOR};

/// A watch that hears nothing, not even its end, for five seconds more than this is taken for dead.
pub(crate) const WATCH_SECONDS: u32 = 40;
/// The API server is asked again so soon after it failed.
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// And at least so often while it fails: after an outage, work goes on within this time.
const LAST_RETRY: Duration = Duration::from_secs(1);

/// A kind of namespaced object that the operator watches.
pub trait Watched:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Picks this kind's cache.
    fn cache(caches: &Caches) -> &Cache<Self>;
}

/// The objects of a kind are not known yet, or may not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "the {kind} objects of the cluster are not known yet: the API server did not answer, or it forbids to watch them"
)]
pub struct NotReady {
    kind: String,
}

/// What is known of one kind: a store for each namespace, or one for all.
#[derive(Debug)]
pub struct Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    stores: Vec<Store<K>>,
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// Returns the object, if it is known.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = ObjectRef::new(name).within(namespace);
        self.stores.iter().find_map(|store| store.get(&key))
    }

    /// Returns every object.
    ///
    /// # Errors
    /// The first list has not come yet: an empty answer would be a wrong one.
    pub fn all(&self) -> Result<Vec<Arc<K>>, NotReady> {
        self.matching(|_| true)
    }

    /// Returns the objects that `wanted` accepts.
    ///
    /// # Errors
    /// As [`Self::all`].
    pub fn matching(&self, wanted: impl Fn(&K) -> bool) -> Result<Vec<Arc<K>>, NotReady> {
        if !self.is_ready() {
            return Err(NotReady { kind: K::kind(&()).into_owned() });
        }
        Ok(self.stores.iter().flat_map(|store| store.state_filter(&wanted)).collect())
    }

    /// Whether every list has come.
    pub fn is_ready(&self) -> bool {
        use futures_util::FutureExt as _;
        self.stores.iter().all(|store| store.wait_until_ready().now_or_never().is_some())
    }

    /// Returns the stores, one for each namespace that is watched, or the one for all.
    pub fn stores(&self) -> &[Store<K>] {
        &self.stores
    }
}

/// The end that writes what a watch tells.
#[derive(Debug)]
struct Feed<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    api: Api<K>,
    config: watcher::Config,
    writer: Writer<K>,
}

/// What a watch told.
#[derive(Debug)]
pub enum Seen<'a, K> {
    /// One object was added or changed.
    Applied(&'a K),
    /// One object was deleted.
    Deleted(&'a K),
    /// A new list came: anything may have changed or gone meanwhile.
    All,
}

impl<K> Feed<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    async fn run(mut self, metrics: Arc<Metrics>, mut seen: impl FnMut(Seen<'_, K>)) {
        let kind = K::kind(&()).into_owned();
        metrics.watch_kept(&kind);
        let events = watcher(self.api, self.config)
            .backoff(Retry::default())
            .modify(|object: &mut K| object.managed_fields_mut().clear());
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    self.writer.apply_watcher_event(&event);
                    match &event {
                        Event::Apply(object) => seen(Seen::Applied(object)),
                        Event::Delete(object) => seen(Seen::Deleted(object)),
                        Event::InitDone => seen(Seen::All),
                        Event::Init | Event::InitApply(_) => {}
                    }
                }
                Err(error) => {
                    warn!(kind, error = %Causes(&error), "The watch broke; it starts again");
                    metrics.watch_failed(&kind);
                }
            }
        }
    }
}

/// An error with what caused it, on one line.
pub(crate) struct Causes<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Waits that double up to [`LAST_RETRY`], each with a jitter of up to a quarter.
#[derive(Debug)]
pub(crate) struct Retry {
    next: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { next: FIRST_RETRY }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.next;
        self.next = (wait * 2).min(LAST_RETRY);
        Some(wait.mul_f64(rand::random_range(0.75..=1.0)))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Everything that is watched.
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the cache of the kind that it is named after")]
pub struct Caches {
    pub model_relays: Cache<ModelRelay>,
    pub worker_pools: Cache<WorkerPool>,
    pub deployments: Cache<Deployment>,
    pub daemon_sets: Cache<DaemonSet>,
    pub services: Cache<Service>,
    pub service_accounts: Cache<ServiceAccount>,
    pub secrets: Cache<Secret>,
    /// Secrets of users that hold client keys.
    pub client_keys: Cache<Secret>,
    pub disruption_budgets: Cache<PodDisruptionBudget>,
    pub network_policies: Cache<NetworkPolicy>,
    pub autoscalers: Cache<HorizontalPodAutoscaler>,
    pub pods: Cache<Pod>,
    /// Absent when the operator may only read single namespaces.
    pub namespaces: Option<Cache<Namespace>>,
}

impl Caches {
    /// Whether the first list of every kind has come.
    pub fn are_ready(&self) -> bool {
        self.model_relays.is_ready()
            && self.worker_pools.is_ready()
            && self.deployments.is_ready()
            && self.daemon_sets.is_ready()
            && self.services.is_ready()
            && self.service_accounts.is_ready()
            && self.secrets.is_ready()
            && self.client_keys.is_ready()
            && self.disruption_budgets.is_ready()
            && self.network_policies.is_ready()
            && self.autoscalers.is_ready()
            && self.pods.is_ready()
            && self.namespaces.as_ref().is_none_or(Cache::is_ready)
    }
}

/// Who is told what the watches see.
pub trait Observer: Send + Sync + 'static {
    /// A relay was added, changed or deleted.
    fn model_relay(&self, seen: Seen<'_, ModelRelay>);
    /// A pool was added, changed or deleted.
    fn worker_pool(&self, seen: Seen<'_, WorkerPool>);
    /// A Secret with a client key was added, changed or deleted.
    fn client_key(&self, seen: Seen<'_, Secret>);
    /// A namespace was added, changed or deleted.
    fn namespace(&self, seen: Seen<'_, Namespace>);
    /// Something that the operator or its workloads made was added, changed or deleted.
    fn child<K: Resource<DynamicType = ()>>(&self, seen: Seen<'_, K>);
}

/// The watches that fill the caches, before they run.
#[derive(Debug)]
pub struct Feeds {
    model_relays: Vec<Feed<ModelRelay>>,
    worker_pools: Vec<Feed<WorkerPool>>,
    deployments: Vec<Feed<Deployment>>,
    daemon_sets: Vec<Feed<DaemonSet>>,
    services: Vec<Feed<Service>>,
    service_accounts: Vec<Feed<ServiceAccount>>,
    secrets: Vec<Feed<Secret>>,
    client_keys: Vec<Feed<Secret>>,
    disruption_budgets: Vec<Feed<PodDisruptionBudget>>,
    network_policies: Vec<Feed<NetworkPolicy>>,
    autoscalers: Vec<Feed<HorizontalPodAutoscaler>>,
    pods: Vec<Feed<Pod>>,
    namespaces: Option<Feed<Namespace>>,
}

/// Which namespaces are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Cluster,
    /// These.
    Namespaces(Vec<String>),
}

/// Makes empty caches and the watches that fill them.
pub fn caches(client: &Client, scope: &Scope) -> (Caches, Feeds) {
    let own = format!("{MANAGED_BY}={OPERATOR}");
    let watched = Watching { client, scope };
    let (model_relays, relay_feeds) = watched.namespaced(None);
    let (worker_pools, pool_feeds) = watched.namespaced(None);
    let (deployments, deployment_feeds) = watched.namespaced(Some(&own));
    let (daemon_sets, daemon_set_feeds) = watched.namespaced(Some(&own));
    let (services, service_feeds) = watched.namespaced(Some(&own));
    let (service_accounts, account_feeds) = watched.namespaced(Some(&own));
    let (secrets, secret_feeds) = watched.namespaced(Some(&own));
    let (client_keys, key_feeds) = watched.namespaced(Some(CLIENT_KEY));
    let (disruption_budgets, budget_feeds) = watched.namespaced(Some(&own));
    let (network_policies, policy_feeds) = watched.namespaced(Some(&own));
    let (autoscalers, autoscaler_feeds) = watched.namespaced(Some(&own));
    let (pods, pod_feeds) = watched.namespaced(Some(&own));
    let (namespaces, namespace_feed) = watched.cluster_wide().unzip();
    let caches = Caches {
        model_relays,
        worker_pools,
        deployments,
        daemon_sets,
        services,
        service_accounts,
        secrets,
        client_keys,
        disruption_budgets,
        network_policies,
        autoscalers,
        pods,
        namespaces,
    };
    let feeds = Feeds {
        model_relays: relay_feeds,
        worker_pools: pool_feeds,
        deployments: deployment_feeds,
        daemon_sets: daemon_set_feeds,
        services: service_feeds,
        service_accounts: account_feeds,
        secrets: secret_feeds,
        client_keys: key_feeds,
        disruption_budgets: budget_feeds,
        network_policies: policy_feeds,
        autoscalers: autoscaler_feeds,
        pods: pod_feeds,
        namespaces: namespace_feed,
    };
    (caches, feeds)
}

struct Watching<'a> {
    client: &'a Client,
    scope: &'a Scope,
}

impl Watching<'_> {
    fn namespaced<K: Watched>(&self, labels: Option<&str>) -> (Cache<K>, Vec<Feed<K>>) {
        let apis: Vec<Api<K>> = match self.scope {
            Scope::Cluster => vec![Api::all(self.client.clone())],
            Scope::Namespaces(names) => {
                names.iter().map(|name| Api::namespaced(self.client.clone(), name)).collect()
            }
        };
        let (stores, feeds) = apis.into_iter().map(|api| feed(api, labels)).unzip();
        (Cache { stores }, feeds)
    }

    fn cluster_wide<K>(&self) -> Option<(Cache<K>, Feed<K>)>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
    {
        match self.scope {
            Scope::Cluster => {
                let (store, feed) = feed(Api::all(self.client.clone()), None);
                Some((Cache { stores: vec![store] }, feed))
            }
            Scope::Namespaces(_) => None,
        }
    }
}

fn feed<K>(api: Api<K>, labels: Option<&str>) -> (Store<K>, Feed<K>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let (reader, writer) = store();
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS).any_semantic();
    config.label_selector = labels.map(str::to_owned);
    (reader, Feed { api, config, writer })
}

impl Feeds {
    /// Runs every watch until `stop`.
    pub fn run<O: Observer>(
        self,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        metrics: &Arc<Metrics>,
        observer: &Arc<O>,
    ) {
        let run = Running { tasks, stop, metrics };
        let Self {
            model_relays,
            worker_pools,
            deployments,
            daemon_sets,
            services,
            service_accounts,
            secrets,
            client_keys,
            disruption_budgets,
            network_policies,
            autoscalers,
            pods,
            namespaces,
        } = self;
        run.spawn(model_relays, observer, |observer, seen| observer.model_relay(seen));
        run.spawn(worker_pools, observer, |observer, seen| observer.worker_pool(seen));
        run.spawn(deployments, observer, O::child);
        run.spawn(daemon_sets, observer, O::child);
        run.spawn(services, observer, O::child);
        run.spawn(service_accounts, observer, O::child);
        run.spawn(secrets, observer, O::child);
        run.spawn(client_keys, observer, |observer, seen| observer.client_key(seen));
        run.spawn(disruption_budgets, observer, O::child);
        run.spawn(network_policies, observer, O::child);
        run.spawn(autoscalers, observer, O::child);
        run.spawn(pods, observer, O::child);
        run.spawn(namespaces, observer, |observer, seen| observer.namespace(seen));
    }
}

struct Running<'a> {
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
    metrics: &'a Arc<Metrics>,
}

impl Running<'_> {
    fn spawn<K, O: Observer>(
        &self,
        feeds: impl IntoIterator<Item = Feed<K>>,
        observer: &Arc<O>,
        tell: impl Fn(&O, Seen<'_, K>) + Copy + Send + 'static,
    ) where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        for feed in feeds {
            let (observer, stop, metrics) = (observer.clone(), self.stop.clone(), self.metrics.clone());
            let watching = feed.run(metrics, move |seen| tell(&observer, seen));
            self.tasks.spawn(async move { stop.run_until_cancelled(watching).await });
        }
    }
}

macro_rules! watched {
    ($($kind:ty => $field:ident),* $(,)?) => {
        $(impl Watched for $kind {
            fn cache(caches: &Caches) -> &Cache<Self> {
                &caches.$field
            }
        })*
    };
}

watched! {
    ModelRelay => model_relays,
    WorkerPool => worker_pools,
    Deployment => deployments,
    DaemonSet => daemon_sets,
    Service => services,
    ServiceAccount => service_accounts,
    Secret => secrets,
    PodDisruptionBudget => disruption_budgets,
    NetworkPolicy => network_policies,
    HorizontalPodAutoscaler => autoscalers,
    Pod => pods,
}
