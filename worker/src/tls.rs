//! Whom the worker trusts when it dials `https` and `wss`.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// Trusts the system's authorities and those of a PEM file.
///
/// # Errors
/// The file cannot be read or holds no certificate.
pub(crate) fn client_config(ca_file: Option<&Path>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    // Single unreadable system certificates are normal; none at all shows when something is dialled.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let shown = path.display();
        let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<_, _>>)
            .with_context(|| format!("tls.caFile: cannot read {shown}"))?;
        anyhow::ensure!(!certificates.is_empty(), "tls.caFile: {shown} holds no certificate");
        for certificate in certificates {
            roots.add(certificate).with_context(|| format!("tls.caFile: {shown}"))?;
        }
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
