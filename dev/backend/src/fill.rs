//! Content that is long, cheap to make, and the same whenever it is made again.

use serde::{Deserialize, Serialize};

/// Which bytes fill a body or the text of an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Letters.
    #[default]
    Ascii,
    /// Characters of one, two, three and four bytes, so that pieces of most sizes cut one apart.
    Utf8,
    /// Pieces that start with LF and end with CR, so that every boundary falls between the two.
    Crlf,
    /// Pseudo-random bytes from the script's seed.
    Random,
}

const ASCII: &str = "the quick brown fox jumps over a lazy dog ";
/// Ten bytes: one, two, three and four of them to a character.
const UTF8: &str = "aé漢😀";

/// Makes the bytes of a body piece by piece.
#[derive(Debug, Clone)]
pub struct Filler {
    fill: Fill,
    state: u64,
    position: usize,
}

impl Filler {
    /// Starts from the beginning of the content that `seed` stands for.
    pub fn new(fill: Fill, seed: u64) -> Self {
        // Zero is the one state that xorshift never leaves.
        Self { fill, state: seed ^ 0x9E37_79B9_7F4A_7C15, position: 0 }
    }

    /// Writes the next piece.
    pub fn fill(&mut self, piece: &mut [u8]) {
        match self.fill {
            Fill::Ascii => self.repeat(ASCII.as_bytes(), piece),
            Fill::Utf8 => self.repeat(UTF8.as_bytes(), piece),
            Fill::Crlf => {
                piece.fill(b'x');
                if let [first, .., last] = piece {
                    *first = b'\n';
                    *last = b'\r';
                }
            }
            Fill::Random => {
                for word in piece.chunks_mut(8) {
                    let bytes = self.next().to_le_bytes();
                    word.copy_from_slice(&bytes[..word.len()]);
                }
            }
        }
    }

    fn repeat(&mut self, pattern: &[u8], piece: &mut [u8]) {
        let mut written = 0;
        while written < piece.len() {
            let rest = &pattern[self.position..];
            let length = rest.len().min(piece.len() - written);
            piece[written..written + length].copy_from_slice(&rest[..length]);
            written += length;
            self.position = (self.position + length) % pattern.len();
        }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

/// Returns text of exactly `length` bytes that needs no escaping in JSON.
pub(crate) fn text(fill: Fill, length: usize) -> String {
    let pattern = if fill == Fill::Utf8 { UTF8 } else { ASCII };
    let mut text = pattern.repeat(length / pattern.len());
    text.reserve(length - text.len());
    for character in pattern.chars() {
        if text.len() + character.len_utf8() > length {
            break;
        }
        text.push(character);
    }
    text.extend(std::iter::repeat_n('.', length - text.len()));
    text
}

/// Returns the CRC32 of a whole body cut into pieces of `piece` bytes.
pub fn crc32_of(mut filler: Filler, bytes: u64, piece: usize) -> u32 {
    let mut buffer = vec![0; piece];
    let mut crc = crc32fast::Hasher::new();
    let mut left = bytes;
    while left > 0 {
        let length = left.min(piece as u64) as usize;
        filler.fill(&mut buffer[..length]);
        crc.update(&buffer[..length]);
        left -= length as u64;
    }
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_length_that_was_asked_for_whatever_the_characters() {
        for fill in [Fill::Ascii, Fill::Utf8] {
            for length in 0..50 {
                assert_eq!(text(fill, length).len(), length);
            }
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_bytes_and_another_makes_others() {
        let make = |seed| {
            let mut bytes = [0; 61];
            Filler::new(Fill::Random, seed).fill(&mut bytes);
            bytes
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }

    #[test]
    fn crlf_pieces_split_the_pair_at_every_boundary() {
        let mut filler = Filler::new(Fill::Crlf, 0);
        let mut piece = [0; 5];
        filler.fill(&mut piece);
        assert_eq!(&piece, b"\nxxx\r");
    }
}
