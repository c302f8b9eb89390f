//! Who is a cluster: the URI `hawser://cluster/<name>` in a certificate that chains to what is trusted for *that* cluster.
//! The authority of one cluster can vouch for no other, whatever it signs.
//!
//! TLS 1.3 alone, aws-lc-rs, X25519MLKEM768 before all other key exchanges. Sessions are never resumed: a resumed one would
//! be let in without its certificate being looked at again.

use std::fmt;
use std::sync::Arc;

use mesh_core::clusters::ClusterName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, PeerIncompatible, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};

/// What comes before the name of a cluster in its certificate.
pub const IDENTITY: &str = "hawser://cluster/";
/// Most certificates of a bundle: as many as fit a ClusterPeer.
const MAX_ROOTS: usize = 64;
/// ALPN of gRPC.
pub const ALPN: &[u8] = b"h2";

/// Certificates of the authorities of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots(Arc<[TrustAnchor<'static>]>);

/// Why a bundle of certificates is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// Not PEM.
    #[error(
        "certificate {index} of the trust bundle is not PEM: {reason}; copy the bundle from the other cluster again"
    )]
    Pem {
        /// Which, from 0.
        index: usize,
        /// Why.
        reason: String,
    },
    /// Not a certificate.
    #[error(
        "certificate {index} of the trust bundle cannot be read: {reason}; copy the bundle from the other cluster again"
    )]
    Certificate {
        /// Which, from 0.
        index: usize,
        /// Why.
        reason: String,
    },
    /// None.
    #[error("no certificate in the trust bundle; copy it from the other cluster")]
    Empty,
    /// Too many.
    #[error("more than {MAX_ROOTS} certificates in the trust bundle; take out those that have expired")]
    TooMany,
}

impl Roots {
    /// Reads PEM certificates. All of them must be right: one that is not may be the one that is needed.
    ///
    /// # Errors
    /// See [`RootsError`].
    pub fn parse(pem: &str) -> Result<Self, RootsError> {
        let mut roots = Vec::new();
        for (index, found) in CertificateDer::pem_slice_iter(pem.as_bytes()).enumerate() {
            if index >= MAX_ROOTS {
                return Err(RootsError::TooMany);
            }
            let found = found.map_err(|error| RootsError::Pem { index, reason: error.to_string() })?;
            let anchor = webpki::anchor_from_trusted_cert(&found);
            let anchor =
                anchor.map_err(|error| RootsError::Certificate { index, reason: error.to_string() })?;
            roots.push(anchor.to_owned());
        }
        if roots.is_empty() { Err(RootsError::Empty) } else { Ok(Self(roots.into())) }
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.0
    }
}

/// Why somebody is not the cluster that it says it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impostor {
    /// The certificate cannot be read.
    #[error("its certificate cannot be read: {0}")]
    Unreadable(String),
    /// It says of nobody whose it is.
    #[error("its certificate names no cluster; it is not of a clustermesh")]
    Nameless,
    /// It says so of several.
    #[error("its certificate names more than one cluster")]
    Ambiguous,
    /// It is another's.
    #[error(
        "its certificate is of cluster {found}, wanted {wanted}; correct the addresses of ClusterPeer {wanted}"
    )]
    Other {
        /// Who was wanted.
        wanted: ClusterName,
        /// Who it is.
        found: ClusterName,
    },
    /// Nobody of that name is known.
    #[error("no ClusterPeer {0} with a trust bundle is here; make one: hawser clustermesh join")]
    Unknown(ClusterName),
    /// The authorities of that cluster did not sign it.
    #[error(
        "its certificate says cluster {cluster}, and no authority of that cluster vouches for it ({reason}); copy the trust bundle from cluster {cluster} again, or find out who it is"
    )]
    NotVouched {
        /// Who it says it is.
        cluster: ClusterName,
        /// Why.
        reason: String,
    },
    /// It is over, or not yet valid.
    #[error(
        "its certificate, of cluster {cluster}, is not valid at this time ({reason}); set the clocks of both clusters"
    )]
    Time {
        /// Whose it is.
        cluster: ClusterName,
        /// Why.
        reason: String,
    },
}

impl Impostor {
    /// For labels of metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "CertificateUnreadable",
            Self::Nameless => "CertificateNameless",
            Self::Ambiguous => "CertificateAmbiguous",
            Self::Other { .. } => "CertificateOfAnother",
            Self::Unknown(_) => "ClusterUnknown",
            Self::NotVouched { .. } => "CertificateNotVouched",
            Self::Time { .. } => "CertificateExpired",
        }
    }

    /// The one that ended a handshake, if one did.
    pub fn of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<rustls::Error>()
                && let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = found
            {
                return inner.downcast_ref();
            }
            // `source` of an I/O error skips the error that it was made of.
            let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            next = match inner {
                Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
                None => error.source(),
            };
        }
        None
    }
}

impl From<Impostor> for rustls::Error {
    fn from(impostor: Impostor) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(impostor))))
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// To serve.
    Server,
    /// To be let in.
    Client,
}

/// Whose certificate it says it is. Proves nothing.
///
/// # Errors
/// It does not say.
pub fn claimed(certificate: &CertificateDer<'_>) -> Result<ClusterName, Impostor> {
    let parsed =
        EndEntityCert::try_from(certificate).map_err(|error| Impostor::Unreadable(error.to_string()))?;
    let mut names = parsed.valid_uri_names().filter_map(|uri| uri.strip_prefix(IDENTITY));
    let name = names.next().ok_or(Impostor::Nameless)?;
    if names.next().is_some() {
        return Err(Impostor::Ambiguous);
    }
    name.parse().map_err(|_| Impostor::Nameless)
}

/// Does one of `roots`, which are those of `cluster`, vouch for this chain now?
///
/// # Errors
/// It does not.
pub fn vouched(
    cluster: &ClusterName,
    roots: &Roots,
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    usage: Usage,
) -> Result<(), Impostor> {
    let parsed =
        EndEntityCert::try_from(certificate).map_err(|error| Impostor::Unreadable(error.to_string()))?;
    let usage = match usage {
        Usage::Server => KeyUsage::server_auth(),
        Usage::Client => KeyUsage::client_auth(),
    };
    let verified = parsed.verify_for_usage(algorithms().all, &roots.0, intermediates, now, usage, None, None);
    match verified {
        Ok(_) => Ok(()),
        Err(error @ (webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })) => {
            Err(Impostor::Time { cluster: cluster.clone(), reason: error.to_string() })
        }
        Err(error) => Err(Impostor::NotVouched { cluster: cluster.clone(), reason: error.to_string() }),
    }
}

/// Key exchanges and algorithms: as rustls has them, with the hybrid post-quantum exchange first.
pub fn provider() -> CryptoProvider {
    use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
    let kx_groups = vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1];
    CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() }
}

pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}

/// Gives the present authorities of a cluster: a bundle may change while somebody follows.
pub type Trusted = Arc<dyn Fn(&ClusterName) -> Option<Roots> + Send + Sync>;

/// Lets in one cluster's server.
struct ServerVerifier {
    cluster: ClusterName,
    trusted: Trusted,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerVerifier({})", self.cluster)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = claimed(end_entity)?;
        if found != self.cluster {
            return Err(Impostor::Other { wanted: self.cluster.clone(), found }.into());
        }
        let roots = (self.trusted)(&found).ok_or_else(|| Impostor::Unknown(found.clone()))?;
        vouched(&found, &roots, end_entity, intermediates, now, Usage::Server)?;
        Ok(ServerCertVerified::assertion())
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

/// For who follows the server of `cluster`. `own`: the certificate to show there; none: a token is shown.
///
/// # Errors
/// The TLS library cannot do TLS 1.3 with our key exchanges.
pub fn client_config(
    cluster: ClusterName,
    trusted: Trusted,
    own: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = ServerVerifier { cluster, trusted, algorithms: algorithms() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// For an agent: follows its own cluster's `clustermesh` whose authorities are these.
///
/// # Errors
/// The TLS library cannot do TLS 1.3 with our key exchanges.
pub fn agent_config(cluster: ClusterName, roots: Roots) -> Result<Arc<ClientConfig>, rustls::Error> {
    let own = cluster.clone();
    client_config(cluster, Arc::new(move |asked| (*asked == own).then(|| roots.clone())), None)
}
