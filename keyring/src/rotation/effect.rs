//! What a rotation does.

use std::fmt;

use mesh_core::name::NodeName;
use mesh_core::slot::Slot;

use super::state::{Cause, KeyId, Verdict};

/// Something to do. Each is safe to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Put the state of the step's machine on the disk, durably, before going on.
    Persist,
    /// Report it: an Event and a warning.
    Overdue(Overdue),
    /// Make the slot's next key and put it on the disk beside the present one ([`crate::LoadedStore::stage`]).
    Stage {
        /// The slot.
        slot: Slot,
    },
    /// Give the device of the slot its staged key. Its peers stay.
    Install {
        /// The slot.
        slot: Slot,
    },
    /// The staged key becomes the slot's, the old one is destroyed ([`crate::LoadedStore::commit`]).
    Commit {
        /// The slot.
        slot: Slot,
    },
    /// Ask these peers' kernels for an answer (ICMP echo to the mesh address), and note the device by which it comes.
    Ask {
        /// Whom.
        peers: Vec<NodeName>,
    },
    /// Write the record: a key is gone from memory, file and device.
    Destroyed(Destroyed),
}

/// The deadline came before every peer had left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// This node.
    pub node: NodeName,
    /// The slot.
    pub slot: Slot,
    /// Who had not left, and why.
    pub verdict: Verdict,
    /// Its key stays: only a tunnel waits for the slot ([`super::Cause::Tunnel`]).
    pub kept: bool,
}

/// Peers that a message names; the rest are counted, since a message goes into an Event of at most 1,024 bytes.
const NAMED: usize = 8;

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, slot, verdict, kept } = self;
        let what = if *kept {
            "the mesh-tunnel that waits does not get it, since not everybody left it by the deadline"
        } else {
            "its key is replaced at the deadline though not everybody left it"
        };
        write!(f, "node {node}: {slot}: {what}: ")?;
        for (index, (peer, laggard)) in verdict.overdue.iter().take(NAMED).enumerate() {
            write!(f, "{}{peer} ({laggard})", if index == 0 { "" } else { ", " })?;
        }
        if verdict.overdue.len() > NAMED {
            write!(f, " and {} more", verdict.overdue.len() - NAMED)?;
        }
        if verdict.overdue.is_empty() {
            f.write_str("packets still come in there")?;
        }
        write!(f, "; look at mesh-agent there, and whether UDP passes to {}", slot.other())?;
        f.write_str(if *kept {
            "; keys stay as they are, and it is tried again"
        } else {
            "; the pair talks again when both agents know both keys"
        })
    }
}

/// A key was destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destroyed {
    /// This node.
    pub node: NodeName,
    /// The slot.
    pub slot: Slot,
    /// The key that is gone.
    pub old: KeyId,
    /// The key in its place.
    pub new: KeyId,
    /// Why it was replaced.
    pub cause: Cause,
    /// How it was judged; none: this agent did not do it, its key file was removed or replaced by hand.
    pub verdict: Option<Verdict>,
}
