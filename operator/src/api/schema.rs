//! The CRDs, and the parts of their schemas that do not follow from the Rust types alone.

use k8s_openapi::api::core::v1::{Container, PodTemplateSpec, Toleration};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResourceExt as _;
use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Map, Value, json};

use super::{ModelRelay, WorkerPool};

/// Both CRDs, ready to be installed.
pub fn crds() -> [CustomResourceDefinition; 2] {
    [cleaned(&ModelRelay::crd()), cleaned(&WorkerPool::crd())]
}

/// Removes what API servers do not know or need: number formats of Rust, and `nullable`, since nothing is ever sent as `null`.
fn cleaned(crd: &CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a CRD is JSON");
    clean(&mut value);
    serde_json::from_value(value).expect("the cleaned CRD still is one")
}

fn clean(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("nullable");
            let format = map.get("format").and_then(Value::as_str);
            if format.is_some_and(|format| format.starts_with("uint")) {
                map.remove("format");
            }
            map.values_mut().for_each(clean);
        }
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A pod template of which any part may be absent.
pub(super) fn pod_template(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = embedded::<PodTemplateSpec>(generator);
    if let Some(spec) = schema.pointer_mut("/properties/spec").and_then(Value::as_object_mut) {
        spec.remove("required");
    }
    schema
}

/// One container; its name is the operator's.
pub(super) fn engine_container(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = embedded::<Container>(generator);
    schema.insert(String::from("required"), json!(["image"]));
    schema
}

pub(super) fn tolerations(generator: &mut SchemaGenerator) -> Schema {
    let items = embedded::<Toleration>(generator);
    json_schema!({ "type": "array", "maxItems": 64, "items": items })
}

pub(super) fn label_selector(generator: &mut SchemaGenerator) -> Schema {
    embedded::<LabelSelector>(generator)
}

pub(super) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let items = Condition::json_schema(generator);
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": items,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

/// A number of bytes as Kubernetes writes quantities: `256Mi`, `1G`, `1048576`.
pub(super) fn byte_size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "pattern": r"^[1-9][0-9]{0,15}(k|M|G|T|Ki|Mi|Gi|Ti)?$",
    })
}

/// A type of Kubernetes' own, without its descriptions: they would make the CRD too large for a plain `kubectl apply`.
fn embedded<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut value = T::json_schema(generator).to_value();
    without_descriptions(&mut value);
    let map = match value {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    map.into()
}

fn without_descriptions(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("description").is_some_and(Value::is_string) {
                map.remove("description");
            }
            map.values_mut().for_each(without_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(without_descriptions),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
