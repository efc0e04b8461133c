//! What several tests here need.

use dev_e2e::client::Answer;
use serde_json::Value;

/// The APIs whose streams end differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    OpenAi,
    Anthropic,
}

impl Api {
    pub(crate) const ALL: [Self; 2] = [Self::OpenAi, Self::Anthropic];

    pub(crate) fn route(self) -> &'static str {
        match self {
            Self::OpenAi => dev_e2e::client::CHAT,
            Self::Anthropic => dev_e2e::client::MESSAGES,
        }
    }
}

/// Reads a stream that has to break off after exactly one error event in the API's shape, with nothing behind it and
/// nothing that looks like a proper end. Returns OpenAI's code or Anthropic's type.
pub(crate) async fn broken_stream(answer: Answer, api: Api) -> String {
    let text = answer.broken().await;
    assert!(!text.contains("[DONE]") && !text.contains("message_stop"), "looks complete: {text}");
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    let (last, before) = events.split_last().expect("there is an event");
    assert!(text.ends_with("\n\n"), "the last event is cut: {text}");
    assert!(before.iter().all(|event| !event.contains("\"error\"")), "more than one error event: {text}");
    let data = match api {
        Api::OpenAi => last.strip_prefix("data: "),
        Api::Anthropic => last.strip_prefix("event: error\ndata: "),
    };
    let event: Value =
        serde_json::from_str(data.unwrap_or_else(|| panic!("no error event: {text}"))).unwrap();
    let code = match api {
        Api::OpenAi => &event["error"]["code"],
        Api::Anthropic => &event["error"]["type"],
    };
    code.as_str().unwrap_or_else(|| panic!("{event}")).to_owned()
}
