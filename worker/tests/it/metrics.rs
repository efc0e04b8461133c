//! What Prometheus scrapes: the metrics that the README names, with their labels, and nothing else.

use dev_backend::Backend;
use modelrelay_protocol::window::DEFAULT_WINDOW_BYTES;
use serde_json::json;

use crate::metrics_table::{assert_documented, assert_no_name_is_shared, lint};
use crate::program::get;
use crate::support::{Relay, config, worker};

/// The scrape of a worker that has answered a request.
async fn scrape() -> String {
    let backend = Backend::start(dev_backend::Config::default()).await.unwrap();
    let relay = Relay::start().await;
    let mut config = config(&relay.url(), &backend.url());
    config.ops_listen = Some("127.0.0.1:0".parse().unwrap());
    let worker = worker(config).await;
    let mut session = relay.accept_streams(DEFAULT_WINDOW_BYTES).await;
    session.models(&["m"]).await;
    session.request(1, &json!({ "model": "m" })).await;
    assert_eq!(session.response(1).await.status, 200);
    let answer = get(worker.ops_addr().unwrap(), "/metrics").await;
    worker.kill().await;
    let (head, scrape) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-length: "), "the body is not cut into chunks: {head}");
    scrape.to_owned()
}

#[tokio::test]
async fn each_metric_stands_in_the_readme_with_its_labels() {
    assert_documented("Worker", &scrape().await);
    assert_no_name_is_shared();
}

#[tokio::test]
async fn names_and_help_texts_are_as_prometheus_wants_them() {
    lint(&scrape().await);
}
