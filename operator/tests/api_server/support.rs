//! One API server for all tests of this program, and a namespace and an operator for each of them.

use std::fmt::Debug;
use std::sync::OnceLock;
use std::time::Duration;

use dev_cluster::{ControlPlane, Namespace, Options, Tools};
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::Action;
use kube::{Api, Client, Config, Resource};
use modelrelay_operator::api::schema;
use modelrelay_operator::cache::Scope;
use modelrelay_operator::controller::Operator;
use modelrelay_operator::metrics::Metrics;
use modelrelay_operator::{connection, options};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How long anything may take on a machine that is busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The shared API server, with both CRDs; without its programs, none.
pub(crate) fn plane() -> Option<&'static ControlPlane> {
    static SHARED: OnceLock<Option<ControlPlane>> = OnceLock::new();
    let start = || {
        let options = Options { controller_manager: true, ..Options::default() };
        let plane = ControlPlane::start(&Tools::from_environment()?, options).unwrap();
        install_crds(&plane);
        Some(plane)
    };
    SHARED.get_or_init(start).as_ref()
}

/// Lets an API server know both kinds.
pub(crate) fn install_crds(plane: &ControlPlane) {
    for crd in schema::crds() {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        plane.api().create(path, &serde_json::to_value(&crd).unwrap()).unwrap();
    }
    for plural in ["modelrelays", "workerpools"] {
        let path = format!("/apis/modelrelay.io/v1alpha1/{plural}");
        // Just after the CRD was made, the API server asks to come back later.
        let served = || Ok(plane.api().get(&path).ok());
        dev_cluster::wait::until("the API server serves the new kinds", LIMIT, served).unwrap();
    }
}

/// A namespace of the shared API server, and a client that may do anything.
pub(crate) struct Place {
    pub(crate) client: Client,
    namespace: Namespace,
}

impl Place {
    /// Makes one; none without the API server's programs.
    pub(crate) async fn new(prefix: &str) -> Option<Self> {
        let plane = tokio::task::spawn_blocking(plane).await.unwrap()?;
        Some(Self::in_plane(plane, prefix).await)
    }

    /// Makes one on an API server of the test's own.
    pub(crate) async fn in_plane(plane: &ControlPlane, prefix: &str) -> Self {
        let namespace = plane.namespace(prefix).unwrap();
        Self { client: client(plane.kubeconfig()).await, namespace }
    }

    /// Goes on with connections of its own: the old ones are broken when the API server was away.
    pub(crate) async fn connect_again(&mut self, plane: &ControlPlane) {
        self.client = client(plane.kubeconfig()).await;
    }

    pub(crate) fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Returns the objects of one kind in this namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), self.name())
    }

    /// Applies a manifest as a user does.
    pub(crate) async fn apply<K>(&self, manifest: &serde_json::Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let name = manifest["metadata"]["name"].as_str().unwrap();
        let params = PatchParams::apply("kubectl").force();
        self.api::<K>().patch(name, &params, &Patch::Apply(manifest)).await.unwrap()
    }

    /// Starts an operator for this namespace only.
    pub(crate) fn operator(&self) -> RunningOperator {
        RunningOperator::start(self.client.clone(), Scope::Namespaces(vec![self.name().to_owned()]))
    }
}

/// A client for the user of a kubeconfig.
pub(crate) async fn client(kubeconfig: &std::path::Path) -> Client {
    // Fails when another test was first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(connection::patient(config)).unwrap()
}

/// What operators of tests are told.
pub(crate) fn options(scope: Scope) -> options::Options {
    options::Options {
        scope,
        pod_name: None,
        namespace: String::from("modelrelay-system"),
        relay_image: String::from("registry.example/modelrelay-relay:0.1.0"),
        worker_image: String::from("registry.example/modelrelay-worker:0.1.0"),
        image_pull_secrets: Vec::new(),
    }
}

/// An operator in this process; it ends when this is dropped.
pub(crate) struct RunningOperator {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl RunningOperator {
    pub(crate) fn start(client: Client, scope: Scope) -> Self {
        let options = options(scope);
        let stop = CancellationToken::new();
        let operator = Operator::new(client, options, Metrics::new());
        #[expect(clippy::disallowed_methods, reason = "ended by this value's drop")]
        let task = tokio::spawn(operator.run(stop.clone()));
        Self { stop, task }
    }

    /// Ends it in order.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap();
    }

    /// Ends it wherever it is.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for RunningOperator {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

/// Whether a reconcile wants to look again as late as one does that is content: in ten minutes, give or take one. What an
/// `Action` holds is told by its `Debug` alone.
pub(crate) fn is_content(action: &Action) -> bool {
    let shown = format!("{action:?}");
    let seconds = shown.split_once("Some(").and_then(|(_, rest)| rest.split_once("s)"));
    let seconds = seconds.and_then(|(seconds, _)| seconds.parse().ok());
    seconds.is_some_and(|seconds: f64| (540.0..=660.0).contains(&seconds))
}

/// Asks `look` again and again until it finds something.
///
/// # Panics
/// When that takes longer than [`LIMIT`].
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "{what}: not within {} s", LIMIT.as_secs());
        sleep(Duration::from_millis(50)).await;
    }
}
