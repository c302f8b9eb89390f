//! What goes into the machine, what comes out, and what is kept.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::psk::{Ciphertext, Context, EncapsulationKey, Message, NodeId, PskId};
use mesh_core::slot::Slot;

use crate::psk::{Psk, PskProblem};

/// What is kept on the disk of a key: the truth of a slot.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Record<P = Psk> {
    /// To whom and what it belongs.
    pub context: Arc<Context>,
    /// The key.
    pub psk: Arc<P>,
    /// Its name.
    pub id: PskId,
    /// The peer has installed it.
    pub confirmed: bool,
    /// This node saw a handshake later than the installation.
    pub seen: bool,
    /// The peer did.
    pub peer_seen: bool,
}

impl<P> Clone for Record<P> {
    /// Another reference to the same secret, not a copy of it.
    fn clone(&self) -> Self {
        let Self { context, psk, id, confirmed, seen, peer_seen } = self;
        let (context, psk) = (Arc::clone(context), Arc::clone(psk));
        Self { context, psk, id: *id, confirmed: *confirmed, seen: *seen, peer_seen: *peer_seen }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input<K = EncapsulationKey, C = Ciphertext> {
    /// Time has come to [`Exchange::due`](super::Exchange::due), or conditions changed.
    Tick,
    /// A message of the peer came.
    Message(Message<K, C>),
    /// A handshake completed on the slot, and `on` has been there since before it began: the agent read `on` and the
    /// device's last handshake when it programmed the slot, and the last handshake has changed since.
    Handshake {
        /// What was on the slot; none: no pre-shared key. A placeholder never makes a handshake.
        on: Option<PskId>,
    },
}

/// What the machine cannot know by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Time since any fixed moment of this process; never goes back.
    pub now: Duration,
    /// Both modes allow a new key: [`Effective::agrees`](crate::psk::Effective::agrees).
    pub agree: bool,
    /// [`may_exchange`](crate::psk::may_exchange).
    pub idle: bool,
    /// This node drains the slot, the pair is to leave it, and it may replace its key as soon as the peer has left it. So it does not say that it has seen a
    /// handshake there: where one insists on pre-shared keys that word would move the peer onto the slot at any later moment,
    /// maybe before it hears of the drain.
    pub drained: bool,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect<P = Psk, K = EncapsulationKey, C = Ciphertext> {
    /// Write the record, durably.
    Persist(Record<P>),
    /// Put the key on the slot, for this peer.
    Install {
        /// The slot.
        slot: Slot,
        /// The peer.
        peer: NodeId,
        /// The key.
        psk: Arc<P>,
    },
    /// Remove the record, and the key from the slot.
    Remove {
        /// The slot.
        slot: Slot,
        /// The peer.
        peer: NodeId,
    },
    /// Tell the peer: as the answer to the request at hand, if there is one, else as a request. At most one per input.
    Send(Message<K, C>),
    /// Report.
    Problem(PskProblem),
}
