//! Where the checkout is, and how to run Cargo on it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the root of the checkout that this program was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .and_then(Path::parent)
        .expect("the manifest stands two folders below the root")
}

/// Returns this package's source folder, where the scripts and templates stand.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns the folder that Cargo builds into.
pub(crate) fn target() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    root().join(target)
}

/// Returns the folder that Cargo builds a profile's binaries into.
pub(crate) fn binaries(profile: &str) -> PathBuf {
    target().join(profile)
}

/// Prepares a Cargo command on the checkout.
pub(crate) fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    of_its_own(Command::new(env!("CARGO")), arguments)
}

/// Prepares a script on the checkout that calls Cargo.
pub(crate) fn script<'a>(path: &str, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    of_its_own(Command::new(root().join(path)), arguments)
}

/// What `cargo run` told this program about its own package is not true of the packages built next. There are build scripts
/// that ask for it, and packages that are built again whenever it is another than before.
fn of_its_own<'a>(mut command: Command, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    command.current_dir(root()).args(arguments);
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_tells_of_this_package_is_not_told_to_programs() {
        let is_told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        assert!(env::vars().any(|(name, _)| is_told(&name)), "this test runs under Cargo");
        let printed = of_its_own(Command::new("env"), []).output().expect("it runs").stdout;
        let printed = String::from_utf8(printed).expect("names are text");
        assert!(printed.contains("PATH="), "{printed}");
        assert!(!printed.lines().any(is_told), "{printed}");
    }
}
