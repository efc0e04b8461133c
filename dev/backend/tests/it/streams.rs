//! Event streams: numbers, times, CRC, pace.

use dev_backend::{Backend, Config, Mark, micros_now};

use crate::client::{Answer, ask, chat, post};

/// Marks of the data events, the closing mark, and the CRC of all bytes before the closing event.
fn marks(answer: &Answer) -> (Vec<(u32, u64)>, Option<Mark>, u32) {
    let text = String::from_utf8(answer.body.clone()).unwrap();
    let (mut events, mut before) = (Vec::new(), 0);
    for event in text.split_inclusive("\n\n") {
        match Mark::read(event.as_bytes()) {
            Some(Mark::Event { seq, at_micros }) => events.push((seq, at_micros)),
            Some(end @ Mark::End { .. }) => {
                return (events, Some(end), crc32fast::hash(&answer.body[..before]));
            }
            None => {}
        }
        before += event.len();
    }
    (events, None, crc32fast::hash(&answer.body))
}

#[tokio::test]
async fn streams_are_numbered_timed_and_closed_with_their_crc() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let started = micros_now();
    for (route, last) in [
        ("/v1/chat/completions", "data: [DONE]\n\n"),
        ("/v1/completions", "data: [DONE]\n\n"),
        ("/v1/messages", "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"),
        ("/v1/responses", "}}\n\n"),
    ] {
        for script in
            [r#"{"chunks":50}"#, r#"{"chunks":50,"batch":7}"#, r#"{"chunks":50,"fill":"utf8","split":true}"#]
        {
            let body = format!(r#"{{"model":"m","stream":true,"stub":{script}}}"#);
            let answer = ask(backend.addr, &post(route, &[], &body)).await;
            assert!(answer.complete);
            assert!(answer.header("content-type").unwrap().starts_with("text/event-stream"));
            let (events, end, crc32) = marks(&answer);
            assert_eq!(events.iter().map(|event| event.0).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
            assert!(events.iter().all(|event| (started..=micros_now()).contains(&event.1)));
            assert_eq!(end, Some(Mark::End { count: 50, crc32 }), "{route}");
            assert!(answer.body.ends_with(last.as_bytes()));
        }
    }
}

#[tokio::test]
async fn events_have_the_size_and_usage_that_were_asked_for() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let script = r#"{"chunks":3,"chunk_bytes":333,"prompt_tokens":11,"completion_tokens":22}"#;
    let answer = ask(backend.addr, &chat(script, true)).await;
    let text = String::from_utf8(answer.body).unwrap();
    let events: Vec<_> = text.split_inclusive("\n\n").collect();
    assert!(events[..3].iter().all(|event| event.len() == 333));
    let end: serde_json::Value = serde_json::from_str(&events[3]["data: ".len()..]).unwrap();
    assert_eq!(end["usage"]["total_tokens"], 33);
    let silent = ask(backend.addr, &chat(r#"{"usage":false}"#, true)).await;
    assert!(!String::from_utf8(silent.body).unwrap().contains("usage"));
}

#[tokio::test]
async fn a_pace_is_kept() {
    let backend = Backend::start(Config::default()).await.unwrap();
    let answer = ask(backend.addr, &chat(r#"{"chunks":6,"interval_ms":20}"#, true)).await;
    let (events, ..) = marks(&answer);
    let spread = events[5].1 - events[0].1;
    assert!((98_000..1_000_000).contains(&spread), "five intervals of 20 ms took {spread} µs");
}

#[tokio::test]
async fn a_spoilt_or_missing_event_does_not_fit_the_crc() {
    let backend = Backend::start(Config::default()).await.unwrap();
    for (fault, expected) in [(r#""corrupt_chunk":7"#, 20), (r#""omit_chunk":7"#, 19)] {
        let answer = ask(backend.addr, &chat(&format!(r#"{{"chunks":20,{fault}}}"#), true)).await;
        let (events, end, crc32) = marks(&answer);
        assert!(answer.complete);
        assert_eq!(events.len(), expected);
        let Some(Mark::End { count: 20, crc32: announced }) = end else { panic!("{end:?}") };
        assert_ne!(announced, crc32, "{fault}");
    }
}
