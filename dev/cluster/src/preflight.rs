//! Whether this machine can run nodes, and what to do when it cannot.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use rustix::process::geteuid;

/// Makes sure that nodes can run here.
///
/// # Errors
/// When something is missing, with all of it and what to do about each.
pub fn check_nodes_can_run() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this machine cannot run nodes:\n- {}", missing.join("\n- "))
}

fn missing() -> Vec<String> {
    if !cfg!(target_os = "linux") {
        return vec!["nodes are Linux's: use a Linux machine, or a virtual one".to_owned()];
    }
    let mut missing = Vec::new();
    if !geteuid().is_root() {
        // Without it nothing else can be found out.
        return vec![
            "it takes root to make networks, mounts and control groups: run it as root (sudo -E)".to_owned(),
        ];
    }
    for (program, package) in [("unshare", "util-linux"), ("nsenter", "util-linux"), ("mount", "mount")] {
        if Command::new(program).arg("--version").output().is_err() {
            missing.push(format!("`{program}` is not there: install the package {package}"));
        }
    }
    let systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !systems.lines().any(|line| line.ends_with("\toverlay")) && !modprobe("overlay") {
        missing.push("the kernel has no overlayfs: load its module, or use a kernel with it".to_owned());
    }
    if !Path::new("/sys/fs/cgroup").join("cgroup.controllers").exists()
        && !Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists()
    {
        missing.push(
            "no control groups are mounted at /sys/fs/cgroup: in a container, run it privileged with the \
             host's control groups"
                .to_owned(),
        );
    }
    let unshared = Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "true"]).output();
    match unshared {
        Ok(output) if !output.status.success() => missing.push(format!(
            "new namespaces are not allowed ({}): in a container, run it privileged",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        _ => {}
    }
    missing
}

fn modprobe(module: &str) -> bool {
    Command::new("modprobe").arg(module).output().is_ok_and(|output| output.status.success())
}
