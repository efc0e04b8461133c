//! Certificates and keys of a cluster, as files below its folder.

use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// A certificate and its key, both in PEM form.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The file of the certificate.
    pub certificate: PathBuf,
    /// The file of the key.
    pub key: PathBuf,
}

/// An authority whose certificates everything in the cluster trusts.
#[derive(Debug)]
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    own: Identity,
}

/// Who a certificate is for.
#[derive(Debug, Default)]
pub(crate) struct Subject<'a> {
    pub(crate) user: &'a str,
    pub(crate) group: Option<&'a str>,
    /// Addresses and host names of a server; a client has none.
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) hosts: &'a [&'a str],
}

impl Authority {
    pub(crate) fn create(folder: &Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate().context("generate a key")?;
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        parameters.distinguished_name = distinguished(name, None);
        let certificate = parameters.self_signed(&key).context("sign an authority's certificate")?;
        let own = write(folder, name, &certificate.pem(), &key)?;
        Ok(Self { folder: folder.to_owned(), issuer: Issuer::new(parameters, key), own })
    }

    pub(crate) fn own(&self) -> &Identity {
        &self.own
    }

    /// Writes a certificate and its key to files called `name`.
    pub(crate) fn issue(&self, name: &str, subject: &Subject<'_>) -> Result<Identity> {
        let key = KeyPair::generate().context("generate a key")?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = distinguished(subject.user, subject.group);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        for &address in subject.addresses {
            parameters.subject_alt_names.push(SanType::IpAddress(address));
        }
        for &host in subject.hosts {
            let host = host.try_into().with_context(|| format!("{host} is no host name"))?;
            parameters.subject_alt_names.push(SanType::DnsName(host));
        }
        if !parameters.subject_alt_names.is_empty() {
            parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = parameters.signed_by(&key, &self.issuer).context("sign a certificate")?;
        write(&self.folder, name, &certificate.pem(), &key)
    }
}

/// Writes a key pair without a certificate: the private half to `NAME.key`, the public half to `NAME.crt`.
pub(crate) fn key_pair(folder: &Path, name: &str) -> Result<Identity> {
    let key = KeyPair::generate().context("generate a key")?;
    write(folder, name, &key.public_key_pem(), &key)
}

fn distinguished(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, DnValue::Utf8String(name.to_owned()));
    if let Some(group) = group {
        distinguished.push(DnType::OrganizationName, DnValue::Utf8String(group.to_owned()));
    }
    distinguished
}

fn write(folder: &Path, name: &str, public: &str, key: &KeyPair) -> Result<Identity> {
    let identity =
        Identity { certificate: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) };
    fs::write(&identity.certificate, public).context("write a certificate")?;
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&identity.key);
    let mut file = file.context("create a key file")?;
    file.write_all(key.serialize_pem().as_bytes()).context("write a key")?;
    Ok(identity)
}
