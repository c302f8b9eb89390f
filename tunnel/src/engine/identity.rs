//! The device's own key and what follows from it.

use std::sync::Arc;

use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use crate::keys::{PresharedKey, PrivateKey, PublicKey};

/// Handshake messages per second beyond which senders must show a cookie. One costs about 0.1 ms of a core.
pub(super) const LOAD_LIMIT: u64 = 100;

/// The key pair and the MAC keys that belong to it. boringtun's key type wipes itself when dropped.
pub(super) struct Identity {
    pub(super) private: x25519::StaticSecret,
    pub(super) public: x25519::PublicKey,
    /// Checks MACs and counts load, for all peers together.
    pub(super) limiter: RateLimiter,
    /// `Tunn` checks MACs a second time; this one never reports load, so nothing is counted twice.
    unlimited: Arc<RateLimiter>,
}

impl Identity {
    pub(super) fn new(key: &PrivateKey) -> Self {
        let private = x25519::StaticSecret::from(*key.expose());
        let public = x25519::PublicKey::from(&private);
        let limiter = RateLimiter::new(&public, LOAD_LIMIT);
        let unlimited = Arc::new(RateLimiter::new(&public, u64::MAX));
        Self { private, public, limiter, unlimited }
    }

    /// The noise state for a peer, or none if the peer's key is of low order: then the shared secret would
    /// be zero, and anybody could speak for that peer.
    pub(super) fn tunn(&self, peer: &PublicKey, psk: Option<&PresharedKey>, index: u32) -> Option<Tunn> {
        let public = x25519::PublicKey::from(*peer.as_bytes());
        if !self.private.diffie_hellman(&public).was_contributory() {
            return None;
        }
        let psk = psk.map(|k| *k.expose());
        // Keepalives are ours: `Tunn` could not change the interval of a living session.
        Some(Tunn::new(self.private.clone(), public, psk, None, index, Some(Arc::clone(&self.unlimited))))
    }
}

/// The public key of a private key.
pub(super) fn derive_public(key: &PrivateKey) -> PublicKey {
    PublicKey::new(x25519::PublicKey::from(&x25519::StaticSecret::from(*key.expose())).to_bytes())
}
