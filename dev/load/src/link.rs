//! One client connection, driven by whoever uses it, so that dropping it closes the socket at once.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::report::Failure;
use crate::target::Target;

type Driver = Pin<Box<Connection<TokioIo<TcpStream>, Full<Bytes>>>>;

/// A client connection.
#[derive(Debug)]
pub(crate) struct Link {
    sender: SendRequest<Full<Bytes>>,
    driver: Option<Driver>,
}

impl Link {
    pub(crate) async fn open(target: &Target) -> Result<Self, Failure> {
        let socket = TcpStream::connect(target.addr).await.map_err(|_| Failure::Connect)?;
        socket.set_nodelay(true).map_err(|_| Failure::Connect)?;
        let (sender, driver) = http1::handshake(TokioIo::new(socket)).await.map_err(|_| Failure::Connect)?;
        Ok(Self { sender, driver: Some(Box::pin(driver)) })
    }

    /// Sends a request and returns the head of its answer, whatever the status.
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        let answer = self.sender.send_request(request);
        drive(&mut self.driver, answer).await.map_err(|error| Failure::of(&error))
    }

    /// Returns the next piece of a body, or `None` at its proper end.
    pub(crate) async fn piece(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
        loop {
            match drive(&mut self.driver, body.frame()).await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::of(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Reads a body of a modest size to its end.
    pub(crate) async fn whole(&mut self, mut body: Incoming) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece(&mut body).await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Whether another request can be sent once the last answer was read.
    pub(crate) async fn is_usable(&mut self) -> bool {
        drive(&mut self.driver, self.sender.ready()).await.is_ok()
    }

    /// Whether the other side has ended the connection.
    pub(crate) async fn has_ended(&mut self) -> bool {
        drive(&mut self.driver, std::future::ready(())).await;
        self.driver.is_none()
    }
}

/// Polls the connection and a future that needs its progress, in one task.
async fn drive<F: Future>(driver: &mut Option<Driver>, future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        // The future's own error tells how the connection ended.
        if driver.as_mut().is_some_and(|driver| matches!(driver.as_mut().poll(cx), Poll::Ready(_))) {
            *driver = None;
        }
        future.as_mut().poll(cx)
    })
    .await
}
