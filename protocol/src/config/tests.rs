use serde_json::{Value, json};

use super::{ByteSize, ConfigError, RelayConfig, Sha256Hash, WorkerConfig};

const RELAY_EXAMPLE: &str = include_str!("relay.example.yaml");
const WORKER_EXAMPLE: &str = include_str!("worker.example.yaml");

fn relay(text: &str) -> RelayConfig {
    RelayConfig::parse(text).unwrap().config
}

fn relay_error(text: &str) -> String {
    match RelayConfig::parse(text) {
        Ok(parsed) => parsed.config.validate().unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

fn worker_error(text: &str) -> String {
    match WorkerConfig::parse(text) {
        Ok(parsed) => parsed.config.validate().unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

fn paths(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| paths(inner, &format!("{at}.{key}"), out)),
        Value::Array(list) => list.iter().for_each(|inner| paths(inner, at, out)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => out.push(at.to_owned()),
    }
}

fn assert_example_is_complete(example: &str, written: &Value) {
    let mut in_example = Vec::new();
    let mut in_type = Vec::new();
    paths(&serde_yaml::from_str(example).unwrap(), "", &mut in_example);
    paths(written, "", &mut in_type);
    in_example.sort();
    in_type.sort();
    assert_eq!(in_example, in_type);
}

#[test]
fn defaults_are_valid_and_documented_as_they_are() {
    let config = relay("{}");
    assert_eq!(config, RelayConfig::default());
    assert_eq!(config.validate(), Ok(()));
    assert_eq!(config.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.ops_listen.to_string(), "127.0.0.1:8081");
    assert_eq!((config.queue.timeout_seconds, config.queue.no_worker_timeout_seconds), (30, 30));
    assert_eq!((config.timeouts.first_byte_seconds, config.timeouts.stream_idle_seconds), (300, 120));
    assert_eq!(config.timeouts.request(), None);
    assert_eq!(config.limits.max_body_bytes, ByteSize::mib(64));
    assert_eq!(config.to_yaml().trim(), "{}");
}

#[test]
fn examples_show_each_field_and_survive_writing() {
    let config = RelayConfig::parse_strictly(RELAY_EXAMPLE).unwrap();
    assert_eq!(config.validate(), Ok(()));
    assert_example_is_complete(RELAY_EXAMPLE, &serde_json::to_value(&config).unwrap());
    assert_eq!(relay(&config.to_yaml()), config);

    let config = WorkerConfig::parse_strictly(WORKER_EXAMPLE).unwrap();
    assert_eq!(config.validate(), Ok(()));
    assert_example_is_complete(WORKER_EXAMPLE, &serde_json::to_value(&config).unwrap());
    assert_eq!(WorkerConfig::parse(&config.to_yaml()).unwrap().config, config);
}

#[test]
fn written_files_leave_out_what_is_at_its_default() {
    let config = relay("queue: { maxRequests: 7, timeoutSeconds: 30 }\nretries: { maxRequeues: 3 }");
    assert_eq!(config.to_yaml(), "queue:\n  maxRequests: 7\n");
}

#[test]
fn unknown_fields_are_refused_with_path_and_alternatives() {
    let table = [
        (
            "queue: { maxRequest: 1 }",
            "queue.maxRequest: unknown field, expected one of maxRequests, maxBytes, ",
        ),
        ("colour: red", "colour: unknown field, expected one of generatedBy, listen, "),
        (
            "routing: { prefixHash: { bytes: 1 } }",
            "routing.prefixHash.bytes: unknown field, expected one of prefixBytes, ",
        ),
        (
            "models: [{ name: a, targets: [{ model: b, share: 1 }] }]",
            "models[0].targets[0].share: unknown field, expected one of model, weight",
        ),
    ];
    for (text, message) in table {
        let error = relay_error(text);
        assert!(error.starts_with(message), "{error}");
    }
    assert!(worker_error("backend: x").starts_with("backend: unknown field, expected one of "));
}

#[test]
fn generated_files_may_carry_fields_of_a_newer_writer() {
    let text = "generatedBy: operator 9\nshape: round\nqueue: { maxRequests: 5, colour: [red, { a: 1 }] }";
    let parsed = RelayConfig::parse(text).unwrap();
    assert_eq!(parsed.ignored, ["shape", "queue.colour"]);
    assert_eq!(parsed.config.queue.max_requests, 5);
    let strict = RelayConfig::parse_strictly(text).unwrap_err();
    assert!(matches!(strict, ConfigError::UnknownField { path, .. } if path == "shape"));

    let parsed = WorkerConfig::parse("generatedBy: operator 9\ntls: { pins: [] }").unwrap();
    assert_eq!(parsed.ignored, ["tls.pins"]);
}

#[test]
fn an_empty_file_is_not_taken_for_defaults() {
    for text in ["", "\n", "# nothing\n", "---\n", "null"] {
        assert_eq!(RelayConfig::parse(text), Err(ConfigError::Empty), "{text:?}");
    }
}

#[test]
fn wrong_types_are_refused_on_one_line_with_their_path() {
    let table = [
        (
            "queue: { maxRequests: many }",
            "queue.maxRequests: invalid type: string \"many\", expected a whole number",
        ),
        (
            "queue: { maxRequests: -1 }",
            "queue.maxRequests: invalid type: integer `-1`, expected a whole number from 0",
        ),
        ("queue: { maxBytes: 12x }", "queue.maxBytes: \"12x\" is no size"),
        ("queue: { maxBytes: [] }", "queue.maxBytes: invalid type: sequence, expected a size in bytes"),
        (
            "routing: { strategy: Random }",
            "routing.strategy: unknown variant `Random`, expected `LeastLoad` or `PrefixHash`",
        ),
        ("listen: here", "listen: invalid socket address syntax"),
        ("clientKeys: [{ id: a }]", "clientKeys[0]: missing field `sha256`"),
        ("admin: { sha256: abc }", "admin.sha256: is no SHA-256: expected 64 hexadecimal digits"),
        ("queue: {}\nqueue: {}", "duplicate"),
        ("queue: [1]", "queue: invalid type: sequence, expected fields at line 1"),
        ("queue: {", "did not find expected"),
    ];
    for (text, message) in table {
        let error = RelayConfig::parse(text).unwrap_err().to_string();
        assert!(error.contains(message) && !error.contains('\n'), "{text}: {error}");
    }
}

#[test]
fn relay_values_out_of_range_are_refused_by_path() {
    const HASH: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    let table = [
        ("queue: { maxRequests: 0 }", "queue.maxRequests: must be at least 1, is 0"),
        ("queue: { timeoutSeconds: 0 }", "queue.timeoutSeconds: must be at least 1, is 0"),
        ("queue: { timeoutSeconds: 700000 }", "queue.timeoutSeconds: must be at most 604800, is 700000"),
        ("queue: { maxBytes: 1Mi }", "limits.maxBodyBytes: must be at most queue.maxBytes (1Mi), is 64Mi"),
        ("limits: { maxHeadBytes: 1Ki }", "limits.maxHeadBytes: must be at least 8Ki, is 1Ki"),
        ("limits: { responseWindowBytes: 1Gi }", "limits.responseWindowBytes: must be at most 16Mi, is 1Gi"),
        ("drain: { delaySeconds: 9, deadlineSeconds: 5 }", "drain.delaySeconds: must be at most 5, is 9"),
        ("opsListen: 0.0.0.0:8080", "opsListen: must differ from listen, both are 0.0.0.0:8080"),
        ("replicas: 0", "replicas: must be at least 1, is 0"),
        (
            "replicasFrom: relays:8080",
            "replicasFrom: must be a host name such as relay-workers.inference.svc, is \"relays:8080\"",
        ),
        ("readiness: { settleSeconds: 3601 }", "readiness.settleSeconds: must be at most 3600, is 3601"),
        (
            "priorities: [{ name: a, value: 1 }, { name: a, value: 2 }]",
            "priorities[1].name: \"a\" occurs twice",
        ),
        (
            "priorities: [{ name: a, value: 1 }, { name: b, value: 1 }]",
            "priorities[1].value: \"1\" occurs twice",
        ),
        (
            "routing: { prefixHash: { maxLoadPercent: 99 } }",
            "routing.prefixHash.maxLoadPercent: must be at least 100, is 99",
        ),
        (
            "routing: { sessionAffinityHeader: 'a b' }",
            "routing.sessionAffinityHeader: must be a header name such as x-session-id, is \"a b\"",
        ),
        ("models: [{ name: a, targets: [] }]", "models[0].targets: must name at least one target"),
        (
            "models: [{ name: a, targets: [{ model: b, weight: 0 }] }]",
            "models[0].targets: must not all have weight 0",
        ),
        (
            "models: [{ name: ' ', targets: [{ model: b }] }]",
            "models[0].name: must have no outer blanks or control characters, is \" \"",
        ),
        (
            "models: [{ name: a, targets: [{ model: b }] }, { name: a, targets: [{ model: b }] }]",
            "models[1].name: \"a\" occurs twice",
        ),
        (
            "headers: { allow: [Authorization] }",
            "headers.allow[0]: must not cover authorization, which stays in the relay",
        ),
        (
            "headers: { allow: ['a b'] }",
            "headers.allow[0]: must be a header name or a prefix such as acme-*, is \"a b\"",
        ),
        (
            "headers: { allow: ['*'] }",
            "headers.allow[0]: must be a header name or a prefix such as acme-*, is \"*\"",
        ),
        ("cors: { origins: [example.com] }", "cors.origins[0]: must start with http:// or https://"),
        (
            "cors: { origins: ['https://a/'] }",
            "cors.origins[0]: must be scheme, host and port only, is \"https://a/\"",
        ),
        ("tenants: [{ name: a, weight: 0 }]", "tenants[0].weight: must be at least 1, is 0"),
        (
            "clientKeys: [{ id: a_b, sha256: HASH }]",
            "clientKeys[0].id: must be 1 to 64 letters, digits and \"-\", is \"a_b\"",
        ),
        (
            "clientKeys: [{ id: a, sha256: HASH }, { id: a, sha256: HASH }]",
            "clientKeys[1].id: \"a\" occurs twice",
        ),
        (
            "clientKeys: [{ id: a, sha256: HASH, priority: vip }]",
            "clientKeys[0].priority: must be one of priorities (default), is \"vip\"",
        ),
        (
            "clientKeys: [{ id: a, sha256: HASH, tokensPerMinute: 0 }]",
            "clientKeys[0].tokensPerMinute: must be at least 1, is 0",
        ),
        (
            "{ clientAuth: { type: None }, clientKeys: [{ id: a, sha256: HASH }] }",
            "clientAuth.type: None would leave the client port open beside clientKeys; remove one of the two",
        ),
        ("workerCredentials: [{ sha256: HASH, pool: '' }]", "workerCredentials[0].pool: must not be empty"),
        (
            "workerCredentials: [{ sha256: HASH }, { sha256: HASH }]",
            "workerCredentials[1].sha256: \"11111111...\" occurs twice",
        ),
        (
            "workerCredentials: [{ sha256: HASH, models: [a, a] }]",
            "workerCredentials[0].models[1]: \"a\" occurs twice",
        ),
    ];
    for (text, message) in table {
        let text = text.replace("HASH", &format!("\"{HASH}\""));
        assert_eq!(relay_error(&text), message, "{text}");
    }
}

#[test]
fn worker_values_out_of_range_are_refused_by_path() {
    let table = [
        ("{}", "relayUrls: must name at least one relay"),
        ("relayUrls: [relay:8080]", "relayUrls[0]: must start with http:// or https:// or ws:// or wss://"),
        ("relayUrls: ['http://a', 'http://a']", "relayUrls[1]: \"http://a\" occurs twice"),
        (
            "{ relayUrls: ['http://a'], backendUrl: 'ws://b' }",
            "backendUrl: must start with http:// or https://",
        ),
        ("{ relayUrls: ['http://a'], maxConcurrency: 0 }", "maxConcurrency: must be at least 1, is 0"),
        (
            "{ relayUrls: ['http://a'], health: { path: health } }",
            "health.path: must start with \"/\", is \"health\"",
        ),
        (
            "{ relayUrls: ['http://a'], timeouts: { connectSeconds: 0 } }",
            "timeouts.connectSeconds: must be at least 1, is 0",
        ),
    ];
    for (text, message) in table {
        assert_eq!(worker_error(text), message, "{text}");
    }
}

#[test]
fn whole_hashes_are_written_to_files_and_nowhere_else() {
    let config = relay(RELAY_EXAMPLE);
    for digit in ["1", "2", "3"] {
        let hash = digit.repeat(64);
        assert!(config.to_yaml().contains(&hash));
        assert!(!format!("{config:?}").contains(&hash));
        assert!(!config.shown().to_string().contains(&hash));
    }
    assert_eq!(config.shown()["admin"], json!({ "sha256": "33333333..." }));
    assert_eq!(config.client_keys[0].sha256, Sha256Hash([0x11; 32]));
}

#[test]
fn a_weight_that_is_not_given_is_one() {
    let config = relay("models: [{ name: a, targets: [{ model: b }, { model: c }] }]");
    assert_eq!(config.models[0].targets.iter().map(|t| t.weight).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(config.validate(), Ok(()));
}
