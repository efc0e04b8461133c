//! Pools that are refused, and the corners that are accepted.

use serde_json::{Value, json};

use super::{Kind, Place, accept, many, refuse};

fn pool(fields: &Value) -> Value {
    let mut spec = json!({ "relayRef": { "name": "main" }, "backend": { "url": "http://$(NODE_IP):8000" } });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    spec
}

fn backend(backend: &Value) -> Value {
    pool(&json!({ "backend": backend }))
}

pub(super) fn url(url: &str) -> Value {
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
