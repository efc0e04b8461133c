//! What the backend sends is what the client gets, and the other way round.

use std::time::Duration;

use ::bytes::Bytes;
use dev_backend::{Mark, micros_now};
use dev_e2e::client::{Answer, CHAT, Ended, ask, chat, post};
use dev_e2e::stack::Stack;
use dev_e2e::{floor, percentile, soon};
use serde_json::{Value, json};

const MIB: usize = 1024 * 1024;

/// Checks a body against the length that was asked for and the CRC that the stub named in the head.
async fn assert_exact(answer: Answer, length: usize) {
    assert_eq!(answer.status(), 200);
    let crc32: u32 = answer.header("x-stub-crc32").unwrap().parse().unwrap();
    let body = answer.bytes().await;
    assert_eq!(body.len(), length);
    assert_eq!(crc32fast::hash(&body), crc32);
}

#[tokio::test]
async fn streams_of_every_route_arrive_byte_for_byte_however_their_characters_are_cut() {
    let _floor = floor::shared().await;
    let stack = Stack::start(4, "").await;
    for route in [CHAT, "/v1/completions", "/v1/messages", "/v1/responses"] {
        for script in [
            json!({"chunks": 200}),
            json!({"chunks": 2000, "batch": 37}),
            // Each event is cut inside a character of two bytes, and the halves are read apart.
            json!({"chunks": 50, "fill": "utf8", "split": true}),
            // Larger than a frame, and than a window.
            json!({"chunks": 5, "chunk_bytes": 300_000}),
        ] {
            let answer = stack.relay.post(route, chat(true, &script)).await;
            assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
            let chunks = script["chunks"].as_u64().unwrap() as u32;
            assert_eq!(answer.stream().await, Ended::Whole(chunks), "{route} {script}");
        }
    }
}

#[tokio::test]
async fn bodies_that_are_no_text_arrive_byte_for_byte() {
    let _floor = floor::shared().await;
    let stack = Stack::start(4, "").await;
    let raw = |more: Value| {
        let mut script = json!({"answer": "raw", "bytes": 50_000, "fill": "random", "seed": 7});
        script.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        chat(false, &script)
    };
    for (route, body) in [
        ("/v1/audio/speech", raw(json!({}))),
        (CHAT, raw(json!({"content_encoding": "gzip", "content_type": "application/json"}))),
        (
            CHAT,
            raw(json!({"content_encoding": "gzip", "content_type": "text/event-stream", "chunked": true})),
        ),
        (CHAT, raw(json!({"chunked": true, "chunk_bytes": 1777}))),
        // LF opens and CR closes each piece, which is read by itself.
        (CHAT, raw(json!({"fill": "crlf", "chunk_bytes": 500, "interval_ms": 1, "chunked": true}))),
        (
            CHAT,
            raw(
                json!({"fill": "crlf", "chunk_bytes": 500, "interval_ms": 1, "content_type": "text/event-stream"}),
            ),
        ),
        // The pieces end inside characters.
        (
            CHAT,
            raw(
                json!({"fill": "utf8", "chunk_bytes": 501, "interval_ms": 1, "content_type": "text/event-stream"}),
            ),
        ),
    ] {
        let asked: Value = serde_json::from_str(&body).unwrap();
        let answer = stack.relay.post(route, body).await;
        let encoding = asked["stub"]["content_encoding"].as_str();
        assert_eq!(answer.header("content-encoding"), encoding);
        assert_exact(answer, 50_000).await;
    }
}

#[tokio::test]
async fn answers_of_64_mib_arrive_byte_for_byte() {
    let _floor = floor::shared().await;
    let stack = Stack::start(4, "").await;
    for chunked in [false, true] {
        let script = json!({
            "answer": "raw", "bytes": 64 * MIB, "fill": "random", "chunk_bytes": 65_536, "chunked": chunked,
        });
        let answer = stack.relay.post(CHAT, chat(false, &script)).await;
        // A length that the backend announced reaches the client, who then sees when a body is cut short.
        let length = (64 * MIB).to_string();
        assert_eq!(answer.header("content-length"), (!chunked).then_some(length.as_str()));
        assert_exact(answer, 64 * MIB).await;
    }
}

#[tokio::test]
async fn a_length_beside_a_transfer_coding_means_nothing() {
    let _floor = floor::shared().await;
    let stack = Stack::start(1, "").await;
    let script = json!({
        "answer": "raw", "bytes": 200_000, "fill": "random", "chunk_bytes": 8192, "chunked": true,
        "interval_ms": 1, "headers": { "content-length": ["5"] },
    });
    let answer = stack.relay.post(CHAT, chat(false, &script)).await;
    assert_eq!(answer.header("content-length"), None);
    assert_exact(answer, 200_000).await;
}

#[tokio::test]
async fn requests_of_64_mib_arrive_byte_for_byte() {
    let _floor = floor::shared().await;
    let stack = Stack::start(4, "").await;
    let json = {
        let (head, tail) = (r#"{"model":"m","messages":[{"role":"user","content":""#, r#""}]}"#);
        let text = "aé漢😀".repeat(64 * MIB / 10);
        format!("{head}{}{tail}", &text[..text.floor_char_boundary(64 * MIB - head.len() - tail.len())])
    };
    let form = {
        let field = "--cut\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nm\r\n";
        let file = "--cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n";
        let mut form = format!("{field}{file}").into_bytes();
        let mut filler = dev_backend::Filler::new(dev_backend::Fill::Random, 5);
        let end = b"\r\n--cut--\r\n";
        let start = form.len();
        form.resize(64 * MIB - end.len(), 0);
        filler.fill(&mut form[start..]);
        form.extend_from_slice(end);
        form
    };
    for (route, kind, body) in [
        (CHAT, "application/json", Bytes::from(json)),
        ("/v1/audio/transcriptions", "multipart/form-data; boundary=cut", Bytes::from(form)),
    ] {
        assert!((64 * MIB - 4..=64 * MIB).contains(&body.len()));
        let expected = (body.len() as u64, crc32fast::hash(&body));
        let mut request = post(route, body);
        request.headers_mut().insert("content-type", kind.parse().unwrap());
        request.headers_mut().insert("x-stub-skip-body", "true".parse().unwrap());
        let seen = ask(stack.relay.address, request).await.json().await;
        assert_eq!(
            (seen["bytes"].as_u64(), seen["crc32"].as_u64()),
            (Some(expected.0), Some(expected.1.into()))
        );
    }
    assert_eq!(stack.relay.ops.admin("queue").await["body_bytes_held"], 0);
}

#[tokio::test]
async fn heads_arrive_with_their_query_and_every_value_of_a_header() {
    let _floor = floor::shared().await;
    let stack = Stack::start(1, "").await;
    let script = json!({
        "status": 418, "body": "{\"a\":1}", "content_type": "application/vnd.test+json",
        "headers": {"set-cookie": ["a=1; Path=/", "b=2"], "x-custom": ["one, two", "three"], "connection": ["x-hop"], "x-hop": ["1"]},
    });
    let mut request = post("/v1/messages?beta=true&x=%2Fa%20b&empty=", chat(false, &script));
    request.headers_mut().append("anthropic-beta", "one".parse().unwrap());
    request.headers_mut().append("anthropic-beta", "two".parse().unwrap());
    request.headers_mut().append("authorization", "Bearer of-the-client".parse().unwrap());
    request.headers_mut().append("x-request-id", "named-by-the-client".parse().unwrap());
    let answer = ask(stack.relay.address, request).await;
    assert_eq!(answer.status(), 418);
    let values = |name: &str| -> Vec<&str> {
        answer.head.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    };
    assert_eq!(values("set-cookie"), ["a=1; Path=/", "b=2"]);
    assert_eq!(values("x-custom"), ["one, two", "three"]);
    assert_eq!(values("content-type"), ["application/vnd.test+json"]);
    assert_eq!(values("x-request-id"), ["named-by-the-client"]);
    assert_eq!(values("x-hop"), [""; 0], "a header of one hop");
    assert_eq!(answer.bytes().await, b"{\"a\":1}");
    let seen = stack.backend.requests().pop().unwrap();
    assert_eq!(seen.target, "/v1/messages?beta=true&x=%2Fa%20b&empty=");
    assert_eq!(seen.header("anthropic-beta").collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(seen.header("authorization").count(), 0, "a client's credential left the relay");
}

#[tokio::test]
async fn error_of_the_backend_passes_unchanged() {
    let _floor = floor::shared().await;
    let stack = Stack::start(1, "").await;
    for status in [400, 404, 422, 429, 500] {
        let text = format!("{{ \"error\" : {{\"message\":\"of the engine\",  \"code\":{status}}}}}\n");
        let script = json!({"status": status, "body": text, "headers": {"retry-after": ["7"]}});
        for stream in [false, true] {
            let answer = stack.relay.post(CHAT, chat(stream, &script)).await;
            assert_eq!((answer.status(), answer.header("retry-after")), (status, Some("7")));
            assert_eq!(answer.bytes().await, text.as_bytes());
        }
    }
}

/// Each event of a paced stream comes by itself, and within moments of being sent. The bound for the slowest hundredth
/// leaves room for a machine that does something else for a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paced_events_arrive_one_by_one_as_they_are_sent() {
    let _floor = floor::alone().await;
    let stack = Stack::start(4, "").await;
    let (mut delays, mut parts) = (Vec::new(), 0);
    for route in [CHAT, "/v1/messages"] {
        let script = json!({"chunks": 100, "interval_ms": 10});
        let mut answer = stack.relay.post(route, chat(true, &script)).await;
        let mut check = dev_load::StreamCheck::default();
        while let Some(part) = soon("an event", answer.next()).await {
            let (part, now) = (part.unwrap(), micros_now());
            parts += usize::from(part.windows(2).filter(|pair| pair == b"\n\n").count() == 1);
            check.feed(&part, |sent| delays.push(Duration::from_micros(now.saturating_sub(sent))));
            assert!(Mark::read(&part).is_some() || parts < 3 || check.events() == 100, "an event in pieces");
        }
        assert_eq!(check.finish(), Ok(100));
    }
    let (median, slow) = (percentile(&mut delays, 50), percentile(&mut delays, 99));
    eprintln!(
        "delay of an event: median {median:?}, 99 of 100 within {slow:?}; {parts} of 200 by themselves"
    );
    assert!(median < Duration::from_millis(5), "median {median:?}");
    assert!(slow < Duration::from_millis(50), "99 of 100 within {slow:?}");
    assert!(parts >= 190, "{parts} of 200 events came by themselves");
}
