//! Children: made, left alone, repaired, refused.

use std::collections::BTreeSet;

use dev_cluster::proxy::{Fault, Rule};
use futures_util::TryStreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use modelrelay_operator::api::ModelRelay;
use modelrelay_operator::apply::Owner;
use modelrelay_operator::cache::Watched;
use modelrelay_operator::naming::Part;
use serde_json::{Value, json};
use std::sync::Arc;

use super::rig::{Rig, relay};
use crate::support::{eventually, is_content};

/// Name and owner's UID of every child of one kind.
async fn owned<K: Watched>(rig: &Rig, uid: &str) -> BTreeSet<String> {
    let listed = rig.place.api::<K>().list(&ListParams::default()).await.unwrap();
    let owned = listed.items.iter().filter(|one| {
        one.owner_references().iter().any(|owner| owner.uid == uid && owner.controller == Some(true))
    });
    owned.map(|one| format!("{}/{}", K::kind(&()), one.name_any())).collect()
}

async fn children(rig: &Rig, uid: &str) -> BTreeSet<String> {
    let mut all = owned::<Deployment>(rig, uid).await;
    all.extend(owned::<Service>(rig, uid).await);
    all.extend(owned::<ServiceAccount>(rig, uid).await);
    all.extend(owned::<Secret>(rig, uid).await);
    all.extend(owned::<PodDisruptionBudget>(rig, uid).await);
    all.extend(owned::<NetworkPolicy>(rig, uid).await);
    all.extend(owned::<HorizontalPodAutoscaler>(rig, uid).await);
    all
}

#[tokio::test]
async fn a_relay_has_all_its_children_and_is_written_once() {
    let Some(rig) = Rig::new().await else { return };
    let uid = rig.relay(json!({})).await.uid().unwrap();
    rig.turn().await.unwrap();
    let expected = [
        "Deployment/main-relay",
        "NetworkPolicy/main-relay",
        "PodDisruptionBudget/main-relay",
        "Secret/main-relay-admin",
        "Secret/main-relay-settings",
        "Service/main",
        "Service/main-relay-workers",
        "ServiceAccount/main-relay",
    ];
    assert_eq!(children(&rig, &uid).await, expected.map(str::to_owned).into());
    let token = rig.secret("main-relay-admin", "token").await;
    assert!(token.starts_with("mr_main_") && !rig.settings().await.contains(&token));

    rig.until("Ready", "False/NoReadyRelay").await;
    let status = rig.get::<ModelRelay>("main").await.unwrap().status.unwrap();
    assert_eq!(status.url.unwrap(), format!("http://main.{}.svc", rig.place.name()));
    assert_eq!(
        status.selector.unwrap(),
        "app.kubernetes.io/instance=main,app.kubernetes.io/name=modelrelay-relay"
    );
    assert_eq!((status.observed_generation, status.ready_replicas), (Some(1), Some(0)));
    rig.settle().await;
    let writes = rig
        .writes(async || {
            for _ in 0..3 {
                let next = rig.turn().await.unwrap();
                assert!(is_content(&next), "{next:?}");
            }
        })
        .await;
    assert_eq!(writes, [""; 0]);
    let made: Vec<_> = rig.events("ModelRelay", "main").await;
    assert!(made.contains(&"Created: Deployment main-relay".to_owned()), "{made:?}");
}

#[tokio::test]
async fn the_first_word_is_that_nothing_is_known() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({})).await;
    let seen = rig.place.api::<ModelRelay>();
    let version = seen.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    rig.turn().await.unwrap();
    let mut events = Box::pin(seen.watch(&WatchParams::default(), &version).await.unwrap());
    let first = events.try_next().await.unwrap();
    let Some(WatchEvent::Modified(relay)) = first else { panic!("{first:?}") };
    let status = relay.status.unwrap();
    let shown: Vec<_> =
        status.conditions.iter().map(|one| (one.type_.as_str(), one.status.as_str())).collect();
    assert_eq!((shown, status.observed_generation), (vec![("Ready", "Unknown")], None));
}

#[tokio::test]
async fn a_spec_that_is_reordered_or_restates_defaults_changes_no_child() {
    let Some(rig) = Rig::new().await else { return };
    let models = |turned: bool| {
        let mut targets = json!([{ "model": "a" }, { "model": "b" }]);
        let mut models = json!([{ "name": "x", "targets": targets.clone() }, { "name": "y", "targets": [{ "model": "c" }] }]);
        if turned {
            targets.as_array_mut().unwrap().reverse();
            models[0]["targets"] = targets;
            models.as_array_mut().unwrap().reverse();
        }
        models
    };
    let sidecar = |name: &str| json!({ "name": name, "image": "registry.example.com/sidecar:1" });
    let tolerated = |key: &str| json!({ "key": key, "operator": "Exists" });
    rig.relay(json!({ "models": models(false), "podTemplate": { "spec": {
        "containers": [sidecar("a"), sidecar("b")],
        "tolerations": [tolerated("c"), tolerated("d")],
        "volumes": [{ "name": "v", "secret": { "secretName": "s" } }],
    } } }))
    .await;
    rig.turn().await.unwrap();
    rig.settle().await;
    let mut spelled_out = sidecar("a");
    spelled_out["imagePullPolicy"] = json!("IfNotPresent");
    spelled_out["terminationMessagePath"] = json!("/dev/termination-log");
    rig.relay(json!({
        "models": models(true),
        "replicas": 2,
        "queue": { "maxRequests": 1000, "maxBytes": "256Mi", "timeoutSeconds": 60 },
        "service": { "type": "ClusterIP", "port": 80 },
        "drainSeconds": 300,
        "podTemplate": { "spec": {
            "terminationGracePeriodSeconds": 315,
            "restartPolicy": "Always",
            "containers": [sidecar("b"), spelled_out],
            "tolerations": [tolerated("d"), tolerated("c")],
            "volumes": [{ "name": "v", "secret": { "secretName": "s", "defaultMode": 420 } }],
        } },
    }))
    .await;
    let writes = rig.turn_writes().await;
    assert_eq!(writes, ["patch modelrelays/status/main"], "observedGeneration");
}

#[tokio::test]
async fn another_image_changes_the_deployment_alone() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({})).await;
    rig.turn().await.unwrap();
    rig.settle().await;
    rig.relay(json!({ "image": { "tag": "0.2.0" } })).await;
    let mut writes = rig.turn_writes().await;
    writes.retain(|write| !write.ends_with("events/-"));
    assert_eq!(writes, ["patch deployments/main-relay", "patch modelrelays/status/main"]);
}

#[tokio::test]
async fn what_is_edited_or_deleted_by_hand_is_put_back_and_foreign_fields_stay() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({})).await;
    rig.turn().await.unwrap();
    let edit = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "relay", "args": ["--help"] }] } } } });
    let deployments = rig.place.api::<Deployment>();
    deployments.patch("main-relay", &PatchParams::default(), &Patch::Strategic(&edit)).await.unwrap();
    let foreign = json!({
        "metadata": { "annotations": { "example.com/note": "mine" } },
        "spec": { "revisionHistoryLimit": 3 },
    });
    rig.patch::<Deployment>("main-relay", &foreign).await;
    rig.patch::<Service>(
        "main",
        &json!({ "spec": { "selector": { "app.kubernetes.io/instance": "other" } } }),
    )
    .await;
    rig.patch::<Secret>("main-relay-settings", &json!({ "data": { "relay.yaml": "e30K" } })).await;
    rig.patch::<PodDisruptionBudget>("main-relay", &json!({ "spec": { "maxUnavailable": 0 } })).await;
    rig.place.api::<ServiceAccount>().delete("main-relay", &DeleteParams::default()).await.unwrap();
    rig.place.api::<NetworkPolicy>().delete("main-relay", &DeleteParams::default()).await.unwrap();
    let writes = rig.turn_writes().await;
    let children: BTreeSet<_> =
        writes.iter().filter(|write| !write.contains("events") && !write.contains("status")).collect();
    assert_eq!(children.len(), 6, "{writes:?}");
    let told = rig.events("ModelRelay", "main").await;
    assert!(told.contains(&"Updated: Deployment main-relay".to_owned()), "{told:?}");

    let live = rig.get::<Deployment>("main-relay").await.unwrap();
    assert_eq!(live.annotations()["example.com/note"], "mine");
    let spec = live.spec.unwrap();
    assert_eq!(spec.revision_history_limit, Some(3));
    assert_eq!(spec.template.spec.unwrap().containers[0].args.as_ref().unwrap()[0], "--config");
    assert!(rig.settings().await.contains("generatedBy"));
    let service = rig.get::<Service>("main").await.unwrap().spec.unwrap();
    assert_eq!(service.selector.unwrap()["app.kubernetes.io/instance"], "main");
    assert!(rig.get::<NetworkPolicy>("main-relay").await.is_some());
    rig.settle().await;
}

#[tokio::test]
async fn an_object_in_the_way_is_left_and_told_of_and_holds_up_no_other() {
    let Some(rig) = Rig::new().await else { return };
    let theirs = json!({ "metadata": { "name": "main" }, "spec": { "ports": [{ "port": 1 }] } });
    let theirs: Service = rig
        .place
        .api()
        .create(&PostParams::default(), &serde_json::from_value(theirs).unwrap())
        .await
        .unwrap();
    rig.relay(json!({})).await;
    rig.turn().await.unwrap_err();
    let (words, message) = rig.condition("Accepted").await;
    assert_eq!(words, "False/NameConflict");
    assert_eq!(message, "Service \"main\" exists and does not belong to this object; rename or delete it");
    assert_eq!(rig.condition("Ready").await.0, "False/NameConflict");
    assert_eq!(rig.get::<Service>("main").await.unwrap().resource_version(), theirs.resource_version());
    assert!(rig.get::<Deployment>("main-relay").await.is_some());
    for _ in 0..3 {
        rig.turn().await.unwrap_err();
    }
    let told: Vec<_> = rig.events("ModelRelay", "main").await;
    assert_eq!(told.iter().filter(|event| event.starts_with("NameConflict")).count(), 1, "{told:?}");
    rig.place.api::<Service>().delete("main", &DeleteParams::default()).await.unwrap();
    rig.until("Accepted", "True/Accepted").await;
}

#[tokio::test]
async fn children_of_an_earlier_relay_of_the_same_name_are_made_anew() {
    let Some(rig) = Rig::new().await else { return };
    let left = json!({ "metadata": {
        "name": "main-relay",
        "labels": { "app.kubernetes.io/managed-by": "modelrelay-operator" },
        "ownerReferences": [{
            "apiVersion": "modelrelay.io/v1alpha1", "kind": "ModelRelay", "name": "main", "uid": "an-earlier-one", "controller": true,
        }],
    } });
    rig.relay(json!({})).await;
    let left: ServiceAccount =
        rig.place.api().create(&PostParams::default(), &serde_json::from_value(left).unwrap()).await.unwrap();
    rig.until("Accepted", "True/Accepted").await;
    let now = rig.get::<ServiceAccount>("main-relay").await.unwrap();
    assert_ne!(now.uid(), left.uid());
}

#[tokio::test]
async fn what_the_api_server_refuses_is_copied_into_accepted() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "service": { "type": "NodePort", "nodePort": 99 } })).await;
    rig.turn().await.unwrap_err();
    let (words, message) = rig.condition("Accepted").await;
    assert_eq!(words, "False/ChildRefused");
    assert!(
        message.contains("Service \"main\"") && message.contains("valid ports is 30000-32767"),
        "{message}"
    );
    assert!(rig.get::<Deployment>("main-relay").await.is_some());
    let told = rig.events("ModelRelay", "main").await;
    assert!(told.iter().any(|event| event.starts_with("ChildRefused")), "{told:?}");
    rig.relay(json!({ "service": { "type": "NodePort" } })).await;
    rig.until("Accepted", "True/Accepted").await;
}

#[tokio::test]
async fn a_protected_field_is_refused_and_the_settings_follow_all_the_same() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({})).await;
    rig.turn().await.unwrap();
    let before = rig.get::<Deployment>("main-relay").await.unwrap();
    rig.relay(json!({
        "retries": { "maxRequeues": 7 },
        "podTemplate": { "spec": { "terminationGracePeriodSeconds": 1 } },
    }))
    .await;
    rig.turn().await.unwrap();
    let (words, message) = rig.condition("Accepted").await;
    assert_eq!(words, "False/ProtectedField");
    assert!(message.starts_with("podTemplate.spec.terminationGracePeriodSeconds"), "{message}");
    assert!(rig.settings().await.contains("maxRequeues: 7"));
    let after = rig.get::<Deployment>("main-relay").await.unwrap();
    assert_eq!(after.metadata.generation, before.metadata.generation);
}

#[tokio::test]
async fn while_it_is_paused_nothing_is_written() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({})).await;
    rig.turn().await.unwrap();
    rig.settle().await;
    let paused = |value: Value| json!({ "metadata": { "annotations": { "modelrelay.io/paused": value } } });
    rig.patch::<ModelRelay>("main", &paused(json!("true"))).await;
    rig.place.api::<Service>().delete("main", &DeleteParams::default()).await.unwrap();
    rig.relay(json!({ "replicas": 1 })).await;
    let writes = rig.turn_writes().await;
    assert_eq!(writes, ["patch modelrelays/status/main"]);
    assert_eq!(rig.condition("Progressing").await.0, "False/Paused");
    let status = rig.get::<ModelRelay>("main").await.unwrap().status.unwrap();
    assert_eq!(status.observed_generation, Some(1));
    rig.patch::<ModelRelay>("main", &paused(Value::Null)).await;
    rig.turn().await.unwrap();
    assert_eq!(rig.condition("Progressing").await.0, "");
    assert!(rig.get::<Service>("main").await.is_some());
    assert_eq!(rig.get::<Deployment>("main-relay").await.unwrap().spec.unwrap().replicas, Some(1));
}

#[tokio::test]
async fn an_autoscaler_takes_over_without_a_replica_less() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "replicas": 5 })).await;
    rig.turn().await.unwrap();
    let deployments = rig.place.api::<Deployment>();
    let listed = deployments.list(&ListParams::default()).await.unwrap();
    let version = listed.metadata.resource_version.unwrap();
    // Not an apply: it would leave what it does not name.
    let mut live = rig.get::<ModelRelay>("main").await.unwrap();
    live.spec = serde_json::from_value(json!({ "scaling": { "minReplicas": 2, "maxReplicas": 6 } })).unwrap();
    rig.place.api::<ModelRelay>().replace("main", &PostParams::default(), &live).await.unwrap();
    for _ in 0..3 {
        rig.turn().await.unwrap();
    }
    let autoscaler = rig.get::<HorizontalPodAutoscaler>("main-relay").await.unwrap().spec.unwrap();
    assert_eq!((autoscaler.min_replicas, autoscaler.max_replicas), (Some(2), 6));
    let wanted = replicas_since(&rig, &version).await;
    assert!(wanted.len() >= 2 && wanted.iter().all(|&replicas| replicas == 5), "{wanted:?}");
    // The autoscaler's own writes stay.
    let scale = json!({ "spec": { "replicas": 3 } });
    deployments.patch_scale("main-relay", &PatchParams::default(), &Patch::Merge(&scale)).await.unwrap();
    rig.settle().await;
    assert_eq!(rig.get::<Deployment>("main-relay").await.unwrap().spec.unwrap().replicas, Some(3));

    rig.replace(json!({ "replicas": 4 })).await;
    rig.turn().await.unwrap();
    assert_eq!(rig.get::<Deployment>("main-relay").await.unwrap().spec.unwrap().replicas, Some(4));
    assert!(rig.get::<HorizontalPodAutoscaler>("main-relay").await.is_none());
    let told = rig.events("ModelRelay", "main").await;
    assert!(told.contains(&"Deleted: HorizontalPodAutoscaler main-relay".to_owned()), "{told:?}");
}

#[tokio::test]
async fn what_only_carries_our_labels_is_not_pruned() {
    let Some(rig) = Rig::new().await else { return };
    let mut theirs = json!({
        "metadata": { "name": "main-relay-night", "labels": Part::Relay.labels("main") },
        "spec": { "maxReplicas": 2, "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "main-relay" } },
    });
    let autoscalers = rig.place.api::<HorizontalPodAutoscaler>();
    let create = async |autoscaler: &Value| {
        let autoscaler = serde_json::from_value(autoscaler.clone()).unwrap();
        autoscalers.create(&PostParams::default(), &autoscaler).await.unwrap();
    };
    let relay = rig.relay(json!({})).await;
    create(&theirs).await;
    theirs["metadata"]["name"] = json!("main-relay-left");
    theirs["metadata"]["ownerReferences"] = json!([Owner::of(&relay).reference()]);
    create(&theirs).await;
    rig.turn().await.unwrap();
    let left = autoscalers.list(&ListParams::default()).await.unwrap();
    let left: Vec<_> = left.iter().map(|one| one.name_any()).collect();
    assert_eq!(left, ["main-relay-night"], "what is its own and not wanted goes");
}

#[tokio::test]
async fn namespaces_cannot_be_selected_where_they_cannot_be_read() {
    let Some(rig) = Rig::new().await else { return };
    let from = |namespaces: Value| json!({ "allowedWorkerPools": { "namespaces": namespaces } });
    rig.relay(from(json!({ "from": "Selector", "selector": {} }))).await;
    let message = rig.until("Accepted", "False/NamespacesNotReadable").await;
    assert!(message.contains("install it for the whole cluster"), "{message}");
    assert_eq!(rig.condition("Ready").await.0, "False/NamespacesNotReadable");
    assert!(rig.get::<Secret>("main-relay-settings").await.is_none(), "nobody knows whom to let in");
    rig.replace(from(json!({ "from": "All" }))).await;
    rig.until("Accepted", "True/Accepted").await;
    assert!(rig.get::<Secret>("main-relay-settings").await.is_some());
}

/// Every number of replicas that the Deployment was to have since a version.
async fn replicas_since(rig: &Rig, version: &str) -> Vec<i32> {
    // What comes after this mark comes after all of it.
    let mark = format!("after-{version}");
    rig.patch::<Deployment>("main-relay", &json!({ "metadata": { "annotations": { "mark": mark } } })).await;
    let deployments = rig.place.api::<Deployment>();
    let mut events = Box::pin(deployments.watch(&WatchParams::default(), version).await.unwrap());
    let mut wanted = Vec::new();
    while let Some(event) = events.try_next().await.unwrap() {
        let WatchEvent::Modified(deployment) = event else { panic!("{event:?}") };
        let last = deployment.annotations().get("mark") == Some(&mark);
        wanted.push(deployment.spec.unwrap().replicas.unwrap());
        if last {
            break;
        }
    }
    wanted
}

#[tokio::test]
async fn an_operator_that_is_cut_off_while_it_hands_over_takes_no_replica_away() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "replicas": 5 })).await;
    rig.turn().await.unwrap();
    let faults = [Fault::BreakBefore, Fault::BreakAfter];
    for (fault, nth) in faults.into_iter().flat_map(|fault| (1..=4).map(move |nth| (fault, nth))) {
        rig.settle().await;
        let listed = rig.place.api::<Deployment>().list(&ListParams::default()).await.unwrap();
        let version = listed.metadata.resource_version.unwrap();
        rig.replace(json!({ "scaling": { "minReplicas": 2, "maxReplicas": 6 } })).await;
        let hits =
            rig.proxy.add(Rule::new(fault, |call| call.writes() && call.resource != "events").nth(nth));
        let _ = rig.turn().await;
        assert_eq!(hits.count(), 1, "{fault:?} {nth}");
        rig.proxy.clear();
        eventually("a look without an error", async || rig.turn().await.ok()).await;
        rig.settle().await;
        let wanted = replicas_since(&rig, &version).await;
        assert!(wanted.iter().all(|&replicas| replicas == 5), "{fault:?} {nth}: {wanted:?}");
        assert!(rig.get::<HorizontalPodAutoscaler>("main-relay").await.is_some());
        rig.replace(json!({ "replicas": 5 })).await;
        rig.turn().await.unwrap();
    }
}

#[tokio::test]
async fn a_relay_that_begins_with_an_autoscaler_begins_with_its_minimum() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({ "scaling": { "minReplicas": 3, "maxReplicas": 6 } })).await;
    rig.turn().await.unwrap();
    rig.settle().await;
    assert_eq!(rig.get::<Deployment>("main-relay").await.unwrap().spec.unwrap().replicas, Some(3));
    assert!(rig.get::<HorizontalPodAutoscaler>("main-relay").await.is_some());
}

#[tokio::test]
async fn settings_that_are_too_large_leave_the_last_good_ones() {
    let Some(rig) = Rig::new().await else { return };
    rig.relay(json!({})).await;
    rig.turn().await.unwrap();
    let good = rig.settings().await;
    let target = |n: usize| json!({ "model": format!("{n:02}{}", "m".repeat(250)) });
    let targets: Vec<_> = (0..14).map(target).collect();
    let models: Vec<_> = (0..256).map(|n| json!({ "name": format!("m{n}"), "targets": targets })).collect();
    rig.replace(json!({ "models": models })).await;
    rig.turn().await.unwrap();
    assert_eq!(rig.condition("Accepted").await.0, "False/SettingsTooLarge");
    assert_eq!(rig.settings().await, good);
}

#[tokio::test]
async fn two_leaders_for_a_moment_make_one_token() {
    let Some(rig) = Rig::new().await else { return };
    let other = Rig::in_place(rig.place.clone()).await;
    rig.relay(json!({})).await;
    rig.catch_up().await;
    other.catch_up().await;
    let see = |rig: &Rig| rig.context.caches.model_relays.get(rig.place.name(), "main").unwrap();
    // Neither has seen what the other does.
    let (one, two) = (see(&rig), see(&other));
    let _ = tokio::join!(
        Box::pin(modelrelay_operator::model_relay::reconcile(one, rig.context.clone())),
        Box::pin(modelrelay_operator::model_relay::reconcile(two, other.context.clone())),
    );
    rig.turn().await.unwrap();
    other.turn().await.unwrap();
    let hash = modelrelay_operator::generated::sha256(&rig.secret("main-relay-admin", "token").await);
    assert!(rig.settings().await.contains(&hash.to_hex()));
    rig.settle().await;
    other.settle().await;
}

#[tokio::test]
async fn its_pods_are_let_in_where_pod_security_is_restricted() {
    let Some(rig) = Rig::new().await else { return };
    let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> =
        kube::Api::all(rig.place.client.clone());
    let enforce = json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "restricted" } } });
    namespaces.patch(rig.place.name(), &PatchParams::default(), &Patch::Merge(&enforce)).await.unwrap();
    rig.relay(json!({ "replicas": 2 })).await;
    rig.turn().await.unwrap();
    let labels = "app.kubernetes.io/name=modelrelay-relay";
    eventually("two pods", async || {
        let pods = rig.place.api::<Pod>().list(&ListParams::default().labels(labels)).await.unwrap();
        (pods.items.len() == 2).then_some(())
    })
    .await;
    rig.turn().await.unwrap();
    assert_eq!(rig.get::<ModelRelay>("main").await.unwrap().status.unwrap().replicas, Some(2));
    // One that asks for more is not, and the status says so.
    rig.relay(json!({ "podTemplate": { "spec": { "hostNetwork": true } } })).await;
    let message = rig.until("Available", "False/PodsRefused").await;
    assert!(message.contains("hostNetwork"), "{message}");
}

#[tokio::test]
async fn a_relay_that_goes_takes_its_children_with_it() {
    let Some(rig) = Rig::new().await else { return };
    let uid = rig.relay(json!({})).await.uid().unwrap();
    rig.turn().await.unwrap();
    rig.place.api::<ModelRelay>().delete("main", &DeleteParams::default()).await.unwrap();
    eventually("every child to be gone", async || children(&rig, &uid).await.is_empty().then_some(())).await;
    // Another one of that name is not confused with it.
    let created: Arc<ModelRelay> = Arc::new(rig.place.apply(&relay(json!({}))).await);
    rig.until("Accepted", "True/Accepted").await;
    assert_eq!(children(&rig, &created.uid().unwrap()).await.len(), 8);
}
