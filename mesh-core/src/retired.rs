//! Keys that peers have replaced, so that nobody leads this node back to one of them.
//!
//! The API says which keys a node has. A restored backup of etcd, or somebody who can write there past the admission policy
//! (D11), could announce a key of long ago, whose private half was destroyed, or stolen.
//!
//! Numbers prove nothing: a false announcement may bear any epoch, and taking the greatest one for the truth would lock out
//! the true one for ever. A handshake proves little more: whoever made a false key can make one with it. What cannot be had is
//! the word of a node's present key for the next one. A pair agrees on the pre-shared key of one slot over the *other* slot,
//! so a key that was seen at work with such a pre-shared key, beside a key that was known from before, is what the holder
//! of the one before made of it: then the one that it replaced is retired. Two keys that both change at once have
//! nobody's word. They are taken, as those of a node that has lost its disk must be, and retire nothing.
//!
//! Whoever has stolen a private key can give its word until the peers have seen its successor at work: they could have the key
//! of the other slot retired there, until the node's next rotation.
//!
//! A retired key is refused for as long as its Node object lives; the key that was taken last stays in its place. Without
//! post-quantum pre-shared keys nothing is ever retired.

use std::collections::{BTreeMap, VecDeque};

use crate::announcement::{Announcement, Epoch};
use crate::key::PublicKey;
use crate::name::NodeName;
use crate::problem::Problem;
use crate::slot::Slot;
use crate::view::{AnnouncementFact, NodeFacts};

/// Retired keys that are kept of a node, the newest: five years of weekly rotations of both slots.
const KEPT: usize = 512;

/// What is known of each other node's keys. It is plain data, so that it can outlive the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Retired(BTreeMap<NodeName, Held>);

/// Of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Held {
    /// The Node of which this is true: one that was deleted and made anew begins anew.
    created: i64,
    /// What is taken for the keys of its slots, in order.
    taken: Option<[SlotKey; 2]>,
    /// The keys of its slots that were seen at work with a pre-shared key, as long as at least one of them is announced.
    at_work: [Option<PublicKey>; 2],
    /// Oldest first.
    retired: VecDeque<PublicKey>,
}

/// A key and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SlotKey {
    epoch: Epoch,
    public_key: PublicKey,
}

impl Held {
    /// Puts what was taken last in the place of each retired key.
    fn review(&mut self, node: &NodeName, announcement: &mut Announcement) -> Vec<Problem> {
        let mut problems = Vec::new();
        for slot in Slot::ALL {
            let announced = &mut announcement.slots[slot.index()];
            let Some(taken) = self.taken.map(|taken| taken[slot.index()]) else { continue };
            if self.retired.contains(&announced.public_key) {
                problems.push(Problem::EpochWentBack {
                    node: node.clone(),
                    slot,
                    epoch: announced.epoch,
                    key: announced.public_key,
                    taken: taken.epoch,
                });
                (announced.epoch, announced.public_key) = (taken.epoch, taken.public_key);
            }
        }
        let now = |slot: Slot| {
            let announced = announcement.slot(slot);
            SlotKey { epoch: announced.epoch, public_key: announced.public_key }
        };
        let taken = Slot::ALL.map(now);
        if Slot::ALL.iter().all(|slot| self.at_work[slot.index()] != Some(taken[slot.index()].public_key)) {
            self.at_work = [None, None];
        }
        self.taken = Some(taken);
        problems
    }

    fn at_work(&mut self, slot: Slot, key: PublicKey) -> bool {
        let Some(taken) = self.taken.map(|taken| taken.map(|taken| taken.public_key)) else { return false };
        let before = self.at_work[slot.index()];
        if taken[slot.index()] != key || before == Some(key) {
            return false;
        }
        let other = slot.other().index();
        // Who replaced it has the key beside it, which was there before and is there still.
        let vouched = self.at_work[other] == Some(taken[other]);
        if let Some(before) = before.filter(|_| vouched) {
            self.retired.push_back(before);
            if self.retired.len() > KEPT {
                self.retired.pop_front();
            }
        }
        // It may have been retired as that of the other slot, or come back after it was forgotten.
        self.at_work[slot.index()] = Some(key);
        true
    }
}

impl Retired {
    /// Takes what other nodes announce, but for retired keys: there what was taken last is put in their place, and said
    /// which. With a `complete` list of nodes, what is known of others is forgotten.
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
            let AnnouncementFact::Valid(announcement) = &mut node.announcement else { continue };
            let held = self.0.entry(name.clone()).or_default();
            if held.created != node.created {
                *held = Held { created: node.created, ..Held::default() };
            }
            problems.extend(held.review(name, announcement));
        }
        problems
    }

    /// The key of that slot is at work with a pre-shared key that both sides agreed on over the other slot. True: that is
    /// news, to be kept.
    pub fn at_work(&mut self, node: &NodeName, slot: Slot, key: PublicKey) -> bool {
        self.0.get_mut(node).is_some_and(|held| held.at_work(slot, key))
    }
}

#[cfg(test)]
mod tests;
