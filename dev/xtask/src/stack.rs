//! A relay and a worker as processes on loopback.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::chat;
use crate::process::{self, Running};

/// How long a relay or a worker may take until it serves.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(30);

/// What a relay and its worker have in common.
#[derive(Debug)]
pub(crate) struct Stack<'a> {
    /// Where the programs are.
    pub(crate) binaries: &'a Path,
    /// For their logs and their secret.
    pub(crate) folder: &'a Path,
    /// Requests that the worker takes at once.
    pub(crate) slots: u32,
}

impl Stack<'_> {
    /// Starts a relay, puts it before the others, and returns its URL when it serves.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start_relay(&self, running: &mut Vec<Running>) -> Result<String> {
        if !self.secret().exists() {
            write_secret(&self.secret())?;
        }
        let (listen, operations) = (free_address()?, free_address()?);
        let mut relay = self.program("modelrelay-relay");
        relay.args(["--listen", &listen, "--ops-listen", &operations]);
        running.insert(0, Running::start_logged("the relay", &mut relay, &self.log("relay", running.len()))?);
        let url = format!("http://{listen}");
        let health = format!("{url}/health");
        process::wait_ready("the relay's health", START_LIMIT, &mut running[..1], || chat::answers(&health))?;
        Ok(url)
    }

    /// Starts a worker between a relay and a backend, and puts it before the others.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start_worker(
        &self,
        relay_url: &str,
        backend_url: &str,
        running: &mut Vec<Running>,
    ) -> Result<()> {
        self.start_worker_of(&[relay_url], backend_url, running)
    }

    /// Starts a worker between several relays and a backend, and puts it before the others.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start_worker_of(
        &self,
        relay_urls: &[&str],
        backend_url: &str,
        running: &mut Vec<Running>,
    ) -> Result<()> {
        let mut worker = self.program("modelrelay-worker");
        worker.args(relay_urls.iter().flat_map(|url| ["--relay-url", url]));
        worker.args(["--backend-url", backend_url, "--name", "worker"]);
        worker.args(["--max-concurrency", &self.slots.to_string()]);
        running
            .insert(0, Running::start_logged("the worker", &mut worker, &self.log("worker", running.len()))?);
        Ok(())
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.binaries.join(name));
        command.arg("--worker-secret-file").arg(self.secret());
        // What the user's shell may hold for other relays and workers.
        for name in ["CONFIG_FILE", "WORKER_SECRET", "PROXY_URL", "RELAY_URL", "MODELS", "PROVIDER_NAME"] {
            command.env_remove(name);
        }
        command
    }

    /// Returns the log of one of several programs of a kind.
    fn log(&self, kind: &str, number: usize) -> PathBuf {
        self.folder.join(format!("{kind}-{number}.log"))
    }

    /// Returns the file with the secret that workers show.
    pub(crate) fn secret(&self) -> PathBuf {
        self.folder.join("worker-secret")
    }
}

fn write_secret(path: &Path) -> Result<()> {
    let mut random = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .context("read random bytes")?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).context("write the worker secret")
}

/// Returns a loopback port that nothing listens on.
///
/// # Errors
/// When there is none.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr().context("read the free port")?.port())
}

fn free_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn worker_secret_is_long_different_each_time_and_only_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        write_secret(&one).unwrap();
        write_secret(&two).unwrap();
        assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&one).unwrap().len(), 64);
        assert_ne!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    }
}
