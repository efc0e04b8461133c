//! Who takes part: a stub backend, directly and through those that are compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::load::Load;
use super::usage::Usage;
use crate::chat;
use crate::parts::Part;
use crate::process::{self, Running};
use crate::stack::{self, Stack};

const START_LIMIT: Duration = Duration::from_secs(20);
/// More than any measure has open at once.
const SLOTS: u32 = 20_000;

/// One way from the load to the stub backend.
#[derive(Debug)]
pub(crate) struct Contender {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// Where the load goes.
    pub(crate) url: String,
    /// The newest first.
    processes: Vec<Running>,
}

impl Contender {
    /// Returns the stub itself, which nothing is measured of.
    pub(crate) fn direct(stub_url: &str) -> Self {
        Self { name: "direct", url: stub_url.to_owned(), processes: Vec::new() }
    }

    /// Starts nginx as a plain reverse proxy.
    ///
    /// # Errors
    /// When it cannot be had or does not start.
    pub(crate) fn nginx(stub_url: &str, folder: &Path) -> Result<Self> {
        let port = stack::free_port()?;
        let settings = folder.join("nginx.conf");
        let stub = stub_url.trim_start_matches("http://");
        fs::write(&settings, nginx_settings(folder, stub, port)).context("write nginx's settings")?;
        let mut command = Command::new(Part::Nginx.path()?);
        command.arg("-e").arg(folder.join("nginx-error.log")).arg("-p").arg(folder).arg("-c").arg(&settings);
        let mut processes = vec![Running::start_logged("nginx", &mut command, &folder.join("nginx.log"))?];
        let url = format!("http://127.0.0.1:{port}");
        wait_for_models("nginx", &url, &mut processes)?;
        Ok(Self { name: "nginx", url, processes })
    }

    /// Starts a relay with one worker.
    ///
    /// # Errors
    /// When one of them does not start.
    pub(crate) fn modelrelay(stub_url: &str, folder: &Path, binaries: &Path) -> Result<Self> {
        let mut processes = Vec::new();
        let stack = Stack { binaries, folder, slots: SLOTS };
        let url = stack.start_relay(&mut processes)?;
        stack.start_worker(&url, stub_url, &mut processes)?;
        wait_for_models("the relay", &url, &mut processes)?;
        Ok(Self { name: "modelrelay", url, processes })
    }

    /// Whether there is anything to measure of it but its answers.
    pub(crate) fn has_processes(&self) -> bool {
        !self.processes.is_empty()
    }

    /// Reads what the part that clients talk to uses: the relay, or nginx.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn first_usage(&self) -> Result<Usage> {
        self.processes.last().map_or_else(|| Ok(Usage::default()), |process| Usage::of_group(process.group()))
    }

    /// Reads what the part that talks to the backend uses: the worker, or nginx.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn last_usage(&self) -> Result<Usage> {
        self.processes
            .first()
            .map_or_else(|| Ok(Usage::default()), |process| Usage::of_group(process.group()))
    }

    /// Reads what its processes use.
    ///
    /// # Errors
    /// When one of them has ended.
    pub(crate) fn usage(&self) -> Result<Usage> {
        usage_of(&self.processes)
    }
}

/// Several relays and their workers, each of which knows all relays.
#[derive(Debug)]
pub(crate) struct Fleet {
    urls: Vec<String>,
    /// Ended first.
    workers: Vec<Running>,
    relays: Vec<Running>,
}

impl Fleet {
    /// Starts them before the stub of a load. Without a number of slots nothing ever waits.
    ///
    /// # Errors
    /// When one of them does not start.
    pub(crate) fn start(relays: u32, workers: u32, slots: Option<u32>, load: &Load) -> Result<Self> {
        let stack = Stack { binaries: &load.binaries, folder: &load.folder, slots: slots.unwrap_or(SLOTS) };
        let mut fleet = Self { urls: Vec::new(), workers: Vec::new(), relays: Vec::new() };
        for _ in 0..relays {
            fleet.urls.push(stack.start_relay(&mut fleet.relays)?);
        }
        let urls: Vec<&str> = fleet.urls.iter().map(String::as_str).collect();
        for _ in 0..workers {
            stack.start_worker_of(&urls, &load.stub_url, &mut fleet.workers)?;
        }
        for url in &fleet.urls {
            wait_for_models("a relay", url, &mut fleet.workers)?;
        }
        Ok(fleet)
    }

    /// Returns where the load of this number goes.
    pub(crate) fn url(&self, number: u32) -> &str {
        &self.urls[number as usize % self.urls.len()]
    }

    /// Reads what all relays use.
    ///
    /// # Errors
    /// When one of them has ended.
    pub(crate) fn relay_usage(&self) -> Result<Usage> {
        usage_of(&self.relays)
    }

    /// Reads what all workers use.
    ///
    /// # Errors
    /// When one of them has ended.
    pub(crate) fn worker_usage(&self) -> Result<Usage> {
        usage_of(&self.workers)
    }
}

fn usage_of(processes: &[Running]) -> Result<Usage> {
    processes
        .iter()
        .try_fold(Usage::default(), |sum, process| Ok(sum.plus(Usage::of_group(process.group())?)))
}

/// Returns the file with the secret of a relay whose folder this is.
pub(crate) fn secret_file(binaries: &Path, folder: &Path) -> PathBuf {
    Stack { binaries, folder, slots: SLOTS }.secret()
}

/// Starts the stub backend and returns it with its URL.
///
/// # Errors
/// When it does not start.
pub(crate) fn stub(binaries: &Path, folder: &Path) -> Result<(Running, String)> {
    let url = format!("http://127.0.0.1:{}", stack::free_port()?);
    let mut command = Command::new(binaries.join("dev-backend"));
    command.args(["--listen", url.trim_start_matches("http://"), "--slots", &SLOTS.to_string()]);
    let mut stub = vec![Running::start_logged("the stub backend", &mut command, &folder.join("stub.log"))?];
    wait_for_models("the stub backend", &url, &mut stub)?;
    Ok((stub.remove(0), url))
}

fn wait_for_models(name: &str, url: &str, processes: &mut [Running]) -> Result<()> {
    process::wait_ready(name, START_LIMIT, processes, || chat::first_model(url)).map(drop)
}

/// As fast as nginx gets for this: connections to the backend are kept, nothing is buffered or logged.
fn nginx_settings(folder: &Path, stub: &str, port: u16) -> String {
    let folder = folder.display();
    format!(
        r"daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log crit;
user root;
worker_processes 2;
worker_rlimit_nofile 65536;
events {{ worker_connections 32768; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    keepalive_requests 1000000000;
    upstream stub {{ server {stub}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=16384;
        location / {{
            proxy_pass http://stub;
            proxy_http_version 1.1;
            proxy_set_header Connection '';
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"
    )
}
