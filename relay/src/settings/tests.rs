use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::keys::{ClientCredential, Standing, generate, key_id};

fn settings(yaml: &str) -> Settings {
    let config = RelayConfig::parse_strictly(yaml).unwrap();
    config.validate().unwrap();
    Builder::default().build(draft(config, None))
}

fn draft(config: RelayConfig, worker_secret: Option<&str>) -> Draft {
    let worker_secret = worker_secret.map(Secret::new);
    Draft { config, revision: "test".into(), ignored: Vec::new(), worker_secret, open_to_workers: false }
}

fn parsed(yaml: &str) -> RelayConfig {
    RelayConfig::parse(yaml).unwrap().config
}

fn presented(key: &str) -> Option<ClientCredential> {
    let value = http::HeaderValue::from_str(key).unwrap();
    ClientCredential::from_headers(
        &[(http::HeaderName::from_static("x-api-key"), value)].into_iter().collect(),
    )
}

fn client_entry(key: &str, more: &str) -> String {
    format!("clientKeys: [{{ id: {}, sha256: \"{}\"{more} }}]", key_id(key).unwrap(), sha256(key).to_hex())
}

fn worker_entry(secret: &str, more: &str) -> String {
    format!("workerCredentials: [{{ sha256: \"{}\"{more} }}]", sha256(secret).to_hex())
}

#[test]
fn aliases_have_targets_and_other_names_have_none() {
    let settings = settings("models: [{ name: a, targets: [{ model: b, weight: 9 }, { model: c }] }]");
    let targets = settings.targets("a").unwrap();
    let pairs: Vec<_> = targets.iter().map(|target| (&*target.model, target.weight)).collect();
    assert_eq!(pairs, [("b", 9), ("c", 1)]);
    assert_eq!(settings.targets("b"), None);
    assert_eq!(settings.aliases().map(|name| &**name).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn models_are_ruled_out_only_when_every_credential_lists_its_own() {
    let alias = "models: [{ name: alias, targets: [{ model: x }] }]\n";
    let listed = settings(&format!("{alias}{}", worker_entry("w", ", models: [one, two]")));
    let table = [("one", true), ("alias", true), ("three", false), ("x", false)];
    for (model, admissible) in table {
        assert_eq!(listed.admissible(model), admissible, "{model}");
    }
    let any = settings(&format!("{alias}{}", worker_entry("w", "")));
    let star = settings(&format!("{alias}{}", worker_entry("w", ", models: ['*']")));
    let plain = Builder::default().build(draft(listed.config, Some("plain secret")));
    for settings in [any, star, plain] {
        assert!(settings.admissible("three"), "{:?}", settings.credentials);
    }
}

#[test]
fn keys_carry_tenant_priority_models_and_limits() {
    let key = generate("app").unwrap();
    let more = ", tenant: team, priority: high, models: [m], requestsPerMinute: 1, maxConcurrentRequests: 9";
    let entry = client_entry(key.expose(), more);
    let settings = settings(&format!("priorities: [{{ name: high, value: 7 }}]\n{entry}"));
    let found = settings.keys.authenticate(presented(key.expose()).as_ref()).unwrap();
    assert_eq!((&*found.id, &*found.tenant_name, &*found.priority, found.band), ("app", "team", "high", 7));
    assert_eq!(settings.tenant_name(found.tenant), "team");
    assert!(found.allows("m") && !found.allows("n"));
    assert_eq!(found.limits.requests_per_minute, Some(1));
    assert_eq!(found.limits.tokens_per_minute, None);
    assert_eq!(found.limits.max_concurrent, Some(9));
    let among_four =
        self::settings(&format!("replicas: 4\npriorities: [{{ name: high, value: 7 }}]\n{entry}"));
    let found = among_four.keys.authenticate(presented(key.expose()).as_ref()).unwrap();
    assert_eq!((found.limits.requests_per_minute, found.limits.max_concurrent), (Some(1), Some(9)));
    assert_eq!(found.replicas.get(), 4);
}

#[test]
#[allow(clippy::disallowed_methods)]
fn limits_follow_the_number_of_replicas_at_once() {
    let key = generate("app").unwrap();
    let entry = client_entry(key.expose(), ", maxConcurrentRequests: 9");
    let settings = settings(&format!("{{replicas: 3, replicasFrom: relays, {entry}}}"));
    let found = settings.keys.authenticate(presented(key.expose()).as_ref()).unwrap();
    let mut held = Vec::new();
    let mut room = |most: usize| {
        while let Ok(permit) = found.try_acquire(Instant::now()) {
            held.push(permit);
        }
        assert_eq!(held.len(), most);
    };
    room(3);
    found.replicas.counted("relays", 2);
    room(5);
    found.replicas.counted("relays", 1);
    room(9);
    found.replicas.counted("relays", 100);
    room(9);
    held.truncate(1);
    assert!(found.try_acquire(Instant::now()).is_err(), "one each, and it is taken");
    held.clear();
    assert!(found.try_acquire(Instant::now()).is_ok());
}

#[test]
fn without_keys_the_port_is_open_unless_the_file_says_otherwise() {
    assert!(settings("{}").keys.is_open());
    assert!(!settings("clientAuth: { type: APIKeys }").keys.is_open());
    assert_eq!(&*settings("{}").keys.authenticate(None).unwrap().id, ANONYMOUS);
}

#[test]
fn revoking_the_last_key_does_not_open_the_port() {
    let mut builder = Builder::default();
    let key = "mr_app_x";
    assert!(!builder.build(draft(parsed(&client_entry(key, "")), None)).keys.is_open());
    let revoked = builder.build(draft(parsed("{}"), None));
    assert!(!revoked.keys.is_open() && revoked.keys.authenticate(presented(key).as_ref()).is_none());
    assert!(builder.build(draft(parsed("clientAuth: { type: None }"), None)).keys.is_open());
}

#[test]
fn the_band_of_keys_without_a_priority_can_be_named() {
    assert_eq!(settings("{}").keys.authenticate(None).unwrap().band, 0);
    let named = settings("priorities: [{ name: default, value: -5 }]");
    assert_eq!(named.keys.authenticate(None).unwrap().band, -5);
}

#[test]
fn tenants_keep_their_number_and_keys_their_usage_when_settings_change() {
    let mut builder = Builder::default();
    let keys = |more: &str| {
        let [one, two] = ["mr_a_x", "mr_b_x"].map(|key| sha256(key).to_hex());
        parsed(
            &format!("clientKeys: [{{ id: a, sha256: \"{one}\", maxConcurrentRequests: 1 }}{more}]")
                .replace("TWO", &two),
        )
    };
    let before = builder.build(draft(keys(", { id: b, sha256: \"TWO\" }"), None));
    let find =
        |settings: &Settings| settings.keys.authenticate(presented("mr_a_x").as_ref()).unwrap().clone();
    let tenant_b = before.keys.authenticate(presented("mr_b_x").as_ref()).unwrap().tenant;
    #[allow(clippy::disallowed_methods)]
    let now = Instant::now();
    let held = find(&before).try_acquire(now).unwrap();

    let after = builder.build(draft(keys(""), None));
    assert_eq!(find(&after).tenant, find(&before).tenant);
    assert!(find(&after).try_acquire(now).is_err(), "the request that runs still counts");
    drop(held);
    assert!(find(&after).try_acquire(now).is_ok());

    let again = builder.build(draft(parsed("tenants: [{ name: b, weight: 4 }]"), None));
    assert_eq!(again.scheduler().tenants, BTreeMap::from([(tenant_b, 4)]));
}

#[test]
fn the_shared_secret_is_a_credential_that_the_file_can_restrict() {
    let settings = Builder::default().build(draft(RelayConfig::default(), Some("plain")));
    let found = settings.credentials.authenticate(Some("plain")).unwrap();
    assert!(found.allows_any());
    assert_eq!((&*found.name, &*found.pool), ("worker-secret", "default"));

    let config = parsed(&worker_entry("plain", ", pool: rack, models: [m]"));
    let settings = Builder::default().build(draft(config, Some("plain")));
    assert_eq!(&*settings.credentials.authenticate(Some("plain")).unwrap().pool, "rack");
    assert_eq!(settings.credentials.entries().len(), 1);
}

#[test]
fn the_scheduler_is_told_what_the_file_says() {
    let config = settings(
        "{ queue: { maxRequests: 3, noWorkerTimeoutSeconds: 4 }, routing: { strategy: PrefixHash } }",
    );
    let scheduler = config.scheduler();
    assert_eq!((scheduler.max_requests, scheduler.max_bytes), (3, 256 << 20));
    assert_eq!(scheduler.no_worker_timeout, Duration::from_secs(4));
    assert_eq!(scheduler.queue_timeout, Duration::from_secs(30));
    assert_eq!(scheduler.strategy, Strategy::PrefixHash { max_load_percent: 125 });
}

fn source(folder: &Path) -> Source {
    Source {
        config_file: Some(Given { value: folder.join("relay.yaml"), origin: "--config" }),
        worker_secret: SecretSource::Given(Secret::new("hush-hush")),
        ..Source::default()
    }
}

fn start_error(source: Source) -> String {
    Live::start(source).unwrap_err().to_string()
}

#[test]
fn overrides_go_before_the_file_and_are_named_when_wrong() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("relay.yaml"), "queue: { maxRequests: 5, timeoutSeconds: 6 }").unwrap();
    let given = |value| Some(Given { value, origin: "MAX_QUEUE_LEN" });
    let with = |max_requests| Source {
        overrides: Overrides { max_requests, ..Overrides::default() },
        ..source(folder.path())
    };

    let live = Live::start(with(given(9))).unwrap();
    assert_eq!((live.load().config.queue.max_requests, live.load().config.queue.timeout_seconds), (9, 6));
    assert_eq!(start_error(with(given(0))), "MAX_QUEUE_LEN: queue.maxRequests: must be at least 1, is 0");

    let seconds = Some(Given { value: 3, origin: "QUEUE_TIMEOUT_SECS" });
    let overrides = Overrides { queue_timeout_seconds: seconds, ..Overrides::default() };
    let live = Live::start(Source { overrides, ..source(folder.path()) }).unwrap();
    let queue = &live.load().config.queue;
    assert_eq!((queue.timeout_seconds, queue.no_worker_timeout_seconds), (3, 3));
}

#[test]
fn wrong_sources_are_refused_on_one_line() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("relay.yaml");
    let shown = file.display();
    assert_eq!(
        start_error(source(folder.path())),
        format!("--config: cannot read {shown}: there is no such file")
    );
    fs::write(&file, "queue: { maxRequests: 0 }").unwrap();
    assert_eq!(
        start_error(source(folder.path())),
        format!("{shown}: queue.maxRequests: must be at least 1, is 0")
    );
    fs::write(&file, "generatedBy: newer\nshape: round").unwrap();
    assert_eq!(Live::start(source(folder.path())).unwrap().load().ignored, ["shape"]);
    let strict = Live::check(&source(folder.path())).unwrap_err().to_string();
    assert!(strict.starts_with(&format!("{shown}: shape: unknown field")), "{strict}");

    fs::write(&file, "{}").unwrap();
    let secret = folder.path().join("secret");
    let with_secret =
        || Source { worker_secret: SecretSource::File(secret.clone()), ..source(folder.path()) };
    let missing = format!("--worker-secret-file: cannot read {}: there is no such file", secret.display());
    assert_eq!(start_error(with_secret()), missing);
    fs::write(&secret, "\n").unwrap();
    assert_eq!(start_error(with_secret()), format!("--worker-secret-file: {} is empty", secret.display()));
}

#[test]
fn a_relay_starts_only_when_something_says_who_may_serve() {
    assert_eq!(Live::start(Source::default()).unwrap_err(), SettingsError::NoWorkerAuth);
    let insecure = Live::start(Source { insecure_no_worker_auth: true, ..Source::default() }).unwrap();
    assert!(insecure.load().credentials.authenticate(None).is_some());
    assert!(Live::check(&Source::default()).is_ok(), "the secret may be on another machine");

    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("relay.yaml"), worker_entry("w", "")).unwrap();
    let listed = Source { worker_secret: SecretSource::Absent, ..source(folder.path()) };
    assert!(Live::start(listed.clone()).unwrap().load().credentials.authenticate(Some("w")).is_some());

    // Whoever writes the settings adds credentials later; until then nobody is let in.
    fs::write(folder.path().join("relay.yaml"), "generatedBy: operator").unwrap();
    let empty = Live::start(listed).unwrap().load();
    assert!([None, Some("w")].iter().all(|secret| empty.credentials.authenticate(*secret).is_none()));
}

#[test]
fn nothing_shows_a_secret() {
    let folder = TempDir::new().unwrap();
    let key = generate("app").unwrap();
    fs::write(folder.path().join("relay.yaml"), client_entry(key.expose(), "")).unwrap();
    let source = source(folder.path());
    let live = Live::start(source.clone()).unwrap();
    let shown = format!("{source:?} {live:?} {:?} {:?} {:?}", live.load(), live.report(), source.read());
    for hidden in ["hush-hush", key.expose(), &sha256(key.expose()).to_hex(), &sha256("hush-hush").to_hex()] {
        assert!(!shown.contains(hidden), "{shown}");
    }
}

/// A relay's settings that are followed while the test runs.
struct Followed {
    folder: TempDir,
    live: Arc<Live>,
    stop: CancellationToken,
    task: JoinSet<()>,
}

impl Followed {
    fn file(yaml: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("relay.yaml"), yaml).unwrap();
        Self::folder(folder)
    }

    fn folder(folder: TempDir) -> Self {
        let live = Live::start(source(folder.path())).unwrap();
        let (stop, mut task) = (CancellationToken::new(), JoinSet::new());
        task.spawn(live.clone().follow(stop.clone()));
        Self { folder, live, stop, task }
    }

    fn write(&self, yaml: &str) {
        fs::write(self.folder.path().join("relay.yaml"), yaml).unwrap();
    }

    /// Waits until the settings in force are such, by way of the channel that others wait on.
    async fn until(&self, wanted: impl FnMut(&Arc<Settings>) -> bool) {
        let mut changes = self.live.subscribe();
        timeout(Duration::from_secs(10), changes.wait_for(wanted))
            .await
            .expect("in time")
            .expect("not closed");
    }

    async fn until_refused(&self) -> String {
        let mut reports = self.live.subscribe_reports();
        let refused =
            timeout(Duration::from_secs(10), reports.wait_for(|report| report.problem.is_some())).await;
        refused.expect("in time").expect("not closed").problem.clone().unwrap()
    }

    async fn until_good(&self) {
        let mut reports = self.live.subscribe_reports();
        let good =
            timeout(Duration::from_secs(10), reports.wait_for(|report| report.problem.is_none())).await;
        good.expect("in time").expect("not closed");
    }

    async fn end(mut self) {
        self.stop.cancel();
        let ended = timeout(Duration::from_secs(10), self.task.join_next()).await;
        ended.expect("in time").expect("one task").unwrap();
    }
}

#[tokio::test]
async fn a_changed_file_comes_into_force_within_a_second() {
    let followed = Followed::file("queue: { maxRequests: 1 }");
    let revision = followed.live.load().revision.clone();
    let written = tokio::time::Instant::now();
    followed.write("queue: { maxRequests: 2 }");
    followed.until(|settings| settings.config.queue.max_requests == 2).await;
    assert!(written.elapsed() < Duration::from_secs(1), "{:?}", written.elapsed());
    assert_ne!(followed.live.load().revision, revision);
    followed.until_good().await;
    followed.end().await;
}

#[tokio::test]
async fn a_swapped_symbolic_link_is_a_change() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    // As Kubernetes mounts a Secret: the file is a link into a linked folder, and only the folder's link is swapped.
    for (version, max_requests) in [("..1", 1), ("..2", 2)] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("relay.yaml"), format!("queue: {{ maxRequests: {max_requests} }}"))
            .unwrap();
    }
    symlink("..1", path("..data")).unwrap();
    symlink("..data/relay.yaml", path("relay.yaml")).unwrap();
    let (next, data) = (path("..data_tmp"), path("..data"));
    symlink("..2", &next).unwrap();

    let followed = Followed::folder(folder);
    assert_eq!(followed.live.load().config.queue.max_requests, 1);
    fs::rename(next, data).unwrap();
    followed.until(|settings| settings.config.queue.max_requests == 2).await;
    followed.end().await;
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_why() {
    let followed = Followed::file("queue: { maxRequests: 1 }");
    for (bad, problem) in [
        ("queue: { maxRequests: 0 }", "queue.maxRequests: must be at least 1, is 0"),
        ("", "the file is empty"),
    ] {
        followed.write("queue: { maxRequests: 1 }");
        followed.until_good().await;
        followed.write(bad);
        let told = followed.until_refused().await;
        assert!(told.contains(problem), "{told}");
        assert_eq!(followed.live.load().config.queue.max_requests, 1);
    }
    assert_eq!(followed.live.report().refusals, 2);
    followed.write("queue: { maxRequests: 3 }");
    followed.until(|settings| settings.config.queue.max_requests == 3).await;
    followed.until_good().await;
    followed.end().await;
}

#[tokio::test]
async fn a_removed_file_changes_nothing() {
    let followed = Followed::file("queue: { maxRequests: 1 }");
    fs::remove_file(followed.folder.path().join("relay.yaml")).unwrap();
    assert!(followed.until_refused().await.ends_with("there is no such file"));
    assert_eq!(followed.live.load().config.queue.max_requests, 1);
    followed.end().await;
}

#[tokio::test]
async fn addresses_stay_until_the_next_start() {
    let followed = Followed::file("listen: 127.0.0.1:1000");
    followed.write("{ listen: '127.0.0.1:2000', queue: { maxRequests: 2 } }");
    followed.until(|settings| settings.config.queue.max_requests == 2).await;
    assert_eq!(followed.live.load().config.listen.port(), 1000);
    followed.end().await;
}

#[tokio::test]
async fn sessions_learn_of_a_removed_credential() {
    let followed = Followed::file(&worker_entry("w", ", onRemoval: Drain"));
    let held = followed.live.load().credentials.authenticate(Some("w")).unwrap();
    followed.write("{}");
    followed
        .until(|settings| settings.credentials.standing(&held) == Standing::Withdrawn(OnRemoval::Drain))
        .await;
    followed.end().await;
}

#[tokio::test]
async fn the_worker_secret_file_is_followed_too() {
    let folder = TempDir::new().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "old\n").unwrap();
    let source = Source { worker_secret: SecretSource::File(secret.clone()), ..Source::default() };
    let live = Live::start(source).unwrap();
    let (stop, mut task) = (CancellationToken::new(), JoinSet::new());
    task.spawn(live.clone().follow(stop.clone()));
    assert!(live.load().credentials.authenticate(Some("old")).is_some());
    fs::write(&secret, "new\n").unwrap();
    let followed = Followed { folder, live, stop, task };
    followed.until(|settings| settings.credentials.authenticate(Some("new")).is_some()).await;
    assert!(followed.live.load().credentials.authenticate(Some("old")).is_none());
    followed.end().await;
}

#[test]
fn fixed_settings_are_open_and_validated() {
    let live = Live::fixed(RelayConfig::default()).unwrap();
    assert!(live.load().keys.is_open() && live.load().credentials.is_open());
    let mut config = RelayConfig::default();
    config.queue.max_requests = 0;
    assert_eq!(
        Live::fixed(config).unwrap_err().to_string(),
        "settings: queue.maxRequests: must be at least 1, is 0"
    );
}
