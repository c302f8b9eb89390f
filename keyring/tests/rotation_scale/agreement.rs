//! Pre-shared keys of all pairs beside their rotation: `psk::Pact` as the agent runs it, with toy cryptography. A letter comes in
//! the next second, over the slots by which both send; one in a hundred is lost, and so is what an inbox has no room for.

use std::time::Duration;

use keyring::psk::{
    Context, Effect, End, Input, Message, Mode, NodeId, Pact, Proof, PskId, Record, Round, Sight, Standing,
    Suite, SuiteError, Tag,
};
use mesh_core::announcement::Epoch;
use mesh_core::pair::Link;
use mesh_core::slot::Slot;
use mesh_core::view::PairFacts;

use super::{Cluster, key};

/// As the agent's.
const INBOX: usize = 1024;
/// Seconds that a worn ML-KEM key waits for answers to it, as the agent's.
const WORN: u64 = 60;
/// What a wrong ciphertext decapsulates to.
const WRONG: u64 = 0;

/// Round, ML-KEM key, pre-shared key.
type Ciphertext = (u128, u64, u64);
type Told = Message<u64, Ciphertext>;

/// Numbers instead of keys.
struct Toy<'a> {
    own: u64,
    announced: u64,
    last: &'a mut u64,
}

impl Toy<'_> {
    fn fresh(&mut self) -> u64 {
        *self.last += 1;
        *self.last
    }
}

impl Suite for Toy<'_> {
    type Key = u64;
    type Ciphertext = Ciphertext;
    type Psk = u64;

    fn round(&mut self) -> Result<Round, SuiteError> {
        Ok(Round(u128::from(self.fresh()).to_le_bytes()))
    }

    fn key(&self) -> u64 {
        self.own
    }

    fn encapsulate(&mut self, _: &Context, round: Round, key: &u64) -> Result<(Ciphertext, u64), SuiteError> {
        if *key != self.announced {
            return Err(SuiteError::NotAnnounced);
        }
        let psk = self.fresh();
        Ok(((u128::from_le_bytes(round.0), *key, psk), psk))
    }

    fn decapsulate(&self, _: &Context, round: Round, &(of, kem, psk): &Ciphertext) -> u64 {
        if of == u128::from_le_bytes(round.0) && kem == self.own { psk } else { WRONG }
    }

    fn id(&self, psk: &u64) -> PskId {
        PskId(u128::from(*psk).to_le_bytes())
    }

    fn tag(&self, psk: &u64, context: &Context, proof: Proof) -> Tag {
        let mut tag = [0; 32];
        tag[..8].copy_from_slice(&psk.to_le_bytes());
        tag[8] = match proof {
            Proof::Answer => 1,
            Proof::Confirm => 2,
            Proof::Confirmed => 3,
        };
        tag[9] = u8::from(context.slot() == Slot::One);
        for (bytes, end) in tag[16..].chunks_mut(8).zip(context.ends()) {
            bytes.copy_from_slice(&end.epoch.0.to_le_bytes());
        }
        Tag(tag)
    }

    fn verify(&self, psk: &u64, context: &Context, proof: Proof, tag: &Tag) -> bool {
        *psk != WRONG && self.tag(psk, context, proof) == *tag
    }
}

/// A node's side of the agreement with one peer.
pub(super) struct Agreement {
    pact: Pact<u64, Ciphertext>,
    /// Epochs of both keys of each slot.
    met: [Option<(u64, u64)>; 2],
    disk: [Option<Record<u64>>; 2],
    /// On the devices' entries.
    pub(super) on: [Option<PskId>; 2],
    pub(super) proves: [bool; 2],
}

/// What one node says to another, about a slot.
pub(super) struct Letter {
    from: usize,
    to: usize,
    slot: Slot,
    told: Told,
}

/// A node's ML-KEM key, and since when it is worn.
#[derive(Clone, Copy)]
pub(super) struct Kem {
    pub(super) number: u64,
    pub(super) worn: Option<u64>,
}

fn nobodys(node: usize) -> PskId {
    PskId((u128::MAX - u128::try_from(node).unwrap()).to_le_bytes())
}

impl Agreement {
    pub(super) fn is_open(&self) -> bool {
        let open = |slot: Slot| self.pact.machine(slot).is_some_and(|m| m.standing() == Standing::Open);
        Slot::ALL.into_iter().all(open)
    }
}

impl Cluster {
    fn id(&self, node: usize) -> NodeId {
        NodeId { node: self.names[node].clone(), cluster: "east".parse().unwrap() }
    }

    /// All nodes take part from now on.
    pub(super) fn with_psks(&mut self) {
        self.psks = true;
        for me in 0..self.names.len() {
            for other in (0..self.names.len()).filter(|other| *other != me) {
                let mut pact = Pact::new(self.id(me), Mode::Prefer);
                pact.hear(Mode::Prefer);
                let agreement =
                    Agreement { pact, met: [None; 2], disk: [None, None], on: [None; 2], proves: [false; 2] };
                self.peers[me][other].agreement = Some(Box::new(agreement));
                self.peers[me][other].look = true;
            }
        }
    }

    /// Another ML-KEM key where the present one is worn and nobody is about to answer to it. True: there is one to announce.
    pub(super) fn renew(&mut self, me: usize) -> bool {
        let Some(since) = self.nodes[me].kem.worn else { return false };
        let offers = |agreement: &Agreement| agreement.pact.machines().any(|(_, machine)| machine.offers());
        let awaited = self.peers[me].iter().any(|peer| peer.agreement.as_deref().is_some_and(offers));
        if awaited && self.now - since < WORN {
            return false;
        }
        self.last += 1;
        self.nodes[me].kem = Kem { number: self.last, worn: None };
        true
    }

    fn sight(&self, (me, other): (usize, usize), announced: Slot, links: [Link; 2]) -> Sight {
        let peer = &self.peers[me][other];
        let on = peer.agreement.as_ref().map_or([None; 2], |agreement| agreement.on);
        Sight {
            mode: Mode::Prefer,
            announced,
            drained: [self.nodes[me].machine.draining(), self.nodes[other].history[peer.version].0.drained],
            current: Some(peer.route),
            links,
            entries: on.map(Some),
        }
    }

    fn give(
        &mut self,
        (me, other): (usize, usize),
        (slot, input): (Slot, Input<u64, Ciphertext>),
        sight: &Sight,
    ) {
        let announced = self.nodes[other].history[self.peers[me][other].version].0.kem;
        let mut suite = Toy { own: self.nodes[me].kem.number, announced, last: &mut self.last };
        let Some(agreement) = &mut self.peers[me][other].agreement else { return };
        for effect in agreement.pact.handle(slot, input, sight, Duration::from_secs(self.now), &mut suite) {
            match effect {
                Effect::Persist(record) => agreement.disk[slot.index()] = Some(record),
                Effect::Remove { .. } => agreement.disk[slot.index()] = None,
                Effect::Send(told) => {
                    self.costs.letters += 1;
                    if self.dice.below(100) > 0 {
                        self.post.push(Letter { from: me, to: other, slot, told });
                    }
                }
                // The plan installs; what is reported is repeated.
                Effect::Install { .. } | Effect::Problem(_) => {}
            }
        }
    }

    /// A turn's part for one peer: handshakes, the clock, what the plan is to know, and devices.
    pub(super) fn agree(
        &mut self,
        (me, other): (usize, usize),
        announced: Slot,
        links: [Link; 2],
    ) -> PairFacts {
        let (now, pair) = (Duration::from_secs(self.now), (me, other));
        self.meet(pair);
        let sight = self.sight(pair, announced, links);
        for slot in Slot::ALL {
            let handshake = self.peers[me][other].agreement.as_ref().unwrap().pact.handshake(&sight, slot);
            if let Some(handshake) = handshake {
                self.give(pair, (slot, handshake), &sight);
            }
        }
        for slot in Slot::ALL {
            self.give(pair, (slot, Input::Tick), &sight);
        }
        let peer = &mut self.peers[me][other];
        let agreement = peer.agreement.as_mut().unwrap();
        let due = Slot::ALL.into_iter().filter_map(|slot| agreement.pact.due(&sight, slot, now)).min();
        peer.due = due.map_or(u64::MAX, |due| due.as_secs().max(self.now + 1));
        let wants = agreement.pact.wants(&sight, nobodys(me));
        let mut facts = PairFacts { current: sight.current, links: sight.links, ..PairFacts::default() };
        wants.complete(&mut facts);
        for slot in Slot::ALL {
            let s = slot.index();
            if agreement.on[s] != wants.psk[s].id {
                // Removed, and made anew with another key.
                agreement.on[s] = wants.psk[s].id;
                peer.stamp[s] = None;
                peer.look = true;
            }
            agreement.proves[s] = wants.psk[s].prove;
        }
        facts
    }

    fn meet(&mut self, (me, other): (usize, usize)) {
        for slot in Slot::ALL {
            let s = slot.index();
            let theirs = self.nodes[other].history[self.peers[me][other].version].0.epochs[s];
            let epochs = (self.nodes[me].keys[s], theirs);
            if self.peers[me][other].agreement.as_ref().unwrap().met[s] == Some(epochs) {
                continue;
            }
            let end = |node: usize, epoch: u64| End {
                id: self.id(node),
                key: key(node, slot, epoch),
                epoch: Epoch(epoch),
            };
            let context = Context::new(slot, end(me, epochs.0), end(other, epochs.1)).unwrap();
            let agreement = self.peers[me][other].agreement.as_mut().unwrap();
            agreement.met[s] = Some(epochs);
            let kept = agreement.disk[s].clone();
            let effects = agreement.pact.meet::<u64>(context, kept, Duration::from_secs(self.now)).unwrap();
            if effects.into_iter().flatten().any(|effect| matches!(effect, Effect::Remove { .. })) {
                agreement.disk[s] = None;
            }
        }
    }

    /// Letters of the last second come.
    pub(super) fn deliver(&mut self) {
        let mut inbox = vec![0_usize; self.names.len()];
        for Letter { from, to, slot, told } in std::mem::take(&mut self.post) {
            let (there, back) = (self.peers[from][to].route, self.peers[to][from].route);
            inbox[to] += 1;
            if inbox[to] > INBOX || !self.fits(from, to, there) || !self.fits(to, from, back) {
                continue;
            }
            let (announced, links) = self.links((to, from));
            let sight = self.sight((to, from), announced, links);
            self.give((to, from), (slot, Input::Message(told)), &sight);
            self.peers[to][from].look = true;
        }
    }
}
