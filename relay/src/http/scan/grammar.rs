//! JSON's grammar: passes over names and values, and says where a body leaves it.

use std::ops::Range;

use super::{MAX_DEPTH, ScanError, ScanProblem};

/// A string as it stands in the body.
#[derive(Debug, Clone)]
pub(super) struct RawString {
    /// Between the quotes.
    pub(super) inside: Range<usize>,
    pub(super) has_escapes: bool,
}

pub(super) struct Scanner<'a> {
    pub(super) text: &'a str,
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

pub(super) type Step<T> = Result<T, ScanError>;

impl Scanner<'_> {
    /// Reads a name and its colon, up to the value.
    pub(super) fn name(&mut self) -> Step<RawString> {
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

    /// Passes over one value of any kind. Which bracket closes which level is kept as bits, so nothing is
    /// allocated and no stack can overflow.
    pub(super) fn value(&mut self) -> Step<()> {
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
    pub(super) fn string(&mut self) -> Step<RawString> {
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

    pub(super) fn literal(&mut self, word: &[u8]) -> Step<()> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.problem(ScanProblem::UnexpectedCharacter))
        }
    }

    pub(super) fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    pub(super) fn problem(&self, problem: ScanProblem) -> ScanError {
        ScanError { problem, at: self.at }
    }
}

/// Resolves the escapes of a string whose form was checked; half a surrogate pair has no text.
pub(super) fn unescape(raw: &str) -> Option<String> {
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
