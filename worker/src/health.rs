//! Watches the backend: whether it is healthy, which models it serves, and what it says of its load.

mod llama_server;
mod ollama;
mod vllm;

use std::sync::Arc;
use std::time::Duration;

use modelrelay_protocol::codec::FailureCode;
use modelrelay_protocol::config::HealthConfig;
use modelrelay_protocol::frame::{LoadReport, sanitize_models};
use serde::Deserialize;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::app::Core;
use crate::backend::{Backend, CallError};

/// A probe takes no longer.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// A list of models or a page of metrics is at most this long.
const MAX_PROBE_BYTES: usize = 4 * 1024 * 1024;

/// The first wait after the backend turned unhealthy; each further one is twice as long, up to the interval.
const FIRST_RETRY: Duration = Duration::from_millis(250);

/// No wait is longer while the backend starts: whoever waits for the first answer waits for the probe as well.
const LONGEST_START_RETRY: Duration = Duration::from_secs(1);

/// What relays are told of the backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BackendState {
    /// What the backend serves: nothing while it is not healthy.
    pub(crate) models: Vec<String>,
    pub(crate) report: LoadReport,
    /// Since when nothing is advertised, whatever the backend does, because someone asked for it.
    pub(crate) paused: Option<Instant>,
}

impl BackendState {
    /// Returns the models to announce.
    pub(crate) fn models_shown(&self) -> &[String] {
        if self.paused.is_some() { &[] } else { &self.models }
    }

    /// Returns the report to announce.
    pub(crate) fn report_shown(&self) -> LoadReport {
        if self.paused.is_some() {
            return LoadReport { reason: Some(String::from("paused")), ..LoadReport::default() };
        }
        self.report.clone()
    }
}

/// Which engine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    LlamaServer,
    Ollama,
    Vllm,
    Other,
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq)]
enum Probe {
    Healthy(BackendState),
    Unhealthy {
        /// A refused connection leaves no doubt, so it counts at once.
        refused: bool,
        reason: String,
    },
}

/// Turns probes into a state: how many failures it takes, and when to look again.
#[derive(Debug)]
struct Judge {
    failures: u32,
    ever_healthy: bool,
    wait: Duration,
    gave_up: bool,
}

impl Judge {
    fn new() -> Self {
        Self { failures: 0, ever_healthy: false, wait: FIRST_RETRY, gave_up: false }
    }

    /// Returns the state to publish, if it changes, and how long to wait before the next probe. `failing` says
    /// that requests already found the backend gone.
    fn see(
        &mut self,
        probe: Probe,
        failing: bool,
        running_for: Duration,
        config: &HealthConfig,
    ) -> (Option<BackendState>, Duration) {
        match probe {
            Probe::Healthy(state) => {
                *self = Self { ever_healthy: true, ..Self::new() };
                (Some(state), config.interval())
            }
            Probe::Unhealthy { refused, mut reason } => {
                self.failures = self.failures.saturating_add(1);
                let certain =
                    refused || failing || !self.ever_healthy || self.failures >= config.failure_threshold;
                if !certain {
                    return (None, config.interval());
                }
                let mut wait = self.wait.min(config.interval());
                self.wait = wait.saturating_mul(2);
                if !self.ever_healthy {
                    let limit = config.startup_timeout();
                    if running_for < limit {
                        wait = wait.min(LONGEST_START_RETRY);
                        reason = format!("starting: {reason}");
                    } else if !self.gave_up {
                        self.gave_up = true;
                        error!(
                            seconds = limit.as_secs(),
                            reason, "The backend did not become healthy in time"
                        );
                    }
                }
                let report = LoadReport { healthy: false, reason: Some(reason), ..LoadReport::default() };
                (Some(BackendState { report, ..BackendState::default() }), wait)
            }
        }
    }
}

/// Probes the backend until the task is dropped.
pub(crate) async fn watch(core: Arc<Core>) {
    let begun = Instant::now();
    let mut judge = Judge::new();
    let mut prober = Prober::default();
    let mut live = core.live.subscribe();
    loop {
        let settings = live.borrow_and_update().clone();
        let probe = prober.probe(&core.backend, &settings.models, &settings.health).await;
        let failing = !core.state.borrow().report.healthy;
        let (state, wait) = judge.see(probe, failing, begun.elapsed(), &settings.health);
        if let Some(state) = state {
            publish(&core, state);
        }
        core.probed.send_replace(true);
        // A nudge during a burst of failures must not become a burst of probes.
        tokio::time::sleep(wait.min(Duration::from_millis(100))).await;
        tokio::select! {
            () = tokio::time::sleep(wait.saturating_sub(Duration::from_millis(100))) => {}
            () = core.look.notified() => {}
            _ = live.changed() => {}
        }
    }
}

/// Publishes a state and logs what changed.
fn publish(core: &Core, mut state: BackendState) {
    core.state.send_if_modified(|old| {
        state.paused = old.paused;
        if *old == state {
            return false;
        }
        let (was, is) = (old.report.healthy, state.report.healthy);
        if is && (!was || old.models != state.models) {
            info!(models = ?state.models, "The backend is healthy");
        } else if !is && (was || old.report.reason != state.report.reason) {
            let reason = state.report.reason.as_deref().unwrap_or_default();
            warn!(reason, "The backend is not ready; advertising nothing");
        }
        *old = state;
        true
    });
    let state = core.state.borrow();
    core.metrics.backend_healthy.set(state.report.healthy.into());
    core.metrics.models.set(i64::try_from(state.models.len()).unwrap_or(i64::MAX));
}

/// Asks the backend, and remembers which routes it has.
#[derive(Debug, Default)]
struct Prober {
    /// Whether `/health` exists; unknown until the backend answered once.
    has_health: Option<bool>,
    engine: Option<Engine>,
}

#[derive(Debug, Deserialize)]
struct ModelList {
    data: Vec<Model>,
}

#[derive(Debug, Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    owned_by: Option<String>,
}

impl Prober {
    async fn probe(&mut self, backend: &Backend, given: &[String], config: &HealthConfig) -> Probe {
        match self.try_probe(backend, given, config).await {
            Ok(state) => Probe::Healthy(state),
            Err(error) => {
                // What comes back may be another engine.
                *self = Self::default();
                Probe::Unhealthy { refused: error.code == FailureCode::BackendRefused, reason: error.message }
            }
        }
    }

    async fn try_probe(
        &mut self,
        backend: &Backend,
        given: &[String],
        config: &HealthConfig,
    ) -> Result<BackendState, CallError> {
        self.check_health(backend, config).await?;
        let (status, body) = backend.fetch("/v1/models", MAX_PROBE_BYTES, PROBE_LIMIT).await?;
        let listed = serde_json::from_slice::<ModelList>(&body).ok().filter(|_| (200..300).contains(&status));
        let engine = match self.engine {
            Some(engine) => engine,
            None => {
                let engine = recognise(listed.as_ref());
                debug!(?engine, "Recognised the backend");
                *self.engine.insert(engine)
            }
        };
        let models = if !given.is_empty() {
            // The route is not needed then, and an engine without it answers with some 4xx.
            if status >= 500 {
                return Err(unhealthy("/v1/models", status));
            }
            given.to_vec()
        } else {
            let Some(list) = listed else { return Err(unhealthy("/v1/models", status)) };
            let names: Vec<String> = list.data.into_iter().map(|model| model.id).collect();
            sanitize_models(&names)
        };
        let report = LoadReport { healthy: true, ..load(backend, engine).await };
        Ok(BackendState { models, report, paused: None })
    }

    /// Asks the health route: the configured one, else `/health` where there is one.
    async fn check_health(&mut self, backend: &Backend, config: &HealthConfig) -> Result<(), CallError> {
        if let Some(path) = &config.path {
            let (status, _) = backend.fetch(path, MAX_PROBE_BYTES, PROBE_LIMIT).await?;
            return if (200..300).contains(&status) { Ok(()) } else { Err(unhealthy(path, status)) };
        }
        if self.has_health == Some(false) {
            return Ok(());
        }
        let (status, _) = backend.fetch("/health", MAX_PROBE_BYTES, PROBE_LIMIT).await?;
        match status {
            200..300 => self.has_health = Some(true),
            // llama-server answers 503 while it loads.
            500.. => return Err(unhealthy("/health", status)),
            _ => self.has_health = Some(false),
        }
        Ok(())
    }
}

fn unhealthy(path: &str, status: u16) -> CallError {
    CallError::new(FailureCode::BackendGarbage, format!("backend answered {path} with status {status}"))
}

/// Engines sign their models.
fn recognise(list: Option<&ModelList>) -> Engine {
    let owners = list.into_iter().flat_map(|list| &list.data).filter_map(|model| model.owned_by.as_deref());
    for owner in owners {
        match owner {
            "llamacpp" => return Engine::LlamaServer,
            "vllm" => return Engine::Vllm,
            "library" => return Engine::Ollama,
            _ => {}
        }
    }
    Engine::Other
}

/// Reads what an engine says of its load. Engines switch such routes off, so none is needed.
async fn load(backend: &Backend, engine: Engine) -> LoadReport {
    let path = match engine {
        Engine::LlamaServer => llama_server::PATH,
        Engine::Ollama => ollama::PATH,
        Engine::Vllm => vllm::PATH,
        Engine::Other => return LoadReport::default(),
    };
    let Ok((200, body)) = backend.fetch(path, MAX_PROBE_BYTES, PROBE_LIMIT).await else {
        return LoadReport::default();
    };
    match engine {
        Engine::LlamaServer => llama_server::read(&body),
        Engine::Ollama => ollama::read(&body),
        Engine::Vllm => vllm::read(&body),
        Engine::Other => None,
    }
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Probe {
        let report = LoadReport { healthy: true, ..LoadReport::default() };
        Probe::Healthy(BackendState { models: vec![String::from("m")], report, paused: None })
    }

    fn failed(refused: bool) -> Probe {
        Probe::Unhealthy { refused, reason: String::from("why") }
    }

    fn config() -> HealthConfig {
        HealthConfig { interval_seconds: 2, failure_threshold: 3, ..HealthConfig::default() }
    }

    #[test]
    fn a_healthy_backend_may_stumble_but_not_fall() {
        let mut judge = Judge::new();
        let mut see =
            |probe| judge.see(probe, false, Duration::ZERO, &config()).0.map(|state| state.models.len());
        assert_eq!(see(healthy()), Some(1));
        assert_eq!(see(failed(false)), None);
        assert_eq!(see(failed(false)), None);
        assert_eq!(see(failed(false)), Some(0));
        assert_eq!(see(healthy()), Some(1));
        assert_eq!(see(failed(false)), None);
        assert_eq!(see(failed(true)), Some(0));
    }

    #[test]
    fn an_unhealthy_backend_is_looked_at_soon_and_then_less_often() {
        let mut judge = Judge::new();
        let mut wait = |probe| judge.see(probe, false, Duration::ZERO, &config()).1.as_millis();
        assert_eq!(wait(healthy()), 2000);
        let waits: Vec<_> = (0..5).map(|_| wait(failed(true))).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 2000]);
        assert_eq!(wait(healthy()), 2000);
        assert_eq!(wait(failed(true)), 250);
    }

    #[test]
    fn a_backend_that_starts_is_looked_at_every_second_until_its_time_is_over() {
        let mut judge = Judge::new();
        let mut wait =
            |seconds| judge.see(failed(true), false, Duration::from_secs(seconds), &config()).1.as_millis();
        let waits: Vec<_> = (0..5).map(&mut wait).collect();
        assert_eq!(waits, [250, 500, 1000, 1000, 1000]);
        assert_eq!(wait(5000), 2000);
    }

    #[test]
    fn a_backend_that_was_never_healthy_is_starting_for_a_while() {
        let mut judge = Judge::new();
        let mut reason = |seconds| {
            let state = judge.see(failed(false), false, Duration::from_secs(seconds), &config()).0.unwrap();
            state.report.reason.unwrap()
        };
        assert_eq!(reason(5), "starting: why");
        assert_eq!(reason(5000), "why");
    }

    #[test]
    fn engines_are_known_by_their_signature() {
        let list = |owner: &str| ModelList {
            data: vec![Model { id: String::from("m"), owned_by: Some(owner.to_owned()) }],
        };
        assert_eq!(recognise(Some(&list("llamacpp"))), Engine::LlamaServer);
        assert_eq!(recognise(Some(&list("vllm"))), Engine::Vllm);
        assert_eq!(recognise(Some(&list("library"))), Engine::Ollama);
        assert_eq!(recognise(Some(&list("me"))), Engine::Other);
        assert_eq!(recognise(None), Engine::Other);
    }
}
