//! Whether a spec can be carried out as it stands. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt as _;
use modelrelay_protocol::config::{RelayConfig, WorkerCredentialConfig};

use super::apply::Prepared;
use super::build::deployment;
use super::build::settings::{self, Given, MOST_BYTES, Settings};
use super::fetch::{PoolToken, References};
use crate::api::ModelRelay;
use crate::api::condition::reason;
use crate::client_keys::{self, KeyProblem};
use crate::naming;
use crate::options::Options;
use crate::pod_template;

/// Something that only a change by a user, or of something else, can mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One of [`reason`].
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Problem {
    /// A problem with its reason.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What of a spec can be carried out, and what is wrong with the rest. One wrong part does not hold up the others: a client
/// key is withdrawn even while the pod template is wrong.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Valid {
    /// The settings; absent when the last good ones stay.
    pub settings: Option<Settings>,
    /// The pod template; absent when the last good one stays.
    pub template: Option<PodTemplateSpec>,
    /// What is wrong with the spec itself; the first thing.
    pub refused: Option<Problem>,
    /// What is wrong with what it refers to.
    pub unresolved: Vec<Problem>,
    /// Secrets that hold no usable client key.
    pub key_problems: Vec<KeyProblem>,
}

/// Checks a spec with everything that it refers to.
pub fn validate(
    relay: &ModelRelay,
    references: &References,
    prepared: &Prepared,
    options: &Options,
) -> Valid {
    let mut valid = Valid::default();
    match settings(relay, references, prepared, &mut valid) {
        Ok(settings) => valid.settings = Some(settings),
        Err(problem) => valid.refused = Some(problem),
    }
    let generated = deployment::template(relay, options);
    match pod_template::merged(generated, relay.spec.pod_template.as_ref(), "podTemplate") {
        Ok(template) => valid.template = Some(template),
        Err(error) => {
            let problem = Problem::new(reason::PROTECTED_FIELD, error.to_string());
            valid.refused.get_or_insert(problem);
        }
    }
    valid
}

fn settings(
    relay: &ModelRelay,
    references: &References,
    prepared: &Prepared,
    valid: &mut Valid,
) -> Result<Settings, Problem> {
    if references.namespaces_hidden {
        return Err(Problem::new(
            reason::NAMESPACES_NOT_READABLE,
            "allowedWorkerPools.namespaces.from: Selector needs an operator that may read namespaces, and this one works in single ones; use Same or All, or install it for the whole cluster",
        ));
    }
    if prepared.admin.is_none() {
        let name = naming::relay::admin(&relay.name_any());
        let message = format!(
            "Secret \"{name}\" does not hold a token of the form mr_<id>_<secret> under \"token\"; delete it, and a new one is made"
        );
        valid.unresolved.push(Problem::new(reason::INVALID_SECRET, message));
    }
    let keys = client_keys::read(&references.client_keys, &settings::priorities(&relay.spec));
    valid.unresolved.extend(unusable(&keys.problems));
    valid.key_problems = keys.problems;
    let given = Given {
        admin: prepared.admin.as_deref().map(crate::generated::sha256),
        ipv6: prepared.ipv6,
        client_keys: keys.entries,
        worker_credentials: credentials(&references.pools, &mut valid.unresolved),
    };
    let invalid =
        |error: modelrelay_protocol::config::Invalid| Problem::new(reason::INVALID, error.to_string());
    let config = settings::config(relay, given).map_err(invalid)?;
    config.validate().map_err(invalid)?;
    let settings = Settings::new(config.to_yaml());
    if settings.text.len() > MOST_BYTES {
        let message = format!(
            "the settings would have {} bytes and a Secret holds at most {MOST_BYTES}; the last good ones stay; use fewer client keys, pools or models",
            settings.text.len()
        );
        return Err(Problem::new(reason::SETTINGS_TOO_LARGE, message));
    }
    Ok(settings)
}

fn unusable(problems: &[KeyProblem]) -> Option<Problem> {
    let name = |one: &KeyProblem| one.secret.name.clone().unwrap_or_default();
    let listed: Vec<_> =
        problems.iter().map(|one| format!("Secret {:?}: {}", name(one), one.problem)).collect();
    (!listed.is_empty()).then(|| {
        let message = format!("these hold no usable client key: {}", listed.join("; "));
        Problem::new(reason::INVALID_CLIENT_KEY, message)
    })
}

/// Leaves out pools that would spoil the settings for all others.
fn credentials(pools: &[PoolToken], unresolved: &mut Vec<Problem>) -> Vec<WorkerCredentialConfig> {
    let mut entries = BTreeMap::new();
    let mut sorted: Vec<_> = pools.iter().collect();
    sorted.sort_by_key(|one| (one.pool.namespace(), one.pool.name_any()));
    for PoolToken { pool, token } in sorted {
        let shown = format!("{}/{}", pool.namespace().unwrap_or_default(), pool.name_any());
        let entry = settings::worker_credential(pool, token);
        let alone = RelayConfig { worker_credentials: vec![entry.clone()], ..RelayConfig::default() };
        if let Err(invalid) = alone.validate() {
            let field = invalid.field.strip_prefix("workerCredentials[0].").unwrap_or(&invalid.field);
            let message = format!("WorkerPool \"{shown}\" is left out: {field}: {}", invalid.problem);
            unresolved.push(Problem::new(reason::INVALID, message));
        } else if let Some((first, _)) = entries.get(&entry.sha256) {
            let message = format!(
                "WorkerPool \"{shown}\" is left out: it has the same token as \"{first}\"; delete its Secret, and a new one is made"
            );
            unresolved.push(Problem::new(reason::INVALID_SECRET, message));
        } else {
            entries.insert(entry.sha256, (shown, entry));
        }
    }
    entries.into_values().map(|(_, entry)| entry).collect()
}
