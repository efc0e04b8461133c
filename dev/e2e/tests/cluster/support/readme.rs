//! The commands of the README's Kubernetes quick start, so that what is tested is what is written.

use std::fs;

/// Returns the commands that install the operator, from images that the nodes have instead of a registry's.
pub(crate) fn install() -> Vec<String> {
    let commands = block(0).into_iter().filter(|line| line.starts_with("helm "));
    let registry = "registry.example.com/team";
    let local: Vec<_> = commands.map(|line| line.replace(registry, "localhost")).collect();
    assert!(local.len() == 2 && local[1].contains("--set registry=localhost "), "{local:#?}");
    local
}

/// Returns the commands that make a relay and a pool.
pub(crate) fn create() -> Vec<String> {
    let lines: Vec<_> = block(0).into_iter().filter(|line| line.starts_with("kubectl ")).collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    lines
}

/// Returns the command that forwards a port of this machine to the relay.
pub(crate) fn forward() -> String {
    let mut lines = block(1).into_iter();
    lines.find(|line| line.starts_with("kubectl port-forward ")).expect("the README forwards a port")
}

/// Returns the commands of one of the section's blocks, each in one line.
fn block(number: usize) -> Vec<String> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let section = readme.split_once("\n### Kubernetes\n").expect("the README has a quick start").1;
    let block = section.split("\n```sh\n").nth(number + 1).unwrap().split_once("\n```").unwrap().0;
    block.replace("\\\n", " ").lines().map(str::to_owned).collect()
}
