//! The cluster that all tests share, one after the other: two nodes, and the operator as the README installs it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use dev_cluster::{Cluster, ClusterOptions, ControlPlane, NodeTools, Tools, check_nodes_can_run, tool};
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tokio::time::{sleep, timeout};

mod images;
pub(crate) mod readme;
mod relay_pod;
mod site;

pub(crate) use images::{BUSYBOX, STUB, STUB_PORT};
pub(crate) use relay_pod::{RelayPod, bearing};
pub(crate) use site::{Part, Site, condition, verdict};

/// What a test waits for at most.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// Where the operator is.
pub(crate) const SYSTEM: &str = "modelrelay-system";
const PROGRAMS: [&str; 3] = ["relay", "worker", "operator"];

/// A cluster of nodes `node1` and `node2`, with the operator.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) cluster: Cluster,
    helm: PathBuf,
}

/// Waits until no other test has the cluster; returns none where there cannot be one.
pub(crate) async fn suite() -> Option<MutexGuard<'static, Suite>> {
    static SHARED: OnceCell<Option<Mutex<Suite>>> = OnceCell::const_new();
    let shared = SHARED.get_or_init(async || Some(Mutex::new(start(options())?))).await.as_ref()?;
    Some(shared.lock().await)
}

/// What the shared cluster is made of.
pub(crate) fn options() -> ClusterOptions {
    // A node is missed after ten seconds instead of forty, and autoscalers look every second instead of every 15.
    let flags = [
        "--node-monitor-grace-period=10s",
        "--node-monitor-period=1s",
        "--horizontal-pod-autoscaler-sync-period=1s",
    ];
    let controller_manager_flags = flags.map(str::to_owned).to_vec();
    ClusterOptions { nodes: 2, controller_manager_flags, ..ClusterOptions::default() }
}

/// Starts a cluster and installs the operator as the README does; returns none where there cannot be one.
pub(crate) fn start(options: ClusterOptions) -> Option<Suite> {
    let (tools, node_tools) = (Tools::from_environment()?, NodeTools::from_environment()?);
    let (archives, helm) = (tool("MODELRELAY_IMAGES")?, tool("MODELRELAY_HELM")?);
    let busybox = tool("MODELRELAY_BUSYBOX")?;
    if let Err(error) = check_nodes_can_run() {
        assert!(std::env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "{error}");
        // Not by a macro: what those print is shown for failed tests only.
        std::io::stderr().write_all(format!("SKIPPED: {error}\n").as_bytes()).unwrap();
        return None;
    }
    let suite = Suite { cluster: Cluster::start(&tools, &node_tools, options).unwrap(), helm };
    let folder = suite.plane().folder().to_owned();
    let made = [images::busybox(&busybox, &folder), images::stub(&folder)];
    let built = PROGRAMS.map(|program| archives.join(format!("modelrelay-{program}.tar")));
    for archive in made.iter().chain(&built) {
        suite.cluster.load_image(archive).unwrap();
    }
    for line in readme::install() {
        suite.shell(&line);
    }
    Some(suite)
}

impl Suite {
    pub(crate) fn plane(&self) -> &ControlPlane {
        self.cluster.control_plane()
    }

    /// Runs a line of a shell at the root of the repository, with kubectl and helm on `PATH`; returns what it printed.
    pub(crate) fn shell(&self, line: &str) -> String {
        let mut command = self.command(Path::new("sh"));
        succeeded(line, &command.args(["-ec", line]).output().unwrap())
    }

    /// Asks a Service by its name from a pod with busybox; returns the lines of its answer, head included.
    pub(crate) fn ask_from_a_pod(&self, namespace: &str, host: &str, path: &str, body: &str) -> String {
        // Its wget cannot post JSON. The sleep holds the way to the relay open: a client that closes it has left.
        let script = format!(
            "{{ /bin/busybox printf 'POST %s HTTP/1.1\\r\\nhost: %s\\r\\ncontent-type: application/json\\r\\n\
             connection: close\\r\\ncontent-length: {}\\r\\n\\r\\n%s' \"$@\"; /bin/busybox sleep 60 & }} \
             | /bin/busybox nc {host} 80",
            body.len()
        );
        let arguments = ["sh", "-c", &script, "ask", path, host, body];
        let kubectl = |verb: &[&str]| {
            let output = self.plane().kubectl().args(["--namespace", namespace]).args(verb).output().unwrap();
            succeeded(&format!("kubectl {verb:?}"), &output)
        };
        let image = format!("--image={BUSYBOX}");
        let mut run = vec!["run", "client", &image, "--restart=Never", "--"];
        run.extend(arguments);
        kubectl(&run);
        // Who attaches to it may come too late for what it printed.
        let ended = "--for=jsonpath={.status.phase}=Succeeded";
        kubectl(&["wait", ended, "--timeout=120s", "pod/client"]);
        let answer = kubectl(&["logs", "client"]).replace('\r', "");
        kubectl(&["delete", "pod", "client", "--grace-period=1"]);
        answer
    }

    /// Prepares a command in whose environment kubectl and helm work on the cluster.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let kubectl = self.plane().kubectl();
        let folders =
            [self.helm.as_path(), Path::new(kubectl.get_program())].map(|path| path.parent().unwrap());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = folders.into_iter().map(Path::to_owned).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(path).unwrap());
        command.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(home, self.plane().folder().join("helm"));
        }
        command
    }
}

/// Looks again and again until there is something, for as long as nodes, pods and workers that dial may take.
pub(crate) async fn within_limit<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("not within {} s: {what}", LIMIT.as_secs()))
}

/// Returns what a command printed, which has to have gone well.
pub(crate) fn succeeded(what: &str, output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{out}{err}", output.status);
    out
}
