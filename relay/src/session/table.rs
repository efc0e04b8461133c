//! The requests that one session runs, found by their stream number in one step.

use std::sync::Arc;

use modelrelay_protocol::codec::StreamId;
use tokio::time::Instant;

use crate::dispatch::Work;
use crate::metrics::Origin;
use crate::scheduler::RequestKey;
use crate::session::pipe::{Head, Pipe};

/// Streams of one session at once, at most: the index takes half of the stream number.
pub const MAX_STREAMS: u32 = 1 << 16;

/// What the session knows of one request.
#[derive(Debug)]
pub struct Stream {
    /// The request.
    pub request: RequestKey,
    /// Where its response goes.
    pub pipe: Arc<Pipe>,
    /// Model as the client named it.
    pub model: Arc<str>,
    /// Whether the client asked for a stream.
    pub streaming: bool,
    /// Status and headers that wait for the first byte of the body.
    pub head: Option<Head>,
    /// The first byte was seen.
    pub started: bool,
    /// When a cancel was sent, and on whose account; what comes after it is dropped.
    pub cancelled: Option<(Instant, Origin)>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u16,
    /// Boxed: the table keeps as many places as were ever in use at once.
    stream: Option<Box<Stream>>,
}

/// A slab with generations, so that a late frame never meets the next request in its place.
#[derive(Debug, Default)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u16>,
    used: usize,
}

impl Table {
    /// Adds a request and numbers it; `None` when the table is full.
    pub fn insert(&mut self, stream: Stream) -> Option<StreamId> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u16::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot::default());
                index
            }
        };
        let slot = &mut self.slots[usize::from(index)];
        slot.stream = Some(Box::new(stream));
        self.used += 1;
        Some(id(slot.generation, index))
    }

    /// Finds a request.
    pub fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        let (generation, index) = split(id);
        self.slots.get_mut(index).filter(|slot| slot.generation == generation)?.stream.as_deref_mut()
    }

    /// Takes a request out; its number is not given again soon.
    pub fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let (generation, index) = split(id);
        let slot = self.slots.get_mut(index).filter(|slot| slot.generation == generation)?;
        let stream = slot.stream.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(u16::try_from(index).expect("it came out of sixteen bits"));
        self.used -= 1;
        Some(*stream)
    }

    /// Takes those out whose cancel was not answered yet.
    pub fn remove_cancelled(&mut self) -> Vec<Stream> {
        let cancelled = |slot: &Slot| slot.stream.as_ref().is_some_and(|stream| stream.cancelled.is_some());
        let ids: Vec<StreamId> = (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| cancelled(slot))
            .map(|(index, slot)| id(slot.generation, index))
            .collect();
        ids.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Returns how many requests are in the table, those that wait for the answer to a cancel included.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Says whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }
}

fn id(generation: u16, index: u16) -> StreamId {
    StreamId(u32::from(generation) << 16 | u32::from(index))
}

fn split(id: StreamId) -> (u16, usize) {
    ((id.0 >> 16) as u16, (id.0 & 0xffff) as usize)
}

/// What is written to the worker, in order.
#[derive(Debug)]
pub enum Outgoing {
    /// A request.
    Request {
        /// Its number on this session.
        stream: StreamId,
        /// What the worker needs.
        work: Arc<Work>,
        /// Which of its targets.
        target: usize,
        /// When it was decided.
        since: Instant,
    },
    /// Ends a request early.
    Cancel {
        /// Its number on this session.
        stream: StreamId,
        /// Why.
        reason: modelrelay_protocol::frame::CancelReason,
    },
    /// The client took bytes.
    Window {
        /// The request's number on this session.
        stream: StreamId,
        /// By how much the window opens.
        bytes: u32,
    },
    /// A message that concerns the session.
    Message(modelrelay_protocol::frame::ToWorker),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(request: u64) -> Stream {
        Stream {
            request: RequestKey(request),
            pipe: Pipe::new(),
            model: "m".into(),
            streaming: false,
            head: None,
            started: false,
            cancelled: None,
        }
    }

    #[test]
    fn a_late_frame_does_not_find_the_next_request() {
        let mut table = Table::default();
        let first = table.insert(stream(1)).unwrap();
        assert_eq!(table.remove(first).unwrap().request, RequestKey(1));
        let second = table.insert(stream(2)).unwrap();
        assert_ne!(first, second);
        assert!(table.get_mut(first).is_none());
        assert!(table.remove(first).is_none());
        assert_eq!(table.get_mut(second).unwrap().request, RequestKey(2));
        assert_eq!(table.len(), 1);
    }
}
