//! The harness's own client of the API server: a few blocking JSON requests as the administrator.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use ureq::Agent;
use ureq::http::{Method, Request, header};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use crate::pki::Identity;

const LIMIT: Duration = Duration::from_secs(30);

/// How a patch changes an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    /// JSON merge patch.
    Merge,
    /// Strategic merge patch, which knows the keys of the lists of Kubernetes's own kinds.
    Strategic,
}

/// Talks to the API server as the administrator.
#[derive(Debug, Clone)]
pub struct Api {
    agent: Agent,
    url: String,
}

impl Api {
    pub(crate) fn new(url: &str, authority: &Path, admin: &Identity) -> Result<Self> {
        let roots = RootCerts::new_with_certs(&[certificate(authority)?]);
        let key = PrivateKey::from_pem(&read(&admin.key)?).context("read the administrator's key")?;
        let client = ClientCert::new_with_certs(&[certificate(&admin.certificate)?], key);
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(roots)
            .client_cert(Some(client))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // A connection that outlived a restart of the API server would fail the next request.
            .max_idle_connections(0)
            .timeout_global(Some(LIMIT))
            .proxy(None)
            .build();
        Ok(Self { agent: config.new_agent(), url: url.to_owned() })
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// When the API server does not answer, or refuses.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.send(&Method::GET, path, "", &Value::Null)
    }

    /// Reads an object, or nothing when there is none.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn find(&self, path: &str) -> Result<Option<Value>> {
        let (status, text) = self.ask(&Method::GET, path, "", &Value::Null)?;
        if status == 404 { Ok(None) } else { object(&Method::GET, path, status, &text).map(Some) }
    }

    /// Creates an object in the list at `path`.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.send(&Method::POST, path, "application/json", object)
    }

    /// Changes an object.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn patch(&self, path: &str, patch: Patch, change: &Value) -> Result<Value> {
        let kind = match patch {
            Patch::Merge => "application/merge-patch+json",
            Patch::Strategic => "application/strategic-merge-patch+json",
        };
        self.send(&Method::PATCH, path, kind, change)
    }

    /// Deletes an object; what it owns goes after it.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn delete(&self, path: &str) -> Result<Value> {
        self.send(&Method::DELETE, path, "", &Value::Null)
    }

    /// Returns whether `path` is answered with success.
    pub(crate) fn succeeds(&self, path: &str) -> bool {
        self.ask(&Method::GET, path, "", &Value::Null).is_ok_and(|(status, _)| status == 200)
    }

    fn send(&self, method: &Method, path: &str, kind: &str, body: &Value) -> Result<Value> {
        let (status, text) = self.ask(method, path, kind, body)?;
        object(method, path, status, &text)
    }

    fn ask(&self, method: &Method, path: &str, kind: &str, body: &Value) -> Result<(u16, String)> {
        let what = || format!("{method} {path}");
        let request = Request::builder().method(method.clone()).uri(format!("{}{path}", self.url));
        let answer = if body.is_null() {
            self.agent.run(request.body(()).with_context(what)?)
        } else {
            let request = request.header(header::CONTENT_TYPE, kind);
            self.agent.run(request.body(body.to_string()).with_context(what)?)
        };
        let mut answer = answer.with_context(what)?;
        Ok((answer.status().as_u16(), answer.body_mut().read_to_string().with_context(what)?))
    }
}

fn object(method: &Method, path: &str, status: u16, text: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    if !(200..300).contains(&status) {
        bail!("{method} {path}: {status} {}", value["message"].as_str().unwrap_or(text));
    }
    Ok(value)
}

fn certificate(path: &Path) -> Result<Certificate<'static>> {
    Certificate::from_pem(&read(path)?).with_context(|| format!("read the certificate {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}
