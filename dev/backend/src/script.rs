//! How one request says what it wants: the member `stub` of its body, and `x-stub-*` headers.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::fill::Fill;

/// What the stub does with one request. Everything has a default, so a script names only what differs.
///
/// A header `x-stub-first-byte-delay-ms: 5` sets `first_byte_delay_ms`; headers win over the body's
/// `stub` member, which wins over the script of the backend.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// Name under which phases and closes of this request are kept.
    pub id: Option<String>,
    /// The shape of the answer.
    pub answer: Answer,
    /// Status of the answer.
    pub status: u16,
    /// The body in full, as JSON unless `content_type` says otherwise.
    pub body: Option<String>,
    /// `content-type`, when not the usual one.
    pub content_type: Option<String>,
    /// `content-encoding`; the bytes are sent as they are.
    pub content_encoding: Option<String>,
    /// More response headers.
    pub headers: BTreeMap<String, Vec<String>>,

    /// Data events of a stream.
    pub chunks: u32,
    /// Bytes of each event, or of each piece of a raw body.
    pub chunk_bytes: usize,
    /// Time from one event or piece to the next; 0 is full speed.
    pub interval_ms: u64,
    /// Events to a write at full speed.
    pub batch: u32,
    /// Writes each event in two halves.
    pub split: bool,
    /// Bytes of text in an answer that is not streamed, or of a raw body.
    pub bytes: u64,
    /// What the text or the raw body consists of.
    pub fill: Fill,
    /// Seed of random bytes.
    pub seed: u64,
    /// Sends a raw body chunked, without a length.
    pub chunked: bool,
    /// Whether the answer carries `usage`.
    pub usage: bool,
    /// Prompt tokens in `usage`.
    pub prompt_tokens: u64,
    /// Completion tokens in `usage`; the number of chunks unless given.
    pub completion_tokens: Option<u64>,

    /// Waits before the head.
    pub head_delay_ms: u64,
    /// Sends the head byte by byte with this time between two.
    pub slow_head_ms: u64,
    /// Waits between the head and the first byte of the body.
    pub first_byte_delay_ms: u64,

    /// How the answer fails.
    pub fail: Option<Fail>,
    /// Where it fails.
    pub at: At,
    /// Events or pieces sent before a failure at [`At::MidBody`].
    pub after_chunks: u32,
    /// Changes one byte of this event after its CRC was taken.
    pub corrupt_chunk: Option<u32>,
    /// Leaves this event out, though it was counted.
    pub omit_chunk: Option<u32>,

    /// Counts the request body and takes its CRC, but neither keeps nor reads it. As a header only.
    pub skip_body: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            id: None,
            answer: Answer::Auto,
            status: 200,
            body: None,
            content_type: None,
            content_encoding: None,
            headers: BTreeMap::new(),
            chunks: 20,
            chunk_bytes: 160,
            interval_ms: 0,
            batch: 1,
            split: false,
            bytes: 64,
            fill: Fill::Ascii,
            seed: 0,
            chunked: false,
            usage: true,
            prompt_tokens: 5,
            completion_tokens: None,
            head_delay_ms: 0,
            slow_head_ms: 0,
            first_byte_delay_ms: 0,
            fail: None,
            at: At::BeforeHead,
            after_chunks: 1,
            corrupt_chunk: None,
            omit_chunk: None,
            skip_body: false,
        }
    }
}

/// The shape of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What the route and the request's `stream` ask for.
    #[default]
    Auto,
    /// `bytes` bytes of `fill`, with their CRC32 in `x-stub-crc32`.
    Raw,
    /// What the stub saw of the request, as JSON.
    Echo,
}

/// How an answer fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fail {
    /// Resets the connection.
    Reset,
    /// Closes the connection in good order, short of the answer's end.
    Close,
    /// Sends bytes that are not HTTP and closes.
    Garbage,
    /// Sends nothing more and keeps the connection until the client closes it.
    Stall,
}

/// Where an answer fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum At {
    /// Before any byte of the answer.
    #[default]
    BeforeHead,
    /// After the head, before any byte of the body.
    AfterHead,
    /// After `after_chunks` events or pieces of the body.
    MidBody,
}

/// What the stub reads of a JSON body; all else is skipped.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Asked {
    pub(crate) model: Option<String>,
    pub(crate) stream: Option<bool>,
    stub: Option<Map<String, Value>>,
}

impl Asked {
    pub(crate) fn read(body: &Bytes) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| format!("body: {error}"))
    }

    pub(crate) fn multipart(body: &Bytes) -> Self {
        Self { model: form_field(body, b"name=\"model\""), ..Self::default() }
    }
}

/// The value of a form field; good enough for what HTTP clients write.
fn form_field(body: &[u8], name: &[u8]) -> Option<String> {
    let after_name = find(body, name)? + name.len();
    let start = after_name + find(&body[after_name..], b"\r\n\r\n")? + 4;
    let length = find(&body[start..], b"\r\n")?;
    Some(String::from_utf8_lossy(&body[start..start + length]).into_owned())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Fields whose header is text even when it reads like a number.
const TEXT: [&str; 4] = ["id", "body", "content_type", "content_encoding"];

/// Lays the body's and the headers' wishes over the backend's own script.
///
/// Returns `None` when there are none, which is what most requests of a benchmark are.
pub(crate) fn overlay<'a>(
    base: &Script,
    asked: &mut Asked,
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<Option<Script>, String> {
    let mut wishes = asked.stub.take().unwrap_or_default();
    for (name, value) in headers {
        let Some(field) =
            name.get(..7).filter(|prefix| prefix.eq_ignore_ascii_case("x-stub-")).map(|_| &name[7..])
        else {
            continue;
        };
        let field = field.to_ascii_lowercase().replace('-', "_");
        let text = String::from_utf8_lossy(value).into_owned();
        let value = match serde_json::from_str(&text) {
            Ok(value) if !TEXT.contains(&field.as_str()) => value,
            _ => Value::String(text),
        };
        wishes.insert(field, value);
    }
    if wishes.is_empty() {
        return Ok(None);
    }
    let mut merged = match serde_json::to_value(base) {
        Ok(Value::Object(base)) => base,
        _ => Map::new(),
    };
    merged.extend(wishes);
    let script: Script =
        serde_json::from_value(Value::Object(merged)).map_err(|error| format!("stub: {error}"))?;
    if script.chunk_bytes == 0 || script.batch == 0 || !(100..1000).contains(&script.status) {
        return Err("stub: chunk_bytes and batch must be at least 1, status 100 to 999".to_owned());
    }
    Ok(Some(script))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlaid(body: &str, headers: &[(&str, &str)]) -> Result<Option<Script>, String> {
        let mut asked = Asked::read(&Bytes::copy_from_slice(body.as_bytes())).unwrap();
        let base = Script { chunks: 7, ..Script::default() };
        overlay(&base, &mut asked, headers.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    #[test]
    fn headers_win_over_the_body_which_wins_over_the_backends_script() {
        let script = overlaid(
            r#"{"stub":{"interval_ms":3,"seed":1}}"#,
            &[("X-Stub-Seed", "2"), ("x-stub-id", "5"), ("x-other", "1"), ("x-stub-fail", "reset")],
        );
        let expected = Script {
            chunks: 7,
            interval_ms: 3,
            seed: 2,
            id: Some("5".to_owned()),
            fail: Some(Fail::Reset),
            ..Script::default()
        };
        assert_eq!(script.unwrap().unwrap(), expected);
    }

    #[test]
    fn a_request_without_wishes_gets_the_backends_script() {
        assert_eq!(overlaid(r#"{"model":"m"}"#, &[("x-request-id", "1")]), Ok(None));
    }

    #[test]
    fn a_misspelt_wish_is_refused() {
        assert!(overlaid(r#"{"stub":{"chunk":1}}"#, &[]).unwrap_err().contains("unknown field `chunk`"));
        assert!(overlaid("{}", &[("x-stub-chunk-bytes", "0")]).is_err());
    }

    #[test]
    fn a_form_names_its_model() {
        let form = b"--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--b--\r\n";
        assert_eq!(Asked::multipart(&Bytes::from_static(form)).model.as_deref(), Some("whisper"));
    }
}
