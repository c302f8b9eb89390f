//! Keys that peers were seen to hold, so that nobody leads this node back to an older one.
//!
//! The API says which keys a node has. Whoever can write there, past the admission policy (D11), could announce a key of
//! long ago, whose private half was stolen or never wiped. An epoch grows with each key that a node makes, so for as long as a
//! Node object lives, a slot's epoch never goes back behind one with which a handshake was made there. A handshake, not an
//! announcement, is what counts: a false announcement with a great epoch would otherwise lock out the true one for ever.
//!
//! A refused announcement costs nothing: the last one that was not refused stays in use.

use std::collections::BTreeMap;

use crate::announcement::{Announcement, Epoch};
use crate::key::PublicKey;
use crate::name::NodeName;
use crate::problem::Problem;
use crate::slot::Slot;
use crate::view::{AnnouncementFact, NodeFacts};

/// What was seen of each other node. It is plain data, so that it can outlive the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Proven(BTreeMap<NodeName, Held>);

/// Of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Held {
    /// The Node of which this is true: one that was deleted and made anew begins anew.
    created: i64,
    /// The greatest epoch of each slot with which a handshake was made, in order.
    slots: [Option<SlotKey>; 2],
    /// The last announcement that was not refused.
    last: Option<Announcement>,
}

/// A key at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SlotKey {
    epoch: Epoch,
    public_key: PublicKey,
}

impl Held {
    /// The first slot that `announcement` takes back, or gives another key under the same number.
    fn refusal(&self, node: &NodeName, announcement: &Announcement) -> Option<Problem> {
        Slot::ALL.into_iter().find_map(|slot| {
            let proved = self.slots[slot.index()]?;
            let announced = announcement.slot(slot);
            // The same key under another number is no older key: its number may have been announced falsely before.
            let older = announced.epoch <= proved.epoch && announced.public_key != proved.public_key;
            older.then(|| Problem::EpochWentBack {
                node: node.clone(),
                slot,
                epoch: announced.epoch,
                key: announced.public_key,
                proved: proved.epoch,
            })
        })
    }
}

impl Proven {
    /// Puts the last good announcement in the place of each that goes back, and says which. Where there is none, the
    /// node has no keys. With a `complete` list of nodes, what is known of others is forgotten.
    pub fn review(
        &mut self,
        local: &NodeName,
        nodes: &mut BTreeMap<NodeName, NodeFacts>,
        complete: bool,
    ) -> Vec<Problem> {
        if complete {
            self.0.retain(|name, _| nodes.contains_key(name));
        }
        let mut problems = Vec::new();
        for (name, node) in nodes.iter_mut().filter(|(name, _)| *name != local) {
            let AnnouncementFact::Valid(announcement) = &node.announcement else { continue };
            let held = self.0.entry(name.clone()).or_default();
            if held.created != node.created {
                *held = Held { created: node.created, ..Held::default() };
            }
            match held.refusal(name, announcement) {
                None => held.last = Some(announcement.clone()),
                Some(problem) => {
                    node.announcement = match &held.last {
                        Some(last) => AnnouncementFact::Valid(last.clone()),
                        None => AnnouncementFact::Malformed { reason: problem.to_string() },
                    };
                    problems.push(problem);
                }
            }
        }
        problems
    }

    /// A handshake was made on `slot` with the key that `node` announces for it. True: that is news, to be kept.
    pub fn prove(&mut self, node: &NodeName, slot: Slot) -> bool {
        let Some(held) = self.0.get_mut(node) else { return false };
        let Some(announced) = held.last.as_ref().map(|last| last.slot(slot)) else { return false };
        let now = SlotKey { epoch: announced.epoch, public_key: announced.public_key };
        let known = &mut held.slots[slot.index()];
        if let Some(known) = known {
            let same = known.public_key == now.public_key;
            if (same && known.epoch <= now.epoch) || (!same && known.epoch >= now.epoch) {
                return false;
            }
        }
        *known = Some(now);
        true
    }
}

#[cfg(test)]
mod tests;
