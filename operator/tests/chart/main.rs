//! The Helm charts: their values, what they render, and what is generated from them. `UPDATE_CHART=1 cargo test -p
//! modelrelay-operator --test chart` writes generated files anew.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

mod cluster;
mod helm;
mod install;
mod roles;
mod values;

use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Compares a generated file with what it should be, or writes it where `UPDATE_CHART=1`.
fn assert_generated(path: &str, text: &str) {
    let path = workspace().join(path);
    if std::env::var_os("UPDATE_CHART").is_some_and(|value| value == "1") {
        fs::write(&path, text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "{} is outdated: run with UPDATE_CHART=1", path.display());
}

/// Replaces what stands between two marks of a text.
fn between(text: &str, mark: &str, new: &str) -> String {
    let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- end of {mark} -->\n"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{begin} is missing"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{end} is missing"));
    format!("{before}{begin}{new}{end}{after}")
}
