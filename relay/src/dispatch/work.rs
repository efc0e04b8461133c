//! What a worker needs of a request, and the bound on all bodies held.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::HeaderMap;

use crate::scheduler::Target;

/// A request as it goes to a worker. Held until the first byte of the answer, since the request may move.
#[derive(Debug)]
pub struct Work {
    /// Path and query as the client sent them.
    pub path: String,
    /// Whether the client asked for a stream.
    pub streaming: bool,
    /// Headers that every worker gets.
    pub headers: HeaderMap,
    /// Client credentials, for pools that opted in.
    pub credentials: HeaderMap,
    /// The client's bytes.
    pub body: Bytes,
    /// Where the name of the model stands in the body.
    pub model: Range<usize>,
    /// Name of the model as the client sent it.
    pub model_name: Arc<str>,
    /// Whether the body is JSON (else a multipart form): decides how a name is written into it.
    pub json: bool,
    /// Whether the body is UTF-8, as plain v1 workers need it.
    pub is_text: bool,
    /// Names under which workers may serve it.
    pub targets: Arc<[Target]>,
    /// The body's part of the bound on all bodies.
    pub permit: BodyPermit,
}

impl Work {
    /// Returns the body for one target: the client's bytes, or with the name of the model replaced.
    pub fn body_for(&self, target: usize) -> Bytes {
        match self.targets.get(target) {
            Some(target) if target.model != self.model_name => {
                if self.json {
                    crate::http::scan::replace_model(&self.body, self.model.clone(), &target.model)
                } else {
                    crate::http::multipart::replace_model(&self.body, self.model.clone(), &target.model)
                }
            }
            _ => self.body.clone(),
        }
    }
}

/// Bounds the bytes of all request bodies that are held.
#[derive(Debug, Default)]
pub struct BodyBudget {
    held: AtomicU64,
    limit: AtomicU64,
}

impl BodyBudget {
    /// Starts with nothing held.
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self { held: AtomicU64::new(0), limit: AtomicU64::new(limit_bytes) })
    }

    /// Changes the bound; what is held stays held.
    pub fn set_limit(&self, limit_bytes: u64) {
        self.limit.store(limit_bytes, Ordering::Relaxed);
    }

    /// Returns how many bytes are held.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Returns a permit for no bytes, to grow as a body arrives.
    pub fn permit(self: &Arc<Self>) -> BodyPermit {
        BodyPermit { budget: self.clone(), bytes: 0 }
    }
}

/// A part of a [`BodyBudget`], given back when dropped.
#[derive(Debug)]
pub struct BodyPermit {
    budget: Arc<BodyBudget>,
    bytes: u64,
}

impl BodyPermit {
    /// Takes `bytes` more; returns false, and takes nothing, when they do not fit.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let limit = self.budget.limit.load(Ordering::Relaxed);
        let before = self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > limit {
            self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_never_hold_more_than_the_limit_and_give_back() {
        let budget = BodyBudget::new(100);
        let (mut first, mut second) = (budget.permit(), budget.permit());
        assert!(first.grow(60));
        assert!(!second.grow(41));
        assert!(second.grow(40));
        assert_eq!(budget.held(), 100);
        drop(first);
        assert_eq!(budget.held(), 40);
    }
}
