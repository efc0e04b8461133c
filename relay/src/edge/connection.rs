//! One client connection from its first byte to its end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::activity::{Activity, ExchangeBody, OnFailure};
use super::io::{EdgeIo, Protocol};
use super::{EdgeService, PeerAddr, Phase, Shared};

/// More than a head may have, so that the edge's own limit is the one that counts.
const HTTP1_BUFFER: usize = 64 * 1024;
/// Bounds what an HTTP/2 stream holds in either direction.
const HTTP2_STREAM_BUFFER: usize = 64 * 1024;
const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
const HTTP2_MAX_STREAMS: u32 = 250;
/// How long an idle HTTP/2 client has to hang up once told to.
const HTTP2_GOODBYE: Duration = Duration::from_secs(2);

/// Serves a connection until it ends, is upgraded or is forced to end.
pub(super) async fn serve<S: EdgeService>(
    stream: TcpStream,
    client: PeerAddr,
    service: S,
    shared: Arc<Shared>,
    mut phase: watch::Receiver<Phase>,
    tracker: TaskTracker,
) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "Connection ended before its first byte");
        return;
    }
    let activity = Arc::new(Activity::default());
    let mut io = EdgeIo::new(stream, activity.clone(), shared.clone());
    // In every `select!` here a change of phase polls the connection again too: that is how its socket notices.
    let protocol = tokio::select! {
        biased;
        protocol = io.sniff() => protocol,
        () = forced(&mut phase) => return,
    };
    match protocol {
        Protocol::Http1 => http1(io, client, service, activity, shared, phase).await,
        // Boxed because it is rare, and would make every connection's task larger.
        Protocol::Http2 => Box::pin(http2(io, client, service, activity, shared, phase, tracker)).await,
    }
}

async fn forced(phase: &mut watch::Receiver<Phase>) {
    // An error would mean that the edge is gone, and it outlives its connections.
    let _ = phase.wait_for(|phase| *phase == Phase::Forced).await;
}

async fn http1<S: EdgeService>(
    io: EdgeIo,
    client: PeerAddr,
    service: S,
    activity: Arc<Activity>,
    shared: Arc<Shared>,
    mut phase: watch::Receiver<Phase>,
) {
    let mut builder = http1::Builder::new();
    // The socket keeps the clock for heads, so that a late one can be answered, and notices itself when the client has
    // gone, which to the library is a half-closed connection.
    builder.header_read_timeout(None).half_close(true).max_buf_size(HTTP1_BUFFER);
    if shared.limits.max_headers > 100 {
        builder.max_headers(shared.limits.max_headers);
    }
    let exchange = service_fn(move |request: Request<Incoming>| {
        let (activity, shared) = (activity.clone(), shared.clone());
        let may_upgrade = request.method() == Method::CONNECT;
        let answer = call(service.clone(), request, client);
        // Boxed so that it is gone when the answer begins: the library keeps room for it as long as the connection.
        Box::pin(async move {
            let mut response = answer.await;
            let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS
                || (may_upgrade && response.status().is_success());
            if is_upgrade {
                activity.upgrade();
            } else if shared.phase() > Phase::Serving {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| ExchangeBody::new(body, activity, OnFailure::StayOpen)))
        })
    });
    let connection = builder.serve_connection(TokioIo::new(io), exchange).with_upgrades();
    tokio::select! {
        biased;
        ended = connection => log(ended),
        () = forced(&mut phase) => {}
    }
}

async fn http2<S: EdgeService>(
    io: EdgeIo,
    client: PeerAddr,
    service: S,
    activity: Arc<Activity>,
    shared: Arc<Shared>,
    mut phase: watch::Receiver<Phase>,
    tracker: TaskTracker,
) {
    // Enough for a head of the size that HTTP/1 may have.
    let head_bytes = u32::try_from(shared.limits.max_head_bytes).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(OnTracker(tracker));
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(head_bytes)
        .max_concurrent_streams(HTTP2_MAX_STREAMS)
        .max_send_buf_size(HTTP2_STREAM_BUFFER)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        // A client that is gone without a word is found out.
        .keep_alive_interval(shared.limits.idle_timeout)
        .keep_alive_timeout(shared.limits.head_timeout);
    let counted = activity.clone();
    let exchange = service_fn(move |request: Request<Incoming>| {
        let running = Running::begin(counted.clone());
        let answer = call(service.clone(), request, client);
        async move { Ok::<_, Infallible>(answer.await.map(|body| running.into_body(body))) }
    });
    let connection = builder.serve_connection(TokioIo::new(io), exchange);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return log(ended),
        () = should_go_away(&mut phase, &activity, shared.limits.idle_timeout) => {}
    }
    connection.as_mut().graceful_shutdown();
    let gone = async {
        while timeout(HTTP2_GOODBYE, connection.as_mut()).await.map(log).is_err() {
            if !activity.is_running() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = gone => {}
        () = forced(&mut phase) => {}
    }
}

/// Waits until the edge drains, or nothing has happened for too long.
async fn should_go_away(phase: &mut watch::Receiver<Phase>, activity: &Activity, idle_timeout: Duration) {
    let idle = async {
        loop {
            let before = activity.ended();
            sleep(idle_timeout).await;
            if !activity.is_running() && activity.ended() == before {
                return;
            }
        }
    };
    tokio::select! {
        _ = phase.wait_for(|phase| *phase > Phase::Serving) => {}
        () = idle => {}
    }
}

async fn call<S: EdgeService>(
    mut service: S,
    mut request: Request<Incoming>,
    client: PeerAddr,
) -> Response<S::Body> {
    request.extensions_mut().insert(client);
    let Ok(()) = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
    let Ok(response) = service.call(request).await;
    response
}

fn log(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        debug!(%error, "Connection ended");
    }
}

/// A counted exchange that has no response yet.
struct Running(Option<Arc<Activity>>);

impl Running {
    fn begin(activity: Arc<Activity>) -> Self {
        activity.begin();
        Self(Some(activity))
    }

    fn into_body<B>(mut self, body: B) -> ExchangeBody<B> {
        let activity = self.0.take().expect("taken only here, where self ends");
        ExchangeBody::new(body, activity, OnFailure::End)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(activity) = self.0.take() {
            activity.end();
        }
    }
}

/// Runs the streams of an HTTP/2 connection where its own task runs.
#[derive(Debug, Clone)]
struct OnTracker(TaskTracker);

impl<F> Executor<F> for OnTracker
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}
