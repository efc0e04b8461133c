//! The workers' settings file.

use std::net::Ipv6Addr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use modelrelay_protocol::config::{
    AdminConfig, HealthConfig, RelayResolve, Sha256Hash, WorkerConfig, WorkerDrainConfig,
};
use sha2::{Digest as _, Sha256};

use super::{OPS_PORT, metadata};
use crate::naming::{OPERATOR, Part, pool};
use crate::worker_pool::validate::{Managed, Strategy};

/// The file's name, as the key of the Secret and below its mount.
pub(super) const FILE: &str = "worker.yaml";
/// Where the credential is mounted.
pub(super) const CREDENTIAL_FOLDER: &str = "/etc/modelrelay/credential";
/// A worker that is not to wait breaks off what still runs so long before its grace period ends.
const HASTY_DRAIN_SECONDS: u32 = 20;

/// Returns what the workers are told.
pub(super) fn config(managed: &Managed, admin: Sha256Hash) -> WorkerConfig {
    WorkerConfig {
        generated_by: Some(OPERATOR.to_owned()),
        relay_urls: vec![managed.relay_url.clone()],
        relay_resolve: RelayResolve::All,
        backend_url: managed.backend_url(),
        models: managed.models.clone(),
        max_concurrency: managed.slots,
        worker_secret_file: Some(format!("{CREDENTIAL_FOLDER}/token").into()),
        // Every address of the pod, of whichever family.
        ops_listen: Some((Ipv6Addr::UNSPECIFIED, OPS_PORT).into()),
        health: managed.health.clone(),
        drain: drain(managed.strategy),
        admin: AdminConfig { sha256: Some(admin) },
        ..WorkerConfig::default()
    }
}

fn drain(strategy: Strategy) -> WorkerDrainConfig {
    let seconds = u32::try_from(strategy.timeout_seconds).unwrap_or(1);
    WorkerDrainConfig { deadline_seconds: if strategy.wait_for_idle { seconds } else { HASTY_DRAIN_SECONDS } }
}

/// The Secret that holds the file.
pub(super) fn secret(managed: &Managed, config: &WorkerConfig) -> Secret {
    let name = &managed.owner.name;
    Secret {
        metadata: metadata(Part::Worker, pool::settings(name), name),
        data: Some([(FILE.to_owned(), ByteString(config.to_yaml().into_bytes()))].into()),
        ..Secret::default()
    }
}

/// A hash of what a worker reads at its start only: when it changes, workers must be replaced. The rest they follow.
pub(super) fn start_hash(config: &WorkerConfig) -> String {
    let fixed = WorkerConfig {
        models: Vec::new(),
        health: HealthConfig::default(),
        admin: AdminConfig::default(),
        ..config.clone()
    };
    let digest = Sha256::digest(fixed.to_yaml());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker_pool::validate::tests::managed;

    const ADMIN: Sha256Hash = Sha256Hash([0xab; 32]);

    fn of(more: &str) -> WorkerConfig {
        let spec = format!("{{ relayRef: {{ name: main }}, backend: {{ url: 'http://x:1' }}{more} }}");
        config(&managed(&spec), ADMIN)
    }

    #[test]
    fn the_file_says_what_differs_from_the_defaults_and_the_worker_can_read_it() {
        let config = of(", maxConcurrentRequests: 1, health: { intervalSeconds: 10, path: /up }");
        let text = config.to_yaml();
        assert_eq!(WorkerConfig::parse_strictly(&text).unwrap(), config);
        config.validate().unwrap();
        assert!(text.contains("path: /up"), "{text}");
        assert!(!text.contains("maxConcurrency") && !text.contains("intervalSeconds"), "{text}");
    }

    #[test]
    fn only_what_counts_from_a_start_replaces_workers() {
        let before = start_hash(&of(""));
        assert_eq!(start_hash(&of(", models: [a], health: { failureThreshold: 9 }")), before);
        assert_eq!(
            start_hash(&config(
                &managed("{ relayRef: { name: main }, backend: { url: 'http://x:1' } }"),
                Sha256Hash([1; 32])
            )),
            before
        );
        assert_ne!(start_hash(&of(", maxConcurrentRequests: 9")), before);
        assert_ne!(start_hash(&of(", managed: { updateStrategy: { timeoutSeconds: 9 } }")), before);
    }

    #[test]
    fn a_worker_that_is_not_to_wait_ends_within_its_grace_period() {
        let config = of(", managed: { updateStrategy: { waitForIdle: false } }");
        assert_eq!(config.drain.deadline_seconds, 20);
        assert_eq!(of("").drain.deadline_seconds, 900);
    }
}
