//! Token usage of plain v1 workers, which pass an engine's answer on unread.

use serde_json::{Value, json};

use crate::support::v1::completion;
use crate::support::{CHAT, TestRelay, V1Worker, chat, eventually};

#[tokio::test]
async fn usage_is_read_from_a_copy_of_what_the_engine_said() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let usage = r#""usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}"#;

    // In one piece, with headers and without: they are optional.
    for headers in [json!({ "content-type": "application/json; charset=utf-8" }), json!({})] {
        let asked = relay.ask(CHAT, chat("m", false));
        let request = worker.request().await;
        let mut whole = completion(&request, 200, &format!("{{\"choices\":[],{usage}}}"));
        whole["headers"] = headers;
        worker.send(whole).await;
        assert_eq!(asked.answer().await.status(), 200);
    }

    // Over chunks that cut it, behind the hold of the first one and within it.
    let event = format!("data: {{\"choices\":[],{usage}}}\n\ndata: [DONE]\n\n");
    let (before, after) = event.split_at(40);
    for is_held in [false, true] {
        let asked = relay.ask(CHAT, chat("m", true));
        let request = worker.request().await;
        let part =
            |chunk| json!({ "type": "response_chunk", "request_id": request["request_id"], "chunk": chunk });
        let mut end = completion(&request, 200, "");
        end["body"] = Value::Null;
        if is_held {
            worker.send_together(&[part(before), part(after), end]).await;
            assert_eq!(asked.answer().await.text().await, event);
        } else {
            worker.send(part(before)).await;
            let answer = asked.answer().await;
            worker.send_together(&[part(after), end]).await;
            assert_eq!(answer.text().await, event);
        }
    }

    // Without any, what the worker says of it counts; with neither, nothing.
    for told in [json!({ "prompt_tokens": 1, "completion_tokens": 1 }), Value::Null] {
        let asked = relay.ask(CHAT, chat("m", false));
        let request = worker.request().await;
        let mut whole = completion(&request, 200, r#"{"usage":null}"#);
        whole["token_counts"] = told;
        worker.send(whole).await;
        assert_eq!(asked.answer().await.status(), 200);
    }

    relay.settled().await;
    let tokens = r#"modelrelay_tenant_tokens_total{model="m",tenant="anonymous"}"#;
    assert_eq!(relay.metric(tokens).await, f64::from(4 * 12 + 2));
    let input = r#"gen_ai_client_token_usage_sum{gen_ai_request_model="m",gen_ai_token_type="input"}"#;
    assert_eq!(relay.metric(input).await, f64::from(4 * 7 + 1));
}

#[tokio::test]
async fn an_answer_that_its_client_does_not_take_to_its_end_is_wasted() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let asked = relay.ask(CHAT, chat("m", true));
    let request = worker.request().await;
    worker.chunk(&request, "data: 1\n\n").await;
    let mut answer = asked.answer().await;
    answer.at_least(9).await;
    // More than the sockets between relay and client hold.
    worker.chunk(&request, &"x".repeat(12 * 1024 * 1024)).await;
    let mut end = completion(&request, 200, "");
    end["token_counts"] = json!({ "prompt_tokens": 30, "completion_tokens": 12 });
    worker.send(end).await;
    eventually("the answer is whole here", || relay.relay.dispatcher.is_idle().then_some(())).await;
    drop(answer);
    relay.until_metric(r#"modelrelay_wasted_tokens_total{model="m",reason="client"}"#, 42.0).await;
    let cancelled = relay.metrics().await;
    assert!(!cancelled.contains("modelrelay_cancellations_total{"), "the worker had ended it: {cancelled}");
    relay.settled().await;
}
