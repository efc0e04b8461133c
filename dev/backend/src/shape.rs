//! Answers in the shapes of the two APIs: whole ones, and the parts of a stream.

use serde_json::{Value, json};

use crate::fill::text;
use crate::mark::{MARK_LEN, Mark};
use crate::script::Script;

/// A route that names a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Chat,
    Completions,
    Messages,
    CountTokens,
    Responses,
    Embeddings,
    Rerank,
    Score,
    Speech,
    Transcriptions,
    Translations,
    Images,
}

impl Route {
    pub(crate) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::Chat,
            "/v1/completions" => Self::Completions,
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            "/v1/responses" => Self::Responses,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/rerank" => Self::Rerank,
            "/v1/score" => Self::Score,
            "/v1/audio/speech" => Self::Speech,
            "/v1/audio/transcriptions" => Self::Transcriptions,
            "/v1/audio/translations" => Self::Translations,
            "/v1/images/generations" => Self::Images,
            _ => return None,
        })
    }

    /// Whether errors on this route have Anthropic's shape.
    pub(crate) fn is_anthropic(self) -> bool {
        matches!(self, Self::Messages | Self::CountTokens)
    }

    /// Whether `stream: true` means anything here.
    pub(crate) fn streams(self) -> bool {
        matches!(self, Self::Chat | Self::Completions | Self::Messages | Self::Responses)
    }
}

/// The answer that is not a stream, as text before and after the content.
pub(crate) fn whole(route: Route, model: &str, script: &Script) -> String {
    let model = quoted(model);
    let content = text(script.fill, script.bytes as usize);
    let usage = if script.usage { usage(route, script) } else { String::new() };
    match route {
        Route::Chat => format!(
            "{{\"id\":\"chatcmpl-stub\",\"object\":\"chat.completion\",\"created\":1767225600,\"model\":{model},\
             \"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"{content}\"}},\
             \"logprobs\":null,\"finish_reason\":\"stop\"}}]{usage}}}"
        ),
        Route::Completions => format!(
            "{{\"id\":\"cmpl-stub\",\"object\":\"text_completion\",\"created\":1767225600,\"model\":{model},\
             \"choices\":[{{\"index\":0,\"text\":\"{content}\",\"logprobs\":null,\"finish_reason\":\"stop\"}}]{usage}}}"
        ),
        Route::Messages => format!(
            "{{\"id\":\"msg_stub\",\"type\":\"message\",\"role\":\"assistant\",\"model\":{model},\
             \"content\":[{{\"type\":\"text\",\"text\":\"{content}\"}}],\
             \"stop_reason\":\"end_turn\",\"stop_sequence\":null{usage}}}"
        ),
        Route::CountTokens => format!("{{\"input_tokens\":{}}}", script.prompt_tokens),
        Route::Responses => {
            format!("{{{}{usage}}}", response(&model, "completed", &output(&content)))
        }
        Route::Embeddings => format!(
            "{{\"object\":\"list\",\"data\":[{{\"object\":\"embedding\",\"index\":0,\
             \"embedding\":[0.25,-0.5,0.125]}}],\"model\":{model}{usage}}}"
        ),
        Route::Rerank => format!(
            "{{\"id\":\"rerank-stub\",\"model\":{model},\
             \"results\":[{{\"index\":0,\"relevance_score\":0.5}}]{usage}}}"
        ),
        Route::Score => format!(
            "{{\"id\":\"score-stub\",\"object\":\"list\",\"created\":1767225600,\"model\":{model},\
             \"data\":[{{\"index\":0,\"object\":\"score\",\"score\":0.5}}]{usage}}}"
        ),
        Route::Transcriptions | Route::Translations => format!("{{\"text\":\"{content}\"}}"),
        Route::Images => {
            format!("{{\"created\":1767225600,\"data\":[{{\"b64_json\":\"c3R1Yg==\"}}]{usage}}}")
        }
        // Speech is bytes, not text; the plan answers it as a raw body.
        Route::Speech => String::new(),
    }
}

fn usage(route: Route, script: &Script) -> String {
    let prompt = script.prompt_tokens;
    let completion = script.completion_tokens.unwrap_or_else(|| u64::from(script.chunks));
    let total = prompt + completion;
    match route {
        Route::Messages => format!(",\"usage\":{{\"input_tokens\":{prompt},\"output_tokens\":{completion}}}"),
        Route::Responses | Route::Images => format!(
            ",\"usage\":{{\"input_tokens\":{prompt},\"output_tokens\":{completion},\"total_tokens\":{total}}}"
        ),
        Route::Embeddings | Route::Rerank | Route::Score => {
            format!(",\"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{prompt}}}")
        }
        _ => format!(
            ",\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion},\"total_tokens\":{total}}}"
        ),
    }
}

fn response(model: &str, status: &str, output: &str) -> String {
    format!(
        "\"id\":\"resp_stub\",\"object\":\"response\",\"created_at\":1767225600,\"status\":\"{status}\",\
         \"model\":{model},\"output\":[{output}]"
    )
}

fn output(content: &str) -> String {
    format!(
        "{{\"type\":\"message\",\"id\":\"msg_stub\",\"status\":\"completed\",\"role\":\"assistant\",\
         \"content\":[{{\"type\":\"output_text\",\"text\":\"{content}\",\"annotations\":[]}}]}}"
    )
}

/// The parts of a stream. Its data events are all alike but for their marks.
#[derive(Debug)]
pub(crate) struct Events {
    /// Sent before the first data event.
    pub(crate) prologue: String,
    /// One data event, with its mark.
    pub(crate) event: String,
    /// Where the text starts in `event`.
    pub(crate) text_at: usize,
    /// Sent before the closing event.
    pub(crate) epilogue: &'static str,
    /// The closing event short of its mark.
    pub(crate) end: String,
    /// Sent last.
    pub(crate) terminal: &'static str,
}

/// Returns the parts of a stream of `route`, which is one that [`Route::streams`].
pub(crate) fn events(route: Route, model: &str, script: &Script) -> Events {
    let model = quoted(model);
    let usage_text = if script.usage { usage(route, script) } else { String::new() };
    let (prologue, before, after, epilogue, end, terminal) = match route {
        Route::Messages => (
            format!(
                "event: message_start\ndata: {{\"type\":\"message_start\",\"message\":{{\"id\":\"msg_stub\",\
                 \"type\":\"message\",\"role\":\"assistant\",\"model\":{model},\"content\":[],\"stop_reason\":null,\
                 \"stop_sequence\":null,\"usage\":{{\"input_tokens\":{},\"output_tokens\":0}}}}}}\n\n\
                 event: content_block_start\ndata: {{\"type\":\"content_block_start\",\"index\":0,\
                 \"content_block\":{{\"type\":\"text\",\"text\":\"\"}}}}\n\n",
                script.prompt_tokens
            ),
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
             \"delta\":{\"type\":\"text_delta\",\"text\":\""
                .to_owned(),
            "\"}",
            "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
            format!(
                "event: message_delta\ndata: {{\"type\":\"message_delta\",\
                 \"delta\":{{\"stop_reason\":\"end_turn\",\"stop_sequence\":null}}{usage_text}"
            ),
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ),
        Route::Responses => (
            format!(
                "event: response.created\ndata: {{\"type\":\"response.created\",\"response\":{{{}}}}}\n\n",
                response(&model, "in_progress", "")
            ),
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\
             \"item_id\":\"msg_stub\",\"output_index\":0,\"content_index\":0,\"delta\":\""
                .to_owned(),
            "\"",
            "",
            format!(
                "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{{{}{usage_text}}}",
                response(&model, "completed", "")
            ),
            "",
        ),
        Route::Completions => {
            let head = format!(
                "data: {{\"id\":\"cmpl-stub\",\"object\":\"text_completion\",\"created\":1767225600,\"model\":{model},\
                 \"choices\":[{{\"index\":0,\"text\":\""
            );
            let end = format!("{head}\",\"finish_reason\":\"stop\"}}]{usage_text}");
            (String::new(), head, "\"}]", "", end, "data: [DONE]\n\n")
        }
        _ => {
            let head = format!(
                "data: {{\"id\":\"chatcmpl-stub\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\
                 \"model\":{model},\"choices\":[{{\"index\":0,\"delta\":{{"
            );
            let end = format!("{head}}},\"finish_reason\":\"stop\"}}]{usage_text}");
            (String::new(), format!("{head}\"content\":\""), "\"}}]", "", end, "data: [DONE]\n\n")
        }
    };
    let room = script.chunk_bytes.saturating_sub(before.len() + after.len() + MARK_LEN);
    let text_at = before.len();
    // Four bytes at least, so that UTF-8 text has something to cut apart.
    let text = text(script.fill, room.max(4));
    let mark = Mark::Event { seq: 0, at_micros: 0 }.tail();
    Events { prologue, event: format!("{before}{text}{after}{mark}"), text_at, epilogue, end, terminal }
}

/// An error in the shape of the route's API.
pub(crate) fn error(anthropic: bool, status: u16, message: &str) -> Value {
    let kind = match status {
        404 => "not_found_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    if anthropic {
        json!({"type": "error", "error": {"type": kind, "message": message}})
    } else {
        json!({"error": {"message": message, "type": kind, "param": null, "code": null}})
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fill::Fill;

    const STREAMED: [Route; 4] = [Route::Chat, Route::Completions, Route::Messages, Route::Responses];

    #[test]
    fn every_event_is_json_with_a_mark_and_of_the_size_that_was_asked_for() {
        for route in STREAMED {
            for fill in [Fill::Ascii, Fill::Utf8] {
                let script = Script { chunk_bytes: 400, fill, ..Script::default() };
                let parts = events(route, "a/\"b\"", &script);
                assert_eq!(parts.event.len(), 400);
                assert_eq!(Mark::read(parts.event.as_bytes()), Some(Mark::Event { seq: 0, at_micros: 0 }));
                let end = format!("{}{}", parts.end, Mark::End { count: 1, crc32: 2 }.tail());
                for text in [&parts.prologue, &parts.event, &end, parts.epilogue, parts.terminal] {
                    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
                        assert!(data == "[DONE]" || serde_json::from_str::<Value>(data).is_ok(), "{data}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_whole_answer_is_json_and_carries_usage_unless_told_not_to() {
        for route in
            STREAMED.into_iter().chain([Route::Embeddings, Route::Rerank, Route::Score, Route::Images])
        {
            let script =
                Script { prompt_tokens: 3, completion_tokens: Some(4), bytes: 100, ..Script::default() };
            let answer: Value = serde_json::from_str(&whole(route, "m", &script)).unwrap();
            let usage = &answer["usage"];
            assert!(usage["prompt_tokens"] == 3 || usage["input_tokens"] == 3, "{answer}");
            let answer: Value =
                serde_json::from_str(&whole(route, "m", &Script { usage: false, ..script })).unwrap();
            assert!(answer.get("usage").is_none());
        }
    }
}
