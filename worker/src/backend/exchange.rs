//! One request and its response on one connection, driven by whoever polls it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http::response::Parts;
use http_body::Body;
use hyper::body::Incoming;

use super::CallError;
use super::pool::{Connection, Pool};

/// Body bytes that were ready together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    first: Bytes,
    all: Vec<u8>,
    /// Whether the response is whole now.
    pub(crate) end: bool,
}

impl Batch {
    /// Returns the bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        if self.all.is_empty() { &self.first } else { &self.all }
    }

    /// A single part is passed on as it is, several are joined.
    fn push(&mut self, part: Bytes) {
        if self.bytes().is_empty() {
            self.first = part;
            return;
        }
        if self.all.is_empty() {
            self.all.reserve(self.first.len() + part.len());
            self.all.extend_from_slice(&self.first);
            self.first = Bytes::new();
        }
        self.all.extend_from_slice(&part);
    }
}

/// A response whose body is still to be read. Dropping it closes the connection.
pub(crate) struct Exchange {
    connection: Option<Box<Connection>>,
    pool: Arc<Pool>,
    body: Incoming,
    /// What was read and not asked for yet.
    rest: Bytes,
    ended: bool,
    failed: Option<CallError>,
}

impl Exchange {
    /// Waits for a response's head while driving its connection.
    pub(super) async fn head<F: Future>(connection: &mut Connection, mut response: Pin<&mut F>) -> F::Output {
        std::future::poll_fn(|cx| {
            connection.drive(cx);
            response.as_mut().poll(cx)
        })
        .await
    }

    /// Takes over a connection whose response has a head.
    pub(super) fn new(
        connection: Box<Connection>,
        pool: Arc<Pool>,
        response: Response<Incoming>,
    ) -> (Parts, Self) {
        let (head, body) = response.into_parts();
        let ended = body.is_end_stream();
        let exchange =
            Self { connection: Some(connection), pool, body, rest: Bytes::new(), ended, failed: None };
        (head, exchange)
    }

    /// Takes what is ready, at most `budget` bytes. Pending means that there is nothing, and not the end either. An
    /// empty batch that is not the end comes only when the budget is 0 and there is more.
    ///
    /// # Errors
    /// The response broke off. What came before was handed out before.
    pub(crate) fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        budget: usize,
    ) -> Poll<Result<Batch, CallError>> {
        let mut batch = Batch::default();
        let mut driven = false;
        loop {
            if !self.rest.is_empty() {
                let part = self.rest.split_to(self.rest.len().min(budget - batch.bytes().len()));
                batch.push(part);
            }
            if self.rest.is_empty() && self.ended {
                batch.end = true;
                self.recycle(cx);
                return Poll::Ready(Ok(batch));
            }
            // With nothing left over one more look is free and may find the end, which then rides along.
            if !self.rest.is_empty() {
                return Poll::Ready(Ok(batch));
            }
            if let Some(error) = self.failed.take() {
                if batch.bytes().is_empty() {
                    return Poll::Ready(Err(error));
                }
                self.failed = Some(error);
                return Poll::Ready(Ok(batch));
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    driven = false;
                    // Trailers have no place in a frame and clients of these routes do not look for them.
                    if let Ok(data) = frame.into_data() {
                        self.rest = data;
                    }
                    self.ended = self.body.is_end_stream();
                }
                Poll::Ready(Some(Err(error))) => self.failed = Some(CallError::from_hyper(&error)),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending if !driven => {
                    driven = true;
                    if let Some(connection) = &mut self.connection {
                        connection.drive(cx);
                    }
                }
                Poll::Pending if batch.bytes().is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Ok(batch)),
            }
        }
    }

    fn recycle(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = self.connection.take() {
            self.pool.give(connection, cx);
        }
    }
}
