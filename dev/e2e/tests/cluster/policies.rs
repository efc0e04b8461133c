//! What the NetworkPolicies let through, by their rules: the network plugin of these nodes enforces none.

use serde_json::{Value, json};

use crate::support::{Part, STUB_PORT, SYSTEM, Site, suite};

/// One end of a connection.
#[derive(Clone)]
enum End {
    Pod { namespace: String, object: Value },
    Outside,
}

/// The policies of the namespaces.
struct Policies(Vec<(String, Vec<Value>)>);

impl Policies {
    /// Whether a connection is let out of where it begins and into where it leads.
    fn pass(&self, from: &End, to: &End, port: u16) -> bool {
        self.let_through("Egress", from, to, port) && self.let_through("Ingress", to, from, port)
    }

    /// Whether the policies of `own` let a connection with `other` through.
    fn let_through(&self, direction: &str, own: &End, other: &End, port: u16) -> bool {
        let End::Pod { namespace, object } = own else { return true };
        let policies = self.0.iter().find(|(name, _)| name == namespace).map_or(&[][..], |(_, all)| all);
        let (rules, peers) = if direction == "Ingress" { ("ingress", "from") } else { ("egress", "to") };
        let bound: Vec<_> = policies
            .iter()
            .filter(|policy| {
                let kinds = policy["spec"]["policyTypes"].as_array().unwrap();
                kinds.contains(&direction.into()) && selects(&policy["spec"]["podSelector"], labels(object))
            })
            .collect();
        let rules_of = |policy: &Value| policy["spec"][rules].as_array().cloned().unwrap_or_default();
        let allows = |rule: &Value| {
            let is_peer = |peer: &Value| is_peer(peer, namespace, other);
            let ports = rule["ports"].as_array().map_or(&[][..], Vec::as_slice);
            (ports.is_empty() || ports.iter().any(|entry| number(&entry["port"], object) == u64::from(port)))
                && rule[peers].as_array().is_none_or(|all| all.iter().any(is_peer))
        };
        bound.is_empty() || bound.iter().any(|policy| rules_of(policy).iter().any(allows))
    }
}

fn labels(object: &Value) -> &Value {
    &object["metadata"]["labels"]
}

/// Returns the number of a port, which a rule for a pod's own ports may give by its name.
fn number(port: &Value, pod: &Value) -> u64 {
    port.as_u64().unwrap_or_else(|| {
        let containers = pod["spec"]["containers"].as_array().unwrap().iter();
        let mut ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
        let named = ports.find(|candidate| candidate["name"] == *port);
        named.unwrap_or_else(|| panic!("no port {port}"))["containerPort"].as_u64().unwrap()
    })
}

fn is_peer(peer: &Value, own_namespace: &str, other: &End) -> bool {
    let End::Pod { namespace, object } = other else { return false };
    assert!(peer.get("ipBlock").is_none(), "{peer}");
    let named = json!({ "kubernetes.io/metadata.name": namespace });
    let in_namespace = match peer.get("namespaceSelector") {
        Some(selector) => selects(selector, &named),
        None => namespace == own_namespace,
    };
    in_namespace && peer.get("podSelector").is_none_or(|selector| selects(selector, labels(object)))
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let exact = selector["matchLabels"].as_object();
    let listed = selector["matchExpressions"].as_array();
    exact.into_iter().flatten().all(|(key, value)| labels[key] == *value)
        && listed.into_iter().flatten().all(|wanted| {
            assert_eq!(wanted["operator"], "In");
            wanted["values"].as_array().unwrap().contains(&labels[wanted["key"].as_str().unwrap()])
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_let_through_what_is_needed_and_nothing_else() {
    let Some(suite) = suite().await else { return };
    let site = Site::new(&suite, "policies");
    let pools = ["one", "two"].map(|name| Site::stub_pool(name, name, 8));
    site.apply(&[Site::relay("main", &json!({ "replicas": 1 }))]);
    site.apply(&pools);
    for pool in ["one", "two"] {
        site.ready("workerpools", pool);
    }
    let policies = [site.name(), SYSTEM].map(|namespace| {
        let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies");
        (namespace.to_owned(), site.api().get(&path).unwrap()["items"].as_array().unwrap().clone())
    });
    assert_eq!(
        policies.each_ref().map(|(_, all)| all.len()),
        [5, 1],
        "a relay, two pools, two engines; the operator"
    );
    let policies = Policies(policies.to_vec());

    let pod =
        |part, name| End::Pod { namespace: site.name().to_owned(), object: site.pods(part, name).remove(0) };
    let (relay, worker, engine) =
        (pod(Part::Relay, "main"), pod(Part::Worker, "one"), pod(Part::Engine, "one"));
    let other_worker = pod(Part::Worker, "two");
    let query = "labelSelector=app.kubernetes.io/name=modelrelay-operator";
    let operators = site.api().get(&format!("/api/v1/namespaces/{SYSTEM}/pods?{query}")).unwrap();
    let operator = End::Pod { namespace: SYSTEM.to_owned(), object: operators["items"][0].clone() };
    let stranger = |namespace: &str| End::Pod {
        namespace: namespace.to_owned(),
        object: json!({ "metadata": { "labels": { "app": "anything" } } }),
    };
    let (neighbour, prometheus) = (stranger(site.name()), stranger("monitoring"));
    let (names, outside) = (stranger("kube-system"), End::Outside);
    for (what, from, to, port) in [
        ("clients anywhere ask the relay", &outside, &relay, 8080),
        ("clients in the cluster ask the relay", &prometheus, &relay, 8080),
        ("workers join the relay", &worker, &relay, 8080),
        ("a worker asks its engine", &worker, &engine, STUB_PORT),
        ("the operator asks relays", &operator, &relay, 8081),
        ("the operator asks workers", &operator, &worker, 8082),
        ("relays are scraped", &prometheus, &relay, 8081),
        ("workers are scraped", &prometheus, &worker, 8082),
        ("the operator is scraped", &prometheus, &operator, 8081),
        ("the operator writes", &operator, &outside, 6443),
        ("the operator resolves names", &operator, &names, 53),
        ("a worker asks an engine of its node", &worker, &outside, 8000),
    ] {
        assert!(policies.pass(from, to, port), "{what}");
    }
    for (what, from, to, port) in [
        ("operations of a relay from outside", &outside, &relay, 8081),
        ("operations of a worker from outside", &outside, &worker, 8082),
        ("operations of the operator from outside", &outside, &operator, 8081),
        ("an engine from outside", &outside, &engine, STUB_PORT),
        ("an engine from its neighbours", &neighbour, &engine, STUB_PORT),
        ("an engine from another pool's workers", &other_worker, &engine, STUB_PORT),
        ("an engine from the relay", &relay, &engine, STUB_PORT),
        ("an engine from the operator", &operator, &engine, STUB_PORT),
        ("another port of a relay", &prometheus, &relay, 9999),
        ("another port of a worker", &operator, &worker, 9999),
        ("another port of an engine", &worker, &engine, 9999),
        ("another port of the operator", &prometheus, &operator, 9999),
        ("the operator as a client", &operator, &relay, 8080),
        ("the operator and its neighbours", &operator, &stranger(SYSTEM), 8081),
        ("the operator and the world", &operator, &outside, 80),
    ] {
        assert!(!policies.pass(from, to, port), "{what}");
    }
}
