//! Workers that register with a relay and then only answer its pings, for measuring what an idle worker costs.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::closed::within;
use crate::report::{Failure, Meter, Tally};
use crate::session::{Registration, Session};
use crate::streams::OPENING;
use crate::target::Target;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Workers to register.
    pub count: usize,
    /// The secret that they show.
    pub secret: String,
    /// The model that they serve.
    pub model: String,
    /// Slots of each.
    pub slots: u32,
    /// Plain v1 instead of what the project's own worker announces.
    pub v1: bool,
    /// Time in which all of them have to be registered.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            count: 1000,
            secret: String::new(),
            model: "idle".to_owned(),
            slots: 1,
            v1: false,
            timeout: Duration::from_secs(60),
        }
    }
}

/// What was registered.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub struct Report {
    /// Workers that are registered.
    pub registered: usize,
    /// Seconds until then.
    pub seconds: f64,
    /// All attempts.
    #[serde(flatten)]
    pub tally: Tally,
}

/// Registered workers; dropping them closes their connections.
#[derive(Debug)]
pub struct Workers {
    /// How they were registered.
    pub report: Report,
    sessions: JoinSet<Failure>,
}

impl Workers {
    /// Returns how many sessions the relay has ended so far.
    pub fn lost(&mut self) -> usize {
        while self.sessions.try_join_next().is_some() {}
        self.report.registered - self.sessions.len()
    }
}

/// Registers the workers.
pub async fn open(target: &Target, options: &Options, meter: &Arc<Meter>) -> Workers {
    let started = Instant::now();
    let deadline = started + options.timeout;
    let opening = Arc::new(Semaphore::new(OPENING));
    let mut attempts = JoinSet::new();
    for number in 0..options.count {
        let (target, options, opening, meter) =
            (target.clone(), options.clone(), opening.clone(), meter.clone());
        attempts.spawn(async move {
            let attempt = async {
                let _permit = opening.acquire().await;
                let name = format!("idle-{number}");
                let Options { model, slots, v1, .. } = &options;
                let mut session = Session::connect(&target, &options.secret).await?;
                let registration = Registration { name: &name, model, slots: *slots, extended: !v1 };
                session.register(registration).await.map(|()| session)
            };
            let result = within(deadline, attempt).await;
            meter.end(&result);
            result
        });
    }
    let mut tally = Tally::default();
    let mut sessions = JoinSet::new();
    while let Some(ended) = attempts.join_next().await {
        let result = ended.expect("a connection's task does not panic");
        tally.end(&result);
        if let Ok(session) = result {
            sessions.spawn(serve(session));
        }
    }
    let report = Report { registered: sessions.len(), seconds: started.elapsed().as_secs_f64(), tally };
    Workers { report, sessions }
}

/// Answers pings until the session ends. Nobody asks for the model, so there is nothing else to answer.
async fn serve(mut session: Session) -> Failure {
    loop {
        if let Err(failure) = session.next().await {
            return failure;
        }
    }
}
