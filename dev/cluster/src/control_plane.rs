//! etcd, the API server, and where asked the controllers and the scheduler.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::api::Api;
use crate::daemon::Daemon;
use crate::folder::Folder;
use crate::kubeconfig::{self, Credential};
use crate::namespace::Namespace;
use crate::pki::{self, Authority, Identity, Subject};
use crate::room::Door;
use crate::tools::Tools;

const ETCD_LIMIT: Duration = Duration::from_secs(30);
// Four seconds on an idle machine.
const READY_LIMIT: Duration = Duration::from_secs(120);
// Below the ports that the kernel gives to those who ask for any, so that it stays free while the API server is stopped.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
const PORT_ATTEMPTS: usize = 20;
const HOSTS: &[&str] = &[
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// What a control plane is made of.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Runs kube-controller-manager: garbage collection, namespaces, Deployments, DaemonSets, default service accounts.
    pub controller_manager: bool,
    /// Runs kube-scheduler.
    pub scheduler: bool,
    /// More flags for kube-apiserver.
    pub api_server_flags: Vec<String>,
    /// More flags for kube-controller-manager.
    pub controller_manager_flags: Vec<String>,
    /// The folder of the cluster, which must not be there yet; a temporary one when there is none.
    pub folder: Option<PathBuf>,
}

/// Where a control plane is.
#[derive(Debug)]
pub(crate) struct Site {
    /// Where the API server listens.
    pub(crate) address: SocketAddr,
    /// The addresses of Services, and the first of them, which is the API server's own.
    pub(crate) services: String,
    pub(crate) api_service: IpAddr,
    /// The network that it is in, when that is not the machine's own.
    pub(crate) hub: Option<Door>,
}

impl Site {
    /// On this machine only, without nodes that could reach it.
    fn loopback() -> Result<Self> {
        Ok(Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
            services: "10.96.0.0/16".to_owned(),
            api_service: Ipv4Addr::new(10, 96, 0, 1).into(),
            hub: None,
        })
    }
}

/// A running control plane; everything of it is gone when it is dropped, and when this process ends.
#[derive(Debug)]
pub struct ControlPlane {
    tools: Tools,
    options: Options,
    authority: Authority,
    admin: Identity,
    api: Api,
    kubeconfig: PathBuf,
    serial: AtomicU32,
    // Dropped in this order: who asks before who answers, and the guard last.
    controllers: Mutex<Vec<Daemon>>,
    api_server: Mutex<Option<Daemon>>,
    etcd: Daemon,
    site: Site,
    folder: Folder,
}

impl ControlPlane {
    /// Starts one and waits until it serves.
    ///
    /// # Errors
    /// When a part does not start; with the end of its log.
    pub fn start(tools: &Tools, options: Options) -> Result<Self> {
        let folder = Folder::new(options.folder.as_deref())?;
        Self::start_at(Site::loopback()?, folder, tools, options)
    }

    pub(crate) fn start_at(site: Site, folder: Folder, tools: &Tools, options: Options) -> Result<Self> {
        let pki = folder.path().join("pki");
        let authority = Authority::create(&pki, "ca")?;
        write_identities(&pki, &authority, &site)?;
        let masters = Some("system:masters");
        let admin =
            authority.issue("admin", &Subject { user: "admin", group: masters, ..Subject::default() })?;
        let etcd = start_etcd(tools, &folder)?;
        let api_server = start_api_server(tools, &options, &folder, &site)?;
        let url = format!("https://{}", site.address);
        let api = Api::new(&url, &authority.own().certificate, &admin)?;
        let kubeconfig = folder.path().join("kubeconfig");
        kubeconfig::write(&kubeconfig, &url, &authority.own().certificate, Credential::Certificate(&admin))?;
        let plane = Self {
            tools: tools.clone(),
            options,
            authority,
            admin,
            api,
            kubeconfig,
            serial: AtomicU32::new(0),
            controllers: Mutex::default(),
            api_server: Mutex::new(None),
            etcd,
            site,
            folder,
        };
        plane.wait_ready(api_server)?;
        plane.start_controllers()?;
        Ok(plane)
    }

    /// Returns the address that it serves at.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.site.address)
    }

    /// Returns the socket's address of the same.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.site.address
    }

    /// Returns the administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Returns the certificate authority of the API server and of its clients, and its key.
    #[must_use]
    pub fn authority(&self) -> &Identity {
        self.authority.own()
    }

    /// Returns the administrator's certificate.
    #[must_use]
    pub fn admin(&self) -> &Identity {
        &self.admin
    }

    /// Returns a client for the administrator.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Returns the folder of everything, which goes with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns what a part (`etcd`, `kube-apiserver`, …) has logged so far.
    ///
    /// # Errors
    /// When it has no log.
    pub fn log(&self, part: &str) -> Result<String> {
        let path = self.folder.path().join("log").join(format!("{part}.log"));
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Issues a client certificate for a user who is in at most one group.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn identity(&self, user: &str, group: Option<&str>) -> Result<Identity> {
        let name = format!("client-{}", self.serial.fetch_add(1, Ordering::Relaxed));
        self.authority.issue(&name, &Subject { user, group, ..Subject::default() })
    }

    /// Writes a kubeconfig for a user who is in at most one group.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        self.write_kubeconfig(Credential::Certificate(&self.identity(user, group)?))
    }

    /// Returns a token of a service account that is there; it is good for an hour.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn service_account_token(&self, namespace: &str, name: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let answer = self.api.create(&path, &request)?;
        answer["status"]["token"].as_str().map(str::to_owned).context("the answer holds no token")
    }

    /// Writes a kubeconfig for a service account that is there.
    ///
    /// # Errors
    /// When the API server refuses a token, or it cannot be written.
    pub fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        self.write_kubeconfig(Credential::Token(&self.service_account_token(namespace, name)?))
    }

    fn write_kubeconfig(&self, credential: Credential<'_>) -> Result<PathBuf> {
        self.write_kubeconfig_at(&self.url(), credential)
    }

    fn write_kubeconfig_at(&self, url: &str, credential: Credential<'_>) -> Result<PathBuf> {
        let name = format!("kubeconfig-{}", self.serial.fetch_add(1, Ordering::Relaxed));
        let path = self.folder.path().join(name);
        kubeconfig::write(&path, url, &self.authority.own().certificate, credential)?;
        Ok(path)
    }

    /// Writes a kubeconfig for a token that is good at another address.
    #[cfg(feature = "proxy")]
    pub(crate) fn write_token_kubeconfig(&self, url: &str, token: &str) -> Result<PathBuf> {
        self.write_kubeconfig_at(url, Credential::Token(token))
    }

    /// Issues a certificate for a server that clients of the cluster trust.
    #[cfg(feature = "proxy")]
    pub(crate) fn server_identity(&self, name: &str, address: IpAddr) -> Result<Identity> {
        let name = format!("{name}-{}", self.serial.fetch_add(1, Ordering::Relaxed));
        self.authority.issue(&name, &Subject { user: &name, addresses: &[address], ..Subject::default() })
    }

    /// Returns the certificate with which one may tell the API server in headers who asks.
    #[cfg(feature = "proxy")]
    pub(crate) fn front_proxy(&self) -> Identity {
        let pki = self.folder.path().join("pki");
        Identity { certificate: pki.join("front-proxy.crt"), key: pki.join("front-proxy.key") }
    }

    /// Creates a namespace that is deleted when the value is dropped. Its name begins with `prefix`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn namespace(&self, prefix: &str) -> Result<Namespace> {
        Namespace::create(&self.api, prefix, &[])
    }

    /// Creates a namespace as [`ControlPlane::namespace`] does, with labels.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn labelled_namespace(&self, prefix: &str, labels: &[(&str, &str)]) -> Result<Namespace> {
        Namespace::create(&self.api, prefix, labels)
    }

    /// Prepares kubectl as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        self.kubectl_as(&self.kubeconfig)
    }

    /// Prepares kubectl as the user of another kubeconfig.
    #[must_use]
    pub fn kubectl_as(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new(&self.tools.kube);
        command.arg("kubectl").env("KUBECONFIG", kubeconfig);
        command.env("KUBECACHEDIR", self.folder.path().join("kubectl-cache"));
        command
    }

    /// Kills the API server, as a machine that loses its power does. The data stays.
    pub fn stop_api_server(&self) {
        drop(self.api_server().take());
    }

    /// Starts the API server again, at the same address and with the same data.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn start_api_server(&self) -> Result<()> {
        if self.api_server().is_some() {
            bail!("the API server runs already");
        }
        let daemon = start_api_server(&self.tools, &self.options, &self.folder, &self.site)?;
        self.wait_ready(daemon)
    }

    /// Kills the controllers and the scheduler. In a cluster that has several of each, they end by themselves when the API
    /// server is away for long: they have lost their leases.
    pub fn stop_controllers(&self) {
        self.controllers().clear();
    }

    /// Starts them, those that the control plane was to have.
    ///
    /// # Errors
    /// When they run, and when one does not start; with the end of its log.
    pub fn start_controllers(&self) -> Result<()> {
        if !self.controllers().is_empty() {
            bail!("the controllers run already");
        }
        let started = self.controllers_started()?;
        *self.controllers() = started;
        Ok(())
    }

    fn controllers(&self) -> MutexGuard<'_, Vec<Daemon>> {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api_server(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.api_server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_ready(&self, mut daemon: Daemon) -> Result<()> {
        daemon.wait_ready(READY_LIMIT, || self.api.succeeds("/readyz").then_some(()))?;
        *self.api_server() = Some(daemon);
        Ok(())
    }

    fn controllers_started(&self) -> Result<Vec<Daemon>> {
        let mut started = Vec::new();
        if self.options.controller_manager {
            let mut command = self.controller("kube-controller-manager")?;
            command.args([
                "--use-service-account-credentials",
                "--service-account-private-key-file=pki/sa.key",
                "--root-ca-file=pki/ca.crt",
                "--cluster-signing-cert-file=pki/ca.crt",
                "--cluster-signing-key-file=pki/ca.key",
                // Tests of one control plane share it, and their namespaces go at the same time.
                "--kube-api-qps=200",
                "--kube-api-burst=400",
            ]);
            command.args(&self.options.controller_manager_flags);
            let mut daemon = self.start_controller("kube-controller-manager", &mut command)?;
            let account = "/api/v1/namespaces/default/serviceaccounts/default";
            daemon.wait_ready(READY_LIMIT, || self.api.succeeds(account).then_some(()))?;
            started.push(daemon);
        }
        if self.options.scheduler {
            let mut command = self.controller("kube-scheduler")?;
            let daemon = self.start_controller("kube-scheduler", &mut command)?;
            started.push(daemon);
        }
        Ok(started)
    }

    fn controller(&self, name: &str) -> Result<Command> {
        let user = format!("system:{name}");
        let identity = self.authority.issue(name, &Subject { user: &user, ..Subject::default() })?;
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        let credential = Credential::Certificate(&identity);
        kubeconfig::write(&path, &self.url(), &self.authority.own().certificate, credential)?;
        let mut command = self.folder.command(&self.tools.kube);
        command.arg(name);
        for flag in ["--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig"] {
            command.arg(flag).arg(&path);
        }
        // They serve nothing here, and each is the only one of its kind.
        command.args(["--leader-elect=false", "--secure-port=0", "--bind-address=127.0.0.1"]);
        Ok(command)
    }

    fn start_controller(&self, name: &'static str, command: &mut Command) -> Result<Daemon> {
        Daemon::start(name, command, &self.folder.path().join("log"))
    }

    pub(crate) fn kube(&self) -> &Path {
        &self.tools.kube
    }

    pub(crate) fn beside_kube(&self, program: &str) -> PathBuf {
        self.tools.beside(program)
    }

    /// Gives a user what a role allows in all namespaces.
    pub(crate) fn bind_user(&self, user: &str, role: &str) -> Result<()> {
        let group = "rbac.authorization.k8s.io";
        let binding = json!({
            "apiVersion": format!("{group}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": { "name": user },
            "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": role },
            "subjects": [{ "apiGroup": group, "kind": "User", "name": user }],
        });
        self.api.create(&format!("/apis/{group}/v1/clusterrolebindings"), &binding).map(drop)
    }

    pub(crate) fn guarded(&self) -> &Folder {
        &self.folder
    }

    /// Issues a certificate whose files are called `name`.
    pub(crate) fn issue(&self, name: &str, subject: &Subject<'_>) -> Result<Identity> {
        self.authority.issue(name, subject)
    }

    /// Leaves everything running, and returns the folder, which [`crate::remove`] ends.
    ///
    /// # Errors
    /// When the guard cannot be sent away.
    pub fn leave(mut self) -> Result<PathBuf> {
        let api_server = self.api_server.get_mut().unwrap_or_else(PoisonError::into_inner);
        let controllers = self.controllers.get_mut().unwrap_or_else(PoisonError::into_inner);
        for daemon in controllers.iter_mut().chain(api_server).chain([&mut self.etcd]) {
            daemon.leave();
        }
        self.folder.leave()
    }
}

fn write_identities(pki: &Path, authority: &Authority, site: &Site) -> Result<()> {
    let server = Subject {
        user: "kube-apiserver",
        addresses: &[site.address.ip(), site.api_service],
        hosts: HOSTS,
        ..Subject::default()
    };
    authority.issue("apiserver", &server)?;
    let kubelets = "kube-apiserver-kubelet-client";
    authority.issue(
        "kubelets",
        &Subject { user: kubelets, group: Some("system:masters"), ..Subject::default() },
    )?;
    pki::key_pair(pki, "sa")?;
    let front = Authority::create(pki, "front-proxy-ca")?;
    front.issue("front-proxy", &Subject { user: "front-proxy-client", ..Subject::default() })?;
    Ok(())
}

fn start_etcd(tools: &Tools, folder: &Folder) -> Result<Daemon> {
    let mut command = folder.command(&tools.etcd);
    // Sockets in the folder instead of ports: nobody else can take them, and nobody else can connect.
    let (client, internal) = ("unix://etcd:0", "unix://etcd-peer:0");
    command.args(["--data-dir", "etcd-data", "--name", "etcd", "--unsafe-no-fsync", "--log-level", "warn"]);
    command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
    command.args(["--listen-peer-urls", internal, "--initial-advertise-peer-urls", internal]);
    command.args(["--initial-cluster", &format!("etcd={internal}")]);
    let mut etcd = Daemon::start("etcd", &mut command, &folder.path().join("log"))?;
    let socket = folder.path().join("etcd:0");
    etcd.wait_ready(ETCD_LIMIT, || UnixStream::connect(&socket).ok())?;
    Ok(etcd)
}

fn free_port() -> Result<u16> {
    let mut state = RandomState::new().hash_one("port");
    for _ in 0..PORT_ATTEMPTS {
        let offset = u16::try_from(state % u64::from(PORTS.end - PORTS.start)).unwrap_or_default();
        let port = PORTS.start + offset;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
        state = RandomState::new().hash_one(state);
    }
    bail!("none of {PORT_ATTEMPTS} ports was free");
}

fn start_api_server(tools: &Tools, options: &Options, folder: &Folder, site: &Site) -> Result<Daemon> {
    let Site { address, services, api_service: _, hub } = site;
    let mut command = match hub {
        Some(hub) => folder.command_in(*hub, &tools.kube),
        None => folder.command(&tools.kube),
    };
    command.args([
        "kube-apiserver",
        "--etcd-servers=unix://etcd:0",
        &format!("--bind-address={}", address.ip()),
        &format!("--advertise-address={}", address.ip()),
        &format!("--secure-port={}", address.port()),
        &format!("--service-cluster-ip-range={services}"),
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        "--client-ca-file=pki/ca.crt",
        "--tls-cert-file=pki/apiserver.crt",
        "--tls-private-key-file=pki/apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file=pki/sa.crt",
        "--service-account-signing-key-file=pki/sa.key",
        "--kubelet-certificate-authority=pki/ca.crt",
        "--kubelet-client-certificate=pki/kubelets.crt",
        "--kubelet-client-key=pki/kubelets.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--requestheader-client-ca-file=pki/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--proxy-client-cert-file=pki/front-proxy.crt",
        "--proxy-client-key-file=pki/front-proxy.key",
        "--cert-dir=pki",
        "--allow-privileged=true",
        "--profiling=false",
    ]);
    if address.ip().is_loopback() {
        // It cannot be the endpoint of a Service.
        command.arg("--endpoint-reconciler-type=none");
    }
    command.args(&options.api_server_flags);
    Daemon::start("kube-apiserver", &mut command, &folder.path().join("log"))
}
