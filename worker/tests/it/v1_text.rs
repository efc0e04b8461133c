//! Bodies that a plain v1 relay can carry only as text.

use serde_json::{Value, json};

use crate::support::{RawBackend, Relay, config, worker};

/// Runs one request and returns its chunks and its completion.
async fn run(backend: RawBackend, streaming: bool) -> (Vec<String>, Value) {
    let relay = Relay::start().await;
    let worker = worker(config(&relay.url(), &backend.url)).await;
    let (mut session, _) = relay.accept_v1().await;
    session.models(&["m"]).await;
    session
        .send(json!({
            "type": "request", "request_id": "a", "model": "m", "endpoint_path": "/v1/x",
            "is_streaming": streaming, "body": "{}", "headers": { "accept-encoding": "gzip" },
        }))
        .await;
    let mut chunks = Vec::new();
    let complete = loop {
        let message: Value = serde_json::from_str(session.next().await.to_text().unwrap()).unwrap();
        match message["type"].as_str().unwrap() {
            "response_chunk" => chunks.push(message["chunk"].as_str().unwrap().to_owned()),
            "response_complete" => break message,
            _ => {}
        }
    };
    worker.kill().await;
    (chunks, complete)
}

fn head(kind: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn a_character_split_over_two_reads_arrives_whole() {
    let text = "data: {\"a\":\"Grüße 😀\"}\r\n\r\n";
    for cut in [text.find('ü').unwrap() + 1, text.find('😀').unwrap() + 2, text.len() - 3] {
        let (first, second) = text.as_bytes().split_at(cut);
        let mut begin = head("text/event-stream", text.len());
        begin.extend_from_slice(first);
        let backend = RawBackend::in_pieces(vec![begin, second.to_vec()]).await;
        let (chunks, complete) = run(backend, true).await;
        assert_eq!(chunks.concat(), text);
        assert_eq!(complete["status_code"], 200);
    }
}

#[tokio::test]
async fn a_body_that_is_no_text_is_answered_with_a_message_that_says_so() {
    for streaming in [false, true] {
        let mut answer = head("audio/mpeg", 4);
        answer.extend_from_slice(&[0xff, 0xfb, 0x90, 0x00]);
        let (chunks, complete) = run(RawBackend::start(answer).await, streaming).await;
        assert!(chunks.is_empty());
        assert_eq!(complete["status_code"], 502);
        assert!(complete["body"].as_str().unwrap().contains("not UTF-8"), "{complete}");
    }
}

#[tokio::test]
async fn an_answer_beyond_the_frame_limit_is_refused_and_not_sent() {
    // Each quote takes two bytes in JSON, so nine mebibytes are too many.
    let body = vec![b'"'; 9 << 20];
    let mut answer = head("application/json", body.len());
    answer.extend_from_slice(&body);
    let (_, complete) = run(RawBackend::start(answer).await, false).await;
    assert_eq!(complete["status_code"], 502);
    assert!(complete["body"].as_str().unwrap().contains("16 MiB"), "{complete}");
}

#[tokio::test]
async fn headers_come_single_and_cookies_are_not_joined() {
    let answer = "HTTP/1.1 200 OK\r\nx-a: 1\r\nx-a: 2\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 2\r\n\r\nok";
    let (_, complete) = run(RawBackend::start(answer).await, false).await;
    assert_eq!(complete["headers"], json!({ "set-cookie": "a=1", "x-a": "1, 2" }));
}
