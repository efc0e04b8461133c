//! What the operator may do: exactly what it does. The chart's roles are generated from this list.

use k8s_openapi::api::rbac::v1::PolicyRule;

const CORE: &str = "";
const READ: &[&str] = &["get", "list", "watch"];
/// Server-side apply creates and patches; what is no longer wanted is deleted.
const OWN: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// What it does in each namespace that it works in.
pub fn in_namespaces() -> Vec<PolicyRule> {
    let ours = super::api::GROUP;
    vec![
        rule(ours, &["modelrelays", "workerpools"], READ),
        rule(ours, &["modelrelays/status", "workerpools/status"], &["get", "patch", "update"]),
        // Clusters that enforce permissions on owner references ask for it of whoever makes a child that blocks the deletion of
        // its owner.
        rule(ours, &["modelrelays/finalizers", "workerpools/finalizers"], &["update"]),
        rule("apps", &["daemonsets", "deployments"], OWN),
        // A pod names its ReplicaSet, and only that names the Deployment.
        rule("apps", &["replicasets"], &["get"]),
        rule("autoscaling", &["horizontalpodautoscalers"], OWN),
        rule("networking.k8s.io", &["networkpolicies"], OWN),
        rule("policy", &["poddisruptionbudgets"], OWN),
        rule(CORE, &["secrets", "serviceaccounts", "services"], OWN),
        // Workloads make pods; the operator tells them to read their settings, and replaces engines one by one.
        rule(CORE, &["pods"], &["get", "list", "watch", "patch", "delete"]),
        // Written for users; read where a DaemonSet lacks pods, since only events say why.
        rule("events.k8s.io", &["events"], &["create", "patch", "list"]),
    ]
}

/// What it does besides when it works in all namespaces: read their labels, for relays that let pools of some connect.
pub fn in_cluster() -> Vec<PolicyRule> {
    vec![rule(CORE, &["namespaces"], READ)]
}

/// What it does in its own namespace: choose by a Lease which replica acts.
pub fn at_home() -> Vec<PolicyRule> {
    vec![rule("coordination.k8s.io", &["leases"], &["get", "list", "watch", "create", "update", "patch"])]
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    PolicyRule {
        api_groups: Some(owned(&[group])),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_a_wildcard_and_nobody_is_given_rights() {
        for rule in in_namespaces().into_iter().chain(in_cluster()).chain(at_home()) {
            let resources = rule.resources.unwrap();
            let words: Vec<_> = resources.iter().chain(&rule.verbs).collect();
            assert!(words.iter().all(|word| *word != "*"), "{words:?}");
            assert!(!words.iter().any(|word| word.contains("role")), "{words:?}");
            assert!(!words.iter().any(|word| ["escalate", "bind", "impersonate"].contains(&word.as_str())));
        }
    }
}
