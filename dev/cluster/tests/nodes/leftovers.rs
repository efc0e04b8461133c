//! What a cluster leaves of itself: nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use dev_cluster::{Cluster, NodeTools, Tools, wait};

use crate::support::{LIMIT, busybox, namespace, ready_pod, run_pod, start};

/// Everything on this machine by which a cluster can be told: processes, control groups and network devices. Mounts are
/// seen by those processes only, unless they are this process's, too.
fn traces(folder: &Path, device: &str) -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let mark = format!("MODELRELAY_CLUSTER={}", folder.display());
    for process in fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()) {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        let marked = environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes());
        let group = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        if marked || group.contains(&format!("/modelrelay-{device}-")) {
            traces.insert(format!("process {}", process.display()));
        }
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()) {
        let inside = fs::read_dir(&hierarchy).into_iter().flatten().flatten().map(|entry| entry.path());
        let groups = inside.chain([hierarchy]).filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&format!("modelrelay-{device}-")))
        });
        traces.extend(groups.map(|path| format!("control group {}", path.display())));
    }
    if Path::new("/sys/class/net").join(device).exists() {
        traces.insert(format!("network device {device}"));
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    traces.extend(mounts.lines().filter(|line| line.contains(&*folder.to_string_lossy())).map(str::to_owned));
    if folder.exists() {
        traces.insert(format!("folder {}", folder.display()));
    }
    traces
}

fn device(address: std::net::Ipv4Addr) -> String {
    format!("mr{}", address.octets()[1])
}

fn wait_clean(folder: &Path, device: &str) {
    let clean = wait::until("no traces", LIMIT, || Ok(traces(folder, device).is_empty().then_some(())));
    assert!(clean.is_ok(), "{:#?}", traces(folder, device));
}

const SYSCTLS: [&str; 4] =
    ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];

fn sysctls() -> [String; 4] {
    SYSCTLS.map(|name| fs::read_to_string(format!("/proc/sys/{name}")).unwrap())
}

fn with_a_pod(cluster: &Cluster) {
    let plane = cluster.control_plane();
    let namespace = namespace(plane, "pod");
    run_pod(plane, &namespace, "sleeper", &busybox(None, &["sleep", "1000"]));
    ready_pod(plane, &namespace, "sleeper");
    // It is there when the end comes.
    std::mem::forget(namespace);
}

#[test]
fn nothing_is_left_of_a_dropped_cluster() {
    let before = sysctls();
    let Some(cluster) = start(1) else { return };
    with_a_pod(&cluster);
    let (folder, device) = (cluster.control_plane().folder().to_owned(), device(cluster.machine()));
    let during = traces(&folder, &device);
    for kind in ["process", "control group", "network device", "folder"] {
        assert!(during.iter().any(|trace| trace.starts_with(kind)), "no {kind} in {during:?}");
    }
    assert_eq!(sysctls(), before);
    drop(cluster);
    assert!(!Path::new("/sys/class/net").join(&device).exists());
    wait_clean(&folder, &device);
    assert_eq!(sysctls(), before);
}

#[test]
fn nothing_is_left_when_the_owner_of_a_cluster_is_killed() {
    let (Some(_), Some(_)) = (Tools::from_environment(), NodeTools::from_environment()) else { return };
    // This program again, with a test that waits for its end.
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leftovers::owner_that_is_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
    let found = lines.filter_map(|line| Some(line.split_once("cluster: ")?.1.to_owned())).next();
    let Some(found) = found else {
        // It said why.
        owner.wait().unwrap();
        return;
    };
    let (device, folder) = found.split_once(' ').unwrap();
    let folder = PathBuf::from(folder);
    assert!(!traces(&folder, device).is_empty());
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_clean(&folder, device);
}

#[test]
#[ignore = "the test that kills its owner runs it"]
fn owner_that_is_killed() {
    let Some(cluster) = start(1) else { return };
    with_a_pod(&cluster);
    println!("cluster: {} {}", device(cluster.machine()), cluster.control_plane().folder().display());
    thread::park_timeout(LIMIT);
    panic!("nobody killed this process in time");
}
