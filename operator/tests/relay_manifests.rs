//! What a ModelRelay becomes, as manifests that people can read. `UPDATE_GOLDEN=1` writes them anew.

#![allow(clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use modelrelay_operator::api::yaml::to_yaml;
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use modelrelay_operator::cache::Scope;
use modelrelay_operator::model_relay::apply::Prepared;
use modelrelay_operator::model_relay::build::settings::FILE;
use modelrelay_operator::model_relay::build::{Resources, resources};
use modelrelay_operator::model_relay::fetch::{PoolToken, References};
use modelrelay_operator::model_relay::validate::{Valid, validate};
use modelrelay_operator::options::Options;
use modelrelay_protocol::config::RelayConfig;

fn options() -> Options {
    Options {
        scope: Scope::Cluster,
        pod_name: None,
        namespace: "modelrelay-system".to_owned(),
        relay_image: "registry.example/modelrelay-relay:0.1.0".to_owned(),
        worker_image: "registry.example/modelrelay-worker:0.1.0".to_owned(),
        image_pull_secrets: vec!["registry".to_owned()],
    }
}

fn relay(spec: &str) -> ModelRelay {
    let text = format!(
        "apiVersion: modelrelay.io/v1alpha1\nkind: ModelRelay\nmetadata: {{ name: main, namespace: inference, uid: u-1 }}\nspec:\n{spec}"
    );
    serde_yaml::from_str(&text).unwrap()
}

fn pool(namespace: &str, name: &str, spec: &str, token: &str) -> PoolToken {
    let text = format!(
        "{{ apiVersion: modelrelay.io/v1alpha1, kind: WorkerPool, metadata: {{ name: {name}, namespace: {namespace} }}, spec: {{ relayRef: {{ name: main }}, {spec} }} }}"
    );
    let pool: WorkerPool = serde_yaml::from_str(&text).unwrap();
    PoolToken { pool: Arc::new(pool), token: token.to_owned() }
}

fn client_key(name: &str, data: &[(&str, &str)]) -> Arc<Secret> {
    let mut secret = Secret::default();
    secret.metadata.name = Some(name.to_owned());
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString((*value).into())));
    secret.data = Some(data.collect());
    Arc::new(secret)
}

const MINIMAL: &str = "  {}\n";

const FULL: &str = r#"
  scaling: { minReplicas: 2, maxReplicas: 6, targetCPUPercent: 60 }
  image: { repository: mirror.example/relay, tag: "1.2", pullPolicy: Always }
  podTemplate:
    metadata: { labels: { team: inference }, annotations: { note: kept } }
    spec:
      priorityClassName: serving
      nodeSelector: { pool: cpu }
      containers:
        - name: relay
          resources: { requests: { cpu: "2" }, limits: { memory: 1Gi } }
          env: [{ name: LOG_LEVEL, value: debug }]
        - name: proxy
          image: proxy:1
  service: { type: NodePort, port: 8000, nodePort: 30080, annotations: { example.com/lb: internal } }
  exposure: { externalURL: "https://relay.example.com" }
  queue: { maxRequests: 50, maxBytes: 512Mi, timeoutSeconds: 20, noWorkerTimeoutSeconds: 5, keepAliveSeconds: 15 }
  priorities: [{ name: batch, value: -10 }, { name: interactive, value: 100 }]
  routing: { strategy: PrefixHash, prefixHash: { prefixBytes: 2048, maxLoadPercent: 150 }, sessionAffinityHeader: x-session-id }
  retries: { maxRequeues: 1 }
  timeouts: { firstByteSeconds: 10, streamIdleSeconds: 20, requestSeconds: 30 }
  drainSeconds: 60
  models:
    - { name: gpt-4o-mini, targets: [{ model: qwen3-next, weight: 10 }, { model: qwen3-30b, weight: 90 }] }
    - { name: embed, targets: [{ model: bge }] }
  clientAuth: { type: APIKeys }
  limits: { maxBodyBytes: 32Mi }
  allowedWorkerPools: { namespaces: { from: All } }
"#;

fn full() -> References {
    References {
        pools: vec![
            pool(
                "lab",
                "boxes",
                "type: External, models: [b, a], maxConcurrentRequests: 2, external: { maxWorkers: 5 }",
                "mr_boxes_1",
            ),
            pool(
                "inference",
                "a100",
                "labels: { zone: onprem }, backend: { url: \"http://x\" }",
                "mr_a100_1",
            ),
        ],
        client_keys: vec![
            client_key("web", &[("key", "mr_web_1"), ("priority", "interactive"), ("models", "gpt-4o-mini")]),
            client_key("batch", &[("key", "mr_batch_1"), ("tenant", "nightly"), ("requestsPerMinute", "60")]),
        ],
        namespaces_hidden: false,
    }
}

fn prepared() -> Prepared {
    Prepared { admin: Some("mr_main_1".to_owned()), ipv6: false }
}

fn checked(spec: &str, references: &References) -> Valid {
    validate(&relay(spec), references, &prepared(), &options())
}

fn built(spec: &str, references: &References) -> Resources {
    let valid = checked(spec, references);
    assert_eq!((&valid.refused, &valid.unresolved), (&None, &Vec::new()));
    resources(&relay(spec), &valid, &options())
}

fn text_of(secret: &Secret) -> String {
    String::from_utf8(secret.data.as_ref().unwrap()[FILE].0.clone()).unwrap()
}

/// Every child as one YAML file, the settings in clear.
fn manifests(resources: Resources) -> String {
    let Resources {
        service_account,
        settings,
        client_service,
        workers_service,
        network_policy,
        disruption_budget,
        deployment,
        autoscaler,
    } = resources;
    let settings = settings.map(|mut secret| {
        let text = text_of(&secret);
        secret.data = None;
        format!(
            "{}# {FILE}:\n{}",
            to_yaml(&secret),
            text.lines().map(|line| format!("#   {line}\n")).collect::<String>()
        )
    });
    let documents = [
        Some(to_yaml(&service_account)),
        settings,
        Some(to_yaml(&client_service)),
        Some(to_yaml(&workers_service)),
        Some(to_yaml(&network_policy)),
        Some(to_yaml(&disruption_budget)),
        deployment.as_ref().map(to_yaml),
        autoscaler.as_ref().map(to_yaml),
    ];
    documents.into_iter().flatten().collect::<Vec<_>>().join("---\n")
}

fn matches_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{name} differs; if that is right: UPDATE_GOLDEN=1 cargo test");
}

#[test]
fn a_minimal_relay_becomes_these_manifests() {
    matches_golden("relay-minimal.yaml", &manifests(built(MINIMAL, &References::default())));
}

#[test]
fn a_full_relay_becomes_these_manifests() {
    matches_golden("relay-full.yaml", &manifests(built(FULL, &full())));
}

#[test]
fn relays_take_the_settings_and_find_no_secret_in_them() {
    let resources = built(FULL, &full());
    let text = text_of(resources.settings.as_ref().unwrap());
    let config = RelayConfig::parse_strictly(&text).unwrap();
    config.validate().unwrap();
    assert_eq!((config.client_keys.len(), config.worker_credentials.len()), (2, 2));
    assert!(!text.contains("mr_"), "{text}");
}

#[test]
fn the_order_of_lists_and_restated_defaults_change_nothing() {
    let reordered = r#"
  queue: { maxRequests: 1000, timeoutSeconds: 60, noWorkerTimeoutSeconds: 60, keepAliveSeconds: 0, maxBytes: 268435456 }
  replicas: 2
  priorities: [{ name: a, value: 1 }, { name: b, value: 2 }]
  models: [{ name: y, targets: [{ model: 2, weight: 1 }, { model: 1 }] }, { name: x, targets: [{ model: 1 }] }]
  service: { type: ClusterIP, port: 80 }
  image: { pullPolicy: IfNotPresent }
  routing: { strategy: LeastLoad }
  retries: { maxRequeues: 3 }
  timeouts: { firstByteSeconds: 300, streamIdleSeconds: 120, requestSeconds: 0 }
  drainSeconds: 300
  clientAuth: { type: None }
  limits: { maxBodyBytes: 64Mi }
  podTemplate: { spec: { terminationGracePeriodSeconds: 315 } }
"#;
    let plain = r#"
  priorities: [{ name: b, value: 2 }, { name: a, value: 1 }]
  models: [{ name: x, targets: [{ model: 1 }] }, { name: y, targets: [{ model: 1 }, { model: 2 }] }]
"#;
    let (reordered, plain) = (reordered.replace("model: ", "model: m"), plain.replace("model: ", "model: m"));
    assert_eq!(built(&reordered, &References::default()), built(&plain, &References::default()));
    let mut turned = full();
    turned.pools.reverse();
    turned.client_keys.reverse();
    assert_eq!(built(FULL, &turned), built(FULL, &full()));
}

#[test]
fn changed_settings_leave_the_pod_template_alone() {
    let one = built(MINIMAL, &References::default());
    let other = "  queue: { maxRequests: 5 }\n  priorities: [{ name: interactive, value: 1 }]\n  clientAuth: { type: APIKeys }\n";
    let other = built(other, &full());
    assert_ne!(one.settings, other.settings);
    assert_eq!(one.deployment, other.deployment);
}

#[test]
fn an_operator_of_another_version_replaces_relays_that_name_no_image() {
    let deployment = |version: &str, spec: &str| {
        let options = Options { relay_image: format!("relay:{version}"), ..options() };
        let (relay, references) = (relay(spec), References::default());
        resources(&relay, &validate(&relay, &references, &prepared(), &options), &options).deployment
    };
    assert_ne!(deployment("1", MINIMAL), deployment("2", MINIMAL));
    let pinned = "  image: { repository: mirror, tag: \"1\" }\n";
    assert_eq!(deployment("1", pinned), deployment("2", pinned));
}

#[test]
fn clusters_with_ipv6_get_relays_that_listen_on_both() {
    let both = Prepared { ipv6: true, ..prepared() };
    let valid = validate(&relay(MINIMAL), &References::default(), &both, &options());
    let config = RelayConfig::parse_strictly(&valid.settings.unwrap().text).unwrap();
    assert_eq!(
        (config.listen.to_string(), config.ops_listen.to_string()),
        ("[::]:8080".into(), "[::]:8081".into())
    );
}

#[test]
fn asking_for_keys_closes_the_port_even_without_any() {
    let valid = checked("  clientAuth: { type: APIKeys }\n", &References::default());
    let text = valid.settings.unwrap().text;
    assert!(text.contains("clientAuth:\n  type: APIKeys\n"), "{text}");
}

/// Reason and message of what is refused and unresolved.
fn problems(valid: &Valid) -> (Option<String>, Vec<String>) {
    let shown = |problem: &modelrelay_operator::model_relay::validate::Problem| {
        format!("{}: {}", problem.reason, problem.message)
    };
    (valid.refused.as_ref().map(shown), valid.unresolved.iter().map(shown).collect())
}

#[test]
fn what_is_wrong_with_a_spec_is_named_and_holds_up_nothing_else() {
    let valid = checked("  podTemplate: { spec: { restartPolicy: Never } }\n", &References::default());
    let refused = "ProtectedField: podTemplate.spec.restartPolicy is set by the operator and cannot be overridden; remove it there";
    assert_eq!(problems(&valid), (Some(refused.to_owned()), vec![]));
    assert!(valid.settings.is_some() && valid.template.is_none());

    let valid = checked("  queue: { maxBytes: 1Mi }\n", &References::default());
    let refused = "Invalid: limits.maxBodyBytes: must be at most queue.maxBytes (1Mi), is 64Mi";
    assert_eq!(problems(&valid), (Some(refused.to_owned()), vec![]));
    assert!(valid.settings.is_none() && valid.template.is_some());

    let hidden = References { namespaces_hidden: true, ..References::default() };
    let valid = checked(MINIMAL, &hidden);
    assert_eq!(valid.refused.unwrap().reason, "NamespacesNotReadable");
    assert!(valid.settings.is_none() && valid.template.is_some());
}

#[test]
fn settings_that_no_secret_can_hold_are_refused() {
    let keys = (0..12_000).map(|n| client_key(&format!("k{n}"), &[("key", &format!("mr_k{n}_1"))])).collect();
    let many = References { client_keys: keys, ..References::default() };
    let valid = checked("  clientAuth: { type: APIKeys }\n", &many);
    assert_eq!(valid.refused.unwrap().reason, "SettingsTooLarge");
    assert!(valid.settings.is_none() && valid.template.is_some());
}

#[test]
fn unusable_keys_and_credentials_are_left_out_and_named() {
    let references = References {
        pools: vec![
            pool("a", "one", "backend: { url: \"http://x\" }", "mr_same_1"),
            pool("b", "two", "backend: { url: \"http://x\" }", "mr_same_1"),
            pool("c", "three", "backend: { url: \"http://x\" }, models: [\" x\"]", "mr_three_1"),
        ],
        client_keys: vec![client_key("bad", &[("key", "hunter2")]), client_key("good", &[("key", "mr_a_b")])],
        namespaces_hidden: false,
    };
    let spec = "  clientAuth: { type: APIKeys }\n";
    let valid = validate(&relay(spec), &references, &Prepared::default(), &options());
    let (refused, unresolved) = problems(&valid);
    assert_eq!(refused, None);
    assert_eq!(
        unresolved,
        [
            "InvalidSecret: Secret \"main-relay-admin\" does not hold a token of the form mr_<id>_<secret> under \"token\"; delete it, and a new one is made",
            "InvalidClientKey: these hold no usable client key: Secret \"bad\": key: must have the form mr_<id>_<secret>, as `modelrelay-relay key new` prints it",
            "InvalidSecret: WorkerPool \"b/two\" is left out: it has the same token as \"a/one\"; delete its Secret, and a new one is made",
            "Invalid: WorkerPool \"c/three\" is left out: models[0]: must have no outer blanks or control characters, is \" x\"",
        ]
    );
    let config = RelayConfig::parse_strictly(&valid.settings.unwrap().text).unwrap();
    let pools: Vec<_> = config.worker_credentials.iter().map(|one| one.pool.as_str()).collect();
    assert_eq!((config.client_keys.len(), pools, config.admin.sha256), (1, vec!["one"], None));
}

#[test]
fn every_pod_port_and_label_fits_together() {
    let resources = built(MINIMAL, &References::default());
    let deployment = resources.deployment.unwrap().spec.unwrap();
    let labels = deployment.template.metadata.unwrap().labels.unwrap();
    let includes = |selector: &BTreeMap<String, String>| {
        selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    assert!(includes(deployment.selector.match_labels.as_ref().unwrap()));
    assert!(includes(&resources.client_service.spec.unwrap().selector.unwrap()));
    assert!(includes(&resources.workers_service.spec.unwrap().selector.unwrap()));
    assert!(includes(&resources.network_policy.spec.unwrap().pod_selector.unwrap().match_labels.unwrap()));
    assert!(includes(&resources.disruption_budget.spec.unwrap().selector.unwrap().match_labels.unwrap()));
}
