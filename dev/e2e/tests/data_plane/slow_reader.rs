//! 400 MB for a client that reads nothing.

use std::net::SocketAddr;
use std::time::Duration;

use dev_backend::{Backend, Config};
use dev_e2e::process::{RelayProcess, start_worker};
use dev_e2e::{floor, soon};
use dev_load::{Meter, Target, streams};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::interval;

use dev_e2e::client::{CHAT, chat};

/// What a process may hold more for clients that read nothing than for clients that read: the window is 256 KiB for each of
/// the two readers, socket buffers belong to the system, and the rest is what an allocator keeps for a while of what was
/// freed.
const GROWTH: u64 = 8 * 1024 * 1024;

/// A client that took the first bytes of its answer and nothing more.
async fn slow_reader(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let body = chat(true, &json!({"chunks": 25_000, "chunk_bytes": 16_000}));
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut first = [0; 12];
    soon("the first bytes", stream.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    stream
}

/// Returns the most that `resident` said while the work was done.
async fn peak_during<T>(resident: impl Fn() -> [u64; 2], work: impl Future<Output = T>) -> (T, [u64; 2]) {
    let mut peak = [0; 2];
    let watch = async {
        let mut looks = interval(Duration::from_millis(10));
        loop {
            looks.tick().await;
            let now = resident();
            peak = [peak[0].max(now[0]), peak[1].max(now[1])];
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = watch => unreachable!("it watches for ever"),
    };
    (done, peak)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_reads_nothing_costs_its_window_and_nobody_else_anything() {
    let _floor = floor::alone().await;
    let backend = Backend::start(Config::default()).await.unwrap();
    let relay = RelayProcess::start("").await;
    let worker = start_worker("worker", &relay.url(), &backend.url(), 64);
    relay.ops.idle_workers(&["worker"]).await;
    let target = Target::parse(&relay.url(), "m").unwrap();
    // The same without such clients, at the same time: what else the machine does falls on both.
    let other_relay = RelayProcess::start("").await;
    let _other_worker = start_worker("other", &other_relay.url(), &backend.url(), 64);
    other_relay.ops.idle_workers(&["other"]).await;
    let other = Target::parse(&other_relay.url(), "m").unwrap();
    let paced = streams::Options {
        streams: 20,
        chunks: 150,
        interval: Duration::from_millis(20),
        stagger: Duration::from_millis(20),
        ..streams::Options::default()
    };
    let run = async |target: &Target| {
        let report = streams::run(target, &paced, &Meter::default().into()).await;
        assert_eq!((report.tally.ok, report.tally.failed), (20, 0), "{report:?}");
        report.chunk_latency
    };
    let resident = || [&relay.program, &worker].map(|program| program.usage().resident_bytes);
    // Large streams that are read, first: they show what the same bytes cost when nothing has to wait.
    let large =
        streams::Options { streams: 4, chunks: 3_000, chunk_bytes: 16_000, ..streams::Options::default() };
    let (report, read) = peak_during(resident, streams::run(&target, &large, &Meter::default().into())).await;
    assert_eq!(report.tally.ok, 4);
    let mut readers = Vec::new();
    let ((beside, without), unread) = peak_during(resident, async {
        for _ in 0..2 {
            readers.push(slow_reader(relay.address).await);
        }
        tokio::join!(run(&target), run(&other))
    })
    .await;
    let grown = [0, 1].map(|process| unread[process].saturating_sub(read[process]));
    eprintln!("relay and worker, bytes: {read:?} when the client reads, {unread:?} when it does not");
    eprintln!("events of other streams: without {without:?}, beside it {beside:?}");
    assert!(grown.iter().all(|bytes| *bytes <= GROWTH), "grown by {grown:?} bytes");
    // Each stream is still there, and neither has come far: what was read from the backend is what fits on the way.
    assert_eq!(backend.stats().running, 2);
    let slack = 5_000.0;
    assert!(beside.p50_us <= 3.0 * without.p50_us + slack, "{beside:?} against {without:?}");
    assert!(beside.p99_us <= 3.0 * without.p99_us + slack, "{beside:?} against {without:?}");
    drop(readers);
    backend.wait_running(0, dev_e2e::LIMIT).await.unwrap();
    relay.ops.settled().await;
    relay.ops.idle_workers(&["worker"]).await;
}

/// Nothing is lost of an answer that waited for its reader.
#[tokio::test]
async fn client_that_reads_late_gets_every_byte() {
    let _floor = floor::shared().await;
    let stack = dev_e2e::stack::Stack::start(4, "").await;
    let script = json!({"chunks": 1_000, "chunk_bytes": 16_000});
    let answer = stack.relay.post(CHAT, chat(true, &script)).await;
    // Time in which all of it would have come, had nothing held it back.
    let ahead = stack.relay.post(CHAT, chat(true, &script)).await;
    assert_eq!(ahead.stream().await, dev_e2e::client::Ended::Whole(1_000));
    assert_eq!(stack.backend.stats().running, 1);
    assert_eq!(answer.stream().await, dev_e2e::client::Ended::Whole(1_000));
}
