//! Nodes that their cluster has signed ([`Signed`]): agents believe of them what that cluster said, not what whoever mirrors
//! it for them says.
//!
//! Signed with the key of the cluster's authority (Ed25519, RFC 8032, if it was made here: so each leader signs alike), which outlives the leafs that it issues; what it signs here begins with a
//! text that no certificate begins with. A signature does not age: whoever mirrors can tell an older one again, as it can
//! withhold the newer.

use mesh_core::clusters::{ClusterName, Signed};
use rustls::SignatureScheme;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::{RawPublicKeyEntity, spki_for_anchor};

use crate::tls::{Roots, algorithms};

/// What stands before all that is signed.
const PURPOSE: &[u8] = b"hawser.clustermesh.v1.SignedNode\0";
/// How the keys of authorities sign: each kind in one way.
const KINDS: [SignatureScheme; 5] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
];

/// What is signed of a node of this cluster, written as `node`.
pub fn text(cluster: &ClusterName, node: &[u8]) -> Vec<u8> {
    let name = cluster.as_str().as_bytes();
    // A name is at most 63 bytes long.
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    [PURPOSE, &[length], name, node].concat()
}

/// The authorities of one cluster, as those who sign.
#[derive(Clone, Debug)]
pub struct Signers(Vec<Signer>);

#[derive(Clone, Debug)]
struct Signer {
    key: SubjectPublicKeyInfoDer<'static>,
    algorithm: &'static dyn SignatureVerificationAlgorithm,
}

impl From<&Roots> for Signers {
    fn from(roots: &Roots) -> Self {
        let keys = roots.anchors().iter().map(spki_for_anchor);
        Self(keys.filter_map(|key| algorithm(&key).map(|algorithm| Signer { key, algorithm })).collect())
    }
}

impl Signers {
    /// Has one of them signed this as a node of `cluster`, whose authorities they are?
    pub fn signed(&self, cluster: &ClusterName, signed: &Signed) -> bool {
        let text = text(cluster, &signed.node);
        self.0.iter().any(|Signer { key, algorithm }| {
            let key = RawPublicKeyEntity::try_from(key);
            key.is_ok_and(|key| key.verify_signature(*algorithm, &text, &signed.signature).is_ok())
        })
    }
}

/// By which one a key signs. None: it is of a kind that signs no node.
fn algorithm(key: &SubjectPublicKeyInfoDer<'_>) -> Option<&'static dyn SignatureVerificationAlgorithm> {
    let key = RawPublicKeyEntity::try_from(key).ok()?;
    let mapping = algorithms().mapping;
    // The first of a scheme is that for its own curve.
    let of = |scheme: &SignatureScheme| {
        mapping.iter().find(|(known, _)| known == scheme).and_then(|(_, all)| all.first().copied())
    };
    KINDS.iter().filter_map(of).find(|algorithm| {
        // One for keys of another kind says so before it looks at the signature.
        let answer = key.verify_signature(*algorithm, &[], &[]);
        !matches!(answer, Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)))
    })
}

#[cfg(test)]
#[cfg(feature = "daemon")]
mod tests {
    use super::*;
    use crate::daemon::authority::Authority;

    fn cluster(name: &str) -> ClusterName {
        name.parse().unwrap()
    }

    fn authority(key: rcgen::KeyPair) -> Authority {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority::load(&cluster("east"), pem, &key.serialize_pem()).unwrap()
    }

    fn signers(pem: &str) -> Signers {
        Signers::from(&Roots::parse(pem).unwrap())
    }

    fn made() -> Authority {
        Authority::make(&cluster("east"), std::time::SystemTime::now()).unwrap().0
    }

    #[test]
    fn what_an_authority_signs_is_its_own_for_that_cluster_and_to_the_last_bit() {
        let kinds = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ];
        let all = kinds.map(|kind| authority(rcgen::KeyPair::generate_for(kind).unwrap()));
        for authority in all.into_iter().chain([made()]) {
            let signed = authority.sign(b"a node".to_vec()).unwrap();
            let present = signers(authority.pem());
            assert!(present.signed(&cluster("east"), &signed));
            for other in ["west", "eas", "easta"] {
                assert!(!present.signed(&cluster(other), &signed), "of {other}");
            }
            assert!(!signers(made().pem()).signed(&cluster("east"), &signed), "of another");
            for (part, bytes) in [&signed.node, &signed.signature].into_iter().enumerate() {
                for bit in 0..bytes.len() * 8 {
                    let mut other = signed.clone();
                    let at = if part == 0 { &mut other.node } else { &mut other.signature };
                    at[bit / 8] ^= 1 << (bit % 8);
                    assert!(!present.signed(&cluster("east"), &other), "part {part}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn either_authority_of_a_bundle_may_have_signed() {
        let (old, new) = (made(), made());
        let both = signers(&format!("{}\n{}", old.pem(), new.pem()));
        for authority in [&old, &new] {
            assert!(both.signed(&cluster("east"), &authority.sign(b"a node".to_vec()).unwrap()));
        }
        assert!(!both.signed(&cluster("east"), &made().sign(b"a node".to_vec()).unwrap()));
    }

    #[test]
    fn an_authority_that_was_made_here_signs_the_same_in_the_same_way() {
        let made = made();
        assert_eq!(made.sign(b"a node".to_vec()).unwrap(), made.sign(b"a node".to_vec()).unwrap());
    }
}
