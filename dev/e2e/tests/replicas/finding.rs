//! How workers find all relays: by a name with several addresses, and behind one that balances.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dev_backend::{Backend, Config};
use dev_e2e::client::{CHAT, Ended, ask, chat, post};
use dev_e2e::link::Link;
use dev_e2e::ops::Ops;
use dev_e2e::process::{Program, RelayProcess, SECRET, program};
use dev_e2e::{eventually, floor};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::fleet::{SETTINGS, start_worker};

/// A name of its own in a file that stands for `/etc/hosts` in the programs' own view of the file system.
pub(crate) struct Names {
    folder: TempDir,
}

impl Names {
    pub(crate) const NAME: &str = "relays.test";

    /// Returns nothing, and says so loudly, where programs cannot have a view of their own.
    pub(crate) fn new() -> Option<Self> {
        let can =
            Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
        if !can {
            let text = "SKIPPED: names with several addresses need `unshare --mount`, which needs root";
            assert!(std::env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "{text}");
            // Not by a macro: what those print is shown for failed tests only.
            std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
            return None;
        }
        let names = Self { folder: TempDir::new().unwrap() };
        names.set(&[]);
        Some(names)
    }

    pub(crate) fn set(&self, addresses: &[SocketAddr]) {
        let line = |address: &SocketAddr| format!("{} {}\n", address.ip(), Self::NAME);
        let lines: String = addresses.iter().map(line).collect();
        // In place: the programs hold this very file.
        fs::write(self.folder.path().join("hosts"), format!("127.0.0.1 localhost\n{lines}")).unwrap();
    }

    /// Starts a program that sees these names.
    pub(crate) fn start(&self, name: &str, what: &str, prepare: impl FnOnce(&mut Command, &Path)) -> Program {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
        command.arg(self.folder.path().join("hosts")).arg(program(what));
        Program::start_command(name, &mut command, |command, folder| {
            command
                .env_clear()
                .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
                .env("RUST_LOG", "info");
            fs::write(folder.join("secret"), SECRET).unwrap();
            command.arg("--worker-secret-file").arg(folder.join("secret"));
            prepare(command, folder);
        })
    }

    /// Starts a relay that counts the addresses of the name, with more settings.
    pub(crate) async fn relay(&self, listen: SocketAddr, yaml: &str) -> (Program, SocketAddr, Ops) {
        let mut program = self.start("a relay", "modelrelay-relay", |command, folder| {
            let yaml = format!("opsListen: 127.0.0.1:0\nreplicasFrom: {}\n{yaml}", Self::NAME);
            fs::write(folder.join("relay.yaml"), yaml).unwrap();
            command.args(["--listen", &listen.to_string()]).arg("--config").arg(folder.join("relay.yaml"));
        });
        let line = program.logged("Relay listens").await;
        let address = |name: &str| line[name].as_str().unwrap().parse().unwrap();
        (program, address("client"), Ops(address("operations")))
    }

    /// Starts a worker of one model that follows the name, at this port.
    pub(crate) fn worker(&self, name: &str, port: u16, backend: &str) -> Program {
        self.start(name, "modelrelay-worker", |command, _| {
            command.args(["--name", name, "--max-concurrency", "2", "--models", "m"]);
            command.args(["--ops-listen", "127.0.0.1:0", "--backend-url", backend]);
            command.args(["--relay-resolve", "All", "--relay-url", &format!("http://{}:{port}", Self::NAME)]);
        })
    }
}

pub(crate) async fn replicas_known(ops: &Ops, n: f64) {
    eventually(&format!("{n} replicas"), async || {
        (ops.metric("modelrelay_replicas").await == n).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_gains_and_loses_addresses_is_followed() {
    let _floor = floor::shared().await;
    let Some(names) = Names::new() else { return };
    let (mut first, one, one_ops) = names.relay("127.0.0.1:0".parse().unwrap(), "").await;
    let at = |last: u8| SocketAddr::from(([127, 0, 0, last], one.port()));
    let (_second, two, two_ops) = names.relay(at(2), "").await;
    names.set(&[one, two]);
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut worker = names.worker("worker-0", one.port(), &backend.url());
    one_ops.workers_ready(1).await;
    two_ops.workers_ready(1).await;
    replicas_known(&one_ops, 2.0).await;

    // Another relay comes: it is found within the time between two lookups.
    let (_third, three, three_ops) = names.relay(at(3), "").await;
    names.set(&[one, two, three]);
    three_ops.workers_ready(1).await;
    for ops in [one_ops, two_ops, three_ops] {
        replicas_known(&ops, 3.0).await;
        ops.workers_ready(1).await;
    }
    // One goes, and with it its address: nobody dials that any more.
    names.set(&[two, three]);
    worker.logged("The relay's name lost an address").await;
    replicas_known(&two_ops, 2.0).await;
    one_ops.workers_ready(1).await;
    first.terminate();
    first.ended().await;
    let nobody = TcpListener::bind(one).await.unwrap();
    let dialled = timeout(Duration::from_secs(3), nobody.accept()).await;
    assert!(dialled.is_err(), "an address that is gone was dialled");
    for address in [two, three] {
        let answer = ask(address, post(CHAT, chat(true, &json!({})))).await;
        assert_eq!(answer.stream().await, Ended::Whole(20));
    }
    assert!(!worker.log().contains("ERROR"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_whose_name_cannot_be_looked_up_any_more_is_asked_where_it_was() {
    let _floor = floor::shared().await;
    let Some(names) = Names::new() else { return };
    let relay = RelayProcess::start(SETTINGS).await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let address: SocketAddr = backend.url().trim_start_matches("http://").parse().unwrap();
    names.set(&[address]);
    let _worker = names.start("the worker", "modelrelay-worker", |command, _| {
        command.args(["--max-concurrency", "8", "--relay-url", &relay.url()]);
        command.args(["--backend-url", &format!("http://{}:{}", Names::NAME, address.port())]);
    });
    relay.ops.workers_ready(1).await;
    names.set(&[]);
    // More at once than connections that may be left.
    let stream = async || ask(relay.address, post(CHAT, chat(true, &json!({})))).await.stream().await;
    let ended = tokio::join!(stream(), stream(), stream(), stream());
    assert_eq!(<[Ended; 4]>::from(ended), [const { Ended::Whole(20) }; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_behind_one_address_are_all_found_and_none_is_held_twice() {
    let _floor = floor::shared().await;
    let mut relays = Vec::new();
    for _ in 0..3 {
        relays.push(RelayProcess::start(SETTINGS).await);
    }
    let addresses: Vec<SocketAddr> = relays.iter().map(|relay| relay.address).collect();
    let balancer = Link::among(&addresses, Duration::ZERO).await;
    let backend = Backend::start(Config::default()).await.unwrap();
    // Two know the balancer only, the third all addresses there are.
    let mut all: Vec<String> = relays.iter().map(RelayProcess::url).collect();
    all.push(balancer.url());
    let ways = [vec![balancer.url()], vec![balancer.url()], all];
    let mut workers = Vec::new();
    for (n, ways) in ways.iter().enumerate() {
        workers.push(start_worker(&format!("worker-{n}"), ways, &backend.url(), 1, &json!({})));
    }
    let each_once = async |relay: &RelayProcess| {
        relay.ops.workers_ready(3).await;
        let rows = relay.ops.admin("workers").await;
        let mut names: Vec<&str> =
            rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["worker-0", "worker-1", "worker-2"]);
    };
    for relay in &relays {
        each_once(relay).await;
    }
    // One is killed and comes back as another: it is found again, behind the same address.
    relays[1].program.kill();
    relays[1] = RelayProcess::at(addresses[1], SETTINGS, Some(SECRET), "info").await;
    for relay in &relays {
        each_once(relay).await;
    }
}
