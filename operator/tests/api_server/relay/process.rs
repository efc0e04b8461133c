//! Real relays and workers, and what a node would do for them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::support::eventually;

/// A running program; it ends when this is dropped.
struct Program(Child);

impl Program {
    fn start(program: PathBuf, arguments: &[String]) -> Self {
        let mut command = Command::new(program);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.args(arguments).spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program of this workspace; none where nobody built it.
fn program(name: &str) -> Option<PathBuf> {
    dev_cluster::tool("MODELRELAY_BIN_DIR").map(|folder| folder.join(name))
}

/// An address of this machine that no other test has.
pub(crate) fn address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(2);
    let [.., low, high] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let process = u8::try_from(std::process::id() % 200).unwrap();
    Ipv4Addr::new(127, 20 + process, low, high).into()
}

/// A relay with an address of its own, as a pod has one.
pub(crate) struct Relay {
    pub(crate) address: IpAddr,
    folder: TempDir,
    _program: Program,
}

impl Relay {
    /// Starts one with these settings.
    pub(crate) async fn start(settings: &str) -> Option<Self> {
        let program = program("modelrelay-relay")?;
        let (folder, address) = (TempDir::new().unwrap(), address());
        let file = folder.path().join("relay.yaml");
        std::fs::write(&file, settings).unwrap();
        let arguments = [
            "--config".to_owned(),
            file.display().to_string(),
            "--listen".to_owned(),
            SocketAddr::new(address, 8080).to_string(),
            "--ops-listen".to_owned(),
            SocketAddr::new(address, 8081).to_string(),
        ];
        let program = Program::start(program, &arguments);
        eventually("the relay to listen", async || TcpStream::connect((address, 8081)).await.ok()).await;
        Some(Self { address, folder, _program: program })
    }

    /// Puts other settings where it looks for them, as a kubelet does.
    pub(crate) fn update(&self, settings: &str) {
        let fresh = self.folder.path().join("fresh");
        std::fs::write(&fresh, settings).unwrap();
        std::fs::rename(fresh, self.folder.path().join("relay.yaml")).unwrap();
    }
}

/// Answers each path with its JSON.
pub(super) fn serve(
    listener: TcpListener,
    answers: &[(&'static str, serde_json::Value)],
) -> AbortOnDropHandle<()> {
    let routes = answers.iter().fold(Router::new(), |routes, (path, answer)| {
        let answer = Json(answer.clone());
        routes.route(path, get(async move || answer))
    });
    #[expect(clippy::disallowed_methods, reason = "it ends with the handle")]
    let serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    AbortOnDropHandle::new(serving)
}

/// A worker with a backend that serves one model.
pub(crate) struct Worker {
    _program: Program,
    _backend: AbortOnDropHandle<()>,
    _folder: TempDir,
}

impl Worker {
    /// Starts one that serves `model` at a relay.
    pub(crate) async fn start(relay: &Relay, token: &str, model: &'static str) -> Option<Self> {
        let program = program("modelrelay-worker")?;
        let folder = TempDir::new().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, token).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let backend = listener.local_addr().unwrap();
        let models = json!({ "object": "list", "data": [{ "id": model, "object": "model" }] });
        let serving = serve(listener, &[("/v1/models", models)]);
        let arguments = [
            "--relay-url".to_owned(),
            format!("http://{}", SocketAddr::new(relay.address, 8080)),
            "--worker-secret-file".to_owned(),
            secret.display().to_string(),
            "--backend-url".to_owned(),
            format!("http://{backend}"),
            "--ops-listen".to_owned(),
            SocketAddr::new(address(), 8081).to_string(),
            "--name".to_owned(),
            "w1".to_owned(),
        ];
        let program = Program::start(program, &arguments);
        Some(Self { _program: program, _backend: serving, _folder: folder })
    }
}
