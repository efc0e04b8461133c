//! Writing children: whose they are, what is repaired, and what is left alone.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use modelrelay_operator::apply::{ApplyError, Change, Owner};
use modelrelay_operator::cache::{Scope, caches};
use modelrelay_operator::context::Context;
use modelrelay_operator::metrics::Metrics;
use modelrelay_operator::triggers::Triggers;
use serde_json::{Value, json};

use crate::support::{Place, eventually, options};

/// What a reconciler has at its very start: no watch has told anything yet, so all is read from the API server.
fn context(place: &Place) -> Context {
    let scope = Scope::Namespaces(vec![place.name().to_owned()]);
    let (caches, _feeds) = caches(&place.client, &scope);
    let triggers = Arc::new(Triggers::new(&scope));
    Context::new(place.client.clone(), Arc::new(caches), triggers, options(scope), Metrics::new())
}

/// Any object can own others; a ConfigMap needs no controller.
async fn owner(place: &Place, name: &str) -> Owner {
    let object: ConfigMap =
        place.apply(&json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } })).await;
    Owner::of(&object)
}

fn service(port: i32, annotations: &Value) -> Service {
    serde_json::from_value(json!({
        "metadata": { "name": "child", "annotations": annotations },
        "spec": { "selector": { "app": "x" }, "ports": [{ "name": "http", "port": port, "targetPort": "http" }] },
    }))
    .unwrap()
}

#[tokio::test]
async fn what_is_as_it_should_be_is_not_written_again() {
    let Some(place) = Place::new("apply").await else { return };
    let (context, owner) = (context(&place), owner(&place, "owner").await);
    assert_eq!(context.apply(&owner, service(80, &json!({}))).await.unwrap(), Change::Created);
    let made = place.api::<Service>().get("child").await.unwrap();
    assert_eq!(made.owner_references(), [owner.reference()]);
    assert_eq!(context.apply(&owner, service(80, &json!({}))).await.unwrap(), Change::None);
    let again = place.api::<Service>().get("child").await.unwrap();
    assert_eq!(made.resource_version(), again.resource_version());
}

#[tokio::test]
async fn edits_by_hand_are_undone_and_fields_of_others_are_left() {
    let Some(place) = Place::new("apply").await else { return };
    let (context, owner) = (context(&place), owner(&place, "owner").await);
    context.apply(&owner, service(80, &json!({}))).await.unwrap();
    let services = place.api::<Service>();
    let edit =
        json!({ "spec": { "selector": { "app": "y" } }, "metadata": { "annotations": { "theirs": "1" } } });
    services.patch("child", &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
    assert_eq!(context.apply(&owner, service(80, &json!({}))).await.unwrap(), Change::Updated);
    let repaired = services.get("child").await.unwrap();
    assert_eq!(repaired.spec.clone().unwrap().selector.unwrap()["app"], "x");
    assert_eq!(repaired.annotations()["theirs"], "1");
    assert_eq!(context.apply(&owner, service(80, &json!({}))).await.unwrap(), Change::None);
}

#[tokio::test]
async fn a_field_that_is_no_longer_wanted_goes() {
    let Some(place) = Place::new("apply").await else { return };
    let (context, owner) = (context(&place), owner(&place, "owner").await);
    context.apply(&owner, service(80, &json!({ "ours": "1" }))).await.unwrap();
    assert_eq!(context.apply(&owner, service(80, &json!({}))).await.unwrap(), Change::Updated);
    let child = place.api::<Service>().get("child").await.unwrap();
    assert!(!child.annotations().contains_key("ours"));
}

#[tokio::test]
async fn an_object_of_somebody_else_is_never_touched() {
    let Some(place) = Place::new("apply").await else { return };
    let (context, owner) = (context(&place), owner(&place, "owner").await);
    let services = place.api::<Service>();
    let theirs = services.create(&PostParams::default(), &service(81, &json!({}))).await.unwrap();
    let refused = context.apply(&owner, service(80, &json!({}))).await;
    let Err(ApplyError::NameConflict { kind, name }) = refused else { panic!("{refused:?}") };
    assert_eq!((kind.as_str(), name.as_str()), ("Service", "child"));
    assert_eq!(services.get("child").await.unwrap().resource_version(), theirs.resource_version());
}

#[tokio::test]
async fn a_child_of_an_earlier_object_of_the_same_name_is_replaced() {
    let Some(place) = Place::new("apply").await else { return };
    let (context, owner) = (context(&place), owner(&place, "owner").await);
    let mut leftover = service(80, &json!({}));
    let earlier =
        OwnerReference { uid: String::from("00000000-0000-0000-0000-000000000000"), ..owner.reference() };
    leftover.metadata.owner_references = Some(vec![earlier]);
    let services: Api<Service> = place.api();
    let leftover = services.create(&PostParams::default(), &leftover).await.unwrap();
    let first = context.apply(&owner, service(80, &json!({}))).await;
    assert!(matches!(first, Err(ApplyError::Leftover { .. })), "{first:?}");
    // The controllers of the cluster delete a child without an owner as well: whoever is first.
    eventually("the child is made anew", async || {
        context.apply(&owner, service(80, &json!({}))).await.ok()?;
        let child = services.get("child").await.ok()?;
        (child.uid() != leftover.uid() && owner.controls(&child.metadata)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_field_that_the_api_server_refuses_is_named() {
    let Some(place) = Place::new("apply").await else { return };
    let (context, owner) = (context(&place), owner(&place, "owner").await);
    let refused = context.apply(&owner, service(700_000, &json!({}))).await.unwrap_err();
    assert!(matches!(refused, ApplyError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("spec.ports[0].port"), "{refused}");
}

#[tokio::test]
async fn a_generated_secret_is_made_once_however_many_make_it() {
    let Some(place) = Place::new("apply").await else { return };
    let owner = owner(&place, "owner").await;
    let secret = |value: &str| -> Secret {
        serde_json::from_value(json!({ "metadata": { "name": "token" }, "stringData": { "token": value } }))
            .unwrap()
    };
    let values = ["a", "b", "c", "d"];
    let contexts: Vec<Context> = values.iter().map(|_| context(&place)).collect();
    let made = contexts.iter().zip(values).map(|(context, value)| context.create_once(&owner, secret(value)));
    let made = futures_util::future::join_all(made).await;
    let value = |secret: Secret| String::from_utf8(secret.data.unwrap().remove("token").unwrap().0).unwrap();
    let seen: Vec<String> = made.into_iter().map(|secret| value(secret.unwrap())).collect();
    assert!(seen.iter().all(|one| *one == seen[0]), "all use the same one: {seen:?}");
    let secrets = place.api::<Secret>();
    assert_eq!(value(secrets.get("token").await.unwrap()), seen[0]);
    secrets.delete("token", &DeleteParams::default()).await.unwrap();
    let rotated = contexts[0].create_once(&owner, secret("new")).await.unwrap();
    assert_eq!(value(rotated), "new");
}

#[tokio::test]
async fn deleting_fails_when_the_object_has_changed_meanwhile() {
    let Some(place) = Place::new("apply").await else { return };
    let (context, owner) = (context(&place), owner(&place, "owner").await);
    context.apply(&owner, service(80, &json!({}))).await.unwrap();
    let services = place.api::<Service>();
    let seen = services.get("child").await.unwrap();
    context.apply(&owner, service(81, &json!({}))).await.unwrap();
    let conflict = context.delete(&owner, &seen).await.unwrap_err();
    assert_eq!(conflict.status(), Some(409), "{conflict}");
    context.delete(&owner, &services.get("child").await.unwrap()).await.unwrap();
    assert!(services.get_opt("child").await.unwrap().is_none());
    context.delete(&owner, &seen).await.unwrap();
}
