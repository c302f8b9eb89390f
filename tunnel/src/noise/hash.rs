//! BLAKE2s, HMAC and HKDF, and the state that a handshake carries along (section 5.4).

use std::sync::LazyLock;

use blake2::digest::consts::U16;
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use hmac::{KeyInit as _, Mac as _, SimpleHmac};
use zeroize::Zeroizing;

use super::aead::Key;
use super::messages::TAG;

/// A hash, or a key made of one.
pub(super) type Hash = [u8; 32];
/// A hash that nobody may learn.
pub(super) type Secret = Zeroizing<Hash>;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// Chaining key and hash before anything else is known.
static INITIAL: LazyLock<(Hash, Hash)> = LazyLock::new(|| {
    let chain = hash(&[CONSTRUCTION]);
    (chain, hash(&[&chain, IDENTIFIER]))
});

/// `Hash` of the paper.
pub(super) fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Blake2s256::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// `Mac` of the paper: keyed BLAKE2s of 16 bytes.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("invariant: keys of at most 32 bytes");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn hmac(key: &Hash, parts: &[&[u8]]) -> Secret {
    let mut hmac = SimpleHmac::<Blake2s256>::new_from_slice(key).expect("invariant: any length will do");
    parts.iter().for_each(|part| hmac.update(part));
    Zeroizing::new(hmac.finalize().into_bytes().into())
}

/// `Kdf` of the paper, of up to three outputs.
fn kdf<const N: usize>(key: &Hash, input: &[u8]) -> [Secret; N] {
    let extracted = hmac(key, &[input]);
    let mut last: Option<Secret> = None;
    std::array::from_fn(|n| {
        let number = [u8::try_from(n + 1).expect("invariant: three at most")];
        let before: &[u8] = last.as_ref().map_or(&[], |secret| &secret[..]);
        let next = hmac(&extracted, &[before, &number]);
        last = Some(next.clone());
        next
    })
}

/// Chaining key and hash of a handshake.
#[derive(Clone)]
pub(super) struct Symmetric {
    chain: Secret,
    hash: Hash,
}

impl Symmetric {
    /// The state before the first message to this responder.
    pub(super) fn new(responder: &[u8; 32]) -> Self {
        let (chain, start) = *INITIAL;
        Self { chain: Zeroizing::new(chain), hash: hash(&[&start, responder]) }
    }

    pub(super) fn mix_hash(&mut self, input: &[u8]) {
        self.hash = hash(&[&self.hash, input]);
    }

    pub(super) fn mix_key(&mut self, input: &[u8]) {
        let [chain] = kdf(&self.chain, input);
        self.chain = chain;
    }

    /// Mixes in a secret and makes a key of it.
    pub(super) fn mix_key_for(&mut self, input: &[u8]) -> Key {
        let [chain, key] = kdf(&self.chain, input);
        self.chain = chain;
        Key::new(&key)
    }

    /// Mixes in the pre-shared key, zeros if there is none, and makes a key of it.
    pub(super) fn mix_psk(&mut self, psk: &[u8; 32]) -> Key {
        let [chain, mixed, key] = kdf(&self.chain, psk);
        self.chain = chain;
        self.mix_hash(&mixed[..]);
        Key::new(&key)
    }

    /// Puts an encrypted field into a message: `text` and its tag.
    pub(super) fn seal(&mut self, key: &Key, text: &[u8], field: &mut [u8]) {
        field[..text.len()].copy_from_slice(text);
        let field = &mut field[..text.len() + TAG];
        key.seal(0, &self.hash, field);
        self.mix_hash(field);
    }

    /// Reads an encrypted field of a message.
    pub(super) fn open<const N: usize>(&mut self, key: &Key, field: &[u8]) -> Option<[u8; N]> {
        let mut text = [0; N];
        let authentic = field.len() == N + TAG && key.open(0, &self.hash, field, &mut text);
        self.mix_hash(field);
        authentic.then_some(text)
    }

    /// The keys of a session: the initiator's to send, and the responder's.
    pub(super) fn split(self) -> [Key; 2] {
        let keys: [Secret; 2] = kdf(&self.chain, &[]);
        #[cfg(test)]
        keys.iter().for_each(|key| made::note(key));
        keys.map(|key| Key::new(&key))
    }
}

/// Equality that takes as long for all inputs of a length.
pub(super) fn equal(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// For a test that looks for them in memory: the keys of sessions that this thread has made, so that they are not found here.
#[cfg(test)]
pub(super) mod made {
    use std::cell::RefCell;

    const MASK: u8 = 0xa5;

    thread_local! {
        static MASKED: RefCell<Vec<[u8; 32]>> = const { RefCell::new(Vec::new()) };
    }

    #[inline(never)]
    pub(super) fn note(key: &[u8; 32]) {
        MASKED.with_borrow_mut(|masked| {
            masked.push([0; 32]);
            let last = masked.len() - 1;
            for (to, from) in masked[last].iter_mut().zip(key) {
                *to = from ^ MASK;
            }
        });
    }

    /// Those keys, on the heap alone.
    pub(in crate::noise) fn keys() -> Vec<[u8; 32]> {
        let mut keys = MASKED.with_borrow(Clone::clone);
        keys.iter_mut().flatten().for_each(|byte| *byte ^= MASK);
        keys
    }
}
