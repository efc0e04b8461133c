//! What the API server refuses by the CRDs alone, and what it takes.

use dev_cluster::{ControlPlane, Namespace, Patch};
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use modelrelay_operator::model_relay::build::settings::{self, Given};
use modelrelay_protocol::config::RelayConfig;
use serde_json::{Value, json};

use crate::support::plane;

struct Place {
    plane: &'static ControlPlane,
    namespace: Namespace,
}

impl Place {
    fn new(prefix: &str) -> Option<Self> {
        let plane = plane()?;
        Some(Self { plane, namespace: plane.namespace(prefix).unwrap() })
    }

    fn path(&self, plural: &str) -> String {
        format!("/apis/modelrelay.io/v1alpha1/namespaces/{}/{plural}", self.namespace.name())
    }

    /// Tries to create an object, and returns what the API server made of it.
    fn try_create(&self, kind: Kind, name: &str, spec: &Value) -> Result<Value, String> {
        let object = json!({
            "apiVersion": "modelrelay.io/v1alpha1", "kind": kind.as_str(), "metadata": { "name": name }, "spec": spec,
        });
        // As kubectl asks for: a field that nobody knows is refused.
        let path = format!("{}?fieldValidation=Strict&dryRun=All", self.path(kind.plural()));
        self.plane.api().create(&path, &object).map_err(|error| error.to_string())
    }

    fn create(&self, kind: Kind, name: &str, spec: &Value) -> Value {
        let object = json!({
            "apiVersion": "modelrelay.io/v1alpha1", "kind": kind.as_str(), "metadata": { "name": name }, "spec": spec,
        });
        self.plane.api().create(&self.path(kind.plural()), &object).unwrap()
    }

    fn try_merge(&self, kind: Kind, name: &str, change: &Value) -> Result<Value, String> {
        let path = format!("{}/{name}", self.path(kind.plural()));
        self.plane.api().patch(&path, Patch::Merge, change).map_err(|error| error.to_string())
    }
}

#[derive(Clone, Copy)]
enum Kind {
    ModelRelay,
    WorkerPool,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::ModelRelay => "ModelRelay",
            Self::WorkerPool => "WorkerPool",
        }
    }

    /// What relays are told of such an object.
    fn settings(self, object: Value) -> RelayConfig {
        match self {
            Self::ModelRelay => {
                let relay: ModelRelay = serde_json::from_value(object).unwrap();
                settings::config(&relay, Given::default()).unwrap()
            }
            Self::WorkerPool => {
                let pool: WorkerPool = serde_json::from_value(object).unwrap();
                let credential = settings::worker_credential(&pool, "mr_id_secret");
                RelayConfig { worker_credentials: vec![credential], ..RelayConfig::default() }
            }
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::ModelRelay => "modelrelays",
            Self::WorkerPool => "workerpools",
        }
    }
}

/// Specs that are refused, each with the field that the refusal names and what it says of it.
fn refuse(kind: Kind, table: &[(Value, &str, &str)]) {
    let Some(place) = Place::new("refused") else { return };
    let mut wrong = Vec::new();
    for (spec, field, message) in table {
        match place.try_create(kind, "main", spec) {
            Ok(_) => wrong.push(format!("{spec}: accepted")),
            Err(error) => {
                if !error.contains(field) || !error.contains(message) {
                    wrong.push(format!("{spec}: {error}\n    wanted: {field}: {message}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Specs that are accepted, and that relays can be given as settings.
fn accept(kind: Kind, specs: &[Value]) {
    let Some(place) = Place::new("accepted") else { return };
    let refused = |spec: &Value| match place.try_create(kind, "main", spec) {
        Ok(object) => kind.settings(object).validate().err().map(|error| format!("{spec}: {error}")),
        Err(error) => Some(error),
    };
    let wrong: Vec<_> = specs.iter().filter_map(refused).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn pool(fields: &Value) -> Value {
    let mut spec = json!({ "relayRef": { "name": "main" }, "backend": { "url": "http://$(NODE_IP):8000" } });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    spec
}

fn backend(backend: &Value) -> Value {
    pool(&json!({ "backend": backend }))
}

fn url(url: &str) -> Value {
    backend(&json!({ "url": url }))
}

fn container(fields: &Value) -> Value {
    let mut container = json!({ "image": "vllm/vllm-openai:v0.11.0", "ports": [{ "containerPort": 8000 }] });
    container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    backend(&json!({ "container": container }))
}

fn external(fields: &Value) -> Value {
    let mut spec = json!({ "relayRef": { "name": "main" }, "type": "External" });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    spec
}

#[test]
fn a_relay_that_cannot_be_is_refused_with_what_would_be_right() {
    let targets = |targets: Value| json!({ "models": [{ "name": "m", "targets": targets }] });
    let namespaces = |namespaces: Value| json!({ "allowedWorkerPools": { "namespaces": namespaces } });
    let table = [
        (
            json!({ "replicas": 2, "scaling": { "maxReplicas": 3 } }),
            "spec.replicas",
            "remove replicas, or remove scaling",
        ),
        (json!({ "replicas": -1 }), "spec.replicas", "greater than or equal to 0"),
        (json!({ "replicas": 1001 }), "spec.replicas", "less than or equal to 1000"),
        (json!({ "scaling": {} }), "spec.scaling.maxReplicas", "Required value"),
        (
            json!({ "scaling": { "maxReplicas": 1 } }),
            "spec.scaling",
            "maxReplicas must be at least minReplicas (2 when absent)",
        ),
        (
            json!({ "scaling": { "minReplicas": 5, "maxReplicas": 4 } }),
            "spec.scaling",
            "maxReplicas must be at least minReplicas",
        ),
        (
            json!({ "scaling": { "minReplicas": 0, "maxReplicas": 4 } }),
            "spec.scaling.minReplicas",
            "greater than or equal to 1",
        ),
        (
            json!({ "scaling": { "maxReplicas": 4, "targetCPUPercent": 0 } }),
            "spec.scaling.targetCPUPercent",
            "greater than or equal to 1",
        ),
        (json!({ "image": { "repository": "relay:1.0" } }), "spec.image.repository", "without tag or digest"),
        (json!({ "image": { "repository": "" } }), "spec.image.repository", "without tag or digest"),
        (
            json!({ "image": { "repository": "a b" } }),
            "spec.image.repository",
            "such as registry.example.com/team/modelrelay-relay",
        ),
        (json!({ "image": { "tag": "-x" } }), "spec.image.tag", "must be an image tag"),
        (json!({ "image": { "digest": "sha256:12" } }), "spec.image.digest", "64 hexadecimal digits"),
        (
            json!({ "image": { "pullPolicy": "Sometimes" } }),
            "spec.image.pullPolicy",
            r#"supported values: "Always", "IfNotPresent", "Never""#,
        ),
        (
            json!({ "service": { "nodePort": 30000 } }),
            "spec.service.nodePort",
            "set service.type or remove nodePort",
        ),
        (
            json!({ "service": { "type": "NodePort", "nodePort": 0 } }),
            "spec.service.nodePort",
            "greater than or equal to 1",
        ),
        (
            json!({ "service": { "type": "ExternalName" } }),
            "spec.service.type",
            r#"supported values: "ClusterIP""#,
        ),
        (json!({ "service": { "port": 65536 } }), "spec.service.port", "less than or equal to 65535"),
        (
            json!({ "service": { "annotations": { "": "x" } } }),
            "spec.service.annotations",
            "1 to 317 characters",
        ),
        (
            json!({ "service": { "annotations": { "a": "x".repeat(4097) } } }),
            "spec.service.annotations.a",
            "may not be more than 4096",
        ),
        (
            json!({ "service": { "annotations": many(65) } }),
            "spec.service.annotations",
            "must have at most 64",
        ),
        (json!({ "exposure": {} }), "spec.exposure.externalURL", "Required value"),
        (
            json!({ "exposure": { "externalURL": "relay.example.com" } }),
            "spec.exposure.externalURL",
            "such as https://relay.example.com",
        ),
        (
            json!({ "exposure": { "externalURL": "wss://relay.example.com" } }),
            "spec.exposure.externalURL",
            "with http or https",
        ),
        (
            json!({ "exposure": { "externalURL": "https://me:pw@relay.example.com" } }),
            "spec.exposure.externalURL",
            "without user",
        ),
        (
            json!({ "exposure": { "externalURL": "https://relay.example.com/?a=b" } }),
            "spec.exposure.externalURL",
            "query or fragment",
        ),
        (json!({ "exposure": { "externalURL": "https://:80" } }), "spec.exposure.externalURL", "and a host"),
        (json!({ "queue": { "maxRequests": 0 } }), "spec.queue.maxRequests", "greater than or equal to 1"),
        (json!({ "queue": { "maxBytes": "12x" } }), "spec.queue.maxBytes", "such as 64Mi"),
        (json!({ "queue": { "maxBytes": "1.5Gi" } }), "spec.queue.maxBytes", "such as 64Mi"),
        (json!({ "queue": { "maxBytes": "2Ti" } }), "spec.queue.maxBytes", "from 1 to 1Ti"),
        (json!({ "queue": { "maxBytes": 0 } }), "spec.queue.maxBytes", "from 1 to 1Ti"),
        (json!({ "queue": { "maxBytes": true } }), "spec.queue.maxBytes", "must be of type integer,string"),
        (
            json!({ "queue": { "maxBytes": "32Mi" } }),
            "spec",
            "limits.maxBodyBytes (64Mi when absent) must be at most queue.maxBytes",
        ),
        (
            json!({ "limits": { "maxBodyBytes": "257Mi" } }),
            "spec",
            "must be at most queue.maxBytes (256Mi when absent)",
        ),
        (
            json!({ "limits": { "maxBodyBytes": "2Gi" }, "queue": { "maxBytes": 1000 } }),
            "spec",
            "must be at most queue.maxBytes",
        ),
        (json!({ "limits": { "maxBodyBytes": "-1" } }), "spec.limits.maxBodyBytes", "such as 64Mi"),
        (
            json!({ "queue": { "timeoutSeconds": 0 } }),
            "spec.queue.timeoutSeconds",
            "greater than or equal to 1",
        ),
        (
            json!({ "queue": { "keepAliveSeconds": 604_801 } }),
            "spec.queue.keepAliveSeconds",
            "less than or equal to 604800",
        ),
        (
            json!({ "priorities": [{ "name": "a", "value": 1 }, { "name": "b", "value": 1 }] }),
            "spec.priorities",
            "every priority needs a value of its own",
        ),
        (
            json!({ "priorities": [{ "name": "a", "value": 1 }, { "name": "a", "value": 2 }] }),
            "spec.priorities[1]",
            "Duplicate value",
        ),
        (json!({ "priorities": [{ "name": "a" }] }), "spec.priorities[0].value", "Required value"),
        (
            json!({ "priorities": [{ "name": "-a", "value": 1 }] }),
            "spec.priorities[0].name",
            "must begin and end with a letter or digit",
        ),
        (
            json!({ "priorities": [{ "name": "a", "value": 1_000_001 }] }),
            "spec.priorities[0].value",
            "less than or equal to 1000000",
        ),
        (
            json!({ "routing": { "prefixHash": {} } }),
            "spec.routing.prefixHash",
            "set routing.strategy or remove prefixHash",
        ),
        (
            json!({ "routing": { "strategy": "LeastLoad", "prefixHash": {} } }),
            "spec.routing.prefixHash",
            "needs strategy PrefixHash",
        ),
        (
            json!({ "routing": { "strategy": "Random" } }),
            "spec.routing.strategy",
            r#"supported values: "LeastLoad", "PrefixHash""#,
        ),
        (
            json!({ "routing": { "strategy": "PrefixHash", "prefixHash": { "maxLoadPercent": 99 } } }),
            "spec.routing.prefixHash.maxLoadPercent",
            "greater than or equal to 100",
        ),
        (
            json!({ "routing": { "sessionAffinityHeader": "x session" } }),
            "spec.routing.sessionAffinityHeader",
            "such as x-session-id",
        ),
        (
            json!({ "retries": { "maxRequeues": 101 } }),
            "spec.retries.maxRequeues",
            "less than or equal to 100",
        ),
        (
            json!({ "timeouts": { "firstByteSeconds": -1 } }),
            "spec.timeouts.firstByteSeconds",
            "greater than or equal to 0",
        ),
        (json!({ "drainSeconds": 0 }), "spec.drainSeconds", "greater than or equal to 1"),
        (json!({ "models": [{ "name": "m" }] }), "spec.models[0].targets", "Required value"),
        (targets(json!([])), "spec.models[0].targets", "should have at least 1 items"),
        (
            targets(json!([{ "model": "a", "weight": 0 }])),
            "spec.models[0].targets",
            "at least one target needs a weight above 0",
        ),
        (
            targets(json!([{ "model": "a" }, { "model": "a" }])),
            "spec.models[0].targets[1]",
            "Duplicate value",
        ),
        (targets(json!([{ "model": " a" }])), "spec.models[0].targets[0].model", "without blanks"),
        (
            targets(json!([{ "model": "a", "weight": -1 }])),
            "spec.models[0].targets[0].weight",
            "greater than or equal to 0",
        ),
        (
            json!({ "models": [{ "name": "", "targets": [{ "model": "a" }] }] }),
            "spec.models[0].name",
            "1 to 256 bytes",
        ),
        (
            json!({ "models": [{ "name": "ä".repeat(129), "targets": [{ "model": "a" }] }] }),
            "spec.models[0].name",
            "1 to 256 bytes",
        ),
        (
            json!({ "clientAuth": { "type": "Basic" } }),
            "spec.clientAuth.type",
            r#"supported values: "None", "APIKeys""#,
        ),
        (
            namespaces(json!({ "from": "Selector" })),
            "spec.allowedWorkerPools.namespaces.selector",
            "needs a selector",
        ),
        (
            namespaces(json!({ "selector": {} })),
            "spec.allowedWorkerPools.namespaces.selector",
            "set from or remove selector",
        ),
        (
            namespaces(json!({ "from": "All", "selector": {} })),
            "spec.allowedWorkerPools.namespaces.selector",
            "needs from: Selector",
        ),
        (
            namespaces(json!({ "from": "Some" })),
            "spec.allowedWorkerPools.namespaces.from",
            r#"supported values: "Same", "Selector", "All""#,
        ),
        (
            namespaces(
                json!({ "from": "Selector", "selector": { "matchExpressions": [{ "key": "a", "operator": "In" }] } }),
            ),
            "spec.allowedWorkerPools.namespaces.selector.matchExpressions[0]",
            "In and NotIn need values",
        ),
        (
            namespaces(
                json!({ "from": "Selector", "selector": { "matchExpressions": [{ "key": "a", "operator": "Is" }] } }),
            ),
            "spec.allowedWorkerPools.namespaces.selector.matchExpressions[0].operator",
            r#"supported values: "In", "NotIn""#,
        ),
        (
            json!({ "podTemplate": { "spec": { "containers": "relay" } } }),
            "spec.podTemplate.spec.containers",
            "must be of type array",
        ),
        (
            json!({ "podTemplate": { "spec": { "containers": [{ "name": "relay", "resources": { "limits": { "cpu": "12x" } } }] } } }),
            "spec.podTemplate.spec.containers[0].resources.limits.cpu",
            "should match",
        ),
        (json!({ "tls": { "secretName": "x" } }), "spec.tls", "unknown field"),
        (Value::Null, "spec", "Required value"),
    ];
    refuse(Kind::ModelRelay, &table);
}

fn many(count: usize) -> Value {
    (0..count).map(|number| (format!("k{number}"), Value::from("v"))).collect()
}

#[test]
fn a_pool_that_cannot_be_is_refused_with_what_would_be_right() {
    let managed = |managed: Value| pool(&json!({ "managed": managed }));
    let health = |health: Value| pool(&json!({ "health": health }));
    let table = [
        (json!({ "backend": { "url": "http://a" } }), "spec.relayRef", "Required value"),
        (json!({ "relayRef": { "name": "main" } }), "spec.backend", "type Managed needs a backend"),
        (json!({ "relayRef": {}, "backend": { "url": "http://a" } }), "spec.relayRef.name", "Required value"),
        (
            pool(&json!({ "relayRef": { "name": "Main" } })),
            "spec.relayRef.name",
            "must be the name of a ModelRelay",
        ),
        (
            pool(&json!({ "relayRef": { "name": "m".repeat(41) } })),
            "spec.relayRef.name",
            "may not be more than 40",
        ),
        (
            pool(&json!({ "relayRef": { "name": "main", "namespace": "a.b" } })),
            "spec.relayRef.namespace",
            "must be the name of a namespace",
        ),
        (pool(&json!({ "type": "Manual" })), "spec.type", r#"supported values: "Managed", "External""#),
        (pool(&json!({ "models": ["a", "a"] })), "spec.models[1]", "Duplicate value"),
        (pool(&json!({ "models": ["a\nb"] })), "spec.models[0]", "without control characters"),
        (
            pool(&json!({ "models": (0..257).map(|n| n.to_string()).collect::<Vec<_>>() })),
            "spec.models",
            "must have at most 256 items",
        ),
        (
            pool(&json!({ "maxConcurrentRequests": 0 })),
            "spec.maxConcurrentRequests",
            "greater than or equal to 1",
        ),
        (
            pool(&json!({ "maxConcurrentRequests": 100_001 })),
            "spec.maxConcurrentRequests",
            "less than or equal to 100000",
        ),
        (pool(&json!({ "labels": many(33) })), "spec.labels", "must have at most 32"),
        (
            pool(&json!({ "labels": { "zone": "x".repeat(257) } })),
            "spec.labels.zone",
            "may not be more than 256",
        ),
        (pool(&json!({ "labels": { "": "x" } })), "spec.labels", "1 to 128 characters"),
        (pool(&json!({ "labels": { "zone": 1 } })), "spec.labels.zone", "must be of type string"),
        (backend(&json!({})), "spec.backend", "exactly one of url"),
        (
            backend(&json!({ "url": "http://a", "service": { "name": "a", "port": 1 } })),
            "spec.backend",
            "exactly one of url",
        ),
        (url("http://$(POD_IP):8000"), "spec.backend.url", "only $(NODE_IP) and $(NODE_NAME)"),
        (url("http://$(NODE_IP):$(PORT)"), "spec.backend.url", "only $(NODE_IP) and $(NODE_NAME)"),
        (url("$(NODE_IP):8000"), "spec.backend.url", "such as http://$(NODE_IP):8000"),
        (url("ftp://a"), "spec.backend.url", "with http or https"),
        (url("http://me:pw@a"), "spec.backend.url", "without user"),
        (url("http://a b"), "spec.backend.url", "without user and blanks"),
        (url("http://"), "spec.backend.url", "and a host"),
        (url(&format!("http://{}", "a".repeat(506))), "spec.backend.url", "may not be more than 512"),
        (backend(&json!({ "service": { "name": "vllm" } })), "spec.backend.service.port", "Required value"),
        (
            backend(&json!({ "service": { "name": "a.b", "port": 1 } })),
            "spec.backend.service.name",
            "for one elsewhere use url",
        ),
        (
            backend(&json!({ "service": { "name": "vllm", "port": 0 } })),
            "spec.backend.service.port",
            "greater than or equal to 1",
        ),
        (container(&json!({ "image": "" })), "spec.backend.container.image", "at least 1 chars long"),
        (
            container(&json!({ "ports": [] })),
            "spec.backend.container",
            "exactly one port, or one that is named http",
        ),
        (
            backend(&json!({ "container": { "image": "a" } })),
            "spec.backend.container.ports",
            "Required value",
        ),
        (
            container(
                &json!({ "ports": [{ "containerPort": 1 }, { "containerPort": 2, "name": "metrics" }] }),
            ),
            "spec.backend.container",
            "exactly one port, or one that is named http",
        ),
        (container(&json!({ "name": "engine" })), "spec.backend.container.name", "unknown field"),
        (
            container(&json!({ "resources": { "limits": { "memory": "12x" } } })),
            "spec.backend.container.resources.limits.memory",
            "should match",
        ),
        (health(json!({ "path": "health" })), "spec.health.path", "such as /health"),
        (health(json!({ "path": "/a b" })), "spec.health.path", "hold no blanks"),
        (
            health(json!({ "intervalSeconds": 0 })),
            "spec.health.intervalSeconds",
            "greater than or equal to 1",
        ),
        (
            health(json!({ "failureThreshold": 101 })),
            "spec.health.failureThreshold",
            "less than or equal to 100",
        ),
        (
            managed(json!({ "nodeSelector": { "gpu": "a b" } })),
            "spec.managed.nodeSelector[gpu]",
            "must be the value of a node label",
        ),
        (
            managed(json!({ "nodeSelector": { "gpu": true } })),
            "spec.managed.nodeSelector.gpu",
            "must be of type string",
        ),
        (
            managed(json!({ "tolerations": [{ "operator": "Exist" }] })),
            "spec.managed.tolerations[0].operator",
            r#"supported values: "Exists", "Equal""#,
        ),
        (
            managed(json!({ "updateStrategy": { "maxUnavailable": 0 } })),
            "spec.managed.updateStrategy.maxUnavailable",
            "greater than or equal to 1",
        ),
        (
            managed(json!({ "updateStrategy": { "timeoutSeconds": 0 } })),
            "spec.managed.updateStrategy.timeoutSeconds",
            "greater than or equal to 1",
        ),
        (
            managed(json!({ "image": { "digest": "latest" } })),
            "spec.managed.image.digest",
            "64 hexadecimal digits",
        ),
        (
            managed(json!({ "enginePodTemplate": {} })),
            "spec.managed.enginePodTemplate",
            "needs backend.container",
        ),
        (pool(&json!({ "external": {} })), "spec.external", "external is for type External"),
        (
            external(&json!({ "backend": { "url": "http://a" } })),
            "spec.backend",
            "backend is for type Managed",
        ),
        (external(&json!({ "health": {} })), "spec.health", "health is for type Managed"),
        (external(&json!({ "managed": {} })), "spec.managed", "managed is for type Managed"),
        (
            external(&json!({ "external": { "maxWorkers": 0 } })),
            "spec.external.maxWorkers",
            "greater than or equal to 1",
        ),
    ];
    refuse(Kind::WorkerPool, &table);
}

#[test]
fn a_name_from_which_no_child_can_be_named_is_refused() {
    let Some(place) = Place::new("names") else { return };
    for (kind, spec) in [(Kind::ModelRelay, json!({})), (Kind::WorkerPool, url("http://a"))] {
        for name in ["1st", "a.b", &"a".repeat(41)] {
            let error = place.try_create(kind, name, &spec).unwrap_err();
            assert!(error.contains("must begin with a letter"), "{name}: {error}");
            assert!(error.contains("at most 40"), "{name}: {error}");
        }
        for name in ["a", "a-1", &"a".repeat(40)] {
            place.try_create(kind, name, &spec).unwrap();
        }
    }
}

#[test]
fn every_corner_of_a_relay_is_accepted() {
    accept(
        Kind::ModelRelay,
        &[
            json!({}),
            json!({ "replicas": 0 }),
            json!({ "replicas": 1000 }),
            json!({ "scaling": { "minReplicas": 1, "maxReplicas": 1, "targetCPUPercent": 1 } }),
            json!({ "scaling": { "maxReplicas": 1000, "targetCPUPercent": 1000 } }),
            json!({ "image": {} }),
            json!({ "image": {
                "repository": "localhost:5000/team/relay", "tag": "1", "digest": format!("sha256:{}", "0a".repeat(32)), "pullPolicy": "Never",
            } }),
            json!({ "service": { "type": "LoadBalancer", "port": 443, "nodePort": 30443, "annotations": { "example.com/a": "on" } } }),
            json!({ "service": { "type": "NodePort", "annotations": many(64) } }),
            json!({ "exposure": { "externalURL": "http://192.0.2.1:8080" } }),
            json!({ "exposure": { "externalURL": "https://[2001:db8::1]/relay/a" } }),
            json!({ "queue": { "maxBytes": "1Ti", "maxRequests": 1_000_000, "timeoutSeconds": 604_800, "keepAliveSeconds": 0 } }),
            json!({ "queue": { "maxBytes": 67_108_864_u32 } }),
            json!({ "queue": { "maxBytes": "64Mi" }, "limits": { "maxBodyBytes": 67_108_864 } }),
            json!({ "queue": { "maxBytes": "1000M" }, "limits": { "maxBodyBytes": "1G" } }),
            json!({ "limits": { "maxBodyBytes": 1 } }),
            json!({ "limits": { "maxBodyBytes": "256Mi" } }),
            json!({ "priorities": (0..64).map(|n| json!({ "name": format!("p{n}"), "value": n })).collect::<Vec<_>>() }),
            json!({ "priorities": [{ "name": "a", "value": -1_000_000 }, { "name": "b", "value": 1_000_000 }] }),
            json!({ "routing": { "strategy": "PrefixHash" } }),
            json!({ "routing": { "strategy": "PrefixHash", "prefixHash": { "prefixBytes": 1, "maxLoadPercent": 100 } } }),
            json!({ "routing": { "sessionAffinityHeader": "x_session.id" } }),
            json!({ "retries": { "maxRequeues": 0 }, "timeouts": { "firstByteSeconds": 0, "streamIdleSeconds": 0, "requestSeconds": 604_800 } }),
            json!({ "drainSeconds": 86_400 }),
            json!({ "models": [{ "name": "ä".repeat(128), "targets": [{ "model": "org/model:8b q4", "weight": 0 }, { "model": "b" }] }] }),
            json!({ "models": (0..256).map(|n| json!({
                "name": format!("{n}"), "targets": (0..64).map(|n| json!({ "model": format!("{n}") })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>() }),
            json!({ "clientAuth": {} }),
            json!({ "clientAuth": { "type": "APIKeys" } }),
            json!({ "allowedWorkerPools": { "namespaces": {} } }),
            json!({ "allowedWorkerPools": { "namespaces": { "from": "Selector", "selector": {} } } }),
            json!({ "allowedWorkerPools": { "namespaces": { "from": "Selector", "selector": {
                "matchLabels": { "team": "ml" }, "matchExpressions": [{ "key": "a", "operator": "Exists" }, { "key": "b", "operator": "In", "values": ["c"] }],
            } } } }),
            // An overlay without containers, one that knows only a container's name, and quantities in every form.
            json!({ "podTemplate": { "metadata": { "labels": { "a": "b" } }, "spec": { "affinity": { "nodeAffinity": {} } } } }),
            json!({ "podTemplate": { "spec": { "containers": [{ "name": "relay", "resources": {
                "requests": { "cpu": "1.5", "memory": "1e9" }, "limits": { "cpu": 2, "memory": "128974848000m", "example.com/a": "+1" },
            } }] } } }),
            json!({ "podTemplate": { "spec": { "containers": [{ "name": "relay", "livenessProbe": { "httpGet": { "port": "ops" } } }],
                "volumes": [{ "name": "shm", "emptyDir": { "medium": "Memory", "sizeLimit": "8Gi" } }] } } }),
        ],
    );
}

#[test]
fn every_corner_of_a_pool_is_accepted() {
    accept(
        Kind::WorkerPool,
        &[
            url("http://$(NODE_IP):8000"),
            url("https://$(NODE_NAME).gpu.example.com/base?x=y"),
            url("http://[::1]:8000/v1"),
            backend(&json!({ "service": { "name": "vllm", "port": 65535 } })),
            container(&json!({})),
            container(
                &json!({ "ports": [{ "containerPort": 9090, "name": "metrics" }, { "containerPort": 8000, "name": "http" }] }),
            ),
            container(
                &json!({ "resources": { "limits": { "nvidia.com/gpu": 1 } }, "args": ["--model", "x"], "env": [{ "name": "A", "value": "b" }] }),
            ),
            pool(
                &json!({ "type": "Managed", "models": [], "labels": many(32), "maxConcurrentRequests": 100_000 }),
            ),
            pool(&json!({ "models": (0..256).map(|n| format!("org/model-{n}:8b")).collect::<Vec<_>>() })),
            pool(
                &json!({ "health": { "path": "/", "intervalSeconds": 3600, "failureThreshold": 1, "startupTimeoutSeconds": 0 } }),
            ),
            pool(&json!({ "managed": {} })),
            pool(&json!({ "managed": { "nodeSelector": {}, "tolerations": [] } })),
            pool(&json!({ "managed": {
                "nodeSelector": { "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB", "empty": "" },
                "tolerations": [{ "operator": "Exists" }, { "key": "gpu", "value": "x", "effect": "NoSchedule" }],
                "updateStrategy": { "maxUnavailable": 1000, "waitForIdle": false, "timeoutSeconds": 86_400 },
                "podTemplate": { "spec": { "priorityClassName": "high" } },
            } })),
            {
                let mut spec = container(&json!({}));
                spec["managed"] =
                    json!({ "enginePodTemplate": { "spec": { "runtimeClassName": "nvidia" } } });
                spec
            },
            external(&json!({})),
            external(&json!({ "external": { "maxWorkers": 100_000 } })),
            pool(&json!({ "relayRef": { "name": "main", "namespace": "inference" } })),
        ],
    );
}

#[test]
fn what_would_make_another_pool_of_it_cannot_change() {
    let Some(place) = Place::new("fixed") else { return };
    place.create(Kind::WorkerPool, "a100", &url("http://a"));
    let table = [
        (json!({ "type": "External", "backend": null }), "spec.type", "type cannot change"),
        (json!({ "relayRef": { "name": "other" } }), "spec.relayRef", "relayRef cannot change"),
        (
            json!({ "relayRef": { "namespace": "other" } }),
            "spec.relayRef",
            "create a pool under another name for the other relay",
        ),
        (json!({ "relayRef": null }), "spec.relayRef", "Required value"),
        (
            json!({ "backend": { "service": { "name": "vllm", "port": 8000 } } }),
            "spec.backend",
            "exactly one of url",
        ),
        (json!({ "backend": null }), "spec.backend", "type Managed needs a backend"),
    ];
    for (spec, field, message) in table {
        let error = place.try_merge(Kind::WorkerPool, "a100", &json!({ "spec": spec })).unwrap_err();
        assert!(error.contains(field) && error.contains(message), "{spec}: {error}");
    }
    let change = json!({ "spec": { "backend": { "url": null, "service": { "name": "vllm", "port": 8000 } }, "maxConcurrentRequests": 4 } });
    place.try_merge(Kind::WorkerPool, "a100", &change).unwrap();
    place.create(Kind::WorkerPool, "boxes", &external(&json!({})));
    let change = json!({ "spec": { "type": "Managed", "backend": { "url": "http://a" } } });
    let error = place.try_merge(Kind::WorkerPool, "boxes", &change).unwrap_err();
    assert!(error.contains("type cannot change"), "{error}");
}

#[test]
fn a_relay_changes_between_replicas_and_scaling_in_one_step_only() {
    let Some(place) = Place::new("scale") else { return };
    place.create(Kind::ModelRelay, "main", &json!({}));
    let scale = format!("{}/main/scale", place.path("modelrelays"));
    let set = |replicas: i32| {
        place.plane.api().patch(&scale, Patch::Merge, &json!({ "spec": { "replicas": replicas } }))
    };
    assert_eq!(set(3).unwrap()["spec"]["replicas"], 3);
    let autoscaled = json!({ "spec": { "scaling": { "maxReplicas": 6 } } });
    let error = place.try_merge(Kind::ModelRelay, "main", &autoscaled).unwrap_err();
    assert!(error.contains("remove replicas, or remove scaling"), "{error}");
    let autoscaled = json!({ "spec": { "scaling": { "maxReplicas": 6 }, "replicas": null } });
    let object = place.try_merge(Kind::ModelRelay, "main", &autoscaled).unwrap();
    assert_eq!(
        object["spec"]["scaling"],
        json!({ "minReplicas": 2, "maxReplicas": 6, "targetCPUPercent": 70 })
    );
    let error = set(3).unwrap_err().to_string();
    assert!(error.contains("replicas is the autoscaler's as long as scaling is set"), "{error}");
}
