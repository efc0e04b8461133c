//! Rules that the API server checks by CEL: what a field may hold, and which fields go together.
//!
//! They stand here and not in patterns of the schema, because a rule has a message that says what would be right.

use serde_json::{Value, json};

/// A rule at one place of a schema.
struct Rule {
    /// The place: property names from the root, `[]` for the items of a list.
    at: &'static str,
    /// The expression that has to hold.
    rule: &'static str,
    /// What would be right.
    message: &'static str,
    /// The field below the place that the refusal names, where it is not the place itself.
    field: Option<&'static str>,
    /// How the refusal is classed.
    reason: Reason,
}

#[derive(Clone, Copy)]
enum Reason {
    Invalid,
    Forbidden,
    Required,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "FieldValueInvalid",
            Self::Forbidden => "FieldValueForbidden",
            Self::Required => "FieldValueRequired",
        }
    }
}

const fn value(at: &'static str, rule: &'static str, message: &'static str) -> Rule {
    Rule { at, rule, message, field: None, reason: Reason::Invalid }
}

const fn forbidden(at: &'static str, field: &'static str, rule: &'static str, message: &'static str) -> Rule {
    Rule { at, rule, message, field: Some(field), reason: Reason::Forbidden }
}

/// A name that settings files take: no outer blanks, no control characters, at most 256 bytes. The pattern is short, because
/// a rule's cost is reckoned by the length of its patterns, and there may be 16,384 targets.
const MODEL_NAME: &str = r"self != '' && !self.matches('^\\pZ|\\pZ$|\\p{Cc}') && size(bytes(self)) <= 256";
const MODEL_NAME_MESSAGE: &str =
    "must be a model's name: 1 to 256 bytes, without control characters and without blanks at its ends";

const DNS_LABEL: &str = "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')";

const OBJECT_NAME: Rule = Rule {
    at: "",
    rule: "size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    message: "metadata.name must begin with a letter, hold only a-z, 0-9 and \"-\", not end with \"-\", and be at most 40 \
              characters long, because names of Services and pods are made from it",
    field: None,
    reason: Reason::Invalid,
};

const IMAGE: [(&str, &str, &str); 3] = [
    (
        "repository",
        "self.matches('^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$') && !self.matches(':[^/]*$')",
        "must be registry and name without tag or digest, such as registry.example.com/team/modelrelay-relay; tag and digest \
         are fields of their own",
    ),
    (
        "tag",
        "self.matches('^[A-Za-z0-9_][A-Za-z0-9_.-]*$')",
        "must be an image tag: letters, digits, \"_\", \".\" and \"-\", such as 1.2.3",
    ),
    (
        "digest",
        "self.matches('^sha256:[0-9a-f]{64}$')",
        "must be \"sha256:\" and 64 hexadecimal digits in lower case",
    ),
];

const BYTES: &str = "type(self) == int ? self >= 1 && self <= 1099511627776 : \
                     self.matches('^[1-9][0-9]{0,15}(k|M|G|T|Ki|Mi|Gi|Ti)?$') && quantity(self).compareTo(quantity('1Ti')) <= 0";
const BYTES_MESSAGE: &str =
    "must be a number of bytes from 1 to 1Ti, plain or with one of k, M, G, T, Ki, Mi, Gi, Ti, such as 64Mi";

const MODEL_RELAY: &[Rule] = &[
    OBJECT_NAME,
    forbidden(
        "spec",
        ".replicas",
        "!(has(self.replicas) && has(self.scaling))",
        "replicas is the autoscaler's as long as scaling is set: set minReplicas and maxReplicas in scaling and remove replicas, \
         or remove scaling",
    ),
    value(
        "spec.scaling",
        "self.minReplicas <= self.maxReplicas",
        "maxReplicas must be at least minReplicas (2 when absent)",
    ),
    forbidden(
        "spec.service",
        ".nodePort",
        "!has(self.nodePort) || self.type in ['NodePort', 'LoadBalancer']",
        "nodePort needs type NodePort or LoadBalancer: set service.type or remove nodePort",
    ),
    value(
        "spec.service.annotations",
        "self.all(key, size(key) >= 1 && size(key) <= 317)",
        "a key must have 1 to 317 characters, such as example.com/name",
    ),
    value(
        "spec.exposure.externalURL",
        r"self.matches('^https?://[A-Za-z0-9.:\\[\\]-]+(/[A-Za-z0-9._~/-]*)?$') && isURL(self) && url(self).getHostname() != ''",
        "must be an address with http or https and a host, without user, query or fragment, such as https://relay.example.com",
    ),
    value("spec.queue.maxBytes", BYTES, BYTES_MESSAGE),
    value("spec.limits.maxBodyBytes", BYTES, BYTES_MESSAGE),
    value(
        "spec",
        "quantity(has(self.limits) && has(self.limits.maxBodyBytes) ? string(self.limits.maxBodyBytes) : '64Mi')\
         .compareTo(quantity(has(self.queue) && has(self.queue.maxBytes) ? string(self.queue.maxBytes) : '256Mi')) <= 0",
        "limits.maxBodyBytes (64Mi when absent) must be at most queue.maxBytes (256Mi when absent): a request has to fit into the queue",
    ),
    value(
        "spec.priorities[].name",
        "self.matches('^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$')",
        "must begin and end with a letter or digit and hold only letters, digits, \".\", \"_\" and \"-\"",
    ),
    value(
        "spec.priorities",
        "self.all(one, self.exists_one(other, other.value == one.value))",
        "every priority needs a value of its own: two bands of one value would be one band",
    ),
    forbidden(
        "spec.routing",
        ".prefixHash",
        "!has(self.prefixHash) || self.strategy == 'PrefixHash'",
        "prefixHash needs strategy PrefixHash: set routing.strategy or remove prefixHash",
    ),
    value(
        "spec.routing.sessionAffinityHeader",
        r"self.matches('^[!#$%&\'*+.^_`|~0-9A-Za-z-]+$')",
        "must be the name of a header, such as x-session-id",
    ),
    value("spec.models[].name", MODEL_NAME, MODEL_NAME_MESSAGE),
    value("spec.models[].targets[].model", MODEL_NAME, MODEL_NAME_MESSAGE),
    value(
        "spec.models[].targets",
        "self.exists(target, target.weight > 0)",
        "at least one target needs a weight above 0",
    ),
    Rule {
        at: "spec.allowedWorkerPools.namespaces",
        rule: "self.from != 'Selector' || has(self.selector)",
        message: "from: Selector needs a selector: the labels of the namespaces ({} for all)",
        field: Some(".selector"),
        reason: Reason::Required,
    },
    forbidden(
        "spec.allowedWorkerPools.namespaces",
        ".selector",
        "self.from == 'Selector' || !has(self.selector)",
        "selector needs from: Selector: set from or remove selector",
    ),
    value(
        "spec.allowedWorkerPools.namespaces.selector.matchExpressions[]",
        "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
        "In and NotIn need values, Exists and DoesNotExist take none",
    ),
];

const WORKER_POOL: &[Rule] = &[
    OBJECT_NAME,
    value(
        "spec.type",
        "self == oldSelf",
        "type cannot change: create a pool of the other type under another name and delete this one",
    ),
    value(
        "spec.relayRef",
        "self == oldSelf",
        "relayRef cannot change: create a pool under another name for the other relay and delete this one",
    ),
    value(
        "spec.relayRef.name",
        "self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "must be the name of a ModelRelay: begin with a letter, hold only a-z, 0-9 and \"-\", not end with \"-\"",
    ),
    value(
        "spec.relayRef.namespace",
        DNS_LABEL,
        "must be the name of a namespace: only a-z, 0-9 and \"-\", no \"-\" at its ends; absent means the pool's own",
    ),
    value("spec.models[]", MODEL_NAME, MODEL_NAME_MESSAGE),
    value(
        "spec.labels",
        "self.all(key, size(key) >= 1 && size(key) <= 128)",
        "a key must have 1 to 128 characters",
    ),
    Rule {
        at: "spec",
        rule: "self.type != 'Managed' || has(self.backend)",
        message: "type Managed needs a backend: url (an engine that runs already), service (one behind a Service) or container \
                  (one that the operator runs); for workers that join from outside set type: External",
        field: Some(".backend"),
        reason: Reason::Required,
    },
    forbidden(
        "spec",
        ".backend",
        "self.type != 'External' || !has(self.backend)",
        "backend is for type Managed: a box outside brings its own; remove it",
    ),
    forbidden(
        "spec",
        ".health",
        "self.type != 'External' || !has(self.health)",
        "health is for type Managed: a box outside watches its own backend; remove it",
    ),
    forbidden(
        "spec",
        ".managed",
        "self.type != 'External' || !has(self.managed)",
        "managed is for type Managed: the operator does not run boxes outside; remove it",
    ),
    forbidden(
        "spec",
        ".external",
        "self.type != 'Managed' || !has(self.external)",
        "external is for type External: the workers of a Managed pool follow from its nodes; remove it",
    ),
    forbidden(
        "spec",
        ".managed.enginePodTemplate",
        "!has(self.managed) || !has(self.managed.enginePodTemplate) || (has(self.backend) && has(self.backend.container))",
        "enginePodTemplate needs backend.container: with url or service the operator runs no engine; remove it",
    ),
    value(
        "spec.backend",
        "[has(self.url), has(self.service), has(self.container)].filter(one, one).size() == 1",
        "exactly one of url (an engine that runs already), service (one behind a Service) and container (one that the operator \
         runs) must be set",
    ),
    value(
        "spec.backend.url",
        r"self.matches('^https?://[^\\s/?#@:][^\\s/?#@]*([/?#]\\S*)?$')",
        "must be an address with http or https and a host, without user and blanks, such as http://$(NODE_IP):8000",
    ),
    value(
        "spec.backend.url",
        "!self.replace('$(NODE_IP)', '').replace('$(NODE_NAME)', '').contains('$(')",
        "only $(NODE_IP) and $(NODE_NAME) can stand in an address: write anything else out",
    ),
    value(
        "spec.backend.service.name",
        DNS_LABEL,
        "must be the name of a Service in the pool's namespace: only a-z, 0-9 and \"-\", no \"-\" at its ends; for one elsewhere \
         use url",
    ),
    value(
        "spec.backend.container",
        "has(self.ports) && (size(self.ports) == 1 || self.ports.exists_one(port, has(port.name) && port.name == 'http'))",
        "the container needs exactly one port, or one that is named http: the worker asks the engine there",
    ),
    value(
        "spec.health.path",
        r"self.matches('^/\\S*$')",
        "must begin with \"/\" and hold no blanks, such as /health",
    ),
    value(
        "spec.managed.nodeSelector",
        "self.all(key, size(key) >= 1 && size(key) <= 317)",
        "a key must be a node label of 1 to 317 characters, such as nvidia.com/gpu.present",
    ),
    value(
        "spec.managed.nodeSelector{}",
        "self.matches('^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$')",
        "must be the value of a node label: letters, digits, \"_\", \".\" and \"-\", with a letter or digit at its ends",
    ),
];

/// Writes the rules of a ModelRelay into its schema.
pub(super) fn write_model_relay(schema: &mut Value) {
    write(schema, MODEL_RELAY, "spec.image");
}

/// Writes the rules of a WorkerPool into its schema.
pub(super) fn write_worker_pool(schema: &mut Value) {
    write(schema, WORKER_POOL, "spec.managed.image");
}

fn write(schema: &mut Value, rules: &[Rule], image: &str) {
    for rule in rules {
        write_one(schema, rule.at, rule.as_json());
    }
    for (field, rule, message) in IMAGE {
        write_one(schema, &format!("{image}.{field}"), value("", rule, message).as_json());
    }
}

impl Rule {
    fn as_json(&self) -> Value {
        let mut rule = json!({ "rule": self.rule, "message": self.message, "reason": self.reason.as_str() });
        if let Some(field) = self.field {
            rule["fieldPath"] = field.into();
        }
        rule
    }
}

fn write_one(schema: &mut Value, at: &str, rule: Value) {
    let place = schema.pointer_mut(&pointer(at)).expect("rules stand at fields that exist");
    match &mut place["x-kubernetes-validations"] {
        Value::Array(rules) => rules.push(rule),
        none => *none = json!([rule]),
    }
}

/// `a.b[].c{}` as the schema's own path.
fn pointer(at: &str) -> String {
    let mut path = String::new();
    for name in at.split('.').filter(|name| !name.is_empty()) {
        let list = name.strip_suffix("[]");
        let map = name.strip_suffix("{}");
        path.push_str("/properties/");
        path.push_str(list.or(map).unwrap_or(name));
        path.push_str(if list.is_some() { "/items" } else { "" });
        path.push_str(if map.is_some() { "/additionalProperties" } else { "" });
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_by_its_fields() {
        assert_eq!(pointer(""), "");
        assert_eq!(pointer("spec.models[].name"), "/properties/spec/properties/models/items/properties/name");
        assert_eq!(pointer("spec.labels{}"), "/properties/spec/properties/labels/additionalProperties");
    }
}
