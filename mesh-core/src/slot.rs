//! The two slots of a node (design D3): each is a WireGuard device with a key of its own, both always announced.

use std::fmt;

use crate::announcement::Announcement;

/// One of a node's two WireGuard devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// `hawser0`.
    Zero,
    /// `hawser1`.
    One,
}

impl Slot {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Zero, Self::One];

    /// 0 or 1: its place in an announcement.
    pub const fn index(self) -> usize {
        match self {
            Self::Zero => 0,
            Self::One => 1,
        }
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Zero => Self::One,
            Self::One => Self::Zero,
        }
    }

    /// Name of its network device.
    pub const fn device(self) -> &'static str {
        match self {
            Self::Zero => "hawser0",
            Self::One => "hawser1",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.device())
    }
}

/// The slot on which a pair of nodes talks: a pure, symmetric function of what both announce, so both sides agree
/// without a message.
///
/// A draining slot is avoided. Where the two nodes drain different slots, the drain of the node with the greater
/// name goes first and the other's waits. Where nothing drains, or one node drains both of its slots (which it
/// never announces itself), slot zero. Names are such as both sides have for the two: of nodes of several clusters
/// [`crate::psk::NodeId`].
pub fn pair_slot<Name: Ord>(a: (&Name, &Announcement), b: (&Name, &Announcement)) -> Slot {
    agreed((a.0, drained(a.1)), (b.0, drained(b.1)))
}

/// [`pair_slot`] of two nodes of which the drained slots are known.
pub fn agreed<Name: Ord>(a: (&Name, Option<Slot>), b: (&Name, Option<Slot>)) -> Slot {
    let (greater, smaller) = if a.0 >= b.0 { (a.1, b.1) } else { (b.1, a.1) };
    match (greater, smaller) {
        (Some(slot), _) | (None, Some(slot)) => slot.other(),
        (None, None) => Slot::Zero,
    }
}

/// The slot that an announcement drains, if it is exactly one.
pub fn drained(announcement: &Announcement) -> Option<Slot> {
    match (announcement.slots[0].draining, announcement.slots[1].draining) {
        (true, false) => Some(Slot::Zero),
        (false, true) => Some(Slot::One),
        (false, false) | (true, true) => None,
    }
}

#[cfg(test)]
mod tests;
