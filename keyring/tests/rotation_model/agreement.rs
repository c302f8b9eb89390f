//! The agreement on pre-shared keys beside rotation: `psk::Pact` in an agent's turn, as the agent runs it, with the toy
//! cryptography of `pair`. Of the letters under way to a node the newest of each slot is kept, and comes at any time; lost ones,
//! repeated ones and those in another order are the matter of `psk_model`.

use std::time::Duration;

use keyring::psk::{Context, Effect, End, Input, NodeId, Pact, PskId, Record, Sight, Standing, Wants};
use mesh_core::announcement::Epoch;
use mesh_core::pair::{Choice, choose, target};
use mesh_core::psk::Mode;
use mesh_core::slot::Slot;
use mesh_core::view::PairFacts;

use super::pair::{Ciphertext, Key, Told};
use super::world::{Rules, World, announcement, burnt, key};

/// What one node says to another, about a slot.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    from: usize,
    to: usize,
    slot: Slot,
    told: Told,
}

/// A node's side of the agreement with one peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Agreement {
    pact: Pact<Key, Ciphertext>,
    disk: [Option<Record<Key>>; 2],
    /// On the devices' entries.
    pub(crate) on: [Option<PskId>; 2],
    /// Agents alone are accepted there; they alone are routed there.
    pub(crate) confined: [bool; 2],
    pub(crate) withheld: [bool; 2],
    /// Pods' packets were routed to the peer once.
    pub(crate) reached: bool,
    /// Handshakes are wanted there.
    pub(crate) proves: [bool; 2],
    /// Under way to this node.
    letters: [Option<Told>; 2],
    /// They were written before the drain of their slot began.
    old: [bool; 2],
}

fn id(rules: &Rules, node: usize) -> NodeId {
    NodeId { node: rules.names[node].clone(), cluster: "east".parse().unwrap() }
}

/// A key that nobody else has.
fn nobodys(node: usize) -> PskId {
    let mut id = [255; 16];
    id[1] = u8::try_from(node).unwrap();
    PskId(id)
}

impl Agreement {
    pub(crate) fn new(rules: &Rules, me: usize, mode: Mode) -> Self {
        Self {
            pact: Pact::new(id(rules, me), mode),
            disk: [None, None],
            on: [None, None],
            confined: [false; 2],
            withheld: [false; 2],
            reached: false,
            proves: [false; 2],
            letters: [None, None],
            old: [false; 2],
        }
    }

    /// The agent is gone.
    pub(crate) fn forget(&mut self) {
        self.pact.part();
        self.proves = [false; 2];
        (self.letters, self.old) = ([None, None], [false; 2]);
    }

    /// The pair is cut off from each other; `off`: what the kernel had on this side is gone.
    pub(crate) fn parted(&mut self, off: bool) {
        self.reached = false;
        (self.letters, self.old) = ([None, None], [false; 2]);
        if off {
            (self.on, self.confined, self.withheld) = ([None, None], [false; 2], [false; 2]);
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        Slot::ALL
            .into_iter()
            .all(|slot| self.pact.machine(slot).is_some_and(|machine| machine.standing() == Standing::Open))
    }

    pub(crate) fn standings(&self) -> [Option<Standing>; 2] {
        Slot::ALL.map(|slot| Some(self.pact.machine(slot)?.standing()))
    }

    /// Is there a key that two nodes agreed on?
    pub(crate) fn keyed(&self, slot: Slot) -> bool {
        self.on[slot.index()].is_some_and(|on| on.0[0] != nobodys(0).0[0])
    }
}

impl World {
    /// Contexts of the keys that a node knows.
    pub(crate) fn meet_all(&mut self, rules: &Rules, me: usize) {
        for other in (0..rules.names.len()).filter(|other| *other != me) {
            self.meet_one(rules, me, other);
        }
    }

    fn meet_one(&mut self, rules: &Rules, me: usize, other: usize) {
        let node = &mut self.nodes[me];
        let keys = node.keys;
        let peer = &mut node.peers[other];
        let (Some(agreement), Some(view)) = (&mut peer.agreement, peer.view) else { return };
        let end = |node: usize, slot: Slot, epoch: u8| End {
            id: id(rules, node),
            key: key(node, slot, epoch),
            epoch: Epoch(epoch.into()),
        };
        for slot in Slot::ALL {
            let s = slot.index();
            let context =
                Context::new(slot, end(me, slot, keys[s]), end(other, slot, view.epochs[s])).unwrap();
            let kept = agreement.disk[s].clone();
            let effects = agreement.pact.meet::<()>(context, kept, Duration::ZERO).unwrap();
            if effects.into_iter().flatten().any(|effect| matches!(effect, Effect::Remove { .. })) {
                agreement.disk[s] = None;
            }
            agreement.pact.hurry(slot, Duration::ZERO);
        }
    }

    fn sight(&self, rules: &Rules, (me, other): (usize, usize)) -> Option<Sight> {
        let peer = &self.nodes[me].peers[other];
        let (agreement, view) = (peer.agreement.as_ref()?, peer.view?);
        let theirs = announcement(rules, other, view);
        let there = (&rules.names[other], &theirs);
        let listed = |slot: Slot| (peer.listed[slot.index()] == view.epochs[slot.index()]).then_some(());
        Some(Sight {
            mode: rules.psk?,
            announced: target((&rules.names[me], self.drained_by(me)), there, peer.route),
            drained: [self.nodes[me].machine.draining(), view.drained],
            current: peer.route,
            links: self.links(me, other),
            entries: Slot::ALL.map(|slot| listed(slot).map(|()| agreement.on[slot.index()])),
        })
    }

    fn give(
        &mut self,
        rules: &Rules,
        (me, other): (usize, usize),
        (slot, input): (Slot, Input<(), Ciphertext>),
        fuel: &mut Option<usize>,
        said: &mut Vec<Letter>,
    ) -> Option<()> {
        let sight = self.sight(rules, (me, other))?;
        let agreement = self.nodes[me].peers[other].agreement.as_mut()?;
        let effects = agreement.pact.handle(slot, input, &sight, Duration::ZERO, &mut self.toy);
        for effect in effects {
            match effect {
                Effect::Persist(record) => {
                    if burnt(fuel) {
                        return None;
                    }
                    agreement.disk[slot.index()] = Some(record);
                }
                Effect::Remove { .. } => {
                    if burnt(fuel) {
                        return None;
                    }
                    agreement.disk[slot.index()] = None;
                }
                Effect::Send(told) => said.push(Letter { from: me, to: other, slot, told }),
                // The plan installs; a report changes nothing.
                Effect::Install { .. } | Effect::Problem(_) => {}
            }
        }
        Some(())
    }

    /// A turn's part for one peer: handshakes, the clock, the plan, devices and routes. None: it died.
    pub(crate) fn agree(
        &mut self,
        rules: &Rules,
        (me, other): (usize, usize),
        fuel: &mut Option<usize>,
        said: &mut Vec<Letter>,
    ) -> Option<()> {
        let pair = (me, other);
        self.meet_one(rules, me, other);
        for slot in Slot::ALL {
            let sight = self.sight(rules, pair)?;
            let handshake = self.nodes[me].peers[other].agreement.as_ref()?.pact.handshake(&sight, slot);
            if let Some(handshake) = handshake {
                self.give(rules, pair, (slot, handshake), fuel, said)?;
            }
        }
        for slot in Slot::ALL {
            // Delays are abstract: what is unanswered is said again when nothing of it is under way any more.
            let letter = |to: usize, from: usize| {
                let agreement = self.nodes[to].peers[from].agreement.as_ref();
                agreement.is_some_and(|agreement| agreement.letters[slot.index()].is_some())
            };
            let told = said.iter().any(|letter| letter.to == other && letter.slot == slot);
            let due = !told && !letter(me, other) && !letter(other, me);
            let at = if due { Duration::ZERO } else { Duration::MAX };
            self.nodes[me].peers[other].agreement.as_mut()?.pact.hurry(slot, at);
            self.give(rules, pair, (slot, Input::Tick), fuel, said)?;
            self.nodes[me].peers[other].agreement.as_mut()?.pact.hurry(slot, Duration::ZERO);
        }
        let sight = self.sight(rules, pair)?;
        let peer = &mut self.nodes[me].peers[other];
        let (agreement, view) = (peer.agreement.as_mut()?, peer.view?);
        let wants: Wants = agreement.pact.wants(&sight, nobodys(me));
        let mut facts = PairFacts { current: sight.current, links: sight.links, ..PairFacts::default() };
        wants.complete(&mut facts);
        let Choice { send, provoke } =
            choose(facts.current, facts.instead.unwrap_or(sight.announced), &facts.links);
        for slot in Slot::ALL {
            let (s, wanted) = (slot.index(), wants.psk[slot.index()]);
            if peer.listed[s] != view.epochs[s] || agreement.on[s] != wanted.id {
                if burnt(fuel) {
                    return None;
                }
                // Removed, and made anew with both keys.
                peer.stamp[s] = None;
                peer.listed[s] = view.epochs[s];
                agreement.on[s] = wanted.id;
            }
            agreement.confined[s] = wanted.confined;
            agreement.withheld[s] = wanted.withheld;
            agreement.proves[s] = wanted.prove;
        }
        peer.call = provoke;
        if peer.route != Some(send) {
            if burnt(fuel) {
                return None;
            }
            peer.route = Some(send);
        }
        agreement.reached |= !agreement.withheld[send.index()];
        Some(())
    }

    /// A letter is under way.
    pub(crate) fn post(&mut self, Letter { from, to, slot, told }: Letter) {
        let node = &mut self.nodes[to];
        if let Some(agreement) = node.peers[from].agreement.as_mut().filter(|_| node.up) {
            agreement.letters[slot.index()] = Some(told);
            agreement.old[slot.index()] = false;
        }
    }

    fn letters_about(&mut self, me: usize, slot: Slot, mut each: impl FnMut(&mut Option<Told>, &mut bool)) {
        for other in (0..self.nodes.len()).filter(|other| *other != me) {
            for (to, from) in [(me, other), (other, me)] {
                if let Some(agreement) = &mut self.nodes[to].peers[from].agreement {
                    each(&mut agreement.letters[slot.index()], &mut agreement.old[slot.index()]);
                }
            }
        }
    }

    /// A drain begins.
    pub(crate) fn age_letters(&mut self, me: usize, slot: Slot) {
        self.letters_about(me, slot, |letter, old| *old = letter.is_some());
    }

    /// The quiet time has passed, for longer than letters wait: those from before the drain have come, or never will.
    pub(crate) fn lose_old_letters(&mut self, me: usize, slot: Slot) {
        self.letters_about(me, slot, |letter, old| {
            if std::mem::take(old) {
                *letter = None;
            }
        });
    }

    /// Letters that can come: over the slots on which both send.
    pub(crate) fn can_read(&self, to: usize, from: usize, slot: Slot) -> bool {
        let letter = |agreement: &Agreement| agreement.letters[slot.index()].is_some();
        let there = self.nodes[to].up && self.nodes[to].peers[from].agreement.as_deref().is_some_and(letter);
        there && self.accepted(to, from) && self.accepted(from, to)
    }

    /// A letter comes, and the agent has a turn. It may crash as in [`World::turn`].
    pub(crate) fn read(
        &mut self,
        rules: &Rules,
        (to, from, slot): (usize, usize, Slot),
        mut fuel: Option<usize>,
    ) -> bool {
        let Some(agreement) = &mut self.nodes[to].peers[from].agreement else { return false };
        let Some(told) = agreement.letters[slot.index()].take() else { return false };
        agreement.old[slot.index()] = false;
        for (from, to) in [(from, to), (to, from)] {
            if let Some(way) = self.nodes[from].peers[to].route {
                self.stir(from, to, way);
            }
        }
        let mut said = Vec::new();
        if self.give(rules, (to, from), (slot, Input::Message(told)), &mut fuel, &mut said).is_none() {
            self.crash(to);
            return true;
        }
        self.turn_with(rules, to, false, fuel, said)
    }
}
