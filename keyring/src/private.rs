//! Private keys.

use mesh_core::key::PublicKey;
use x25519_dalek::StaticSecret;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes from the operating system: {0}; a key is not made without them")]
pub struct RandomError(#[from] getrandom::Error);

/// An X25519 private key (RFC 7748), clamped.
///
/// It has no `Debug`, `Clone`, `PartialEq` or `Serialize`, so that it cannot reach a log, a diff or an object by
/// accident. It lives on the heap, so moving it leaves no copy behind, and is zeroized when dropped.
#[expect(missing_debug_implementations, reason = "a private key must not be printable")]
pub struct PrivateKey(Box<StaticSecret>);

impl ZeroizeOnDrop for PrivateKey {}

impl PrivateKey {
    /// A new key from the operating system's random numbers.
    pub fn generate() -> Result<Self, RandomError> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut_slice())?;
        Ok(Self::from_bytes(&bytes))
    }

    /// Clamps (RFC 7748, section 5), as kernel and `wg` do, so that what a device reports equals what it was given.
    pub(crate) fn from_bytes(bytes: &Zeroizing<[u8; 32]>) -> Self {
        let mut clamped = bytes.clone();
        clamped[0] &= 248;
        clamped[31] = clamped[31] & 127 | 64;
        Self(Box::new(StaticSecret::from(*clamped)))
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> PublicKey {
        PublicKey::from_bytes(x25519_dalek::PublicKey::from(&*self.0).to_bytes())
    }

    /// The 32 secret bytes, for whoever programs the WireGuard device: the only way out.
    pub fn expose(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(*self.0.as_bytes())
    }
}

#[cfg(test)]
mod tests;
