//! YAML that every reader takes for the same: keys in order, what fits into a line in one line, what is deep in as few lines as
//! it takes, and in quotes whatever is not plainly a text.
//!
//! Readers of YAML 1.1 take `on`, `NO`, `1:30` and `2024-01-01` for something else than a text; a general writer leaves them
//! without quotes. Here a text stands bare only where it begins with a letter, holds nothing but letters, digits and a few
//! marks, and is no word that stands for a truth or for nothing.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

/// How long a line with a list or map in it may be.
const WIDTH: usize = 100;
/// From this many blanks on, lists and maps are no longer written as a tree: most of a file would be blanks.
const DEEP: usize = 32;

/// Writes a value as one YAML document.
///
/// # Panics
/// When the value has no form in JSON, as a map whose keys are no texts.
pub fn to_yaml(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).expect("what is written for others has a form in JSON");
    let mut text = String::new();
    if is_block(&value) {
        entries(&mut text, &value, 0);
    } else {
        let _ = writeln!(text, "{}", flow(&value));
    }
    text
}

/// The lines of a map or a list that has something in it.
fn entries(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) => {
            for (key, value) in sorted(map) {
                let key = quoted(key);
                let _ = write!(text, "{:indent$}{key}:", "");
                match in_line(value, indent + key.chars().count() + 2) {
                    Some(line) => {
                        let _ = writeln!(text, " {line}");
                    }
                    None => {
                        text.push('\n');
                        below(text, value, indent + 2);
                    }
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| item_lines(text, item, indent)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The lines of what did not fit behind its key.
fn below(text: &mut String, value: &Value, indent: usize) {
    if indent < DEEP {
        return entries(text, value, indent);
    }
    let mut column = 0;
    for word in words(value) {
        let length = word.chars().count() + 1;
        if column == 0 || column + length > WIDTH {
            text.push_str(if column == 0 { "" } else { "\n" });
            let _ = write!(text, "{:indent$}{word}", "");
            column = indent + length;
        } else {
            let _ = write!(text, " {word}");
            column += length;
        }
    }
    text.push('\n');
}

fn item_lines(text: &mut String, item: &Value, indent: usize) {
    if let Some(line) = in_line(item, indent + 2) {
        let _ = writeln!(text, "{:indent$}- {line}", "");
        return;
    }
    let start = text.len();
    entries(text, item, indent + 2);
    // The dash takes the place of the first line's last two blanks.
    text.replace_range(start + indent..start + indent + 2, "- ");
}

/// The value as the rest of a line, unless it would make that too long.
fn in_line(value: &Value, used: usize) -> Option<String> {
    let line = flow(value);
    (!is_block(value) || used + line.chars().count() <= WIDTH).then_some(line)
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn sorted(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

fn flow(value: &Value) -> String {
    words(value).join(" ")
}

/// A value in flow style, cut where a line may end.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::Null => vec![String::from("null")],
        Value::Bool(truth) => vec![truth.to_string()],
        Value::Number(number) => vec![whole(number)],
        Value::String(text) => vec![quoted(text)],
        Value::Array(items) => enclosed("[", items.iter().map(words), "]"),
        Value::Object(map) if map.is_empty() => vec![String::from("{}")],
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| {
                let mut words = words(value);
                words[0] = format!("{}: {}", quoted(key), words[0]);
                words
            };
            enclosed("{ ", sorted(map).into_iter().map(entry), " }")
        }
    }
}

fn enclosed(open: &str, parts: impl ExactSizeIterator<Item = Vec<String>>, close: &str) -> Vec<String> {
    let last = parts.len();
    let mut words = Vec::new();
    for (number, mut part) in parts.enumerate() {
        if number + 1 < last
            && let Some(word) = part.last_mut()
        {
            word.push(',');
        }
        words.append(&mut part);
    }
    if words.is_empty() {
        return vec![format!("{open}{close}")];
    }
    words[0].insert_str(0, open);
    if let Some(word) = words.last_mut() {
        word.push_str(close);
    }
    words
}

/// Bounds are floating point numbers in the types of Kubernetes; nearly all are whole.
fn whole(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => format!("{float:.0}"),
        _ => number.to_string(),
    }
}

fn quoted(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let mut written = String::new();
    for c in Value::from(text).to_string().chars() {
        if is_unreadable(c) {
            let _ = write!(written, "\\u{:04x}", u32::from(c));
        } else {
            written.push(c);
        }
    }
    written
}

/// Characters that JSON has as they are and YAML takes for line ends, or not at all.
fn is_unreadable(c: char) -> bool {
    matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Whether readers of YAML 1.1 and 1.2 take it for this text without quotes.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let holds = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b));
    begins && holds && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_that_old_readers_misread_stand_in_quotes() {
        let misread = [
            "",
            "~",
            "on",
            "ON",
            "Off",
            "y",
            "N",
            "yes",
            "NO",
            "true",
            "False",
            "null",
            "Null",
            "1",
            "1.5",
            "1e3",
            "0x1f",
            "0o7",
            "1_000",
            "1:30",
            "12:30:45",
            "2024-01-01",
            ".inf",
            "-1",
            "+1",
            "=",
            "<<",
            "a: b",
            "a #b",
            " a",
            "a ",
            "- a",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "{a",
            "[a",
            "'a",
            "a\nb",
            "k8s: {}",
            "a:",
        ];
        for text in misread {
            let written = to_yaml(&json!({ "key": text }));
            assert_eq!(written, format!("key: {}\n", Value::from(text)));
        }
        for text in ["ClusterIP", "modelrelay.io", "a-b_c", "v1alpha1", "apps/v1", "nothing"] {
            assert_eq!(to_yaml(&json!({ "key": text })), format!("key: {text}\n"));
        }
    }

    #[test]
    fn maps_are_sorted_and_short_ones_stand_in_a_line() {
        let long = "x".repeat(90);
        let value =
            json!({ "b": [{ "d": 1, "c": [[1, 2], []] }, "x"], "a": { "e": {} }, "f": 86400.0, "g": 0.5 });
        let text = "a: { e: {} }\nb: [{ c: [[1, 2], []], d: 1 }, x]\nf: 86400\ng: 0.5\n";
        assert_eq!(to_yaml(&value), text);
        let value = json!([{ "b": [[long, 1], 2], "a": { "d": { "c": long } } }]);
        let text = format!("- a:\n    d:\n      c: {long}\n  b:\n    - - {long}\n      - 1\n    - 2\n");
        assert_eq!(to_yaml(&value), text);
    }

    #[test]
    fn what_is_deep_fills_its_lines() {
        let deep: Value = (0..40).map(|n| (format!("k{n:02}"), json!("a b"))).collect();
        let value = (0..16).fold(deep, |inner, _| json!({ "in": inner }));
        let text = to_yaml(&value);
        assert!(text.lines().count() < 30, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(serde_yaml::from_str::<Value>(&text).unwrap(), value);
    }

    fn values() -> impl Strategy<Value = Value> {
        let text = prop_oneof![".{0,12}", "[-:#.a-z0-9 ]{0,8}"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(text.clone(), inner, 0..4)
                    .prop_map(|map| map.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_written_reads_back_as_it_was(value in values()) {
            let read: Value = serde_yaml::from_str(&to_yaml(&value)).unwrap();
            prop_assert_eq!(read, value);
        }
    }
}
