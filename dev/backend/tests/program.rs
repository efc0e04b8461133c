//! The stub as a process.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn it_says_where_it_listens_and_ends_on_sigterm() {
    let ready = std::env::temp_dir().join(format!("dev-backend-ready-{}", std::process::id()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_dev-backend"));
    command.args(["--models", "a,b", "--flavour", "vllm", "--script", r#"{"status":418}"#, "--ready-file"]);
    let mut child = command.arg(&ready).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let addr = url.strip_prefix("http://").unwrap();

    for (request, expected) in [
        ("GET /v1/models HTTP/1.1\r\nconnection: close\r\n\r\n", "\"id\":\"b\""),
        (
            "POST /v1/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: 13\r\n\r\n{\"model\":\"a\"}",
            " 418 ",
        ),
        ("GET /stub/stats HTTP/1.1\r\nconnection: close\r\n\r\n", "\"requests\":1"),
    ] {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.contains(expected), "{answer}");
    }

    let kill = Command::new("kill").arg(child.id().unwrap().to_string()).status();
    assert!(timeout(DEADLINE, kill).await.unwrap().unwrap().success());
    assert!(timeout(DEADLINE, child.wait()).await.unwrap().unwrap().success());
    // Written after the address was printed, and before anything else could end the process.
    assert_eq!(std::fs::read_to_string(&ready).unwrap(), addr);
    std::fs::remove_file(&ready).unwrap();
}
