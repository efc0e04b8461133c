//! Whether a live object already says everything that a desired one does.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use crate::canonical::is_unordered;

/// Fields by which Kubernetes tells the items of a list apart, most specific first.
const KEYS: [&str; 8] =
    ["name", "containerPort", "port", "mountPath", "devicePath", "topologyKey", "type", "uid"];

/// Returns whether `live` holds everything in `desired`. What others added, the API server's defaults included, is ignored.
pub(crate) fn covers(live: &Value, desired: &Value) -> bool {
    covers_in("", live, desired)
}

/// The same of what stands in `field`.
fn covers_in(field: &str, live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            desired.iter().all(|(key, wanted)| match live.get(key) {
                Some(found) => covers_in(key, found, wanted),
                None => is_empty(wanted),
            })
        }
        (Value::Array(live), Value::Array(desired)) => lists(field, live, desired),
        (live, desired) => live == desired || same_quantity(live, desired),
    }
}

/// The API server leaves out what is empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn lists(field: &str, live: &[Value], desired: &[Value]) -> bool {
    if let Some(key) = key_of(desired) {
        return desired.iter().all(|wanted| {
            live.iter().any(|found| found.get(key) == wanted.get(key) && covers_in(field, found, wanted))
        });
    }
    if live.len() != desired.len() {
        return false;
    }
    let mut left: Vec<&Value> = live.iter().collect();
    desired.iter().all(|wanted| {
        let searched = if is_unordered(field) { left.len() } else { 1 };
        let found = left[..searched].iter().position(|found| covers_in(field, found, wanted));
        found.map(|at| left.remove(at)).is_some()
    })
}

/// Returns the field that tells all items apart.
fn key_of(items: &[Value]) -> Option<&'static str> {
    if items.is_empty() {
        return None;
    }
    KEYS.into_iter().find(|key| {
        let mut values = items.iter().map(|item| item.get(key));
        let distinct = items
            .iter()
            .enumerate()
            .all(|(at, item)| items[..at].iter().all(|before| before.get(key) != item.get(key)));
        values.all(|value| value.is_some()) && distinct
    })
}

/// `1000m` and `1`, `1024Mi` and `1Gi`: the API server writes quantities in its own way.
fn same_quantity(live: &Value, desired: &Value) -> bool {
    match (quantity(live), quantity(desired)) {
        (Some(live), Some(desired)) => live == desired,
        _ => false,
    }
}

fn quantity(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => milli(&Quantity(text.clone())),
        Value::Number(number) => milli(&Quantity(number.to_string())),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Returns thousandths, as far as the quantity is a whole number of them.
pub(crate) fn milli(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.as_str();
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator): (i128, i128) = match suffix {
        "" => (1000, 1),
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        "Pi" => (1000 << 50, 1),
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = denominator.checked_mul(10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let scaled = digits.checked_mul(numerator)?;
    (scaled % scale == 0).then_some(scaled / scale)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_added_is_ignored() {
        let live = json!({ "spec": { "a": 1, "defaulted": true, "list": [{ "name": "x", "v": 1, "d": 0 }, { "name": "injected" }] } });
        assert!(covers(&live, &json!({ "spec": { "a": 1, "list": [{ "name": "x", "v": 1 }] } })));
    }

    #[test]
    fn a_changed_or_missing_field_is_seen() {
        let live = json!({ "spec": { "a": 1, "list": [{ "name": "x", "v": 1 }] } });
        for desired in [
            json!({ "spec": { "a": 2 } }),
            json!({ "spec": { "b": 1 } }),
            json!({ "spec": { "list": [{ "name": "x", "v": 2 }] } }),
            json!({ "spec": { "list": [{ "name": "y" }] } }),
        ] {
            assert!(!covers(&live, &desired), "{desired}");
        }
    }

    #[test]
    fn lists_without_keys_are_compared_whole_and_in_order() {
        assert!(covers(&json!(["a", "b"]), &json!(["a", "b"])));
        assert!(!covers(&json!(["a", "b"]), &json!(["a"])));
        assert!(!covers(&json!(["b", "a"]), &json!(["a", "b"])));
    }

    #[test]
    fn lists_without_keys_whose_order_tells_nothing_are_compared_whole() {
        let of = |list: Value| json!({ "tolerations": list });
        let (a, b) = (json!({ "key": "a" }), json!({ "key": "b" }));
        assert!(covers(&of(json!([b, a])), &of(json!([a, b]))));
        assert!(!covers(&of(json!([a, b])), &of(json!([a]))));
        assert!(!covers(&of(json!([b, b])), &of(json!([a, b]))));
        assert!(!covers(&of(json!([a, b])), &of(json!([a, a]))));
    }

    #[test]
    fn empty_fields_are_as_good_as_absent() {
        assert!(covers(&json!({}), &json!({ "a": {}, "b": [], "c": null })));
        assert!(!covers(&json!({}), &json!({ "a": false })));
    }

    #[test]
    fn quantities_are_compared_by_value() {
        for (live, desired) in [("1", "1000m"), ("1Gi", "1024Mi"), ("1500m", "1.5"), ("1k", "1000")] {
            assert!(covers(&json!(live), &json!(desired)), "{live} {desired}");
        }
        assert!(covers(&json!("2"), &json!(2)));
        assert!(!covers(&json!("1"), &json!("1001m")));
        assert!(!covers(&json!("name"), &json!("other")));
    }
}
