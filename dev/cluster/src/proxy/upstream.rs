//! Connections to the API server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use crate::pki::Identity;

/// The API server as the proxy reaches it.
pub(crate) struct ApiServer {
    address: SocketAddr,
    /// Shows the certificate with which one may say in headers who asks.
    trusted: TlsConnector,
    plain: TlsConnector,
}

impl ApiServer {
    pub(crate) fn new(address: SocketAddr, authority: &Path, front: &Identity) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(authority)?).context("trust the cluster's authority")?;
        let builder = || {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let versions =
                ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            Ok::<_, anyhow::Error>(
                versions.context("choose TLS versions")?.with_root_certificates(roots.clone()),
            )
        };
        let trusted = builder()?
            .with_client_auth_cert(vec![certificate(&front.certificate)?], key(&front.key)?)
            .context("use the proxy's certificate")?;
        let plain = builder()?.with_no_client_auth();
        Ok(Self { address, trusted: Arc::new(trusted).into(), plain: Arc::new(plain).into() })
    }

    async fn connect(&self, trusted: bool, tasks: &TaskTracker) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.address).await.context("connect to the API server")?;
        let connector = if trusted { &self.trusted } else { &self.plain };
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = connector.connect(name, stream).await.context("agree on TLS with the API server")?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the sender; the request that meets an error tells of it.
        tasks.spawn(async move { connection.await.ok() });
        Ok(sender)
    }
}

/// One client's connection to the API server, made when it is needed.
#[derive(Default)]
pub(crate) struct Line {
    sender: Option<SendRequest<Full<Bytes>>>,
    trusted: bool,
}

impl Line {
    /// Sends a request, and says who asks only where `trusted`.
    pub(crate) async fn send(
        &mut self,
        api_server: &ApiServer,
        trusted: bool,
        tasks: &TaskTracker,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>> {
        let mut kept = self.sender.take().filter(|_| self.trusted == trusted);
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => api_server.connect(trusted, tasks).await?,
        };
        let answer = sender.send_request(request).await.context("ask the API server")?;
        (self.sender, self.trusted) = (Some(sender), trusted);
        Ok(answer)
    }
}

pub(crate) fn certificate(path: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path).with_context(|| format!("read {}", path.display()))
}

pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).with_context(|| format!("read {}", path.display()))
}
