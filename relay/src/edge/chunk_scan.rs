//! Pure: finds the end of a chunked body.
//!
//! Stricter than what decodes the body later, so both always agree where it ends: no white space around sizes,
//! no bare LF, no control characters.

use super::head_scan::Refusal;

/// Bytes of chunk extensions and of trailers that one body may have, each.
const MAX_EXTRA: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    SizeStart,
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
    End,
}

/// Where in a chunked body the bytes seen so far end.
#[derive(Debug)]
pub(super) struct ChunkScan {
    at: At,
    /// The size being read, then what is left of the chunk.
    size: u64,
    extensions: usize,
    trailers: usize,
}

impl ChunkScan {
    pub(super) fn new() -> Self {
        Self { at: At::SizeStart, size: 0, extensions: 0, trailers: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        self.at == At::End
    }

    /// Takes the next bytes and returns how many of them belong to the body.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut used = 0;
        while used < bytes.len() && self.at != At::End {
            if self.at == At::Data {
                let here = self.size.min((bytes.len() - used) as u64);
                self.size -= here;
                // Not more than the slice is long.
                used += here as usize;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
            } else {
                self.at = self.step(bytes[used])?;
                used += 1;
            }
        }
        Ok(used)
    }

    fn step(&mut self, byte: u8) -> Result<At, Refusal> {
        Ok(match (self.at, byte) {
            (At::SizeStart | At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte)?,
            (At::Size, b';') => At::Extension,
            (At::Size | At::Extension, b'\r') => At::SizeLf,
            (At::Extension, byte) if is_text(byte) => {
                count(&mut self.extensions)?;
                At::Extension
            }
            (At::SizeLf, b'\n') if self.size == 0 => At::TrailerStart,
            (At::SizeLf, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => {
                self.size = 0;
                At::SizeStart
            }
            (At::TrailerStart, b'\r') => At::LastLf,
            // A folded trailer line.
            (At::TrailerStart, b' ' | b'\t') => return Err(Refusal::Chunk),
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::TrailerStart | At::Trailer, byte) if is_text(byte) => {
                count(&mut self.trailers)?;
                At::Trailer
            }
            (At::TrailerLf, b'\n') => At::TrailerStart,
            (At::LastLf, b'\n') => At::End,
            _ => return Err(Refusal::Chunk),
        })
    }

    fn digit(&mut self, byte: u8) -> Result<At, Refusal> {
        let digit = u64::from(char::from(byte).to_digit(16).ok_or(Refusal::Chunk)?);
        // Far below what any body may have, far above what a size can overflow with.
        if self.size >= 1 << 56 {
            return Err(Refusal::Chunk);
        }
        self.size = self.size << 4 | digit;
        Ok(At::Size)
    }
}

fn count(bytes: &mut usize) -> Result<(), Refusal> {
    *bytes += 1;
    if *bytes > MAX_EXTRA { Err(Refusal::Chunk) } else { Ok(()) }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(pieces: &[&[u8]]) -> Result<(usize, bool), Refusal> {
        let mut scan = ChunkScan::new();
        let mut used = 0;
        for piece in pieces {
            used += scan.advance(piece)?;
        }
        Ok((used, scan.is_done()))
    }

    #[test]
    fn body_ends_after_its_last_chunk_and_trailers() {
        let table: &[(&[u8], usize)] = &[
            (b"0\r\n\r\n", 5),
            (b"5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n", 15),
            (b"A\r\n0\r\n\r\n56789\r\n0\r\n\r\nx", 20),
            (b"5;a=\"b\"\r\nhello\r\n000\r\nx-sum: 1\r\n\r\n", 33),
        ];
        for (body, end) in table {
            assert_eq!(scan(&[body]), Ok((*end, true)), "{}", body.escape_ascii());
            let bytes: Vec<&[u8]> = body.chunks(1).collect();
            assert_eq!(scan(&bytes), Ok((*end, true)), "byte by byte: {}", body.escape_ascii());
        }
    }

    #[test]
    fn body_is_not_over_before_its_end() {
        for body in [&b""[..], b"5\r\nhell", b"5\r\nhello\r\n", b"0\r\n", b"0\r\nx: y\r\n", b"0\r\n\r"] {
            assert_eq!(scan(&[body]), Ok((body.len(), false)), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn what_decoders_disagree_about_is_refused() {
        let table: &[&[u8]] = &[
            b"\r\n",
            b"g\r\n",
            b"-1\r\n",
            b"0x5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b"5\nhello\r\n",
            b"5\r\r\nhello",
            b"5;a\nb\r\n",
            b"5;a\0\r\n",
            b"5\r\nhello!\r\n",
            b"5\r\nhello\n",
            b"fffffffffffffffff\r\n",
            b"0\r\nx: y\n\r\n",
            b"0\r\n x\r\n\r\n",
        ];
        for body in table {
            assert_eq!(scan(&[body]), Err(Refusal::Chunk), "{}", body.escape_ascii());
        }
        let endless = [b"5;".as_slice(), &[b'a'; MAX_EXTRA + 1]].concat();
        assert_eq!(scan(&[&endless]), Err(Refusal::Chunk));
    }
}
