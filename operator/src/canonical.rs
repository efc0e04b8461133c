//! One form of all pod templates that mean the same: lists whose order tells nothing are sorted, and what the API server
//! would fill in itself is left out. It is hashed, to tell whether something changed, and never applied.

use serde_json::{Map, Value, json};

/// Lists of pods and containers whose order tells nothing.
const UNORDERED: [&str; 8] = [
    "containers",
    "imagePullSecrets",
    "ports",
    "tolerations",
    "topologySpreadConstraints",
    "volumeDevices",
    "volumeMounts",
    "volumes",
];
/// Maps whose keys are the user's.
const FREE: [&str; 6] = ["annotations", "labels", "limits", "matchLabels", "nodeSelector", "requests"];
/// The probes of a container.
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// Whether the order of a list in a pod tells nothing.
pub(crate) fn is_unordered(field: &str) -> bool {
    UNORDERED.contains(&field)
}

/// Returns the canonical form of a pod template, or of any part of one that stands under its own field name.
pub(crate) fn canonical(template: &Value) -> Value {
    let mut template = template.clone();
    tidy("", &mut template);
    template
}

fn tidy(field: &str, value: &mut Value) {
    match value {
        Value::Object(map) => {
            leave_out(field, map);
            for (field, value) in map.iter_mut().filter(|(field, _)| !FREE.contains(&field.as_str())) {
                tidy(field, value);
            }
            map.retain(|field, value| !value.is_null() && !says_nothing(field, value));
        }
        Value::Array(items) => {
            items.iter_mut().for_each(|item| tidy(field, item));
            if is_unordered(field) || field == "env" && !items.iter().any(refers) {
                items.sort_by_cached_key(Value::to_string);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Whether nothing is left of a template. Elsewhere an empty map may be a choice, such as `emptyDir: {}`.
fn says_nothing(field: &str, value: &Value) -> bool {
    match field {
        "template" | "spec" | "metadata" => value.as_object().is_some_and(Map::is_empty),
        "containers" => value.as_array().is_some_and(Vec::is_empty),
        _ => false,
    }
}

/// Whether a variable is made of variables that stand before it.
fn refers(variable: &Value) -> bool {
    variable["value"].as_str().is_some_and(|value| value.contains("$("))
}

/// Removes the defaults of `k8s.io/kubernetes/pkg/apis/core/v1/defaults.go` from what stands in `field`.
fn leave_out(field: &str, map: &mut Map<String, Value>) {
    for (key, default) in defaults(field, map) {
        if map.get(key) == Some(&default) {
            map.remove(key);
        }
    }
    if field == "resources" {
        // What is limited and not requested is requested up to its limit.
        let limits = map.get("limits").cloned().unwrap_or_default();
        if let Some(Value::Object(requests)) = map.get_mut("requests") {
            requests.retain(|name, amount| limits.get(name) != Some(amount));
            if requests.is_empty() {
                map.remove("requests");
            }
        }
    }
}

fn defaults(field: &str, map: &Map<String, Value>) -> Vec<(&'static str, Value)> {
    match field {
        "spec" => vec![
            ("dnsPolicy", json!("ClusterFirst")),
            ("enableServiceLinks", json!(true)),
            ("hostIPC", json!(false)),
            ("hostNetwork", json!(false)),
            ("hostPID", json!(false)),
            ("restartPolicy", json!("Always")),
            ("schedulerName", json!("default-scheduler")),
            ("securityContext", json!({})),
            ("terminationGracePeriodSeconds", json!(30)),
        ],
        "containers" | "initContainers" => vec![
            ("imagePullPolicy", json!(pull_policy(map))),
            ("terminationMessagePath", json!("/dev/termination-log")),
            ("terminationMessagePolicy", json!("File")),
            ("resources", json!({})),
        ],
        "ports" => vec![("protocol", json!("TCP"))],
        "httpGet" => vec![("scheme", json!("HTTP")), ("path", json!("/"))],
        "grpc" => vec![("service", json!(""))],
        "fieldRef" => vec![("apiVersion", json!("v1"))],
        "secret" | "configMap" | "projected" | "downwardAPI" => vec![("defaultMode", json!(0o644))],
        "hostPath" => vec![("type", json!(""))],
        _ if PROBES.contains(&field) => vec![
            ("timeoutSeconds", json!(1)),
            ("periodSeconds", json!(10)),
            ("successThreshold", json!(1)),
            ("failureThreshold", json!(3)),
        ],
        _ => Vec::new(),
    }
}

/// An image by digest or by a tag other than `latest` is pulled once.
fn pull_policy(container: &Map<String, Value>) -> &'static str {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once(':') {
        _ if image.contains('@') => "IfNotPresent",
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(yaml: &str) -> Value {
        canonical(&serde_yaml::from_str(yaml).unwrap())
    }

    #[test]
    fn order_counts_only_where_it_means_something() {
        let pod = |containers: &str, volumes: &str, init: &str| {
            of(&format!(
                "{{ spec: {{ containers: {containers}, volumes: {volumes}, initContainers: {init} }} }}"
            ))
        };
        let before =
            pod("[{ name: a }, { name: b }]", "[{ name: v }, { name: w }]", "[{ name: i }, { name: j }]");
        assert_eq!(
            pod("[{ name: b }, { name: a }]", "[{ name: w }, { name: v }]", "[{ name: i }, { name: j }]"),
            before
        );
        assert_ne!(
            pod("[{ name: a }, { name: b }]", "[{ name: v }, { name: w }]", "[{ name: j }, { name: i }]"),
            before
        );
        let args = |list: &str| of(&format!("{{ containers: [{{ args: {list} }}] }}"));
        assert_ne!(args("[a, b]"), args("[b, a]"));
        let env = |list: &str| of(&format!("{{ containers: [{{ env: {list} }}] }}"));
        assert_eq!(
            env("[{ name: A, value: x }, { name: B, value: y }]"),
            env("[{ name: B, value: y }, { name: A, value: x }]")
        );
        assert_ne!(
            env("[{ name: A, value: x }, { name: B, value: '$(A)' }]"),
            env("[{ name: B, value: '$(A)' }, { name: A, value: x }]")
        );
    }

    #[test]
    fn what_the_api_server_fills_in_says_nothing() {
        let short = "
            spec:
              containers:
                - image: registry:5000/vllm/vllm-openai:v0.11.0
                  ports: [{ containerPort: 8000 }]
                  env: [{ name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }]
                  readinessProbe: { httpGet: { port: 8000 } }
                  resources: { limits: { nvidia.com/gpu: 1, memory: 8Gi }, requests: { memory: 4Gi } }
              volumes: [{ name: v, secret: { secretName: s } }]
        ";
        let long = "
            spec:
              restartPolicy: Always
              dnsPolicy: ClusterFirst
              containers:
                - image: registry:5000/vllm/vllm-openai:v0.11.0
                  imagePullPolicy: IfNotPresent
                  terminationMessagePath: /dev/termination-log
                  ports: [{ containerPort: 8000, protocol: TCP }]
                  env: [{ name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP, apiVersion: v1 } } }]
                  readinessProbe: { httpGet: { port: 8000, scheme: HTTP, path: / }, periodSeconds: 10, failureThreshold: 3 }
                  resources: { limits: { nvidia.com/gpu: 1, memory: 8Gi }, requests: { memory: 4Gi, nvidia.com/gpu: 1 } }
              volumes: [{ name: v, secret: { secretName: s, defaultMode: 420 } }]
        ";
        assert_eq!(of(short), of(long));
        for (text, other) in [
            ("periodSeconds: 10", "periodSeconds: 5"),
            ("protocol: TCP", "protocol: UDP"),
            ("IfNotPresent", "Always"),
            ("requests: { memory: 4Gi,", "requests: { memory: 8Gi,"),
        ] {
            assert_ne!(of(short), of(&long.replace(text, other)), "{other}");
        }
    }

    #[test]
    fn a_label_that_is_called_like_a_field_with_a_default_counts() {
        let selector = |labels: &str| of(&format!("{{ spec: {{ nodeSelector: {labels} }} }}"));
        assert_ne!(selector("{ protocol: TCP }"), selector("{}"));
    }

    #[test]
    fn the_tag_decides_how_an_image_is_pulled() {
        for (image, policy) in [
            ("vllm", "Always"),
            ("registry:5000/vllm", "Always"),
            ("registry:5000/vllm:latest", "Always"),
            ("vllm:v1", "IfNotPresent"),
            ("vllm@sha256:00", "IfNotPresent"),
        ] {
            let with = |policy: &str| of(&format!("{{ containers: [{{ image: '{image}'{policy} }}] }}"));
            assert_eq!(with(""), with(&format!(", imagePullPolicy: {policy}")), "{image}");
        }
    }
}
