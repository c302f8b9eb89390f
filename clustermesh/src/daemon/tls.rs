//! TLS of the server: who is let in, and with what it shows who it is. Both may change while streams run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use mesh_core::clusters::ClusterName;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, PeerIncompatible, ServerConfig, SignatureScheme};
use tokio::sync::watch;

use crate::tls::{ALPN, Impostor, Roots, Usage, claimed, provider, vouched};

/// Whom each joined cluster trusts, as the administrator wrote it into its ClusterPeer.
#[derive(Debug)]
pub struct Trust {
    roots: RwLock<BTreeMap<ClusterName, Roots>>,
    changed: watch::Sender<u64>,
}

impl Default for Trust {
    fn default() -> Self {
        Self { roots: RwLock::default(), changed: watch::Sender::new(0) }
    }
}

impl Trust {
    /// From now on these, and no others. Streams of others end.
    pub fn set(&self, roots: BTreeMap<ClusterName, Roots>) {
        let mut present = self.roots.write().unwrap_or_else(PoisonError::into_inner);
        if *present != roots {
            *present = roots;
            drop(present);
            self.changed.send_modify(|number| *number += 1);
        }
    }

    /// Authorities of a cluster.
    pub fn roots(&self, cluster: &ClusterName) -> Option<Roots> {
        self.roots.read().unwrap_or_else(PoisonError::into_inner).get(cluster).cloned()
    }

    /// Changes whenever somebody may be trusted no longer.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Which cluster shows this chain, if its own authorities vouch for it now.
    ///
    /// # Errors
    /// They do not.
    pub fn who(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<ClusterName, Impostor> {
        let (leaf, others) =
            chain.split_first().ok_or_else(|| Impostor::Unreadable("there is none".to_owned()))?;
        let cluster = claimed(leaf)?;
        let roots = self.roots(&cluster).ok_or_else(|| Impostor::Unknown(cluster.clone()))?;
        vouched(&cluster, &roots, leaf, others, now, Usage::Client)?;
        Ok(cluster)
    }
}

/// The own certificate with its key. Whoever connects gets the present one.
pub struct Credentials {
    present: RwLock<Arc<CertifiedKey>>,
    renewed: watch::Sender<u64>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Begins with these.
    pub fn new(key: Arc<CertifiedKey>) -> Self {
        Self { present: RwLock::new(key), renewed: watch::Sender::new(0) }
    }

    /// From now on these. Streams that were begun with the old one are begun anew by who follows, and go on where they were.
    pub fn renew(&self, key: Arc<CertifiedKey>) {
        *self.present.write().unwrap_or_else(PoisonError::into_inner) = key;
        self.renewed.send_modify(|number| *number += 1);
    }

    /// Changes at each renewal.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.renewed.subscribe()
    }

    fn present(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.present.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.present())
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.present())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Lets in who shows no certificate (its token is asked for later), and the clusters that are joined.
struct ClientVerifier {
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientVerifier")
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(end_entity).chain(intermediates).cloned().collect();
        self.trust.who(&chain, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// For the server.
///
/// # Errors
/// The TLS library cannot do TLS 1.3 with our key exchanges.
pub fn server_config(trust: Arc<Trust>, own: Arc<Credentials>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier = ClientVerifier { trust, algorithms };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(own);
    // A resumed session would be one whose certificate nobody looks at again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::SystemTime;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, NamedGroup, ProtocolVersion, ServerConnection};

    use super::*;
    use crate::daemon::authority::Authority;
    use crate::tls::client_config;

    #[test]
    fn two_clusters_agree_on_tls_1_3_with_the_hybrid_key_exchange() {
        let now = SystemTime::now();
        let [east, west] =
            ["east", "west"].map(|name| Authority::make(&name.parse().unwrap(), now).unwrap().0);
        let roots = |authority: &Authority| Roots::parse(authority.pem()).unwrap();
        let trust = Arc::new(Trust::default());
        trust.set([("west".parse().unwrap(), roots(&west))].into());
        let credentials =
            |authority: &Authority| Arc::new(Credentials::new(authority.issue(now).unwrap().key));
        let server = server_config(trust, credentials(&east)).unwrap();
        let trusted = roots(&east);
        let trusted = Arc::new(move |_: &ClusterName| Some(trusted.clone()));
        let client = client_config("east".parse().unwrap(), trusted, Some(credentials(&west))).unwrap();
        let name = ServerName::try_from("east.example").unwrap();
        let mut client = ClientConnection::new(client, name).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        client.writer().write_all(b"said").unwrap();
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        let mut heard = [0; 4];
        server.reader().read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"said");
        for (version, group) in [
            (client.protocol_version(), client.negotiated_key_exchange_group()),
            (server.protocol_version(), server.negotiated_key_exchange_group()),
        ] {
            assert_eq!(version, Some(ProtocolVersion::TLSv1_3));
            assert_eq!(group.map(|group| group.name()), Some(NamedGroup::X25519MLKEM768));
        }
    }
}
