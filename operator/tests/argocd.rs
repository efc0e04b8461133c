//! The health check for Argo CD, in the version of Lua that Argo CD speaks.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const SCRIPT: &str = include_str!("../../deploy/argocd/health.lua");

/// A value as Lua writes it.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => String::from("nil"),
        Value::Array(items) => format!("{{{}}}", items.iter().map(lua).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entries =
                map.iter().map(|(key, value)| format!("[{}] = {}", Value::from(key.as_str()), lua(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

/// What Argo CD shows of an object: its health and the message; nothing without Lua.
fn judge(object: &Value) -> Option<(String, String)> {
    let program = dev_cluster::tool("MODELRELAY_LUA")?;
    let script = format!(
        "obj = {}\nlocal health = (function()\n{SCRIPT}\nend)()\nprint(health.status)\nprint(health.message)\n",
        lua(object)
    );
    let mut child =
        Command::new(program).arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (health, message) = text.trim_end().split_once('\n').unwrap();
    Some((health.to_owned(), message.to_owned()))
}

fn object(generation: i64, annotations: &Value, status: &Value) -> Value {
    json!({ "metadata": { "name": "main", "generation": generation, "annotations": annotations }, "status": status })
}

fn ready(status: &str, reason: &str) -> Value {
    let condition = |kind: &str, status: &str, reason: &str| json!({ "type": kind, "status": status, "reason": reason, "message": "why", "observedGeneration": 2 });
    json!({ "conditions": [condition("Accepted", "True", "Accepted"), condition("Ready", status, reason)] })
}

#[test]
fn argo_cd_tells_what_is_under_way_from_what_needs_somebody() {
    let none = Value::Null;
    let paused = json!({ "modelrelay.io/paused": "true" });
    let table = [
        (object(1, &none, &none), "Progressing"),
        (object(1, &none, &json!({})), "Progressing"),
        (object(2, &none, &ready("Unknown", "Pending")), "Progressing"),
        (object(2, &none, &ready("True", "Ready")), "Healthy"),
        (object(3, &none, &ready("True", "Ready")), "Progressing"),
        (object(2, &none, &ready("False", "NoReadyRelay")), "Progressing"),
        (object(2, &none, &ready("False", "NoReadyWorker")), "Progressing"),
        (object(2, &none, &ready("False", "RelayNotFound")), "Degraded"),
        (object(2, &none, &ready("False", "NameConflict")), "Degraded"),
        (object(2, &none, &ready("False", "NoMatchingNodes")), "Degraded"),
        (object(2, &paused, &ready("True", "Ready")), "Suspended"),
        (object(2, &json!({ "modelrelay.io/paused": "false" }), &ready("True", "Ready")), "Healthy"),
    ];
    for (object, health) in table {
        let Some((found, message)) = judge(&object) else { return };
        assert_eq!(found, health, "{object}");
        assert!(!message.is_empty(), "{object}");
    }
    let degraded = judge(&object(2, &none, &ready("False", "ChildRefused")));
    assert_eq!(degraded.unwrap().1, "ChildRefused: why");
}

#[test]
fn the_reasons_that_pass_by_themselves_are_reasons_of_ours() {
    let (_, rest) = SCRIPT.split_once("local passing = {").unwrap();
    let (names, _) = rest.split_once('}').unwrap();
    let names: Vec<_> =
        names.split(',').filter_map(|entry| Some(entry.split_once(" = ")?.0.trim())).collect();
    assert!(names.len() >= 4, "{names:?}");
    let source = include_str!("../src/api/condition.rs");
    for name in names {
        assert!(source.contains(&format!(": &str = \"{name}\";")), "{name}");
    }
}
