//! One request: what its two forms (`streams`, `v1`) have in common.
//!
//! A job is one task. It polls its own connection to the backend, so ending the job closes that connection at once.

pub(crate) mod mailbox;
pub(crate) mod streams;
pub(crate) mod v1;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use modelrelay_protocol::codec::FailureCode;
use modelrelay_protocol::usage::UsageReader;
use tokio::time::{Instant, Sleep};

use crate::backend::CallError;
use mailbox::{Abort, Mailbox};

/// Runs a future until the job is told to end.
///
/// The future is pinned by the caller: taken by value it would be kept twice, and jobs are what the worker has most of.
async fn unless_aborted<F: Future>(mailbox: &Mailbox, mut work: Pin<&mut F>) -> Result<F::Output, Abort> {
    std::future::poll_fn(|cx| match mailbox.poll_abort(cx) {
        Some(abort) => Poll::Ready(Err(abort)),
        None => work.as_mut().poll(cx).map(Ok),
    })
    .await
}

/// How long the backend may be silent.
///
/// Restarting only notes a time: the timer is made when there is something to wait for, and moved when it fires.
struct Patience {
    limit: Option<Duration>,
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn new(limit: Option<Duration>) -> Self {
        Self { limit, deadline: None, timer: None }
    }

    /// The backend did something.
    fn restart(&mut self) {
        self.deadline = None;
    }

    /// Says whether the backend was silent for too long; otherwise the task is woken in time.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(limit) = self.limit else { return false };
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + limit);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= deadline {
                return true;
            }
            timer.as_mut().reset(deadline);
        }
        false
    }

    /// Waits for a future that ends when the backend does something.
    async fn during<T>(
        &mut self,
        mut work: Pin<&mut impl Future<Output = Result<T, CallError>>>,
    ) -> Result<T, CallError> {
        self.restart();
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending if self.is_over(cx) => Poll::Ready(Err(self.error())),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn error(&self) -> CallError {
        let seconds = self.limit.unwrap_or_default().as_secs();
        CallError::new(FailureCode::BackendTimeout, format!("backend was silent for {seconds} s"))
    }
}

/// Starts to follow an answer's usage, where it may have one.
fn usage_reader(headers: &HeaderMap) -> Option<UsageReader> {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    UsageReader::for_answer(content_type, headers.contains_key(header::CONTENT_ENCODING))
}

/// Says whether an answer may be one of the engines' ways to say that they do not have a model (any more).
fn names_missing_model(status: StatusCode, body: &[u8]) -> bool {
    status == StatusCode::NOT_FOUND && memchr::memmem::find(&body[..body.len().min(4096)], b"model").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_counts_from_the_last_sign_of_life() {
        let mut patience = Patience::new(Some(Duration::from_secs(10)));
        let start = Instant::now();
        let silent = std::future::pending::<Result<(), CallError>>();
        assert_eq!(
            patience.during(std::pin::pin!(silent)).await.unwrap_err().code,
            FailureCode::BackendTimeout
        );
        assert_eq!(start.elapsed().as_secs(), 10);

        let mut patience = Patience::new(Some(Duration::from_secs(10)));
        let start = Instant::now();
        let mut pauses = 3;
        let mut pause = Box::pin(tokio::time::sleep(Duration::from_secs(8)));
        std::future::poll_fn(|cx| {
            while pauses > 0 && pause.as_mut().poll(cx).is_ready() {
                pauses -= 1;
                pause = Box::pin(tokio::time::sleep(Duration::from_secs(8)));
                patience.restart();
            }
            if pauses > 0 {
                assert!(!patience.is_over(cx));
                return Poll::Pending;
            }
            if patience.is_over(cx) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert_eq!(start.elapsed().as_secs(), 34);
    }

    #[test]
    fn the_three_engines_ways_to_miss_a_model_are_known() {
        let bodies = [
            r#"{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}"#,
            r#"{"error":{"message":"model 'x' not found","type":"api_error","param":null,"code":null}}"#,
            r#"{"error":"model \"x\" not found, try pulling it first"}"#,
        ];
        for body in bodies {
            assert!(names_missing_model(StatusCode::NOT_FOUND, body.as_bytes()), "{body}");
            assert!(!names_missing_model(StatusCode::BAD_REQUEST, body.as_bytes()));
        }
        assert!(!names_missing_model(StatusCode::NOT_FOUND, br#"{"error":"File Not Found"}"#));
    }
}
