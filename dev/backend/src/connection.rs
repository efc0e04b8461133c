//! One connection: requests one after another, each watched for the client's close.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::json;
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use crate::backend::Shared;
use crate::control;
use crate::flavour::Short;
use crate::perform::{Ending, Out, perform};
use crate::plan::Plan;
use crate::request::{Head, Inbound, ReadError};
use crate::script::Script;
use crate::shape::Route;
use crate::stats::Phase;

/// Serves a connection to its end.
pub(crate) async fn serve(mut socket: TcpStream, shared: Arc<Shared>) {
    let _open = shared.ledger.connection();
    let ending = shared.stop.run_until_cancelled(requests(&mut socket, &shared)).await;
    let reset = match ending {
        Some(ending) => ending == Ending::Reset,
        None => shared.resets_all(),
    };
    if reset {
        // With no time to linger, closing sends a reset. Failing that, the close itself must do.
        let _ = socket.set_zero_linger();
    }
}

async fn requests(socket: &mut TcpStream, shared: &Shared) -> Ending {
    // Tokens are small and must not wait for one another. Without it the stub is slower, not wrong.
    let _ = socket.set_nodelay(true);
    let (mut read, write) = socket.split();
    let mut inbound = Inbound::default();
    let mut out = Out::new(write);
    loop {
        let ending = match inbound.head(&mut read).await {
            Ok(head) => answer(shared, head, &mut inbound, &mut read, &mut out).await,
            Err(error) => refuse(error, &mut out).await,
        };
        if ending != Ending::KeepAlive {
            return ending;
        }
    }
}

async fn answer(
    shared: &Shared,
    head: Head,
    inbound: &mut Inbound,
    read: &mut ReadHalf<'_>,
    out: &mut Out<'_>,
) -> Ending {
    if head.expects_continue() && out.send(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err() {
        return Ending::Close;
    }
    match Route::of(head.path()).filter(|_| head.method() == "POST") {
        Some(route) => infer(shared, route, head, inbound, read, out).await,
        None => probe(shared, head, inbound, read, out).await,
    }
}

/// Answers a request on a model route, and counts it.
async fn infer(
    shared: &Shared,
    route: Route,
    head: Head,
    inbound: &mut Inbound,
    read: &mut ReadHalf<'_>,
    out: &mut Out<'_>,
) -> Ending {
    let mut running = shared.ledger.begin();
    running.name(head.header("x-stub-id").and_then(|id| std::str::from_utf8(id).ok()));
    let body = match inbound.body(read, &head).await {
        Ok(body) => body,
        Err(error) => {
            running.cancelled();
            return refuse(error, out).await;
        }
    };
    let plan = Plan::of(shared, route, &head, &body);
    drop((head, body));
    running.name(plan.script.id.as_deref());
    running.enter(Phase::BeforeHead);
    let ended = tokio::select! {
        biased;
        () = inbound.closed(read) => None,
        ended = perform(plan, shared.flavour.server(), out, &running) => ended.ok(),
    };
    match ended {
        None => {
            running.cancelled();
            Ending::Close
        }
        Some(ending @ (Ending::KeepAlive | Ending::Close)) => {
            running.completed();
            ending
        }
        Some(ending @ (Ending::Broken | Ending::Reset)) => {
            running.failed();
            ending
        }
    }
}

/// Answers everything else.
async fn probe(
    shared: &Shared,
    head: Head,
    inbound: &mut Inbound,
    read: &mut ReadHalf<'_>,
    out: &mut Out<'_>,
) -> Ending {
    let body = match inbound.body(read, &head).await {
        Ok(body) => body,
        Err(error) => return refuse(error, out).await,
    };
    let (status, kind, text): Short = if head.path().starts_with("/stub/") {
        tokio::select! {
            biased;
            () = inbound.closed(read) => return Ending::Close,
            answer = control::answer(shared, &head, &body) => answer,
        }
    } else {
        shared.ledger.probes.fetch_add(1, Relaxed);
        shared.probe(&head)
    };
    let plan = Plan::whole(Arc::new(Script::default()), status, kind, text.into(), &head);
    let keep_alive = plan.keep_alive;
    let mut bytes = plan.head(shared.flavour.server());
    if let crate::plan::Body::Whole(body) = &plan.body {
        bytes.extend_from_slice(body);
    }
    match out.send(&bytes).await {
        Ok(()) if keep_alive => Ending::KeepAlive,
        Ok(()) | Err(_) => Ending::Close,
    }
}

async fn refuse(error: ReadError, out: &mut Out<'_>) -> Ending {
    if let ReadError::Malformed(message) = error {
        let body = json!({"error": {"message": message}}).to_string();
        let head = format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        // The connection ends either way.
        let _ = out.send(format!("{head}{body}").as_bytes()).await;
    }
    Ending::Close
}
