//! The edge: accepts client connections, checks every head, and keeps the clocks that HTTP libraries leave out.
//!
//! Owns listener, sockets, protocol choice (HTTP/1.1, or HTTP/2 by prior knowledge), limits on heads and idle
//! connections, and how all of these end. Leaves to the service: routes, bodies and their limits, answers.

mod activity;
mod chunk_scan;
mod connection;
mod head_scan;
mod io;

use std::convert::Infallible;
use std::error::Error;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;
use tracing::{debug, warn};

pub use head_scan::{HeadLimits, MessageScan, Refusal};
pub use io::EdgeIo;

/// How long the loop waits after an accept that failed for want of a resource.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// What a connection may cost before a service sees a request.
#[derive(Debug, Clone)]
pub struct EdgeLimits {
    /// From the first byte of a head to its end.
    pub head_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// Header lines in one head.
    pub max_headers: usize,
    /// Bytes in one head, request line and line ends included.
    pub max_head_bytes: usize,
    /// Connections served at once; further ones wait in the accept backlog.
    pub max_connections: usize,
}

impl Default for EdgeLimits {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            max_headers: 100,
            max_head_bytes: 32 * 1024,
            max_connections: 20_000,
        }
    }
}

/// The three steps in which an edge ends, each at most once and in this order; steps may be skipped.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Answers say `connection: close`, HTTP/2 connections go away; all else goes on.
    pub drain: CancellationToken,
    /// The accept backlog is emptied, then listener and idle connections close; running exchanges finish.
    pub close: CancellationToken,
    /// Every connection ends where it stands.
    pub force: CancellationToken,
}

/// The client's address, in the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// A service the edge can run: an [`axum::Router`], or anything of its shape.
pub trait EdgeService:
    Service<Request<Incoming>, Response = Response<Self::Body>, Error = Infallible, Future = Self::Answer>
    + Clone
    + Send
    + 'static
{
    /// The body of its responses.
    type Body: Body<Data = Bytes, Error = Self::BodyError> + Send + Unpin + 'static;
    /// Why such a body breaks off.
    type BodyError: Into<Box<dyn Error + Send + Sync>>;
    /// The future of a response.
    type Answer: Future<Output = Result<Response<Self::Body>, Infallible>> + Send + 'static;
}

impl<S, B> EdgeService for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Body = B;
    type BodyError = B::Error;
    type Answer = S::Future;
}

/// Where the edge is on its way from serving to gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Closing,
    Forced,
}

/// What all connections of one edge look at.
#[derive(Debug)]
struct Shared {
    limits: EdgeLimits,
    phase: watch::Sender<Phase>,
}

impl Shared {
    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }
}

/// A listener with its limits, ready to run.
#[derive(Debug)]
pub struct Edge {
    listener: TcpListener,
    limits: EdgeLimits,
}

impl Edge {
    /// Makes an edge of a bound listener.
    pub fn new(listener: TcpListener, limits: EdgeLimits) -> Self {
        Self { listener, limits }
    }

    /// Serves until `close` or `force`, and returns when the last connection has ended.
    ///
    /// Each connection is a task on `connections`. Upgraded connections are no longer the edge's: they neither
    /// count here nor end with it.
    pub async fn run<S: EdgeService>(self, service: S, shutdown: Shutdown, connections: TaskTracker) {
        let Self { listener, limits } = self;
        let slots = Arc::new(Semaphore::new(limits.max_connections));
        let shared = Arc::new(Shared { limits, phase: watch::Sender::new(Phase::Serving) });
        let serve = |stream: TcpStream, client: SocketAddr, slot: Option<OwnedSemaphorePermit>| {
            let (service, shared, tracker) = (service.clone(), shared.clone(), connections.clone());
            // Before the task first runs: the edge must not take itself for idle until then.
            let phase = shared.phase.subscribe();
            connections.spawn(async move {
                connection::serve(stream, PeerAddr(client), service, shared, phase, tracker).await;
                drop(slot);
            });
        };

        let follow = follow(&shared.phase, &shutdown);
        tokio::pin!(follow);
        tokio::select! {
            () = accept(&listener, &slots, &serve) => {}
            () = &mut follow => {}
            () = shutdown.close.cancelled() => {}
            () = shutdown.force.cancelled() => {}
        }
        empty_backlog(listener, |stream, client| serve(stream, client, None));
        // Every connection subscribes to the phase until it is gone.
        tokio::select! {
            () = follow => {}
            () = shared.phase.closed() => {}
        }
    }
}

/// Turns the tokens into phases, for ever.
async fn follow(phase: &watch::Sender<Phase>, shutdown: &Shutdown) {
    let Shutdown { drain, close, force } = shutdown;
    loop {
        let now = *phase.borrow();
        let next = tokio::select! {
            biased;
            () = force.cancelled(), if now < Phase::Forced => Phase::Forced,
            () = close.cancelled(), if now < Phase::Closing => Phase::Closing,
            () = drain.cancelled(), if now < Phase::Draining => Phase::Draining,
            () = pending() => return,
        };
        phase.send_replace(next);
    }
}

/// Accepts for ever: no error of a single accept ends it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    serve: &impl Fn(TcpStream, SocketAddr, Option<OwnedSemaphorePermit>),
) {
    let mut failing = false;
    loop {
        let slot = slots.clone().acquire_owned().await.expect("nobody closes the semaphore");
        match listener.accept().await {
            Ok((stream, client)) => {
                failing = false;
                serve(stream, client, Some(slot));
            }
            Err(error) if is_the_clients(&error) => debug!(%error, "Connection ended before it was accepted"),
            Err(error) => {
                // Said once, not twenty times a second for as long as it lasts.
                if !failing {
                    warn!(%error, "Cannot accept connections, trying on");
                }
                failing = true;
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

fn is_the_clients(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Takes what the kernel has accepted already, so that closing the listener resets nobody.
fn empty_backlog(listener: TcpListener, serve: impl Fn(TcpStream, SocketAddr)) {
    // The kernel is asked itself: the runtime may not have seen yet that the listener is readable.
    let Ok(listener) = listener.into_std() else { return };
    loop {
        match listener.accept() {
            Ok((stream, client)) => {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    serve(stream, client);
                }
            }
            Err(error) if is_the_clients(&error) => {}
            Err(_) => return,
        }
    }
}
