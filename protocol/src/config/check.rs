//! Ranges and relations: small checks that name the field they refuse.

use std::collections::HashSet;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// A value that cannot be, with its place and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The path of the field, such as `queue.maxRequests`.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Invalid {
    /// An error at a field.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

pub(super) type Checked = Result<(), Invalid>;

/// One week: the longest time a field may name, so that no sum of an instant and a setting overflows.
pub(super) const WEEK_SECONDS: u32 = 7 * 24 * 3600;

pub(super) fn range<T: PartialOrd + Display>(field: &str, value: &T, allowed: &RangeInclusive<T>) -> Checked {
    let (low, high) = (allowed.start(), allowed.end());
    if value < low {
        return Err(Invalid::new(field, format!("must be at least {low}, is {value}")));
    }
    if value > high {
        return Err(Invalid::new(field, format!("must be at most {high}, is {value}")));
    }
    Ok(())
}

/// A duration that may be switched off with 0.
pub(super) fn seconds_or_off(field: &str, value: u32) -> Checked {
    range(field, &value, &(0..=WEEK_SECONDS))
}

/// A duration that has to be there.
pub(super) fn seconds(field: &str, value: u32) -> Checked {
    range(field, &value, &(1..=WEEK_SECONDS))
}

/// A name that is shown to people and in metrics: 1 to `longest` bytes without control characters or outer blanks.
pub(super) fn name(field: &str, value: &str, longest: usize) -> Checked {
    if value.is_empty() {
        return Err(Invalid::new(field, "must not be empty"));
    }
    if value.len() > longest {
        return Err(Invalid::new(field, format!("must be at most {longest} bytes long, is {}", value.len())));
    }
    if value.trim() != value || value.chars().any(char::is_control) {
        return Err(Invalid::new(
            field,
            format!("must have no outer blanks or control characters, is {value:?}"),
        ));
    }
    Ok(())
}

/// Model names of a list, each usable and none twice.
pub(super) fn models(field: &str, names: &[String]) -> Checked {
    for (index, model) in names.iter().enumerate() {
        name(&format!("{field}[{index}]"), model, 256)?;
    }
    distinct(field, "", names.iter())
}

/// No value occurs twice; `member` is the field of each entry that holds it, with its dot, or nothing.
pub(super) fn distinct<T: std::hash::Hash + Eq + Display>(
    list: &str,
    member: &str,
    values: impl Iterator<Item = T>,
) -> Checked {
    let mut seen = HashSet::new();
    for (index, value) in values.enumerate() {
        let shown = value.to_string();
        if !seen.insert(value) {
            return Err(Invalid::new(format!("{list}[{index}]{member}"), format!("{shown:?} occurs twice")));
        }
    }
    Ok(())
}

/// An address with one of the schemes, a host, and no credentials (an address is logged).
pub(super) fn url(field: &str, value: &str, schemes: &[&str]) -> Checked {
    let wrong = |problem: &str| Err(Invalid::new(field, problem.to_owned()));
    let Some(rest) = schemes.iter().find_map(|scheme| value.strip_prefix(scheme)?.strip_prefix("://")) else {
        let wanted = schemes.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(" or ");
        return Err(Invalid::new(field, format!("must start with {wanted}")));
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.contains('@') {
        return wrong("must not carry a user or password");
    }
    if host.is_empty() || host.starts_with(':') {
        return wrong("must name a host");
    }
    if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong("must not contain blanks");
    }
    Ok(())
}

/// A host name alone: no scheme, port or path.
pub(super) fn host(field: &str, value: &str) -> Checked {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=253).contains(&value.len()) && value.bytes().all(good) {
        return Ok(());
    }
    let problem = format!("must be a host name such as relay-workers.inference.svc, is {value:?}");
    Err(Invalid::new(field, problem))
}

/// Whether a text can be a header name: the token characters of RFC 9110.
pub(super) fn is_header_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_scheme_and_host_and_no_password() {
        let schemes = ["http", "https"];
        for good in ["http://a", "https://a:1/b", "http://[::1]:8000", "http://$(NODE_IP):8000/v1?x=y"] {
            assert_eq!(url("u", good, &schemes), Ok(()), "{good}");
        }
        let table = [
            ("a:1", "u: must start with http:// or https://"),
            ("ftp://a", "u: must start with http:// or https://"),
            ("http://", "u: must name a host"),
            ("http://:80", "u: must name a host"),
            ("http:///v1", "u: must name a host"),
            ("http://me:secret@a", "u: must not carry a user or password"),
            ("http://a b", "u: must not contain blanks"),
        ];
        for (bad, message) in table {
            assert_eq!(url("u", bad, &schemes).unwrap_err().to_string(), message);
        }
    }
}
