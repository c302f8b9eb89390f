//! The cryptography of an exchange, as the machine sees it: real, or a toy for models.

use std::fmt::Debug;
use std::hash::Hash;

use mesh_core::psk::{Ciphertext, Context, EncapsulationKey, PskId, Round, Tag};
use zeroize::Zeroizing;

use super::kem::{KemKey, RefusedKem, encapsulate, hash};
use super::secret::{Proof, Psk};
use crate::private::RandomError;

/// Where random bytes come from.
pub trait Random {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// There are none; then `bytes` must not be used.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), RandomError>;
}

/// The operating system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), RandomError> {
        Ok(getrandom::fill(bytes)?)
    }
}

/// Why a step of the cryptography failed.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The offered key is not the one that its owner announces.
    #[error("the offered ML-KEM key has another hash than the announced kem")]
    NotAnnounced,
    /// The offered key is not a key.
    #[error(transparent)]
    Refused(#[from] RefusedKem),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// What an [`Exchange`](super::Exchange) needs of cryptography. Randomness is inside.
pub trait Suite {
    /// Encapsulation keys.
    type Key: Clone + Eq + Hash + Debug;
    /// Ciphertexts.
    type Ciphertext: Clone + Eq + Hash + Debug;
    /// Pre-shared keys.
    type Psk;

    /// A fresh name for an offer.
    ///
    /// # Errors
    /// No random bytes.
    fn round(&mut self) -> Result<Round, SuiteError>;

    /// The own encapsulation key.
    fn key(&self) -> Self::Key;

    /// The responder's step.
    ///
    /// # Errors
    /// The key is refused, or there are no random bytes.
    fn encapsulate(
        &mut self,
        context: &Context,
        round: Round,
        key: &Self::Key,
    ) -> Result<(Self::Ciphertext, Self::Psk), SuiteError>;

    /// The initiator's step; a wrong ciphertext gives a wrong key.
    fn decapsulate(&self, context: &Context, round: Round, ciphertext: &Self::Ciphertext) -> Self::Psk;

    /// The name of a key.
    fn id(&self, psk: &Self::Psk) -> PskId;

    /// A proof of a key.
    fn tag(&self, psk: &Self::Psk, context: &Context, proof: Proof) -> Tag;

    /// Is it one?
    fn verify(&self, psk: &Self::Psk, context: &Context, proof: Proof, tag: &Tag) -> bool;
}

/// ML-KEM-768, HKDF-SHA256, HMAC-SHA256.
#[expect(missing_debug_implementations, reason = "it holds a private key")]
pub struct MlKem<'a> {
    /// The own key pair.
    pub own: &'a KemKey,
    /// `kem` of the peer's announcement.
    pub announced: Option<[u8; 32]>,
    /// Where random bytes come from.
    pub random: &'a mut dyn Random,
}

impl Suite for MlKem<'_> {
    type Key = EncapsulationKey;
    type Ciphertext = Ciphertext;
    type Psk = Psk;

    fn round(&mut self) -> Result<Round, SuiteError> {
        let mut round = [0; 16];
        self.random.fill(&mut round)?;
        Ok(Round(round))
    }

    fn key(&self) -> EncapsulationKey {
        self.own.encapsulation_key()
    }

    fn encapsulate(
        &mut self,
        context: &Context,
        round: Round,
        key: &EncapsulationKey,
    ) -> Result<(Ciphertext, Psk), SuiteError> {
        if self.announced != Some(hash(key)) {
            return Err(SuiteError::NotAnnounced);
        }
        let mut randomness = Zeroizing::new([0; 32]);
        self.random.fill(randomness.as_mut_slice())?;
        let (ciphertext, shared) = encapsulate(key, &randomness)?;
        let psk = Psk::derive(&shared, context, round, key, &ciphertext);
        Ok((ciphertext, psk))
    }

    fn decapsulate(&self, context: &Context, round: Round, ciphertext: &Ciphertext) -> Psk {
        let shared = self.own.decapsulate(ciphertext);
        Psk::derive(&shared, context, round, &self.key(), ciphertext)
    }

    fn id(&self, psk: &Psk) -> PskId {
        psk.id()
    }

    fn tag(&self, psk: &Psk, context: &Context, proof: Proof) -> Tag {
        psk.tag(context, proof)
    }

    fn verify(&self, psk: &Psk, context: &Context, proof: Proof, tag: &Tag) -> bool {
        psk.verify(context, proof, tag)
    }
}
