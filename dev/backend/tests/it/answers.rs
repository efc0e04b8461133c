//! Answers that are not event streams.

use dev_backend::{Backend, Config, Script};

use crate::client::{ask, chat, fetch, open, parse, post, read_until, receive};

#[tokio::test]
async fn every_route_answers_with_json_of_its_own_and_its_crc() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let routes = [
        ("/v1/chat/completions", "/choices/0/message/content"),
        ("/v1/completions", "/choices/0/text"),
        ("/v1/messages?beta=true", "/content/0/text"),
        ("/v1/messages/count_tokens", "/input_tokens"),
        ("/v1/responses", "/output/0/content/0/text"),
        ("/v1/embeddings", "/data/0/embedding/0"),
        ("/v1/rerank", "/results/0/relevance_score"),
        ("/v1/score", "/data/0/score"),
        ("/v1/audio/translations", "/text"),
        ("/v1/images/generations", "/data/0/b64_json"),
    ];
    for (route, pointer) in routes {
        let answer = ask(backend.addr, &post(route, &[], r#"{"model":"m","stub":{"bytes":1000}}"#)).await;
        assert_eq!(answer.status, 200, "{route}");
        assert!(answer.is_exact(), "{route}");
        let json = answer.json();
        let value = json.pointer(pointer).unwrap_or_else(|| panic!("{route} has {pointer}: {json}"));
        assert!(value.as_str().is_none_or(|text| text.len() == 1000 || route.contains("images")));
    }
    assert_eq!(backend.stats().completed, routes.len() as u64);
}

#[tokio::test]
async fn a_form_is_answered_and_speech_is_bytes() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let form = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b--\r\n";
    let kind = ["content-type: multipart/form-data; boundary=b"];
    let answer = ask(backend.addr, &post("/v1/audio/transcriptions", &kind, form)).await;
    assert!(answer.json()["text"].is_string());
    let speech = r#"{"model":"m","stub":{"fill":"random","bytes":5000}}"#;
    let answer = ask(backend.addr, &post("/v1/audio/speech", &[], speech)).await;
    assert_eq!(answer.header("content-type"), Some("audio/mpeg"));
    assert_eq!((answer.body.len(), answer.is_exact()), (5000, true));
}

#[tokio::test]
async fn raw_bodies_come_as_their_script_says() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let script = r#"{"answer":"raw","fill":"random","seed":9,"bytes":100000,"chunk_bytes":1000,
        "content_type":"image/png","content_encoding":"gzip","headers":{"set-cookie":["a=1","b=2"]}}"#;
    let answer = ask(backend.addr, &chat(script, false)).await;
    assert_eq!(answer.header("content-type"), Some("image/png"));
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert!(answer.head.contains("set-cookie: a=1\r\nset-cookie: b=2\r\n"));
    assert_eq!((answer.body.len(), answer.is_exact()), (100_000, true));

    let again = ask(backend.addr, &chat(script, false)).await;
    assert_eq!(again.body, answer.body);
    let other = ask(backend.addr, &chat(&script.replace(":9", ":10"), false)).await;
    assert_ne!(other.body, answer.body);
}

#[tokio::test]
async fn huge_bodies_are_exact_with_a_length_and_chunked() {
    let backend = Backend::start(Config::default()).await.unwrap();
    for chunked in [false, true] {
        let script = format!(
            r#"{{"answer":"raw","fill":"random","bytes":67108864,"chunk_bytes":65536,"chunked":{chunked}}}"#
        );
        let answer = ask(backend.addr, &chat(&script, false)).await;
        assert_eq!(answer.header("content-length").is_none(), chunked);
        assert!(answer.complete && answer.is_exact());
        assert_eq!(answer.body.len(), 64 << 20);
    }
}

#[tokio::test]
async fn every_write_of_a_crlf_body_cuts_a_pair_apart() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let script =
        r#"{"answer":"raw","fill":"crlf","bytes":40,"chunk_bytes":10,"interval_ms":1,"chunked":true}"#;
    let received = receive(open(backend.addr, &chat(script, true)).await).await;
    let text = String::from_utf8(received.bytes.clone()).unwrap();
    let chunks = text.matches("a\r\n\nxxxxxxxx\r\r\n").count();
    assert_eq!(chunks, 4, "each piece is a chunk of its own: {text:?}");
    assert!(parse(&received.bytes).is_exact());
}

#[tokio::test]
async fn utf8_pieces_cut_characters_apart_but_the_whole_is_text() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let script =
        r#"{"answer":"raw","fill":"utf8","bytes":70,"chunk_bytes":7,"interval_ms":1,"chunked":true}"#;
    let mut socket = open(backend.addr, &chat(script, true)).await;
    let start = read_until(&mut socket, "\r\n\r\n7\r\naé漢").await;
    let rest = receive(socket).await.bytes;
    let answer = parse(&[start, rest].concat());
    assert!(answer.is_exact());
    assert_eq!(String::from_utf8(answer.body.clone()).unwrap(), "aé漢😀".repeat(7));
    assert!(answer.body.chunks(7).any(|piece| std::str::from_utf8(piece).is_err()));
}

#[tokio::test]
async fn echo_tells_what_came() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let body = r#"{"model":"m","messages":["é"]}"#;
    let headers = ["X-Stub-Answer: echo", "x-twice: 1", "x-twice: 2"];
    let answer = ask(backend.addr, &post("/v1/chat/completions?a=b&c", &headers, body)).await.json();
    assert_eq!(answer["target"], "/v1/chat/completions?a=b&c");
    assert_eq!(answer["length"], body.len());
    assert_eq!(answer["crc32"], crc32fast::hash(body.as_bytes()));
    let headers = answer["headers"].as_array().unwrap();
    assert!(headers.contains(&serde_json::json!(["x-twice", "1"])));
    assert!(headers.contains(&serde_json::json!(["x-twice", "2"])));

    let seen = &backend.requests()[0];
    assert_eq!((seen.model.as_deref(), &seen.body[..]), (Some("m"), body.as_bytes()));
    assert_eq!(seen.header("X-Twice").collect::<Vec<_>>(), ["1", "2"]);
}

#[tokio::test]
async fn chunked_request_bodies_are_put_together() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let request = "POST /v1/completions HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\
        x-stub-answer: echo\r\n\r\n5;x=y\r\n{\"mod\r\n7\r\nel\":\"m\"\r\n1\r\n}\r\n0\r\ntrailer: 1\r\n\r\n";
    let answer = ask(backend.addr, request.as_bytes()).await.json();
    assert_eq!(answer["crc32"], crc32fast::hash(br#"{"model":"m"}"#));
}

#[tokio::test]
async fn a_body_that_need_not_be_kept_is_counted_all_the_same() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let body = "no JSON at all ".repeat(100_000);
    let request = post("/v1/chat/completions", &["x-stub-skip-body: true", "expect: 100-continue"], &body);
    let received = receive(open(backend.addr, &request).await).await.bytes;
    let received = received.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n").expect("an interim answer first");
    let answer = parse(received).json();
    assert_eq!(answer["bytes"], body.len());
    assert_eq!(answer["crc32"], crc32fast::hash(body.as_bytes()));
}

#[tokio::test]
async fn one_connection_serves_many_requests_also_pipelined() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let body = r#"{"model":"m"}"#;
    let open_ended =
        String::from_utf8(post("/v1/completions", &[], body)).unwrap().replace("connection: close\r\n", "");
    let requests =
        [open_ended.as_bytes(), open_ended.as_bytes(), &post("/v1/completions", &[], body)].concat();
    let received = receive(open(backend.addr, &requests).await).await;
    assert_eq!(String::from_utf8(received.bytes).unwrap().matches("HTTP/1.1 200 OK").count(), 3);
    let stats = backend.stats();
    assert_eq!((stats.requests, stats.completed, stats.connections), (3, 3, 1));
}

#[tokio::test]
async fn an_old_client_gets_its_stream_without_chunks() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let request = String::from_utf8(chat("{}", true)).unwrap().replace("HTTP/1.1", "HTTP/1.0");
    let answer = ask(backend.addr, request.as_bytes()).await;
    assert_eq!(answer.header("transfer-encoding"), None);
    assert!(answer.body.ends_with(b"data: [DONE]\n\n"));
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let backend = Backend::start(Config::default()).await.unwrap();
    for request in
        [chat(r#"{"chunkz":1}"#, false), post("/v1/messages", &[], "{"), b"nonsense\r\n\r\n".to_vec()]
    {
        assert_eq!(ask(backend.addr, &request).await.status, 400);
    }
    assert_eq!(fetch(backend.addr, "/v1/nothing").await.status, 404);
}

#[tokio::test]
async fn statuses_and_bodies_can_be_given() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let answer =
        ask(backend.addr, &chat(r#"{"status":429,"body":"slow down","content_type":"text/x"}"#, true)).await;
    assert_eq!((answer.status, &answer.body[..]), (429, &b"slow down"[..]));
    assert_eq!(answer.header("content-type"), Some("text/x"));
    let answer = ask(backend.addr, &chat(r#"{"status":500}"#, true)).await;
    assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (500, Some("api_error")));
    let answer = ask(backend.addr, &chat(r#"{"status":204}"#, true)).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
}

#[tokio::test]
async fn scripts_for_the_next_requests_are_used_once_and_in_order() {
    let backend = Backend::start(Config::default()).await.unwrap();
    backend.set_script(Script { status: 418, ..Script::default() });
    backend.push_script(Script { status: 503, ..Script::default() });
    backend.push_script(Script { status: 502, ..Script::default() });
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(ask(backend.addr, &post("/v1/completions", &[], r#"{"model":"m"}"#)).await.status);
    }
    assert_eq!(statuses, [503, 502, 418, 418]);
}
