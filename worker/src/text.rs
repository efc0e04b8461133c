//! Text out of reads that end anywhere, as a v1 relay needs it.

/// The bytes are not UTF-8, wherever a read may have ended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not UTF-8")]
pub(crate) struct NotText;

/// Holds an incomplete character at the end of a read back until its rest arrives.
#[derive(Debug, Default)]
pub(crate) struct TextDecoder {
    held: Vec<u8>,
}

impl TextDecoder {
    /// Returns the text that is complete with this read; `end` says that no other follows.
    ///
    /// # Errors
    /// The bytes are not text.
    pub(crate) fn decode(&mut self, bytes: &[u8], end: bool) -> Result<String, NotText> {
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(bytes);
        match String::from_utf8(all) {
            Ok(text) => Ok(text),
            Err(error) => {
                let cut = error.utf8_error().valid_up_to();
                // A length means that the bytes are wrong, none that they stop within a character.
                if end || error.utf8_error().error_len().is_some() {
                    return Err(NotText);
                }
                let mut all = error.into_bytes();
                self.held = all.split_off(cut);
                String::from_utf8(all).map_err(|_| NotText)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_split_over_reads_arrives_whole() {
        let text = "aä€😀";
        for cut in 0..=text.len() {
            let (first, second) = text.as_bytes().split_at(cut);
            let mut decoder = TextDecoder::default();
            let mut got = decoder.decode(first, false).unwrap();
            got.push_str(&decoder.decode(second, true).unwrap());
            assert_eq!(got, text);
        }
        let mut decoder = TextDecoder::default();
        let mut got = String::new();
        for byte in text.bytes() {
            got.push_str(&decoder.decode(&[byte], false).unwrap());
        }
        assert_eq!(got, text);
    }

    #[test]
    fn wrong_bytes_and_a_cut_off_end_are_no_text() {
        assert_eq!(TextDecoder::default().decode(b"a\xff", false), Err(NotText));
        assert_eq!(TextDecoder::default().decode(b"a\xe2\x82", true), Err(NotText));
        let mut decoder = TextDecoder::default();
        assert_eq!(decoder.decode(b"a\xe2\x82", false).unwrap(), "a");
        assert_eq!(decoder.decode(b"b", false), Err(NotText));
    }
}
