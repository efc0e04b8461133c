//! A plain v1 worker on our relay, in each numbered demand of the protocol.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, TestRelay, V1Worker, chat, request, soon};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_request_reaches_the_worker_and_its_answer_the_client() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let ask = relay.post(CHAT, chat("m", false));
    let serve = async {
        let request = worker.request().await;
        assert_eq!(request["model"], "m");
        assert_eq!(request["endpoint_path"], CHAT);
        assert_eq!(request["is_streaming"], false);
        assert_eq!(request["body"], chat("m", false));
        worker.complete(&request, 201, r#"{"ok":true}"#).await;
    };
    let (answer, ()) = tokio::join!(ask, serve);
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.header("content-length"), Some("11"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.header("x-request-id").is_some());
    assert_eq!(answer.header("x-modelrelay-worker"), Some("v1"));
    assert_eq!(answer.body().await.unwrap(), r#"{"ok":true}"#);
    relay.settled().await;
}

#[tokio::test]
async fn chunks_are_the_body_of_a_stream() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let ask = relay.post(CHAT, chat("m", true));
    let begin = async {
        let request = worker.request().await;
        worker.chunk(&request, "data: 1\n\n").await;
        request
    };
    let (mut answer, request) = tokio::join!(ask, begin);
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: 1\n\n");
    worker.chunk(&request, "data: 2\n\n").await;
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: 2\n\n");
    worker.complete(&request, 500, "ignored").await;
    assert!(answer.chunk().await.is_none());
    relay.settled().await;
}

#[tokio::test]
async fn a_streams_error_keeps_its_status() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let ask = relay.post(CHAT, chat("m", true));
    let serve = async {
        let request = worker.request().await;
        let id = &request["request_id"];
        // In one piece, so that the completion follows in time however busy the machine is.
        worker
            .send_together(&[
                json!({ "type": "response_chunk", "request_id": id, "chunk": r#"{"error":"# }),
                json!({ "type": "response_chunk", "request_id": id, "chunk": r#""bad"}"# }),
                json!({ "type": "response_complete", "request_id": id, "status_code": 400 }),
            ])
            .await;
    };
    let (answer, ()) = tokio::join!(ask, serve);
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.body().await.unwrap(), r#"{"error":"bad"}"#);
}

#[tokio::test]
async fn a_cancel_frees_the_slot_at_once_and_late_frames_are_dropped() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    let mut client = Client::connect(relay.client).await;
    let mut first = Box::pin(client.send(request("POST", CHAT, &[], chat("m", true))));
    let taken = tokio::select! {
        _ = &mut first => panic!("nothing was answered yet"),
        taken = worker.request() => taken,
    };
    drop(first);
    drop(client);
    let cancel = {
        // The connection's task notices that its client is gone.
        soon("a cancel", worker.receive()).await
    };
    assert_eq!(cancel["type"], "cancel");
    assert_eq!(cancel["reason"], "client_disconnect");
    assert_eq!(cancel["request_id"], taken["request_id"]);
    let second = relay.post(CHAT, chat("m", false));
    let serve = async {
        let next = worker.request().await;
        worker.chunk(&taken, "late").await;
        worker.complete(&taken, 200, "late").await;
        worker.complete(&next, 200, "good").await;
    };
    let (answer, ()) = tokio::join!(second, serve);
    assert_eq!(answer.body().await.unwrap(), "good");
    relay.settled().await;
    assert!(relay.metrics().await.contains("modelrelay_late_frames_total 2"));
}

#[tokio::test]
async fn a_binary_frame_closes_the_session_with_1002() {
    let relay = TestRelay::start("").await;
    let mut worker = V1Worker::join(&relay, &["m"], 1).await;
    worker.send_raw(Message::binary(vec![5, 0, 0, 0, 0, 1])).await;
    assert_eq!(u16::from(worker.closed().await.unwrap().code), 1002);
}

#[tokio::test]
async fn models_are_sanitised_and_blank_names_are_warned_about() {
    let relay = TestRelay::start("").await;
    let register = json!({
        "type": "register", "worker_name": " ", "models": [" a ", "", "a", "B"], "max_concurrent": 0,
        "protocol_version": "2026-04-bridge-v1", "later": { "field": 1 },
    });
    let worker = V1Worker::join_as(&relay, &register).await;
    assert_eq!(worker.ack["models"], json!(["a", "B"]));
    assert_eq!(worker.ack["protocol_version"], "2026-04-bridge-v1");
    assert_eq!(worker.ack["warnings"].as_array().unwrap().len(), 1);
    assert_eq!(worker.ack.get("extensions"), None);
}
