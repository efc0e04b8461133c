//! Pure: follows the bytes of one HTTP/1 request and refuses heads that two readers could read differently.
//!
//! It takes bytes as they come, cut anywhere, and looks at lines in place; only a line that is cut is copied.
//! It is not a parser: what it lets through is parsed, and may be refused again, by the HTTP library behind it.

use memchr::memchr;
use thiserror::Error;

use super::chunk_scan::ChunkScan;

/// Why a request is refused before anything has parsed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error("malformed request line")]
    RequestLine,
    #[error("neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    #[error("line that does not end in CR LF")]
    BareLf,
    #[error("control character in a head")]
    ControlCharacter,
    #[error("folded header line")]
    FoldedLine,
    #[error("malformed header name")]
    HeaderName,
    #[error("no host")]
    MissingHost,
    #[error("more than one host")]
    RepeatedHost,
    #[error("malformed content-length")]
    ContentLength,
    #[error("more than one content-length")]
    RepeatedContentLength,
    #[error("content-length and transfer-encoding together")]
    TwoLengths,
    #[error("transfer-encoding other than chunked")]
    TransferEncoding,
    #[error("unknown transfer coding")]
    UnknownCoding,
    #[error("malformed chunk")]
    Chunk,
    #[error("head too large")]
    TooLarge,
    #[error("head too slow")]
    TooSlow,
}

impl Refusal {
    /// The whole answer: there is no request yet whose shape or id it could have.
    pub(super) fn answer(self) -> &'static [u8] {
        match self {
            Self::RequestLine
            | Self::Version
            | Self::BareLf
            | Self::ControlCharacter
            | Self::FoldedLine
            | Self::HeaderName
            | Self::MissingHost
            | Self::RepeatedHost
            | Self::ContentLength
            | Self::RepeatedContentLength
            | Self::TwoLengths
            | Self::TransferEncoding
            | Self::Chunk => b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            Self::TooSlow => b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            Self::TooLarge => {
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            }
            Self::UnknownCoding => {
                b"HTTP/1.1 501 Not Implemented\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            }
        }
    }
}

/// How large a head may be.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Header lines.
    pub max_headers: usize,
    /// Bytes, request line and line ends included.
    pub max_bytes: usize,
}

/// Where in a request the bytes seen so far end.
#[derive(Debug)]
pub struct MessageScan {
    limits: HeadLimits,
    position: Position,
    head: Head,
    head_bytes: usize,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
}

#[derive(Debug)]
enum Position {
    Head,
    Sized(u64),
    Chunked(ChunkScan),
    Done,
}

impl MessageScan {
    /// Begins before the first byte of a request.
    pub fn new(limits: HeadLimits) -> Self {
        Self { limits, position: Position::Head, head: Head::default(), head_bytes: 0, line: Vec::new() }
    }

    /// Begins anew, before the first byte of the next request.
    pub fn restart(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Whether the end of the head is still to come.
    pub fn in_head(&self) -> bool {
        matches!(self.position, Position::Head)
    }

    /// Whether the request, its body included, is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.position, Position::Done)
    }

    /// Whether the request line said HTTP/1.0.
    pub fn is_http10(&self) -> bool {
        self.head.version == Some(Version::Http10)
    }

    /// Takes the next bytes and returns how many of them belong to this request: all, unless it is done.
    ///
    /// # Errors
    /// Says why the request is refused; the scan is of no use after that.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut used = 0;
        if self.in_head() {
            used = self.advance_head(bytes)?;
        }
        match &mut self.position {
            Position::Head | Position::Done => {}
            Position::Sized(left) => {
                let here = (*left).min((bytes.len() - used) as u64);
                *left -= here;
                // Not more than the slice is long.
                used += here as usize;
                if *left == 0 {
                    self.position = Position::Done;
                }
            }
            Position::Chunked(chunks) => {
                used += chunks.advance(&bytes[used..])?;
                if chunks.is_done() {
                    self.position = Position::Done;
                }
            }
        }
        Ok(used)
    }

    fn advance_head(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut used = 0;
        while let Some(length) = memchr(b'\n', &bytes[used..]) {
            let line = &bytes[used..used + length];
            used += length + 1;
            self.count(length + 1)?;
            let framing = if self.line.is_empty() {
                self.head.line(line, self.limits.max_headers)?
            } else {
                self.line.extend_from_slice(line);
                let line = std::mem::take(&mut self.line);
                self.head.line(&line, self.limits.max_headers)?
            };
            if let Some(position) = framing {
                self.position = position;
                return Ok(used);
            }
        }
        self.count(bytes.len() - used)?;
        self.line.extend_from_slice(&bytes[used..]);
        Ok(bytes.len())
    }

    fn count(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.head_bytes += bytes;
        if self.head_bytes > self.limits.max_bytes { Err(Refusal::TooLarge) } else { Ok(()) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

/// What the lines of a head have said so far about where its request ends.
#[derive(Debug, Default)]
struct Head {
    version: Option<Version>,
    headers: usize,
    has_host: bool,
    content_length: Option<u64>,
    is_chunked: bool,
}

impl Head {
    /// Takes one line without its LF; the empty line says how the body is framed.
    fn line(&mut self, line: &[u8], max_headers: usize) -> Result<Option<Position>, Refusal> {
        let Some((b'\r', line)) = line.split_last() else { return Err(Refusal::BareLf) };
        // Without an early exit this compiles to a few wide instructions.
        if line.iter().fold(false, |found, &byte| found | is_control(byte)) {
            return Err(Refusal::ControlCharacter);
        }
        match (self.version, line) {
            // Some clients send an empty line after a body; it is part of the next head's allowance.
            (None, []) => Ok(None),
            (None, line) => self.request_line(line).map(|()| None),
            (Some(version), []) => self.end(version).map(Some),
            (Some(_), line) => {
                self.headers += 1;
                if self.headers > max_headers {
                    return Err(Refusal::TooLarge);
                }
                self.header(line).map(|()| None)
            }
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let mut words = line.split(|&byte| byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Refusal::RequestLine);
        };
        if method.is_empty() || target.is_empty() || line.contains(&b'\t') {
            return Err(Refusal::RequestLine);
        }
        self.version = Some(match version {
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/1.0" => Version::Http10,
            _ => return Err(Refusal::Version),
        });
        Ok(())
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Refusal> {
        if let [b' ' | b'\t', ..] = line {
            return Err(Refusal::FoldedLine);
        }
        let colon = memchr(b':', line).ok_or(Refusal::HeaderName)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().fold(true, |good, &byte| good & TOKEN[usize::from(byte)]) {
            return Err(Refusal::HeaderName);
        }
        // The lengths of the three names differ, so most headers cost one comparison of numbers.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                only_once(std::mem::replace(&mut self.has_host, true), Refusal::RepeatedHost)?;
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let before = self.content_length.replace(content_length(value)?);
                only_once(before.is_some(), Refusal::RepeatedContentLength)?;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                check_transfer_encoding(value)?;
                only_once(std::mem::replace(&mut self.is_chunked, true), Refusal::TransferEncoding)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&self, version: Version) -> Result<Position, Refusal> {
        if version == Version::Http11 && !self.has_host {
            return Err(Refusal::MissingHost);
        }
        match (self.is_chunked, self.content_length) {
            (true, Some(_)) => Err(Refusal::TwoLengths),
            // HTTP/1.0 has no transfer codings.
            (true, None) if version == Version::Http10 => Err(Refusal::TransferEncoding),
            (true, None) => Ok(Position::Chunked(ChunkScan::new())),
            (false, None | Some(0)) => Ok(Position::Done),
            (false, Some(length)) => Ok(Position::Sized(length)),
        }
    }
}

fn only_once(is_second: bool, refusal: Refusal) -> Result<(), Refusal> {
    if is_second { Err(refusal) } else { Ok(()) }
}

fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    // Nineteen digits always fit.
    if value.is_empty() || value.len() > 19 {
        return Err(Refusal::ContentLength);
    }
    value.iter().try_fold(0, |length: u64, byte| match byte {
        b'0'..=b'9' => Ok(length * 10 + u64::from(byte - b'0')),
        _ => Err(Refusal::ContentLength),
    })
}

fn check_transfer_encoding(value: &[u8]) -> Result<(), Refusal> {
    const KNOWN: [&[u8]; 6] = [b"chunked", b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress"];
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings =
        value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    if codings.all(|coding| KNOWN.iter().any(|known| coding.eq_ignore_ascii_case(known))) {
        Err(Refusal::TransferEncoding)
    } else {
        Err(Refusal::UnknownCoding)
    }
}

fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

/// Which bytes may stand in a header name.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let char = byte as u8;
        table[byte] = char.is_ascii_alphanumeric()
            || matches!(
                char,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { max_headers: 5, max_bytes: 200 };

    /// Scans at once and byte by byte, which must agree; returns how far the request goes, if it is complete.
    fn scan(request: &[u8]) -> Result<Option<usize>, Refusal> {
        let whole = run(request.chunks(request.len().max(1)));
        assert_eq!(run(request.chunks(1)), whole, "cut into bytes: {}", request.escape_ascii());
        assert_eq!(run(request.chunks(7)), whole, "cut into sevens: {}", request.escape_ascii());
        whole
    }

    fn run<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Option<usize>, Refusal> {
        let mut scan = MessageScan::new(LIMITS);
        let mut used = 0;
        for piece in pieces {
            if scan.is_done() {
                break;
            }
            used += scan.advance(piece)?;
        }
        Ok(scan.is_done().then_some(used))
    }

    #[test]
    fn a_request_ends_where_its_head_says() {
        let table: &[(&[u8], Option<usize>)] = &[
            (b"", None),
            (b"GET / HTTP/1.1\r\nHost: x\r\n", None),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Some(27)),
            (b"GET / HTTP/1.1\r\nHost:\r\n\r\nGET /", Some(25)),
            (b"GET / HTTP/1.0\r\n\r\nGET /", Some(18)),
            (b"\r\n\r\nGET / HTTP/1.0\r\n\r\n", Some(22)),
            (b"POST / HTTP/1.1\r\nhOST: x\r\nContent-LENGTH: 3\r\n\r\nabcdef", Some(50)),
            (b"POST / HTTP/1.1\r\nHost: x\r\ncontent-length: 3\r\n\r\nab", None),
            (b"POST / HTTP/1.1\r\nHost: x\r\ncontent-length:0 \t\r\n\r\nab", Some(48)),
            (
                b"POST / HTTP/1.1\r\nHost: x\r\ntransfer-encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\nG",
                Some(67),
            ),
            ("GET / HTTP/1.1\r\nHost: x\r\nx-city: K\u{f6}ln\t!\r\n\r\n".as_bytes(), Some(44)),
        ];
        for (request, end) in table {
            assert_eq!(scan(request), Ok(*end), "{}", request.escape_ascii());
        }
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        use Refusal::*;
        let table: &[(&[u8], Refusal)] = &[
            (b"GET /\r\n", RequestLine),
            (b"GET  / HTTP/1.1\r\n", RequestLine),
            (b"GET / HTTP/1.1 \r\n", RequestLine),
            (b" / HTTP/1.1\r\n", RequestLine),
            (b"GET\t/ x HTTP/1.1\r\n", RequestLine),
            (b"GET / HTTP/1.2\r\n", Version),
            (b"GET / HTTP/2.0\r\n", Version),
            (b"GET / http/1.1\r\n", Version),
            (b"GET / HTTP/1.1\n", BareLf),
            (b"\nGET / HTTP/1.1\r\n", BareLf),
            (b"GET / HTTP/1.1\r\nHost: x\n", BareLf),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\n", BareLf),
            (b"GET / HTTP/1.1\r\nHost: x\ry: z\r\n", ControlCharacter),
            (b"GET / HTTP/1.1\r\nHost: x\r\r\n", ControlCharacter),
            (b"GET / HTTP/1.1\r\nx: a\0b\r\n", ControlCharacter),
            (b"GET /\x7f HTTP/1.1\r\n", ControlCharacter),
            (b"GET / HTTP/1.1\r\nx: a\r\n b\r\n", FoldedLine),
            (b"GET / HTTP/1.1\r\n\tx: a\r\n", FoldedLine),
            (b"GET / HTTP/1.1\r\nHost : x\r\n", HeaderName),
            (b"GET / HTTP/1.1\r\n: x\r\n", HeaderName),
            (b"GET / HTTP/1.1\r\nhost\r\n", HeaderName),
            (b"GET / HTTP/1.1\r\nh\xc3\xb6st: x\r\n", HeaderName),
            (b"GET / HTTP/1.1\r\nx: y\r\n\r\n", MissingHost),
            (b"GET / HTTP/1.1\r\nHost: x\r\nHOST: x\r\n", RepeatedHost),
            (b"POST / HTTP/1.0\r\ncontent-length: +3\r\n", ContentLength),
            (b"POST / HTTP/1.0\r\ncontent-length: 3, 3\r\n", ContentLength),
            (b"POST / HTTP/1.0\r\ncontent-length: 0x3\r\n", ContentLength),
            (b"POST / HTTP/1.0\r\ncontent-length:\r\n", ContentLength),
            (b"POST / HTTP/1.0\r\ncontent-length: 99999999999999999999\r\n", ContentLength),
            (b"POST / HTTP/1.0\r\ncontent-length: 3\r\nContent-Length: 3\r\n", RepeatedContentLength),
            (
                b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
                TwoLengths,
            ),
            (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n", TransferEncoding),
            (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, chunked\r\n", TransferEncoding),
            (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n", TransferEncoding),
            (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding:\r\n", TransferEncoding),
            (
                b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
                TransferEncoding,
            ),
            (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", TransferEncoding),
            (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: cow, chunked\r\n", UnknownCoding),
            (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\n", UnknownCoding),
            (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n", UnknownCoding),
            (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5 \r\n", Chunk),
            (b"GET / HTTP/1.0\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\ne: 5\r\nf: 6\r\n", TooLarge),
        ];
        for (request, refusal) in table {
            assert_eq!(scan(request), Err(*refusal), "{}", request.escape_ascii());
        }
    }

    #[test]
    fn a_head_has_a_largest_size() {
        let head = |fill: usize| format!("GET / HTTP/1.0\r\nx: {}\r\n\r\n", "y".repeat(fill));
        let room = LIMITS.max_bytes - head(0).len();
        assert_eq!(scan(head(room).as_bytes()), Ok(Some(LIMITS.max_bytes)));
        assert_eq!(scan(head(room + 1).as_bytes()), Err(Refusal::TooLarge));
        // Not only at the end of the line.
        assert_eq!(scan(&[b'a'; 201]), Err(Refusal::TooLarge));
        assert_eq!(scan(&b"\r\n".repeat(101)), Err(Refusal::TooLarge));
    }

    #[test]
    fn every_refusal_answers_with_an_empty_closing_response() {
        for (refusal, status) in [
            (Refusal::BareLf, "400"),
            (Refusal::TooSlow, "408"),
            (Refusal::TooLarge, "431"),
            (Refusal::UnknownCoding, "501"),
        ] {
            let answer = std::str::from_utf8(refusal.answer()).unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.ends_with("\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"), "{answer}");
        }
    }
}
