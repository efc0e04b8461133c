//! A control plane as tests use it. `cargo xtask test` says where its programs are; without them each test says so on
//! standard error and passes, or fails where `REQUIRE_ALL=1`.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use dev_cluster::{ControlPlane, Options, Patch, Tools, runs, wait};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

fn shared() -> Option<&'static ControlPlane> {
    static SHARED: OnceLock<Option<ControlPlane>> = OnceLock::new();
    let options = Options { controller_manager: true, scheduler: true, ..Options::default() };
    SHARED.get_or_init(|| Some(ControlPlane::start(&Tools::from_environment()?, options).unwrap())).as_ref()
}

fn bare() -> Option<ControlPlane> {
    Some(ControlPlane::start(&Tools::from_environment()?, Options::default()).unwrap())
}

fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "key": "value" } })
}

fn wait_gone(folder: &Path) {
    wait::until("the cluster is gone", LIMIT, || Ok((!folder.exists() && !runs(folder)?).then_some(())))
        .unwrap();
}

#[test]
fn kubectl_sees_the_version_that_is_pinned() {
    let Some(plane) = shared() else { return };
    let output = plane.kubectl().args(["version", "--output=json"]).output().unwrap();
    let versions: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(versions["serverVersion"]["gitVersion"], "v1.36.2");
    assert_eq!(versions["clientVersion"]["gitVersion"], "v1.36.2");
    assert_eq!(versions["serverVersion"]["minor"], "36");
}

#[test]
fn users_may_do_nothing_until_a_role_lets_them() {
    let Some(plane) = shared() else { return };
    let namespace = plane.namespace("users").unwrap();
    let kubeconfig = plane.kubeconfig_for("jane", Some("engineers")).unwrap();
    let list = || {
        let mut kubectl = plane.kubectl_as(&kubeconfig);
        kubectl.args(["get", "configmaps", "--namespace", namespace.name()]).output().unwrap()
    };
    let refused = list();
    assert!(!refused.status.success());
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("User \"jane\" cannot list resource \"configmaps\""), "{text}");

    let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}", namespace.name());
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": { "name": "engineers" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "engineers" }],
    });
    plane.api().create(&format!("{roles}/rolebindings"), &binding).unwrap();
    wait::until("the role is in force", LIMIT, || Ok(list().status.success().then_some(()))).unwrap();
}

#[test]
fn a_service_account_is_who_its_token_says() {
    let Some(plane) = shared() else { return };
    let namespace = plane.namespace("accounts").unwrap();
    let account = format!("/api/v1/namespaces/{}/serviceaccounts/default", namespace.name());
    wait::until("the default account", LIMIT, || plane.api().find(&account)).unwrap();
    let kubeconfig = plane.kubeconfig_for_service_account(namespace.name(), "default").unwrap();
    let output = plane
        .kubectl_as(&kubeconfig)
        .args(["auth", "whoami", "--output=jsonpath={.status.userInfo.username}"])
        .output()
        .unwrap();
    let user = format!("system:serviceaccount:{}:default", namespace.name());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), user);
}

#[test]
fn a_restricted_namespace_refuses_a_pod_that_is_root() {
    let Some(plane) = shared() else { return };
    let labels = [("pod-security.kubernetes.io/enforce", "restricted")];
    let namespace = plane.labelled_namespace("restricted", &labels).unwrap();
    let account = format!("/api/v1/namespaces/{}/serviceaccounts/default", namespace.name());
    wait::until("the default account", LIMIT, || plane.api().find(&account)).unwrap();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "root" },
        "spec": { "containers": [{ "name": "root", "image": "root", "securityContext": { "runAsUser": 0 } }] },
    });
    let refused =
        plane.api().create(&format!("/api/v1/namespaces/{}/pods", namespace.name()), &pod).unwrap_err();
    assert!(refused.to_string().contains("violates PodSecurity \"restricted:latest\""), "{refused}");
}

#[test]
fn the_controllers_remove_what_a_deleted_owner_leaves() {
    let Some(plane) = shared() else { return };
    let namespace = plane.namespace("owners").unwrap();
    let maps = format!("/api/v1/namespaces/{}/configmaps", namespace.name());
    let owner = plane.api().create(&maps, &config_map("owner")).unwrap();
    let reference = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"],
    }]);
    let mut child = config_map("child");
    child["metadata"]["ownerReferences"] = reference;
    plane.api().create(&maps, &child).unwrap();
    plane.api().delete(&format!("{maps}/owner")).unwrap();
    wait::until("the child is gone", LIMIT, || {
        Ok(plane.api().find(&format!("{maps}/child"))?.is_none().then_some(()))
    })
    .unwrap();
}

#[test]
fn a_dropped_namespace_goes_with_all_that_is_in_it() {
    let Some(plane) = shared() else { return };
    let namespace = plane.namespace("dropped").unwrap();
    let path = format!("/api/v1/namespaces/{}", namespace.name());
    plane.api().create(&format!("{path}/configmaps"), &config_map("inside")).unwrap();
    drop(namespace);
    wait::until("the namespace is gone", LIMIT, || Ok(plane.api().find(&path)?.is_none().then_some(())))
        .unwrap();
}

#[test]
fn a_restart_of_the_api_server_keeps_its_address_and_its_data() {
    let Some(plane) = bare() else { return };
    let maps = "/api/v1/namespaces/default/configmaps";
    plane.api().create(maps, &config_map("kept")).unwrap();
    let url = plane.url();
    plane.stop_api_server();
    assert!(plane.api().get(maps).is_err());
    plane.start_api_server().unwrap();
    assert_eq!(plane.url(), url);
    let path = format!("{maps}/kept");
    assert_eq!(plane.api().get(&path).unwrap()["data"]["key"], "value");
    let changed = plane.api().patch(&path, Patch::Merge, &json!({ "data": { "key": "new" } })).unwrap();
    assert_eq!(changed["data"]["key"], "new");
}

#[test]
fn nothing_is_left_of_a_dropped_control_plane() {
    let Some(plane) = bare() else { return };
    let folder = plane.folder().to_owned();
    assert!(runs(&folder).unwrap());
    drop(plane);
    assert!(!folder.exists());
    assert!(!runs(&folder).unwrap());
}

#[test]
fn nothing_is_left_when_the_owner_is_killed() {
    let Some(_) = Tools::from_environment() else { return };
    // This program again, with a test that waits for its end.
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_that_is_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let folder = announced_folder(owner.stdout.take().unwrap());
    assert!(runs(&folder).unwrap());
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_gone(&folder);
}

#[test]
fn a_sweep_removes_what_an_owner_left_whose_guard_was_killed_too() {
    let Some(_) = Tools::from_environment() else { return };
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_that_is_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let folder = announced_folder(owner.stdout.take().unwrap());
    // Nothing of a living owner is swept.
    assert!(!dev_cluster::sweep().unwrap().contains(&folder));
    let guard = guard_of(&folder);
    assert!(Command::new("kill").args(["-KILL", &guard]).status().unwrap().success());
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(runs(&folder).unwrap());
    assert!(dev_cluster::sweep().unwrap().contains(&folder));
    wait_gone(&folder);
}

/// Finds the process that has both the guard's script and the folder among its arguments.
fn guard_of(folder: &Path) -> String {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let guard = processes.map(|process| process.path()).find(|process| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let mut arguments = line.split(|&byte| byte == 0);
        arguments.any(|argument| argument == b"guard")
            && arguments.any(|argument| argument == folder.as_os_str().as_encoded_bytes())
    });
    guard.unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

fn announced_folder(output: impl std::io::Read) -> PathBuf {
    use std::io::BufRead;
    let lines = std::io::BufReader::new(output).lines().map_while(Result::ok);
    let found = lines.filter_map(|line| Some(line.split_once("folder: ")?.1.to_owned())).next();
    found.expect("the owner names its folder").into()
}

#[test]
#[ignore = "the test that kills its owner runs it"]
fn owner_that_is_killed() {
    let plane = bare().unwrap();
    println!("folder: {}", plane.folder().display());
    std::thread::park_timeout(LIMIT);
    panic!("nobody killed this process in time");
}

#[test]
fn a_cluster_that_was_left_runs_on_until_it_is_removed() {
    let Some(tools) = Tools::from_environment() else { return };
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("cluster");
    let options = Options { folder: Some(folder.clone()), ..Options::default() };
    let plane = ControlPlane::start(&tools, options).unwrap();
    let api = plane.api().clone();
    let folder = plane.leave().unwrap();
    api.get("/api/v1/namespaces/default").unwrap();
    dev_cluster::remove(&folder).unwrap();
    assert!(!runs(&folder).unwrap());
    assert!(api.get("/api/v1/namespaces/default").is_err());
}
