//! A namespace with relays and pools of one test.

use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use dev_cluster::{Api, Namespace, wait};
use serde_json::{Value, json};

use super::{LIMIT, STUB, STUB_PORT, SYSTEM, Suite, succeeded};

/// What a pod of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Relay,
    Worker,
    Engine,
}

impl Part {
    fn label(self) -> &'static str {
        match self {
            Self::Relay => "modelrelay-relay",
            Self::Worker => "modelrelay-worker",
            Self::Engine => "modelrelay-engine",
        }
    }
}

/// A namespace that goes with this value; when the test has failed, what is in it is printed before.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    suite: &'a Suite,
    namespace: Namespace,
}

impl<'a> Site<'a> {
    pub(crate) fn new(suite: &'a Suite, prefix: &str) -> Self {
        Self { suite, namespace: suite.plane().namespace(prefix).unwrap() }
    }

    /// A namespace that takes only pods which keep to the rules of Pod Security's level "restricted".
    pub(crate) fn restricted(suite: &'a Suite, prefix: &str) -> Self {
        let labels = [("pod-security.kubernetes.io/enforce", "restricted")];
        Self { suite, namespace: suite.plane().labelled_namespace(prefix, &labels).unwrap() }
    }

    pub(crate) fn name(&self) -> &str {
        self.namespace.name()
    }

    pub(crate) fn api(&self) -> &Api {
        self.suite.plane().api()
    }

    /// Applies objects as `kubectl apply` does.
    pub(crate) fn apply(&self, objects: &[Value]) {
        let mut kubectl = self.suite.plane().kubectl();
        kubectl.args(["--namespace", self.name(), "apply", "--filename=-"]);
        let mut child =
            kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        serde_json::to_writer(child.stdin.take().unwrap(), &list).unwrap();
        succeeded("kubectl apply", &child.wait_with_output().unwrap());
    }

    /// Returns where the objects of a kind are, named in the plural.
    pub(crate) fn path(&self, kind: &str) -> String {
        let group = match kind {
            "modelrelays" | "workerpools" => "apis/modelrelay.io/v1alpha1",
            "deployments" | "daemonsets" | "replicasets" => "apis/apps/v1",
            "horizontalpodautoscalers" => "apis/autoscaling/v2",
            _ => "api/v1",
        };
        format!("/{group}/namespaces/{}/{kind}", self.name())
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        self.api().get(&format!("{}/{name}", self.path(kind))).unwrap()
    }

    /// Returns what a Secret holds under a key.
    pub(crate) fn secret(&self, name: &str, key: &str) -> String {
        let template = format!("--output=go-template={{{{ index .data {key:?} | base64decode }}}}");
        let mut kubectl = self.suite.plane().kubectl();
        let output = kubectl.args(["--namespace", self.name(), "get", "secret", name, &template]).output();
        succeeded(&format!("kubectl get secret {name}"), &output.unwrap())
    }

    /// Deletes an object; what it owns goes after it.
    pub(crate) fn delete(&self, kind: &str, name: &str) {
        self.api().delete(&format!("{}/{name}", self.path(kind))).unwrap();
    }

    /// Waits until an object is as wanted, and returns it.
    pub(crate) fn until(&self, what: &str, kind: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let path = format!("{}/{name}", self.path(kind));
        let mut last = Value::Null;
        let found = wait::until(what, LIMIT, || {
            last = self.api().get(&path)?;
            Ok(wanted(&last).then(|| last.clone()))
        });
        found.unwrap_or_else(|error| panic!("{error}: {:#}", last["status"]))
    }

    /// Waits until a ModelRelay or WorkerPool is ready in its present generation.
    pub(crate) fn ready(&self, kind: &str, name: &str) -> Value {
        self.until(&format!("{name} is ready"), kind, name, |object| {
            let seen = &object["status"]["observedGeneration"];
            *seen == object["metadata"]["generation"] && condition(object, "Ready") == "True"
        })
    }

    /// Returns the pods of a relay or pool that are not on their way out, by name.
    pub(crate) fn pods(&self, part: Part, instance: &str) -> Vec<Value> {
        let query = format!("app.kubernetes.io/name={},app.kubernetes.io/instance={instance}", part.label());
        let list = self.api().get(&format!("{}?labelSelector={query}", self.path("pods"))).unwrap();
        let mut pods = list["items"].as_array().unwrap().clone();
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods.sort_by_key(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned());
        pods
    }

    /// Waits until the pods of a relay or pool are as wanted, and returns them.
    pub(crate) fn pods_until(
        &self,
        what: &str,
        part: Part,
        instance: &str,
        wanted: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        let found = wait::until(what, LIMIT, || {
            let pods = self.pods(part, instance);
            Ok(wanted(&pods).then_some(pods))
        });
        found.unwrap_or_else(|error| panic!("{error}: {:#}", json!(self.pods(part, instance))))
    }

    /// Returns the address of a Service within the cluster, which this machine reaches, too. Nodes hear of ready pods a moment
    /// after the API server, so it is waited until somebody accepts a connection there.
    pub(crate) fn service(&self, name: &str) -> SocketAddr {
        let service = self.get("services", name);
        let port = u16::try_from(service["spec"]["ports"][0]["port"].as_u64().unwrap()).unwrap();
        let address = SocketAddr::new(service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap(), port);
        let accepts = wait::until(&format!("Service {name} accepts a connection"), LIMIT, || {
            Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok().map(drop))
        });
        accepts.unwrap();
        address
    }

    /// A ModelRelay with a spec.
    pub(crate) fn relay(name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "modelrelay.io/v1alpha1", "kind": "ModelRelay", "metadata": { "name": name }, "spec": spec,
        })
    }

    /// A WorkerPool of the relay `main` with more of its spec.
    pub(crate) fn pool(name: &str, more: &Value) -> Value {
        let mut spec = json!({ "relayRef": { "name": "main" } });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({
            "apiVersion": "modelrelay.io/v1alpha1", "kind": "WorkerPool", "metadata": { "name": name }, "spec": spec,
        })
    }

    /// A pool of one node, with the stub for one model.
    pub(crate) fn stub_pool(name: &str, model: &str, slots: u32) -> Value {
        let more = json!({
            "maxConcurrentRequests": slots,
            "backend": { "container": Self::stub_container(model) },
            "managed": { "nodeSelector": { "kubernetes.io/hostname": "node2" } },
        });
        Self::pool(name, &more)
    }

    /// The stub as a pool's `backend.container`, for one model.
    pub(crate) fn stub_container(model: &str) -> Value {
        json!({
            "image": STUB,
            "args": ["--models", model],
            "ports": [{ "name": "http", "containerPort": STUB_PORT }],
        })
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let look = |arguments: &[&str]| {
            let mut kubectl = self.suite.plane().kubectl();
            let output = kubectl.args(arguments).args(["--request-timeout=10s"]).output();
            let text = output.map_or_else(|error| error.to_string().into_bytes(), |output| output.stdout);
            eprintln!("kubectl {arguments:?}\n{}", String::from_utf8_lossy(&text));
        };
        let kinds = "modelrelays,workerpools,pods,deployments,daemonsets,services";
        look(&["get", kinds, "--namespace", self.name(), "--output=wide"]);
        look(&["get", "events", "--namespace", self.name(), "--sort-by=.lastTimestamp"]);
        let ours = "--selector=app.kubernetes.io/managed-by=modelrelay-operator";
        look(&["logs", ours, "--namespace", self.name(), "--prefix", "--tail=30"]);
        look(&[
            "logs",
            "--selector=app.kubernetes.io/name=modelrelay-operator",
            "--namespace",
            SYSTEM,
            "--tail=30",
        ]);
    }
}

/// Returns the status of a condition; empty when it has none.
pub(crate) fn condition(object: &Value, kind: &str) -> String {
    verdict(object, kind).0
}

/// Returns status, reason and message of a condition; empty when it has none.
pub(crate) fn verdict(object: &Value, kind: &str) -> (String, String, String) {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    let text = |field| found.and_then(|condition| condition[field].as_str()).unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}
