//! Request bodies on their way to the backend.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use modelrelay_protocol::codec::{StreamId, encode_window};
use tokio_tungstenite::tungstenite::Message;

use crate::job::mailbox::Mailbox;
use crate::session::outbox::Control;

/// The body of a request.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// All of it, in one piece.
    Whole(Bytes),
    /// It arrives while it is sent.
    Arriving(Arriving),
}

/// A body that the relay sends in parts.
#[derive(Debug)]
pub(crate) struct Arriving {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) control: Control,
    pub(crate) stream: StreamId,
    /// Bytes that are still to come; known from the start.
    pub(crate) left: u64,
    /// Whether the next part is the one that came with the head.
    pub(crate) first: bool,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            // The job registered its task with the mailbox before it polled the connection.
            Self::Arriving(arriving) => arriving.mailbox.poll_body(!arriving.first).map(|part| {
                let (part, opened) = part?;
                arriving.first = false;
                arriving.left = arriving.left.saturating_sub(part.len() as u64);
                if let Some(bytes) = opened {
                    arriving.control.push(Message::Binary(encode_window(arriving.stream, bytes)));
                }
                Some(Ok(Frame::data(part)))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Arriving(arriving) => arriving.left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Arriving(arriving) => SizeHint::with_exact(arriving.left),
        }
    }
}
