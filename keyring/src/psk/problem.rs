//! What an exchange reports.

use mesh_core::psk::NodeId;
use mesh_core::slot::Slot;

/// What went wrong; the exchange goes on by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PskProblem {
    /// The peer's proof does not fit; nothing was installed.
    #[error(
        "node {peer}: its proof of the pre-shared key of {slot} does not fit, so it is not installed; agreed anew. If this stays, restart the agents of both nodes"
    )]
    WrongProof {
        /// The peer.
        peer: NodeId,
        /// The slot.
        slot: Slot,
    },
    /// Its key was refused.
    #[error(
        "node {peer}: its offer for {slot} is refused: {reason}; it is repeated by itself. If this stays, see whether annotation hawser.dev/wireguard of that node was written by somebody else"
    )]
    KeyRefused {
        /// The peer.
        peer: NodeId,
        /// The slot.
        slot: Slot,
        /// Why.
        reason: String,
    },
    /// This node cannot make one.
    #[error("node {peer}: no pre-shared key for {slot}: {reason}")]
    NoRandom {
        /// The peer.
        peer: NodeId,
        /// The slot.
        slot: Slot,
        /// Why.
        reason: String,
    },
    /// The peer has lost its record.
    #[error(
        "node {peer}: has no longer the pre-shared key of {slot} that it had confirmed; it is agreed anew over the other slot. If that one is dead as well, set hawser.dev/rotate on node {peer}"
    )]
    PeerLost {
        /// The peer.
        peer: NodeId,
        /// The slot.
        slot: Slot,
    },
    /// No key, long after it was due.
    #[error("node {peer}: no pre-shared key for {slot} yet; {why}")]
    Overdue {
        /// The peer.
        peer: NodeId,
        /// The slot.
        slot: Slot,
        /// Its refusal, or that it says nothing.
        why: String,
    },
}
