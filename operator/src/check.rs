//! `modelrelay-operator check`: asks an address until it answers with success. `helm test` runs it, because the images hold no
//! other program that could.

use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, sleep_until, timeout};

use crate::cache::Causes;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Attempts begin so long after each other.
const PAUSE: Duration = Duration::from_secs(1);

/// An address did not answer with success.
#[derive(Debug, thiserror::Error)]
#[error("{url} did not answer with success within {} s; the last attempt: {problem}", limit.as_secs())]
pub struct CheckError {
    url: Uri,
    limit: Duration,
    problem: String,
}

/// Asks `url` by GET, again and again, until it answers 2xx.
///
/// # Errors
/// It did not do so within `limit`.
pub async fn until_success(url: Uri, limit: Duration) -> Result<(), CheckError> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(ATTEMPT));
    // A Service may lead each attempt to another pod.
    let client: Client<_, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let end = Instant::now() + limit;
    loop {
        let began = Instant::now();
        let problem = match timeout(ATTEMPT, client.get(url.clone())).await {
            Ok(Ok(answer)) if answer.status().is_success() => return Ok(()),
            Ok(Ok(answer)) => format!("it answered {}", answer.status()),
            Ok(Err(error)) => Causes(&error).to_string(),
            Err(_) => format!("no answer within {} s", ATTEMPT.as_secs()),
        };
        let next = began + PAUSE;
        if next >= end {
            return Err(CheckError { url, limit, problem });
        }
        sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use axum::routing::get;
    use http::StatusCode;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    /// Answers 503 to the first requests.
    async fn server(tasks: &mut JoinSet<()>, failures: u32) -> Uri {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let answer = move || {
            let early = asked.fetch_add(1, Ordering::Relaxed) < failures;
            std::future::ready(if early { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK })
        };
        let router = Router::new().route("/readyz", get(answer));
        tasks.spawn(async { axum::serve(listener, router).await.unwrap() });
        url
    }

    #[tokio::test]
    async fn it_waits_for_success() {
        let mut tasks = JoinSet::new();
        let url = server(&mut tasks, 1).await;
        until_success(url, Duration::from_secs(60)).await.unwrap();
    }

    #[tokio::test]
    async fn it_says_what_it_met_instead() {
        let mut tasks = JoinSet::new();
        let url = server(&mut tasks, u32::MAX).await;
        let error = until_success(url.clone(), Duration::from_millis(10)).await.unwrap_err().to_string();
        assert!(error.contains(&url.to_string()) && error.contains("503"), "{error}");
        tasks.shutdown().await;
        let error = until_success(url, Duration::from_millis(10)).await.unwrap_err().to_string();
        assert!(error.contains("refused"), "{error}");
    }
}
