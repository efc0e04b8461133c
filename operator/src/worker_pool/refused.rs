//! Why a DaemonSet's pods are not created. Events are not watched; they are read while pods are missing.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use crate::context::{CallError, Context};

/// Returns the last complaint about the creation of pods, unless a pod was created since.
///
/// # Errors
/// The API server failed, or lets nobody read events.
pub(super) async fn why(ctx: &Context, set: &DaemonSet) -> Result<Option<String>, CallError> {
    let namespace = set.namespace().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(ctx.client.clone(), &namespace);
    let about = format!("regarding.uid={}", set.uid().unwrap_or_default());
    let params = ListParams::default().fields(&about).limit(500);
    let events =
        ctx.call(format!("list events of DaemonSet \"{}\"", set.name_any()), api.list(&params)).await?;
    Ok(last_refusal(&events.items))
}

fn last_refusal(events: &[Event]) -> Option<String> {
    let newest = |reason: &str| {
        events.iter().filter(|event| event.reason.as_deref() == Some(reason)).max_by_key(|event| time(event))
    };
    let failed = newest("FailedCreate")?;
    let created = newest("SuccessfulCreate").and_then(time);
    (time(failed) > created).then(|| failed.note.clone().unwrap_or_default())
}

fn time(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().map(|series| series.last_observed_time.0);
    let last = event.deprecated_last_timestamp.as_ref().map(|at| at.0);
    let made = event.event_time.as_ref().map(|at| at.0);
    series.max(last).max(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_until_a_pod_is_created() {
        let event = |reason: &str, minute: u8| -> Event {
            serde_yaml::from_str(&format!(
                "{{ metadata: {{}}, reason: {reason}, note: {reason} at {minute}, \
                 deprecatedLastTimestamp: '2026-01-01T00:{minute:02}:00Z' }}"
            ))
            .unwrap()
        };
        let failed = |minute| event("FailedCreate", minute);
        let created = |minute| event("SuccessfulCreate", minute);
        let table = [
            (vec![], None),
            (vec![created(1)], None),
            (vec![failed(1), failed(3), failed(2)], Some("FailedCreate at 3")),
            (vec![created(1), failed(2)], Some("FailedCreate at 2")),
            (vec![failed(2), created(3)], None),
        ];
        for (events, expected) in table {
            assert_eq!(last_refusal(&events).as_deref(), expected);
        }
    }
}
