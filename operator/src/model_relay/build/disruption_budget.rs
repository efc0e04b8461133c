//! How many relay pods may be evicted at once.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{pods, workload};
use crate::api::ModelRelay;

/// One at a time, whatever their number: a budget that a single replica cannot meet would block every node drain.
pub fn disruption_budget(relay: &ModelRelay) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: workload(relay),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(pods(relay)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
