//! The whole operator with a running relay: what users do reaches it without anybody asking.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use modelrelay_operator::cache::Scope;
use modelrelay_operator::controller::Operator;
use modelrelay_operator::generated::sha256;
use modelrelay_operator::metrics::Metrics;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::process::Relay;
use super::rig::Rig;
use crate::support::{eventually, options};

/// Asks the relay for its models as a client does.
async fn status(relay: &Relay, key: Option<&str>) -> u16 {
    let client = HttpClient::builder(TokioExecutor::new()).build_http();
    let address = SocketAddr::new(relay.address, 8080);
    let mut request = http::Request::get(format!("http://{address}/v1/models"));
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = client.request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let _ = response.into_body().collect().await;
    status
}

#[tokio::test]
async fn keys_reach_a_running_relay_and_leave_it_without_a_restart() {
    let Some(rig) = Rig::new().await else { return };
    let rig = Arc::new(rig);
    rig.relay(json!({ "replicas": 1, "clientAuth": { "type": "APIKeys" } })).await;
    let stop = CancellationToken::new();
    let scope = Scope::Namespaces(vec![rig.place.name().to_owned()]);
    let operator = Operator::new(rig.context.client.clone(), options(scope), Metrics::new());
    #[expect(clippy::disallowed_methods, reason = "it ends with the handle")]
    let running = AbortOnDropHandle::new(tokio::spawn(operator.run(stop.clone())));

    let pod = rig.pods(1).await.remove(0);
    let Some(relay) = Relay::start(&rig.settings().await).await else { return };
    rig.runs(&pod, relay.address, true).await;
    let ready = async |wanted: &str| {
        eventually(&format!("Ready to be {wanted}"), async || {
            (rig.condition("Ready").await.0 == wanted).then_some(())
        })
        .await;
    };
    ready("True/Ready").await;
    assert_eq!(status(&relay, None).await, 401);

    rig.key("app", json!({ "key": "mr_app_1" })).await;
    let hash = sha256("mr_app_1").to_hex();
    // As a kubelet does: it looks when it is nudged.
    let followed = async |has: bool| {
        eventually("the nudge", async || {
            let settings = rig.settings().await;
            let revision = &sha256(&settings).to_hex()[..16];
            let reported = rig.status().await.config_revision.as_deref() == Some(revision);
            let nudged = rig.nudged(&pod).await?.starts_with(&format!("{revision}."));
            (reported && nudged && settings.contains(&hash) == has).then(|| relay.update(&settings))
        })
        .await;
        ready("True/Ready").await;
    };
    followed(true).await;
    assert_eq!(status(&relay, Some("mr_app_1")).await, 200);
    assert_eq!(status(&relay, Some("mr_app_2")).await, 401);

    rig.place.api::<Secret>().delete("app", &DeleteParams::default()).await.unwrap();
    followed(false).await;
    assert_eq!(status(&relay, Some("mr_app_1")).await, 401);
    stop.cancel();
    running.await.unwrap();
}
