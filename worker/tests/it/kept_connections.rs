//! Requests on connections to the backend that were used before: none is asked twice for one answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use modelrelay_protocol::codec::{FailureCode, WorkerFrame};
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::{Relay, Session, config, read_request, within, worker};

/// How a connection ends once it has carried a request.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Reads the next request whole, then closes.
    ReadsAndCloses,
    /// Reads the next request whole, then resets.
    ReadsAndResets,
    /// Resets when the first byte of the next request is here.
    ResetsAtOnce,
    /// Closes as soon as its first answer is written.
    ClosesIdle,
}

/// A backend that answers the first request of each connection and notes each that it read to its end.
struct OncePerConnection {
    address: SocketAddr,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

struct Seen {
    read: Mutex<Vec<String>>,
    /// Connections that were closed while they were idle.
    closed: Semaphore,
}

impl OncePerConnection {
    async fn start(end: End) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen { read: Mutex::default(), closed: Semaphore::new(0) });
        let shared = seen.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve(tcp, end, shared.clone()));
            }
        });
        Self { address, seen, _tasks: tasks }
    }
}

async fn serve(mut tcp: TcpStream, end: End, seen: Arc<Seen>) {
    let Some(head) = read_request(&mut tcp).await else { return };
    if head.starts_with("get") {
        let _ =
            tcp.write_all(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
    seen.read.lock().unwrap().push(number(&head));
    let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
    match end {
        End::ClosesIdle => {
            drop(tcp);
            return seen.closed.add_permits(1);
        }
        End::ResetsAtOnce => {
            let _ = tcp.peek(&mut [0]).await;
        }
        End::ReadsAndCloses | End::ReadsAndResets => {
            let Some(head) = read_request(&mut tcp).await else { return };
            seen.read.lock().unwrap().push(number(&head));
        }
    }
    if matches!(end, End::ReadsAndResets) {
        tcp.set_zero_linger().unwrap();
    }
}

fn number(head: &str) -> String {
    head.lines().find(|line| line.starts_with("x-number: ")).unwrap().to_owned()
}

/// Asks so many times, one after the other, and returns how each went.
async fn ask(session: &mut Session, times: u32) -> Vec<Result<(), FailureCode>> {
    let mut outcomes = Vec::new();
    for number in 1..=times {
        let name = number.to_string();
        session.request_with(number, &[("x-number", &name)], br#"{"model":"m"}"#).await;
        loop {
            match session.frame().await {
                WorkerFrame::Response(_, part) if part.end => break outcomes.push(Ok(())),
                WorkerFrame::Response(..) => {}
                WorkerFrame::Failed { code, .. } => break outcomes.push(Err(code)),
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
    outcomes
}

#[tokio::test]
async fn a_request_that_a_backend_may_have_read_is_not_sent_again() {
    for end in [End::ReadsAndCloses, End::ReadsAndResets, End::ResetsAtOnce] {
        let backend = OncePerConnection::start(end).await;
        let relay = Relay::start().await;
        let worker = worker(config(&relay.url(), &format!("http://{}", backend.address))).await;
        let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
        session.models(&["m"]).await;
        let outcomes = ask(&mut session, 6).await;
        assert!(outcomes.contains(&Err(FailureCode::BackendReset)), "{end:?}: {outcomes:?}");
        assert!(outcomes.contains(&Ok(())), "{end:?}: {outcomes:?}");
        let mut read = backend.seen.read.lock().unwrap().clone();
        let all = read.len();
        read.sort();
        read.dedup();
        assert_eq!(read.len(), all, "{end:?}: {read:?}");
        worker.kill().await;
    }
}

#[tokio::test]
async fn a_connection_that_the_backend_closed_while_it_was_idle_costs_no_request() {
    let backend = OncePerConnection::start(End::ClosesIdle).await;
    let relay = Relay::start().await;
    let worker = worker(config(&relay.url(), &format!("http://{}", backend.address))).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    for _ in 0..20 {
        assert_eq!(ask(&mut session, 1).await, [Ok(())]);
        within("the close", backend.seen.closed.acquire()).await.unwrap().forget();
    }
    worker.kill().await;
}
