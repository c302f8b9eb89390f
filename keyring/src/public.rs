//! Which public keys are accepted from others.

use mesh_core::key::PublicKey;
use x25519_dalek::StaticSecret;

/// Why a public key is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedKey {
    /// 32 zero bytes: WireGuard's way to say "no key".
    #[error("is zero, which means \"no key\"")]
    Zero,
    /// Not the shortest form of its point: high bit set, or 2^255 - 19 or more.
    #[error("is not the canonical encoding of its point, so no node can own it")]
    NonCanonical,
    /// A point of small order: the shared secret would be zero for every private key.
    #[error("is a point of low order, so everybody knows its shared secrets")]
    LowOrder,
}

/// 2^255 - 19, little-endian.
const PRIME: [u8; 32] = {
    let mut bytes = [0xff; 32];
    bytes[0] = 0xed;
    bytes[31] = 0x7f;
    bytes
};

/// Accepts the public key of another node, or says why not.
///
/// Non-canonical encodings (RFC 7748, section 5, would take them modulo the prime) are refused: WireGuard hashes
/// the bytes of a public key, and its owner always computes the canonical ones, so no handshake with another
/// encoding can succeed; and one point under two encodings would pass for two keys where keys must be unique.
pub fn validate_public(key: PublicKey) -> Result<PublicKey, RefusedKey> {
    let bytes = key.as_bytes();
    if bytes == &[0; 32] {
        return Err(RefusedKey::Zero);
    }
    if bytes.iter().rev().cmp(PRIME.iter().rev()).is_ge() {
        return Err(RefusedKey::NonCanonical);
    }
    // Every scalar is clamped to a multiple of the cofactors of curve and twist, so any one scalar takes exactly the
    // points of low order to zero.
    let shared = StaticSecret::from([1; 32]).diffie_hellman(&x25519_dalek::PublicKey::from(*bytes));
    if shared.was_contributory() { Ok(key) } else { Err(RefusedKey::LowOrder) }
}

#[cfg(test)]
mod tests;
