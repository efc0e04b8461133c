//! What waits to be written to a relay: two bounded queues that the write half empties together.

use modelrelay_protocol::frame::{ToRelay, encode};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_util::sync::CancellationToken;

/// Frames of jobs that wait for the socket. A full queue makes jobs wait, and with them their backends.
const JOB_FRAMES: usize = 64;

/// Control frames that wait for the socket. They answer what a relay asks, so only one that floods us and does
/// not read fills this.
const CONTROL_FRAMES: usize = 4096;

/// The sending end for frames that must not wait: pongs, grants, windows.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    frames: mpsc::Sender<Message>,
    overflowed: CancellationToken,
}

impl Control {
    /// Queues a message, or ends the session when the relay does not read: a grant must not be lost silently.
    pub(crate) fn send(&self, message: &ToRelay) {
        self.push(Message::text(encode(message)));
    }

    /// Queues a frame as [`Self::send`] does.
    pub(crate) fn push(&self, frame: Message) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.frames.try_send(frame) {
            self.overflowed.cancel();
        }
    }

    /// Queues the close frame that ends the session.
    pub(crate) fn close(&self, frame: CloseFrame) {
        self.push(Message::Close(Some(frame)));
    }
}

/// The receiving end of both queues.
#[derive(Debug)]
pub(crate) struct Outbox {
    control: mpsc::Receiver<Message>,
    jobs: mpsc::Receiver<Message>,
    /// Cancelled when control frames were too many.
    pub(crate) overflowed: CancellationToken,
}

impl Outbox {
    /// Makes both queues.
    pub(crate) fn new() -> (Control, mpsc::Sender<Message>, Self) {
        let (control_sender, control) = mpsc::channel(CONTROL_FRAMES);
        let (job_sender, jobs) = mpsc::channel(JOB_FRAMES);
        let overflowed = CancellationToken::new();
        let sender = Control { frames: control_sender, overflowed: overflowed.clone() };
        (sender, job_sender, Self { control, jobs, overflowed })
    }

    /// Waits for the next frame. The session holds senders of both queues, so there is always a next one.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        tokio::select! {
            biased;
            frame = self.control.recv() => frame,
            frame = self.jobs.recv() => frame,
        }
    }

    /// Returns a frame that is there already.
    pub(crate) fn ready(&mut self) -> Option<Message> {
        self.control.try_recv().or_else(|_| self.jobs.try_recv()).ok()
    }

    /// Returns a job's frame that is there already.
    pub(crate) fn ready_of_jobs(&mut self) -> Option<Message> {
        self.jobs.try_recv().ok()
    }
}
