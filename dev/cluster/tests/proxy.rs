//! The proxy between kubectl and a real API server. `cargo xtask test` says where the programs are; without them each test
//! says so on standard error and passes, or fails where `REQUIRE_ALL=1`.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use dev_cluster::proxy::{Call, Fault, Proxy, Rule, Verb};
use dev_cluster::{ControlPlane, Namespace, Options, Tools, wait};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);

fn shared() -> Option<&'static ControlPlane> {
    static SHARED: OnceLock<Option<ControlPlane>> = OnceLock::new();
    SHARED
        .get_or_init(|| Some(ControlPlane::start(&Tools::from_environment()?, Options::default()).unwrap()))
        .as_ref()
}

/// A proxy of its own, a namespace of its own, and an administrator who goes through the proxy.
struct Setting {
    plane: &'static ControlPlane,
    proxy: Proxy<'static>,
    namespace: Namespace,
    kubeconfig: PathBuf,
}

impl Setting {
    fn new(name: &str) -> Option<Self> {
        let plane = shared()?;
        let proxy = Proxy::start(plane).unwrap();
        let namespace = plane.namespace(name).unwrap();
        let kubeconfig = proxy.kubeconfig_for(name, &["system:masters"]).unwrap();
        Some(Self { plane, proxy, namespace, kubeconfig })
    }

    fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = self.plane.kubectl_as(&self.kubeconfig);
        command.args(arguments).args(["--namespace", self.namespace.name()]);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.kubectl(arguments).output().unwrap()
    }

    fn create(&self, name: &str) -> Output {
        self.run(&["create", "configmap", name, "--from-literal=key=value"])
    }

    fn is_there(&self, name: &str) -> bool {
        let path = format!("/api/v1/namespaces/{}/configmaps/{name}", self.namespace.name());
        self.plane.api().find(&path).unwrap().is_some()
    }
}

fn creates_map(call: &Call) -> bool {
    call.verb == Verb::Create && call.resource == "configmaps"
}

fn error(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_api_server_knows_who_asks_through_the_proxy() {
    let Some(setting) = Setting::new("identity") else { return };
    let kubeconfig = setting.proxy.kubeconfig_for_service_account("identity", "operator").unwrap();
    let kubectl =
        |arguments: &[&str]| setting.plane.kubectl_as(&kubeconfig).args(arguments).output().unwrap();
    let user = kubectl(&["auth", "whoami", "--output=jsonpath={.status.userInfo.username}"]);
    assert_eq!(String::from_utf8(user.stdout).unwrap(), "system:serviceaccount:identity:operator");
    let refused = error(&kubectl(&["create", "namespace", "refused"]));
    assert!(refused.contains("User \"system:serviceaccount:identity:operator\" cannot create"), "{refused}");
}

#[test]
fn a_token_that_the_proxy_does_not_know_is_the_api_servers_to_judge() {
    let Some(setting) = Setting::new("tokens") else { return };
    let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", setting.namespace.name());
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "own" } });
    setting.plane.api().create(&accounts, &account).unwrap();
    let token = setting.plane.service_account_token(setting.namespace.name(), "own").unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&setting.kubeconfig).unwrap()).unwrap();
    let whoami = |config: &serde_json::Value| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config.to_string()).unwrap();
        let mut kubectl = setting.plane.kubectl_as(file.path());
        kubectl.args(["auth", "whoami", "--output=jsonpath={.status.userInfo.username}"]).output().unwrap()
    };
    config["users"][0]["user"]["token"] = token.into();
    let user = String::from_utf8(whoami(&config).stdout).unwrap();
    assert_eq!(user, format!("system:serviceaccount:{}:own", setting.namespace.name()));
    config["users"][0]["user"]["token"] = "made-up".into();
    let refused = error(&whoami(&config));
    assert!(refused.contains("Unauthorized") || refused.contains("logged in"), "{refused}");
}

#[test]
fn the_second_write_meets_a_conflict_and_the_others_pass() {
    let Some(setting) = Setting::new("conflict") else { return };
    let hits = setting.proxy.add(Rule::new(Fault::CONFLICT, creates_map).nth(2));
    assert!(setting.create("one").status.success());
    let refused = error(&setting.create("two"));
    assert!(refused.contains("a fault that a test asked for"), "{refused}");
    assert!(setting.create("three").status.success());
    assert_eq!(["one", "two", "three"].map(|name| setting.is_there(name)), [true, false, true]);
    assert_eq!(hits.count(), 1);
}

#[test]
fn a_client_that_is_told_to_come_later_does() {
    let Some(setting) = Setting::new("later") else { return };
    let hits = setting.proxy.add(Rule::new(Fault::TOO_MANY_REQUESTS, creates_map).times(1));
    assert!(setting.create("patient").status.success());
    assert_eq!(hits.count(), 1);
    let calls = setting.proxy.calls();
    let statuses: Vec<_> = calls.iter().filter(|recorded| creates_map(&recorded.call)).collect();
    assert_eq!(statuses.iter().map(|recorded| recorded.status).collect::<Vec<_>>(), [Some(429), Some(201)]);
    assert!(statuses[1].at - statuses[0].at >= Duration::from_millis(900));
}

#[test]
fn a_connection_breaks_before_the_write_or_after_it() {
    let Some(setting) = Setting::new("broken") else { return };
    setting.proxy.add(Rule::new(Fault::BreakBefore, creates_map).nth(1));
    setting.proxy.add(Rule::new(Fault::BreakAfter, creates_map).nth(2));
    let texts = [error(&setting.create("before")), error(&setting.create("after"))];
    assert!(texts.iter().all(|text| text.contains("EOF")), "{texts:?}");
    assert_eq!(["before", "after"].map(|name| setting.is_there(name)), [false, true]);
}

#[test]
fn a_call_that_hangs_waits_for_its_client_to_give_up() {
    let Some(setting) = Setting::new("hanging") else { return };
    let hits = setting.proxy.add(Rule::new(Fault::Hang, creates_map));
    let output = setting.run(&["create", "configmap", "never", "--request-timeout=1s"]);
    // Which of its two clocks kubectl hears first decides over the words.
    let gave_up = ["Timeout exceeded", "context deadline exceeded"];
    assert!(gave_up.iter().any(|words| error(&output).contains(words)), "{output:?}");
    assert_eq!(hits.count(), 1);
    setting.proxy.clear();
    assert!(!setting.is_there("never"));
    assert!(setting.create("now").status.success());
}

/// kubectl following the config maps; its lines come by a channel.
struct Follower {
    kubectl: Child,
    lines: mpsc::Receiver<String>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Follower {
    fn start(setting: &Setting) -> Self {
        let open = setting.proxy.open_watches(|_| true);
        let mut command = setting.kubectl(&["get", "configmaps", "--watch", "--output=name"]);
        let mut kubectl = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = BufReader::new(kubectl.stdout.take().unwrap());
        let (sender, lines) = mpsc::sync_channel(100);
        let reader = thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| sender.send(line).unwrap_or_default());
        });
        let opened = || setting.proxy.open_watches(|_| true) > open;
        wait::until("the watch", LIMIT, || Ok(opened().then_some(()))).unwrap();
        Self { kubectl, lines, reader: Some(reader) }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

#[test]
fn a_silent_watch_stays_open_and_tells_nothing() {
    let Some(setting) = Setting::new("silent") else { return };
    let follower = Follower::start(&setting);
    assert!(setting.create("heard").status.success());
    assert_eq!(follower.lines.recv_timeout(LIMIT).unwrap(), "configmap/heard");
    assert_eq!(setting.proxy.silence_watches(|call| call.resource == "configmaps"), 1);
    assert!(setting.create("unheard").status.success());
    // A watch that is opened now hears of both, so there was something to tell.
    let other = Follower::start(&setting);
    let heard: Vec<_> = (0..2).map(|_| other.lines.recv_timeout(LIMIT).unwrap()).collect();
    assert_eq!(heard, ["configmap/heard", "configmap/unheard"]);
    // And of what comes after that.
    assert!(setting.create("late").status.success());
    assert_eq!(other.lines.recv_timeout(LIMIT).unwrap(), "configmap/late");
    assert_eq!(setting.proxy.open_watches(|_| true), 2);
    assert!(follower.lines.try_recv().is_err());
}

#[test]
fn a_watch_that_is_cut_ends_for_its_client() {
    let Some(setting) = Setting::new("cut") else { return };
    let mut follower = Follower::start(&setting);
    assert_eq!(setting.proxy.cut_watches(|call| call.resource == "secrets"), 0);
    assert_eq!(setting.proxy.cut_watches(|call| call.resource == "configmaps"), 1);
    wait::until("kubectl's end", LIMIT, || Ok(follower.kubectl.try_wait()?)).unwrap();
    assert_eq!(setting.proxy.open_watches(|_| true), 0);
}

#[test]
fn calls_are_counted_by_user_verb_and_kind_and_kept_with_their_bodies() {
    let Some(setting) = Setting::new("counted") else { return };
    assert!(setting.create("one").status.success());
    assert!(setting.create("two").status.success());
    assert!(setting.run(&["delete", "configmap", "one", "--wait=false"]).status.success());
    let counts = setting.proxy.counts();
    let count = |verb| {
        let kinds = counts.iter().filter(|(kind, _)| kind.resource == "configmaps" && kind.verb == verb);
        kinds.map(|(kind, count)| (kind.user.clone().unwrap(), *count)).collect::<Vec<_>>()
    };
    assert_eq!(count(Verb::Create), [("counted".to_owned(), 2)]);
    assert_eq!(count(Verb::Delete), [("counted".to_owned(), 1)]);
    assert_eq!(setting.proxy.writes(), 3);
    let calls = setting.proxy.calls();
    let created: Vec<_> = calls.iter().filter(|recorded| creates_map(&recorded.call)).collect();
    // kubectl writes protobuf here, in which strings stand as they are.
    let bodies: Vec<_> =
        created.iter().map(|recorded| String::from_utf8_lossy(&recorded.call.body)).collect();
    assert!(bodies[0].contains("one") && bodies[1].contains("two"), "{bodies:?}");
    setting.proxy.forget();
    assert_eq!((setting.proxy.writes(), setting.proxy.counts().len()), (0, 0));
}
