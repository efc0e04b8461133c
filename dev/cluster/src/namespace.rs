//! A namespace for one test.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::api::Api;

/// A namespace whose deletion begins when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    api: Api,
    name: String,
}

impl Namespace {
    pub(crate) fn create(api: &Api, prefix: &str, labels: &[(&str, &str)]) -> Result<Self> {
        let labels: Value = labels.iter().map(|&(key, value)| (key, Value::from(value))).collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "generateName": format!("{prefix}-"), "labels": labels },
        });
        let created = api.create("/api/v1/namespaces", &object)?;
        let name = created["metadata"]["name"].as_str().context("the answer holds no name")?.to_owned();
        Ok(Self { api: api.clone(), name })
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A test may have ended the API server, and with it the namespace.
        let _ = self.api.delete(&format!("/api/v1/namespaces/{}", self.name));
    }
}
