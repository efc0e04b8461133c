//! The edge over real sockets: what raw bytes from a client lead to.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod http2;
mod support;

use std::io;
use std::time::Duration;

use modelrelay_relay::edge::{Edge, EdgeLimits, Shutdown};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::http2::{h2_client, h2_get};
use crate::support::{Client, GET, HANG, Running, Seen, bare, find, router, soon, start};

#[tokio::test]
async fn hostile_heads_get_a_bare_answer_and_a_closed_connection() {
    let relay = start(EdgeLimits::default()).await;
    let huge = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(100));
    let bad = "400 Bad Request";
    let large = "431 Request Header Fields Too Large";
    let table = [
        ("GET / HTTP/1.1\r\n\r\n", bad),
        ("GET / HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n", bad),
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", bad),
        ("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n", bad),
        ("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n", bad),
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n", bad),
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1, 1\r\n\r\n", bad),
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +1\r\n\r\n", bad),
        ("GET / HTTP/1.1\nhost: x\n\n", bad),
        ("GET / HTTP/1.1\r\nhost: x\n\r\n", bad),
        ("GET / HTTP/1.1\r\nhost: x\ry: z\r\n\r\n", bad),
        ("GET / HTTP/1.1\r\nhost: x\0\r\n\r\n", bad),
        ("GET / HTTP/1.1\r\nhost: x\r\n folded\r\n\r\n", bad),
        ("GET / HTTP/1.1\r\nhost : x\r\n\r\n", bad),
        ("GET / HTTP/3.0\r\nhost: x\r\n\r\n", bad),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", bad),
        ("\x16\x03\x01\x02\0\x01\0\x01\x03\n", bad),
        ("POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", bad),
        ("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: cow\r\n\r\n", "501 Not Implemented"),
        (&huge, large),
        (&many, large),
    ];
    for (request, status) in table {
        let mut client = relay.connect().await;
        client.send(request.as_bytes()).await;
        assert_eq!(client.rest().await, bare(status), "{}", request.escape_debug());
    }

    // Also when its beginning has been passed on already.
    let mut client = relay.connect().await;
    client.send(b"GET / HTTP/1.1\r\nhost: x\r\n").await;
    sleep(Duration::from_millis(20)).await;
    client.send(b"host: y\r\n\r\n").await;
    assert_eq!(client.rest().await, bare(bad));
    relay.end().await;
}

#[tokio::test]
async fn a_connection_carries_many_requests_of_all_framings() {
    let relay = start(EdgeLimits::default()).await;
    let mut client = relay.connect().await;
    for _ in 0..3 {
        client.exchange().await;
        client.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhe").await;
        client.send(b"llo").await;
        assert_eq!(client.response().await.1, b"hello");
        client.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n").await;
        client.send(b"3;x\r\nllo\r\n0\r\nsum: 1\r\n\r\n").await;
        assert_eq!(client.response().await.1, b"hello");
        let body = vec![b'x'; 300_000];
        client.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n").await;
        client.send(&body).await;
        assert_eq!(client.response().await.1, body);
    }
    client.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.response().await.0, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send(b"hello").await;
    assert_eq!(client.response().await.1, b"hello");
    relay.end().await;
}

#[tokio::test]
async fn http_1_0_needs_no_host() {
    let relay = start(EdgeLimits::default()).await;
    let mut client = relay.connect().await;
    client.send(b"POST /echo HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi").await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("\r\n\r\nhi"), "{answer}");
    relay.end().await;
}

#[tokio::test]
async fn pipelined_requests_are_told_apart_and_each_is_checked() {
    let relay = start(EdgeLimits::default()).await;
    let mut client = relay.connect().await;
    let sized = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\none";
    let chunked =
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n";
    let bad = b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n";
    client.send(&[sized, &chunked[..], GET, bad, GET].concat()).await;
    assert_eq!(client.response().await.1, b"one");
    assert_eq!(client.response().await.1, b"two");
    assert_eq!(client.response().await.1, b"");
    assert_eq!(client.rest().await, bare("400 Bad Request"));
    relay.end().await;
}

#[tokio::test]
async fn a_bad_request_behind_a_running_one_waits_for_its_answer() {
    let mut relay = start(EdgeLimits::default()).await;
    let mut client = relay.connect().await;
    client.send(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n").await;
    for chunk in ["first", "last"] {
        relay.chunks.send(Ok(chunk.into())).await.unwrap();
        client.read_until(|read| find(read, chunk.as_bytes())).await;
    }
    relay.end_stream();
    let answer = client.rest().await;
    assert!(answer.ends_with(&format!("0\r\n\r\n{}", bare("400 Bad Request"))), "{answer}");
    relay.end().await;
}

#[tokio::test]
async fn a_slow_head_is_answered_with_408() {
    let limits = EdgeLimits { head_timeout: Duration::from_millis(200), ..EdgeLimits::default() };
    let relay = start(limits).await;
    for beginning in ["G", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nhost: x\r\n"] {
        let mut client = relay.connect().await;
        let began = Instant::now();
        client.send(beginning.as_bytes()).await;
        assert_eq!(client.rest().await, bare("408 Request Timeout"), "{beginning}");
        assert!(began.elapsed() >= Duration::from_millis(190), "{:?}", began.elapsed());
    }
    // The limit is one for the whole head, also for the second on a connection.
    let mut client = relay.connect().await;
    client.exchange().await;
    let mut sent = 0;
    let closed = loop {
        match client.stream.write_all(&GET[sent % 8..][..1]).await {
            Ok(()) => sent += 1,
            Err(_) => break true,
        }
        if timeout(Duration::from_millis(40), client.stream.read_buf(&mut client.read)).await.is_ok() {
            break find(&client.read, b"408").is_some();
        }
        assert!(sent < 100, "a slow client was never refused");
    };
    assert!(closed);
    relay.end().await;
}

#[tokio::test]
async fn an_idle_connection_ends_without_a_word_and_the_clocks_are_apart() {
    let limits = EdgeLimits { idle_timeout: Duration::from_millis(300), ..EdgeLimits::default() };
    let relay = start(limits).await;
    let mut fresh = relay.connect().await;
    assert_eq!(fresh.rest().await, "");

    let mut used = relay.connect().await;
    // Each request winds the clock up again.
    let began = Instant::now();
    for _ in 0..4 {
        used.exchange().await;
        sleep(Duration::from_millis(100)).await;
    }
    used.exchange().await;
    assert!(began.elapsed() > Duration::from_millis(300));
    assert_eq!(used.rest().await, "");

    // A head that has begun is not idle.
    let mut slow = relay.connect().await;
    slow.send(&GET[..10]).await;
    sleep(Duration::from_millis(500)).await;
    slow.send(&GET[10..]).await;
    assert!(slow.response().await.0.starts_with("HTTP/1.1 200 "));
    relay.end().await;
}

#[tokio::test]
async fn a_running_exchange_is_never_idle() {
    let limits = EdgeLimits { idle_timeout: Duration::from_millis(100), ..EdgeLimits::default() };
    let relay = start(limits).await;
    let mut client = relay.connect().await;
    client.send(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n").await;
    sleep(Duration::from_millis(300)).await;
    relay.chunks.send(Ok("late".into())).await.unwrap();
    client.read_until(|read| find(read, b"late")).await;
    relay.end().await;
}

#[tokio::test]
async fn a_thousand_slow_clients_do_not_stop_a_good_one() {
    let limits = EdgeLimits { head_timeout: Duration::from_secs(3), ..EdgeLimits::default() };
    let relay = start(limits).await;
    let mut slow = Vec::new();
    for _ in 0..1000 {
        let mut client = relay.connect().await;
        client.send(b"GET / HT").await;
        slow.push(client);
    }
    let mut good = relay.connect().await;
    let began = Instant::now();
    for _ in 0..10 {
        good.exchange().await;
    }
    assert!(began.elapsed() < Duration::from_secs(2), "ten requests took {:?}", began.elapsed());
    for mut client in slow {
        assert_eq!(client.rest().await, bare("408 Request Timeout"));
    }
    good.exchange().await;
    relay.end().await;
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_place() {
    let relay = start(EdgeLimits { max_connections: 1, ..EdgeLimits::default() }).await;
    let mut first = relay.connect().await;
    first.exchange().await;
    let mut second = relay.connect().await;
    second.send(GET).await;
    assert!(timeout(Duration::from_millis(100), second.stream.readable()).await.is_err());
    drop(first);
    assert!(second.response().await.0.starts_with("HTTP/1.1 200 "));
    relay.end().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_while_nothing_is_written() {
    let mut relay = start(EdgeLimits::default()).await;
    let post = b"POST /hang HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    let pipelined = [HANG, &GET[..20]].concat();
    for request in [HANG, post, &pipelined] {
        let mut client = relay.connect().await;
        client.send(request).await;
        assert_eq!(relay.saw().await, Seen::Hanging);
        drop(client);
        let began = Instant::now();
        assert_eq!(relay.saw().await, Seen::Dropped);
        assert!(began.elapsed() < Duration::from_secs(1), "noticed after {:?}", began.elapsed());
    }
    // A client that reuses its connection too.
    let mut client = relay.connect().await;
    client.exchange().await;
    client.send(HANG).await;
    assert_eq!(relay.saw().await, Seen::Hanging);
    drop(client);
    assert_eq!(relay.saw().await, Seen::Dropped);
    relay.end().await;
}

#[tokio::test]
async fn an_answer_ahead_of_its_request_survives_the_upload() {
    let relay = start(EdgeLimits::default()).await;
    let mut client = relay.connect().await;
    client.send(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n").await;
    for _ in 0..40 {
        client.send(&[b'x'; 100_000]).await;
    }
    assert!(client.rest().await.starts_with("HTTP/1.1 413 "));
    relay.end().await;
}

#[tokio::test]
async fn a_broken_body_never_looks_complete() {
    for (request, is_reset) in
        [("GET /stream HTTP/1.1\r\nhost: x\r\n\r\n", false), ("GET /stream HTTP/1.0\r\n\r\n", true)]
    {
        let relay = start(EdgeLimits::default()).await;
        let mut client = relay.connect().await;
        client.send(request.as_bytes()).await;
        relay.chunks.send(Ok("chunk".into())).await.unwrap();
        client.read_until(|read| find(read, b"chunk")).await;
        relay.chunks.send(Err(io::Error::other("broken"))).await.unwrap();
        let ended = soon(client.stream.read_to_end(&mut client.read)).await;
        if is_reset {
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        } else {
            assert!(!client.read.ends_with(b"0\r\n\r\n"), "{}", client.read.escape_ascii());
        }
        relay.end().await;
    }
}

#[tokio::test]
async fn the_service_learns_who_the_client_is() {
    let relay = start(EdgeLimits::default()).await;
    let mut client = relay.connect().await;
    client.send(b"GET /peer HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let address = client.stream.local_addr().unwrap().to_string();
    assert_eq!(client.response().await.1, address.as_bytes());
    relay.end().await;
}

#[tokio::test]
async fn an_upgraded_connection_is_handed_over_with_what_was_read() {
    let relay = start(EdgeLimits::default()).await;
    let mut client = relay.connect().await;
    client.exchange().await;
    client
        .send(b"GET /upgrade HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n\0early\n")
        .await;
    let (head, _) = client.response().await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("connection: upgrade\r\n"), "{head}");
    client.send(b"late\n").await;
    client.read_until(|read| (read == b"\0early\nlate\n").then_some(0)).await;
    // It is not the edge's any more.
    relay.end().await;
    client.send(b"!").await;
    client.read_until(|read| (read == b"\0early\nlate\n!").then_some(0)).await;
}

#[tokio::test]
async fn a_draining_edge_serves_on_and_asks_clients_to_leave() {
    let mut relay = start(EdgeLimits::default()).await;
    let mut idle = relay.connect().await;
    assert!(!idle.exchange().await.contains("connection: close"));
    let mut waiting = relay.connect().await;
    waiting.send(HANG).await;
    assert_eq!(relay.saw().await, Seen::Hanging);

    relay.shutdown.drain.cancel();
    let mut new = relay.connect().await;
    assert!(new.exchange().await.contains("connection: close\r\n"));
    assert_eq!(new.rest().await, "");
    // The idle connection stayed for one more request.
    assert!(idle.exchange().await.contains("connection: close\r\n"));
    assert_eq!(idle.rest().await, "");
    assert!(
        timeout(Duration::from_millis(50), relay.seen.recv()).await.is_err(),
        "cut off a running exchange"
    );
    relay.end().await;
}

#[tokio::test]
async fn a_closing_edge_ends_idle_connections_and_finishes_the_others() {
    let relay = start(EdgeLimits::default()).await;
    let mut idle = relay.connect().await;
    idle.exchange().await;
    let mut fresh = relay.connect().await;
    let mut running = relay.connect().await;
    running.send(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n").await;
    relay.chunks.send(Ok("first".into())).await.unwrap();
    running.read_until(|read| find(read, b"first")).await;

    relay.shutdown.close.cancel();
    assert_eq!(idle.rest().await, "");
    assert_eq!(fresh.rest().await, "");
    let address = relay.address;
    soon(async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!relay.edge.is_finished());

    relay.chunks.send(Ok("last".into())).await.unwrap();
    let Running { edge, chunks, connections, .. } = relay;
    drop(chunks);
    assert!(running.rest().await.ends_with("4\r\nlast\r\n0\r\n\r\n"));
    soon(edge).await.unwrap();
    connections.close();
    soon(connections.wait()).await;
}

#[tokio::test]
async fn a_closing_edge_serves_what_waits_in_the_backlog() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut clients = JoinSet::new();
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(TcpStream::connect(address).await.unwrap());
    }
    // Closed before it ever accepted.
    let shutdown = Shutdown::default();
    shutdown.drain.cancel();
    shutdown.close.cancel();
    let (saw, _seen) = mpsc::channel(1);
    let connections = TaskTracker::new();
    let router = router(saw, mpsc::channel(1).1);
    let edge = connections.spawn(Edge::new(listener, EdgeLimits::default()).run(
        router,
        shutdown,
        connections.clone(),
    ));
    for stream in streams {
        let mut client = Client { stream, read: Vec::new() };
        clients.spawn(async move {
            assert!(client.exchange().await.contains("connection: close\r\n"));
            assert_eq!(client.rest().await, "");
        });
    }
    soon(clients.join_all()).await;
    soon(edge).await.unwrap();
}

#[tokio::test]
async fn a_forced_edge_ends_everything_where_it_stands() {
    let mut relay = start(EdgeLimits::default()).await;
    let mut hanging = relay.connect().await;
    hanging.send(HANG).await;
    assert_eq!(relay.saw().await, Seen::Hanging);
    let mut streaming = relay.connect().await;
    streaming.send(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n").await;
    relay.chunks.send(Ok("first".into())).await.unwrap();
    streaming.read_until(|read| find(read, b"first")).await;
    let mut fresh = relay.connect().await;
    let mut http2 = h2_client(&relay).await;
    let pending = http2.send_request(h2_get(&relay, "/hang"));
    assert_eq!(relay.saw().await, Seen::Hanging);

    relay.shutdown.force.cancel();
    assert_eq!(relay.saw().await, Seen::Dropped);
    assert_eq!(relay.saw().await, Seen::Dropped);
    assert_eq!(hanging.rest().await, "");
    assert_eq!(fresh.rest().await, "");
    assert!(!streaming.rest().await.ends_with("0\r\n\r\n"));
    assert!(soon(pending).await.is_err());
    relay.end().await;
}
