//! The seal of a report: its hash, and the hash signed.
//!
//! ```text
//! { "report": { … }, "seal": { "sha256": HEX, "signature": { "algorithm": "Ed25519", "publicKey": B64, "value": B64 } } }
//! ```
//!
//! The hash is that of the canonical form of `report`. Signed are the bytes `hawser.dev/audit/v1\nHEX\n`, so that openssl can
//! check a signature, too, and none can be taken for a signature of something else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::canonical::{NumberError, Strict, canonical};
use super::report::FORMAT;

const ALGORITHM: &str = "Ed25519";

/// Why a file is not what its seal says.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be read in one way only.
    #[error("it is no JSON that says everything once: {0}; it was changed or cut off")]
    Json(#[from] serde_json::Error),
    /// It has another shape.
    #[error("it is no sealed report: {0}; wanted the output of hawser audit -o json")]
    Shape(String),
    /// It is of another version.
    #[error("it has format {found:?}, this program knows {FORMAT:?}; use the hawser that made it")]
    Format {
        /// What it says.
        found: String,
    },
    /// The report is another one than the seal's.
    #[error("the report has SHA-256 {computed}, its seal says {stated}: the report or the seal was changed")]
    Hash {
        /// What the seal says.
        stated: String,
        /// What it is.
        computed: String,
    },
    /// Nobody has signed it.
    #[error("it has a hash and no signature (made with --unsigned): anybody can have made it")]
    Unsigned,
    /// It was signed with another key.
    #[error(
        "it is signed with key {stated:?}, wanted key {trusted}: another cluster's, or made by somebody else"
    )]
    OtherKey {
        /// What the seal says.
        stated: String,
        /// The one that is trusted.
        trusted: String,
    },
    /// The signature is none of this key for this hash.
    #[error("the signature is not one of key {key} for this report: the seal was changed")]
    Signature {
        /// The key.
        key: String,
    },
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The hash of the report.
    pub sha256: String,
    /// The key that signed it.
    pub key: String,
    /// The report's verdict, as it stands there.
    pub verdict: String,
    /// When it was made, as it stands there.
    pub generated_at: String,
}

/// A public key as seals name it.
pub fn name(key: &VerifyingKey) -> String {
    STANDARD.encode(key.as_bytes())
}

fn hash(report: &Value) -> Result<String, NumberError> {
    let digest = Sha256::digest(canonical(report)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn message(sha256: &str) -> Vec<u8> {
    format!("{FORMAT}\n{sha256}\n").into_bytes()
}

/// Seals a report; without a key only by its hash.
///
/// # Errors
/// A number has no canonical form.
pub fn seal(report: Value, key: Option<&SigningKey>) -> Result<Value, NumberError> {
    let sha256 = hash(&report)?;
    let mut seal = json!({ "sha256": sha256 });
    if let Some(key) = key {
        let value = STANDARD.encode(key.sign(&message(&sha256)).to_bytes());
        seal["signature"] =
            json!({ "algorithm": ALGORITHM, "publicKey": name(&key.verifying_key()), "value": value });
    }
    Ok(json!({ "report": report, "seal": seal }))
}

/// Checks hash and signature of a file.
///
/// # Errors
/// It is not what was sealed with that key: what is wrong with it.
pub fn verify(file: &[u8], trusted: &VerifyingKey) -> Result<Verified, VerifyError> {
    let Strict(file) = serde_json::from_slice(file)?;
    let shape = |what: &str| VerifyError::Shape(what.to_owned());
    let members = file.as_object().ok_or_else(|| shape("it is no object"))?;
    // Whatever stood beside them would be covered by nothing.
    only(members, &["report", "seal"])?;
    let report = members.get("report").ok_or_else(|| shape("it has no member report"))?;
    let seal =
        members.get("seal").and_then(Value::as_object).ok_or_else(|| shape("it has no member seal"))?;
    only(seal, &["sha256", "signature"])?;
    let found = report["format"].as_str().unwrap_or_default();
    if found != FORMAT {
        return Err(VerifyError::Format { found: found.chars().take(60).collect() });
    }
    let stated = text(seal.get("sha256"), "seal.sha256")?;
    let computed = hash(report).map_err(|error| VerifyError::Shape(error.to_string()))?;
    if stated != computed {
        return Err(VerifyError::Hash { stated: stated.chars().take(64).collect(), computed });
    }
    let signature = seal.get("signature").ok_or(VerifyError::Unsigned)?;
    let signature = signature.as_object().ok_or_else(|| shape("seal.signature is no object"))?;
    only(signature, &["algorithm", "publicKey", "value"])?;
    let algorithm = text(signature.get("algorithm"), "seal.signature.algorithm")?;
    if algorithm != ALGORITHM {
        return Err(VerifyError::Shape(format!(
            "seal.signature.algorithm={algorithm:?}, wanted {ALGORITHM}"
        )));
    }
    let (key, trusted_name) = (text(signature.get("publicKey"), "seal.signature.publicKey")?, name(trusted));
    if key != trusted_name {
        return Err(VerifyError::OtherKey { stated: key.chars().take(64).collect(), trusted: trusted_name });
    }
    let value = text(signature.get("value"), "seal.signature.value")?;
    let wrong = || VerifyError::Signature { key: trusted_name.clone() };
    let bytes = STANDARD.decode(value).map_err(|_| wrong())?;
    let value = Signature::from_slice(&bytes).map_err(|_| wrong())?;
    trusted.verify_strict(&message(&computed), &value).map_err(|_| wrong())?;
    let said = |member: &str| report[member].as_str().unwrap_or_default().to_owned();
    Ok(Verified {
        sha256: computed,
        key: trusted_name,
        verdict: said("verdict"),
        generated_at: said("generatedAt"),
    })
}

fn only(members: &serde_json::Map<String, Value>, known: &[&str]) -> Result<(), VerifyError> {
    match members.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(VerifyError::Shape(format!("member {name:?} is covered by no hash"))),
        None => Ok(()),
    }
}

fn text<'a>(value: Option<&'a Value>, what: &str) -> Result<&'a str, VerifyError> {
    value.and_then(Value::as_str).ok_or_else(|| VerifyError::Shape(format!("{what} is no text")))
}

#[cfg(test)]
mod tests;
