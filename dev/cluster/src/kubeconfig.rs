//! Kubeconfig files.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::pki::Identity;

/// How a client shows who it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Credential<'a> {
    Certificate(&'a Identity),
    Token(&'a str),
}

/// Writes a kubeconfig in its JSON form; certificates stay in their own files.
pub(crate) fn write(path: &Path, url: &str, authority: &Path, credential: Credential<'_>) -> Result<()> {
    let text = config(url, authority, credential).to_string();
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

fn config(url: &str, authority: &Path, credential: Credential<'_>) -> Value {
    let user = match credential {
        Credential::Certificate(Identity { certificate, key }) => {
            json!({ "client-certificate": certificate, "client-key": key })
        }
        Credential::Token(token) => json!({ "token": token }),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "modelrelay", "cluster": { "server": url, "certificate-authority": authority } }],
        "users": [{ "name": "modelrelay", "user": user }],
        "contexts": [{ "name": "modelrelay", "context": { "cluster": "modelrelay", "user": "modelrelay" } }],
        "current-context": "modelrelay",
    })
}
