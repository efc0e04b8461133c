//! Client keys and the credentials of pools: what Secrets say becomes the relay's settings.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, PostParams};
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use modelrelay_operator::apply::Owner;
use modelrelay_operator::generated::{Token, sha256};
use modelrelay_operator::naming::Part;
use modelrelay_protocol::config::RelayConfig;
use serde_json::{Value, json};

use super::rig::Rig;

impl Rig {
    pub(super) async fn key(&self, name: &str, data: Value) -> Secret {
        let object = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": name, "labels": { "modelrelay.io/client-key": "main" } },
            "stringData": data,
        });
        self.place.apply(&object).await
    }

    async fn config(&self) -> RelayConfig {
        RelayConfig::parse_strictly(&self.settings().await).unwrap()
    }

    /// `id hash` of each key that the settings hold.
    async fn keys(&self) -> Vec<String> {
        let keys = self.config().await.client_keys;
        keys.iter().map(|key| format!("{} {}", key.id, key.sha256.to_hex())).collect()
    }

    async fn delete_secret(&self, name: &str) {
        self.place.api::<Secret>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// A pool with the Secret that its own reconcile would make.
    async fn pool(&self, name: &str, spec: Value, secret: &str) -> Token {
        let object = json!({
            "apiVersion": "modelrelay.io/v1alpha1", "kind": "WorkerPool", "metadata": { "name": name }, "spec": spec,
        });
        let pool: WorkerPool = self.place.apply(&object).await;
        let token = Token::new(name);
        let mut secret = token.clone().into_secret(secret.to_owned(), Part::Worker.labels(name));
        secret.metadata.owner_references = Some(vec![Owner::of(&pool).reference()]);
        self.place.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
        token
    }
}

fn shown(id: &str, key: &str) -> String {
    format!("{id} {}", sha256(key).to_hex())
}

#[tokio::test]
async fn keys_come_change_and_go_with_their_secrets() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "clientAuth": { "type": "APIKeys" } })).await;
    rig.turn().await.unwrap();
    assert!(rig.settings().await.contains("type: APIKeys") && rig.keys().await.is_empty());

    rig.key("one", json!({ "key": "mr_one_1", "tenant": "team-a" })).await;
    rig.key("two", json!({ "key": "mr_two_1" })).await;
    rig.turn().await.unwrap();
    assert_eq!(rig.keys().await, [shown("one", "mr_one_1"), shown("two", "mr_two_1")]);
    assert_eq!(rig.config().await.client_keys[0].tenant.as_deref(), Some("team-a"));
    assert_eq!(rig.condition("ResolvedRefs").await.0, "True/Resolved");

    rig.key("one", json!({ "key": "mr_one_2" })).await;
    rig.turn().await.unwrap();
    assert_eq!(rig.keys().await, [shown("one", "mr_one_2"), shown("two", "mr_two_1")]);

    rig.delete_secret("two").await;
    rig.turn().await.unwrap();
    assert_eq!(rig.keys().await, [shown("one", "mr_one_2")]);
    rig.delete_secret("one").await;
    rig.turn().await.unwrap();
    assert!(rig.settings().await.contains("type: APIKeys") && rig.keys().await.is_empty());

    // Without clientAuth nobody needs one, and the port is said to be open.
    rig.key("three", json!({ "key": "mr_three_1" })).await;
    rig.relay(json!({})).await;
    rig.turn().await.unwrap();
    assert!(rig.settings().await.contains("type: None") && rig.keys().await.is_empty());
}

#[tokio::test]
async fn a_malformed_key_is_told_of_without_being_shown_and_harms_no_other() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "clientAuth": { "type": "APIKeys" } })).await;
    rig.key("good", json!({ "key": "mr_good_1" })).await;
    rig.key("bad", json!({ "key": "sk-hunter2" })).await;
    for _ in 0..3 {
        rig.turn().await.unwrap();
    }
    assert_eq!(rig.keys().await, [shown("good", "mr_good_1")]);
    let (words, message) = rig.condition("ResolvedRefs").await;
    assert_eq!(words, "False/InvalidClientKey");
    assert!(message.contains("Secret \"bad\": key: must have the form mr_<id>_<secret>"), "{message}");
    let told = rig.events("Secret", "bad").await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("InvalidClientKey: "));
    let relay = serde_json::to_string(&rig.get::<ModelRelay>("main").await.unwrap()).unwrap();
    let events = rig.events("ModelRelay", "main").await.join("\n");
    let everything = [relay, events, told.join("\n"), rig.settings().await].join("\n");
    for secret in ["hunter2", "mr_good_1"] {
        assert!(!everything.contains(secret), "{everything}");
    }
    rig.key("bad", json!({ "key": "mr_bad_1" })).await;
    rig.turn().await.unwrap();
    assert_eq!(rig.condition("ResolvedRefs").await.0, "True/Resolved");
    assert_eq!(rig.keys().await.len(), 2);
}

#[tokio::test]
async fn of_two_keys_with_one_id_the_older_secret_counts() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "clientAuth": { "type": "APIKeys" } })).await;
    // Made within the same second, the first by name is the older one.
    rig.key("a", json!({ "key": "mr_app_1" })).await;
    rig.key("b", json!({ "key": "mr_app_2" })).await;
    rig.turn().await.unwrap();
    assert_eq!(rig.keys().await, [shown("app", "mr_app_1")]);
    let (words, message) = rig.condition("ResolvedRefs").await;
    assert_eq!(words, "False/InvalidClientKey");
    assert!(message.contains("Secret \"b\": key: the id \"app\" is taken by Secret \"a\""), "{message}");
    rig.delete_secret("a").await;
    rig.turn().await.unwrap();
    assert_eq!(rig.keys().await, [shown("app", "mr_app_2")]);
}

#[tokio::test]
async fn keys_of_other_relays_are_left_alone() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "clientAuth": { "type": "APIKeys" } })).await;
    let label = |value: &str| json!({ "metadata": { "labels": { "modelrelay.io/client-key": value } } });
    rig.key("moves", json!({ "key": "mr_moves_1" })).await;
    rig.patch::<Secret>("moves", &label("other")).await;
    rig.turn().await.unwrap();
    assert!(rig.keys().await.is_empty());
    rig.patch::<Secret>("moves", &label("main")).await;
    rig.turn().await.unwrap();
    assert_eq!(rig.keys().await.len(), 1);
}

#[tokio::test]
async fn pools_become_credentials_that_say_what_their_removal_means() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "exposure": { "externalURL": "https://relay.example.com" } })).await;
    let managed = json!({
        "relayRef": { "name": "main" }, "models": ["b", "a"], "labels": { "zone": "x" }, "backend": { "url": "http://127.0.0.1:1" },
    });
    let external =
        json!({ "relayRef": { "name": "main" }, "type": "External", "external": { "maxWorkers": 3 } });
    let gpu = rig.pool("gpu", managed, "gpu-worker-credential").await;
    let boxes = rig.pool("boxes", external, "boxes-join").await;
    rig.turn().await.unwrap();
    let text = rig.settings().await;
    assert!(!text.contains(gpu.expose()) && !text.contains(boxes.expose()));
    let credentials = rig.config().await.worker_credentials;
    let shown: Vec<_> = credentials
        .iter()
        .map(|one| {
            (one.pool.as_str(), one.namespace.as_deref(), one.max_workers, format!("{:?}", one.on_removal))
        })
        .collect();
    let namespace = Some(rig.place.name());
    assert_eq!(
        shown,
        [
            ("boxes", namespace, Some(3), "Disconnect".to_owned()),
            ("gpu", namespace, None, "Drain".to_owned()),
        ]
    );
    assert_eq!(credentials[1].sha256, sha256(gpu.expose()));
    assert_eq!(credentials[1].models, ["a", "b"]);

    // A new token replaces the old one; a pool that goes is withdrawn.
    let secrets = rig.place.api::<Secret>();
    let mut rotated = secrets.get("gpu-worker-credential").await.unwrap();
    let fresh = Token::new("gpu");
    rotated.data = fresh.clone().into_secret(String::new(), Part::Worker.labels("gpu")).data;
    secrets.replace("gpu-worker-credential", &PostParams::default(), &rotated).await.unwrap();
    rig.place.api::<WorkerPool>().delete("boxes", &DeleteParams::default()).await.unwrap();
    rig.turn().await.unwrap();
    let credentials = rig.config().await.worker_credentials;
    assert_eq!(credentials.len(), 1);
    assert_eq!(credentials[0].sha256, sha256(fresh.expose()));
}

#[tokio::test]
async fn a_secret_that_a_pool_does_not_own_is_not_its_credential() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({})).await;
    let spec = json!({ "relayRef": { "name": "main" }, "backend": { "url": "http://127.0.0.1:1" } });
    rig.pool("gpu", spec, "gpu-worker-credential").await;
    rig.patch::<Secret>("gpu-worker-credential", &json!({ "metadata": { "ownerReferences": null } })).await;
    rig.turn().await.unwrap();
    assert!(rig.config().await.worker_credentials.is_empty());
    let relay = rig.get::<ModelRelay>("main").await.unwrap();
    assert!(relay.annotations().is_empty());
}
