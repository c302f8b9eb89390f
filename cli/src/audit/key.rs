//! The key that seals reports: an Ed25519 key (RFC 8032) of the cluster, as PKCS#8 (RFC 8410) in PEM, so that other programs
//! read it.
//!
//! The private half is in the Secret `hawser-audit-key` of `hawser-system` and nowhere else; whoever may read it can seal what
//! he likes. The public half is in the ConfigMap of the same name, for `hawser audit verify`; who keeps a copy of it elsewhere
//! does not have to trust whoever may write ConfigMaps there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _,
};
use ed25519_dalek::{SigningKey, VerifyingKey};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt as _;
use kube::api::{Api, ObjectMeta, PostParams};
use mesh_core::numbers::NAMESPACE;
use zeroize::{Zeroize as _, Zeroizing};

use crate::api::{ApiError, Asked, Cluster};

/// Name of the Secret and of the ConfigMap.
pub const NAME: &str = "hawser-audit-key";
const PRIVATE: &str = "private.pem";
const PUBLIC: &str = "public.pem";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It was never made.
    #[error(
        "there is no Secret {NAMESPACE}/{NAME} to sign with; an administrator makes it once with hawser audit init, or give --unsigned for a report that proves nothing to others"
    )]
    Absent,
    /// Its public half is nowhere.
    #[error(
        "there is no ConfigMap {NAMESPACE}/{NAME} with the public key; hawser audit init makes it beside the Secret, or give --public-key"
    )]
    NoPublic,
    /// The API gives nothing.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Not a key.
    #[error(
        "{place}: field {field}: it is no Ed25519 key in PEM ({what}); give another one, or delete it and run hawser audit init"
    )]
    Malformed {
        /// Which object or file.
        place: String,
        /// Which field of it.
        field: &'static str,
        /// What was wanted.
        what: &'static str,
    },
    /// The two halves are not of one key.
    #[error(
        "ConfigMap {NAMESPACE}/{NAME} has another public key than Secret {NAMESPACE}/{NAME}; find out who changed it, then delete the wrong one and run hawser audit init"
    )]
    Halves,
    /// A file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No randomness.
    #[error("no random bytes from the operating system: {0}; a key is not made without them")]
    Random(#[from] getrandom::Error),
}

fn asked(verb: &'static str, resource: &'static str) -> Asked {
    Asked { verb, resource, namespace: Some(NAMESPACE) }
}

/// The public key in PEM.
///
/// # Panics
/// Never: every key has this form.
pub fn pem(key: &VerifyingKey) -> String {
    key.to_public_key_pem(LineEnding::LF).expect("invariant: 32 bytes are always a public key in PEM")
}

fn parse(text: &str, place: &str) -> Result<SigningKey, KeyError> {
    SigningKey::from_pkcs8_pem(text).map_err(|_| KeyError::Malformed {
        place: place.to_owned(),
        field: PRIVATE,
        what: "wanted BEGIN PRIVATE KEY, PKCS#8",
    })
}

/// A public key in PEM.
///
/// # Errors
/// It is none.
pub fn parse_public(text: &str, place: &str) -> Result<VerifyingKey, KeyError> {
    VerifyingKey::from_public_key_pem(text).map_err(|_| KeyError::Malformed {
        place: place.to_owned(),
        field: PUBLIC,
        what: "wanted BEGIN PUBLIC KEY",
    })
}

/// The key in a file.
///
/// # Errors
/// It cannot be read, or is none.
pub fn from_file(path: &Path) -> Result<SigningKey, KeyError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| KeyError::File { path: path.to_owned(), source })?;
    parse(&Zeroizing::new(text), &path.display().to_string())
}

/// The public key in a file.
///
/// # Errors
/// It cannot be read, or is none.
pub fn public_from_file(path: &Path) -> Result<VerifyingKey, KeyError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| KeyError::File { path: path.to_owned(), source })?;
    parse_public(&text, &path.display().to_string())
}

fn place(kind: &str) -> String {
    format!("{kind} {NAMESPACE}/{NAME}")
}

/// The key of the cluster.
///
/// # Errors
/// There is none, or it may not be read.
pub async fn of_cluster(cluster: &Cluster) -> Result<SigningKey, KeyError> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let found = cluster.within(asked("get", "secrets"), secrets.get_opt(NAME)).await?;
    let mut secret = found.ok_or(KeyError::Absent)?;
    from_secret(&mut secret)
}

fn from_secret(secret: &mut Secret) -> Result<SigningKey, KeyError> {
    let bytes = secret.data.as_mut().and_then(|data| data.remove(PRIVATE)).map(|ByteString(bytes)| bytes);
    let bytes = Zeroizing::new(bytes.unwrap_or_default());
    parse(std::str::from_utf8(&bytes).unwrap_or_default(), &place("Secret"))
}

/// The public key of the cluster.
///
/// # Errors
/// There is none, or it may not be read.
pub async fn public_of_cluster(cluster: &Cluster) -> Result<VerifyingKey, KeyError> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let found = cluster.within(asked("get", "configmaps"), maps.get_opt(NAME)).await?;
    public_of(&found.ok_or(KeyError::NoPublic)?)
}

fn public_of(map: &ConfigMap) -> Result<VerifyingKey, KeyError> {
    let text = map.data.as_ref().and_then(|data| data.get(PUBLIC)).map(String::as_str);
    parse_public(text.unwrap_or_default(), &place("ConfigMap"))
}

/// What `init` found or made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The public key.
    pub public: VerifyingKey,
    /// The key is new; else it was there.
    pub fresh: bool,
}

/// Makes the key of the cluster where there is none, and its public half beside it. What is there stays.
///
/// # Errors
/// The API refuses, or what is there does not fit together.
pub async fn init(cluster: &Cluster) -> Result<Made, KeyError> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let found = cluster.within(asked("get", "secrets"), secrets.get_opt(NAME)).await?;
    let fresh = found.is_none();
    let key = match found {
        Some(mut secret) => from_secret(&mut secret)?,
        None => {
            let key = generate()?;
            let mut secret = secret(&key);
            let params = PostParams::default();
            let created = cluster.within(asked("create", "secrets"), secrets.create(&params, &secret)).await;
            for ByteString(bytes) in secret.data.iter_mut().flat_map(BTreeMap::values_mut) {
                bytes.zeroize();
            }
            created?;
            key
        }
    };
    let public = key.verifying_key();
    match cluster.within(asked("get", "configmaps"), maps.get_opt(NAME)).await? {
        Some(map) if public_of(&map)? != public => return Err(KeyError::Halves),
        Some(_) => {}
        None => {
            let map = ConfigMap {
                metadata: metadata(),
                data: Some(BTreeMap::from([(PUBLIC.to_owned(), pem(&public))])),
                ..ConfigMap::default()
            };
            let params = PostParams::default();
            let made = cluster.within(asked("create", "configmaps"), maps.create(&params, &map)).await?;
            debug_assert_eq!(made.name_any(), NAME);
        }
    }
    Ok(Made { public, fresh })
}

fn generate() -> Result<SigningKey, KeyError> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice())?;
    Ok(SigningKey::from_bytes(&seed))
}

fn metadata() -> ObjectMeta {
    ObjectMeta { name: Some(NAME.to_owned()), namespace: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() }
}

fn secret(key: &SigningKey) -> Secret {
    let pem = key.to_pkcs8_pem(LineEnding::LF).expect("invariant: 32 bytes are always a private key in PEM");
    Secret {
        metadata: metadata(),
        type_: Some("Opaque".to_owned()),
        // Nobody replaces it under those who verify.
        immutable: Some(true),
        data: Some(BTreeMap::from([(PRIVATE.to_owned(), ByteString(pem.as_bytes().to_vec()))])),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_secret_and_its_public_half_a_config_map() {
        let key = generate().unwrap();
        let mut secret = secret(&key);
        assert_eq!(from_secret(&mut secret).unwrap().verifying_key(), key.verifying_key());
        let public = pem(&key.verifying_key());
        assert_eq!(parse_public(&public, "x").unwrap(), key.verifying_key());
        assert!(public.starts_with("-----BEGIN PUBLIC KEY-----\n"), "{public}");
    }

    #[test]
    fn what_is_no_key_is_named_with_its_object_and_field_and_never_shown() {
        let mut wrong = secret(&generate().unwrap());
        wrong.data = Some(BTreeMap::from([(PRIVATE.to_owned(), ByteString(b"hidden".to_vec()))]));
        let text = from_secret(&mut wrong).err().map(|error| error.to_string()).unwrap();
        assert!(
            text.contains("Secret hawser-system/hawser-audit-key") && text.contains("private.pem"),
            "{text}"
        );
        assert!(!text.contains("hidden"), "{text}");
    }

    #[test]
    fn the_public_key_of_rfc_8410_is_read() {
        let text = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let key = parse_public(text, "x").unwrap();
        assert_eq!(pem(&key), text);
    }
}
