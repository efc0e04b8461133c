//! One replica of a relay, asked at its own address.

use std::net::SocketAddr;

use bytes::Bytes;
use dev_e2e::client::{CHAT, ask, chat_for, get, post};
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use super::{Part, Site, condition};

/// A relay pod.
#[derive(Debug, Clone)]
pub(crate) struct RelayPod {
    pub(crate) uid: String,
    pub(crate) client: SocketAddr,
    pub(crate) operations: SocketAddr,
    token: String,
}

impl RelayPod {
    /// Waits until so many pods of the relay `main` are ready, and returns all of its pods.
    pub(crate) fn ready(site: &Site<'_>, count: usize) -> Vec<Self> {
        let token = site.secret("main-relay-admin", "token");
        let pods = site.pods_until(&format!("{count} ready relay pods"), Part::Relay, "main", |pods| {
            pods.len() == count && pods.iter().all(|pod| condition(pod, "Ready") == "True")
        });
        pods.iter().map(|pod| Self::of(pod, &token)).collect()
    }

    fn of(pod: &Value, token: &str) -> Self {
        let address = |port| SocketAddr::new(pod["status"]["podIP"].as_str().unwrap().parse().unwrap(), port);
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        Self { uid, client: address(8080), operations: address(8081), token: token.to_owned() }
    }

    /// Asks the admin API.
    pub(crate) async fn admin(&self, path: &str) -> Value {
        let answer = ask(self.operations, bearing(get(&format!("/admin/v1/{path}")), &self.token)).await;
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await
    }

    /// Returns the workers of a pool that are connected, by name, in whatever state.
    pub(crate) async fn workers(&self, pool: &str) -> Vec<String> {
        let rows = self.admin("workers").await;
        let own = rows.as_array().unwrap().iter().filter(|row| row["pool"] == pool);
        own.map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Asks for a small answer with a key; returns the status.
    pub(crate) async fn chat(&self, key: &str, model: &str) -> u16 {
        let answer = ask(self.client, bearing(post(CHAT, chat_for(model, false, &json!({}))), key)).await;
        let status = answer.status();
        answer.bytes().await;
        status
    }
}

/// Adds a key or token to a request.
pub(crate) fn bearing(mut request: Request<Full<Bytes>>, token: &str) -> Request<Full<Bytes>> {
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}
