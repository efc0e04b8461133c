//! Relays, workers and stubs as processes. They are killed when they are dropped, and when the test has failed, the end
//! of their logs is printed.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::ops::Ops;
use crate::{eventually, soon};

/// What relays and workers know that were not told another secret.
pub const SECRET: &str = "wsecret-of-the-end-to-end-tests";

/// Returns the folder of the programs: `MODELRELAY_BIN_DIR`, else beside this one, built anew when they are not fresh.
fn binaries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("MODELRELAY_BIN_DIR") {
            return folder.into();
        }
        let test = std::env::current_exe().unwrap();
        let folder =
            test.parent().and_then(Path::parent).expect("tests run from target/PROFILE/deps").to_owned();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        build.args([
            "build",
            "--quiet",
            "-p",
            "modelrelay-relay",
            "-p",
            "modelrelay-worker",
            "-p",
            "dev-backend",
        ]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the programs cannot be built");
        folder
    })
}

/// Returns where a program of this workspace is.
pub fn program(name: &str) -> PathBuf {
    binaries().join(name)
}

/// A running program.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    folder: TempDir,
}

impl Program {
    /// Starts a program of this workspace with nothing in its environment but a log level, and a folder of its own to
    /// which `prepare` may add files.
    pub fn start(name: &str, program: &str, prepare: impl FnOnce(&mut Command, &Path)) -> Self {
        let mut command = Command::new(self::program(program));
        command.env_clear();
        Self::start_command(name, &mut command, prepare)
    }

    /// Starts any command.
    pub fn start_command(
        name: &str,
        command: &mut Command,
        prepare: impl FnOnce(&mut Command, &Path),
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let out = File::create(folder.path().join("out")).unwrap();
        command.stdin(Stdio::null()).stdout(out).stderr(log);
        prepare(command, folder.path());
        let child = command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self { name: name.to_owned(), child, folder }
    }

    /// Returns what it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Returns what it printed so far.
    pub fn output(&self) -> String {
        fs::read_to_string(self.folder.path().join("out")).unwrap()
    }

    /// Returns a file in its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to leave, as Kubernetes does.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Says how it ended, if it has.
    pub fn try_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        soon(&what, async {
            loop {
                if let Some(status) = self.try_ended() {
                    return status;
                }
                sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }

    /// Waits until it has logged a line with this message, and returns the line.
    pub async fn logged(&mut self, message: &str) -> Value {
        eventually(&format!("{message:?} in the log of {}", self.name), async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            let log = self.log();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["message"] == message)
        })
        .await
    }

    /// Returns what it holds of the machine.
    pub fn usage(&self) -> Usage {
        Usage::of(self.child.id())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(15)..];
            eprintln!("the end of the log of {}:\n{}", self.name, end.join("\n"));
        }
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open files, sockets among them.
    pub files: usize,
}

impl Usage {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
        };
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        Self { resident_bytes: field("VmRSS") * 1024, threads: field("Threads"), files }
    }
}

/// A relay.
#[derive(Debug)]
pub struct RelayProcess {
    /// The process.
    pub program: Program,
    /// Its client port.
    pub address: SocketAddr,
    /// Its operations port.
    pub ops: Ops,
}

impl RelayProcess {
    /// Starts a relay whose workers present [`SECRET`], with more settings.
    pub async fn start(yaml: &str) -> Self {
        Self::with(yaml, Some(SECRET), "info").await
    }

    /// Starts a relay with a worker secret, or only the credentials of its settings.
    pub async fn with(yaml: &str, secret: Option<&str>, level: &str) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), yaml, secret, level).await
    }

    /// The same, on an address of which the port may be that of a relay that has ended.
    pub async fn at(listen: SocketAddr, yaml: &str, secret: Option<&str>, level: &str) -> Self {
        let mut program = Program::start("the relay", "modelrelay-relay", |command, folder| {
            fs::write(folder.join("relay.yaml"), Self::settings(yaml)).unwrap();
            command.args(["--listen", &listen.to_string()]);
            command.env("RUST_LOG", level).arg("--config").arg(folder.join("relay.yaml"));
            if let Some(secret) = secret {
                fs::write(folder.join("secret"), secret).unwrap();
                command.arg("--worker-secret-file").arg(folder.join("secret"));
            }
        });
        let line = program.logged("Relay listens").await;
        let address = |name: &str| line[name].as_str().unwrap().parse().unwrap();
        Self { address: address("client"), ops: Ops(address("operations")), program }
    }

    fn settings(yaml: &str) -> String {
        format!("opsListen: 127.0.0.1:0\n{yaml}")
    }

    /// Rewrites its settings file, as an editor does.
    pub fn rewrite(&self, yaml: &str) {
        let (new, file) = (self.program.file("new"), self.program.file("relay.yaml"));
        fs::write(&new, Self::settings(yaml)).unwrap();
        fs::rename(new, file).unwrap();
    }

    /// Returns where workers dial in.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Starts a worker that presents [`SECRET`] and looks at its backend every second.
pub fn start_worker(name: &str, relay: &str, backend: &str, slots: u32) -> Program {
    start_worker_with(name, relay, backend, slots, SECRET, "info")
}

/// Starts a worker with this secret and log level.
pub fn start_worker_with(
    name: &str,
    relay: &str,
    backend: &str,
    slots: u32,
    secret: &str,
    level: &str,
) -> Program {
    Program::start(name, "modelrelay-worker", |command, folder| {
        fs::write(folder.join("worker.yaml"), "health: {intervalSeconds: 1}\n").unwrap();
        fs::write(folder.join("secret"), secret).unwrap();
        command.env("RUST_LOG", level);
        command.arg("--config").arg(folder.join("worker.yaml"));
        command.arg("--worker-secret-file").arg(folder.join("secret"));
        command.args(["--name", name, "--relay-url", relay, "--backend-url", backend]);
        command.args(["--max-concurrency", &slots.to_string()]);
    })
}

/// A stub backend.
#[derive(Debug)]
pub struct StubProcess {
    /// The process.
    pub program: Program,
    /// Where it listens.
    pub url: String,
}

impl StubProcess {
    /// Starts a stub on this address, of which the port may be 0, that does this with requests that ask for nothing else.
    pub async fn start(listen: &str, script: &Value) -> Self {
        let program = Program::start("the stub", "dev-backend", |command, _| {
            command.args(["--listen", listen, "--script", &script.to_string()]);
        });
        let url = eventually("the stub's address", async || {
            program.output().lines().next().map(str::to_owned).filter(|line| line.starts_with("http://"))
        })
        .await;
        Self { program, url }
    }
}
