//! Reading and writing settings files: unknown fields, defaults left out, hashes shortened.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::{Map, Value};

use super::check::Invalid;

/// A file that was read, and what of it this version does not know.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<T> {
    /// What the file says, defaults filled in, not validated yet.
    pub config: T,
    /// Paths of unknown fields (`queue.shape`); always empty unless the file says `generatedBy`.
    pub ignored: Vec<String>,
}

/// Why a settings file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file holds nothing, which is more likely a write in progress than a wish for defaults.
    #[error("the file is empty; write {{}} to have every default")]
    Empty,
    /// Not YAML, or a value of a wrong type; the text names path, line and what was expected.
    #[error("{0}")]
    Malformed(String),
    /// A field that does not exist there.
    #[error("{path}: unknown field, expected one of {}", known.join(", "))]
    UnknownField {
        /// Where it stands, such as `clientKeys[0].color`.
        path: String,
        /// The fields that exist beside it.
        known: Vec<String>,
    },
    /// A value out of range, or at odds with another.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Reads YAML and names the fields that `T` has no use for.
fn read<T: DeserializeOwned>(text: &str) -> Result<Parsed<T>, ConfigError> {
    let mut ignored = Vec::new();
    let document = serde_yaml::Deserializer::from_str(text);
    let config =
        serde_ignored::deserialize::<_, _, Option<T>>(document, |path| ignored.push(path_text(&path)));
    match config {
        Ok(Some(config)) => Ok(Parsed { config, ignored }),
        Ok(None) => Err(ConfigError::Empty),
        Err(error) => Err(ConfigError::Malformed(one_line(&error.to_string()))),
    }
}

/// Reads a file of which `example` has every field; unknown fields are ignored in a config for which `may_ignore`.
pub(super) fn leniently<T: DeserializeOwned>(
    text: &str,
    example: &str,
    may_ignore: impl FnOnce(&T) -> bool,
) -> Result<Parsed<T>, ConfigError> {
    let parsed: Parsed<T> = read(text)?;
    match parsed.ignored.first() {
        Some(path) if !may_ignore(&parsed.config) => Err(unknown_field(path, example)),
        _ => Ok(parsed),
    }
}

/// The error for an unknown field; `example` is a file in which each existing field occurs.
fn unknown_field(path: &str, example: &str) -> ConfigError {
    let mut place: serde_yaml::Value = serde_yaml::from_str(example).unwrap_or_default();
    let mut steps: Vec<_> = path.split('.').collect();
    steps.pop();
    for step in steps {
        let name = step.split('[').next().unwrap_or_default();
        place = place.get(name).cloned().unwrap_or_default();
        // Entries of a list are all of one kind, so the first one stands for them.
        if let Some(first) = place.get(0).cloned() {
            place = first;
        }
    }
    let known = place.as_mapping().into_iter().flat_map(|mapping| mapping.keys());
    let known = known.filter_map(|key| key.as_str().map(str::to_owned)).collect();
    ConfigError::UnknownField { path: path.to_owned(), known }
}

/// The text of a file, with each field at its default left out.
pub(super) fn to_yaml<T: Serialize + Default>(config: &T) -> String {
    serde_yaml::to_string(&sparse(config)).expect("a map with string keys can be written")
}

/// What differs from the defaults, as a JSON object.
fn sparse<T: Serialize + Default>(config: &T) -> Map<String, Value> {
    let defaults = object(&T::default());
    without_defaults(object(config), &defaults)
}

/// Everything in force, with each hash shortened.
pub(super) fn shown<T: Serialize>(config: &T) -> Value {
    let mut value = Value::Object(object(config));
    shorten_hashes(&mut value);
    value
}

fn object<T: Serialize>(config: &T) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        // Settings are structs of strings, numbers, lists and maps with string keys.
        Ok(_) | Err(_) => unreachable!("settings serialise to an object"),
    }
}

fn without_defaults(map: Map<String, Value>, defaults: &Map<String, Value>) -> Map<String, Value> {
    let mut kept = Map::new();
    for (name, value) in map {
        match (value, defaults.get(&name)) {
            (value, Some(default)) if value == *default => {}
            (Value::Object(inner), Some(Value::Object(default))) => {
                kept.insert(name, Value::Object(without_defaults(inner, default)));
            }
            (value, _) => {
                kept.insert(name, value);
            }
        }
    }
    kept
}

fn shorten_hashes(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map.iter_mut() {
                match inner {
                    Value::String(hash) if name == "sha256" => {
                        hash.truncate(8);
                        hash.push_str("...");
                    }
                    other => shorten_hashes(other),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(shorten_hashes),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn path_text(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", path_text(parent)),
        Path::Map { parent, key } => match path_text(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            path_text(parent)
        }
    }
}

/// The library's words on one line, in terms of YAML rather than of Rust.
fn one_line(text: &str) -> String {
    let mut text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    if let Some((before, after)) = text.split_once("expected struct ") {
        let rest = after.split_once(' ').map_or("", |(_, rest)| rest);
        text = format!("{before}expected fields {rest}");
    }
    text.replace("expected u32", "expected a whole number from 0")
        .replace("expected i32", "expected a whole number")
}
