//! What a relay's operations port says.

use std::net::SocketAddr;

use serde_json::Value;

use crate::client::{ask, get};
use crate::eventually;

/// A relay's operations port.
#[derive(Debug, Clone, Copy)]
pub struct Ops(pub SocketAddr);

impl Ops {
    /// Asks the admin API.
    pub async fn admin(&self, path: &str) -> Value {
        let answer = ask(self.0, get(&format!("/admin/v1/{path}"))).await;
        assert_eq!(answer.status(), 200, "/admin/v1/{path}");
        answer.json().await
    }

    /// Reads one sample, named with its labels as the scrape writes them; 0 when it is not there.
    pub async fn metric(&self, sample: &str) -> f64 {
        let text = String::from_utf8(ask(self.0, get("/metrics")).await.bytes().await).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Adds up all samples of a metric, whatever their labels.
    pub async fn metric_sum(&self, name: &str) -> f64 {
        let text = String::from_utf8(ask(self.0, get("/metrics")).await.bytes().await).unwrap();
        let samples =
            text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Returns the status of `/readyz`.
    pub async fn readiness(&self) -> u16 {
        ask(self.0, get("/readyz")).await.status()
    }

    /// Waits until the named workers, and no others, are connected, serve something, and have all their slots free.
    pub async fn idle_workers(&self, names: &[&str]) {
        let mut names = names.to_vec();
        names.sort_unstable();
        eventually(&format!("workers {names:?}, ready and idle"), async || {
            let workers = self.admin("workers").await;
            let mut idle: Vec<&str> = workers
                .as_array()?
                .iter()
                .filter(|row| row["state"] == "ready" && row["free"] == row["slots"] && row["running"] == 0)
                .map(|row| row["name"].as_str().unwrap())
                .collect();
            idle.sort_unstable();
            (idle == names && workers.as_array()?.len() == names.len()).then_some(())
        })
        .await;
    }

    /// Waits until this many workers are connected and ready.
    pub async fn workers_ready(&self, n: usize) {
        eventually(&format!("{n} workers"), async || {
            let workers = self.admin("workers").await;
            let ready = workers.as_array()?.iter().filter(|row| row["state"] == "ready").count();
            (ready == n).then_some(())
        })
        .await;
    }

    /// Waits until this many requests wait.
    pub async fn queued(&self, n: u64) {
        eventually(&format!("{n} requests in the queue"), async || {
            let queue = self.admin("queue").await;
            let lengths = queue["queues"].as_array()?.iter().map(|queue| queue["length"].as_u64().unwrap());
            (lengths.sum::<u64>() == n).then_some(())
        })
        .await;
    }

    /// Waits until exactly these states are those of the requests that wait or run, oldest first.
    pub async fn requests(&self, states: &[&str]) {
        eventually(&format!("requests {states:?}"), async || {
            let requests = self.admin("requests").await;
            requests.as_array()?.iter().map(|row| &row["state"]).eq(states).then_some(())
        })
        .await;
    }

    /// Waits until nothing waits, runs or is held.
    pub async fn settled(&self) {
        eventually("nothing is left over", async || {
            let queue = self.admin("queue").await;
            let empty =
                queue["queues"].as_array()?.iter().all(|queue| queue["length"] == 0 && queue["bytes"] == 0);
            let requests = self.admin("requests").await;
            (empty && queue["body_bytes_held"] == 0 && requests.as_array()?.is_empty()).then_some(())
        })
        .await;
    }
}
