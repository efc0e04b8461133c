//! Who chooses the number of replicas, where the spec asks for it.

use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricSource, CrossVersionObjectReference, HorizontalPodAutoscaler,
    HorizontalPodAutoscalerSpec, MetricSpec, MetricTarget,
};
use kube::ResourceExt as _;

use super::deployment::CONTAINER;
use super::workload;
use crate::api::ModelRelay;
use crate::api::model_relay::ScalingSpec;
use crate::naming;

/// The fewest replicas.
pub fn min_replicas(scaling: &ScalingSpec) -> i32 {
    scaling.min_replicas.unwrap_or(2).min(scaling.max_replicas)
}

/// Keeps the mean CPU use of the relay's own container near the target: containers that a pod template adds do not count, and
/// need no request.
pub fn autoscaler(relay: &ModelRelay) -> Option<HorizontalPodAutoscaler> {
    let scaling = relay.spec.scaling.as_ref()?;
    let cpu = ContainerResourceMetricSource {
        container: CONTAINER.to_owned(),
        name: "cpu".to_owned(),
        target: MetricTarget {
            type_: "Utilization".to_owned(),
            average_utilization: Some(scaling.target_cpu_percent.unwrap_or(70)),
            ..MetricTarget::default()
        },
    };
    Some(HorizontalPodAutoscaler {
        metadata: workload(relay),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: "Deployment".to_owned(),
                name: naming::relay::workload(&relay.name_any()),
            },
            min_replicas: Some(min_replicas(scaling)),
            max_replicas: scaling.max_replicas,
            metrics: Some(vec![MetricSpec {
                type_: "ContainerResource".to_owned(),
                container_resource: Some(cpu),
                ..MetricSpec::default()
            }]),
            ..HorizontalPodAutoscalerSpec::default()
        }),
        ..HorizontalPodAutoscaler::default()
    })
}
