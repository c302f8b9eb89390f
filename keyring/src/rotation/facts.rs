//! What a rotation is decided from.

use std::time::Duration;

use mesh_core::announcement::{Announcement, Epoch};
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::slot::Slot;

/// What has to be seen before a slot counts as left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// No packet for [`Settings::quiet`]. Enough where every pair talks all the time: a peer that has nothing to say
    /// looks as if it had left, and if its agent is away it may then send into a key that is gone.
    Silence,
    /// Besides, every peer answers (by its kernel, ICMP echo to its mesh address), and its answers come in by the
    /// other slot: a peer's answers take the routes that its pods' packets take, whatever its agent does.
    Answers,
}

/// How a node rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// No key gets older than this before its replacement begins; a rotation begins up to a quarter of it earlier,
    /// so that nodes spread. Zero: never by schedule.
    pub period: Duration,
    /// For how long a slot has to be silent.
    pub quiet: Duration,
    /// When a draining slot's key is replaced whoever is still there, from the moment that the API had the drain.
    pub deadline: Duration,
    /// What has to be seen.
    pub proof: Proof,
    /// For how long a Node has to be dead by the API's word before a peer that answers nothing, either, counts as gone
    /// ([`PeerFacts::doubted_for`]). Zero: no peer ever does.
    pub gone: Duration,
}

impl Settings {
    /// Never by schedule; quiet 15 s, which is longer than WireGuard leaves data unanswered; deadline 10 min; gone after
    /// 5 min, when Kubernetes gives up a dead node's pods as well.
    pub const DEFAULT: Self = Self {
        period: Duration::ZERO,
        quiet: Duration::from_secs(15),
        deadline: Duration::from_secs(600),
        proof: Proof::Answers,
        gone: Duration::from_secs(300),
    };
}

/// The two clocks. A rotation's deadlines take the steady one and begin anew with the agent, since waiting is safe;
/// the age of keys takes the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since any moment of this agent's life; never goes back.
    pub uptime: Duration,
    /// Seconds since 1970.
    pub unix: u64,
}

/// A slot of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotFacts {
    /// Epoch of the key in the store.
    pub epoch: Epoch,
    /// That key.
    pub public: PublicKey,
    /// When it was made, in seconds since 1970; none: not known, and then the schedule leaves it alone.
    pub made: Option<u64>,
    /// The key that is staged for it in the store.
    pub staged: Option<PublicKey>,
    /// The key that the device has now; none: it has none, or there is no device.
    pub device: Option<PublicKey>,
    /// For how long the device has received no inner packet, as far as this agent has looked: from the counters of
    /// the network device, which keepalives and handshakes do not move.
    pub quiet_for: Duration,
}

/// A peer: another node with an accepted announcement.
#[derive(Clone, Copy, Debug)]
pub struct PeerFacts<'a> {
    /// Its name.
    pub name: &'a NodeName,
    /// It is the smaller of the pair as all clusters call them (`NodeId`), which [`mesh_core::pair::target`] goes by too. Names of
    /// two clusters, as one of them calls them, may be in the other order.
    pub smaller: bool,
    /// The slot that it drains, as far as known here ([`mesh_core::slot::drained`]).
    pub drained: Option<Slot>,
    /// Where the pair is to talk ([`mesh_core::pair::target`]).
    pub target: Slot,
    /// Where the kernel's routes to it lead.
    pub sending: Option<Slot>,
    /// By which slot its latest answer came in, and how long ago.
    pub answered: Option<(Slot, Duration)>,
    /// Age of its latest handshake on each slot.
    pub handshake_age: [Option<Duration>; 2],
    /// For how long its Node has been dead by the API's word: nobody hears of its kubelet. None: it is not. That proves
    /// nothing, since a node without a kubelet goes on carrying its pods' packets, so it is asked whatever way leads to it.
    pub doubted_for: Option<Duration>,
    /// For how long it has answered none of our questions, which were sent all the time, nor a handshake on either slot, while
    /// no byte of it came in. None: it was not asked lately, or something came. Handshakes on both, since a peer that lives may
    /// know our key on the one alone into which no route of ours leads.
    pub unheard_for: Option<Duration>,
}

/// Everything that the machine looks at.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// This node.
    pub node: &'a NodeName,
    /// Its slots, in order.
    pub slots: [SlotFacts; 2],
    /// Its own announcement as the API last showed it; none: not known.
    pub announced: Option<&'a Announcement>,
    /// The complete list of Nodes was seen, so that `peers` are all.
    pub synced: bool,
    /// All peers.
    pub peers: &'a [PeerFacts<'a>],
    /// The annotation `hawser.dev/rotate`.
    pub request: Option<&'a str>,
    /// A new `mesh-tunnel` waits for this node's devices.
    pub successor: bool,
}

impl Observed<'_> {
    /// A slot of this node.
    pub const fn slot(&self, slot: Slot) -> &SlotFacts {
        &self.slots[slot.index()]
    }

    /// Does the API show both present keys, and the drain of `drained` alone?
    pub(super) fn shows(&self, drained: Option<Slot>) -> bool {
        self.announced.is_some_and(|announced| {
            Slot::ALL.into_iter().all(|slot| {
                let (shown, own) = (announced.slot(slot), self.slot(slot));
                shown.epoch == own.epoch
                    && shown.public_key == own.public
                    && shown.draining == (drained == Some(slot))
            })
        })
    }
}
