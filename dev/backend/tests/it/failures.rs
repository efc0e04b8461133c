//! Answers that fail, each exactly where its script says.

use std::io::ErrorKind;

use dev_backend::{Backend, Config, refused_addr};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::client::{DEADLINE, chat, open, parse, receive};

#[tokio::test]
async fn resets_and_closes_fall_where_they_should() {
    let backend = Backend::start(Config::default()).await.unwrap();
    for (fail, error) in [("reset", Some(ErrorKind::ConnectionReset)), ("close", None)] {
        for stream in [true, false] {
            let script = |at| {
                format!(r#"{{"fail":"{fail}","at":"{at}","after_chunks":3,"chunk_bytes":20,"bytes":999}}"#)
            };
            let ask = async |at| receive(open(backend.addr, &chat(&script(at), stream)).await).await;

            let before_head = ask("before_head").await;
            assert_eq!((before_head.bytes.len(), before_head.error), (0, error));

            let after_head = ask("after_head").await;
            assert_eq!(after_head.error, error);
            let answer = parse(&after_head.bytes);
            assert_eq!((answer.status, answer.body.len(), answer.complete), (200, 0, false));

            let mid_body = ask("mid_body").await;
            assert_eq!(mid_body.error, error);
            let answer = parse(&mid_body.bytes);
            assert!(!answer.complete);
            if stream {
                assert_eq!(String::from_utf8(answer.body).unwrap().matches("\"seq\":").count(), 3);
            } else {
                assert_eq!(answer.body.len(), 60);
            }
        }
    }
    assert_eq!(backend.stats().failed, 12);
    assert_eq!(backend.stats().cancelled, 0);
}

#[tokio::test]
async fn a_failure_after_the_last_event_leaves_the_stream_without_an_end() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let script = r#"{"fail":"close","at":"mid_body","chunks":3,"after_chunks":99}"#;
    let received = receive(open(backend.addr, &chat(script, true)).await).await;
    let answer = parse(&received.bytes);
    assert!(!answer.complete);
    assert!(!String::from_utf8(answer.body).unwrap().contains("[DONE]"));
}

#[tokio::test]
async fn garbage_comes_instead_of_http_or_in_the_middle_of_it() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let received = receive(open(backend.addr, &chat(r#"{"fail":"garbage"}"#, true)).await).await;
    assert!(received.bytes.starts_with(b"\x16\x03"));
    let script = r#"{"fail":"garbage","at":"mid_body","after_chunks":2}"#;
    let answer = parse(&receive(open(backend.addr, &chat(script, true)).await).await.bytes);
    assert_eq!((answer.status, answer.complete), (200, false));
}

#[tokio::test]
async fn heads_can_be_slow() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let started = Instant::now();
    let mut socket = open(backend.addr, &chat(r#"{"slow_head_ms":2,"chunks":1}"#, false)).await;
    let mut first = [0; 64];
    let read =
        timeout(DEADLINE, tokio::io::AsyncReadExt::read(&mut socket, &mut first)).await.unwrap().unwrap();
    assert!(read < 40, "the first read got {read} bytes of the head");
    let rest = receive(socket).await;
    assert!(parse(&[&first[..read], &rest.bytes].concat()).complete);
    assert!(started.elapsed().as_millis() > 200);
}

#[tokio::test]
async fn delays_are_kept() {
    let backend = Backend::start(Config::default()).await.unwrap();
    for script in [r#"{"head_delay_ms":50}"#, r#"{"first_byte_delay_ms":50}"#] {
        for stream in [true, false] {
            let started = Instant::now();
            let answer = parse(&receive(open(backend.addr, &chat(script, stream)).await).await.bytes);
            assert!(answer.complete);
            assert!(started.elapsed().as_millis() >= 50);
        }
    }
}

#[tokio::test]
async fn the_end_of_the_stub_ends_its_connections_and_frees_its_port() {
    for (how, error) in [("drop", None), ("shutdown", None), ("abort", Some(ErrorKind::ConnectionReset))] {
        let backend = Backend::start(Config::default()).await.unwrap();
        let addr = backend.addr;
        let socket = open(addr, &chat(r#"{"id":"a","fail":"stall"}"#, true)).await;
        backend.wait_running(1, DEADLINE).await.unwrap();
        match how {
            "drop" => drop(backend),
            "shutdown" => backend.shutdown().await,
            _ => backend.abort().await,
        }
        assert_eq!(receive(socket).await.error, error);
        if how != "drop" {
            // Dropping does not wait for the end of the task that listens.
            assert!(TcpStream::connect(addr).await.is_err());
            let again = Backend::start(Config { listen: addr, ..Config::default() }).await.unwrap();
            assert_eq!(again.addr, addr);
        }
    }
}

#[tokio::test]
async fn nothing_listens_where_nothing_should() {
    let error = TcpStream::connect(refused_addr().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}
