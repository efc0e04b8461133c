//! `values.yaml`, its schema and its table in the README.

use std::collections::BTreeSet;
use std::fs;

use modelrelay_operator::api::schema;
use serde_json::Value;

use crate::{assert_generated, between, workspace};

/// A value with a comment.
struct Entry {
    path: String,
    comment: String,
    default: Value,
}

/// Reads what is commented; a value without a comment of its own belongs to the next one above that has one.
fn entries(text: &str) -> Vec<Entry> {
    let values: Value = serde_yaml::from_str(text).unwrap();
    let mut parents: Vec<(usize, String)> = Vec::new();
    let mut comment = String::new();
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.lines() {
        let content = line.trim_start();
        if let Some(words) = content.strip_prefix('#') {
            comment.push_str(words);
            continue;
        }
        let Some((key, _)) = content.split_once(':') else {
            assert!(content.is_empty() && comment.is_empty(), "a comment without a value: {comment}{line}");
            continue;
        };
        let indent = line.len() - content.len();
        while parents.last().is_some_and(|(parent, _)| *parent >= indent) {
            parents.pop();
        }
        parents.push((indent, key.to_owned()));
        let path: Vec<_> = parents.iter().map(|(_, key)| key.as_str()).collect();
        let default = path.iter().fold(&values, |value, key| &value[*key]).clone();
        let path = path.join(".");
        if !comment.is_empty() {
            entries.push(Entry { path, comment: std::mem::take(&mut comment).trim().to_owned(), default });
        } else if !default.is_object() {
            let covered = entries.iter().any(|entry| path.starts_with(&format!("{}.", entry.path)));
            assert!(covered, "{path} needs a comment");
        }
    }
    entries
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap()
}

#[test]
fn every_value_is_commented_and_listed_in_the_readme() {
    let mut table = String::from("| value | default | meaning |\n| --- | --- | --- |\n");
    for Entry { path, comment, default } in entries(&read("charts/modelrelay/values.yaml")) {
        assert!(comment.ends_with(['.', '}']), "{path}: {comment}");
        let default = schema::to_yaml(&default).trim_end().replace('\n', " ");
        let comment = comment.replace('|', "\\|");
        table.push_str(&format!("| `{path}` | `{default}` | {comment} |\n"));
    }
    let readme = between(&read("charts/modelrelay/README.md"), "values", &table);
    assert_generated("charts/modelrelay/README.md", &readme);
}

fn leaves(path: &str, value: &Value, free: &BTreeSet<String>, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) if !free.contains(path) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(&path, value, free, found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// Follows `$ref`.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
        None => schema,
    }
}

/// Collects the paths of leaves, and of the maps whose keys are free.
fn described(
    root: &Value,
    path: &str,
    schema: &Value,
    leaves: &mut BTreeSet<String>,
    free: &mut BTreeSet<String>,
) {
    let schema = resolved(root, schema);
    if schema["type"] != "object" {
        leaves.insert(path.to_owned());
        return;
    }
    let Some(properties) = schema["properties"].as_object() else {
        leaves.insert(path.to_owned());
        free.insert(path.to_owned());
        return;
    };
    assert_eq!(schema["additionalProperties"], false, "{path} takes anything");
    for (key, field) in properties {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        described(root, &path, field, leaves, free);
    }
}

#[test]
fn the_schema_knows_every_value_and_nothing_else() {
    let schema: Value = serde_json::from_str(&read("charts/modelrelay/values.schema.json")).unwrap();
    let (mut known, mut free) = (BTreeSet::new(), BTreeSet::new());
    described(&schema, "", &schema, &mut known, &mut free);
    // Helm hands it to every chart; this one reads nothing of it.
    known.remove("global");
    // One value with parts that are empty.
    for parts in ["affinity", "resources"] {
        known.retain(|path| !path.starts_with(&format!("{parts}.")));
        known.insert(parts.to_owned());
        free.insert(parts.to_owned());
    }
    let values: Value = serde_yaml::from_str(&read("charts/modelrelay/values.yaml")).unwrap();
    let mut there = BTreeSet::new();
    leaves("", &values, &free, &mut there);
    assert_eq!(there, known);
}
