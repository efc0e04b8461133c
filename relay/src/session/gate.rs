//! Bounds what is read from a connection before its worker has registered.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that an unregistered worker may send.
pub const UNREGISTERED_BYTES: usize = 1024 * 1024;

/// A connection that fails when too much comes before [`Gate::open`].
#[derive(Debug)]
pub struct Gate<IO> {
    io: IO,
    /// `None` once the worker has registered.
    left: Option<usize>,
}

impl<IO> Gate<IO> {
    /// Wraps a fresh connection.
    pub fn new(io: IO) -> Self {
        Self { io, left: Some(UNREGISTERED_BYTES) }
    }

    /// Lifts the bound.
    pub fn open(&mut self) {
        self.left = None;
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gate<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if let Some(left) = self.left {
            let Some(left) = left.checked_sub(buf.filled().len() - before) else {
                return Poll::Ready(Err(io::Error::other("too much before registration")));
            };
            self.left = Some(left);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gate<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
