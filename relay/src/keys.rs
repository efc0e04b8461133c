//! Credentials: client keys `mr_<id>_<secret>` and worker secrets, their tables, and how new ones are made.
//!
//! The relay holds SHA-256 hashes only and compares them in constant time. A missing, malformed, unknown or
//! wrong credential takes the same path and the same time: one hash, one comparison.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, header};
use modelrelay_protocol::config::{OnRemoval, Secret, Sha256Hash, is_key_id};
use modelrelay_protocol::wellknown;
use rand::TryRng;
use rand::rngs::{SysError, SysRng};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::limits::{KeyLimits, KeyUsage, OverLimit, Permit};
use crate::replicas::Replicas;
use crate::scheduler::TenantId;

/// The SHA-256 of a text, as settings files carry it.
pub fn sha256(text: &str) -> Sha256Hash {
    Sha256Hash(Sha256::digest(text.as_bytes()).into())
}

/// The id within a key `mr_<id>_<secret>`, if the text has that form.
pub fn key_id(key: &str) -> Option<&str> {
    let (id, secret) = key.strip_prefix("mr_")?.split_once('_')?;
    (is_key_id(id) && !secret.is_empty() && secret.bytes().all(|b| b.is_ascii_graphic())).then_some(id)
}

/// Makes a key with 256 random bits from the operating system.
///
/// # Errors
/// When the system gives no random bits.
pub fn generate(id: &str) -> Result<Secret, SysError> {
    let mut bits = [0; 32];
    SysRng.try_fill_bytes(&mut bits)?;
    Ok(Secret::new(&format!("mr_{id}_{}", Sha256Hash(bits).to_hex())))
}

/// What a client presented, in whichever header.
#[derive(Clone, Debug)]
pub struct ClientCredential(Secret);

impl ClientCredential {
    /// Takes a key from `authorization: Bearer` (OpenAI's way) or `x-api-key` (Anthropic's way).
    ///
    /// When both are there, the one that looks like a key of ours counts: SDKs send placeholders.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let bearer = bearer_token(headers);
        let api_key = headers.get(wellknown::header::API_KEY).and_then(|value| value.to_str().ok());
        let api_key = api_key.map(str::trim).filter(|key| !key.is_empty());
        let presented = match (bearer, api_key) {
            (Some(bearer), Some(key)) if key_id(bearer).is_none() && key_id(key).is_some() => key,
            (Some(bearer), _) => bearer,
            (None, key) => key?,
        };
        Some(Self(Secret::new(presented)))
    }
}

/// The token of an `authorization: Bearer` header.
pub fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Compares a presented token with the hash of the right one, in constant time.
pub fn token_matches(presented: Option<&str>, right: &Sha256Hash) -> bool {
    let hash = sha256(presented.unwrap_or_default());
    bool::from(hash.0.ct_eq(&right.0)) && presented.is_some()
}

/// Who a client is and what its key grants.
#[derive(Clone, Debug)]
pub struct ClientKey {
    /// The id of the key; `anonymous` on an open port.
    pub id: Arc<str>,
    /// Who is charged, as a small number.
    pub tenant: TenantId,
    /// Who is charged, by name.
    pub tenant_name: Arc<str>,
    /// The name of its priority.
    pub priority: Arc<str>,
    /// The value of its priority; higher goes first.
    pub band: i32,
    /// Its limits over all relay replicas together.
    pub limits: KeyLimits,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) models: HashSet<Arc<str>>,
    pub(crate) usage: Arc<KeyUsage>,
}

impl ClientKey {
    /// Whether the key may ask for a model, by the name that the client uses.
    pub fn allows(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.contains(model)
    }

    /// Counts a request against this replica's part of the key's limits; the permit is held until the request ends.
    ///
    /// # Errors
    /// Which limit is reached and when to come back. Then nothing was counted.
    pub fn try_acquire(&self, now: Instant) -> Result<Permit, OverLimit> {
        self.usage.try_acquire(self.limits.part_of(self.replicas.get()), now)
    }
}

/// All client keys.
#[derive(Clone)]
pub struct KeyTable {
    keys: HashMap<Arc<str>, (Sha256Hash, Arc<ClientKey>)>,
    anonymous: Option<Arc<ClientKey>>,
}

impl KeyTable {
    /// A table of keys; with `anonymous` the port is open and every client is that one.
    pub fn new(
        keys: impl IntoIterator<Item = (Sha256Hash, ClientKey)>,
        anonymous: Option<ClientKey>,
    ) -> Self {
        let keys = keys.into_iter().map(|(hash, key)| (key.id.clone(), (hash, Arc::new(key)))).collect();
        Self { keys, anonymous: anonymous.map(Arc::new) }
    }

    /// Whether clients need no key.
    pub fn is_open(&self) -> bool {
        self.anonymous.is_some()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Finds out who a client is; nothing when it presented no key that counts.
    pub fn authenticate(&self, presented: Option<&ClientCredential>) -> Option<&Arc<ClientKey>> {
        if let Some(anonymous) = &self.anonymous {
            return Some(anonymous);
        }
        let text = presented.map_or("", |credential| credential.0.expose());
        // Hashed and compared even when the id is unknown, so that the time does not tell which ids exist.
        let hash = sha256(text);
        // No key has an empty id: what is malformed is looked up all the same.
        let known = self.keys.get(key_id(text).unwrap_or_default());
        let right = known.map_or(Sha256Hash([0; 32]), |(hash, _)| *hash);
        let matches = bool::from(hash.0.ct_eq(&right.0));
        known.filter(|_| matches).map(|(_, key)| key)
    }
}

impl fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyTable").field("keys", &self.keys.len()).field("open", &self.is_open()).finish()
    }
}

/// What a worker is, by the credential it presented; nothing it says about itself counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerCredential {
    /// What logs and the admin API call it.
    pub name: Arc<str>,
    /// The pool of its workers.
    pub pool: Arc<str>,
    /// The namespace of the pool, in Kubernetes.
    pub namespace: Option<Arc<str>>,
    /// Labels of its workers.
    pub labels: BTreeMap<String, String>,
    /// Workers at once.
    pub max_workers: Option<u32>,
    /// The most slots one worker may declare.
    pub max_slots: Option<u32>,
    /// What becomes of its workers when it is withdrawn.
    pub on_removal: OnRemoval,
    /// Whether its workers see the credentials of clients.
    pub forward_credentials: bool,
    pub(crate) models: Vec<Arc<str>>,
    pub(crate) hash: Sha256Hash,
}

impl WorkerCredential {
    /// Whether its workers may serve a model.
    pub fn allows(&self, model: &str) -> bool {
        self.allows_any() || self.models.iter().any(|allowed| **allowed == *model)
    }

    /// Whether its workers may serve whatever they bring.
    pub fn allows_any(&self) -> bool {
        self.models.is_empty() || self.models.iter().any(|allowed| **allowed == *wellknown::ANY_MODEL)
    }

    /// Models its workers may serve; empty means any.
    pub fn models(&self) -> &[Arc<str>] {
        &self.models
    }

    /// Whether both stand for the same secret, whatever the settings said about it at the time.
    pub fn is_same(&self, other: &Self) -> bool {
        self.hash == other.hash
    }

    fn grants_the_same(&self, other: &Self) -> bool {
        // Labels, names, counts and forwarding can change under a session; these fields decide what it registered.
        (&self.pool, &self.namespace, &self.models, self.max_slots)
            == (&other.pool, &other.namespace, &other.models, other.max_slots)
    }
}

/// What the settings in force say about a credential that a session holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It stands; the session should hold this entry from now on (labels and the like may differ).
    Valid(Arc<WorkerCredential>),
    /// The secret stands but grants something else: finish, close, and let the worker register anew.
    Changed,
    /// The secret is gone.
    Withdrawn(OnRemoval),
}

/// All worker credentials.
#[derive(Clone)]
pub struct CredentialTable {
    entries: Vec<Arc<WorkerCredential>>,
    open: Option<Arc<WorkerCredential>>,
}

impl CredentialTable {
    /// A table of credentials; with `open` a worker that presents none of them gets that one.
    pub fn new(entries: Vec<WorkerCredential>, open: Option<WorkerCredential>) -> Self {
        Self { entries: entries.into_iter().map(Arc::new).collect(), open: open.map(Arc::new) }
    }

    /// Whether workers need no secret.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// All entries; the shared worker secret is one of them.
    pub fn entries(&self) -> &[Arc<WorkerCredential>] {
        &self.entries
    }

    /// Whether some worker may bring any model.
    pub fn allows_any_model(&self) -> bool {
        self.is_open() || self.entries.iter().any(|entry| entry.allows_any())
    }

    /// Whether some worker may bring a model.
    pub fn allows(&self, model: &str) -> bool {
        self.is_open() || self.entries.iter().any(|entry| entry.allows(model))
    }

    /// Finds out what a worker is; nothing when it presented no secret that counts.
    ///
    /// Each entry is compared, whichever matches, so that the time tells nothing about them.
    pub fn authenticate(&self, presented: Option<&str>) -> Option<Arc<WorkerCredential>> {
        let hash = sha256(presented.unwrap_or_default());
        let mut found = u32::MAX;
        for (index, entry) in (0..).zip(&self.entries) {
            let matches: Choice = entry.hash.0.ct_eq(&hash.0);
            found.conditional_assign(&index, matches);
        }
        let entry = self.entries.get(usize::try_from(found).unwrap_or(usize::MAX));
        entry.filter(|_| presented.is_some()).or(self.open.as_ref()).cloned()
    }

    /// What is to become of a session that registered with `held`.
    pub fn standing(&self, held: &WorkerCredential) -> Standing {
        let listed = self.entries.iter().find(|entry| entry.is_same(held));
        let open = self.open.as_ref().filter(|open| open.is_same(held));
        match listed.or(open) {
            Some(entry) if entry.grants_the_same(held) => Standing::Valid(entry.clone()),
            Some(_) => Standing::Changed,
            None => Standing::Withdrawn(held.on_removal),
        }
    }
}

impl fmt::Debug for CredentialTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialTable")
            .field("entries", &self.entries)
            .field("open", &self.is_open())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Headers = &'static [(&'static str, &'static str)];

    fn key(id: &str) -> ClientKey {
        ClientKey {
            id: id.into(),
            tenant: TenantId(0),
            tenant_name: id.into(),
            priority: "default".into(),
            band: 0,
            limits: KeyLimits::default(),
            replicas: Arc::default(),
            models: HashSet::new(),
            usage: Arc::default(),
        }
    }

    fn table(keys: &[&str]) -> KeyTable {
        KeyTable::new(keys.iter().map(|text| (sha256(text), key(key_id(text).unwrap()))), None)
    }

    fn headers(list: Headers) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn presented(text: &str) -> ClientCredential {
        ClientCredential(Secret::new(text))
    }

    fn credential(secret: &str) -> WorkerCredential {
        WorkerCredential {
            name: secret.into(),
            pool: "default".into(),
            namespace: None,
            labels: BTreeMap::new(),
            max_workers: None,
            max_slots: None,
            on_removal: OnRemoval::Disconnect,
            forward_credentials: false,
            models: Vec::new(),
            hash: sha256(secret),
        }
    }

    #[test]
    fn keys_have_three_parts() {
        let table = [
            ("mr_app_secret", Some("app")),
            ("mr_a-1_with_underscores", Some("a-1")),
            ("mr_app_", None),
            ("mr__secret", None),
            ("mr_app", None),
            ("sk_app_secret", None),
            ("mr_ä_secret", None),
            ("mr_app_se cret", None),
            ("", None),
        ];
        for (text, id) in table {
            assert_eq!(key_id(text), id, "{text:?}");
        }
    }

    #[test]
    fn generated_keys_carry_256_bits_and_differ() {
        let (one, two) = (generate("app").unwrap(), generate("app").unwrap());
        assert_eq!(key_id(one.expose()), Some("app"));
        assert_eq!(one.expose().len(), "mr_app_".len() + 64);
        assert_ne!(one.expose(), two.expose());
    }

    #[test]
    fn only_the_right_secret_of_a_known_id_counts() {
        let table = table(&["mr_app_right", "mr_other_secret"]);
        assert_eq!(&*table.authenticate(Some(&presented("mr_app_right"))).unwrap().id, "app");
        for wrong in [
            "mr_app_wrong",
            "mr_nobody_right",
            "mr_other_right",
            "mr_app_rightt",
            "right",
            "",
            "mr_app_RIGHT",
        ] {
            assert!(table.authenticate(Some(&presented(wrong))).is_none(), "{wrong:?}");
        }
        assert!(table.authenticate(None).is_none());
    }

    /// What refusing a key costs, for each of them: the first quartile of many short runs, taken in turn so that whatever
    /// else the machine does meets all alike.
    fn costs(table: &KeyTable, wrong: &[String]) -> Vec<u128> {
        const ROUNDS: usize = 2000;
        let credentials: Vec<_> = wrong.iter().map(|text| presented(text)).collect();
        let mut taken = vec![Vec::with_capacity(ROUNDS); wrong.len()];
        for round in 0..ROUNDS {
            for turn in 0..credentials.len() {
                let which = (turn + round) % credentials.len();
                let started = tokio::time::Instant::now();
                for _ in 0..20 {
                    assert!(table.authenticate(Some(&credentials[which])).is_none());
                }
                taken[which].push(started.elapsed().as_nanos());
            }
        }
        taken
            .into_iter()
            .map(|mut times| {
                times.sort_unstable();
                times[ROUNDS / 4]
            })
            .collect()
    }

    #[test]
    fn the_time_of_a_refusal_does_not_tell_which_ids_exist() {
        let secret = "0".repeat(64);
        let keys: Vec<_> = (0..100).map(|n| format!("mr_team-{n:02}_{secret}")).collect();
        let table = table(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        // Of one length, since the hash of a longer text takes longer whoever asks.
        let wrong = [
            format!("mr_team-42_{}", "1".repeat(64)),
            format!("mr_team-42_{}1", "0".repeat(63)),
            format!("mr_nobody1_{secret}"),
        ];
        // A busy machine may disturb one measurement, but not each of several in the same direction.
        let mut last = Vec::new();
        for _ in 0..10 {
            last = costs(&table, &wrong);
            let (least, most) = (last.iter().min().unwrap(), last.iter().max().unwrap());
            if most * 100 <= least * 110 {
                return;
            }
        }
        panic!("wrong secret, nearly right, unknown id: {last:?} ns");
    }

    #[test]
    fn two_keys_of_one_tenant_count_while_rotating() {
        let table = table(&["mr_app-1_old", "mr_app-2_new"]);
        assert!(table.authenticate(Some(&presented("mr_app-1_old"))).is_some());
        assert!(table.authenticate(Some(&presented("mr_app-2_new"))).is_some());
    }

    #[test]
    fn an_open_port_knows_everybody_as_anonymous() {
        let table = KeyTable::new([], Some(key("anonymous")));
        assert_eq!(&*table.authenticate(None).unwrap().id, "anonymous");
        assert_eq!(&*table.authenticate(Some(&presented("sk-anything"))).unwrap().id, "anonymous");
    }

    #[test]
    fn a_closed_port_without_keys_knows_nobody() {
        let table = KeyTable::new([], None);
        assert!(table.authenticate(None).is_none());
        assert!(table.authenticate(Some(&presented("mr_a_b"))).is_none());
    }

    #[test]
    fn credentials_come_as_bearer_or_api_key() {
        let table: [(Headers, Option<&str>); 9] = [
            (&[("authorization", "Bearer mr_a_b")], Some("mr_a_b")),
            (&[("authorization", "bearer  mr_a_b ")], Some("mr_a_b")),
            (&[("x-api-key", "mr_a_b")], Some("mr_a_b")),
            (&[("authorization", "Bearer none"), ("x-api-key", "mr_a_b")], Some("mr_a_b")),
            (&[("authorization", "Bearer mr_a_b"), ("x-api-key", "none")], Some("mr_a_b")),
            (&[("authorization", "Basic bXJfYV9i")], None),
            (&[("authorization", "Bearer ")], None),
            (&[("x-api-key", " ")], None),
            (&[], None),
        ];
        for (list, expected) in table {
            let found = ClientCredential::from_headers(&headers(list));
            assert_eq!(found.as_ref().map(|found| found.0.expose()), expected, "{list:?}");
        }
    }

    #[test]
    fn keys_are_held_to_their_models() {
        let mut key = key("app");
        assert!(key.allows("anything"));
        key.models.insert("small".into());
        assert!(key.allows("small") && !key.allows("large"));
    }

    #[test]
    fn workers_are_known_by_any_listed_secret() {
        let table = CredentialTable::new(vec![credential("plain"), credential("mr_w_x")], None);
        assert_eq!(&*table.authenticate(Some("plain")).unwrap().name, "plain");
        assert_eq!(&*table.authenticate(Some("mr_w_x")).unwrap().name, "mr_w_x");
        for wrong in [Some("plai"), Some(""), None] {
            assert!(table.authenticate(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn an_open_table_takes_strangers_but_knows_its_own() {
        let table = CredentialTable::new(vec![credential("plain")], Some(credential("anyone")));
        assert_eq!(&*table.authenticate(None).unwrap().name, "anyone");
        assert_eq!(&*table.authenticate(Some("stranger")).unwrap().name, "anyone");
        assert_eq!(&*table.authenticate(Some("plain")).unwrap().name, "plain");
    }

    #[test]
    fn sessions_learn_what_became_of_their_credential() {
        let held = credential("a");
        let mut relabelled = held.clone();
        relabelled.labels.insert("zone".into(), "b".into());
        let mut restricted = held.clone();
        restricted.models.push("m".into());
        let standing = |entries| CredentialTable::new(entries, None).standing(&held);
        assert_eq!(standing(vec![relabelled.clone()]), Standing::Valid(Arc::new(relabelled)));
        assert_eq!(standing(vec![restricted]), Standing::Changed);
        assert_eq!(standing(vec![credential("b")]), Standing::Withdrawn(OnRemoval::Disconnect));
    }

    #[test]
    fn a_token_matches_its_hash_only() {
        let right = sha256("token");
        assert!(token_matches(Some("token"), &right));
        assert!(!token_matches(Some("Token"), &right));
        assert!(!token_matches(None, &sha256("")));
    }

    #[test]
    fn nothing_shows_a_secret_or_a_whole_hash() {
        let secret = "mr_app_hush";
        let shown = format!(
            "{:?} {:?} {:?} {:?}",
            table(&[secret]),
            CredentialTable::new(vec![WorkerCredential { name: "w".into(), ..credential(secret) }], None),
            presented(secret),
            generate("app").unwrap(),
        );
        assert!(!shown.contains("hush") && !shown.contains(&sha256(secret).to_hex()), "{shown}");
    }
}
