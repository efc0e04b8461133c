//! The CRDs: what is checked in is what the types say, and what a reviewer of Kubernetes APIs looks for holds for every
//! field. `UPDATE_CRDS=1 cargo test -p modelrelay-operator --test crds` writes the files anew.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use modelrelay_operator::api::schema;
use modelrelay_operator::api::{ModelRelay, WorkerPool};
use modelrelay_operator::model_relay::build::settings::{self, Given};
use modelrelay_operator::model_relay::build::{autoscaler, service};
use serde_json::{Value, json};

/// Types of Kubernetes' own within ours: they have no descriptions, and their bounds are for the kinds made of them.
const EMBEDDED: [&str; 6] = [
    "spec.allowedWorkerPools.namespaces.selector",
    "spec.backend.container",
    "spec.managed.enginePodTemplate",
    "spec.managed.podTemplate",
    "spec.managed.tolerations[]",
    "spec.podTemplate",
];

struct Crd {
    plural: String,
    text: String,
    json: Value,
}

impl Crd {
    fn all() -> Vec<Self> {
        let crd = |crd: &_| {
            let json = serde_json::to_value(crd).unwrap();
            let plural = json["spec"]["names"]["plural"].as_str().unwrap().to_owned();
            Self { plural, text: schema::to_yaml(crd), json }
        };
        schema::crds().iter().map(crd).collect()
    }

    fn schema(&self) -> &Value {
        &self.json["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    }

    /// Shows every schema in it, with the path of what it describes.
    fn visit(&self, look: &mut impl FnMut(&str, &Value)) {
        for name in ["spec", "status"] {
            visit(name, &self.schema()["properties"][name], look);
        }
    }
}

fn visit(path: &str, schema: &Value, look: &mut impl FnMut(&str, &Value)) {
    look(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        visit(&format!("{path}.{name}"), field, look);
    }
    if schema["items"].is_object() {
        visit(&format!("{path}[]"), &schema["items"], look);
    }
    if schema["additionalProperties"].is_object() {
        visit(&format!("{path}{{}}"), &schema["additionalProperties"], look);
    }
}

/// Whether it is below the top of an embedded type.
fn within_embedded(path: &str) -> bool {
    EMBEDDED.iter().any(|top| path.strip_prefix(top).is_some_and(|rest| !rest.is_empty()))
}

fn is_embedded(path: &str) -> bool {
    EMBEDDED.contains(&path) || within_embedded(path)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn the_crds_that_are_checked_in_and_in_the_chart_are_those_of_the_types() {
    for crd in Crd::all() {
        for folder in ["crds", "charts/modelrelay-crds/templates"] {
            let path = workspace().join(folder).join(format!("{}.yaml", crd.plural));
            if std::env::var_os("UPDATE_CRDS").is_some_and(|value| value == "1") {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, &crd.text).unwrap();
            }
            let found = fs::read_to_string(&path).unwrap_or_default();
            assert!(found == crd.text, "{} is outdated: run with UPDATE_CRDS=1", path.display());
        }
        // Helm would take it for a template.
        assert!(!crd.text.contains("{{"), "{}", crd.plural);
    }
}

#[test]
fn the_text_of_a_crd_reads_back_as_the_crd() {
    for crd in Crd::all() {
        let read: Value = serde_yaml::from_str(&crd.text).unwrap();
        let again = serde_json::from_value::<
            k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
        >(read)
        .unwrap();
        assert_eq!(serde_json::to_value(again).unwrap(), crd.json);
    }
}

#[test]
fn a_crd_fits_into_the_annotation_of_a_plain_apply() {
    for crd in Crd::all() {
        assert!(crd.text.len() < 200_000, "{}: {}", crd.plural, crd.text.len());
        let applied = crd.json.to_string().len();
        assert!(applied < 200_000, "{}: {applied}", crd.plural);
    }
}

#[test]
fn every_field_of_ours_is_described_and_what_is_embedded_is_not() {
    for crd in Crd::all() {
        crd.visit(&mut |path, schema| {
            let described = schema["description"].as_str().is_some_and(|text| text.ends_with(['.', ')']));
            if within_embedded(path) {
                assert!(schema["description"].is_null(), "{path} has a description");
            } else if !path.ends_with("[]") && !path.ends_with("{}") {
                assert!(described, "{path} needs a description of whole sentences");
            }
        });
    }
}

#[test]
fn everything_of_ours_is_bounded() {
    for crd in Crd::all() {
        crd.visit(&mut |path, schema| {
            if is_embedded(path) && !path.ends_with(".selector") {
                return;
            }
            let bounded = match schema["type"].as_str() {
                Some("array") => schema["maxItems"].is_u64(),
                Some("object") if schema["properties"].is_object() => true,
                Some("object") => schema["maxProperties"].is_u64(),
                Some("integer") if path.starts_with("spec.") => {
                    schema["minimum"].is_number() && schema["maximum"].is_number()
                }
                Some("integer") => schema["minimum"].is_number(),
                Some("string") => {
                    schema["maxLength"].is_u64()
                        || schema["enum"].is_array()
                        || schema["format"] == "date-time"
                }
                Some("boolean") => true,
                None => schema["x-kubernetes-int-or-string"] == true && schema["maxLength"].is_u64(),
                Some(other) => panic!("{path} is of type {other}"),
            };
            assert!(bounded, "{path} is not bounded: {schema}");
        });
    }
}

#[test]
fn the_description_of_a_field_names_its_default_and_its_range() {
    let shown = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_f64().map_or_else(String::new, |float| format!("{float}")),
        other => other.to_string(),
    };
    for crd in Crd::all() {
        crd.visit(&mut |path, schema| {
            if is_embedded(path) || !path.starts_with("spec.") {
                return;
            }
            let description = schema["description"].as_str().unwrap_or_default();
            if !schema["default"].is_null() {
                let default = shown(&schema["default"]);
                let forms = [
                    format!("Default {default}"),
                    format!("Default `{default}`"),
                    format!("`{default}` (the default)"),
                    format!("(`{default}`, the default)"),
                ];
                assert!(
                    forms.iter().any(|form| description.contains(form)),
                    "{path}: {default}: {description}"
                );
            }
            for bound in ["minimum", "maximum"] {
                let bound = &schema[bound];
                assert!(
                    bound.is_null() || description.contains(&shown(bound)),
                    "{path}: {bound}: {description}"
                );
            }
        });
    }
}

#[test]
fn nothing_is_nullable_and_no_format_is_of_rust() {
    for crd in Crd::all() {
        assert!(!crd.text.contains("nullable"), "{}", crd.plural);
        crd.visit(&mut |path, schema| {
            let format = schema["format"].as_str().unwrap_or_default();
            assert!(["", "int32", "int64", "date-time", "byte"].contains(&format), "{path}: {format}");
        });
    }
}

#[test]
fn a_status_has_conditions_by_type_and_no_phase() {
    for crd in Crd::all() {
        let status = &crd.schema()["properties"]["status"]["properties"];
        assert!(status["phase"].is_null() && status["observedGeneration"].is_object(), "{}", crd.plural);
        let conditions = &status["conditions"];
        assert_eq!(conditions["x-kubernetes-list-type"], "map");
        assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]));
        for field in ["observedGeneration", "reason", "message", "lastTransitionTime"] {
            assert!(conditions["items"]["properties"][field].is_object(), "{}: {field}", crd.plural);
        }
    }
}

#[test]
fn what_is_embedded_may_be_partial_and_its_quantities_are_checked() {
    let mut seen = BTreeSet::new();
    for crd in Crd::all() {
        crd.visit(&mut |path, schema| {
            if EMBEDDED.contains(&path) {
                seen.insert(path.to_owned());
                let names_containers = schema.pointer("/properties/spec/required");
                assert!(names_containers.is_none(), "{path}: an overlay may leave containers out");
            }
            if within_embedded(path) && schema["x-kubernetes-int-or-string"] == true {
                let is_port = path.ends_with(".port");
                assert!(is_port || schema["pattern"].is_string(), "{path} takes 12x");
            }
            let is_selector = path.starts_with("spec.allowedWorkerPools.");
            if within_embedded(path) && !is_selector {
                assert!(schema["x-kubernetes-validations"].is_null(), "{path} has a rule");
            }
        });
    }
    assert_eq!(seen, EMBEDDED.map(String::from).into());
}

#[test]
fn an_absent_field_is_not_sent_as_null() {
    let relay = ModelRelay::new("main", serde_json::from_value(json!({})).unwrap());
    let pool = json!({ "relayRef": { "name": "main" } });
    let pool = WorkerPool::new("a100", serde_json::from_value(pool).unwrap());
    for object in [serde_json::to_value(relay).unwrap(), serde_json::to_value(pool).unwrap()] {
        assert!(!object["spec"].to_string().contains("null"), "{object}");
    }
}

#[test]
fn every_example_holds_nothing_that_the_types_do_not_know() {
    let mut count = 0;
    for entry in fs::read_dir(workspace().join("deploy/examples")).unwrap() {
        let path = entry.unwrap().path();
        for document in fs::read_to_string(&path).unwrap().split("\n---\n") {
            let value: Value = serde_yaml::from_str(document).unwrap();
            let spec = &value["spec"];
            let read = match value["kind"].as_str() {
                Some("ModelRelay") => serde_json::from_value(spec.clone())
                    .and_then(|spec: modelrelay_operator::api::ModelRelaySpec| serde_json::to_value(spec)),
                Some("WorkerPool") => serde_json::from_value(spec.clone())
                    .and_then(|spec: modelrelay_operator::api::WorkerPoolSpec| serde_json::to_value(spec)),
                other => panic!("{}: {other:?}", path.display()),
            };
            let lost = lost("spec", spec, &read.unwrap());
            assert!(lost.is_empty(), "{}: {lost:?}", path.display());
            count += 1;
        }
    }
    assert!(count >= 14, "{count}");
}

/// The fields that did not come back.
fn lost(path: &str, before: &Value, after: &Value) -> Vec<String> {
    match before {
        Value::Object(map) => {
            map.iter().flat_map(|(key, value)| lost(&format!("{path}.{key}"), value, &after[key])).collect()
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .flat_map(|(n, item)| lost(&format!("{path}[{n}]"), item, &after[n]))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            after.is_null().then(|| path.to_owned()).into_iter().collect()
        }
    }
}

/// Every default of a schema, in objects of their own; nothing where there is none.
fn defaults(schema: &Value) -> Value {
    if !schema["default"].is_null() {
        return schema["default"].clone();
    }
    let fields = schema["properties"].as_object().into_iter().flatten();
    let stated = fields.map(|(name, field)| (name, defaults(field))).filter(|(_, value)| !value.is_null());
    let stated: serde_json::Map<_, _> = stated.map(|(name, value)| (name.clone(), value)).collect();
    if stated.is_empty() { Value::Null } else { stated.into() }
}

#[test]
fn a_relay_whose_spec_states_every_default_is_the_one_whose_spec_is_empty() {
    let crds = Crd::all();
    let mut stated = defaults(&crds[0].schema()["properties"]["spec"]);
    // Only without the default strategy, and only with bounds.
    let prefix_hash = stated["routing"].as_object_mut().unwrap().remove("prefixHash").unwrap();
    let scaling = stated.as_object_mut().unwrap().remove("scaling").unwrap();
    assert!(
        stated["queue"]["timeoutSeconds"].is_number() && stated["service"]["type"].is_string(),
        "{stated}"
    );
    let relay = |spec: &Value| ModelRelay::new("main", serde_json::from_value(spec.clone()).unwrap());
    let same = |one: &Value, other: &Value| {
        let (one, other) = (relay(one), relay(other));
        let config = |relay| settings::config(relay, Given::default()).unwrap();
        assert_eq!(config(&one), config(&other));
        assert_eq!(service::client(&one), service::client(&other));
        assert_eq!(autoscaler::autoscaler(&one), autoscaler::autoscaler(&other));
    };
    same(&json!({}), &stated);
    let hashing = |details: &Value| json!({ "routing": { "strategy": "PrefixHash", "prefixHash": details } });
    same(&hashing(&json!({})), &hashing(&prefix_hash));
    let mut bounded = scaling;
    bounded["maxReplicas"] = json!(6);
    same(&json!({ "scaling": { "maxReplicas": 6 } }), &json!({ "scaling": bounded }));
}
