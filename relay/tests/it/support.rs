//! A relay on ports of its own, workers written by hand, and clients that see bytes.

#![allow(clippy::disallowed_methods, reason = "tasks belong to the values that abort them")]

mod client;
pub mod metrics_table;
pub mod ours;
mod relay;
pub mod v1;

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

pub use self::client::{Answer, Asked, Client, RawClient, request};
pub use self::ours::{FromRelay, OurWorker};
pub use self::relay::{SettingsFile, TestRelay};
pub use self::v1::V1Worker;

pub const CHAT: &str = "/v1/chat/completions";
pub const MESSAGES: &str = "/v1/messages";

/// What a test waits for at most.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Fails the test instead of hanging.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("did not happen in time: {what}"),
    }
}

/// Waits until `look` gives something.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
}

/// A chat request as a client would send it.
pub fn chat(model: &str, stream: bool) -> String {
    json!({ "model": model, "stream": stream, "messages": [] }).to_string()
}
