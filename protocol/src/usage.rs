//! The engine's own token counts, read from a copy of its answer: by the worker, or by the relay where a worker does not
//! speak our extensions. Never guessed: no usage, no counts.

use serde::Deserialize;

use crate::frame::TokenCounts;

/// Bytes of an answer's end in which its usage is looked for. Engines write it last, or nearly so.
const TAIL_BYTES: usize = 2048;

const MARK: &[u8] = b"\"usage\"";

/// Both spellings of the counts: OpenAI's and Anthropic's.
#[derive(Debug, Default, Deserialize)]
struct Usage {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    total_tokens: Option<u32>,
    input_tokens: Option<u32>,
    output_tokens: Option<u32>,
}

impl Usage {
    fn counts(self) -> Option<TokenCounts> {
        let prompt = self.prompt_tokens.or(self.input_tokens);
        let completion = self.completion_tokens.or(self.output_tokens);
        let both = prompt.zip(completion).map(|(a, b)| a.saturating_add(b));
        let counts = TokenCounts {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: self.total_tokens.or(both),
        };
        (counts != TokenCounts::default()).then_some(counts)
    }
}

/// Follows one answer.
#[derive(Debug, Default)]
pub struct UsageReader {
    /// Anthropic's streams tell the prompt's tokens in their first event.
    first: Option<TokenCounts>,
    begun: bool,
    events: bool,
    tail: Vec<u8>,
}

impl UsageReader {
    /// Starts reading when the answer is JSON or an event stream, and not encoded.
    pub fn for_answer(content_type: Option<&[u8]>, is_encoded: bool) -> Option<Self> {
        let content_type = content_type.filter(|_| !is_encoded)?;
        let events = content_type.starts_with(b"text/event-stream");
        (events || content_type.starts_with(b"application/json")).then(|| Self { events, ..Self::default() })
    }

    /// Starts reading an event stream.
    pub fn for_events() -> Self {
        Self { events: true, ..Self::default() }
    }

    /// Says whether the answer is an event stream.
    pub fn is_events(&self) -> bool {
        self.events
    }

    /// Sees the next part of the answer.
    pub fn see(&mut self, part: &[u8]) {
        if !self.begun && !part.is_empty() {
            self.begun = true;
            self.first = last_usage(&part[..part.len().min(TAIL_BYTES)]);
        }
        if part.len() >= TAIL_BYTES {
            self.tail.clear();
            self.tail.extend_from_slice(&part[part.len() - TAIL_BYTES..]);
            return;
        }
        // Cut only now and then, so that a long stream of small parts moves each byte about once.
        if self.tail.len() + part.len() > 2 * TAIL_BYTES {
            let keep_from = self.tail.len() - (TAIL_BYTES - part.len());
            self.tail.drain(..keep_from);
        }
        self.tail.extend_from_slice(part);
    }

    /// Returns what the answer said.
    pub fn finish(self) -> Option<TokenCounts> {
        let last = last_usage(&self.tail);
        match (self.first, last) {
            (Some(first), Some(last)) if last.prompt_tokens.is_none() => {
                let prompt_tokens = first.prompt_tokens;
                let total_tokens =
                    prompt_tokens.zip(last.completion_tokens).map(|(a, b)| a.saturating_add(b));
                Some(TokenCounts { prompt_tokens, total_tokens, ..last })
            }
            (first, last) => last.or(first),
        }
    }
}

/// Returns the usage of a whole JSON body: its top-level member.
pub fn of_body(body: &[u8]) -> Option<TokenCounts> {
    #[derive(Deserialize)]
    struct Answer {
        usage: Option<Usage>,
    }
    memchr::memmem::find(body, MARK)?;
    serde_json::from_slice::<Answer>(body).ok()?.usage?.counts()
}

/// Returns the last `"usage": {...}` of a text that may begin and end anywhere.
fn last_usage(text: &[u8]) -> Option<TokenCounts> {
    let mut end = text.len();
    while let Some(at) = memchr::memmem::rfind(&text[..end], MARK) {
        end = at;
        // Inside a string the quotes are escaped: that is what a model said, not what the engine counted.
        if at > 0 && text[at - 1] == b'\\' {
            continue;
        }
        let rest = text[at + MARK.len()..].trim_ascii_start();
        let Some(value) = rest.strip_prefix(b":") else { continue };
        let first_value = serde_json::Deserializer::from_slice(value).into_iter::<Usage>().next();
        if let Some(Ok(usage)) = first_value
            && let Some(counts) = usage.counts()
        {
            return Some(counts);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(prompt: u32, completion: u32) -> Option<TokenCounts> {
        Some(TokenCounts {
            prompt_tokens: Some(prompt),
            completion_tokens: Some(completion),
            total_tokens: Some(prompt + completion),
        })
    }

    fn of_stream(parts: &[&[u8]]) -> Option<TokenCounts> {
        let mut reader = UsageReader::default();
        parts.iter().for_each(|part| reader.see(part));
        reader.finish()
    }

    #[test]
    fn a_whole_body_tells_its_top_level_usage() {
        let openai = br#"{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7},"x":{"usage":{"prompt_tokens":9}}}"#;
        assert_eq!(of_body(openai), counts(3, 4));
        let anthropic = br#"{"content":[{"text":"\"usage\": {\"input_tokens\": 99}"}],"usage":{"input_tokens":3,"output_tokens":4}}"#;
        assert_eq!(of_body(anthropic), counts(3, 4));
        assert_eq!(of_body(br#"{"usage":null}"#), None);
        assert_eq!(of_body(br#"{"usage":"#), None);
        assert_eq!(of_body(b"not json"), None);
    }

    #[test]
    fn the_last_event_with_usage_counts() {
        let last =
            br#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}

data: [DONE]

"#;
        let chunk = br#"data: {"choices":[{"delta":{"content":"hi"}}],"usage":null}

"#;
        assert_eq!(of_stream(&[chunk, chunk, last]), counts(3, 4));
        let (a, b) = last.split_at(30);
        assert_eq!(of_stream(&[chunk, a, b]), counts(3, 4));
        assert_eq!(of_stream(&[chunk, chunk]), None);
    }

    #[test]
    fn anthropic_streams_tell_the_prompt_first_and_the_answer_last() {
        let start =
            br#"data: {"type":"message_start","message":{"usage":{"input_tokens":25,"output_tokens":1}}}"#;
        let delta = br#"data: {"type":"message_delta","usage":{"output_tokens":15}}"#;
        let filler = vec![b'x'; 10_000];
        assert_eq!(of_stream(&[start, &filler, delta]), counts(25, 15));
    }

    #[test]
    fn what_a_model_says_about_usage_is_not_counted() {
        let said = br#"data: {"delta":{"content":"{\"usage\": {\"prompt_tokens\": 5}}"}}"#;
        assert_eq!(of_stream(&[said]), None);
    }

    #[test]
    fn a_long_stream_keeps_a_short_tail() {
        let mut reader = UsageReader::default();
        for _ in 0..10_000 {
            reader.see(&[b'x'; 100]);
        }
        assert!(reader.tail.capacity() <= 4 * TAIL_BYTES, "{}", reader.tail.capacity());
        reader.see(br#""usage":{"input_tokens":3,"output_tokens":4}"#);
        assert_eq!(reader.finish(), counts(3, 4));
    }
}
