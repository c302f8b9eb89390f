//! The device's own key and what follows from it.

use std::sync::Arc;

use crate::keys::{PresharedKey, PrivateKey, PublicKey};
use crate::noise::Noise;
use crate::noise::cookie::Checker;
use crate::noise::handshake::Own;

/// The key pair, and what checks messages to it.
pub(super) struct Identity {
    pub(super) own: Arc<Own>,
    pub(super) checker: Checker,
}

impl Identity {
    pub(super) fn new(key: &PrivateKey) -> Self {
        let own = Arc::new(Own::new(key));
        let checker = Checker::new(&own.public());
        Self { own, checker }
    }

    /// The protocol's state for a peer, or none if the peer's key is of low order: then the shared secret would
    /// be zero, and anybody could speak for that peer.
    pub(super) fn noise(&self, peer: &PublicKey, psk: Option<&PresharedKey>, index: u32) -> Option<Noise> {
        Noise::new(Arc::clone(&self.own), peer, psk, index)
    }
}

/// The public key of a private key.
pub(super) fn derive_public(key: &PrivateKey) -> PublicKey {
    Own::new(key).public()
}
