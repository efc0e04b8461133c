//! Holds the settings in force and follows the files they come from.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use modelrelay_protocol::config::{Invalid, RelayConfig};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::source::{Contents, Draft, SettingsError, Source};
use super::{Builder, Settings};
use crate::replicas::Replicas;

/// How often the files are read. A change counts when two looks in a row find the same, so it is in force within
/// half a second, and a file that is being written is not taken half.
///
/// Comparing what the files hold needs no luck with time stamps, and sees rewrites, renames and swapped symbolic
/// links alike; settings are small, so a look costs microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What became of the files' last change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Changes that came into force.
    pub reloads: u64,
    /// Changes that were refused.
    pub refusals: u64,
    /// Why the files as they are now are not in force; nothing when they are.
    pub problem: Option<String>,
}

/// Whether a relay starts with valid settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Startable {
    /// It does.
    Yes,
    /// Only once something says which workers may serve.
    WithWorkerAuth,
}

impl Startable {
    fn of(draft: &Draft) -> Self {
        let anybody_named = draft.worker_secret.is_some() || !draft.config.worker_credentials.is_empty();
        // A program that writes the settings adds credentials as workers come; until then nobody may serve.
        let follows = draft.config.generated_by.is_some();
        if anybody_named || follows || draft.open_to_workers { Self::Yes } else { Self::WithWorkerAuth }
    }
}

/// The settings in force.
pub struct Live {
    source: Source,
    current: ArcSwap<Settings>,
    changes: watch::Sender<Arc<Settings>>,
    reports: watch::Sender<Report>,
    replicas: Arc<Replicas>,
    follower: Mutex<Follower>,
}

/// What only the task that follows the files touches.
#[derive(Debug)]
struct Follower {
    builder: Builder,
    handled: Contents,
    unsettled: Option<Contents>,
}

impl Live {
    /// Reads the sources for the first time.
    ///
    /// # Errors
    /// What is wrong with them, or that nothing says which workers may serve.
    pub fn start(source: Source) -> Result<Arc<Self>, SettingsError> {
        let contents = source.read();
        let draft = source.interpret(&contents, false)?;
        if Startable::of(&draft) == Startable::WithWorkerAuth {
            return Err(SettingsError::NoWorkerAuth);
        }
        Ok(Arc::new(Self::with(source, contents, draft)))
    }

    /// Validates the sources and refuses unknown fields, whoever wrote them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(source: &Source) -> Result<Startable, SettingsError> {
        source.interpret(&source.read(), true).map(|draft| Startable::of(&draft))
    }

    /// Settings that come from no file and let anybody serve: for tests and embedding.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn fixed(config: RelayConfig) -> Result<Arc<Self>, SettingsError> {
        let invalid =
            |invalid: Invalid| SettingsError::Value { origin: "settings", problem: invalid.to_string() };
        config.validate().map_err(invalid)?;
        let (revision, ignored) = ("none".into(), Vec::new());
        let draft = Draft { config, revision, ignored, worker_secret: None, open_to_workers: true };
        Ok(Arc::new(Self::with(Source::default(), Contents::default(), draft)))
    }

    fn with(source: Source, contents: Contents, draft: Draft) -> Self {
        let mut builder = Builder::default();
        let settings = Arc::new(builder.build(draft));
        tell(&settings);
        let replicas = builder.replicas.clone();
        Self {
            source,
            current: ArcSwap::new(settings.clone()),
            changes: watch::Sender::new(settings),
            reports: watch::Sender::new(Report::default()),
            replicas,
            follower: Mutex::new(Follower { builder, handled: contents, unsettled: None }),
        }
    }

    /// The settings in force, for a moment: do not hold this across an await.
    pub fn load(&self) -> Guard<Arc<Settings>> {
        self.current.load()
    }

    /// The settings in force, to keep.
    pub fn load_full(&self) -> Arc<Settings> {
        self.current.load_full()
    }

    /// How many relay replicas there are.
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// Tells each change; starts with what is in force, unseen.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Settings>> {
        let mut changes = self.changes.subscribe();
        changes.mark_changed();
        changes
    }

    /// What became of the files' last change.
    pub fn report(&self) -> Report {
        self.reports.borrow().clone()
    }

    /// Tells each report, from the next one on.
    pub fn subscribe_reports(&self) -> watch::Receiver<Report> {
        self.reports.subscribe()
    }

    /// Follows the files until told to stop. One task per [`Live`] runs this.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            let reader = self.clone();
            // A file on a network disk may hang; then this task waits and nothing else does.
            let reading = spawn_blocking(move || reader.source.read());
            match stop.run_until_cancelled(reading).await {
                Some(Ok(contents)) => self.look(contents),
                Some(Err(_)) | None => return,
            }
        }
    }

    /// Handles what the files hold now.
    fn look(&self, contents: Contents) {
        let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        if !follower.settles(&contents) {
            return;
        }
        match self.source.interpret(&contents, false) {
            Ok(draft) => {
                let settings = Arc::new(follower.builder.build(self.keep_addresses(draft)));
                self.current.store(settings.clone());
                info!(revision = %settings.revision, "Settings changed");
                tell(&settings);
                self.changes.send_replace(settings);
                self.reports.send_modify(|report| {
                    report.reloads += 1;
                    report.problem = None;
                });
            }
            Err(problem) => {
                error!(%problem, revision = %self.current.load().revision, "Settings not changed");
                self.reports.send_modify(|report| {
                    report.refusals += 1;
                    report.problem = Some(problem.to_string());
                });
            }
        }
        follower.handled = contents;
    }

    /// The ports are bound; the file cannot move them.
    fn keep_addresses(&self, mut draft: Draft) -> Draft {
        let current = self.current.load();
        let (old, new) = (&current.config, &mut draft.config);
        for (field, old, new) in
            [("listen", old.listen, &mut new.listen), ("opsListen", old.ops_listen, &mut new.ops_listen)]
        {
            if old != *new {
                warn!(field, in_force = %old, wanted = %new, "Setting changes at the next start only");
                *new = old;
            }
        }
        draft
    }
}

impl Follower {
    /// Whether the files changed and have stayed so for two looks.
    fn settles(&mut self, contents: &Contents) -> bool {
        if *contents == self.handled {
            self.unsettled = None;
            return false;
        }
        if self.unsettled.as_ref() == Some(contents) {
            self.unsettled = None;
            return true;
        }
        self.unsettled = Some(contents.clone());
        false
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("revision", &self.current.load().revision).finish_non_exhaustive()
    }
}

/// Says in the log what somebody should know about settings that are valid.
fn tell(settings: &Settings) {
    if !settings.ignored.is_empty() {
        let generated_by = settings.config.generated_by.as_deref().unwrap_or_default();
        warn!(
            fields = settings.ignored.join(", "),
            generated_by, "Settings ignored: this version does not know them"
        );
    }
    if settings.keys.is_open() {
        warn!("No client key is configured: whoever reaches the client port may ask");
    } else if settings.keys.is_empty() {
        warn!(
            "No client key is left: every request is refused; clientAuth: {{type: None}} opens the client port"
        );
    }
    if settings.credentials.is_open() {
        warn!("Worker secrets are off: whoever reaches the client port may serve");
    } else if settings.credentials.entries().is_empty() {
        warn!("No worker credential is left: every worker is refused");
    }
}
