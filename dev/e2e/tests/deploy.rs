//! The files under `deploy/` that start a relay or a worker name what the programs understand.

#![allow(clippy::panic, clippy::unwrap_used, reason = "what goes wrong here is a failed test")]

use std::fs;
use std::path::Path;

use dev_e2e::process::{Program, SECRET};
use serde_json::Value;

fn deploy(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Lets a program check these arguments, with a file that is there in the place of the secret.
async fn check(program: &str, arguments: &[String], variables: &[(&str, &str)]) {
    let secret = arguments.iter().position(|argument| argument == "--worker-secret-file").unwrap() + 1;
    let mut program = Program::start(program, program, |command, folder| {
        let file = folder.join("secret");
        fs::write(&file, SECRET).unwrap();
        let mut arguments = arguments.to_owned();
        arguments[secret] = file.display().to_string();
        command.args(arguments).arg("--check-config").envs(variables.iter().copied());
    });
    let status = program.ended().await;
    assert!(status.success(), "{}{}", program.output(), program.log());
}

const ADDRESSES: [(&str, &str); 2] =
    [("RELAY_URL", "http://relay:8080"), ("BACKEND_URL", "http://127.0.0.1:11434")];

#[tokio::test]
async fn systemd_starts_both_programs_with_arguments_that_they_understand() {
    for name in ["modelrelay-relay", "modelrelay-worker"] {
        let unit = deploy(&format!("systemd/{name}.service"));
        let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let mut words = command.split(' ').map(str::to_owned);
        assert_eq!(words.next().unwrap(), format!("/usr/local/bin/{name}"));
        let arguments: Vec<String> = words.collect();
        let variables = if name.ends_with("worker") { &ADDRESSES[..] } else { &[] };
        check(name, &arguments, variables).await;
    }
}

#[tokio::test]
async fn launchd_starts_the_worker_with_arguments_that_it_understands() {
    let plist = deploy("launchd/io.modelrelay.worker.plist");
    let list = |key: &str, end: &str| {
        let after = plist.split_once(&format!("<key>{key}</key>")).unwrap().1;
        let inside = after.split_once(end).unwrap().0.to_owned();
        let parts =
            inside.split("<string>").skip(1).map(|part| part.split_once("</string>").unwrap().0.to_owned());
        (inside.clone(), parts.collect::<Vec<_>>())
    };
    let (_, words) = list("ProgramArguments", "</array>");
    assert_eq!(words[0], "/usr/local/bin/modelrelay-worker");
    let (inside, values) = list("EnvironmentVariables", "</dict>");
    let keys = inside.split("<key>").skip(1).map(|part| part.split_once("</key>").unwrap().0);
    let variables: Vec<(&str, &str)> = keys.zip(values.iter().map(String::as_str)).collect();
    assert_eq!(variables.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["RELAY_URL", "BACKEND_URL"]);
    check("modelrelay-worker", &words[1..], &variables).await;
}

#[tokio::test]
async fn compose_starts_both_programs_with_arguments_that_they_understand() {
    let compose = deploy("compose.yaml");
    let commands: Vec<Vec<String>> = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("command: "))
        .map(|list| serde_json::from_str::<Value>(list).unwrap())
        .map(|list| list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect())
        .collect();
    assert_eq!(commands.len(), 2);
    check("modelrelay-relay", &commands[0], &[("OPS_LISTEN_ADDR", "0.0.0.0:8081")]).await;
    check("modelrelay-worker", &commands[1], &ADDRESSES).await;
}
