//! Keys as distinct types: public keys print, secrets do not and are wiped when dropped.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A Curve25519 public key, which names a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Wraps the 32 bytes of a key.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    /// Lower-case hexadecimal, as in UAPI.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps the 32 bytes of a secret; all zeros mean that there is none.
            #[must_use]
            pub fn new(bytes: [u8; 32]) -> Option<Self> {
                (bytes != [0; 32]).then_some(Self(bytes))
            }

            /// The 32 secret bytes.
            #[must_use]
            pub const fn expose(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

secret!(
    /// The device's own Curve25519 private key.
    PrivateKey
);
secret!(
    /// A symmetric key shared with one peer, mixed into the handshake.
    PresharedKey
);

impl PrivateKey {
    /// The key with the bits fixed that Curve25519 ignores (RFC 7748, section 5), as the kernel and
    /// wireguard-go store it: what `get` prints does not depend on the implementation.
    #[must_use]
    pub fn clamped(mut self) -> Self {
        self.0[0] &= 0b1111_1000;
        self.0[31] = (self.0[31] & 0b0111_1111) | 0b0100_0000;
        self
    }
}

/// Writes bytes as lower-case hexadecimal.
///
/// # Errors
/// Those of the writer.
pub fn write_hex(out: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(out, "{b:02x}"))
}

/// Reads exactly 64 hexadecimal digits of either case.
#[must_use]
pub fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_survives_a_round_trip_and_anything_else_is_refused() {
        let mut text = String::new();
        let key: [u8; 32] = std::array::from_fn(|i| u8::try_from(i * 7).unwrap());
        write_hex(&mut text, &key).unwrap();
        assert_eq!(parse_hex(&text), Some(key));
        assert_eq!(parse_hex(&text.to_uppercase()), Some(key));
        assert_eq!(parse_hex(&text[1..]), None);
        assert_eq!(parse_hex(&text.replacen('0', "+", 1)), None);
        assert_eq!(parse_hex(&"é".repeat(32)), None);
    }

    #[test]
    fn secrets_do_not_print_and_zero_is_no_secret() {
        let key = PrivateKey::new([0xab; 32]).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(redacted)");
        assert!(PresharedKey::new([0; 32]).is_none());
    }
}
