//! The engine's streams, byte for byte and event by event.

use std::time::{Duration, Instant};

use dev_e2e::client::{CHAT, MESSAGES, ask, post};
use dev_e2e::{floor, percentile, soon};
use serde_json::{Value, json};

use crate::engine::{Engine, Model, serve};
use crate::tap::{Tap, Tapped};

fn asked(route: &str, stream: bool, tokens: u32) -> String {
    let mut body = json!({
        "model": "engine", "stream": stream, "max_tokens": tokens, "temperature": 0, "seed": 7,
    });
    if route == "/v1/completions" {
        body["prompt"] = "Once upon a time".into();
    } else {
        body["messages"] = json!([{"role": "user", "content": "Tell me about ships. 漢字 😀"}]);
    }
    body.to_string()
}

/// Takes out what differs from one answer to the next: ids, times, and how long things took.
fn timeless(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for name in ["id", "created", "timings"] {
                members.remove(name);
            }
            members.values_mut().for_each(timeless);
        }
        Value::Array(values) => values.iter_mut().for_each(timeless),
        _ => {}
    }
}

/// The lines of a stream, each JSON without what differs.
fn lines(stream: &[u8]) -> Vec<String> {
    let line = |line: &str| match line.strip_prefix("data: ").map(serde_json::from_str::<Value>) {
        Some(Ok(mut data)) => {
            timeless(&mut data);
            format!("data: {data}")
        }
        Some(Err(_)) | None => line.to_owned(),
    };
    std::str::from_utf8(stream).unwrap().split('\n').map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_is_what_the_engine_sent_and_each_event_comes_as_it_is_sent() {
    let _floor = floor::alone().await;
    let Some(engine) = Engine::start(Model::Tiny).await else { return };
    let tap = Tap::before(engine.address).await;
    let (relay, _worker) = serve(tap.address, 2).await;
    let mut delays = Vec::new();
    for route in [CHAT, "/v1/completions", MESSAGES] {
        let body = asked(route, true, 300);
        let mut answer = relay.post(route, body.clone()).await;
        assert_eq!((answer.status(), answer.header("content-type")), (200, Some("text/event-stream")));
        let (mut all, mut came) = (Vec::new(), Vec::new());
        while let Some(part) = soon("an event", answer.next()).await {
            all.extend_from_slice(&part.unwrap());
            came.push((all.len(), Instant::now()));
        }
        let Tapped { body: sent, times } = tap.last_stream();
        assert_eq!(all, sent, "{route}: not the engine's bytes");
        let events = memmem_count(&all, b"\n\n");
        assert!(events > 250, "{route}: {events} events");
        // When the engine had sent as much, and when the client had it.
        for (length, at) in times {
            let (_, had) = came.iter().find(|(had, _)| *had >= length).unwrap();
            delays.push(had.saturating_duration_since(at));
        }
        let direct = ask(engine.address, post(route, body)).await.bytes().await;
        assert_eq!(lines(&all), lines(&direct), "{route}: not what the engine answers without a relay");
    }
    let (median, slow) = (percentile(&mut delays, 50), percentile(&mut delays, 99));
    eprintln!(
        "from the engine to the client: median {median:?}, 99 of 100 within {slow:?}, {} pieces",
        delays.len()
    );
    assert!(median < Duration::from_millis(5), "median {median:?}");
    assert!(slow < Duration::from_millis(50), "99 of 100 within {slow:?}");
}

fn memmem_count(text: &[u8], wanted: &[u8]) -> usize {
    text.windows(wanted.len()).filter(|window| *window == wanted).count()
}

#[tokio::test]
async fn answer_without_stream_is_what_the_engine_answers() {
    let _floor = floor::shared().await;
    let Some(engine) = Engine::start(Model::Tiny).await else { return };
    let (relay, _worker) = serve(engine.address, 2).await;
    for route in [CHAT, "/v1/completions", MESSAGES] {
        let body = asked(route, false, 50);
        let mut through = relay.post(route, body.clone()).await.json().await;
        let mut direct = ask(engine.address, post(route, body)).await.json().await;
        timeless(&mut through);
        timeless(&mut direct);
        assert_eq!(through, direct, "{route}");
    }
}
