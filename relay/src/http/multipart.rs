//! Pure: reads what the relay needs from a complete `multipart/form-data` body.
//!
//! Strict where readers differ: every line ends in CR LF, a part has one `content-disposition`, and the form is
//! closed by its last boundary.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use thiserror::Error;

/// The longest boundary that the standard allows.
const MAX_BOUNDARY: usize = 70;

/// What a form says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form<'a> {
    /// The model's name.
    pub model: &'a str,
    /// Where it stands.
    pub model_range: Range<usize>,
    /// Whether an event stream is asked for.
    pub stream: bool,
}

/// Why a form is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FormError {
    #[error("the content type must be multipart/form-data with a boundary")]
    ContentType,
    #[error("the form does not end with its closing boundary")]
    Unclosed,
    #[error("malformed boundary line in the form (at byte {0})")]
    BoundaryLine(usize),
    #[error("malformed headers of a form field (at byte {0})")]
    FieldHeaders(usize),
    #[error("the form field `model` is missing; name the model that should answer")]
    ModelMissing,
    #[error("the form field `model` must be plain text")]
    ModelType,
    #[error("the form field `model` occurs more than once")]
    ModelRepeated,
    #[error("the form field `stream` occurs more than once")]
    StreamRepeated,
}

impl FormError {
    /// Returns the field it is about.
    pub fn param(self) -> Option<&'static str> {
        match self {
            Self::ModelMissing | Self::ModelType | Self::ModelRepeated => Some("model"),
            Self::StreamRepeated => Some("stream"),
            Self::ContentType | Self::Unclosed | Self::BoundaryLine(_) | Self::FieldHeaders(_) => None,
        }
    }
}

/// Reads the model from a form, given the request's content type.
///
/// # Errors
/// Says what is wrong first.
pub fn scan<'a>(content_type: &str, body: &'a [u8]) -> Result<Form<'a>, FormError> {
    let boundary = boundary(content_type).ok_or(FormError::ContentType)?;
    let (mut model, mut stream) = (None, None);
    let mut parts = Parts::new(body, &boundary)?;
    while let Some(part) = parts.next_part()? {
        let field = Field::parse(&body[part.clone()]).ok_or(FormError::FieldHeaders(part.start))?;
        let content = part.start + field.content..part.end;
        match field.name.as_slice() {
            b"model" => {
                let text = std::str::from_utf8(&body[content.clone()]).map_err(|_| FormError::ModelType)?;
                if field.is_file {
                    return Err(FormError::ModelType);
                }
                if model.replace((text, content)).is_some() {
                    return Err(FormError::ModelRepeated);
                }
            }
            b"stream" => {
                let before = stream.replace(is_true(&body[content]));
                before.map_or(Ok(()), |_| Err(FormError::StreamRepeated))?;
            }
            _ => {}
        }
    }
    let (model, model_range) = model.ok_or(FormError::ModelMissing)?;
    Ok(Form { model, model_range, stream: stream.unwrap_or(false) })
}

/// Returns a form whose model has another name, and which is else the same.
pub fn replace_model(body: &Bytes, model_range: Range<usize>, name: &str) -> Bytes {
    let mut replaced = BytesMut::with_capacity(body.len() - model_range.len() + name.len());
    replaced.extend_from_slice(&body[..model_range.start]);
    replaced.extend_from_slice(name.as_bytes());
    replaced.extend_from_slice(&body[model_range.end..]);
    replaced.freeze()
}

/// The spellings of true that engines accept in a form.
fn is_true(value: &[u8]) -> bool {
    [&b"true"[..], b"1", b"on", b"yes", b"t", b"y"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

fn boundary(content_type: &str) -> Option<Vec<u8>> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters.as_bytes(), "boundary")?.value;
    let is_good = (1..=MAX_BOUNDARY).contains(&boundary.len())
        && boundary.iter().all(|byte| (b' '..=b'~').contains(byte))
        && boundary.last() != Some(&b' ');
    is_good.then_some(boundary)
}

/// Walks over the parts of a form; a part begins behind its boundary line.
struct Parts<'a> {
    body: &'a [u8],
    delimiter: memmem::Finder<'static>,
    length: usize,
    at: usize,
}

impl<'a> Parts<'a> {
    fn new(body: &'a [u8], boundary: &[u8]) -> Result<Self, FormError> {
        let delimiter = [b"\r\n--", boundary].concat();
        let finder = memmem::Finder::new(&delimiter).into_owned();
        // The first boundary needs no line before it.
        let at = if body.starts_with(&delimiter[2..]) {
            delimiter.len() - 2
        } else {
            finder.find(body).ok_or(FormError::Unclosed)? + delimiter.len()
        };
        Ok(Self { body, delimiter: finder, length: delimiter.len(), at })
    }

    /// Returns the next part, headers included, or none at the closing boundary.
    fn next_part(&mut self) -> Result<Option<Range<usize>>, FormError> {
        let rest = &self.body[self.at..];
        if rest.starts_with(b"--") {
            return Ok(None);
        }
        // Some writers pad the line.
        let padding = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if !rest[padding..].starts_with(b"\r\n") {
            return Err(FormError::BoundaryLine(self.at));
        }
        let start = self.at + padding + 2;
        // A part without content: the line end before the next boundary is that of this one.
        let end = start - 2 + self.delimiter.find(&self.body[start - 2..]).ok_or(FormError::Unclosed)?;
        self.at = end + self.length;
        Ok(Some(start..end.max(start)))
    }
}

/// What the headers of a part say.
struct Field {
    name: Vec<u8>,
    is_file: bool,
    /// Where its content begins.
    content: usize,
}

impl Field {
    fn parse(part: &[u8]) -> Option<Self> {
        let end = memmem::find(part, b"\r\n\r\n")?;
        let mut disposition = None;
        for line in split_lines(&part[..end]) {
            // A folded line, or half a line end.
            if line.first().is_none_or(u8::is_ascii_whitespace)
                || line.iter().any(|b| matches!(b, b'\r' | b'\n'))
            {
                return None;
            }
            let colon = memchr::memchr(b':', line)?;
            if line[..colon].eq_ignore_ascii_case(b"content-disposition")
                && disposition.replace(line[colon + 1..].trim_ascii()).is_some()
            {
                return None;
            }
        }
        let disposition = disposition?;
        let kind_ends = memchr::memchr(b';', disposition)?;
        if !disposition[..kind_ends].trim_ascii().eq_ignore_ascii_case(b"form-data") {
            return None;
        }
        let parameters = &disposition[kind_ends + 1..];
        let name = parameter(parameters, "name")?;
        let file = parameter(parameters, "filename").or_else(|| parameter(parameters, "filename*"));
        // Two names, and readers may pick either.
        if parameter(name.rest, "name").is_some() || parameter(parameters, "name*").is_some() {
            return None;
        }
        Some(Self { name: name.value, is_file: file.is_some(), content: end + 4 })
    }
}

fn split_lines(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let line = match memmem::find(bytes, b"\r\n") {
            Some(end) => {
                let line = &bytes[..end];
                bytes = &bytes[end + 2..];
                line
            }
            None => {
                is_over = true;
                bytes
            }
        };
        Some(line)
    })
}

struct Parameter<'a> {
    value: Vec<u8>,
    /// The parameters after it.
    rest: &'a [u8],
}

/// Finds the first parameter of a name in a list like `a=b; c="d"`.
fn parameter<'a>(mut list: &'a [u8], name: &str) -> Option<Parameter<'a>> {
    loop {
        let equals = memchr::memchr(b'=', list)?;
        // A parameter without a value is skipped with its neighbour's name.
        let key = list[..equals].rsplit(|&byte| byte == b';').next()?.trim_ascii();
        let (value, rest) = value(list[equals + 1..].trim_ascii_start())?;
        if key.eq_ignore_ascii_case(name.as_bytes()) {
            return Some(Parameter { value, rest });
        }
        list = rest;
    }
}

/// Reads a quoted or plain value, and returns it with what follows.
fn value(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(mut rest) = text.strip_prefix(b"\"") else {
        let end = memchr::memchr(b';', text).unwrap_or(text.len());
        return Some((text[..end].trim_ascii().to_vec(), &text[end..]));
    };
    let mut value = Vec::new();
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'"' => return Some((value, rest)),
            b'\\' => {
                let (&escaped, after) = rest.split_first()?;
                rest = after;
                value.push(escaped);
            }
            plain => value.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=XyZ";

    fn form(fields: &[(&str, &str)]) -> String {
        let mut body = String::new();
        for (headers, content) in fields {
            body.push_str(&format!("--XyZ\r\n{headers}\r\n\r\n{content}\r\n"));
        }
        body + "--XyZ--\r\n"
    }

    fn field(name: &str) -> String {
        format!("Content-Disposition: form-data; name=\"{name}\"")
    }

    #[test]
    fn the_model_is_found_among_other_fields() {
        let file = "content-disposition: form-data; name=\"file\"; filename=\"name=model; a.wav\"\r\nContent-Type: audio/wav";
        let audio = "RIFF\r\n--Xy\r\n\r\nname=\"model\"\r\n";
        let body = form(&[(file, audio), (&field("model"), "whisper-1"), (&field("stream"), "True")]);
        let found = scan(TYPE, body.as_bytes()).unwrap();
        assert_eq!((found.model, found.stream), ("whisper-1", true));
        assert_eq!(&body[found.model_range.clone()], "whisper-1");

        let replaced = replace_model(&Bytes::from(body.clone()), found.model_range, "w2");
        assert_eq!(replaced, body.replace("whisper-1", "w2"));
    }

    #[test]
    fn writers_may_differ_in_small_things() {
        let body = form(&[("CONTENT-DISPOSITION:form-data;name=model", "m")]);
        for (content_type, body) in [
            ("Multipart/Form-Data;charset=x; BOUNDARY=\"XyZ\"", body.clone()),
            (TYPE, format!("preamble\r\n{body}epilogue")),
            (TYPE, body.replace("--XyZ\r\n", "--XyZ \t\r\n")),
            (TYPE, body.trim_end().to_owned()),
        ] {
            let found = scan(content_type, body.as_bytes()).unwrap();
            assert_eq!((found.model, found.stream), ("m", false), "{body}");
        }
        let body = form(&[(&field("model"), "")]);
        assert_eq!(scan(TYPE, body.as_bytes()).unwrap().model, "");
    }

    #[test]
    fn what_readers_could_take_in_two_ways_is_refused() {
        let model = field("model");
        let stream = field("stream");
        let good = form(&[(&model, "m")]);
        let table = [
            (form(&[]), FormError::ModelMissing),
            (form(&[(&field("Model"), "m")]), FormError::ModelMissing),
            (form(&[(&model, "m"), (&model, "m")]), FormError::ModelRepeated),
            (
                form(&[(&model, "m"), ("content-disposition: form-data; name=model", "n")]),
                FormError::ModelRepeated,
            ),
            (form(&[(&stream, "1"), (&stream, "1"), (&model, "m")]), FormError::StreamRepeated),
            (form(&[(&format!("{model}; filename=\"x\""), "m")]), FormError::ModelType),
            (form(&[(&format!("{model}; name=\"x\""), "m")]), FormError::FieldHeaders(7)),
            (form(&[(&format!("{model}; name*=utf-8''x"), "m")]), FormError::FieldHeaders(7)),
            (form(&[(&format!("{model}\r\n{model}"), "m")]), FormError::FieldHeaders(7)),
            (form(&[(&format!("{model}\r\n folded"), "m")]), FormError::FieldHeaders(7)),
            (form(&[(&format!("{model}\nx: y"), "m")]), FormError::FieldHeaders(7)),
            (form(&[("x: y", "m")]), FormError::FieldHeaders(7)),
            (form(&[("content-disposition: attachment; name=model", "m")]), FormError::FieldHeaders(7)),
            (form(&[("content-disposition: form-data; name=\"model", "m")]), FormError::FieldHeaders(7)),
            (good.replace("\r\n\r\n", "\n\n"), FormError::FieldHeaders(7)),
            (good.replace("--XyZ--", "--XyZ"), FormError::Unclosed),
            (good.replace("--XyZ--", ""), FormError::Unclosed),
            ("--XyZ".into(), FormError::BoundaryLine(5)),
            ("--XyZ--".into(), FormError::ModelMissing),
            ("--XyZ\r\n--XyZ--".into(), FormError::FieldHeaders(7)),
            (good.replacen("--XyZ\r\n", "--XyZ\n", 1), FormError::BoundaryLine(5)),
            (String::new(), FormError::Unclosed),
        ];
        for (body, error) in table {
            assert_eq!(scan(TYPE, body.as_bytes()), Err(error), "{body}");
        }
        for content_type in [
            "multipart/form-data",
            "multipart/form-data; charset=x",
            "multipart/mixed; boundary=XyZ",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"XyZ",
            "application/json",
        ] {
            assert_eq!(scan(content_type, good.as_bytes()), Err(FormError::ContentType), "{content_type}");
        }
        let not_text = [form(&[(&model, "")]).as_bytes().split_at(58).0, b"\xff\r\n--XyZ--"].concat();
        assert_eq!(scan(TYPE, &not_text), Err(FormError::ModelType));
    }

    const PIECES: [&[u8]; 9] = [
        b"--XyZ",
        b"--",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"m",
        b"content-disposition: form-data",
        b"; name=\"model\"",
        b"\xff",
    ];

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(
            body in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..20)
        ) {
            let body = body.concat();
            if let Ok(form) = scan(TYPE, &body) {
                prop_assert_eq!(form.model.as_bytes(), &body[form.model_range]);
            }
        }
    }
}
