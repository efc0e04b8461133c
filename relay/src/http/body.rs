//! The body of a response: bytes out of the pipe, and an honest end.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::record::Record;
use super::route::Api;
use crate::dispatch::Ticket;
use crate::http::error::RelayError;
use crate::session::pipe::{Chunk, Head};

/// A comment of `text/event-stream`: clients skip it, intermediaries see life.
const COMMENT: &[u8] = b": waiting\n\n";

/// The response broke off; the connection ends without the end of the body.
#[derive(Debug, thiserror::Error)]
#[error("response broken off: {0}")]
pub struct BrokenOff(RelayError);

#[derive(Debug)]
enum State {
    /// The head went to the client; bytes follow.
    Passing,
    /// Comments go to the client until there is a head.
    Waiting(Pin<Box<Sleep>>, Duration),
    /// The last event was given out; it is flushed before the transfer breaks.
    Breaking(RelayError),
    /// The transfer breaks now.
    Broken(RelayError),
    Ended,
}

/// A response body that holds its request: dropping it cancels what still runs.
#[derive(Debug)]
pub struct ResponseBody {
    ticket: Ticket,
    record: Record,
    state: State,
    api: Api,
    status: u16,
    /// The client reads events, so that an error can be one.
    events: bool,
    /// Line ends that the body ends with so far, as [`line_ends`] counts them.
    line_ends: usize,
}

impl ResponseBody {
    /// Passes on the body of a response whose head is known.
    pub fn passing(ticket: Ticket, record: Record, api: Api, status: u16, events: bool) -> Self {
        Self { ticket, record, state: State::Passing, api, status, events, line_ends: 2 }
    }

    /// Sends a comment every `interval` until the response begins.
    pub fn waiting(ticket: Ticket, record: Record, api: Api, interval: Duration) -> Self {
        // The first comment is due now: it is what commits the answer.
        let timer = Box::pin(tokio::time::sleep_until(Instant::now()));
        Self {
            ticket,
            record,
            state: State::Waiting(timer, interval),
            api,
            status: 200,
            events: true,
            line_ends: 2,
        }
    }

    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let State::Waiting(timer, interval) = &mut self.state else { return Poll::Ready(None) };
        match self.ticket.pipe.poll_head(cx) {
            Poll::Ready(Ok(head)) if is_event_stream(&head) => {
                self.state = State::Passing;
                self.poll_passing(cx)
            }
            // Anything but an event stream cannot follow the comments.
            Poll::Ready(Ok(head)) => {
                let status = head.status.as_u16();
                self.record.failed_with_status(status);
                let error = format!("the backend answered {status}, not with events that can follow");
                self.break_off(RelayError::backend(error), cx)
            }
            Poll::Ready(Err(error)) => self.break_off(error, cx),
            Poll::Pending => {
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let next = Instant::now() + *interval;
                timer.as_mut().reset(next);
                // Registers the timer for its next time.
                let _ = timer.as_mut().poll(cx);
                self.frame(Bytes::from_static(COMMENT))
            }
        }
    }

    fn poll_passing(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.ticket.pipe.poll_chunk(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Chunk::Data(bytes)) => {
                self.line_ends = line_ends(self.line_ends, &bytes);
                if self.events && self.record.wants_events() {
                    self.record.events += memchr::memmem::find_iter(&bytes, b"data:").count() as u64;
                }
                self.frame(bytes)
            }
            Poll::Ready(Chunk::End) => {
                self.state = State::Ended;
                self.record.complete(self.status);
                Poll::Ready(None)
            }
            Poll::Ready(Chunk::Broken(error)) => self.break_off(error, cx),
        }
    }

    fn frame(&mut self, bytes: Bytes) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.record.sent(bytes.len());
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    /// Says what happened in the last event, where there are events, and breaks the transfer after it.
    fn break_off(
        &mut self,
        error: RelayError,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.record.failed(&error);
        if !self.events {
            return self.break_next_turn(error, cx);
        }
        let event = error.last_event(self.api, &self.record.request_id);
        self.state = State::Breaking(error);
        // What was cut ends first: the two must not be read as one.
        let missing = &b"\n\n"[self.line_ends..];
        self.frame([missing, &event].concat().into())
    }

    /// Breaks the transfer one turn later, so that what was given out before is written first, the head included.
    fn break_next_turn(
        &mut self,
        error: RelayError,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.state = State::Broken(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &self.state {
            State::Passing => self.poll_passing(cx),
            State::Waiting(..) => self.poll_waiting(cx),
            State::Breaking(error) => {
                let error = error.clone();
                self.break_next_turn(error, cx)
            }
            State::Broken(error) => {
                let error = error.clone();
                self.state = State::Ended;
                Poll::Ready(Some(Err(BrokenOff(error))))
            }
            State::Ended => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Counts the line ends, two at most, that a body ends with after `bytes`: a blank line ends an event.
fn line_ends(before: usize, bytes: &[u8]) -> usize {
    let mut ends = 0;
    for byte in bytes.iter().rev() {
        match byte {
            b'\n' => ends += 1,
            b'\r' => {}
            _ => return ends,
        }
        if ends == 2 {
            return ends;
        }
    }
    (before + ends).min(2)
}

/// Says whether what the backend sends can follow comments that were sent before it.
fn is_event_stream(head: &Head) -> bool {
    head.status.is_success() && is_plain_event_stream(&head.headers)
}

/// Says whether a body is events that the relay may add to.
pub fn is_plain_event_stream(headers: &http::HeaderMap) -> bool {
    let content_type = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.trim_start().starts_with("text/event-stream"))
        && !headers.contains_key(http::header::CONTENT_ENCODING)
}
