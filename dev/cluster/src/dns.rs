//! The cluster's name server: CoreDNS in the hub, so that no node's loss takes it along.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::control_plane::ControlPlane;
use crate::daemon::Daemon;
use crate::kubeconfig::{self, Credential};
use crate::network::Network;
use crate::pki::Subject;

const LIMIT: Duration = Duration::from_secs(60);
const USER: &str = "system:coredns";

/// Starts it, and gives it the Service that pods ask.
pub(crate) fn start(plane: &ControlPlane, network: &Network) -> Result<Daemon> {
    let hub = network.plan.hub();
    allow(plane)?;
    serve(plane, hub, network.plan.dns_service())?;
    let folder = plane.guarded();
    let identity = plane.issue("coredns", &Subject { user: USER, ..Subject::default() })?;
    let kubeconfig = folder.path().join("coredns.kubeconfig");
    let credential = Credential::Certificate(&identity);
    kubeconfig::write(&kubeconfig, &plane.url(), &plane.authority().certificate, credential)?;
    fs::write(folder.path().join("Corefile"), settings(hub, &kubeconfig.display().to_string()))
        .context("write the name server's settings")?;
    let mut command = folder.command_in(network.hub.door(), &plane.beside_kube("coredns"));
    command.args(["-conf", "Corefile"]);
    let mut daemon = Daemon::start("coredns", &mut command, &folder.path().join("log"))?;
    let agent = ureq::Agent::new_with_config(ureq::config::Config::builder().proxy(None).build());
    let ready = format!("http://{hub}:8181/ready");
    daemon.wait_ready(LIMIT, || agent.get(&ready).call().ok().map(drop))?;
    Ok(daemon)
}

fn settings(hub: Ipv4Addr, kubeconfig: &str) -> String {
    format!(
        ".:53 {{\n    errors\n    ready {hub}:8181\n    cache 2\n    kubernetes cluster.local {{\n        \
         kubeconfig {kubeconfig}\n        ttl 1\n    }}\n}}\n"
    )
}

fn allow(plane: &ControlPlane) -> Result<()> {
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": { "name": USER },
        "rules": [
            { "apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"] },
            { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
        ],
    });
    plane.api().create(&format!("{roles}/clusterroles"), &role)?;
    plane.bind_user(USER, USER)
}

fn serve(plane: &ControlPlane, hub: Ipv4Addr, service: Ipv4Addr) -> Result<()> {
    let ports = json!([
        { "name": "dns", "port": 53, "protocol": "UDP" },
        { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
    ]);
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "kube-dns", "namespace": "kube-system" },
        "spec": { "clusterIP": service, "ports": ports },
    });
    plane.api().create("/api/v1/namespaces/kube-system/services", &object)?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": { "kubernetes.io/service-name": "kube-dns" },
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{ "addresses": [hub], "conditions": { "ready": true } }],
    });
    plane.api().create("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", &slice)?;
    Ok(())
}
