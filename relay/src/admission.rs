//! Decides whether a request may wait for a worker, and as what. Pure.

use std::sync::Arc;

use http::HeaderMap;
use modelrelay_protocol::config::Strategy;
use modelrelay_protocol::wellknown::MAX_V1_FRAME_BYTES;

use crate::http::error::RelayError;
use crate::keys::ClientKey;
use crate::scheduler::{Affinity, SessionNeeds, Target};
use crate::settings::Settings;

/// What a v1 frame carries beside the body: ids, path, headers.
const V1_OVERHEAD_BYTES: usize = 128 * 1024;

/// Finds the names under which workers may serve a model.
///
/// # Errors
/// The key does not allow the model, or the settings rule it out and no connected worker names it.
pub fn targets(
    settings: &Settings,
    key: &ClientKey,
    model: &Arc<str>,
    is_served: impl FnOnce(&str) -> bool,
) -> Result<Arc<[Target]>, RelayError> {
    if !key.allows(model) {
        return Err(RelayError::ModelNotAllowed { model: model.clone() });
    }
    if let Some(targets) = settings.targets(model) {
        return Ok(targets);
    }
    if !settings.admissible(model) && !is_served(model) {
        return Err(RelayError::ModelNotFound { model: model.clone() });
    }
    Ok(Arc::from([Target { model: model.clone(), weight: 1 }]))
}

/// Says what a body demands of the session that carries it: a plain v1 worker takes text in one frame of 16 MiB.
pub fn needs(body: &[u8], is_text: bool) -> SessionNeeds {
    let room = MAX_V1_FRAME_BYTES - V1_OVERHEAD_BYTES;
    // Six bytes is what one byte becomes at worst.
    let fits = body.len() <= room / 6 || escaped_bytes(body) <= room;
    SessionNeeds { needs_streams: !is_text || !fits }
}

fn escaped_bytes(body: &[u8]) -> usize {
    // Blocks whose sum fits into a byte, and no branch in them: this is summed many bytes at a time.
    let (blocks, rest) = body.as_chunks::<32>();
    let in_blocks: usize =
        blocks.iter().map(|block| usize::from(block.iter().copied().map(escape_bytes).sum::<u8>())).sum();
    let in_rest: usize = rest.iter().copied().map(|byte| usize::from(escape_bytes(byte))).sum();
    body.len() + in_blocks + in_rest
}

/// Returns by how many bytes an escape is longer than its character.
fn escape_bytes(byte: u8) -> u8 {
    let is_control = u8::from(byte < 0x20);
    let is_short = u8::from(matches!(byte, b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c));
    is_short + (is_control & (1 - is_short)) * 5
}

/// Finds the worker preference of a request: its session's, else its prompt's where the settings ask for it.
pub fn affinity(
    settings: &Settings,
    headers: &HeaderMap,
    prefix: impl FnOnce(usize) -> Option<u64>,
) -> Option<Affinity> {
    let routing = &settings.config.routing;
    let session = routing.session_affinity_header.as_ref().and_then(|name| headers.get(name.as_str()));
    if let Some(session) = session {
        return Some(Affinity::Session(stable_hash(session.as_bytes())));
    }
    match routing.strategy {
        Strategy::PrefixHash => {
            let bytes = usize::try_from(routing.prefix_hash.prefix_bytes.0).unwrap_or(usize::MAX);
            prefix(bytes).map(Affinity::Prefix)
        }
        Strategy::LeastLoad => None,
    }
}

/// A hash that is the same in every relay replica and version: FNV-1a with 64 bits and a final mix.
pub fn stable_hash(bytes: &[u8]) -> u64 {
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // FNV alone leaves the high bits of short inputs poorly mixed, and rendezvous hashing compares those.
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_that_v1_frames_cannot_carry_need_streams() {
        assert!(!needs(b"{}", true).needs_streams);
        assert!(needs(&[0xff], false).needs_streams);
        let plain = vec![b'a'; 15 * 1024 * 1024];
        assert!(!needs(&plain, true).needs_streams);
        let quotes = vec![b'"'; 9 * 1024 * 1024];
        assert!(needs(&quotes, true).needs_streams);
        let huge = vec![b'a'; 17 * 1024 * 1024];
        assert!(needs(&huge, true).needs_streams);
    }

    #[test]
    fn escapes_are_counted_as_they_are_written() {
        let all: String = (0..=0x7f_u8).map(char::from).chain("\u{e9}\u{20ac}\u{1f600}".chars()).collect();
        for text in [all.as_str(), &all.repeat(3), &all[..31], ""] {
            let written = serde_json::to_string(text).unwrap().len() - 2;
            assert_eq!(escaped_bytes(text.as_bytes()), written, "{text:?}");
        }
        assert_eq!(escaped_bytes(&[0; 1000]), 6000);
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(stable_hash(b""), stable_hash(b""));
        assert_ne!(stable_hash(b"a"), stable_hash(b"b"));
        assert_eq!(stable_hash(b"session-1"), 0xd779_2fe6_8d37_6951);
    }
}
