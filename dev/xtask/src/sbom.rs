//! The list of what a program is made of, in CycloneDX's form.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{process, workspace};

/// Returns the list for a package of the workspace: the same text for the same `Cargo.lock`.
///
/// # Errors
/// When Cargo does not know the package.
pub(crate) fn of(package: &str) -> Result<String> {
    let mut cargo = workspace::cargo(["metadata", "--format-version=1", "--locked", "--filter-platform"]);
    let metadata = process::capture("cargo metadata", cargo.arg(host()?), || {})?;
    // Cargo also says what it waits for.
    let line =
        metadata.lines().find(|line| line.starts_with('{')).context("cargo metadata printed nothing")?;
    let metadata: Value = serde_json::from_str(line).context("read what cargo metadata printed")?;
    let lock = fs::read_to_string(workspace::root().join("Cargo.lock")).context("read Cargo.lock")?;
    let list = list(&metadata, &sums(&lock), package)?;
    Ok(serde_json::to_string_pretty(&list).context("write the list")? + "\n")
}

fn host() -> Result<String> {
    let printed = process::capture("rustc", std::process::Command::new("rustc").arg("-vV"), || {})?;
    let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say what machine this is")
}

/// Reads the SHA-256 of each package's archive from `Cargo.lock`.
fn sums(lock: &str) -> BTreeMap<(String, String), String> {
    let entries = lock.split("[[package]]").filter_map(|entry| {
        let field = |name: &str| {
            let quoted = entry.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
            Some(quoted.trim_matches('"').to_owned())
        };
        Some(((field("name")?, field("version")?), field("checksum")?))
    });
    entries.collect()
}

fn list(metadata: &Value, sums: &BTreeMap<(String, String), String>, package: &str) -> Result<Value> {
    let packages: BTreeMap<&str, &Value> =
        items(&metadata["packages"]).filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let nodes: BTreeMap<&str, &Value> =
        items(&metadata["resolve"]["nodes"]).filter_map(|node| Some((node["id"].as_str()?, node))).collect();
    let (root, _) = packages
        .iter()
        .find(|(_, found)| found["name"] == package)
        .with_context(|| format!("no package is called {package}"))?;

    let mut seen = BTreeSet::from([*root]);
    let mut waiting = vec![*root];
    let mut dependencies = BTreeMap::new();
    while let Some(id) = waiting.pop() {
        let node = nodes.get(id).with_context(|| format!("cargo metadata has not resolved {id}"))?;
        let linked: BTreeSet<&str> = items(&node["deps"])
            .filter(|edge| is_linked(edge))
            .filter_map(|edge| edge["pkg"].as_str())
            .filter(|id| !packages.get(id).is_some_and(|package| is_macro(package)))
            .collect();
        waiting.extend(linked.iter().filter(|id| seen.insert(id)));
        dependencies.insert(id, linked);
    }
    let component = |id: &str, kind: &str| {
        let package = packages.get(id).with_context(|| format!("cargo metadata does not describe {id}"))?;
        Ok::<_, anyhow::Error>(component(package, sums, kind))
    };
    let reference = |id: &str| packages.get(id).map(|package| purl(package));
    let components: Result<Vec<Value>> =
        seen.iter().filter(|id| *id != root).map(|id| component(id, "library")).collect();
    let mut components = components?;
    components.sort_by_key(|component| component["bom-ref"].to_string());
    let mut edges: Vec<Value> = dependencies
        .iter()
        .map(|(id, linked)| {
            let mut on: Vec<String> = linked.iter().filter_map(|id| reference(id)).collect();
            on.sort();
            json!({ "ref": reference(id), "dependsOn": on })
        })
        .collect();
    edges.sort_by_key(|edge| edge["ref"].to_string());
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": component(root, "application")? },
        "components": components,
        "dependencies": edges,
    }))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Returns whether code of the package ends up in the program, rather than running while it is built or tested.
fn is_linked(edge: &Value) -> bool {
    items(&edge["dep_kinds"]).any(|kind| kind["kind"].is_null())
}

/// Returns whether the package's code runs in the compiler.
fn is_macro(package: &Value) -> bool {
    items(&package["targets"]).any(|target| items(&target["kind"]).any(|kind| kind == "proc-macro"))
}

fn purl(package: &Value) -> String {
    let field = |name: &str| package[name].as_str().unwrap_or_default();
    format!("pkg:cargo/{}@{}", field("name"), field("version"))
}

fn component(package: &Value, sums: &BTreeMap<(String, String), String>, kind: &str) -> Value {
    let purl = purl(package);
    let mut component = json!({
        "type": kind,
        "bom-ref": purl,
        "name": package["name"],
        "version": package["version"],
        "purl": purl,
    });
    if let Some(license) = package["license"].as_str() {
        // The old way to write "or".
        component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
    }
    let key = |name: &str| package[name].as_str().unwrap_or_default().to_owned();
    if let Some(sum) = sums.get(&(key("name"), key("version"))) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Value {
        let edge = |id: &str, kind: Value| json!({ "pkg": id, "dep_kinds": [{ "kind": kind }] });
        json!({
            "packages": [
                { "id": "program", "name": "program", "version": "0.1.0", "license": "MIT" },
                { "id": "linked", "name": "linked", "version": "1.0.0", "license": "MIT/Apache-2.0" },
                { "id": "built", "name": "built", "version": "1.0.0", "license": "MIT" },
                { "id": "tested", "name": "tested", "version": "1.0.0", "license": "MIT" },
                { "id": "macro", "name": "macro", "version": "1.0.0", "targets": [{ "kind": ["proc-macro"] }] },
            ],
            "resolve": { "nodes": [
                { "id": "program", "deps": [
                    edge("linked", json!(null)), edge("built", json!("build")), edge("tested", json!("dev")),
                    edge("macro", json!(null)),
                ] },
                { "id": "linked", "deps": [] },
                { "id": "built", "deps": [] },
                { "id": "tested", "deps": [] },
            ] },
        })
    }

    #[test]
    fn the_list_has_what_is_linked_and_not_what_builds_or_tests_it() {
        let lock = "[[package]]\nname = \"linked\"\nversion = \"1.0.0\"\nchecksum = \"00ff\"\n";
        let list = list(&metadata(), &sums(lock), "program").unwrap();
        let linked = json!({
            "type": "library",
            "bom-ref": "pkg:cargo/linked@1.0.0",
            "name": "linked",
            "version": "1.0.0",
            "purl": "pkg:cargo/linked@1.0.0",
            "licenses": [{ "expression": "MIT OR Apache-2.0" }],
            "hashes": [{ "alg": "SHA-256", "content": "00ff" }],
        });
        assert_eq!(list["components"], json!([linked]));
        assert_eq!(list["metadata"]["component"]["purl"], "pkg:cargo/program@0.1.0");
        let program = json!({ "ref": "pkg:cargo/program@0.1.0", "dependsOn": ["pkg:cargo/linked@1.0.0"] });
        assert_eq!(list["dependencies"][1], program);
    }

    #[test]
    fn a_package_that_is_not_there_is_named() {
        let error = list(&metadata(), &BTreeMap::new(), "other").unwrap_err();
        assert_eq!(error.to_string(), "no package is called other");
    }
}
