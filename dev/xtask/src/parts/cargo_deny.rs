//! cargo-deny, built from its pinned version.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{cache, process, progress::Step, workspace};

const VERSION: &str = "0.20.2";

/// Returns the program, building it first when it is not there.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn install() -> Result<PathBuf> {
    let folder = cache::folder(&format!("cargo-deny-{VERSION}"), |folder| {
        let step = Step::begin(format!("Building cargo-deny {VERSION}, once; it takes minutes"));
        let build = folder.join("build");
        // A debug build takes a third of the time, and checks this workspace in a second all the same.
        let mut cargo =
            workspace::cargo(["install", "--locked", "--debug", "cargo-deny", "--version", VERSION]);
        cargo
            .arg("--root")
            .arg(folder)
            .arg("--target-dir")
            .arg(&build)
            .env("CARGO_PROFILE_DEV_DEBUG", "false");
        process::capture("cargo install", &mut cargo, || {})?;
        std::fs::remove_dir_all(build).context("remove the build folder")?;
        step.done();
        Ok(())
    })?;
    Ok(folder.join("bin/cargo-deny"))
}
