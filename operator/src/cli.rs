//! The command line: flags and environment variables.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};

use crate::cache::Scope;
use crate::options::Options;

/// Keeps relays and workers on Kubernetes as ModelRelay and WorkerPool objects say.
#[derive(Debug, Parser)]
#[command(name = "modelrelay-operator", version)]
pub struct Cli {
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What can be done instead of running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the CustomResourceDefinitions as YAML.
    Crd,
    /// Ask an address until it answers with success.
    Check {
        /// The address, such as `http://modelrelay-operator.modelrelay-system.svc:8081/readyz`.
        url: http::Uri,
        /// Seconds until it has to have answered.
        #[arg(long, default_value_t = 60)]
        timeout_seconds: u64,
    },
}

/// Flags of the operator itself.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Namespaces to work in, separated by commas; all of them when absent.
    #[arg(long, env = "NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Image of relays whose spec names none.
    #[arg(long, env = "RELAY_IMAGE", default_value = concat!("modelrelay-relay:", env!("CARGO_PKG_VERSION")))]
    pub relay_image: String,
    /// Image of workers whose spec names none.
    #[arg(long, env = "WORKER_IMAGE", default_value = concat!("modelrelay-worker:", env!("CARGO_PKG_VERSION")))]
    pub worker_image: String,
    /// Secret with which nodes pull these images; may be given several times.
    #[arg(long = "image-pull-secret", env = "IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
    /// Address of the operations port: /livez, /readyz and /metrics.
    #[arg(long, env = "OPS_LISTEN_ADDR", default_value = "0.0.0.0:8081")]
    pub ops_listen: SocketAddr,
    /// Namespace of the Lease by which replicas choose who acts; POD_NAMESPACE goes before it.
    #[arg(long, default_value = "default")]
    pub lease_namespace: String,
    /// Name of that Lease.
    #[arg(long, default_value = "modelrelay-operator")]
    pub lease_name: String,
    /// Name of the own pod.
    #[arg(long, env = "POD_NAME", hide = true)]
    pub pod_name: Option<String>,
    /// Namespace of the own pod.
    #[arg(long, env = "POD_NAMESPACE", hide = true)]
    pub pod_namespace: Option<String>,
}

impl RunArgs {
    /// The namespace of the own pod, else of the Lease.
    pub fn own_namespace(&self) -> String {
        let own = self.pod_namespace.as_ref().filter(|namespace| !namespace.is_empty());
        own.unwrap_or(&self.lease_namespace).clone()
    }

    /// What reconcilers need to know of it.
    pub fn options(&self) -> Options {
        let mut namespaces: Vec<String> = self
            .namespaces
            .iter()
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        namespaces.sort();
        namespaces.dedup();
        Options {
            scope: if namespaces.is_empty() { Scope::Cluster } else { Scope::Namespaces(namespaces) },
            pod_name: self.pod_name.clone(),
            namespace: self.own_namespace(),
            relay_image: self.relay_image.clone(),
            worker_image: self.worker_image.clone(),
            image_pull_secrets: self.image_pull_secrets.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_lease_is_where_the_pod_is_else_where_it_is_said_else_in_the_default_namespace() {
        let home = |arguments: &[&str]| {
            let all = ["modelrelay-operator"].iter().chain(arguments);
            Cli::try_parse_from(all).unwrap().run.own_namespace()
        };
        assert_eq!(home(&[]), "default");
        assert_eq!(home(&["--lease-namespace", "a"]), "a");
        assert_eq!(home(&["--lease-namespace", "a", "--pod-namespace", "b"]), "b");
        assert_eq!(home(&["--lease-namespace", "a", "--pod-namespace", ""]), "a");
    }

    #[test]
    fn namespaces_are_told_apart_by_commas_and_none_means_all() {
        let options = |arguments: &[&str]| {
            let all = ["modelrelay-operator"].iter().chain(arguments);
            Cli::try_parse_from(all).unwrap().run.options().scope
        };
        assert_eq!(options(&[]), Scope::Cluster);
        let two = Scope::Namespaces(vec![String::from("a"), String::from("b")]);
        assert_eq!(options(&["--namespaces", "b, a,b"]), two);
    }
}
