//! What two nodes say of each other, compared. A pair holds only if both say so; of one with a node of a joined cluster there is one side
//! alone, and it holds if that one says so.

use keyring::psk::Effective;
use mesh_core::evidence::{NodeEvidence, Note, PeerEvidence, PeerSlot, PskState};
use mesh_core::name::NodeName;
use mesh_core::psk::Mode;
use mesh_core::slot::Slot;

use super::report::{JoinedPair, Pair, PairKey, PairState, PostQuantum};

/// A session older than this carries nothing any more: REJECT_AFTER_TIME (WireGuard paper, section 6.1).
pub const SESSION_SECONDS: u64 = 180;
/// Whatever wants an answer has one by then ([`mesh_core::pair::PATIENCE`]).
const PATIENCE_SECONDS: u64 = 15;

/// What is wrong between two nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// One does not take the other for a peer.
    #[error(
        "{by} has no peer {of}: it does not accept the announcement of {of}, or has not seen it; its problems say which"
    )]
    NotAPeer {
        /// Who says so.
        by: String,
        /// Of whom.
        of: String,
    },
    /// One has no route into a slot.
    #[error("{by} routes nothing to {of} into a slot; what it would send is refused")]
    NoRoute {
        /// Who says so.
        by: String,
        /// To whom.
        of: String,
    },
    /// They send by different slots.
    #[error("{a} sends by {a_slot}, {b} by {b_slot}; where a key is being replaced, ask again when it is")]
    SlotsDiffer {
        /// One.
        a: String,
        /// Its slot.
        a_slot: Slot,
        /// The other.
        b: String,
        /// Its slot.
        b_slot: Slot,
    },
    /// One believes another key of the other than it has.
    #[error("{by} knows epoch {believed} of {slot} of {of}, which has epoch {has}")]
    KeysDiffer {
        /// Who.
        by: String,
        /// Whose key.
        of: String,
        /// Its slot.
        slot: Slot,
        /// What is believed.
        believed: u64,
        /// What it says of itself.
        has: u64,
    },
    /// A device uses another key than its node announces.
    #[error(
        "{slot} of {node} does not use the key that {node} announces; its agent programs it, see its log"
    )]
    DeviceKey {
        /// Whose.
        node: String,
        /// Which.
        slot: Slot,
    },
    /// A device does not have the other's key.
    #[error("{slot} of {by} has no entry for {of}")]
    NoEntry {
        /// Whose device.
        by: String,
        /// Of whom.
        of: String,
        /// Which.
        slot: Slot,
    },
    /// No handshake yet.
    #[error("{by} has had no handshake with {of} on {slot}; does UDP pass between them?")]
    NoHandshake {
        /// Who says so.
        by: String,
        /// With whom.
        of: String,
        /// Where.
        slot: Slot,
    },
    /// The last handshake was made with keys that are replaced.
    #[error("the last handshake of {by} with {of} on {slot} is older than their present keys")]
    OldHandshake {
        /// Who says so.
        by: String,
        /// With whom.
        of: String,
        /// Where.
        slot: Slot,
    },
    /// Nothing comes back.
    #[error("{of} has not answered {by} on {slot} for {seconds} s")]
    Unanswered {
        /// Who says so.
        by: String,
        /// Who is silent.
        of: String,
        /// Where.
        slot: Slot,
        /// For how long.
        seconds: u64,
    },
    /// The two devices have different pre-shared keys.
    #[error("{slot}: {a} and {b} have different pre-shared keys there, so no handshake can succeed")]
    PskDiffers {
        /// One.
        a: String,
        /// The other.
        b: String,
        /// Where.
        slot: Slot,
    },
    /// A device does not have the pre-shared key that was agreed.
    #[error("{slot}: the device of {by} does not have the pre-shared key that it has agreed with {of}")]
    PskUnused {
        /// Whose device.
        by: String,
        /// With whom.
        of: String,
        /// Where.
        slot: Slot,
    },
    /// There is no pre-shared key in use, and there should be one.
    #[error("{slot}: {by} says that its pre-shared key with {of} is {state}, wanted open")]
    PskMissing {
        /// Who says so.
        by: String,
        /// With whom.
        of: String,
        /// Where.
        slot: Slot,
        /// What it says.
        state: &'static str,
    },
    /// A pre-shared key has been missing for too long, or was lost.
    #[error("{slot}: {by} says that its pre-shared key with {of} is {state}; its problems say why")]
    PskOverdue {
        /// Who says so.
        by: String,
        /// With whom.
        of: String,
        /// Where.
        slot: Slot,
        /// What it says.
        state: &'static str,
    },
}

impl Fault {
    /// Codes of faults of encryption.
    pub const ENCRYPTION: [&str; 9] = [
        "pair-not-a-peer",
        "pair-without-route",
        "pair-slots-differ",
        "pair-keys-differ",
        "pair-device-key",
        "pair-without-entry",
        "pair-without-handshake",
        "pair-old-handshake",
        "pair-unanswered",
    ];
    /// Codes of faults of pre-shared keys.
    pub const PSK: [&str; 3] = ["psk-differs", "psk-missing", "psk-overdue"];

    /// A word for it.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAPeer { .. } => "pair-not-a-peer",
            Self::NoRoute { .. } => "pair-without-route",
            Self::SlotsDiffer { .. } => "pair-slots-differ",
            Self::KeysDiffer { .. } => "pair-keys-differ",
            Self::DeviceKey { .. } => "pair-device-key",
            Self::NoEntry { .. } => "pair-without-entry",
            Self::NoHandshake { .. } => "pair-without-handshake",
            Self::OldHandshake { .. } => "pair-old-handshake",
            Self::Unanswered { .. } => "pair-unanswered",
            Self::PskDiffers { .. } | Self::PskUnused { .. } => "psk-differs",
            Self::PskMissing { .. } => "psk-missing",
            Self::PskOverdue { .. } => "psk-overdue",
        }
    }

    /// Does it speak against encryption, and not only against its pre-shared key?
    fn is_of_encryption(&self) -> bool {
        Self::ENCRYPTION.contains(&self.code())
    }
}

/// For people.
pub const fn psk_words(state: PskState) -> &'static str {
    match state {
        PskState::Off => "off",
        PskState::Waiting => "waiting",
        PskState::Overdue => "overdue",
        PskState::Installed => "installed",
        PskState::Proven => "proven",
        PskState::Open => "open",
        PskState::Lost => "lost",
    }
}

/// What follows for a pair, without what its sides say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Whether what they send each other is encrypted.
    pub state: PairState,
    /// The slot on which they send.
    pub slot: Option<Slot>,
    /// Its pre-shared key.
    pub post_quantum: PostQuantum,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

impl Judged {
    /// Of a pair of which too little was heard.
    pub const fn unknown() -> Self {
        let (state, post_quantum) = (PairState::Unknown, PostQuantum::Unknown);
        Self { state, slot: None, post_quantum, faults: Vec::new() }
    }

    /// Does the other one leave questions unanswered?
    pub fn is_unanswered(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::Unanswered { .. }))
    }

    /// The same of one that answers nobody at all: what follows from its silence is not known, what is wrong here besides is.
    pub fn of_silent(self) -> Self {
        let of_silence =
            |code: &str| matches!(code, "pair-unanswered" | "pair-without-handshake" | "pair-old-handshake");
        let faults: Vec<Fault> = self.faults.into_iter().filter(|fault| !of_silence(fault.code())).collect();
        if faults.is_empty() { Self { slot: self.slot, ..Self::unknown() } } else { Self { faults, ..self } }
    }

    fn new(slot: Option<Slot>, idle: bool, post_quantum: PostQuantum, faults: Vec<Fault>) -> Self {
        let state = match faults.iter().any(Fault::is_of_encryption) {
            true => PairState::Fails,
            false if slot.is_none() => PairState::Fails,
            false if idle => PairState::Idle,
            false => PairState::Holds,
        };
        Self { state, slot, post_quantum, faults }
    }

    /// Nothing is wrong with it, and enough is known.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty() && self.state != PairState::Unknown
    }
}

/// One side: what a node says of itself and of the other.
#[derive(Clone, Copy)]
struct Side<'a> {
    node: &'a NodeEvidence,
    of: &'a PeerEvidence,
    /// The other, as this side calls it.
    peer: &'a NodeName,
}

impl Side<'_> {
    fn name(&self) -> String {
        self.node.node.to_string()
    }

    fn other(&self) -> String {
        self.peer.to_string()
    }

    fn slot(&self, slot: Slot) -> &PeerSlot {
        &self.of.slots[slot.index()]
    }
}

/// What both say of each other, if both do.
fn sides<'a>(a: &'a NodeEvidence, b: &'a NodeEvidence) -> Option<[Side<'a>; 2]> {
    let (a_says, b_says) = (a.peers.get(&b.node)?, b.peers.get(&a.node)?);
    Some([Side { node: a, of: a_says, peer: &b.node }, Side { node: b, of: b_says, peer: &a.node }])
}

/// Judges a pair of which both sides were heard; `a` has the smaller name.
pub fn judge(a: &NodeEvidence, b: &NodeEvidence) -> Pair {
    written(a, b, &weigh(a, b))
}

/// What follows for the pair. Of half a million pairs nothing is copied that is in order.
pub fn weigh(a: &NodeEvidence, b: &NodeEvidence) -> Judged {
    let mut faults = Vec::new();
    let Some([a, b]) = sides(a, b) else {
        let strange = [(a, b), (b, a)].into_iter().filter(|(by, of)| !by.peers.contains_key(&of.node));
        faults.extend(
            strange.map(|(by, of)| Fault::NotAPeer { by: by.node.to_string(), of: of.node.to_string() }),
        );
        return Judged::new(None, false, PostQuantum::Fails, faults);
    };
    for (by, of) in [(a, b), (b, a)] {
        keys(by, of, &mut faults);
    }
    let slot = in_use(a, b, &mut faults);
    let idle = slot.is_some_and(|slot| [a, b].map(|side| session(side, slot, &mut faults)).contains(&true));
    let post_quantum = pre_shared(a, b, slot, &mut faults);
    Judged::new(slot, idle, post_quantum, faults)
}

/// What follows for a node and one of a joined cluster, by what the first one says: nobody else is asked.
pub fn weigh_alone(node: &NodeEvidence, peer: &NodeName, said: &PeerEvidence) -> Judged {
    let (side, mut faults) = (Side { node, of: said, peer }, Vec::new());
    for slot in Slot::ALL {
        device(side, slot, &mut faults);
    }
    let slot = route(side, &mut faults);
    let idle = slot.is_some_and(|slot| session(side, slot, &mut faults));
    let post_quantum = pre_shared_alone(side, slot, &mut faults);
    Judged::new(slot, idle, post_quantum, faults)
}

/// A pair as the report has it, with what both say.
pub fn written(a: &NodeEvidence, b: &NodeEvidence, judged: &Judged) -> Pair {
    Pair {
        a: a.node.to_string(),
        b: b.node.to_string(),
        state: judged.state,
        slot: judged.slot,
        post_quantum: judged.post_quantum,
        keys: judged.slot.map(|slot| [a, b].map(|node| key(node, slot)).into()).unwrap_or_default(),
        exempt: sides(a, b).map(|[a, b]| exempt(a, b)),
        faults: judged.faults.iter().map(note).collect(),
        a_says: a.peers.get(&b.node).cloned(),
        b_says: b.peers.get(&a.node).cloned(),
    }
}

/// The same of a node and one of a joined cluster.
pub fn written_alone(
    node: &NodeEvidence,
    peer: &NodeName,
    said: &PeerEvidence,
    judged: &Judged,
) -> JoinedPair {
    JoinedPair {
        node: node.node.to_string(),
        peer: peer.to_string(),
        state: judged.state,
        slot: judged.slot,
        post_quantum: judged.post_quantum,
        key: judged.slot.map(|slot| key(node, slot)),
        faults: judged.faults.iter().map(note).collect(),
        says: said.clone(),
    }
}

fn key(node: &NodeEvidence, slot: Slot) -> PairKey {
    let own = &node.slots[slot.index()];
    PairKey {
        node: node.node.to_string(),
        epoch: own.epoch,
        made_at: own.made_at,
        age_seconds: own.made_at.map(|made| node.at.saturating_sub(made)),
    }
}

/// What goes between the two outside the tunnel, by intent.
fn exempt(a: Side<'_>, b: Side<'_>) -> Vec<String> {
    if !(a.of.host_path.closed() && b.of.host_path.closed()) {
        return vec!["what the nodes send each other themselves".to_owned()];
    }
    let ports = a.node.exemptions.host_tcp_ports.union(&b.node.exemptions.host_tcp_ports);
    ports.map(|port| format!("TCP port {port} of the nodes")).collect()
}

fn note(fault: &Fault) -> Note {
    Note { code: fault.code().to_owned(), text: fault.to_string() }
}

/// What `by` believes of the keys of `of`, and whether the devices of `by` use its own.
fn keys(by: Side<'_>, of: Side<'_>, faults: &mut Vec<Fault>) {
    for slot in Slot::ALL {
        let (believed, has) = (by.slot(slot), &of.node.slots[slot.index()]);
        if (believed.epoch, believed.key) != (has.epoch, has.key) {
            let (believed, has) = (believed.epoch.0, has.epoch.0);
            faults.push(Fault::KeysDiffer { by: by.name(), of: of.name(), slot, believed, has });
        }
        device(by, slot, faults);
    }
}

/// Does the device of a slot use the node's own key?
fn device(by: Side<'_>, slot: Slot, faults: &mut Vec<Fault>) {
    let own = &by.node.slots[slot.index()];
    if own.device_key != Some(own.key) {
        faults.push(Fault::DeviceKey { node: by.name(), slot });
    }
}

/// The slot on which both send.
fn in_use(a: Side<'_>, b: Side<'_>, faults: &mut Vec<Fault>) -> Option<Slot> {
    let (a_slot, b_slot) = (route(a, faults), route(b, faults));
    let (a_slot, b_slot) = (a_slot?, b_slot?);
    if a_slot != b_slot {
        faults.push(Fault::SlotsDiffer { a: a.name(), a_slot, b: b.name(), b_slot });
        return None;
    }
    Some(a_slot)
}

/// The slot on which a side sends.
fn route(by: Side<'_>, faults: &mut Vec<Fault>) -> Option<Slot> {
    if by.of.sends_by.is_none() {
        faults.push(Fault::NoRoute { by: by.name(), of: by.other() });
    }
    by.of.sends_by
}

/// Has a side a session there? True: it had, and it is over.
fn session(by: Side<'_>, slot: Slot, faults: &mut Vec<Fault>) -> bool {
    let Some(entry) = &by.slot(slot).entry else {
        faults.push(Fault::NoEntry { by: by.name(), of: by.other(), slot });
        return false;
    };
    if let Some(seconds) = entry.unanswered.filter(|seconds| *seconds >= PATIENCE_SECONDS) {
        faults.push(Fault::Unanswered { by: by.name(), of: by.other(), slot, seconds });
    }
    match entry.handshake_at {
        None => faults.push(Fault::NoHandshake { by: by.name(), of: by.other(), slot }),
        Some(_) if !entry.confirmed => {
            faults.push(Fault::OldHandshake { by: by.name(), of: by.other(), slot });
        }
        Some(at) => return by.node.at.saturating_sub(at) >= SESSION_SECONDS,
    }
    false
}

/// Is a pre-shared key to be agreed?
fn wants(a: Mode, b: Mode) -> bool {
    match Effective::of(a, b) {
        Effective::Off => false,
        Effective::Prefer | Effective::Require | Effective::Conflict => true,
    }
}

/// What a side says is wrong with the pre-shared key of a slot; `wanted`: there should be one in use.
fn lacks(by: Side<'_>, slot: Slot, wanted: bool, faults: &mut Vec<Fault>) {
    let state = by.slot(slot).psk.state;
    if matches!(state, PskState::Overdue | PskState::Lost) {
        let state = psk_words(state);
        faults.push(Fault::PskOverdue { by: by.name(), of: by.other(), slot, state });
    } else if wanted && state != PskState::Open {
        let state = psk_words(state);
        faults.push(Fault::PskMissing { by: by.name(), of: by.other(), slot, state });
    }
}

/// The pre-shared key of the slot in use, and what is wrong with those of both.
fn pre_shared(a: Side<'_>, b: Side<'_>, in_use: Option<Slot>, faults: &mut Vec<Fault>) -> PostQuantum {
    let wanted = wants(a.node.settings.post_quantum, b.node.settings.post_quantum);
    let (before, mut open) = (faults.len(), false);
    for slot in Slot::ALL {
        let device = |side: Side<'_>| side.slot(slot).entry.as_ref().map(|entry| entry.psk);
        let (at_a, at_b) = (device(a), device(b));
        if let (Some(at_a), Some(at_b)) = (at_a, at_b)
            && at_a != at_b
            && in_use == Some(slot)
        {
            faults.push(Fault::PskDiffers { a: a.name(), b: b.name(), slot });
        }
        for by in [a, b] {
            lacks(by, slot, wanted && in_use == Some(slot), faults);
        }
        if in_use == Some(slot) {
            // Both say open, and of one key, which is the one that both devices have.
            let said = [a, b].map(|side| (side.slot(slot).psk.state, side.slot(slot).psk.id));
            open = said[0] == said[1]
                && said[0].0 == PskState::Open
                && said[0].1.is_some()
                && at_a == Some(said[0].1)
                && at_b == Some(said[0].1);
        }
    }
    let clean = faults.len() == before;
    match (open, wanted) {
        (true, _) if clean => PostQuantum::Holds,
        (false, false) if clean => PostQuantum::Off,
        (false, true) if clean && in_use.is_some() => {
            // Both say open, but not of what the devices have.
            let slot = in_use.unwrap_or(Slot::Zero);
            faults.push(Fault::PskDiffers { a: a.name(), b: b.name(), slot });
            PostQuantum::Fails
        }
        _ => PostQuantum::Fails,
    }
}

/// The same by one side alone.
fn pre_shared_alone(by: Side<'_>, in_use: Option<Slot>, faults: &mut Vec<Fault>) -> PostQuantum {
    let (before, own) = (faults.len(), by.node.settings.post_quantum);
    let said = in_use.map(|slot| (slot, by.slot(slot)));
    let wanted = match by.of.mode {
        Some(theirs) => wants(own, theirs),
        // No letter of it has come since the agent started, which knows from its announcement whether one is to be agreed.
        None => own == Mode::Require || said.is_some_and(|(_, said)| said.psk.state != PskState::Off),
    };
    for slot in Slot::ALL {
        lacks(by, slot, wanted && in_use == Some(slot), faults);
    }
    let open = said.filter(|(_, said)| said.psk.state == PskState::Open);
    if let Some((slot, said)) = open {
        let device = said.entry.as_ref().and_then(|entry| entry.psk);
        if said.psk.id.is_none() || device != said.psk.id {
            faults.push(Fault::PskUnused { by: by.name(), of: by.other(), slot });
        }
    }
    let clean = faults.len() == before;
    match (open, wanted) {
        (Some(_), _) if clean => PostQuantum::Holds,
        (None, false) if clean => PostQuantum::Off,
        _ => PostQuantum::Fails,
    }
}

#[cfg(test)]
mod tests;
