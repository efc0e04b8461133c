//! `deploy/REFERENCE.md`: both kinds, their conditions and reasons, from the types and their descriptions.
//! `UPDATE_REFERENCE=1 cargo test -p modelrelay-operator --test reference` writes it anew.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

use std::fs;
use std::path::Path;

use modelrelay_operator::api::schema;
use serde_json::Value;

const HEAD: &str = "\
# ModelRelay and WorkerPool

Group `modelrelay.io`, version `v1alpha1`; both kinds live in namespaces. `kubectl explain modelrelay.spec.queue` shows the same
texts, and [`examples/`](examples) shows both kinds at work.

- A field that is absent has its default, and so has everything in an object that is absent.
- The API server refuses what cannot be, and says what would be right. What only the operator can see is in the conditions.
- *Pod template* and *container* are Kubernetes' own types. A pod template is laid over what the operator generates, by the
  keys of its lists; any part of it may be absent.
- The operator writes `status`, and nothing of `spec`. The annotation `modelrelay.io/paused: \"true\"` stops its writes.

";

/// A `|` would end the cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn type_of(path: &str, schema: &Value) -> String {
    let (first, last) = (path.split('.').next().unwrap(), path.rsplit('.').next().unwrap());
    if first == "spec" && ["podTemplate", "enginePodTemplate"].contains(&last) {
        return String::from("pod template");
    }
    if let Some(names) = schema["enum"].as_array() {
        return names
            .iter()
            .map(|name| format!("`{}`", name.as_str().unwrap()))
            .collect::<Vec<_>>()
            .join(", ");
    }
    match (last, schema["type"].as_str()) {
        ("container", _) => String::from("container"),
        ("selector", Some("object")) => String::from("label selector"),
        ("tolerations", _) => String::from("list of tolerations"),
        ("conditions", _) => String::from("list of conditions"),
        (_, Some("array")) if schema["items"]["type"] == "string" => String::from("list of strings"),
        (_, Some("array")) => String::from("list"),
        (_, Some("object")) if schema["additionalProperties"].is_object() => String::from("map of strings"),
        (_, Some("string")) if schema["format"] == "date-time" => String::from("time"),
        (_, Some(name)) => name.to_owned(),
        (_, None) => String::from("quantity"),
    }
}

fn rows(path: &str, schema: &Value, table: &mut String) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let field_path = format!("{path}.{name}");
        let kind = type_of(&field_path, field);
        let must = if required.contains(&Value::from(name.as_str())) && path.starts_with("spec") {
            ", required"
        } else {
            ""
        };
        let description = cell(field["description"].as_str().unwrap());
        table.push_str(&format!("| `{field_path}` | {kind}{must} | {description} |\n"));
        let is_whole =
            ["pod template", "container", "label selector", "list of tolerations", "list of conditions"];
        if !is_whole.contains(&kind.as_str()) {
            rows(&field_path, field, table);
            rows(&format!("{field_path}[]"), &field["items"], table);
        }
    }
}

/// The rules at a schema and below it, by the field that a refusal names.
fn rules(path: &str, schema: &Value, list: &mut String) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let field = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
        let field = if field.is_empty() { "metadata.name" } else { field.as_str() };
        let entry = format!("- `{field}`: {}\n", rule["message"].as_str().unwrap());
        if !list.contains(&entry) {
            list.push_str(&entry);
        }
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        rules(&if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, field, list);
    }
    if schema["items"].is_object() {
        rules(&format!("{path}[]"), &schema["items"], list);
    }
    if schema["additionalProperties"].is_object() {
        rules(&format!("{path}.*"), &schema["additionalProperties"], list);
    }
}

/// The constants of a module of `condition.rs`: the text of each and its comment.
fn constants(module: &str) -> Vec<(String, String)> {
    let source = include_str!("../src/api/condition.rs");
    let (_, rest) = source.split_once(&format!("pub mod {module} {{\n")).unwrap();
    let (body, _) = rest.split_once("\n}\n").unwrap();
    let (mut comment, mut found) = (String::new(), Vec::new());
    for line in body.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("///") {
            comment.push_str(words);
        } else if line.starts_with("pub const ") {
            let text = line.split('"').nth(1).unwrap().to_owned();
            found.push((text, std::mem::take(&mut comment).trim().to_owned()));
        }
    }
    found
}

fn reference() -> String {
    let mut text = String::from(HEAD);
    for crd in schema::crds() {
        let crd = serde_json::to_value(crd).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let names = &crd["spec"]["names"];
        text.push_str(&format!(
            "## {}\n\n{} Short name `{}`.\n\n| field | type | meaning |\n| --- | --- | --- |\n",
            names["kind"].as_str().unwrap(),
            schema["description"].as_str().unwrap(),
            names["shortNames"][0].as_str().unwrap(),
        ));
        for part in ["spec", "status"] {
            rows(part, &schema["properties"][part], &mut text);
        }
        let mut list = String::new();
        rules("", schema, &mut list);
        text.push_str(&format!(
            "\nThe API server refuses, besides values outside of their ranges:\n\n{list}\n"
        ));
    }
    text.push_str("## Conditions\n\n| condition | True when |\n| --- | --- |\n");
    for (kind, meaning) in constants("kind") {
        text.push_str(&format!("| `{kind}` | {} |\n", cell(&meaning)));
    }
    text.push_str("\n## Reasons\n\n| reason | meaning, and what it asks of you |\n| --- | --- |\n");
    let mut reasons = constants("reason");
    reasons.sort();
    for (reason, meaning) in reasons {
        text.push_str(&format!("| `{reason}` | {} |\n", cell(&meaning)));
    }
    text
}

#[test]
fn the_reference_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/REFERENCE.md");
    let text = reference();
    if std::env::var_os("UPDATE_REFERENCE").is_some_and(|value| value == "1") {
        fs::write(&path, &text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "{} is outdated: run with UPDATE_REFERENCE=1", path.display());
}

#[test]
fn every_reason_says_what_it_asks_and_is_a_word_that_conditions_take() {
    let reasons = constants("reason");
    assert!(reasons.len() >= 28, "{}", reasons.len());
    for (reason, meaning) in reasons {
        assert!(reason.chars().all(|c| c.is_ascii_alphanumeric()), "{reason}");
        assert!(meaning.matches(". ").count() + meaning.matches("; ").count() >= 1, "{reason}: {meaning}");
        assert!(meaning.ends_with('.'), "{reason}: {meaning}");
    }
}
