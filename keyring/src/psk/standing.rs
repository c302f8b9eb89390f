//! What may be done with a slot, given how far its pre-shared key is and what both administrators want.

use mesh_core::psk::{Mode, NodeId};
use mesh_core::slot::Slot;

/// How far this node is with one slot and one peer. Later ones include earlier ones only as far as they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// No key, and no handshake seen.
    Untried,
    /// No key, and a handshake seen.
    Plain,
    /// Answered: the peer may have installed a key that is not installed here.
    Answered,
    /// A key is installed that the peer says it does not have.
    Lost,
    /// A key is installed, and no handshake was seen since.
    Unproven,
    /// A handshake was seen here later than the installation, so both sides have the key.
    Proven,
    /// The peer saw one, too.
    Open,
}

/// How well a slot carries what this node sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carry {
    /// The two sides may hold different keys.
    No,
    /// It should work; nobody has seen it.
    Untried,
    /// It works, without a pre-shared key.
    Plain,
    /// It works, with one.
    Psk,
}

impl Standing {
    /// Whether what this node sends gets through. Where a slot is known to be dead (no handshake although there was
    /// something to send), the agent takes [`Carry::No`] instead.
    pub const fn carry(self) -> Carry {
        match self {
            Self::Answered | Self::Lost | Self::Unproven => Carry::No,
            Self::Untried => Carry::Untried,
            Self::Plain => Carry::Plain,
            Self::Proven | Self::Open => Carry::Psk,
        }
    }

    /// Is there no key on the slot?
    const fn is_bare(self) -> bool {
        match self {
            Self::Untried | Self::Plain | Self::Answered => true,
            Self::Lost | Self::Unproven | Self::Proven | Self::Open => false,
        }
    }
}

/// Which addresses of the peer a slot may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AllowedScope {
    /// The mesh addresses of the peer, for the agents' exchange.
    MeshOnly,
    /// The pods' prefixes and the node's addresses too.
    All,
}

/// What the modes of two nodes amount to. Symmetric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effective {
    /// One does not take part and the other does not insist.
    Off,
    /// Both take part, neither insists.
    Prefer,
    /// Both take part, and one insists.
    Require,
    /// One insists and the other does not take part.
    Conflict,
}

impl Effective {
    /// What the modes of two nodes amount to.
    pub const fn of(a: Mode, b: Mode) -> Self {
        match (a, b) {
            (Mode::Off, Mode::Require) | (Mode::Require, Mode::Off) => Self::Conflict,
            (Mode::Off, Mode::Off | Mode::Prefer) | (Mode::Prefer, Mode::Off) => Self::Off,
            (Mode::Prefer, Mode::Prefer) => Self::Prefer,
            (Mode::Require, Mode::Prefer | Mode::Require) | (Mode::Prefer, Mode::Require) => Self::Require,
        }
    }

    /// Is a new key agreed?
    pub const fn agrees(self) -> bool {
        matches!(self, Self::Prefer | Self::Require)
    }
}

/// What may be done with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Verdict {
    /// What its allowed IPs may be: what is taken from the peer.
    pub accept: AllowedScope,
    /// What may be routed there: what is sent to the peer.
    pub scope: AllowedScope,
    /// Put a key there that nobody else has ([`Psk::placeholder`](super::Psk::placeholder)), so that no handshake
    /// succeeds until the agreed one takes its place.
    pub placeholder: bool,
    /// How well it carries.
    pub carry: Carry,
}

impl Verdict {
    /// May pods' traffic be sent on it?
    pub const fn usable(self) -> bool {
        matches!(self.scope, AllowedScope::All) && matches!(self.carry, Carry::Plain | Carry::Psk)
    }
}

/// What may be done with a slot: `standing` is that of the slot, `other` that of the other one, `sending` the slot
/// on which this node sends.
///
/// The peer's mode is [`Mode::Off`] when its announcement has no `kem`, else what its last letter says, else
/// [`Mode::Prefer`].
pub fn verdict(us: Mode, them: Mode, slot: Slot, sending: Slot, standing: [Standing; 2]) -> Verdict {
    let this = standing[slot.index()];
    let other = standing[slot.other().index()];
    let carry = this.carry();
    let insisted = match Effective::of(us, them) {
        Effective::Off | Effective::Prefer => false,
        Effective::Require | Effective::Conflict => true,
    };
    let limited = |open: bool| if insisted && !open { AllowedScope::MeshOnly } else { AllowedScope::All };
    let scope = limited(this == Standing::Open);
    // The peer may know first that both have seen the key at work, and then sends at once. Where this side has seen it,
    // no session without it is left on the slot: the entry was made anew with the key.
    let accept = limited(matches!(this, Standing::Proven | Standing::Open));
    // Only while the other slot is known to work with a key on both sides: that knowledge is true on both, so there is
    // never a placeholder on each side's idea of the idle slot and a common channel on neither.
    let placeholder = Effective::of(us, them) == Effective::Require
        && this.is_bare()
        && other.carry() == Carry::Psk
        && sending != slot;
    let carry = if placeholder { Carry::No } else { carry };
    Verdict { accept, scope, placeholder, carry }
}

/// The slot on which a pair is to talk in place of the one that the announcements name: it has a key that works, and the
/// other has none yet and will get one. A slot that is drained is left for one without a key only when nobody agrees on
/// keys, or when the drained one is replaced.
pub fn instead(announced: Slot, effective: Effective, verdicts: &[Verdict; 2]) -> Option<Slot> {
    let (here, there) = (verdicts[announced.index()], verdicts[announced.other().index()]);
    let better =
        here.carry < Carry::Psk || (here.scope == AllowedScope::MeshOnly && there.scope == AllowedScope::All);
    let moves = effective != Effective::Off && there.carry == Carry::Psk && better;
    moves.then_some(announced.other())
}

/// May this node take part in an exchange for `slot` now? Not where it sends, and not without a channel that it has seen to
/// work.
pub fn may_exchange(slot: Slot, sending: Slot, carry: [Carry; 2]) -> bool {
    sending != slot && carry[slot.other().index()] >= Carry::Plain
}

/// One node insists on a pre-shared key and the other takes no part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error(
    "node {insists}: post-quantum mode require, but node {refuses} has off; no pod traffic between them but with the pre-shared keys that they still share. Set prefer or require on {refuses}, or prefer on {insists}"
)]
pub struct ModeConflict {
    /// The node with `require`.
    pub insists: NodeId,
    /// The node with `off`.
    pub refuses: NodeId,
}

impl ModeConflict {
    /// The conflict of a pair, if there is one. The same on both sides.
    pub fn of(us: (&NodeId, Mode), them: (&NodeId, Mode)) -> Option<Self> {
        let conflict = |(insists, refuses): (&NodeId, &NodeId)| Self {
            insists: insists.clone(),
            refuses: refuses.clone(),
        };
        match (us.1, them.1) {
            (Mode::Require, Mode::Off) => Some(conflict((us.0, them.0))),
            (Mode::Off, Mode::Require) => Some(conflict((them.0, us.0))),
            (Mode::Off | Mode::Prefer, Mode::Off | Mode::Prefer)
            | (Mode::Require, Mode::Prefer | Mode::Require)
            | (Mode::Prefer, Mode::Require) => None,
        }
    }
}

#[cfg(test)]
mod tests;
