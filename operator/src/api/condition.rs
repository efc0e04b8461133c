//! Conditions: their types, all reasons, and how a new list follows from the previous one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Condition types.
pub mod kind {
    /// The spec is valid and the operator acts on it.
    pub const ACCEPTED: &str = "Accepted";
    /// Everything that the spec refers to is there and usable.
    pub const RESOLVED_REFS: &str = "ResolvedRefs";
    /// ModelRelay: every ready relay pod runs with the newest settings.
    pub const PROGRAMMED: &str = "Programmed";
    /// WorkerPool: a change is being rolled out.
    pub const PROGRESSING: &str = "Progressing";
    /// Requests can be served.
    pub const AVAILABLE: &str = "Available";
    /// The summary that `kubectl wait` waits for.
    pub const READY: &str = "Ready";
}

/// Reasons. Each says in one word why a condition has its status; the README tells what to do about it.
pub mod reason {
    /// All is well with an accepted object.
    pub const ACCEPTED: &str = "Accepted";
    /// Every reference is resolved.
    pub const RESOLVED: &str = "Resolved";
    /// The newest settings are in force everywhere.
    pub const PROGRAMMED: &str = "Programmed";
    /// Something is under way.
    pub const PENDING: &str = "Pending";
    /// The object serves.
    pub const AVAILABLE: &str = "Available";
    /// The object is as it should be.
    pub const READY: &str = "Ready";
    /// The spec is wrong in a way that the API server could not see.
    pub const INVALID: &str = "Invalid";
    /// A field that the operator relies on was overridden in a pod template.
    pub const PROTECTED_FIELD: &str = "ProtectedField";
    /// An object with a child's name belongs to somebody else.
    pub const NAME_CONFLICT: &str = "NameConflict";
    /// The API server refused a child.
    pub const CHILD_REFUSED: &str = "ChildRefused";
    /// The settings are too large for a Secret; the last good ones stay.
    pub const SETTINGS_TOO_LARGE: &str = "SettingsTooLarge";
    /// The relay that a pool names does not exist.
    pub const RELAY_NOT_FOUND: &str = "RelayNotFound";
    /// The relay does not let pools of this namespace connect.
    pub const NOT_ALLOWED: &str = "NotAllowed";
    /// `from: Selector` needs to read namespaces, which an operator for single namespaces may not.
    pub const NAMESPACES_NOT_READABLE: &str = "NamespacesNotReadable";
    /// An External pool's relay has no `exposure.externalURL`.
    pub const EXTERNAL_URL_MISSING: &str = "ExternalURLMissing";
    /// A Secret with a client key does not hold a usable one.
    pub const INVALID_CLIENT_KEY: &str = "InvalidClientKey";
    /// A generated Secret does not hold what the operator put there.
    pub const INVALID_SECRET: &str = "InvalidSecret";
    /// The Service that a backend names does not exist.
    pub const SERVICE_NOT_FOUND: &str = "ServiceNotFound";
    /// A ready relay pod cannot be asked for its settings.
    pub const RELAY_UNREACHABLE: &str = "RelayUnreachable";
    /// No relay pod is Ready.
    pub const NO_READY_RELAY: &str = "NoReadyRelay";
    /// Relay pods ignore settings that their version does not know.
    pub const SETTINGS_IGNORED: &str = "SettingsIgnored";
    /// A relay pod refused the settings.
    pub const SETTINGS_REFUSED: &str = "SettingsRefused";
    /// The pool's node selection matches no node.
    pub const NO_MATCHING_NODES: &str = "NoMatchingNodes";
    /// No worker takes requests.
    pub const NO_READY_WORKER: &str = "NoReadyWorker";
    /// Pods are not created.
    pub const PODS_REFUSED: &str = "PodsRefused";
    /// A rollout goes on.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// Everything is rolled out.
    pub const COMPLETE: &str = "Complete";
    /// The annotation `modelrelay.io/paused` stops writes.
    pub const PAUSED: &str = "Paused";
    /// The API server cannot be reached or answers with errors.
    pub const API_ERROR: &str = "APIError";
    /// The object is not needed in this state: nothing to wait for.
    pub const NOT_APPLICABLE: &str = "NotApplicable";
}

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell.
    Unknown,
}

impl Truth {
    /// The word that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What one condition should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// One of [`kind`].
    pub kind: &'static str,
    /// Whether it holds.
    pub status: Truth,
    /// One of [`reason`].
    pub reason: &'static str,
    /// What is so, and what to do about it.
    pub message: String,
}

impl Verdict {
    /// Says that a condition holds, does not, or is unknown.
    pub fn new(
        kind: &'static str,
        status: impl Into<Truth>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, status: status.into(), reason, message: shortened(message.into()) }
    }

    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.status == Truth::True
    }
}

/// The API server takes messages of up to 32,768 bytes; nobody reads as much.
fn shortened(mut message: String) -> String {
    const LIMIT: usize = 1024;
    if message.len() > LIMIT {
        let end = (0..=LIMIT - '…'.len_utf8()).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Returns the new list: a condition keeps its `lastTransitionTime` unless its status changed.
pub fn conditions(
    verdicts: &[Verdict],
    previous: &[Condition],
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    let condition = |verdict: &Verdict| {
        let before = previous.iter().find(|one| one.type_ == verdict.kind);
        let since = before.filter(|one| one.status == verdict.status.as_str());
        Condition {
            type_: verdict.kind.to_owned(),
            status: verdict.status.as_str().to_owned(),
            reason: verdict.reason.to_owned(),
            message: verdict.message.clone(),
            observed_generation: generation,
            last_transition_time: since.map_or_else(|| now.clone(), |one| one.last_transition_time.clone()),
        }
    };
    verdicts.iter().map(condition).collect()
}

/// Finds a condition by its type.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|one| one.type_ == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_transition_time_moves_with_the_status_and_with_nothing_else() {
        let ready =
            |status: bool, message: &str| vec![Verdict::new(kind::READY, status, reason::READY, message)];
        let first = conditions(&ready(false, "a"), &[], Some(1), &at(1));
        let second = conditions(&ready(false, "b"), &first, Some(2), &at(2));
        assert_eq!((&second[0].last_transition_time, second[0].message.as_str()), (&at(1), "b"));
        assert_eq!(second[0].observed_generation, Some(2));
        let third = conditions(&ready(true, "b"), &second, Some(2), &at(3));
        assert_eq!(third[0].last_transition_time, at(3));
    }

    #[test]
    fn the_same_verdicts_give_the_same_list() {
        let verdicts = [Verdict::new(kind::ACCEPTED, true, reason::ACCEPTED, "fine")];
        let first = conditions(&verdicts, &[], Some(1), &at(1));
        assert_eq!(conditions(&verdicts, &first, Some(1), &at(9)), first);
    }

    #[test]
    fn long_messages_end_at_a_character() {
        let verdict = Verdict::new(kind::READY, false, reason::INVALID, "ä".repeat(2000));
        assert!(verdict.message.len() <= 1024 && verdict.message.ends_with("ä…"));
    }
}
