//! Ctrl-C while something starts that would have stayed.

#![allow(clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dev_cluster::{Tools, runs, wait};
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(60);

/// Ended with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_cluster_that_is_interrupted_while_it_starts_leaves_nothing() {
    let Some(tools) = Tools::from_environment() else { return };
    // A cache with the parts of the other one, and without its cluster.
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().canonicalize().unwrap().join("modelrelay");
    fs::create_dir(&cache).unwrap();
    for program in [&tools.kube, &tools.etcd] {
        let part = program.parent().unwrap();
        symlink(part, cache.join(part.file_name().unwrap())).unwrap();
    }
    let folder = cache.join("cluster");

    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["cluster", "up", "--control-plane"]).env("XDG_CACHE_HOME", cache.parent().unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut xtask = Running(command.spawn().unwrap());
    let log = folder.join("log/kube-apiserver.log");
    wait::until("the API server starts", LIMIT, || Ok(log.exists().then_some(()))).unwrap();
    assert!(runs(&folder).unwrap());
    kill_process(Pid::from_child(&xtask.0), Signal::INT).unwrap();
    let status = wait::until("it ends", LIMIT, || Ok(xtask.0.try_wait()?)).unwrap();

    let mut said = String::new();
    xtask.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.ends_with("interrupted\n"), "{said}");
    assert!(!runs(&folder).unwrap() && !folder.exists(), "{said}");
}
