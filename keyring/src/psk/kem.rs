//! ML-KEM-768 (FIPS 203), in the terms of this crate.

use mesh_core::psk::{Ciphertext, EncapsulationKey};
use ml_kem::array::Array;
use ml_kem::kem::{Decapsulate as _, KeyExport as _};
use ml_kem::ml_kem_768;
use sha2::{Digest as _, Sha256};
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// A node's ML-KEM key pair: made at start and with each rotation, kept in memory alone.
///
/// One pair of keys serves all peers: each encapsulation gives another shared secret. Like a private key it has no
/// `Debug`, `Clone`, `PartialEq` or `Serialize`, lives on the heap and is zeroized when dropped.
#[expect(missing_debug_implementations, reason = "a private key must not be printable")]
pub struct KemKey(Box<ml_kem_768::DecapsulationKey>);

impl ZeroizeOnDrop for KemKey {}

/// An encapsulation key whose numbers are out of range (FIPS 203, section 7.2, modulus check).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ML-KEM encapsulation key has a coefficient of 3329 or more, so nobody made it (FIPS 203, 7.2)")]
pub struct RefusedKem;

impl KemKey {
    /// The key pair of a seed `d || z` (FIPS 203, section 7.1): 64 bytes from a source fit for keys, used once.
    pub fn from_seed(seed: &Zeroizing<[u8; 64]>) -> Self {
        let seed = Zeroizing::new(ml_kem::Seed::from(**seed));
        Self(Box::new(ml_kem_768::DecapsulationKey::from_seed(*seed)))
    }

    /// The public half.
    pub fn encapsulation_key(&self) -> EncapsulationKey {
        EncapsulationKey::from_bytes(&self.0.encapsulation_key().to_bytes().into())
    }

    /// SHA-256 of the public half, for the announcement (`kem`).
    pub fn hash(&self) -> [u8; 32] {
        hash(&self.encapsulation_key())
    }

    /// The shared secret of a ciphertext. A ciphertext for another key gives another secret and no error (FIPS 203,
    /// section 6.3, implicit rejection): it shows in the proof that follows.
    pub(super) fn decapsulate(&self, ciphertext: &Ciphertext) -> Zeroizing<[u8; 32]> {
        shared(self.0.decapsulate(&Array::from(*ciphertext.as_bytes())))
    }
}

/// SHA-256 of an encapsulation key: what an announcement's `kem` holds.
pub(super) fn hash(key: &EncapsulationKey) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// A ciphertext for the owner of `key`, and the secret shared with it (FIPS 203, section 7.2).
///
/// `randomness` comes from a source fit for keys and is used once.
///
/// # Errors
/// The key is not one.
pub fn encapsulate(
    key: &EncapsulationKey,
    randomness: &Zeroizing<[u8; 32]>,
) -> Result<(Ciphertext, Zeroizing<[u8; 32]>), RefusedKem> {
    let key = ml_kem_768::EncapsulationKey::new(&Array::from(*key.as_bytes())).map_err(|_| RefusedKem)?;
    let randomness = Zeroizing::new(ml_kem::B32::from(**randomness));
    let (ciphertext, secret) = key.encapsulate_deterministic(&randomness);
    Ok((Ciphertext::from_bytes(&ciphertext.into()), shared(secret)))
}

/// Moves a shared secret where it will be wiped.
fn shared(secret: ml_kem::B32) -> Zeroizing<[u8; 32]> {
    let secret = Zeroizing::new(secret);
    let mut bytes = Zeroizing::new([0; 32]);
    bytes.copy_from_slice(&secret);
    bytes
}

#[cfg(test)]
mod tests;
