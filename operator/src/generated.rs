//! Secrets that the operator makes: tokens `mr_<id>_<secret>`, and reading them back.
//!
//! A hash is only ever computed from a token that was read back: two leaders may both make one, and one of them counts.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use modelrelay_protocol::config::{Sha256Hash, is_key_id};
use rand::TryRng as _;
use rand::rngs::SysRng;
use sha2::{Digest as _, Sha256};

/// The data key of a generated Secret that holds its token.
pub const TOKEN: &str = "token";

/// A new token: its id, and 256 random bits from the operating system.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Token {
    /// Makes a token. The id tells people which one they see; anything but letters, digits and `-` is left out of it.
    pub fn new(id: &str) -> Self {
        let id: String = id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
        let mut bits = [0; 32];
        SysRng.try_fill_bytes(&mut bits).expect("a Linux that has started gives random bytes");
        Self(format!("mr_{id}_{}", Sha256Hash(bits).to_hex()))
    }

    /// The token itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The Secret that carries it under the data key [`TOKEN`].
    pub fn into_secret(self, name: String, labels: BTreeMap<String, String>) -> Secret {
        let data = [(TOKEN.to_owned(), ByteString(self.0.into_bytes()))];
        Secret {
            metadata: ObjectMeta { name: Some(name), labels: Some(labels), ..ObjectMeta::default() },
            data: Some(data.into()),
            ..Secret::default()
        }
    }
}

/// Reads a token back. Nothing when the Secret does not hold one, whoever changed it.
pub fn token_of(secret: &Secret) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(TOKEN)?.0;
    let token = std::str::from_utf8(bytes).ok()?.trim();
    key_id(token).map(|_| token.to_owned())
}

/// Returns the id within a key `mr_<id>_<secret>`, if the text has that form.
pub fn key_id(key: &str) -> Option<&str> {
    let (id, secret) = key.strip_prefix("mr_")?.split_once('_')?;
    (is_key_id(id) && !secret.is_empty() && secret.bytes().all(|b| b.is_ascii_graphic())).then_some(id)
}

/// The SHA-256 of a token, as settings files carry it.
pub fn sha256(token: &str) -> Sha256Hash {
    Sha256Hash(Sha256::digest(token.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_is_new_and_carries_its_id_and_256_bits() {
        let (one, other) = (Token::new("main"), Token::new("main"));
        assert_ne!(one, other);
        assert_eq!(key_id(one.expose()), Some("main"));
        assert_eq!(one.expose().len(), "mr_main_".len() + 64);
        assert_eq!(key_id(Token::new("team_a/ü-1").expose()), Some("teama-1"));
        assert_eq!(format!("{one:?}"), "Token(***)");
    }

    #[test]
    fn a_token_is_read_back_from_its_secret() {
        let token = Token::new("a100");
        let secret = token.clone().into_secret("a100-join".to_owned(), BTreeMap::new());
        assert_eq!(token_of(&secret).as_deref(), Some(token.expose()));
    }

    #[test]
    fn what_is_no_token_is_not_read() {
        for text in ["", "hunter2", "mr__secret", "mr_id_", "mr_id_two words", "mr_a/b_c"] {
            let secret = Token(text.to_owned()).into_secret("s".to_owned(), BTreeMap::new());
            assert_eq!(token_of(&secret), None, "{text:?}");
        }
        assert_eq!(token_of(&Secret::default()), None);
    }

    #[test]
    fn hashes_are_those_of_the_whole_token() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256("abc").to_hex(), hash);
    }
}
