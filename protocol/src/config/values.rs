//! Scalars of the settings files that carry a rule of their own.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A number of bytes: `1048576`, or with a suffix, `1Mi` (`k M G T` count in thousands, `Ki Mi Gi Ti` in 1024s).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// A size of so many KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// A size of so many MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The size as an index type, the largest one where it does not fit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const SUFFIXES: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = SUFFIXES
            .iter()
            .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, *unit)))
            .unwrap_or((text, 1));
        let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let number = if all_digits { digits.parse::<u64>().ok() } else { None };
        number
            .and_then(|n| n.checked_mul(unit))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no size; write bytes (1048576) or a suffix (256Mi, 64k)"))
    }
}

/// The largest binary suffix that divides the size, so that `256Mi` reads back as it was written.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = SUFFIXES[..4].iter().rev().find(|(_, unit)| self.0 != 0 && self.0.is_multiple_of(*unit));
        match fits {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size in bytes (1048576) or with a suffix (256Mi, 64k)")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// A SHA-256 of a key, credential or token: 64 hexadecimal digits in a file, never shown whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Hash(pub [u8; 32]);

impl Sha256Hash {
    /// All 64 hexadecimal digits, for a settings file.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first eight digits: enough to tell entries apart, too little to attack.
    pub fn short(self) -> String {
        let [a, b, c, d, ..] = self.0;
        format!("{a:02x}{b:02x}{c:02x}{d:02x}...")
    }
}

impl fmt::Debug for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for Sha256Hash {
    type Err = String;

    // The text is not repeated in the message: people paste the secret itself here by mistake.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let found = text.chars().count();
            format!(
                "is no SHA-256: expected 64 hexadecimal digits, found {found} characters of something else"
            )
        };
        let mut hash = [0; 32];
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        for (byte, index) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[index..index + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(hash))
    }
}

impl Serialize for Sha256Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> Deserialize<'de> for Sha256Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HashVisitor;
        impl Visitor<'_> for HashVisitor {
            type Value = Sha256Hash;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 hexadecimal digits in quotes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Sha256Hash, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(HashVisitor)
    }
}

/// A secret as text, which shows itself only to [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text; outer blanks, such as the line end of a file, do not count.
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in it, as in an empty file.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Whether a text can be the id of a key `mr_<id>_<secret>`: 1 to 64 letters, digits and `-`.
pub fn is_key_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_carry_a_suffix() {
        let table = [
            ("0", Some(0)),
            ("1048576", Some(1 << 20)),
            ("256Mi", Some(256 << 20)),
            ("64k", Some(64_000)),
            ("3Gi", Some(3 << 30)),
            ("1T", Some(1_000_000_000_000)),
            ("", None),
            ("Mi", None),
            ("12x", None),
            ("-1", None),
            ("+1", None),
            ("1.5Gi", None),
            ("1 Mi", None),
            ("99999999999Ti", None),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse::<ByteSize>().ok(), bytes.map(ByteSize), "{text:?}");
        }
    }

    #[test]
    fn sizes_read_back_as_they_are_shown() {
        for (bytes, shown) in [(0, "0"), (1000, "1000"), (1 << 20, "1Mi"), (3 << 30, "3Gi"), (1025, "1025")] {
            assert_eq!(ByteSize(bytes).to_string(), shown);
            assert_eq!(shown.parse(), Ok(ByteSize(bytes)));
        }
    }

    #[test]
    fn a_hash_is_64_digits_and_shows_eight() {
        let text = "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100";
        let hash: Sha256Hash = text.parse().unwrap();
        assert_eq!(hash.to_hex(), text.to_lowercase());
        assert_eq!(format!("{hash:?}"), "00112233...");
    }

    #[test]
    fn a_secret_in_the_place_of_its_hash_is_not_repeated() {
        let error = "mr_a_topsecret".parse::<Sha256Hash>().unwrap_err();
        assert!(!error.contains("topsecret"), "{error}");
        assert!(error.contains("64 hexadecimal digits"), "{error}");
        let sixty_four_bytes = "é".repeat(32);
        assert!(sixty_four_bytes.parse::<Sha256Hash>().is_err());
    }

    #[test]
    fn a_secret_shows_itself_only_when_asked() {
        let secret = Secret::new(" hush\n");
        assert_eq!(secret.expose(), "hush");
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        assert!(Secret::new("\n").is_empty());
    }

    #[test]
    fn key_ids_have_no_underscore() {
        for (id, good) in
            [("app", true), ("A-1", true), ("", false), ("a_b", false), ("a.b", false), ("ä", false)]
        {
            assert_eq!(is_key_id(id), good, "{id:?}");
        }
    }
}
