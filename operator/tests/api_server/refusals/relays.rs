//! Relays that are refused, and the corners that are accepted.

use dev_cluster::Patch;
use serde_json::{Value, json};

use super::{Kind, Place, accept, many, refuse};

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
