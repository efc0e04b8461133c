//! A user's pod template over a generated one.
//!
//! Maps are merged by key and lists by the key that Kubernetes merges them by; `args`, `command`, `tolerations` and
//! `nodeSelector` are replaced whole, and so is a member of a union when the user sets another one. What the operator relies
//! on stays as it is.

use std::collections::BTreeSet;

use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::core::v1::{
    Container, EnvVarSource, LifecycleHandler, PodSpec, PodTemplateSpec, Probe, Volume,
};
use serde::Serialize;
use serde_json::Value;

/// A template sets something that the operator relies on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is set by the operator and cannot be overridden; remove it there")]
pub struct ProtectedField {
    /// Its path from the spec on, such as `podTemplate.spec.restartPolicy`.
    pub field: String,
}

/// Puts `overlay`, which stands in the spec's field `at`, over a generated template, whose first container is the one that
/// the operator relies on.
///
/// # Errors
/// The overlay changes a generated label or volume, the grace period, the restart policy, or the first container's image,
/// ports, command line or mounts. Repeating what is generated changes nothing.
pub fn merged(
    generated: PodTemplateSpec,
    overlay: Option<&PodTemplateSpec>,
    at: &str,
) -> Result<PodTemplateSpec, ProtectedField> {
    let Some(overlay) = overlay else { return Ok(generated) };
    let mut merged = generated.clone();
    if let (Some(current), Some(overlay)) = (&mut merged.spec, &overlay.spec) {
        make_room(current, overlay);
    }
    merged.merge_from(overlay.clone());
    match changed(&generated, &merged) {
        Some(field) => Err(ProtectedField { field: format!("{at}.{field}") }),
        None => Ok(merged),
    }
}

/// Removes members of unions for which the overlay sets another one.
fn make_room(current: &mut PodSpec, overlay: &PodSpec) {
    each_pair(&mut current.containers, &overlay.containers, |one| &one.name, make_room_in_container);
    let (current_init, init) = (current.init_containers.as_deref_mut(), overlay.init_containers.as_deref());
    if let (Some(current), Some(overlay)) = (current_init, init) {
        each_pair(current, overlay, |one| &one.name, make_room_in_container);
    }
    if let (Some(current), Some(overlay)) = (current.volumes.as_deref_mut(), overlay.volumes.as_deref()) {
        each_pair(
            current,
            overlay,
            |one| &one.name,
            |current, overlay| {
                // Every other field of a volume is a source.
                if switches(current, overlay, |field| field != "name") {
                    *current = Volume { name: current.name.clone(), ..Volume::default() };
                }
            },
        );
    }
}

fn make_room_in_container(current: &mut Container, overlay: &Container) {
    if let (Some(current), Some(overlay)) = (current.env.as_deref_mut(), overlay.env.as_deref()) {
        each_pair(
            current,
            overlay,
            |one| &one.name,
            |current, overlay| {
                if switches(current, overlay, |field| field != "name") {
                    (current.value, current.value_from) = (None, None);
                } else if let (Some(current), Some(overlay)) = (&mut current.value_from, &overlay.value_from)
                    && switches(current, overlay, |_| true)
                {
                    *current = EnvVarSource::default();
                }
            },
        );
    }
    for (current, overlay) in [
        (&mut current.liveness_probe, &overlay.liveness_probe),
        (&mut current.readiness_probe, &overlay.readiness_probe),
        (&mut current.startup_probe, &overlay.startup_probe),
    ] {
        if let (Some(current), Some(overlay)) = (current, overlay)
            && switches(current, overlay, |field| ["exec", "grpc", "httpGet", "tcpSocket"].contains(&field))
        {
            let timing = std::mem::take(current);
            *current = Probe { exec: None, grpc: None, http_get: None, tcp_socket: None, ..timing };
        }
    }
    if let (Some(current), Some(overlay)) = (&mut current.lifecycle, &overlay.lifecycle) {
        for (current, overlay) in
            [(&mut current.post_start, &overlay.post_start), (&mut current.pre_stop, &overlay.pre_stop)]
        {
            if let (Some(current), Some(overlay)) = (current, overlay)
                && switches(current, overlay, |_| true)
            {
                *current = LifecycleHandler::default();
            }
        }
    }
}

fn each_pair<T>(current: &mut [T], overlay: &[T], name: impl Fn(&T) -> &String, act: impl Fn(&mut T, &T)) {
    for one in current {
        if let Some(other) = overlay.iter().find(|other| name(other) == name(one)) {
            act(one, other);
        }
    }
}

/// Whether the overlay sets members of a union, and others than are set now.
fn switches<T: Serialize>(current: &T, overlay: &T, is_member: impl Fn(&str) -> bool) -> bool {
    let set = |value: &T| -> BTreeSet<String> {
        match serde_json::to_value(value).expect("a Kubernetes object is JSON") {
            Value::Object(map) => map.into_iter().map(|(field, _)| field).filter(|f| is_member(f)).collect(),
            _ => BTreeSet::new(),
        }
    };
    let wanted = set(overlay);
    !wanted.is_empty() && wanted != set(current)
}

/// Returns the first protected field that is not as it was generated.
fn changed(generated: &PodTemplateSpec, merged: &PodTemplateSpec) -> Option<String> {
    let labels = |template: &PodTemplateSpec| {
        template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap_or_default()
    };
    let now = labels(merged);
    if let Some((key, _)) = labels(generated).iter().find(|(key, value)| now.get(*key) != Some(value)) {
        return Some(format!("metadata.labels[{key}]"));
    }
    let (generated, merged) = (generated.spec.as_ref()?, merged.spec.as_ref()?);
    if merged.termination_grace_period_seconds != generated.termination_grace_period_seconds {
        return Some("spec.terminationGracePeriodSeconds".to_owned());
    }
    if merged.restart_policy != generated.restart_policy {
        return Some("spec.restartPolicy".to_owned());
    }
    let is_kept = |volume: &&Volume| !merged.volumes.iter().flatten().any(|one| one == *volume);
    if let Some(volume) = generated.volumes.iter().flatten().find(is_kept) {
        return Some(format!("spec.volumes[{}]", volume.name));
    }
    let own = generated.containers.first()?;
    let now = merged.containers.iter().find(|one| one.name == own.name)?;
    changed_in_container(own, now).map(|field| format!("spec.containers[{}].{field}", own.name))
}

fn changed_in_container(generated: &Container, merged: &Container) -> Option<String> {
    if merged.image != generated.image {
        return Some("image".to_owned());
    }
    if merged.ports != generated.ports {
        return Some("ports".to_owned());
    }
    if merged.command != generated.command {
        return Some("command".to_owned());
    }
    if merged.args != generated.args {
        return Some("args".to_owned());
    }
    let own: Vec<_> = generated.volume_mounts.iter().flatten().collect();
    let hides = |mount: &str, path: &str| {
        let rest = mount.strip_prefix(path.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    merged
        .volume_mounts
        .iter()
        .flatten()
        .filter(|mount| !own.contains(mount))
        .find(|mount| own.iter().any(|own| hides(&mount.mount_path, &own.mount_path)))
        .map(|mount| format!("volumeMounts[{}]", mount.mount_path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(yaml: &str) -> PodTemplateSpec {
        serde_yaml::from_str(yaml).unwrap()
    }

    fn generated() -> PodTemplateSpec {
        template(
            r#"
metadata: { labels: { app.kubernetes.io/name: modelrelay-relay } }
spec:
  terminationGracePeriodSeconds: 315
  nodeSelector: { gpu: "true" }
  tolerations: [{ key: nvidia.com/gpu, operator: Exists }]
  containers:
    - name: relay
      image: relay:1
      args: [--config, /etc/modelrelay/relay.yaml]
      ports: [{ name: http, containerPort: 8080 }]
      env: [{ name: A, value: one }, { name: B, valueFrom: { fieldRef: { fieldPath: status.podIP } } }]
      readinessProbe: { httpGet: { path: /readyz, port: 8081 }, periodSeconds: 5 }
      lifecycle: { preStop: { exec: { command: [stop] } } }
      resources: { requests: { cpu: 250m, memory: 128Mi } }
      volumeMounts: [{ name: settings, mountPath: /etc/modelrelay, readOnly: true }]
  volumes: [{ name: settings, secret: { secretName: main-relay-settings } }]
"#,
        )
    }

    fn with(overlay: &str) -> Result<PodTemplateSpec, String> {
        merged(generated(), Some(&template(overlay)), "podTemplate").map_err(|error| error.field)
    }

    fn relay(template: &PodTemplateSpec) -> &Container {
        &template.spec.as_ref().unwrap().containers[0]
    }

    #[test]
    fn without_an_overlay_or_with_an_empty_one_the_generated_template_stays() {
        assert_eq!(merged(generated(), None, "podTemplate"), Ok(generated()));
        assert_eq!(with("{}"), Ok(generated()));
        assert_eq!(with("{ spec: {} }"), Ok(generated()));
    }

    #[test]
    fn labels_resources_volumes_and_sidecars_are_added() {
        let merged = with(
            r#"
metadata: { labels: { team: a }, annotations: { scrape: "yes" } }
spec:
  affinity: { nodeAffinity: {} }
  containers:
    - { name: relay, resources: { requests: { cpu: "1" } }, env: [{ name: C, value: three }], volumeMounts: [{ name: ca, mountPath: /etc/ssl }] }
    - { name: proxy, image: proxy:1 }
  volumes: [{ name: ca, configMap: { name: ca } }]
"#,
        )
        .unwrap();
        let metadata = merged.metadata.as_ref().unwrap();
        assert_eq!(metadata.labels.as_ref().unwrap().len(), 2);
        assert_eq!(metadata.annotations.as_ref().unwrap()["scrape"], "yes");
        let spec = merged.spec.as_ref().unwrap();
        let names: Vec<_> = spec.containers.iter().map(|container| container.name.as_str()).collect();
        assert_eq!(names, ["relay", "proxy"]);
        assert_eq!(spec.volumes.as_ref().unwrap().len(), 2);
        let requests = relay(&merged).resources.as_ref().unwrap().requests.as_ref().unwrap();
        assert_eq!((requests["cpu"].0.as_str(), requests["memory"].0.as_str()), ("1", "128Mi"));
        assert_eq!(relay(&merged).env.as_ref().unwrap().len(), 3);
        assert_eq!(relay(&merged).volume_mounts.as_ref().unwrap().len(), 2);
    }

    #[test]
    fn node_selectors_and_tolerations_are_replaced_whole() {
        let merged = with("{ spec: { nodeSelector: { zone: a }, tolerations: [] } }").unwrap();
        let spec = merged.spec.unwrap();
        assert_eq!(spec.node_selector.unwrap(), [("zone".to_owned(), "a".to_owned())].into());
        assert_eq!(spec.tolerations.unwrap(), []);
    }

    #[test]
    fn a_member_of_a_union_replaces_the_other_one() {
        let merged = with(
            r#"
spec:
  containers:
    - name: relay
      env: [{ name: A, valueFrom: { secretKeyRef: { name: s, key: k } } }, { name: B, valueFrom: { resourceFieldRef: { resource: limits.cpu } } }]
      readinessProbe: { tcpSocket: { port: 8080 } }
      lifecycle: { preStop: { sleep: { seconds: 5 } } }
"#,
        )
        .unwrap();
        let container = relay(&merged);
        let env = container.env.as_ref().unwrap();
        assert!(env[0].value.is_none() && env[0].value_from.is_some());
        let source = env[1].value_from.as_ref().unwrap();
        assert!(source.field_ref.is_none() && source.resource_field_ref.is_some());
        let probe = container.readiness_probe.as_ref().unwrap();
        assert!(probe.http_get.is_none() && probe.tcp_socket.is_some());
        assert_eq!(probe.period_seconds, Some(5));
        let stop = container.lifecycle.as_ref().unwrap().pre_stop.as_ref().unwrap();
        assert!(stop.exec.is_none() && stop.sleep.is_some());
    }

    #[test]
    fn a_member_that_is_set_already_is_merged() {
        let overlay = "{ spec: { containers: [{ name: relay, readinessProbe: { httpGet: { path: /livez, port: 8081 } } }] } }";
        let merged = with(overlay).unwrap();
        let probe = relay(&merged).readiness_probe.as_ref().unwrap();
        assert_eq!(probe.http_get.as_ref().unwrap().path.as_deref(), Some("/livez"));
        assert_eq!(probe.period_seconds, Some(5));
    }

    #[test]
    fn another_source_replaces_that_of_a_volume() {
        let mut current = template("{ spec: { volumes: [{ name: cache, emptyDir: {} }], containers: [] } }");
        let overlay = template("{ spec: { volumes: [{ name: cache, hostPath: { path: /models } }] } }");
        make_room(current.spec.as_mut().unwrap(), overlay.spec.as_ref().unwrap());
        current.merge_from(overlay);
        let volume = &current.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
        assert!(volume.empty_dir.is_none() && volume.host_path.is_some());
    }

    #[test]
    fn what_the_operator_relies_on_is_refused_by_name() {
        for (overlay, field) in [
            (
                "{ metadata: { labels: { app.kubernetes.io/name: x } } }",
                "metadata.labels[app.kubernetes.io/name]",
            ),
            ("{ spec: { terminationGracePeriodSeconds: 1 } }", "spec.terminationGracePeriodSeconds"),
            ("{ spec: { restartPolicy: Never } }", "spec.restartPolicy"),
            ("{ spec: { volumes: [{ name: settings, emptyDir: {} }] } }", "spec.volumes[settings]"),
            (
                "{ spec: { volumes: [{ name: settings, secret: { optional: true } }] } }",
                "spec.volumes[settings]",
            ),
            ("{ spec: { containers: [{ name: relay, image: other }] } }", "spec.containers[relay].image"),
            (
                "{ spec: { containers: [{ name: relay, ports: [{ containerPort: 9 }] }] } }",
                "spec.containers[relay].ports",
            ),
            ("{ spec: { containers: [{ name: relay, command: [sh] }] } }", "spec.containers[relay].command"),
            ("{ spec: { containers: [{ name: relay, args: [] }] } }", "spec.containers[relay].args"),
            (
                "{ spec: { containers: [{ name: relay, volumeMounts: [{ name: x, mountPath: /etc/modelrelay }] }] } }",
                "spec.containers[relay].volumeMounts[/etc/modelrelay]",
            ),
            (
                "{ spec: { containers: [{ name: relay, volumeMounts: [{ name: x, mountPath: /etc/modelrelay/relay.yaml }] }] } }",
                "spec.containers[relay].volumeMounts[/etc/modelrelay/relay.yaml]",
            ),
        ] {
            assert_eq!(with(overlay), Err(format!("podTemplate.{field}")), "{overlay}");
        }
    }

    #[test]
    fn repeating_what_is_generated_is_no_mistake() {
        let overlay =
            "{ spec: { terminationGracePeriodSeconds: 315, containers: [{ name: relay, image: relay:1 }] } }";
        assert_eq!(with(overlay), Ok(generated()));
    }
}
