//! `/stub/...`: the counters, waits and live settings of a stub that runs in another process.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::backend::Shared;
use crate::flavour::Short;
use crate::request::{Body, Head};
use crate::stats::Phase;

const JSON: &str = "application/json";
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Answers a request to a route of the stub itself.
pub(crate) async fn answer(shared: &Shared, head: &Head, body: &Body) -> Short {
    match (head.method(), head.path()) {
        ("GET", "/stub/stats") => found(&shared.ledger.stats()),
        ("GET", "/stub/requests") => found(&shared.seen()),
        ("GET", "/stub/running") => {
            let wanted = parameter(head, "n").and_then(|n| n.parse().ok()).unwrap_or(0);
            let look =
                |ledger: &crate::stats::Ledger| (ledger.stats().running == wanted).then(|| ledger.stats());
            or_overdue(shared.ledger.wait(within(head), || format!("{wanted} running"), look).await)
        }
        ("GET", "/stub/closed") => {
            let id = parameter(head, "id").unwrap_or_default();
            let look = |ledger: &crate::stats::Ledger| ledger.close_of(id);
            or_overdue(shared.ledger.wait(within(head), || format!("close of {id:?}"), look).await)
        }
        ("GET", "/stub/phase") => {
            let id = parameter(head, "id").unwrap_or_default();
            let wanted = parameter(head, "phase").unwrap_or("before_head");
            let Ok(wanted) = serde_json::from_value::<Phase>(wanted.into()) else {
                return bad(&format!("no phase {wanted:?}"));
            };
            let look = |ledger: &crate::stats::Ledger| ledger.phase_of(id).filter(|phase| *phase >= wanted);
            or_overdue(shared.ledger.wait(within(head), || format!("{wanted:?} of {id:?}"), look).await)
        }
        ("PUT", "/stub/models") => set(body, |models| shared.set_models(models)),
        ("PUT", "/stub/health") => set(body, |healthy| shared.set_healthy(healthy)),
        ("PUT", "/stub/script") => set(body, |script| shared.set_script(script)),
        ("POST", "/stub/script/next") => set(body, |script| shared.push_script(script)),
        _ => (404, JSON, json!({"error": "no such route of the stub"}).to_string()),
    }
}

fn parameter<'a>(head: &'a Head, name: &str) -> Option<&'a str> {
    head.query()
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value)
}

fn within(head: &Head) -> Duration {
    let milliseconds = parameter(head, "within_ms").and_then(|value| value.parse().ok()).unwrap_or(0);
    Duration::from_millis(milliseconds).min(MAX_WAIT)
}

fn found(value: &impl Serialize) -> Short {
    (200, JSON, serde_json::to_string(value).unwrap_or_default())
}

fn bad(message: &str) -> Short {
    (400, JSON, json!({"error": message}).to_string())
}

fn or_overdue(waited: Result<impl Serialize, crate::stats::Overdue>) -> Short {
    match waited {
        Ok(value) => found(&value),
        Err(overdue) => (404, JSON, json!({"error": overdue.to_string()}).to_string()),
    }
}

fn set<T: serde::de::DeserializeOwned>(body: &Body, apply: impl FnOnce(T)) -> Short {
    match serde_json::from_slice(&body.bytes) {
        Ok(value) => {
            apply(value);
            found(&json!({}))
        }
        Err(error) => bad(&error.to_string()),
    }
}
