//! Namespaces that a process holds open: what is inside goes with it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::daemon::{self, Daemon};
use crate::folder::Folder;

const LIMIT: Duration = Duration::from_secs(30);
const FURNISH: &str = include_str!("room.sh");

/// Namespaces of their own for network, and of a node also for mounts and processes.
#[derive(Debug)]
pub(crate) struct Room {
    holder: Daemon,
    door: Door,
}

/// How to get into a room; it keeps nothing open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Door {
    pid: u32,
    node: bool,
}

impl Room {
    /// Opens a room that has only a network.
    pub(crate) fn hub(folder: &Folder) -> Result<Self> {
        let mut command = folder.command(Path::new("unshare"));
        command.args(["--net", "sleep", "infinity"]);
        let mut holder = Daemon::start("hub", &mut command, &folder.path().join("log"))?;
        let pid = holder.pid();
        // It is in its namespace when it is no longer `unshare`.
        holder.wait_ready(LIMIT, || (program(pid)? == b"sleep").then_some(()))?;
        Ok(Self { holder, door: Door { pid, node: false } })
    }

    /// Opens a room for a node: what is written to the machine's `/run` and `/var` in there stays in there, in `own`.
    pub(crate) fn node(name: &str, folder: &Folder, own: &Path) -> Result<Self> {
        let mut command = folder.command(Path::new("unshare"));
        // Its first process is the parent of all, and nothing in there outlives it: neither processes nor mounts.
        command.args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child=KILL",
        ]);
        command.args(["--mount-proc", "sh", "-c", FURNISH, "room"]).arg(own).arg(folder.path());
        let done = own.join("furnished");
        let mut holder = Daemon::start(name, &mut command, &folder.path().join("log"))?;
        let outer = holder.pid();
        let pid = holder.wait_ready(LIMIT, || {
            done.exists().then(|| daemon::children(outer).first().copied()).flatten()
        })?;
        Ok(Self { holder, door: Door { pid, node: true } })
    }

    pub(crate) fn door(&self) -> Door {
        self.door
    }

    pub(crate) fn leave(&mut self) {
        self.holder.leave();
    }

    pub(crate) fn is_left(&self) -> bool {
        self.holder.is_left()
    }
}

impl Door {
    /// Returns the process whose namespaces these are.
    pub(crate) fn pid(self) -> u32 {
        self.pid
    }

    /// Prepares a command in the room.
    pub(crate) fn command(self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--net"]);
        if self.node {
            command.args(["--mount", "--pid"]);
        }
        command.arg("--").arg(program);
        command
    }

    /// Sets what the kernel keeps for each network.
    pub(crate) fn write_sysctl(self, name: &str, value: &str) -> Result<()> {
        let mut command = self.command(Path::new("sh"));
        command.args(["-c", "echo \"$2\" >\"/proc/sys/$1\"", "sysctl", name, value]);
        let output = command.output().context("start nsenter")?;
        anyhow::ensure!(output.status.success(), "set {name}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

fn program(pid: u32) -> Option<Vec<u8>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let name = line.split(|&byte| byte == 0).next()?;
    Some(Path::new(std::ffi::OsStr::from_bytes(name)).file_name()?.as_bytes().to_owned())
}
