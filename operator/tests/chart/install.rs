//! `deploy/install.yaml`: everything, for those who do not use Helm.

use modelrelay_operator::api::schema;
use serde_json::json;

use crate::{assert_generated, helm};

const HEAD: &str = "\
# ModelRelay for Kubernetes: both CRDs and the operator in namespace modelrelay-system, as the charts render them.
#
#   kubectl apply --filename deploy/install.yaml
#
# The images are named without a registry: load them into the nodes, or put yours in front of `modelrelay-`.
";

#[test]
fn the_plain_manifests_are_what_the_charts_render() {
    let Some(operator) = helm::template("modelrelay", &[]) else { return };
    // What Kubernetes itself asks of pods in namespaces like this, and the operator's satisfy.
    let namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": "modelrelay-system", "labels": { "pod-security.kubernetes.io/enforce": "restricted" } },
    });
    let mut text = String::from(HEAD);
    text.push_str(&schema::to_yaml(&namespace));
    text.push_str("---\n");
    text.push_str(&schema::crds_yaml());
    for manifest in operator {
        text.push_str("---\n");
        text.push_str(&schema::to_yaml(&manifest));
    }
    assert_generated("deploy/install.yaml", &text);
}
