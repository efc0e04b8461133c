//! Pure: reads what the relay needs from a JSON request body, in one pass, and builds nothing.
//!
//! A body that passes is valid UTF-8 and one well-formed object to its end, so that no two readers behind the
//! relay can see different models in it.

mod grammar;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use self::grammar::{RawString, Scanner, Step, unescape};

/// How deep arrays and objects may be nested, the body itself included.
pub const MAX_DEPTH: u32 = 128;

/// What a body says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned<'a> {
    /// The model's name, unescaped.
    pub model: Cow<'a, str>,
    /// Where the value of `model` stands, quotes included.
    pub model_range: Range<usize>,
    /// Whether an event stream is asked for.
    pub stream: bool,
    /// Where the value of the first of `messages`, `prompt` and `input` stands.
    pub prompt_range: Option<Range<usize>>,
}

impl Scanned<'_> {
    /// Returns the first bytes of the prompt, at most `limit`: requests that share them share a cache.
    pub fn prefix_bytes<'b>(&self, body: &'b [u8], limit: usize) -> &'b [u8] {
        let Some(range) = self.prompt_range.clone() else { return &[] };
        let prompt = &body[range];
        &prompt[..prompt.len().min(limit)]
    }
}

/// What is wrong with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ScanProblem {
    #[error("the body is not valid UTF-8")]
    NotUtf8,
    #[error("the body must be a JSON object")]
    NotAnObject,
    #[error("the JSON ends too early")]
    UnexpectedEnd,
    #[error("unexpected character in the JSON")]
    UnexpectedCharacter,
    #[error("expected a name in quotes")]
    ExpectedName,
    #[error("expected \":\" after a name")]
    ExpectedColon,
    #[error("expected \",\" or the end of the object")]
    ExpectedCommaOrBrace,
    #[error("expected \",\" or the end of the array")]
    ExpectedCommaOrBracket,
    #[error("malformed number")]
    Number,
    #[error("malformed escape in a string")]
    Escape,
    #[error("control character in a string; write it as an escape")]
    ControlCharacter,
    #[error("more than {MAX_DEPTH} levels of arrays and objects")]
    TooDeep,
    #[error("something follows the JSON object")]
    TrailingCharacters,
    #[error("`model` is missing; name the model that should answer")]
    ModelMissing,
    #[error("`model` must be a string")]
    ModelType,
    #[error("`model` occurs more than once")]
    ModelRepeated,
    #[error("`stream` must be true, false or null")]
    StreamType,
    #[error("`stream` occurs more than once")]
    StreamRepeated,
}

impl ScanProblem {
    /// Returns the field it is about.
    pub fn param(self) -> Option<&'static str> {
        match self {
            Self::ModelMissing | Self::ModelType | Self::ModelRepeated => Some("model"),
            Self::StreamType | Self::StreamRepeated => Some("stream"),
            Self::NotUtf8
            | Self::NotAnObject
            | Self::UnexpectedEnd
            | Self::UnexpectedCharacter
            | Self::ExpectedName
            | Self::ExpectedColon
            | Self::ExpectedCommaOrBrace
            | Self::ExpectedCommaOrBracket
            | Self::Number
            | Self::Escape
            | Self::ControlCharacter
            | Self::TooDeep
            | Self::TrailingCharacters => None,
        }
    }
}

/// A body that is refused, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{problem} (at byte {at})")]
pub struct ScanError {
    /// What is wrong.
    pub problem: ScanProblem,
    /// How many bytes are before it.
    pub at: usize,
}

/// Checks a body and reads its model.
///
/// # Errors
/// Says what is wrong first, and where.
pub fn scan(body: &[u8]) -> Result<Scanned<'_>, ScanError> {
    let text = std::str::from_utf8(body)
        .map_err(|error| ScanError { problem: ScanProblem::NotUtf8, at: error.valid_up_to() })?;
    Scanner { text, bytes: body, at: 0 }.body()
}

/// Returns a body whose model has another name, and which is else the same.
pub fn replace_model(body: &Bytes, model_range: Range<usize>, name: &str) -> Bytes {
    let mut replaced = BytesMut::with_capacity(body.len() - model_range.len() + name.len() + 2);
    replaced.extend_from_slice(&body[..model_range.start]);
    let mut writer = replaced.writer();
    serde_json::to_writer(&mut writer, name).expect("a string has a JSON form, and memory takes it");
    let mut replaced = writer.into_inner();
    replaced.extend_from_slice(&body[model_range.end..]);
    replaced.freeze()
}
impl<'a> Scanner<'a> {
    fn body(mut self) -> Step<Scanned<'a>> {
        self.skip_space();
        if self.peek() != Some(b'{') {
            return Err(self.problem(ScanProblem::NotAnObject));
        }
        self.at += 1;
        let (mut model, mut stream, mut prompt_range) = (None, None, None);

        self.skip_space();
        let mut is_open = self.peek() != Some(b'}');
        while is_open {
            let name = self.name()?;
            let start = self.at;
            match self.known_name(&name) {
                Some(Known::Model) => {
                    if model.is_some() {
                        return Err(self.problem(ScanProblem::ModelRepeated));
                    }
                    model = Some((self.model()?, start..self.at));
                }
                Some(Known::Stream) => {
                    if stream.is_some() {
                        return Err(self.problem(ScanProblem::StreamRepeated));
                    }
                    stream = Some(self.stream()?);
                }
                known => {
                    self.value()?;
                    if known == Some(Known::Prompt) && prompt_range.is_none() {
                        prompt_range = Some(start..self.at);
                    }
                }
            }
            self.skip_space();
            is_open = match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.skip_space();
                    true
                }
                Some(b'}') => false,
                Some(_) => return Err(self.problem(ScanProblem::ExpectedCommaOrBrace)),
                None => return Err(self.problem(ScanProblem::UnexpectedEnd)),
            };
        }
        self.at += 1;
        self.skip_space();
        if self.at < self.bytes.len() {
            return Err(self.problem(ScanProblem::TrailingCharacters));
        }
        let (model, model_range) = model.ok_or_else(|| self.problem(ScanProblem::ModelMissing))?;
        Ok(Scanned { model, model_range, stream: stream.unwrap_or(false), prompt_range })
    }

    fn known_name(&self, name: &RawString) -> Option<Known> {
        let raw = &self.text[name.inside.clone()];
        if !name.has_escapes {
            return Known::of(raw);
        }
        // A name with half a surrogate pair in it has no text and is none of ours.
        unescape(raw).as_deref().and_then(Known::of)
    }

    fn model(&mut self) -> Step<Cow<'a, str>> {
        let start = self.at;
        if self.peek() != Some(b'"') {
            return Err(self.problem(ScanProblem::ModelType));
        }
        let value = self.string()?;
        let raw = &self.text[value.inside];
        if !value.has_escapes {
            return Ok(Cow::Borrowed(raw));
        }
        unescape(raw).map(Cow::Owned).ok_or(ScanError { problem: ScanProblem::ModelType, at: start })
    }

    fn stream(&mut self) -> Step<bool> {
        match self.peek() {
            Some(b't') => self.literal(b"true").map(|()| true),
            Some(b'f') => self.literal(b"false").map(|()| false),
            Some(b'n') => self.literal(b"null").map(|()| false),
            _ => Err(self.problem(ScanProblem::StreamType)),
        }
    }
}

/// The names that mean something to the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Model,
    Stream,
    Prompt,
}

impl Known {
    fn of(name: &str) -> Option<Self> {
        match name {
            "model" => Some(Self::Model),
            "stream" => Some(Self::Stream),
            "messages" | "prompt" | "input" => Some(Self::Prompt),
            _ => None,
        }
    }
}
