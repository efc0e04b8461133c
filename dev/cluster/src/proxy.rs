//! A proxy in front of the API server that counts and records what is asked, and does harm where a test wants it.
//!
//! Clients reach it by a kubeconfig that it writes. The token in there is good at the proxy only, which tells the API server
//! who asks, so that RBAC holds as it does without a proxy. Any other token is handed on as it is. `exec` and
//! `port-forward` do not go through it.
//!
//! ```no_run
//! # fn test(plane: &dev_cluster::ControlPlane) -> anyhow::Result<()> {
//! use dev_cluster::proxy::{Fault, Proxy, Rule};
//!
//! let proxy = Proxy::start(plane)?;
//! let kubeconfig = proxy.kubeconfig_for_service_account("modelrelay", "operator")?;
//! // The third write to a Deployment is done, and its answer is lost.
//! let lost = Rule::new(Fault::BreakAfter, |call| call.writes() && call.resource == "deployments").nth(3);
//! let hits = proxy.add(lost);
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

mod call;
mod forward;
mod record;
mod rules;
mod upstream;
mod watches;

pub use call::{Call, Verb};
pub use record::{Kind, Recorded};
pub use rules::{Fault, Hits, Rule};

use crate::ControlPlane;
use forward::{Shared, User};
use record::Record;
use rules::Rules;
use upstream::{ApiServer, certificate, key};
use watches::Watches;

const BREATH: Duration = Duration::from_millis(10);

/// A connection was, or is to be, broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("broken off")
    }
}

impl std::error::Error for Broken {}

/// A running proxy; its connections break when it is dropped.
pub struct Proxy<'a> {
    plane: &'a ControlPlane,
    address: SocketAddr,
    shared: Arc<Shared>,
    // Taken when it is dropped.
    runtime: Option<Runtime>,
}

impl<'a> Proxy<'a> {
    /// Starts one, on a thread of its own.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(plane: &'a ControlPlane) -> Result<Self> {
        let api_server =
            ApiServer::new(plane.address(), &plane.authority().certificate, &plane.front_proxy())?;
        let acceptor = acceptor(plane)?;
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("cluster-proxy").enable_all().build();
        let runtime = runtime.context("start the proxy's runtime")?;
        let _inside = runtime.enter();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
        listener.set_nonblocking(true).context("listen")?;
        let listener = TcpListener::from_std(listener).context("listen")?;
        let address = listener.local_addr().context("listen")?;
        let shared = Arc::new(Shared {
            api_server,
            users: RwLock::new(HashMap::new()),
            rules: Rules::default(),
            watches: Watches::default(),
            record: Record::default(),
            tasks: TaskTracker::new(),
            started: Instant::now(),
        });
        shared.tasks.spawn(accept(listener, acceptor, Arc::clone(&shared)));
        Ok(Self { plane, address, shared, runtime: Some(runtime) })
    }

    /// Returns the address that it serves at.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Writes a kubeconfig for a user in these groups.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let token = token();
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        let user = User { name: user.to_owned(), groups };
        self.shared.users.write().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), user);
        self.plane.write_token_kubeconfig(&self.url(), &token)
    }

    /// Writes a kubeconfig for a service account, which need not be there yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let user = format!("system:serviceaccount:{namespace}:{name}");
        let group = format!("system:serviceaccounts:{namespace}");
        self.kubeconfig_for(&user, &["system:serviceaccounts", &group])
    }

    /// Puts a rule into force, after those that are there.
    pub fn add(&self, rule: Rule) -> Hits {
        self.shared.rules.add(rule)
    }

    /// Ends all rules. Calls that hang already do so until their clients give up.
    pub fn clear(&self) {
        self.shared.rules.clear();
    }

    /// Returns how many watches of this sort are open.
    pub fn open_watches(&self, matches: impl Fn(&Call) -> bool) -> usize {
        self.shared.watches.count(matches)
    }

    /// From now on the open watches of this sort say nothing, and nothing says so; returns how many.
    pub fn silence_watches(&self, matches: impl Fn(&Call) -> bool) -> usize {
        self.shared.watches.silence(matches)
    }

    /// Breaks the open watches of this sort, and returns how many.
    pub fn cut_watches(&self, matches: impl Fn(&Call) -> bool) -> usize {
        self.shared.watches.cut(matches)
    }

    /// Returns the calls since the start, or since they were forgotten, in the order of arrival; of very many, the last.
    #[must_use]
    pub fn calls(&self) -> Vec<Recorded> {
        self.shared.record.calls()
    }

    /// Returns how many calls of each kind there were since the start, or since they were forgotten.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Kind, u64> {
        self.shared.record.counts()
    }

    /// Returns how many calls changed something, or tried to, since the start, or since they were forgotten.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.calls().iter().filter(|recorded| recorded.call.writes()).count()
    }

    /// Forgets all calls.
    pub fn forget(&self) {
        self.shared.record.forget();
    }
}

impl fmt::Debug for Proxy<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting is not allowed where this may be dropped: inside of a test's own runtime.
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    loop {
        // An error concerns one connection, or means too many files, of which others will close some.
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = Arc::clone(&shared).serve(stream, acceptor.clone());
                shared.tasks.spawn(connection);
            }
            Err(_) => sleep(BREATH).await,
        }
    }
}

fn acceptor(plane: &ControlPlane) -> Result<TlsAcceptor> {
    let identity = plane.server_identity("proxy", Ipv4Addr::LOCALHOST.into())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = versions
        .context("choose TLS versions")?
        .with_no_client_auth()
        .with_single_cert(vec![certificate(&identity.certificate)?], key(&identity.key)?)
        .context("use the proxy's certificate")?;
    // One request at a time on a connection, so that one can be broken without others.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

fn token() -> String {
    let random = RandomState::new();
    format!("proxy-{:016x}{:016x}", random.hash_one(0), random.hash_one(1))
}
