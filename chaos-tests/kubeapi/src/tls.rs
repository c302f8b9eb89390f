//! The certificate authority and the serving certificate.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::util::{self, lock};

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A name cannot stand in a certificate, or signing failed.
    #[error("cannot make a certificate for {names:?}: {source}")]
    Certificate {
        /// The names it was for.
        names: Vec<String>,
        /// Why.
        source: rcgen::Error,
    },
    /// The TLS library refuses key or configuration.
    #[error("cannot use the serving certificate: {0}")]
    Rustls(#[from] rustls::Error),
    /// The CA of the state directory cannot be read or written.
    #[error("cannot read or write the CA in {path}: {source}; remove both CA files to have a new one made")]
    Storage {
        /// The state directory.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A CA that lives as long as its state directory, or as the server.
#[derive(Debug)]
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn ca_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "hawser lab CA");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

impl Authority {
    /// Loads the CA of `dir`, or makes one.
    pub(crate) fn open(dir: Option<&Path>) -> Result<Self, TlsError> {
        let certificate = |source| TlsError::Certificate { names: vec!["hawser lab CA".into()], source };
        let storage = |source| TlsError::Storage {
            path: dir.map_or_else(String::new, |d| d.display().to_string()),
            source,
        };
        let params = ca_params().map_err(certificate)?;
        if let Some(dir) = dir
            && dir.join("ca.pem").exists()
        {
            let pem = std::fs::read_to_string(dir.join("ca.pem")).map_err(storage)?;
            let key = std::fs::read_to_string(dir.join("ca-key.pem")).map_err(storage)?;
            let key = KeyPair::from_pem(&key).map_err(certificate)?;
            // Subject and key identify the issuer; both are those of the stored certificate.
            return Ok(Self { pem, issuer: Issuer::new(params, key) });
        }
        let key = KeyPair::generate().map_err(certificate)?;
        let pem = params.self_signed(&key).map_err(certificate)?.pem();
        if let Some(dir) = dir {
            util::write_private(&dir.join("ca-key.pem"), key.serialize_pem().as_bytes()).map_err(storage)?;
            util::write_private(&dir.join("ca.pem"), pem.as_bytes()).map_err(storage)?;
        }
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A new serving certificate with a new key.
    pub(crate) fn serving(&self, names: &[String]) -> Result<Arc<CertifiedKey>, TlsError> {
        let certificate = |source| TlsError::Certificate { names: names.to_vec(), source };
        let mut params = CertificateParams::new(names.to_vec()).map_err(certificate)?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(certificate)?;
        let signed = params.signed_by(&key, &self.issuer).map_err(certificate)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?;
        Ok(Arc::new(CertifiedKey::new(vec![signed.der().clone()], signing)))
    }
}

/// Hands out the present serving certificate, so that it can rotate under running listeners.
#[derive(Debug)]
pub(crate) struct Serving(pub(crate) Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&lock(&self.0)))
    }
}

/// TLS with the present certificate.
pub(crate) fn config(serving: Arc<Serving>) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Names every certificate carries, as a cluster's does, with `extra`.
pub(crate) fn names(extra: &[String], addresses: &[IpAddr]) -> Vec<String> {
    let fixed = ["localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default.svc"];
    let mut out: Vec<String> = fixed.iter().map(|s| (*s).to_owned()).collect();
    let addresses = addresses.iter().filter(|a| !a.is_unspecified()).map(IpAddr::to_string);
    for name in extra.iter().cloned().chain(addresses) {
        if !out.contains(&name) {
            out.push(name);
        }
    }
    out
}
