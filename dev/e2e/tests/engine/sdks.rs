//! The OpenAI and Anthropic client libraries through relay and worker.

use std::process::Stdio;
use std::time::Duration;

use dev_e2e::floor;
use tokio::process::Command;
use tokio::time::timeout;

use crate::engine::{Engine, Model, part, serve};

/// What one script may take on a machine that does other things.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs both scripts against one engine: loading it is most of the work.
#[tokio::test]
async fn client_libraries_get_answers_streams_tool_calls_and_errors() {
    let _floor = floor::shared().await;
    let (Some(python), Some(engine)) = (part("MODELRELAY_PYTHON"), Engine::start(Model::Small).await) else {
        return;
    };
    let (relay, _worker) = serve(engine.address, 2).await;
    for script in ["openai_sdk.py", "anthropic_sdk.py"] {
        let mut command = Command::new(&python);
        command.arg(format!("{}/tests/engine/{script}", env!("CARGO_MANIFEST_DIR")));
        command.args([&relay.url(), "engine"]).stdin(Stdio::null()).kill_on_drop(true);
        // Proxies and keys of whoever runs this are not for a server on this machine.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let output = timeout(LIMIT, command.output()).await.expect("it ends in time").unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script} ended with {}:\n{text}", output.status);
    }
    relay.ops.settled().await;
}
