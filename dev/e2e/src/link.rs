//! A TCP proxy between workers and relays that delays every byte, can be cut without anybody noticing, and may stand before
//! several relays as a load balancer does. The kernels that tests run on cannot delay loopback themselves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Parts that are on their way in one direction at most.
const PARTS: usize = 1024;

/// Sees the bytes of one direction of one connection.
pub type Tap = Arc<dyn Fn(Direction, u64, &[u8]) + Send + Sync>;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connected.
    Forth,
    /// To whoever connected.
    Back,
}

/// A proxy; dropping it closes all connections.
#[derive(Debug)]
pub struct Link {
    /// Where it listens.
    pub address: SocketAddr,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Starts a proxy that delays everything by this time, each way.
    pub async fn start(target: SocketAddr, one_way: Duration) -> Self {
        Self::among(&[target], one_way).await
    }

    /// Starts one that takes each connection to one of several places, at random.
    pub async fn among(targets: &[SocketAddr], one_way: Duration) -> Self {
        Self::with(targets, one_way, Arc::new(|_, _, _| {})).await
    }

    /// Starts one that shows what passes, with a number for each connection.
    pub async fn with(targets: &[SocketAddr], one_way: Duration, tap: Tap) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cut = watch::Sender::new(false);
        let (targets, held) = (targets.to_vec(), cut.subscribe());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let mut number = 0;
            while let Ok((near, _)) = listener.accept().await {
                let target = targets[rand::random_range(0..targets.len())];
                connections.spawn(carry(near, target, one_way, held.clone(), tap.clone(), number));
                number += 1;
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, cut, task }
    }

    /// Returns where workers dial in.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets nothing through any more, without closing anything.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Lets everything through again, what was held included.
    pub fn heal(&self) {
        self.cut.send_replace(false);
    }
}

async fn carry(
    near: TcpStream,
    target: SocketAddr,
    one_way: Duration,
    cut: watch::Receiver<bool>,
    tap: Tap,
    number: u64,
) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    for stream in [&near, &far] {
        stream.set_nodelay(true).unwrap();
    }
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let forth = pump(near_read, far_write, one_way, cut.clone(), |part| tap(Direction::Forth, number, part));
    let back = pump(far_read, near_write, one_way, cut, |part| tap(Direction::Back, number, part));
    tokio::join!(forth, back);
}

/// Carries one direction to its end.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    one_way: Duration,
    mut cut: watch::Receiver<bool>,
    see: impl Fn(&[u8]),
) {
    let (sender, mut parts) = mpsc::channel::<(Instant, Bytes)>(PARTS);
    let read = async move {
        loop {
            let mut part = BytesMut::with_capacity(16 * 1024);
            match from.read_buf(&mut part).await {
                Ok(0) | Err(_) => return,
                Ok(_) => see(&part),
            }
            if sender.send((Instant::now() + one_way, part.freeze())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, part)) = parts.recv().await {
            sleep_until(due).await;
            let _ = cut.wait_for(|cut| !cut).await;
            if to.write_all(&part).await.is_err() {
                return;
            }
        }
        let _ = cut.wait_for(|cut| !cut).await;
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        (address, task)
    }

    async fn round_trip(stream: &mut TcpStream, text: &[u8]) -> Duration {
        let begun = Instant::now();
        stream.write_all(text).await.unwrap();
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, text);
        begun.elapsed()
    }

    #[tokio::test]
    async fn bytes_come_late_in_order_and_not_at_all_while_it_is_cut() {
        let (address, task) = echo().await;
        let link = Link::start(address, Duration::from_millis(20)).await;
        let mut stream = TcpStream::connect(link.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for text in [&b"one"[..], b"two", &[7; 100_000]] {
            assert!(round_trip(&mut stream, text).await >= Duration::from_millis(40));
        }
        link.cut();
        let mut cut = tokio::spawn(async move {
            let took = round_trip(&mut stream, b"three").await;
            (took, stream)
        });
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut cut).await.is_err());
        link.heal();
        let (took, mut stream) = crate::soon("an echo", cut).await.unwrap();
        assert!(took >= Duration::from_millis(200));
        drop(link);
        let end = stream.read(&mut [0]).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        task.abort();
    }
}
