//! Keys that peers have replaced, so that nobody leads this node back to one of them.
//!
//! The API says which keys a node has. A restored backup of etcd, or somebody who can write there past the admission policy
//! (D11), could announce a key of long ago, whose private half was destroyed, or stolen.
//!
//! Numbers prove nothing: a false announcement may bear any epoch, and taking the greatest one for the truth would lock out
//! the true one for ever. A handshake proves little more: whoever made a false key can make one with it. What cannot be had is
//! the word of a node's present key for the next one. A pair agrees on the pre-shared key of one slot over the *other* slot.
//! So two keys are of one hand once both were seen at work with pre-shared keys that were agreed since they are announced side
//! by side; and when one of two such keys is replaced, and its successor is seen at work with what was agreed since, then the
//! holder of both has replaced it: it is retired. Two keys that change at once have nobody's word. They are taken, as those of
//! a node that has lost its disk must be, and retire nothing.
//!
//! Whoever has stolen a private key can give its word until the peers have seen its successor at work: they could have the key
//! of the other slot retired there, until the node's next rotation.
//!
//! A retired key is refused for as long as its Node object lives; the key that was taken last stays in its place. Without
//! post-quantum pre-shared keys nothing is ever retired; a number that does not grow is reported, whoever wrote it.

use std::collections::{BTreeMap, VecDeque};

use crate::announcement::{Announcement, Epoch};
use crate::key::PublicKey;
use crate::name::NodeName;
use crate::problem::Problem;
use crate::psk::PskId;
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
    /// The keys of its slots that are of one hand; one of them at least is taken.
    known: Option<[PublicKey; 2]>,
    /// The pre-shared keys that there were when what is taken for each slot was new: they say nothing of it.
    before: [Option<PskId>; 2],
    /// Without known keys: which of those that are taken were seen at work.
    seen: [bool; 2],
    /// Oldest first.
    retired: VecDeque<PublicKey>,
    /// Numbers of the keys before those that are taken, where they were not smaller.
    #[serde(default, skip_serializing_if = "nothing_fell")]
    fell: [Option<Epoch>; 2],
}

/// So that an older agent reads what it knows.
fn nothing_fell(fell: &[Option<Epoch>; 2]) -> bool {
    *fell == [None, None]
}

/// A key and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SlotKey {
    epoch: Epoch,
    public_key: PublicKey,
}

impl Held {
    /// Puts what was taken last in the place of each retired key. True: something is to be kept.
    fn review(
        &mut self,
        node: &NodeName,
        announcement: &mut Announcement,
        agreed: [Option<PskId>; 2],
        problems: &mut Vec<Problem>,
    ) -> bool {
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
        let taken = Slot::ALL.map(|slot| {
            let announced = announcement.slot(slot);
            SlotKey { epoch: announced.epoch, public_key: announced.public_key }
        });
        let now = taken.map(|taken| taken.public_key);
        let had = self.taken.replace(taken);
        for slot in Slot::ALL {
            let (at, taken) = (slot.index(), taken[slot.index()]);
            if let Some(had) = had.map(|had| had[at]).filter(|had| had.public_key != taken.public_key) {
                self.fell[at] = (taken.epoch <= had.epoch).then_some(had.epoch);
            }
            problems.extend(self.fell[at].map(|before| Problem::EpochFell {
                node: node.clone(),
                slot,
                epoch: taken.epoch,
                key: taken.public_key,
                before,
            }));
        }
        let had = had.map(|taken| taken.map(|taken| taken.public_key));
        if had == Some(now) {
            return false;
        }
        let of_one_hand = |known: &[PublicKey; 2]| known[0] == now[0] || known[1] == now[1];
        if self.known.is_some_and(|known| !of_one_hand(&known)) {
            self.known = None;
        }
        for slot in Slot::ALL.map(Slot::index) {
            if self.known.is_none() || had.is_none_or(|had| had[slot] != now[slot]) {
                self.before[slot] = agreed[slot];
            }
        }
        self.seen = [false, false];
        true
    }

    /// True: something is to be kept.
    fn at_work(&mut self, slot: Slot, key: PublicKey, psk: PskId) -> bool {
        let Some(taken) = self.taken.map(|taken| taken.map(|taken| taken.public_key)) else { return false };
        let at = slot.index();
        if taken[at] != key || self.before[at] == Some(psk) {
            return false;
        }
        let Some(known) = &mut self.known else {
            let news = !self.seen[at];
            self.seen[at] = true;
            if self.seen == [true, true] {
                self.known = Some(taken);
            }
            return news;
        };
        if known[at] == key {
            return false;
        }
        // The other one is known and there: else none were.
        self.retired.push_back(known[at]);
        if self.retired.len() > KEPT {
            self.retired.pop_front();
        }
        known[at] = key;
        true
    }
}

impl Retired {
    /// Takes what other nodes announce, but for retired keys: there what was taken last is put in their place, and said
    /// which. With a `complete` list of nodes, what is known of others is forgotten. `agreed` says which pre-shared key there
    /// is with a node for a slot, whichever WireGuard key it belongs to. The second value: something is to be kept.
    pub fn review(
        &mut self,
        local: &NodeName,
        nodes: &mut BTreeMap<NodeName, NodeFacts>,
        agreed: impl Fn(&NodeName, Slot) -> Option<PskId>,
        complete: bool,
    ) -> (Vec<Problem>, bool) {
        let before = self.0.len();
        if complete {
            self.0.retain(|name, _| nodes.contains_key(name));
        }
        let (mut problems, mut news) = (Vec::new(), self.0.len() != before);
        for (name, node) in nodes.iter_mut().filter(|(name, _)| *name != local) {
            let AnnouncementFact::Valid(announcement) = &mut node.announcement else { continue };
            let held = self.0.entry(name.clone()).or_default();
            if held.created != node.created {
                *held = Held { created: node.created, ..Held::default() };
            }
            let agreed = Slot::ALL.map(|slot| agreed(name, slot));
            news |= held.review(name, announcement, agreed, &mut problems);
        }
        (problems, news)
    }

    /// The key of that slot is at work with this pre-shared key, on which both sides agreed over the other slot. True:
    /// something is to be kept.
    pub fn at_work(&mut self, node: &NodeName, slot: Slot, key: PublicKey, psk: PskId) -> bool {
        self.0.get_mut(node).is_some_and(|held| held.at_work(slot, key, psk))
    }
}

#[cfg(test)]
mod tests;
