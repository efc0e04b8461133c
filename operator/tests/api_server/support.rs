//! One API server for all tests of this program, and a namespace and an operator for each of them.

use std::sync::OnceLock;
use std::time::Duration;

use dev_cluster::{ControlPlane, Namespace, Options, Tools};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use modelrelay_operator::api::schema;
use tokio::time::{Instant, sleep};

/// How long anything may take on a machine that is busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The shared API server, with both CRDs; without its programs, none.
pub(crate) fn plane() -> Option<&'static ControlPlane> {
    static SHARED: OnceLock<Option<ControlPlane>> = OnceLock::new();
    let start = || {
        let options = Options { controller_manager: true, ..Options::default() };
        let plane = ControlPlane::start(&Tools::from_environment()?, options).unwrap();
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
        Some(plane)
    };
    SHARED.get_or_init(start).as_ref()
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
        let namespace = plane.namespace(prefix).unwrap();
        let client = client(plane.kubeconfig()).await;
        Some(Self { client, namespace })
    }

    pub(crate) fn name(&self) -> &str {
        self.namespace.name()
    }
}

/// A client for the user of a kubeconfig.
pub(crate) async fn client(kubeconfig: &std::path::Path) -> Client {
    // Fails when another test was first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
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
