//! Connections to the backend between two requests.
//!
//! A connection is not a task: whoever uses it polls it. So a request costs no wake-up of another task, and a
//! request that is dropped takes its socket with it at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::body::RequestBody;
use crate::socket::Socket;

/// How long an idle connection is kept. Less than engines do (five seconds where they run on uvicorn, Node or
/// llama-server's HTTP library): who closes first cannot lose a request that is on its way.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// Idle connections that are kept that long; a burst's others cost about 20 KiB each and go sooner.
const KEEP_WARM: usize = 32;

/// How long an idle connection beyond [`KEEP_WARM`] is kept.
const KEEP_SURPLUS: Duration = Duration::from_secs(2);

/// Read and write buffers of one connection stay below this.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// A connection that speaks HTTP/1.1.
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<RequestBody>,
    driver: Pin<Box<http1::Connection<TokioIo<Socket>, RequestBody>>>,
    ended: bool,
}

impl Connection {
    /// Starts HTTP on a socket.
    pub(super) async fn start(socket: Socket) -> hyper::Result<Self> {
        let (sender, driver) =
            http1::Builder::new().max_buf_size(MAX_BUFFER_BYTES).handshake(TokioIo::new(socket)).await?;
        Ok(Self { sender, driver: Box::pin(driver), ended: false })
    }

    /// Moves bytes in both directions as far as they go. What happened is seen at the request and the response.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.ended && self.driver.as_mut().poll(cx).is_ready() {
            self.ended = true;
        }
    }

    /// Says whether another request may be sent.
    fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        !self.ended && self.sender.is_ready()
    }
}

/// Idle connections, the longest idle first.
pub(super) struct Pool {
    idle: Mutex<Vec<(Instant, Box<Connection>)>>,
    most: usize,
}

impl Pool {
    /// Keeps at most `most` connections.
    pub(super) fn new(most: usize) -> Self {
        Self { idle: Mutex::new(Vec::new()), most }
    }

    /// Takes the connection that was used last and is still open. Polling it once finds out.
    pub(super) fn take(&self, cx: &mut Context<'_>) -> Option<Box<Connection>> {
        loop {
            let (since, mut connection) = self.lock().pop()?;
            if since.elapsed() <= KEEP_IDLE && connection.is_idle(cx) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request, if it can carry one.
    pub(super) fn give(&self, mut connection: Box<Connection>, cx: &mut Context<'_>) {
        if !connection.is_idle(cx) {
            return;
        }
        let mut idle = self.lock();
        if idle.len() < self.most {
            idle.push((Instant::now(), connection));
        }
    }

    /// Closes what was idle for long.
    pub(super) fn sweep(&self, now: Instant) {
        let mut idle = self.lock();
        let idle_for =
            |limit| move |(since, _): &(Instant, Box<Connection>)| now.duration_since(*since) > limit;
        let old = idle.partition_point(idle_for(KEEP_IDLE));
        let surplus = idle.len().saturating_sub(KEEP_WARM).min(idle.partition_point(idle_for(KEEP_SURPLUS)));
        let closed: Vec<_> = idle.drain(..old.max(surplus)).collect();
        idle.shrink_to(KEEP_WARM);
        // Closing sockets is left until the lock is free.
        drop(idle);
        drop(closed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Instant, Box<Connection>)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
