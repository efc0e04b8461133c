//! Pure: reads what the relay needs from a JSON request body, in one pass, and builds nothing.
//!
//! A body that passes is valid UTF-8 and one well-formed object to its end, so that no two readers behind the
//! relay can see different models in it.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

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

/// A string as it stands in the body.
#[derive(Debug, Clone)]
struct RawString {
    /// Between the quotes.
    inside: Range<usize>,
    has_escapes: bool,
}

struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

type Step<T> = Result<T, ScanError>;

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

    /// Reads a name and its colon, up to the value.
    fn name(&mut self) -> Step<RawString> {
        match self.peek() {
            Some(b'"') => {}
            Some(_) => return Err(self.problem(ScanProblem::ExpectedName)),
            None => return Err(self.problem(ScanProblem::UnexpectedEnd)),
        }
        let name = self.string()?;
        self.skip_space();
        match self.peek() {
            Some(b':') => self.at += 1,
            Some(_) => return Err(self.problem(ScanProblem::ExpectedColon)),
            None => return Err(self.problem(ScanProblem::UnexpectedEnd)),
        }
        self.skip_space();
        Ok(name)
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

    /// Passes over one value of any kind. Which bracket closes which level is kept as bits, so nothing is
    /// allocated and no stack can overflow.
    fn value(&mut self) -> Step<()> {
        let mut objects: u128 = 0;
        let mut depth: u32 = 0;
        loop {
            // At the start of a value.
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    // The body's own object is one level.
                    if depth + 1 >= MAX_DEPTH {
                        return Err(self.problem(ScanProblem::TooDeep));
                    }
                    self.at += 1;
                    self.skip_space();
                    let is_object = open == b'{';
                    if self.peek() == Some(if is_object { b'}' } else { b']' }) {
                        self.at += 1;
                    } else {
                        depth += 1;
                        objects = objects << 1 | u128::from(is_object);
                        if is_object {
                            self.name()?;
                        }
                        continue;
                    }
                }
                Some(b'"') => {
                    self.string()?;
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                Some(_) => return Err(self.problem(ScanProblem::UnexpectedCharacter)),
                None => return Err(self.problem(ScanProblem::UnexpectedEnd)),
            }
            // Behind a value: closes what ends here, up to the next value.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                self.skip_space();
                let in_object = objects & 1 == 1;
                match (self.peek(), in_object) {
                    (Some(b','), _) => {
                        self.at += 1;
                        self.skip_space();
                        if in_object {
                            self.name()?;
                        }
                        break;
                    }
                    (Some(b'}'), true) | (Some(b']'), false) => {
                        self.at += 1;
                        depth -= 1;
                        objects >>= 1;
                    }
                    (Some(_), true) => return Err(self.problem(ScanProblem::ExpectedCommaOrBrace)),
                    (Some(_), false) => return Err(self.problem(ScanProblem::ExpectedCommaOrBracket)),
                    (None, _) => return Err(self.problem(ScanProblem::UnexpectedEnd)),
                }
            }
        }
    }

    /// Passes over a string, from its opening quote.
    fn string(&mut self) -> Step<RawString> {
        self.at += 1;
        let start = self.at;
        let mut has_escapes = false;
        loop {
            self.skip_plain();
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(RawString { inside: start..self.at - 1, has_escapes });
                }
                Some(..b' ') => return Err(self.problem(ScanProblem::ControlCharacter)),
                Some(_) => {
                    has_escapes = true;
                    self.escape()?;
                }
                None => return Err(self.problem(ScanProblem::UnexpectedEnd)),
            }
        }
    }

    /// Passes over the bytes of a string that mean themselves, eight at a time.
    fn skip_plain(&mut self) {
        const ONES: u64 = u64::from_ne_bytes([1; 8]);
        const HIGH: u64 = ONES << 7;
        // Marks the high bit of each byte below `limit`; above the first such byte there may be false marks.
        let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH;
        while let Some(bytes) = self.bytes[self.at..].first_chunk() {
            let word = u64::from_le_bytes(*bytes);
            let quote = below(word ^ (ONES * u64::from(b'"')), 1);
            let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
            let marks = below(word, u64::from(b' ')) | quote | backslash;
            if marks != 0 {
                // Eight bytes have at most 63 zeros before a mark.
                self.at += marks.trailing_zeros() as usize / 8;
                return;
            }
            self.at += 8;
        }
        while self.peek().is_some_and(|byte| !matches!(byte, b'"' | b'\\' | ..b' ')) {
            self.at += 1;
        }
    }

    /// Passes over an escape, from its backslash.
    fn escape(&mut self) -> Step<()> {
        let length = match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => {
                let digits = self.bytes.get(self.at + 2..self.at + 6);
                if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    return Err(self.problem(ScanProblem::Escape));
                }
                6
            }
            _ => return Err(self.problem(ScanProblem::Escape)),
        };
        self.at += length;
        Ok(())
    }

    fn number(&mut self) -> Step<()> {
        let start = self.at;
        self.skip_one(b"-");
        let leading_zero = self.peek() == Some(b'0');
        let whole = self.skip_digits();
        let mut good = whole > 0 && (whole == 1 || !leading_zero);
        if let Some(b'.' | b'e' | b'E') = self.peek() {
            if self.skip_one(b".") {
                good &= self.skip_digits() > 0;
            }
            if self.skip_one(b"eE") {
                self.skip_one(b"+-");
                good &= self.skip_digits() > 0;
            }
        }
        if good { Ok(()) } else { Err(ScanError { problem: ScanProblem::Number, at: start }) }
    }

    fn skip_one(&mut self, any_of: &[u8]) -> bool {
        let found = self.peek().is_some_and(|byte| any_of.contains(&byte));
        self.at += usize::from(found);
        found
    }

    fn skip_digits(&mut self) -> usize {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        self.at += length;
        length
    }

    fn literal(&mut self, word: &[u8]) -> Step<()> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.problem(ScanProblem::UnexpectedCharacter))
        }
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn problem(&self, problem: ScanProblem) -> ScanError {
        ScanError { problem, at: self.at }
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

/// Resolves the escapes of a string whose form was checked; half a surrogate pair has no text.
fn unescape(raw: &str) -> Option<String> {
    let mut text = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            text.push(char);
            continue;
        }
        text.push(match chars.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let first = unit(&mut chars)?;
                let second = if (0xd800..0xdc00).contains(&first) {
                    (chars.next()? == '\\' && chars.next()? == 'u').then(|| unit(&mut chars))?
                } else {
                    None
                };
                let units = [Some(first), second].into_iter().flatten();
                let mut decoded = char::decode_utf16(units);
                let char = decoded.next()?.ok()?;
                // A high half followed by something else leaves that behind.
                if decoded.next().is_some() {
                    return None;
                }
                char
            }
            plain => plain,
        });
    }
    Some(text)
}

fn unit(chars: &mut std::str::Chars<'_>) -> Option<u16> {
    let (digits, rest) = chars.as_str().split_at_checked(4)?;
    *chars = rest.chars();
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn problem(body: &str) -> (ScanProblem, usize) {
        let error = scan(body.as_bytes()).expect_err(body);
        (error.problem, error.at)
    }

    #[test]
    fn model_and_stream_are_found_at_the_top_only() {
        let table = [
            (r#"{"model":"m"}"#, "m", false),
            (r#" { "stream" : true , "model" : "a/b:c" } "#, "a/b:c", true),
            (r#"{"model":"m","stream":false}"#, "m", false),
            (r#"{"model":"m","stream":null}"#, "m", false),
            (r#"{"m\u006fdel":"m","\u0073tream":true}"#, "m", true),
            (r#"{"model":"\u00e9\ud83d\ude00\n\"\\\/"}"#, "\u{e9}\u{1f600}\n\"\\/", false),
            (r#"{"a":{"model":1,"stream":"x"},"b":[{"model":2}],"model":"m"}"#, "m", false),
            (r#"{"Model":"x","model ":"y","":"z","model":"m"}"#, "m", false),
            (r#"{"x":1,"x":2,"model":""}"#, "", false),
        ];
        for (body, model, stream) in table {
            let scanned = scan(body.as_bytes()).expect(body);
            assert_eq!((scanned.model.as_ref(), scanned.stream), (model, stream), "{body}");
            let raw: String = serde_json::from_str(&body[scanned.model_range]).expect(body);
            assert_eq!(raw, model, "{body}");
        }
    }

    #[test]
    fn the_prompt_is_the_first_field_that_can_be_one() {
        let body = br#"{"model":"m","input": ["x"],"messages":[]}"#;
        let scanned = scan(body).unwrap();
        assert_eq!(scanned.prefix_bytes(body, 100), br#"["x"]"#);
        assert_eq!(scanned.prefix_bytes(body, 2), br#"[""#);
        let body = br#"{"model":"m","n":{"input":1}}"#;
        assert_eq!(scan(body).unwrap().prefix_bytes(body, 100), b"");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        use ScanProblem::*;
        let table = [
            ("", NotAnObject, 0),
            ("[]", NotAnObject, 0),
            ("\"model\"", NotAnObject, 0),
            ("\u{feff}{}", NotAnObject, 0),
            ("{", UnexpectedEnd, 1),
            ("{}", ModelMissing, 2),
            (r#"{"model""#, UnexpectedEnd, 8),
            (r#"{"model" "m"}"#, ExpectedColon, 9),
            (r#"{"model":"m""#, UnexpectedEnd, 12),
            (r#"{"model":"m"} x"#, TrailingCharacters, 14),
            (r#"{"model":"m"}{}"#, TrailingCharacters, 13),
            (r#"{"model":"m",}"#, ExpectedName, 13),
            (r#"{,"model":"m"}"#, ExpectedName, 1),
            (r#"{'model':"m"}"#, ExpectedName, 1),
            (r#"{"model":"m" "x":1}"#, ExpectedCommaOrBrace, 13),
            (r#"{"model":1}"#, ModelType, 9),
            (r#"{"model":null}"#, ModelType, 9),
            (r#"{"model":}"#, ModelType, 9),
            (r#"{"model":"\ud800"}"#, ModelType, 9),
            (r#"{"model":"\ud800\u0041"}"#, ModelType, 9),
            (r#"{"model":"m","model":"m"}"#, ModelRepeated, 21),
            (r#"{"model":"m","mode\u006c":"m"}"#, ModelRepeated, 26),
            (r#"{"model":"m","stream":1}"#, StreamType, 22),
            (r#"{"model":"m","stream":"true"}"#, StreamType, 22),
            (r#"{"model":"m","stream":true,"stream":true}"#, StreamRepeated, 36),
            (r#"{"x":[1,]}"#, UnexpectedCharacter, 8),
            (r#"{"x":[1 2]}"#, ExpectedCommaOrBracket, 8),
            (r#"{"x":[1}}"#, ExpectedCommaOrBracket, 7),
            (r#"{"x":{"y":1]}"#, ExpectedCommaOrBrace, 11),
            (r#"{"x":{"y"}}"#, ExpectedColon, 9),
            (r#"{"x":tru}"#, UnexpectedCharacter, 5),
            (r#"{"x":NaN}"#, UnexpectedCharacter, 5),
            (r#"{"x":truely}"#, ExpectedCommaOrBrace, 9),
            (r#"{"x":01}"#, Number, 5),
            (r#"{"x":-}"#, Number, 5),
            (r#"{"x":1.}"#, Number, 5),
            (r#"{"x":.5}"#, UnexpectedCharacter, 5),
            (r#"{"x":1e+}"#, Number, 5),
            (r#"{"x":+1}"#, UnexpectedCharacter, 5),
            (r#"{"x":"\x"}"#, Escape, 6),
            (r#"{"x":"\u12g4"}"#, Escape, 6),
            (r#"{"x":"\u12"#, Escape, 6),
            ("{\"x\":\"a\nb\"}", ControlCharacter, 7),
            ("{\"x\":\"a", UnexpectedEnd, 7),
            ("{\"x\":1}\0", TrailingCharacters, 7),
        ];
        for (body, expected, at) in table {
            assert_eq!(problem(body), (expected, at), "{body}");
        }
        let error = scan(b"{\"model\":\"\xff\"}").unwrap_err();
        assert_eq!((error.problem, error.at), (NotUtf8, 10));
        assert_eq!(error.to_string(), "the body is not valid UTF-8 (at byte 10)");
    }

    #[test]
    fn a_string_ends_where_it_ends_at_any_offset() {
        for before in 0..20 {
            let filler = "\u{7f}\u{e9}!\u{20ac}#[]\u{10ffff}".repeat(4);
            let text: String = filler.chars().take(before).collect();
            let at = r#"{"x":""#.len() + text.len();
            let good = format!(r#"{{"x":"{text}","model":"m"}}"#);
            assert_eq!(scan(good.as_bytes()).expect(&good).model, "m");
            let bad = format!("{{\"x\":\"{text}\u{1f}{filler}\",\"model\":\"m\"}}");
            assert_eq!(problem(&bad), (ScanProblem::ControlCharacter, at));
            let bad = format!(r#"{{"x":"{text}\{filler}"}}"#);
            assert_eq!(problem(&bad), (ScanProblem::Escape, at));
        }
    }

    #[test]
    fn nesting_has_a_bound_and_needs_no_stack() {
        let nested = |levels: usize| {
            // The body is one level itself.
            let inner = levels - 1;
            format!(r#"{{"model":"m","x":{}{}}}"#, "[".repeat(inner), "]".repeat(inner))
        };
        assert!(scan(nested(MAX_DEPTH as usize).as_bytes()).is_ok());
        assert_eq!(problem(&nested(MAX_DEPTH as usize + 1)).0, ScanProblem::TooDeep);
        assert_eq!(problem(&nested(1_000_000)).0, ScanProblem::TooDeep);
        let objects = format!(r#"{{"model":"m","x":{}1{}}}"#, r#"{"y":"#.repeat(127), "}".repeat(127));
        assert!(scan(objects.as_bytes()).is_ok());
    }

    #[test]
    fn another_model_is_written_in_and_nothing_else_changes() {
        let body = Bytes::from_static(br#"{"a": 1 ,"model" : "m\u0031" , "z":"model"}"#);
        let range = scan(&body).unwrap().model_range;
        let replaced = replace_model(&body, range, "we\"ird\u{e9}");
        assert_eq!(replaced, "{\"a\": 1 ,\"model\" : \"we\\\"ird\u{e9}\" , \"z\":\"model\"}");
        assert_eq!(scan(&replaced).unwrap().model, "we\"ird\u{e9}");
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no others", |n| n.is_finite()).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// What serde reads; it looks no closer than a scan at the fields that nobody asks for.
    #[derive(serde::Deserialize)]
    struct Fields {
        model: String,
        stream: Option<bool>,
    }

    fn by_serde(body: &[u8]) -> Option<(String, bool)> {
        let text = std::str::from_utf8(body).ok()?;
        let fields: Fields = serde_json::from_str(text).ok()?;
        Some((fields.model, fields.stream.unwrap_or(false)))
    }

    fn by_us(body: &[u8]) -> Option<(String, bool)> {
        scan(body).ok().map(|scanned| (scanned.model.into_owned(), scanned.stream))
    }

    proptest! {
        #[test]
        fn a_body_that_serde_wrote_is_read_alike(
            extra in prop::collection::btree_map("[a-z]{1,3}", json(), 0..6),
            model in any::<String>(),
            stream in any::<Option<bool>>(),
            pretty in any::<bool>(),
        ) {
            let mut object: serde_json::Map<String, Value> = extra.into_iter().collect();
            object.insert("model".into(), model.clone().into());
            object.insert("stream".into(), stream.into());
            let body =
                if pretty { serde_json::to_vec_pretty(&object) } else { serde_json::to_vec(&object) }.unwrap();
            prop_assert_eq!(by_us(&body), Some((model, stream.unwrap_or(false))));
        }

        #[test]
        fn a_damaged_body_is_judged_as_serde_judges_it(
            extra in prop::collection::btree_map("[a-z]{1,3}", json(), 0..4),
            damage in prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..4),
        ) {
            let mut object: serde_json::Map<String, Value> = extra.into_iter().collect();
            object.insert("model".into(), "m".into());
            object.insert("stream".into(), true.into());
            let mut body = serde_json::to_vec(&object).unwrap();
            for (at, damage) in damage {
                let at = at.index(body.len() + 1);
                match damage {
                    Damage::Cut => body.truncate(at),
                    Damage::Remove if at < body.len() => { body.remove(at); }
                    Damage::Remove => {}
                    Damage::Insert(text) => { body.splice(at..at, text.bytes()); }
                    Damage::Byte(byte) => body.insert(at, byte),
                }
            }
            // Serde takes an array for the fields in their order, and half a surrogate pair for no name.
            let text = String::from_utf8_lossy(&body).to_lowercase();
            prop_assume!(text.trim_start().starts_with('{') && !text.contains("\\ud"));
            prop_assert_eq!(by_us(&body), by_serde(&body), "{}", text);
        }

        #[test]
        fn any_bytes_get_an_answer(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = scan(&body);
        }
    }

    #[derive(Debug, Clone)]
    enum Damage {
        Cut,
        Remove,
        Insert(&'static str),
        Byte(u8),
    }

    fn damage() -> impl Strategy<Value = Damage> {
        const PIECES: [&str; 24] = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\\",
            "\\u",
            "\\u00e9",
            "0",
            "-",
            ".",
            "e",
            "1e5",
            "true",
            "null",
            " ",
            "\n",
            "\t",
            "\"x\":1,",
            ",\"y\":[]",
            "\u{e9}",
            "{}",
        ];
        prop_oneof![
            Just(Damage::Cut),
            Just(Damage::Remove),
            prop::sample::select(&PIECES[..]).prop_map(Damage::Insert),
            any::<u8>().prop_map(Damage::Byte),
        ]
    }
}
