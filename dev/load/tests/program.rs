//! The two programs, as processes.

use std::process::{Output, Stdio};
use std::time::Duration;

use dev_backend::{Backend, Config};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

fn load(url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dev-load"));
    command.args(["--url", url]).kill_on_drop(true);
    command
}

async fn output(command: &mut Command) -> Output {
    timeout(DEADLINE, command.output()).await.expect("it ends in time").expect("it starts")
}

#[tokio::test]
async fn every_command_prints_one_line_of_json() {
    let backend = Backend::start(Config::default()).await.unwrap();
    for (arguments, count) in [
        (&["closed", "--connections", "2", "--requests", "5", "--answer-bytes", "100"][..], "/ok"),
        (&["open", "--rate", "100", "--duration", "0.1", "--streams", "1"], "/streams/ok"),
        (&["streams", "--streams", "2", "--chunks", "5", "--interval-ms", "1", "--anthropic"], "/ok"),
        (&["burst", "--streams", "5", "--chunks", "2", "--interval-ms", "1"], "/ok"),
        (&["cancel", "--requests", "2", "--when", "before-first-byte"], "/noticed"),
        (&["slow-reader", "--megabytes", "1", "--pause", "0.1", "--finish", "--streams", "1"], "/beside/ok"),
        (&["upload", "--mib", "0.5", "--duration", "0.1"], "/ok"),
    ] {
        let output = output(load(&backend.url()).args(arguments)).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "{arguments:?}");
        let report: Value = serde_json::from_str(&text).unwrap();
        assert!(report.pointer(count).and_then(Value::as_u64).unwrap() > 0, "{arguments:?}: {report}");
    }
}

#[tokio::test]
async fn a_target_elsewhere_is_refused() {
    for (url, says) in [("http://192.0.2.1:80", "loopback"), ("ftp://127.0.0.1", "URL")] {
        let output = output(load(url).arg("closed")).await;
        assert!(!output.status.success());
        assert!(String::from_utf8(output.stderr).unwrap().contains(says));
    }
}

#[tokio::test]
async fn held_streams_are_released_by_a_line_of_input() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let mut command = load(&backend.url());
    command
        .args(["hold", "--streams", "20", "--duration", "600"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let open = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&open).unwrap()["open"], 20);
    assert_eq!(backend.stats().running, 20);
    child.stdin.take().unwrap().write_all(b"release\n").await.unwrap();
    let released = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&released).unwrap()["released"], 20);
    assert!(timeout(DEADLINE, child.wait()).await.unwrap().unwrap().success());
    backend.wait_running(0, DEADLINE).await.unwrap();
}
