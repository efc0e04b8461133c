//! The CRDs, and the parts of their schemas that do not follow from the Rust types alone.

use k8s_openapi::api::core::v1::{Container, PodTemplateSpec, Toleration};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResourceExt as _;
use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Map, Value, json};

use super::{ModelRelay, WorkerPool, rules};

pub use super::yaml::to_yaml;

/// Both CRDs, ready to be installed.
pub fn crds() -> [CustomResourceDefinition; 2] {
    [
        finished(&ModelRelay::crd(), rules::write_model_relay),
        finished(&WorkerPool::crd(), rules::write_worker_pool),
    ]
}

/// Both CRDs as YAML documents.
pub fn crds_yaml() -> String {
    crds().map(|crd| to_yaml(&crd)).join("---\n")
}

/// Adds the rules, and removes what API servers do not know or need.
fn finished(crd: &CustomResourceDefinition, write_rules: fn(&mut Value)) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a CRD is JSON");
    tidy(&mut value);
    // Helm keeps the CRDs when their chart is uninstalled: with them it would delete every relay and pool of the cluster.
    value["metadata"]["annotations"] = json!({ "helm.sh/resource-policy": "keep" });
    write_rules(&mut value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    serde_json::from_value(value).expect("the finished CRD still is one")
}

/// Removes `nullable`, since nothing is ever sent as `null`, and the line ends of comments in the source.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("nullable");
            // What is left of the two types of an int-or-string, which says it by its own mark.
            if map.contains_key("x-kubernetes-int-or-string") {
                map.remove("anyOf");
            }
            if let Some(Value::String(description)) = map.get_mut("description") {
                *description = description.replace('\n', " ");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// One of the names of an enumeration. The field says what they mean: of two descriptions, the type's would win.
pub(super) fn choice<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let schema = T::json_schema(generator).to_value();
    let names: Vec<_> = match (&schema["oneOf"], &schema["enum"]) {
        (Value::Array(variants), _) => variants.iter().map(|variant| variant["const"].clone()).collect(),
        (_, Value::Array(names)) => names.clone(),
        _ => Vec::new(),
    };
    json_schema!({ "type": "string", "enum": names })
}

/// A pod template of which any part may be absent. Of its metadata only what can be set in a template is there.
pub(super) fn pod_template(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = embedded::<PodTemplateSpec>(generator);
    if let Some(spec) = schema.pointer_mut("/properties/spec").and_then(Value::as_object_mut) {
        spec.remove("required");
        // For debugging a pod that runs; no template can have them.
        spec["properties"].as_object_mut().expect("a pod has fields").remove("ephemeralContainers");
    }
    let properties = schema.pointer_mut("/properties/metadata/properties").and_then(Value::as_object_mut);
    properties
        .expect("a pod template has metadata")
        .retain(|name, _| name == "labels" || name == "annotations");
    schema
}

/// One container. Its name is the operator's; its ports are bounded, because a rule looks at them.
pub(super) fn engine_container(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = embedded::<Container>(generator);
    schema.insert(String::from("required"), json!(["image", "ports"]));
    let properties =
        schema.get_mut("properties").and_then(Value::as_object_mut).expect("a container has fields");
    properties.remove("name");
    let ports = &mut properties["ports"];
    ports["maxItems"] = json!(64);
    ports["items"]["properties"]["name"]["maxLength"] = json!(15);
    properties["image"]["minLength"] = json!(1);
    schema
}

pub(super) fn tolerations(generator: &mut SchemaGenerator) -> Schema {
    let mut items = embedded::<Toleration>(generator).to_value();
    items["properties"]["operator"]["enum"] = json!(["Exists", "Equal"]);
    items["properties"]["effect"]["enum"] = json!(["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    json_schema!({ "type": "array", "maxItems": 64, "items": items })
}

pub(super) fn label_selector(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = embedded::<LabelSelector>(generator);
    let properties = schema.get_mut("properties").expect("a selector has fields");
    properties["matchLabels"]["maxProperties"] = json!(64);
    properties["matchLabels"]["additionalProperties"]["maxLength"] = json!(63);
    let expressions = &mut properties["matchExpressions"];
    expressions["maxItems"] = json!(64);
    let fields = &mut expressions["items"]["properties"];
    fields["key"]["maxLength"] = json!(317);
    fields["operator"]["enum"] = json!(["In", "NotIn", "Exists", "DoesNotExist"]);
    fields["values"]["maxItems"] = json!(64);
    fields["values"]["items"]["maxLength"] = json!(63);
    schema
}

/// Texts by name; how long a name may be is a rule of its own.
fn texts(most: u32, longest: u32) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": most,
        "additionalProperties": { "type": "string", "maxLength": longest },
    })
}

pub(super) fn annotations(_: &mut SchemaGenerator) -> Schema {
    texts(64, 4096)
}

pub(super) fn worker_labels(_: &mut SchemaGenerator) -> Schema {
    texts(32, 256)
}

pub(super) fn node_selector(_: &mut SchemaGenerator) -> Schema {
    texts(64, 63)
}

/// Conditions as Kubernetes defines them, with its bounds, which the type's own schema lacks.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "description": "One side of the state.",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {
                    "type": "string", "maxLength": 316, "description": "Which side: a word in CamelCase.",
                },
                "status": {
                    "type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds.",
                },
                "observedGeneration": {
                    "type": "integer", "format": "int64", "minimum": 0,
                    "description": "The generation of the spec that it speaks of.",
                },
                "lastTransitionTime": {
                    "type": "string", "format": "date-time", "description": "When `status` changed last.",
                },
                "reason": {
                    "type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "Why, in one word in CamelCase.",
                },
                "message": {
                    "type": "string", "maxLength": 32768, "description": "What is so, and what to do about it.",
                },
            },
        },
    })
}

/// A number of bytes as Kubernetes writes quantities: `256Mi`, `1G`, `1048576`.
pub(super) fn byte_size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-int-or-string": true, "maxLength": 18 })
}

/// Quantities as Kubernetes writes them: the schema of the type takes any text.
const QUANTITY: &str = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$";
/// Fields of pods that hold one, and fields that hold some by name.
const QUANTITIES: [&str; 2] = ["divisor", "sizeLimit"];
const QUANTITY_MAPS: [&str; 3] = ["limits", "overhead", "requests"];

/// A type of Kubernetes' own, without its descriptions: they would make the CRD too large for a plain `kubectl apply`.
fn embedded<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut value = T::json_schema(generator).to_value();
    strip(&mut value);
    let map = match value {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    map.into()
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("description").is_some_and(Value::is_string) {
                map.remove("description");
            }
            for (name, value) in map.iter_mut() {
                if QUANTITIES.contains(&name.as_str()) {
                    bound_quantity(value);
                } else if QUANTITY_MAPS.contains(&name.as_str()) {
                    bound_quantity(&mut value["additionalProperties"]);
                }
                strip(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn bound_quantity(schema: &mut Value) {
    if schema["x-kubernetes-int-or-string"] == true {
        schema["pattern"] = json!(QUANTITY);
    }
}
