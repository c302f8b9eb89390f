//! What a node announces about its end of the mesh: the content of its `hawser.dev/wireguard` annotation.
//!
//! The codec of the annotation is in the `keyring` crate; here is what it means.

use std::net::IpAddr;

use crate::key::PublicKey;
use crate::psk::Mode;
use crate::slot::Slot;

/// The two slots of a node and where they can be reached.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// Slot zero and slot one, in this order.
    pub slots: [SlotAnnouncement; 2],
    /// Addresses at which both slots listen, best first, at most [`MAX_ENDPOINTS`]. May be empty: then the node's
    /// InternalIPs are taken.
    pub endpoints: Vec<IpAddr>,
    /// SHA-256 of the ML-KEM encapsulation key in use, where the node takes part in post-quantum exchange.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kem: Option<[u8; 32]>,
    /// The node lets pods' packets into no session without a pre-shared key: who has just started and has heard no letter of it
    /// yet has to know that, too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub kem_required: bool,
    /// The node wants its own traffic with others that want it too in the tunnel.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_traffic: bool,
}

/// Endpoints in one announcement: one per family and a spare each.
pub const MAX_ENDPOINTS: usize = 4;

/// One slot of an announcement.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotAnnouncement {
    /// Number of the key: grows with every key that the node makes, over both slots.
    pub epoch: Epoch,
    /// The key.
    pub public_key: PublicKey,
    /// UDP port, 1 to 65535.
    pub port: u16,
    /// The node wants to replace this key: pairs move to the other slot.
    pub draining: bool,
}

/// Number of a key, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Announcement {
    /// What is announced of `slot`.
    pub fn slot(&self, slot: Slot) -> &SlotAnnouncement {
        &self.slots[slot.index()]
    }

    /// What the node wants of pre-shared keys.
    pub const fn psk_mode(&self) -> Mode {
        match (self.kem, self.kem_required) {
            (None, _) => Mode::Off,
            (Some(_), false) => Mode::Prefer,
            (Some(_), true) => Mode::Require,
        }
    }
}
