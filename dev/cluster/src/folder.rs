//! The folder of a cluster, and the guard that ends what was started for it.
//!
//! A guard is a small shell process. It holds the reading end of a pipe whose only writer is this process, so it learns
//! of this process's end even from `kill -9`, and a `static` that is never dropped needs no other care. It finds the
//! processes by a variable in their environment, which their own children have too, so that no list can be out of date.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::room::Door;
use crate::wait;

/// Names the folder in the environment of each process that was started for it.
const MARK: &str = "MODELRELAY_CLUSTER";
const PREFIX: &str = "modelrelay-cluster-";
const GUARD: &str = include_str!("guard.sh");
const GUARD_LIMIT: Duration = Duration::from_secs(30);

/// A folder that is gone, with every process that was started for it, when its owner is.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    guard: Child,
    // Tells `sweep` in another process that the owner lives; the kernel lets go of it with the owner.
    _lock: File,
}

impl Folder {
    /// Makes the folder at a path where nothing is yet, or a new one among the temporary ones.
    pub(crate) fn new(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir();
            return Self::guarded(folder.context("create a cluster's folder")?.keep());
        };
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        Self::guarded(path.canonicalize().context("find the cluster's folder")?)
    }

    fn guarded(path: PathBuf) -> Result<Self> {
        // Under its name it is locked from the first moment, or a sweep would take the folder for one without an owner.
        let (new, named) = (path.join("lock.new"), path.join("lock"));
        let lock = File::create(&new).context("create a lock file")?;
        lock.try_lock().context("lock the cluster's folder")?;
        fs::rename(new, named).context("name the lock file")?;
        let guard = guard(&path, Stdio::piped())?;
        for name in ["log", "pki"] {
            fs::create_dir(path.join(name)).with_context(|| format!("create the folder {name}"))?;
        }
        Ok(Self { path, guard, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Prepares a command that the guard ends; its working directory is the folder.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        self.mark(&mut command);
        command.current_dir(&self.path);
        command
    }

    /// Prepares the same behind a door, where the machine's files are.
    pub(crate) fn command_in(&self, door: Door, program: &Path) -> Command {
        let mut command = door.command(program);
        self.mark(&mut command);
        command.current_dir(&self.path);
        command
    }

    /// Lets the guard end what a command starts.
    pub(crate) fn mark(&self, command: &mut Command) {
        command.env(MARK, &self.path);
    }

    /// Sends the guard away: folder and processes stay.
    pub(crate) fn leave(mut self) -> Result<PathBuf> {
        let mut input = self.guard.stdin.take().context("the guard was sent away already")?;
        input.write_all(b"leave\n").context("send the guard away")?;
        Ok(self.path.clone())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // Nothing can be done about a guard that hangs but to go on.
        let _ = wait::until("the guard's end", GUARD_LIMIT, || Ok(self.guard.try_wait()?));
    }
}

fn guard(folder: &Path, input: Stdio) -> Result<Child> {
    let mark = format!("{MARK}={}", folder.display());
    let mut command = Command::new("sh");
    command.args(["-c", GUARD, "guard"]).arg(folder).arg(mark);
    // Not in the folder: it goes away.
    command.current_dir("/").stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().context("start the guard")
}

/// Ends what was started for a folder, whoever started it, and removes the folder.
///
/// # Errors
/// When something of it stays.
pub fn remove(folder: &Path) -> Result<()> {
    let mut guard = guard(folder, Stdio::null())?;
    wait::until("the cluster's end", GUARD_LIMIT, || Ok(guard.try_wait()?))?;
    if folder.exists() {
        bail!("{} could not be removed", folder.display());
    }
    Ok(())
}

/// Returns whether a process runs that was started for a folder, by whomever.
///
/// # Errors
/// When processes cannot be listed.
pub fn runs(folder: &Path) -> Result<bool> {
    let mark = format!("{MARK}={}", folder.display());
    let processes = fs::read_dir("/proc").context("list the processes")?.flatten();
    // One that has just ended has no environment.
    let mut environments = processes.filter_map(|process| fs::read(process.path().join("environ")).ok());
    Ok(environments
        .any(|variables| variables.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())))
}

/// Removes the temporary clusters whose owners and guards were both killed, and returns where they were.
///
/// # Errors
/// When something of them stays.
pub fn sweep() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(std::env::temp_dir()).context("list the temporary folders")?;
    let folders = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let mut swept = Vec::new();
    for path in folders.map(|entry| entry.path()) {
        // Without a lock file it was just made, or is just being removed.
        let Ok(lock) = File::open(path.join("lock")) else { continue };
        match lock.try_lock() {
            Ok(()) => {
                remove(&path)?;
                swept.push(path);
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error).context("look for a cluster's owner"),
        }
    }
    Ok(swept)
}
