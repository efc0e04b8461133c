//! The socket of a client connection, as the HTTP library sees it.
//!
//! Between the two it does what the library does not: it scans every head before the library gets it, passes on
//! one request at a time, answers what it refuses, and keeps the clocks for heads and idle connections.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::debug;

use super::activity::Activity;
use super::head_scan::{HeadLimits, MessageScan, Refusal};
use super::{Phase, Shared};

/// What is read ahead of a running exchange, at most; more stays in the kernel.
const HELD_MAX: usize = 64 * 1024;
/// How long a closing socket goes on reading, so that unread bytes do not reset the answer on its way.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection that has sent nothing yet may still bring its request when the edge closes.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Which protocol the first bytes of a connection speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A client's socket behind the checks of the edge.
#[derive(Debug)]
pub struct EdgeIo {
    stream: TcpStream,
    /// Read from the socket, and not yet due to be passed on.
    held: BytesMut,
    stage: Stage,
    scan: MessageScan,
    timer: LazyTimer,
    activity: Arc<Activity>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Stage {
    /// Nothing of the next head has come.
    Idle { since: Instant, is_fresh: bool },
    /// A head has begun.
    Head { since: Instant },
    /// From the end of a head until its body is read and its response flushed.
    Exchange,
    /// A refused head is being answered.
    Refusing { answer: &'static [u8], until: Instant, is_shut: bool },
    /// The library has closed; the client may not have noticed.
    Lingering { until: Instant },
    /// Not HTTP/1: nothing is looked at.
    Raw,
}

impl EdgeIo {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, shared: Arc<Shared>) -> Self {
        let limits = &shared.limits;
        let limits = HeadLimits { max_headers: limits.max_headers, max_bytes: limits.max_head_bytes };
        Self {
            stream,
            held: BytesMut::new(),
            stage: Stage::Idle { since: Instant::now(), is_fresh: true },
            scan: MessageScan::new(limits),
            timer: LazyTimer::default(),
            activity,
            shared,
        }
    }

    /// Takes the socket, and the bytes read from it already, back from an upgraded connection.
    ///
    /// # Errors
    /// Returns the connection when it is not one of this edge's.
    pub fn reclaim(upgraded: Upgraded) -> Result<(TcpStream, Bytes), Upgraded> {
        let parts = upgraded.downcast::<TokioIo<Self>>()?;
        let (stream, held) = parts.io.into_inner().into_inner();
        if parts.read_buf.is_empty() {
            return Ok((stream, held));
        }
        let mut read = BytesMut::from(parts.read_buf);
        read.extend_from_slice(&held);
        Ok((stream, read.freeze()))
    }

    /// Takes the socket and what was read from it but not passed on.
    pub fn into_inner(self) -> (TcpStream, Bytes) {
        (self.stream, self.held.freeze())
    }

    /// Waits for enough bytes to tell the protocol; they stay to be read.
    pub(super) async fn sniff(&mut self) -> Protocol {
        let protocol = std::future::poll_fn(|cx| self.poll_sniff(cx)).await;
        if protocol == Protocol::Http2 {
            self.stage = Stage::Raw;
        }
        protocol
    }

    fn poll_sniff(&mut self, cx: &mut Context<'_>) -> Poll<Protocol> {
        loop {
            let known = self.held.len().min(PREFACE.len());
            if self.held[..known] != PREFACE[..known] {
                return Poll::Ready(Protocol::Http1);
            }
            if known == PREFACE.len() {
                return Poll::Ready(Protocol::Http2);
            }
            match self.poll_read_ahead(cx) {
                Poll::Ready(Ok(1..)) => {
                    if let Stage::Idle { .. } = self.stage {
                        self.stage = Stage::Head { since: Instant::now() };
                    }
                }
                // The end, an error or a time-out shows again at the first read, which deals with it.
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Protocol::Http1),
                Poll::Pending => return self.poll_patience(cx).map(|_| Protocol::Http1),
            }
        }
    }

    /// Reads a little into `held`; 0 is the end of the stream.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); 2048];
        let mut buf = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
        self.held.extend_from_slice(buf.filled());
        Poll::Ready(Ok(buf.filled().len()))
    }

    /// Passes on bytes of the current request, scanned, and nothing beyond its end.
    fn poll_request(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let from_held = !self.held.is_empty();
        if from_held {
            let length = self.held.len().min(buf.remaining());
            buf.put_slice(&self.held[..length]);
        } else {
            match Pin::new(&mut self.stream).poll_read(cx, buf)? {
                Poll::Pending => return self.poll_patience(cx),
                Poll::Ready(()) if buf.filled().len() == before => return Poll::Ready(Ok(())),
                Poll::Ready(()) => {}
            }
        }

        let in_head = self.scan.in_head();
        match self.scan.advance(&buf.filled()[before..]) {
            Ok(used) => {
                if from_held {
                    self.held.advance(used);
                    if self.held.is_empty() {
                        self.held = BytesMut::new();
                    }
                } else {
                    self.held.extend_from_slice(&buf.filled()[before + used..]);
                }
                buf.set_filled(before + used);
                if in_head {
                    self.head_advanced();
                }
                Poll::Ready(Ok(()))
            }
            Err(refusal) if in_head => {
                buf.set_filled(before);
                self.refuse(refusal, cx)
            }
            // The service has the head and answers; its body ends here.
            Err(refusal) => Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal))),
        }
    }

    fn head_advanced(&mut self) {
        if !self.scan.in_head() {
            self.stage = Stage::Exchange;
            self.activity.begin();
            self.reset_on_drop(true);
        } else if let Stage::Idle { .. } = self.stage {
            self.stage = Stage::Head { since: Instant::now() };
        }
    }

    /// Nothing to read: decides whether the client may still take its time.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let limits = &self.shared.limits;
        match self.stage {
            Stage::Idle { since, is_fresh } => {
                let patience = match (self.shared.phase(), is_fresh) {
                    (Phase::Serving | Phase::Draining, _) => limits.idle_timeout,
                    (Phase::Closing | Phase::Forced, true) => limits.idle_timeout.min(FIRST_REQUEST_GRACE),
                    (Phase::Closing | Phase::Forced, false) => Duration::ZERO,
                };
                // Reading nothing is how a stream ends.
                self.timer.poll(since + patience, cx).map(Ok)
            }
            Stage::Head { since } => {
                ready!(self.timer.poll(since + limits.head_timeout, cx));
                self.refuse(Refusal::TooSlow, cx)
            }
            Stage::Exchange | Stage::Refusing { .. } | Stage::Lingering { .. } | Stage::Raw => Poll::Pending,
        }
    }

    /// Fails once the client has gone from a running exchange. Runs after a flush, which the library ends every turn
    /// with. The library would look for itself, and keep a buffer of 8 KiB for it as long as the exchange runs.
    fn notice_gone(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !matches!(self.stage, Stage::Exchange) || !self.scan.is_done() || self.activity.is_upgraded() {
            return Ok(());
        }
        match self.poll_gone(cx) {
            Poll::Ready(Ok(())) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(()),
        }
    }

    /// While an exchange runs, reads only to notice that the client has gone.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held.len() < HELD_MAX {
            if ready!(self.poll_read_ahead(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        // Woken by `settle`.
        Poll::Pending
    }

    fn poll_raw(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held.split_to(length));
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn refuse(&mut self, refusal: Refusal, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        debug!(%refusal, "Request refused before it was parsed");
        let until = Instant::now() + LINGER;
        self.stage = Stage::Refusing { answer: refusal.answer(), until, is_shut: false };
        self.poll_refuse(cx)
    }

    /// Answers, then waits for the client to take it; ends with an error, which ends the connection.
    ///
    /// Only ever runs between exchanges, so the answer cannot fall into the middle of another.
    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stage: Stage::Refusing { answer, until, is_shut }, stream, timer, .. } = self else {
            return Poll::Ready(Ok(()));
        };
        let until = *until;
        while !answer.is_empty() {
            match Pin::new(&mut *stream).poll_write(cx, answer)? {
                Poll::Ready(written) => *answer = &answer[written..],
                Poll::Pending => {
                    ready!(timer.poll(until, cx));
                    break;
                }
            }
        }
        if !*is_shut {
            ready!(Pin::new(stream).poll_shutdown(cx))?;
            *is_shut = true;
        }
        ready!(self.poll_discard(until, cx));
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }

    /// Reads and forgets, until the client has closed too or time is up.
    fn poll_discard(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [MaybeUninit::uninit(); 8192];
        // A client that never stops must not outlive the timer.
        while Instant::now() < until {
            let mut buf = ReadBuf::uninit(&mut space);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.timer.poll(until, cx),
            }
        }
        Poll::Ready(())
    }

    /// Notices the end of an exchange. Runs after a flush, which the library ends every turn with: only there is
    /// it certain that the whole response has left.
    fn settle(&mut self, cx: &mut Context<'_>) {
        if !matches!(self.stage, Stage::Exchange) || !self.scan.is_done() || self.activity.is_running() {
            return;
        }
        self.reset_on_drop(false);
        self.scan.restart();
        self.stage = Stage::Idle { since: Instant::now(), is_fresh: false };
        if self.held.is_empty() {
            // The library believes that it has asked for more already and may not ask again: the clock must
            // not depend on it.
            if self.poll_patience(cx).is_pending() {
                return;
            }
            self.timer.forget();
        }
        cx.waker().wake_by_ref();
    }

    /// To an HTTP/1.0 client the end of the stream is the end of the body. So that a connection that is dropped
    /// before that does not look like a complete answer, it is reset.
    fn reset_on_drop(&self, reset: bool) {
        if self.scan.is_http10()
            && let Err(error) = SockRef::from(&self.stream).set_linger(reset.then_some(Duration::ZERO))
        {
            debug!(%error, "Cannot set how a connection ends");
        }
    }
}

impl AsyncRead for EdgeIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.stage {
            Stage::Raw => this.poll_raw(cx, buf),
            Stage::Exchange if this.activity.is_upgraded() => {
                this.stage = Stage::Raw;
                this.poll_raw(cx, buf)
            }
            Stage::Exchange if this.scan.is_done() => this.poll_gone(cx),
            Stage::Exchange | Stage::Idle { .. } | Stage::Head { .. } => this.poll_request(cx, buf),
            Stage::Refusing { .. } => this.poll_refuse(cx),
            Stage::Lingering { .. } => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for EdgeIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.settle(cx);
        this.notice_gone(cx)?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Stage::Lingering { until } = this.stage {
            return this.poll_discard(until, cx).map(Ok);
        }
        ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        // An answer that came before the end of its request must survive what is still on its way.
        let unread = matches!(this.stage, Stage::Exchange) && !this.scan.is_done();
        if !unread && this.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let until = Instant::now() + LINGER;
        this.stage = Stage::Lingering { until };
        this.poll_discard(until, cx).map(Ok)
    }
}

/// A timer that is moved as rarely as possible: a deadline that moves away, as an idle deadline does with every
/// request, costs nothing until the old one has passed.
#[derive(Debug, Default)]
struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl LazyTimer {
    fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            let is_stale = sleep.is_elapsed() && sleep.deadline() < deadline;
            if is_stale || sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
        }
    }

    /// Makes the next poll begin afresh.
    fn forget(&mut self) {
        self.sleep = None;
    }
}
