//! Byte windows: how much one end may send of one body before the other end took some of it.
//!
//! Both ends count the same cost: a frame's payload plus [`FRAME_COST`], so that a body of one-byte frames cannot
//! hold more memory than its window. A frame without payload is free. The receiver opens the window again by what its
//! reader took, in steps of at least half the window, so that a long body costs two window frames per window at most.

/// What each frame with payload costs beside its bytes: about what keeping it costs a receiver.
pub const FRAME_COST: u32 = 64;

/// Window for each response body unless the settings say otherwise: 256 KiB.
pub const DEFAULT_WINDOW_BYTES: u32 = 256 * 1024;

/// The smallest window that is accepted: one full data frame and its cost.
pub const MIN_WINDOW_BYTES: u32 = crate::codec::MAX_PAYLOAD_BYTES as u32 + FRAME_COST;

/// Returns what a frame of `payload_bytes` takes from a window.
pub fn cost(payload_bytes: usize) -> u32 {
    if payload_bytes == 0 {
        0
    } else {
        u32::try_from(payload_bytes).unwrap_or(u32::MAX).saturating_add(FRAME_COST)
    }
}

/// The sender's end.
#[derive(Debug, Clone, Copy)]
pub struct SendWindow {
    left: u32,
}

impl SendWindow {
    /// Starts with the window that the receiver announced.
    pub fn new(window_bytes: u32) -> Self {
        Self { left: window_bytes }
    }

    /// Returns how many payload bytes one frame may carry now, at most [`crate::codec::MAX_PAYLOAD_BYTES`]; 0 means wait.
    pub fn budget(&self) -> usize {
        (self.left.saturating_sub(FRAME_COST) as usize).min(crate::codec::MAX_PAYLOAD_BYTES)
    }

    /// Takes the cost of a frame that [`Self::budget`] allowed.
    pub fn spend(&mut self, payload_bytes: usize) {
        self.left = self.left.saturating_sub(cost(payload_bytes));
    }

    /// Opens the window by what the receiver returned.
    pub fn open(&mut self, bytes: u32) {
        self.left = self.left.saturating_add(bytes);
    }
}

/// The sender went beyond its window.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sender exceeded its window")]
pub struct WindowExceeded;

/// The receiver's end.
#[derive(Debug, Clone, Copy)]
pub struct ReceiveWindow {
    size: u32,
    left: u32,
    taken: u32,
}

impl ReceiveWindow {
    /// Starts with the window that was announced to the sender.
    pub fn new(window_bytes: u32) -> Self {
        Self { size: window_bytes, left: window_bytes, taken: 0 }
    }

    /// Counts a frame that arrived.
    ///
    /// # Errors
    /// The sender sent more than it was allowed to.
    pub fn receive(&mut self, payload_bytes: usize) -> Result<(), WindowExceeded> {
        self.left = self.left.checked_sub(cost(payload_bytes)).ok_or(WindowExceeded)?;
        Ok(())
    }

    /// Counts `cost` as taken by the reader, and returns by how much to open the sender's window, when it is worth a frame.
    pub fn take(&mut self, cost: u32) -> Option<u32> {
        self.taken = self.taken.saturating_add(cost);
        if self.taken < self.size / 2 {
            return None;
        }
        let opened = std::mem::take(&mut self.taken);
        self.left = self.left.saturating_add(opened);
        Some(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_frames_exhaust_the_window_by_their_cost() {
        let mut send = SendWindow::new(MIN_WINDOW_BYTES);
        let mut frames = 0;
        while send.budget() > 0 {
            send.spend(1);
            frames += 1;
        }
        assert_eq!(frames, MIN_WINDOW_BYTES / (FRAME_COST + 1));
    }

    #[test]
    fn both_ends_agree_until_the_reader_stops() {
        let (mut send, mut receive) = (SendWindow::new(256 * 1024), ReceiveWindow::new(256 * 1024));
        let mut sent = 0_usize;
        for round in 0..1000 {
            let length = send.budget().min(1 + (round * 7919) % 70_000);
            if length == 0 {
                break;
            }
            send.spend(length);
            receive.receive(length).unwrap();
            sent += length;
            if round < 500
                && let Some(opened) = receive.take(cost(length))
            {
                send.open(opened);
            }
        }
        assert!(sent > 10 * 1024 * 1024);
        assert_eq!(send.budget(), 0);
        assert_eq!(receive.receive(256 * 1024), Err(WindowExceeded));
    }

    #[test]
    fn an_empty_frame_is_free() {
        let mut receive = ReceiveWindow::new(MIN_WINDOW_BYTES);
        receive.receive(crate::codec::MAX_PAYLOAD_BYTES).unwrap();
        receive.receive(0).unwrap();
        assert_eq!(receive.receive(1), Err(WindowExceeded));
    }
}
