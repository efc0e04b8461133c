//! Conditions: their types, all reasons, and how a new list follows from the previous one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Condition types. `deploy/REFERENCE.md` shows these texts.
pub mod kind {
    /// The spec is valid, the operator acts on it, and nothing stands in the way of what it makes.
    pub const ACCEPTED: &str = "Accepted";
    /// Everything that the spec refers to is there and usable: relay, Services, Secrets, namespaces.
    pub const RESOLVED_REFS: &str = "ResolvedRefs";
    /// ModelRelay: every ready relay pod runs with the newest settings.
    pub const PROGRAMMED: &str = "Programmed";
    /// WorkerPool: a change is being rolled out. On both kinds it is False with the reason `Paused` while writes are stopped.
    pub const PROGRESSING: &str = "Progressing";
    /// ModelRelay: a relay pod is Ready. WorkerPool: at least one worker takes requests.
    pub const AVAILABLE: &str = "Available";
    /// The summary that `kubectl wait` waits for. ModelRelay: Accepted and Available, and Programmed is not False. Managed pool:
    /// Accepted, ResolvedRefs and Available. External pool: Accepted and ResolvedRefs, with the credential in force.
    pub const READY: &str = "Ready";
}

/// Reasons. Each says in one word why a condition has its status. `deploy/REFERENCE.md` shows these texts: first what is so,
/// then what it asks of the reader.
pub mod reason {
    /// The spec is valid. Nothing to do.
    pub const ACCEPTED: &str = "Accepted";
    /// Every reference is resolved. Nothing to do.
    pub const RESOLVED: &str = "Resolved";
    /// The newest settings are in force in every ready relay pod. Nothing to do.
    pub const PROGRAMMED: &str = "Programmed";
    /// Something is under way, or the operator has not looked at it yet. Wait; if it stays for minutes, look at the message and
    /// at the operator's log.
    pub const PENDING: &str = "Pending";
    /// The object serves. Nothing to do.
    pub const AVAILABLE: &str = "Available";
    /// The object is as it should be. Nothing to do.
    pub const READY: &str = "Ready";
    /// The spec is wrong in a way that the API server could not see. Change what the message names.
    pub const INVALID: &str = "Invalid";
    /// A pod template sets a field that the operator relies on: selector labels, settings and credentials, grace period, restart
    /// policy, or the container's name, image, ports and command. Remove it from the template; images have fields of their own.
    pub const PROTECTED_FIELD: &str = "ProtectedField";
    /// An object with a child's name is there and belongs to somebody else; the operator does not touch it. Rename or delete
    /// that object, or create this one under another name.
    pub const NAME_CONFLICT: &str = "NameConflict";
    /// The API server refused a child; the message is its answer. Change what it names: most often a pod template, a quota or a
    /// policy of the namespace.
    pub const CHILD_REFUSED: &str = "ChildRefused";
    /// The settings are larger than the 900 KiB that go into a Secret; the last good ones stay in force. Use fewer client keys,
    /// models or pools for one relay.
    pub const SETTINGS_TOO_LARGE: &str = "SettingsTooLarge";
    /// The relay that a pool names does not exist. Create it; if `relayRef` is wrong, create the pool anew, for it cannot change.
    pub const RELAY_NOT_FOUND: &str = "RelayNotFound";
    /// The relay does not let pools of this namespace connect. Set `allowedWorkerPools` of the relay, or move the pool.
    pub const NOT_ALLOWED: &str = "NotAllowed";
    /// `from: Selector` needs to read namespaces, which an operator for chosen namespaces may not. Use `from: Same` or `All`, or
    /// install the operator for the whole cluster.
    pub const NAMESPACES_NOT_READABLE: &str = "NamespacesNotReadable";
    /// An External pool's relay does not say how boxes outside reach it, so there is no join command. Set
    /// `exposure.externalURL` of the relay.
    pub const EXTERNAL_URL_MISSING: &str = "ExternalURLMissing";
    /// A Secret labelled as a client key does not hold a usable one, or its id is taken; it is ignored, the others count. Put a
    /// key from `modelrelay-relay key new` into its field `key`, or delete the Secret.
    pub const INVALID_CLIENT_KEY: &str = "InvalidClientKey";
    /// A generated Secret does not hold what the operator put there. Delete it: a new one is made, which rotates the credential.
    pub const INVALID_SECRET: &str = "InvalidSecret";
    /// The Service that `backend.service` names does not exist, or lacks that port. Create it, or correct the name.
    pub const SERVICE_NOT_FOUND: &str = "ServiceNotFound";
    /// A ready relay pod cannot be asked. It serves all the same; see that policies let the operator reach the operations port.
    pub const RELAY_UNREACHABLE: &str = "RelayUnreachable";
    /// No relay pod is Ready. Look at the pods of the relay's Deployment.
    pub const NO_READY_RELAY: &str = "NoReadyRelay";
    /// Relay pods ignore settings that their version does not know. Update the relay's image, or remove the fields that the
    /// message names.
    pub const SETTINGS_IGNORED: &str = "SettingsIgnored";
    /// A relay pod refused the settings and goes on with the last good ones; the message is its answer. If the relay's image is
    /// old, update it.
    pub const SETTINGS_REFUSED: &str = "SettingsRefused";
    /// The pool's node selection matches no node. Label the nodes, or set `managed.nodeSelector`.
    pub const NO_MATCHING_NODES: &str = "NoMatchingNodes";
    /// No worker takes requests. `status.unhealthy` says why; without entries there, look at the pods of the pool.
    pub const NO_READY_WORKER: &str = "NoReadyWorker";
    /// Pods are not created; the message says why. Most often a quota or Pod Security refuses them.
    pub const PODS_REFUSED: &str = "PodsRefused";
    /// A change is being rolled out. Wait; an engine may finish what it runs for `updateStrategy.timeoutSeconds`.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// Everything is of the newest template. Nothing to do.
    pub const COMPLETE: &str = "Complete";
    /// The annotation `modelrelay.io/paused` stops all writes. Remove it when you are done.
    pub const PAUSED: &str = "Paused";
    /// The API server could not be asked or answered with an error; the operator tries again. If it stays, look at the
    /// operator's log.
    pub const API_ERROR: &str = "APIError";
    /// There is nothing to wait for in this state of the object. Nothing to do.
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
        Self { kind, status: status.into(), reason, message: shortened(message.into(), MESSAGE_BYTES) }
    }

    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.status == Truth::True
    }
}

/// The API server takes messages of up to 32,768 characters; nobody reads as much.
const MESSAGE_BYTES: usize = 1024;

/// Cuts a text that is longer than so many bytes, and marks the cut.
pub fn shortened(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let end = (0..=limit - '…'.len_utf8()).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
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
