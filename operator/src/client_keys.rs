//! Client keys: Secrets of users, by label, as entries of the relay's settings.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::ResourceExt as _;
use modelrelay_protocol::config::{ClientKeyConfig, PriorityConfig, RelayConfig};

use crate::generated::{key_id, sha256};

/// What the Secrets of one relay say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientKeys {
    /// The usable ones, by id.
    pub entries: Vec<ClientKeyConfig>,
    /// The others.
    pub problems: Vec<KeyProblem>,
}

/// A Secret that holds no usable key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyProblem {
    /// The Secret.
    pub secret: ObjectReference,
    /// What is wrong, and what would be right. Never the key.
    pub problem: String,
}

/// Reads the Secrets that carry the relay's label. Of two with the same id the older counts, then the first by name.
pub fn read(secrets: &[Arc<Secret>], priorities: &[PriorityConfig]) -> ClientKeys {
    let mut secrets: Vec<_> =
        secrets.iter().filter(|secret| secret.metadata.deletion_timestamp.is_none()).collect();
    secrets.sort_by_key(|secret| (secret.creation_timestamp(), secret.name_any()));
    let mut entries: BTreeMap<String, (ClientKeyConfig, String)> = BTreeMap::new();
    let mut problems = Vec::new();
    for secret in secrets {
        let name = secret.name_any();
        let read = entry(secret, priorities).and_then(|entry| match entries.get(&entry.id) {
            Some((_, older)) => {
                Err(format!("key: the id {:?} is taken by Secret {older:?}, which is older", entry.id))
            }
            None => Ok(entry),
        });
        match read {
            Ok(entry) => {
                entries.insert(entry.id.clone(), (entry, name));
            }
            Err(problem) => problems.push(KeyProblem { secret: reference(secret), problem }),
        }
    }
    problems.sort_by(|one, other| one.secret.name.cmp(&other.secret.name));
    ClientKeys { entries: entries.into_values().map(|(entry, _)| entry).collect(), problems }
}

fn reference(secret: &Secret) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Secret".to_owned()),
        name: secret.metadata.name.clone(),
        namespace: secret.metadata.namespace.clone(),
        uid: secret.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn entry(secret: &Secret, priorities: &[PriorityConfig]) -> Result<ClientKeyConfig, String> {
    let key = text(secret, "key")?.ok_or_else(|| {
        "key: is missing; put in what `modelrelay-relay key new` prints on its first line".to_owned()
    })?;
    let id = key_id(&key).ok_or_else(|| {
        "key: must have the form mr_<id>_<secret>, as `modelrelay-relay key new` prints it".to_owned()
    })?;
    let models: BTreeSet<String> = text(secret, "models")?
        .iter()
        .flat_map(|text| text.split(['\n', ',']))
        .map(|model| model.trim().to_owned())
        .filter(|model| !model.is_empty())
        .collect();
    let entry = ClientKeyConfig {
        id: id.to_owned(),
        sha256: sha256(&key),
        tenant: text(secret, "tenant")?,
        priority: text(secret, "priority")?,
        models: models.into_iter().collect(),
        requests_per_minute: number(secret, "requestsPerMinute")?,
        tokens_per_minute: number(secret, "tokensPerMinute")?,
        max_concurrent_requests: number(secret, "maxConcurrentRequests")?,
    };
    let alone =
        RelayConfig { priorities: priorities.to_vec(), client_keys: vec![entry], ..RelayConfig::default() };
    alone.validate().map_err(|invalid| {
        let field = invalid.field.strip_prefix("clientKeys[0].").unwrap_or(&invalid.field);
        format!("{field}: {}", invalid.problem)
    })?;
    Ok(alone.client_keys.into_iter().next().expect("it was put in above"))
}

/// Returns what is under a data key, without outer blanks such as a line end; nothing when that is nothing.
fn text(secret: &Secret, field: &str) -> Result<Option<String>, String> {
    let Some(bytes) = secret.data.as_ref().and_then(|data| data.get(field)) else { return Ok(None) };
    let text = std::str::from_utf8(&bytes.0).map_err(|_| format!("{field}: must be text in UTF-8"))?.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn number(secret: &Secret, field: &str) -> Result<Option<u32>, String> {
    let Some(text) = text(secret, field)? else { return Ok(None) };
    u32::from_str(&text)
        .map(Some)
        .map_err(|_| format!("{field}: must be a whole number from 1 to {}, is {text:?}", u32::MAX))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn secret(name: &str, created: i64, data: &[(&str, &str)]) -> Arc<Secret> {
        let mut secret = Secret::default();
        secret.metadata.name = Some(name.to_owned());
        secret.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString((*value).into())));
        secret.data = Some(data.collect());
        Arc::new(secret)
    }

    fn bands() -> Vec<PriorityConfig> {
        vec![PriorityConfig { name: "interactive".to_owned(), value: 100 }]
    }

    fn problem(data: &[(&str, &str)]) -> String {
        let keys = read(&[secret("app", 1, data)], &bands());
        assert_eq!(keys.entries, []);
        keys.problems[0].problem.clone()
    }

    #[test]
    fn a_secret_becomes_an_entry_with_the_hash_of_its_key() {
        let keys = read(
            &[secret(
                "app",
                1,
                &[
                    ("key", "mr_app_s3cret\n"),
                    ("tenant", "team-a"),
                    ("priority", "interactive"),
                    ("models", "coder, chat\nchat\n"),
                    ("requestsPerMinute", "60"),
                    ("tokensPerMinute", "1000\n"),
                    ("maxConcurrentRequests", "4"),
                ],
            )],
            &bands(),
        );
        let entry = ClientKeyConfig {
            id: "app".to_owned(),
            sha256: sha256("mr_app_s3cret"),
            tenant: Some("team-a".to_owned()),
            priority: Some("interactive".to_owned()),
            models: vec!["chat".to_owned(), "coder".to_owned()],
            requests_per_minute: Some(60),
            tokens_per_minute: Some(1000),
            max_concurrent_requests: Some(4),
        };
        assert_eq!(keys, ClientKeys { entries: vec![entry], problems: Vec::new() });
    }

    #[test]
    fn only_the_key_is_needed_and_empty_fields_are_absent_ones() {
        let keys = read(&[secret("app", 1, &[("key", "mr_app_x"), ("tenant", ""), ("models", " \n")])], &[]);
        assert_eq!((keys.entries[0].tenant.as_deref(), keys.entries[0].models.len()), (None, 0));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_key() {
        for (data, expected) in [
            (
                &[("token", "x")][..],
                "key: is missing; put in what `modelrelay-relay key new` prints on its first line",
            ),
            (
                &[("key", "hunter2")],
                "key: must have the form mr_<id>_<secret>, as `modelrelay-relay key new` prints it",
            ),
            (
                &[("key", "mr_app_x"), ("priority", "batch")],
                "priority: must be one of priorities (interactive), is \"batch\"",
            ),
            (
                &[("key", "mr_app_x"), ("requestsPerMinute", "lots")],
                "requestsPerMinute: must be a whole number from 1 to 4294967295, is \"lots\"",
            ),
            (&[("key", "mr_app_x"), ("tokensPerMinute", "0")], "tokensPerMinute: must be at least 1, is 0"),
        ] {
            assert_eq!(problem(data), expected);
        }
        assert!(!problem(&[("key", "mr_app_two words")]).contains("two words"));
    }

    #[test]
    fn of_two_with_the_same_id_the_older_counts_and_then_the_first_by_name() {
        let secrets = [
            secret("c", 5, &[("key", "mr_app_3")]),
            secret("b", 2, &[("key", "mr_app_2")]),
            secret("a", 5, &[("key", "mr_app_1")]),
            secret("d", 9, &[("key", "mr_other_4")]),
        ];
        let keys = read(&secrets, &[]);
        let hashes: Vec<_> = keys.entries.iter().map(|entry| entry.sha256).collect();
        assert_eq!(hashes, [sha256("mr_app_2"), sha256("mr_other_4")]);
        let names: Vec<_> = keys.problems.iter().map(|one| one.secret.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(keys.problems[0].problem, "key: the id \"app\" is taken by Secret \"b\", which is older");
    }

    #[test]
    fn secrets_that_are_being_deleted_are_gone() {
        let mut leaving = secret("a", 1, &[("key", "mr_app_1")]).as_ref().clone();
        leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
        let keys = read(&[Arc::new(leaving), secret("b", 2, &[("key", "mr_app_2")])], &[]);
        assert_eq!(keys.entries[0].sha256, sha256("mr_app_2"));
    }
}
