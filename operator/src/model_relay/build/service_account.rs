//! The identity of the relay's pods.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::workload;
use crate::api::ModelRelay;

/// An account without rights: relays never talk to the API server.
pub fn service_account(relay: &ModelRelay) -> ServiceAccount {
    ServiceAccount {
        metadata: workload(relay),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
