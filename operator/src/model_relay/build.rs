//! What a ModelRelay becomes: every child, from a spec that was found valid. Pure, and cannot fail.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;

use super::validate::Valid;
use crate::api::ModelRelay;
use crate::naming::{self, Part};
use crate::options::Options;

pub mod autoscaler;
pub mod deployment;
pub mod disruption_budget;
pub mod network_policy;
pub mod service;
pub mod service_account;
pub mod settings;

/// The container and target port of clients and workers.
pub const CLIENT_PORT: i32 = 8080;
/// The operations port.
pub const OPS_PORT: u16 = 8081;
/// The name of [`CLIENT_PORT`].
const HTTP: &str = "http";
/// The name of [`OPS_PORT`].
const OPS: &str = "ops";
/// Where the settings are mounted, as a folder: a single file would never change.
const SETTINGS_FOLDER: &str = "/etc/modelrelay";

/// Every child of a relay, besides the generated Secret. What is absent in an `Option` that says so stays as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Resources {
    /// The identity of the pods, without any rights.
    pub service_account: ServiceAccount,
    /// The settings file; absent when the last good one stays.
    pub settings: Option<Secret>,
    /// Where applications call.
    pub client_service: Service,
    /// What workers resolve.
    pub workers_service: Service,
    /// Who may reach which port.
    pub network_policy: NetworkPolicy,
    /// How many pods may be evicted at once.
    pub disruption_budget: PodDisruptionBudget,
    /// The relays; absent when the last good ones stay.
    pub deployment: Option<Deployment>,
    /// Who chooses the number of replicas, where that is asked for.
    pub autoscaler: Option<HorizontalPodAutoscaler>,
}

/// Makes every child.
pub fn resources(relay: &ModelRelay, valid: &Valid, options: &Options) -> Resources {
    Resources {
        service_account: service_account::service_account(relay),
        settings: valid.settings.as_ref().map(|settings| settings::secret(relay, settings)),
        client_service: service::client(relay),
        workers_service: service::workers(relay),
        network_policy: network_policy::network_policy(relay, options),
        disruption_budget: disruption_budget::disruption_budget(relay),
        deployment: valid.template.clone().map(|template| deployment::deployment(relay, template)),
        autoscaler: autoscaler::autoscaler(relay),
    }
}

fn meta(relay: &ModelRelay, name: String) -> ObjectMeta {
    let labels = Part::Relay.labels(&relay.name_any());
    ObjectMeta { name: Some(name), labels: Some(labels), ..ObjectMeta::default() }
}

fn workload(relay: &ModelRelay) -> ObjectMeta {
    meta(relay, naming::relay::workload(&relay.name_any()))
}

fn pods(relay: &ModelRelay) -> LabelSelector {
    let labels = Part::Relay.selector(&relay.name_any());
    LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }
}
