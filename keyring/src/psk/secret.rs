//! The pre-shared key and the proofs of it.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use mesh_core::psk::{Ciphertext, Context, EncapsulationKey, PskId, Round, Tag, with_length};
use sha2_zeroizing::{Digest as _, Sha256};
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// First field of what the key is derived for. Another construction gets another number.
const DOMAIN: &[u8] = b"hawser.dev wireguard psk 1";
/// What the key is expanded for besides, each under its own label.
const LABEL_PROOF: &[u8] = b"hawser.dev wireguard psk 1 proof";
const LABEL_NAME: &[u8] = b"hawser.dev wireguard psk 1 name";

/// A WireGuard pre-shared key.
///
/// It has no `Debug`, `Clone`, `PartialEq` or `Serialize`, lives on the heap, so moving it leaves no copy behind, and
/// is zeroized when dropped.
#[expect(missing_debug_implementations, reason = "a secret must not be printable")]
pub struct Psk(Box<Zeroizing<[u8; 32]>>);

impl ZeroizeOnDrop for Psk {}

/// Which step a proof is for, so that none can be shown for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// The responder holds the key.
    Answer,
    /// The initiator has installed it.
    Confirm,
    /// The responder has installed it.
    Confirmed,
}

impl Proof {
    const fn word(self) -> &'static [u8] {
        match self {
            Self::Answer => b"answer",
            Self::Confirm => b"confirm",
            Self::Confirmed => b"confirmed",
        }
    }
}

impl Psk {
    pub(crate) fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(Box::new(bytes))
    }

    /// A key that nobody else has: on a slot it lets no handshake succeed.
    pub fn placeholder(randomness: Zeroizing<[u8; 32]>) -> Self {
        Self::from_bytes(randomness)
    }

    /// What a WireGuard device says that it has for a peer.
    pub fn of_device(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self::from_bytes(bytes)
    }

    /// The key of a context: HKDF-SHA256 (RFC 5869) of the KEM's shared secret. The salt is the SHA-256 of the
    /// exchange (round, encapsulation key, ciphertext, each with its length), the info is [`DOMAIN`] and the context's
    /// fields, each with its length ([`Context::encode`]).
    pub(super) fn derive(
        shared: &Zeroizing<[u8; 32]>,
        context: &Context,
        round: Round,
        key: &EncapsulationKey,
        ciphertext: &Ciphertext,
    ) -> Self {
        let mut salt = Sha256::new();
        for field in [&round.0[..], key.as_bytes(), ciphertext.as_bytes()] {
            salt.update(with_length(field).collect::<Vec<u8>>());
        }
        let info: Vec<u8> = with_length(DOMAIN).chain(context.encode()).collect();
        let mut okm = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(&salt.finalize()), shared.as_slice())
            .expand(&info, okm.as_mut_slice())
            .expect("invariant: 32 bytes are less than 255 blocks");
        Self::from_bytes(okm)
    }

    /// The 32 secret bytes, for whoever programs the WireGuard device: the only way out.
    pub fn expose(&self) -> Zeroizing<[u8; 32]> {
        (*self.0).clone()
    }

    /// Its name, which says nothing about it.
    pub fn id(&self) -> PskId {
        let mut id = [0; 16];
        self.expand(LABEL_NAME, &mut id);
        PskId(id)
    }

    /// The proof of a step for a context.
    pub fn tag(&self, context: &Context, proof: Proof) -> Tag {
        Tag(self.mac(context, proof).finalize().into_bytes().into())
    }

    /// Is `tag` the proof of that step? In a time that does not depend on where they differ.
    pub fn verify(&self, context: &Context, proof: Proof, tag: &Tag) -> bool {
        self.mac(context, proof).verify_slice(&tag.0).is_ok()
    }

    fn mac(&self, context: &Context, proof: Proof) -> Hmac<Sha256> {
        let mut key = Zeroizing::new([0; 32]);
        self.expand(LABEL_PROOF, key.as_mut_slice());
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_slice())
            .expect("invariant: HMAC takes keys of every length");
        mac.update(&with_length(proof.word()).chain(context.encode()).collect::<Vec<u8>>());
        mac
    }

    /// WireGuard mixes the key itself into its handshake, so everything else uses what is derived from it.
    fn expand(&self, label: &[u8], out: &mut [u8]) {
        Hkdf::<Sha256>::new(None, self.0.as_slice())
            .expand(label, out)
            .expect("invariant: 32 bytes are less than 255 blocks");
    }
}

#[cfg(test)]
mod tests;
