//! ChaCha20-Poly1305 (RFC 8439) as WireGuard uses it: a counter for the nonce. The cipher is aws-lc's, which wipes a key's memory when
//! it is given back.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::messages::{HEADER, TAG, counter};

/// A key for one direction.
pub struct Key {
    cipher: LessSafeKey,
    /// For the other library, which keeps none.
    #[cfg(ipsec_mb)]
    bytes: zeroize::Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Four zeros, then the counter (section 5.4).
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Key {
    /// A key of these bytes, of which it makes a copy.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("invariant: 32 bytes are a key");
        Self {
            cipher: LessSafeKey::new(key),
            #[cfg(ipsec_mb)]
            bytes: zeroize::Zeroizing::new(*bytes),
        }
    }

    #[cfg(ipsec_mb)]
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Encrypts a data message that [`Noise::send`](super::Noise::send) has laid out: its header says the counter.
    pub(super) fn seal_message(&self, message: &mut [u8]) {
        let counter = counter(message);
        self.seal(counter, &[], &mut message[HEADER..]);
    }

    /// Encrypts all of `text` but its last 16 bytes, which become the tag. A counter may be used once.
    pub fn seal(&self, counter: u64, additional: &[u8], text: &mut [u8]) {
        let (text, tag) = text.split_at_mut(text.len() - TAG);
        let made = self.cipher.seal_in_place_separate_tag(nonce(counter), Aad::from(additional), text);
        tag.copy_from_slice(made.expect("invariant: shorter than 256 GiB").as_ref());
    }

    /// Decrypts what has its tag at its end, and at least that, into `out`, which gets 16 bytes less; whether it is authentic.
    #[must_use]
    pub fn open(&self, counter: u64, additional: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        let (text, tag) = sealed.split_at(sealed.len() - TAG);
        let out = &mut out[..text.len()];
        self.cipher.open_separate_gather(nonce(counter), Aad::from(additional), text, tag, out).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_sealed_is_opened_and_nothing_else_is(
            key in any::<[u8; 32]>(), counter in any::<u64>(), text in prop::collection::vec(any::<u8>(), 0..2000),
            additional in prop::collection::vec(any::<u8>(), 0..40), at in any::<prop::sample::Index>(), flip in 1u8..=255,
        ) {
            let key = Key::new(&key);
            let mut sealed = [&text[..], &[0; TAG]].concat();
            key.seal(counter, &additional, &mut sealed);
            let mut opened = vec![0; text.len()];
            prop_assert!(key.open(counter, &additional, &sealed, &mut opened));
            prop_assert_eq!(&opened, &text);
            prop_assert!(!key.open(counter ^ 1, &additional, &sealed, &mut opened));
            let at = at.index(sealed.len());
            sealed[at] ^= flip;
            prop_assert!(!key.open(counter, &additional, &sealed, &mut opened));
        }
    }
}
