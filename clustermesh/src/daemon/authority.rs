//! The own authority: its key is in a Secret, its certificate in a ConfigMap for agents and other clusters, and the leaf that
//! the server shows is made in memory and renewed at two thirds of its life.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use mesh_core::clusters::{Change, ClusterName, Object, RemoteNode, Signed};
use mesh_core::numbers::NAMESPACE;
use proto::clustermesh::write_node;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SigningKey as _, date_time_ymd,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::metrics::Metrics;
use super::tls::Credentials;
use crate::signed::{self, Signers};
use crate::tls::{IDENTITY, Roots, RootsError, Usage, provider, vouched};

/// Secret in [`NAMESPACE`] with the authority's certificate and key.
pub const SECRET: &str = "hawser-clustermesh-ca";
/// ConfigMap in [`NAMESPACE`] with what others trust.
pub const TRUST: &str = "hawser-clustermesh-trust";
/// Certificates in either.
pub const CERTIFICATE: &str = "ca.crt";
/// Key in the Secret.
pub const KEY: &str = "ca.key";
/// How long a leaf is good. A stolen one is worth as much; a peer is cut at its end.
pub const LEAF: Duration = Duration::from_secs(24 * 3600);
/// How far clocks of clusters may be apart.
pub const SKEW: Duration = Duration::from_secs(3600);
/// How long an authority is good; its end is checked by nobody, since trust is in its key.
const AUTHORITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How often it is looked whether the leaf is due: clocks may be set.
const LOOK: Duration = Duration::from_secs(60);
/// Pause after a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API server refuses.
    #[error("{object} in {NAMESPACE}: {source}; allow clustermesh to get, create and update it")]
    Api {
        /// Which object.
        object: &'static str,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The Secret lacks something.
    #[error(
        "Secret {SECRET} in {NAMESPACE}: {key} is missing or not text; delete the Secret to have a new authority made, which all joined clusters have to be told of"
    )]
    Incomplete {
        /// What.
        key: &'static str,
    },
    /// The Secret has no usable key or certificate.
    #[error("Secret {SECRET} in {NAMESPACE}: {0}; put the authority's certificate and its key there")]
    Unusable(String),
    /// Certificates cannot be read.
    #[error(transparent)]
    Roots(#[from] RootsError),
}

/// An authority that can sign.
pub struct Authority {
    cluster: ClusterName,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.cluster)
    }
}

fn unusable(error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Unusable(error.to_string())
}

fn since_1970(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn make(cluster: &ClusterName, now: SystemTime) -> Result<(Self, Zeroizing<String>), AuthorityError> {
        let mut params = CertificateParams::new(Vec::new()).map_err(unusable)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, format!("hawser clustermesh {cluster}"));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let begin = date_time_ymd(1970, 1, 1) + since_1970(now);
        params.not_before = begin - SKEW;
        params.not_after = begin + AUTHORITY;
        // The same node is signed alike by every leader: only that is no change to others.
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(unusable)?;
        let text = Zeroizing::new(key.serialize_pem());
        let pem = params.self_signed(&key).map_err(unusable)?.pem();
        Ok((Self::load(cluster, pem, &text)?, text))
    }

    /// One that was made before.
    ///
    /// # Errors
    /// Certificate or key cannot be read, or do not belong together.
    pub fn load(cluster: &ClusterName, pem: String, key: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key).map_err(|_| unusable("its key cannot be read"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(unusable)?;
        let authority = Self { cluster: cluster.clone(), issuer, pem };
        // A leaf that nobody would accept is found here, not by the other clusters.
        let now = SystemTime::now();
        let leaf = authority.issue(now)?;
        let roots = Roots::parse(&authority.pem)?;
        let end_entity = leaf.key.end_entity_cert().map_err(unusable)?;
        let at = UnixTime::since_unix_epoch(since_1970(now));
        vouched(cluster, &roots, end_entity, &[], at, Usage::Server).map_err(unusable)?;
        if !Signers::from(&roots).signed(cluster, &authority.sign(Vec::new())?) {
            return Err(unusable("its key is none that signs nodes; Ed25519, ECDSA and RSA keys do"));
        }
        Ok(authority)
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs what this cluster tells of a node, written as `node` ([`proto::clustermesh::write_node`]).
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn sign(&self, node: Vec<u8>) -> Result<Signed, AuthorityError> {
        self.sign_for(&self.cluster, node)
    }

    /// The same, as if for `cluster`. Of another than the own one nobody believes it.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn sign_for(&self, cluster: &ClusterName, node: Vec<u8>) -> Result<Signed, AuthorityError> {
        let signature = self.issuer.key().sign(&signed::text(cluster, &node)).map_err(unusable)?;
        Ok(Signed { node, signature })
    }

    /// A change that the own cluster tells: a node gets its signature.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn sign_change(&self, change: Change) -> Result<Change, AuthorityError> {
        let Change::Put(Object::Node(name, node)) = &change else { return Ok(change) };
        let signed = Some(Arc::new(self.sign(write_node(name, node))?));
        let node = RemoteNode { signed, ..RemoteNode::clone(node) };
        Ok(Change::Put(Object::Node(Arc::clone(name), Arc::new(node))))
    }

    /// A leaf of the own cluster.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn issue(&self, now: SystemTime) -> Result<Leaf, AuthorityError> {
        self.issue_for(&self.cluster, now)
    }

    /// A leaf that says it is of `cluster`. Of another than the own one nobody believes it.
    ///
    /// # Errors
    /// The cryptographic library fails.
    pub fn issue_for(&self, cluster: &ClusterName, now: SystemTime) -> Result<Leaf, AuthorityError> {
        let mut params = CertificateParams::new(Vec::new()).map_err(unusable)?;
        let identity = format!("{IDENTITY}{cluster}").try_into().map_err(unusable)?;
        params.subject_alt_names = vec![SanType::URI(identity)];
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, "clustermesh");
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let begin = date_time_ymd(1970, 1, 1) + since_1970(now);
        params.not_before = begin - SKEW;
        params.not_after = begin + LEAF;
        let key = KeyPair::generate().map_err(unusable)?;
        let signed = params.signed_by(&key, &self.issuer).map_err(unusable)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = provider().key_provider.load_private_key(der).map_err(unusable)?;
        let key = Arc::new(CertifiedKey::new(vec![signed.der().clone()], signing));
        Ok(Leaf { key, made: now })
    }
}

/// A leaf with its key.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Certificate and key.
    pub key: Arc<CertifiedKey>,
    made: SystemTime,
}

impl Leaf {
    /// Is it time for the next one: two thirds of its life are over, or the clock was set to before it?
    pub fn is_due(&self, now: SystemTime) -> bool {
        now.duration_since(self.made)
            .map_or_else(|error| error.duration() > SKEW / 2, |age| age >= LEAF * 2 / 3)
    }

    /// When it ends, in seconds since 1970.
    pub fn ends(&self) -> i64 {
        i64::try_from(since_1970(self.made + LEAF).as_secs()).unwrap_or(i64::MAX)
    }
}

/// Reads the authority from its Secret, or makes one; and sees to it that the ConfigMap has its certificate, beside others
/// that an administrator put there while authorities are exchanged.
///
/// # Errors
/// See [`AuthorityError`].
pub async fn establish(client: &Client, cluster: &ClusterName) -> Result<Authority, AuthorityError> {
    let api = |object| move |source| AuthorityError::Api { object, source: Box::new(source) };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let metadata = |name: &str| ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        labels: Some([("app.kubernetes.io/name".to_owned(), "hawser".to_owned())].into()),
        ..ObjectMeta::default()
    };
    let found = match secrets.get_opt(SECRET).await.map_err(api("Secret hawser-clustermesh-ca"))? {
        Some(secret) => secret,
        None => {
            let (authority, key) = Authority::make(cluster, SystemTime::now())?;
            let data = [(CERTIFICATE, authority.pem.as_bytes()), (KEY, key.as_bytes())];
            let data = data.map(|(name, bytes)| (name.to_owned(), ByteString(bytes.to_vec())));
            let secret = Secret {
                metadata: metadata(SECRET),
                data: Some(data.into()),
                type_: Some("Opaque".to_owned()),
                ..Secret::default()
            };
            match secrets.create(&PostParams::default(), &secret).await {
                Ok(made) => {
                    tracing::info!(%cluster, "An authority was made for this cluster");
                    made
                }
                // Another was faster: its one counts.
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    secrets.get(SECRET).await.map_err(api("Secret hawser-clustermesh-ca"))?
                }
                Err(error) => return Err(api("Secret hawser-clustermesh-ca")(error)),
            }
        }
    };
    let text = |key: &'static str| {
        let bytes = found.data.as_ref().and_then(|data| data.get(key));
        let text = bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
        text.ok_or(AuthorityError::Incomplete { key })
    };
    let authority = Authority::load(cluster, text(CERTIFICATE)?.to_owned(), text(KEY)?)?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let present = maps.get_opt(TRUST).await.map_err(api("ConfigMap hawser-clustermesh-trust"))?;
    let exists = present.is_some();
    let mut map = present.unwrap_or_else(|| ConfigMap { metadata: metadata(TRUST), ..ConfigMap::default() });
    let bundle = map.data.get_or_insert_default().entry(CERTIFICATE.to_owned()).or_default();
    if !bundle.contains(authority.pem.trim()) {
        if !bundle.is_empty() && !bundle.ends_with('\n') {
            bundle.push('\n');
        }
        bundle.push_str(&authority.pem);
        let written = if exists {
            maps.replace(TRUST, &PostParams::default(), &map).await
        } else {
            maps.create(&PostParams::default(), &map).await
        };
        written.map_err(api("ConfigMap hawser-clustermesh-trust"))?;
    }
    Ok(authority)
}

/// Renews the leaf for ever.
pub async fn renew(
    authority: Arc<Authority>,
    credentials: Arc<Credentials>,
    mut leaf: Leaf,
    metrics: Metrics,
) {
    loop {
        metrics.certificate_ends(leaf.ends());
        while !leaf.is_due(SystemTime::now()) {
            tokio::time::sleep(LOOK).await;
        }
        match authority.issue(SystemTime::now()) {
            Ok(next) => {
                credentials.renew(Arc::clone(&next.key));
                leaf = next;
                tracing::info!(ends = leaf.ends(), "The certificate of this cluster was renewed");
            }
            Err(error) => {
                tracing::error!(err = %error, "The certificate of this cluster could not be renewed");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Impostor, claimed};

    fn cluster(name: &str) -> ClusterName {
        name.parse().unwrap()
    }

    fn check(
        authority: &Authority,
        as_cluster: &str,
        roots_of: &Authority,
        seconds: u64,
    ) -> Result<(), Impostor> {
        let now = SystemTime::now();
        let leaf = authority.issue_for(&cluster(as_cluster), now).unwrap();
        let certificate = leaf.key.end_entity_cert().unwrap();
        assert_eq!(claimed(certificate), Ok(cluster(as_cluster)));
        let at = UnixTime::since_unix_epoch(since_1970(now) + Duration::from_secs(seconds) - SKEW);
        let roots = Roots::parse(roots_of.pem()).unwrap();
        vouched(&cluster(as_cluster), &roots, certificate, &[], at, Usage::Client)
    }

    #[test]
    fn a_leaf_is_good_for_its_own_authority_from_an_hour_ago_until_its_end() {
        let (east, _) = Authority::make(&cluster("east"), SystemTime::now()).unwrap();
        let (west, _) = Authority::make(&cluster("west"), SystemTime::now()).unwrap();
        let skew = SKEW.as_secs();
        assert_eq!(check(&east, "east", &east, 1), Ok(()));
        assert_eq!(check(&east, "east", &east, skew + LEAF.as_secs() - 1), Ok(()));
        let over = check(&east, "east", &east, skew + LEAF.as_secs() + 1);
        assert!(matches!(over, Err(Impostor::Time { .. })), "{over:?}");
        let foreign = check(&east, "west", &west, 1);
        assert!(matches!(foreign, Err(Impostor::NotVouched { .. })), "{foreign:?}");
    }

    #[test]
    fn a_leaf_is_due_at_two_thirds_of_its_life_and_when_the_clock_went_back() {
        let (east, _) = Authority::make(&cluster("east"), SystemTime::now()).unwrap();
        let now = SystemTime::now();
        let leaf = east.issue(now).unwrap();
        for (seconds, due) in [(0, false), (57_599, false), (57_600, true)] {
            assert_eq!(leaf.is_due(now + Duration::from_secs(seconds)), due, "{seconds}");
        }
        assert!(!leaf.is_due(now - Duration::from_secs(60)));
        assert!(leaf.is_due(now - SKEW));
    }

    #[test]
    fn an_authority_without_its_own_key_is_refused() {
        let (east, _) = Authority::make(&cluster("east"), SystemTime::now()).unwrap();
        let (_, key) = Authority::make(&cluster("east"), SystemTime::now()).unwrap();
        let error = Authority::load(&cluster("east"), east.pem().to_owned(), &key).unwrap_err();
        assert!(error.to_string().contains("put the authority's certificate and its key there"), "{error}");
    }
}
