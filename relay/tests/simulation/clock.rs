//! Virtual time, and numbers that one seed decides.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Nanoseconds since the world began.
pub type Time = u64;

pub const MS: Time = 1_000_000;
pub const SECOND: Time = 1000 * MS;

/// splitmix64: small, and the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// Evenly from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.next() % len as u64).expect("it is below a length")
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// An exponentially distributed time.
    pub fn spread_around(&mut self, mean: Time) -> Time {
        let unit = ((self.next() >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        (-(unit.ln()) * mean as f64) as Time
    }
}

#[derive(Debug)]
struct Entry<E> {
    at: Time,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What is still to happen, earliest first; of two at the same time the one that was planned first.
#[derive(Debug)]
pub struct Agenda<E> {
    entries: BinaryHeap<Entry<E>>,
    planned: u64,
}

impl<E> Agenda<E> {
    pub fn new() -> Self {
        Self { entries: BinaryHeap::new(), planned: 0 }
    }

    pub fn add(&mut self, at: Time, event: E) {
        self.planned += 1;
        self.entries.push(Entry { at, number: self.planned, event });
    }

    pub fn next_before(&mut self, end: Time) -> Option<(Time, E)> {
        if self.entries.peek()?.at > end {
            return None;
        }
        self.entries.pop().map(|entry| (entry.at, entry.event))
    }
}
