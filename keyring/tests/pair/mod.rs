//! Two nodes, their disks, their devices and the network between their agents, around the machine that the agent runs.
//! The cryptography is a toy: keys are numbers, and whoever has not got one cannot make its proofs.
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keyring::psk::{
    Carry, Conditions, Context, Effect, Effective, End, Exchange, Input, Message, Mode, NodeId, Proof, PskId,
    Record, Round, Standing, Suite, SuiteError, Tag, may_exchange, sending_slot, verdict,
};
use mesh_core::announcement::Epoch;
use mesh_core::key::PublicKey;
use mesh_core::slot::Slot;

/// The slot that both announcements name.
pub(crate) const PREFERRED: Slot = Slot::Zero;
/// Turns of calm: an exchange takes five, a pair has two and may have to undo one of each before.
const CALM: usize = 40;
/// What a wrong ciphertext decapsulates to.
const WRONG: u8 = 255;

pub(crate) type Key = u8;
pub(crate) type Ciphertext = (u8, u8);
pub(crate) type Machine = Exchange<Key, Ciphertext>;
pub(crate) type Told = Message<(), Ciphertext>;

/// Fresh numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Toy {
    pub(crate) rounds: u8,
    pub(crate) keys: u8,
}

impl Suite for Toy {
    type Key = ();
    type Ciphertext = Ciphertext;
    type Psk = Key;

    fn round(&mut self) -> Result<Round, SuiteError> {
        self.rounds += 1;
        let mut round = [0; 16];
        round[0] = self.rounds;
        Ok(Round(round))
    }

    fn key(&self) {}

    fn encapsulate(&mut self, _: &Context, round: Round, (): &()) -> Result<(Ciphertext, Key), SuiteError> {
        self.keys += 1;
        Ok(((round.0[0], self.keys), self.keys))
    }

    fn decapsulate(&self, _: &Context, round: Round, &(of, key): &Ciphertext) -> Key {
        if of == round.0[0] { key } else { WRONG }
    }

    fn id(&self, psk: &Key) -> PskId {
        let mut id = [0; 16];
        id[0] = *psk;
        PskId(id)
    }

    fn tag(&self, psk: &Key, context: &Context, proof: Proof) -> Tag {
        let mut tag = [0; 32];
        tag[0] = *psk;
        tag[1] = match proof {
            Proof::Answer => 1,
            Proof::Confirm => 2,
            Proof::Confirmed => 3,
        };
        tag[2] = u8::try_from(context.slot().index()).unwrap();
        for (byte, end) in tag[3..].iter_mut().zip(context.ends()) {
            *byte = u8::try_from(end.epoch.0).unwrap();
        }
        Tag(tag)
    }

    fn verify(&self, psk: &Key, context: &Context, proof: Proof, tag: &Tag) -> bool {
        *psk != WRONG && self.tag(psk, context, proof) == *tag
    }
}

/// What a device has for the peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum On {
    Bare,
    Placeholder,
    Key(PskId),
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Side {
    /// What the agent has in memory; it is made anew when the agent starts.
    pub(crate) machines: [Machine; 2],
    disk: [Option<Record<Key>>; 2],
    pub(crate) device: [On; 2],
    pub(crate) sending: Slot,
}

/// Where an agent dies while it carries out effects.
pub(crate) type Cut = Option<usize>;

/// The whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pair {
    pub(crate) sides: [Side; 2],
    /// The epoch of each slot's key, and what the peer knows of it, by side and slot.
    epochs: [[u8; 2]; 2],
    known: [[u8; 2]; 2],
    /// Everything that was ever said to each side: a network that loses, repeats and reorders.
    pub(crate) said: [BTreeSet<Said>; 2],
    pub(crate) toy: Toy,
    pub(crate) modes: [Mode; 2],
    /// A running agent changed the key of the slot on which it sends.
    touched: bool,
}

/// A message with an order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Said(pub(crate) Told);

impl Said {
    fn rank(&self) -> (usize, [u64; 2], u8, [u8; 32], [u8; 2], bool) {
        let context = self.0.context();
        let epochs = [0, 1].map(|i: usize| context.ends()[i].epoch.0);
        let (kind, tag, numbers, seen) = match &self.0 {
            Message::Ask { .. } => (0, [0; 32], [0; 2], false),
            Message::Offer { round, .. } => (1, [0; 32], [round.0[0], 0], false),
            Message::Answer { ciphertext, tag, .. } => (2, tag.0, [ciphertext.0, ciphertext.1], false),
            Message::Confirm { tag, seen, .. } => (3, tag.0, [0; 2], *seen),
            Message::Confirmed { tag, seen, .. } => (4, tag.0, [0; 2], *seen),
            Message::Unknown { tag, .. } => (5, tag.0, [0; 2], false),
            Message::Withdrawn { round, .. } => (7, [0; 32], [round.0[0], 0], false),
            Message::Refused { reason, .. } => (6, [0; 32], [*reason as u8, 0], false),
        };
        (context.slot().index(), epochs, kind, tag, numbers, seen)
    }
}

impl PartialOrd for Said {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Said {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

fn id(side: usize) -> NodeId {
    NodeId { node: ["n1", "n2"][side].parse().unwrap(), cluster: "east".parse().unwrap() }
}

fn end(side: usize, slot: Slot, epoch: u8) -> End {
    let mut key = [epoch; 32];
    key[1] = u8::try_from(side * 2 + slot.index()).unwrap();
    End { id: id(side), key: PublicKey::from_bytes(key), epoch: Epoch(u64::from(epoch)) }
}

impl Pair {
    /// Both nodes at their first boot.
    pub(crate) fn new(mode: Mode) -> Self {
        let start = |side| {
            let machines = Slot::ALL.map(|slot| {
                let context = Context::new(slot, end(0, slot, 1), end(1, slot, 1)).unwrap();
                let (mut machine, effects) =
                    Machine::start::<()>(Arc::new(context), &id(side), None, Duration::ZERO).unwrap();
                assert!(effects.is_empty());
                machine.hurry(Duration::ZERO);
                machine
            });
            Side { machines, disk: [None, None], device: [On::Bare, On::Bare], sending: PREFERRED }
        };
        Self {
            sides: [start(0), start(1)],
            epochs: [[1; 2]; 2],
            known: [[1; 2]; 2],
            said: [BTreeSet::new(), BTreeSet::new()],
            toy: Toy::default(),
            modes: [mode; 2],
            touched: false,
        }
    }

    fn context(&self, side: usize, slot: Slot) -> Arc<Context> {
        let (own, peer) = (self.epochs[side][slot.index()], self.known[1 - side][slot.index()]);
        Arc::new(Context::new(slot, end(side, slot, own), end(1 - side, slot, peer)).unwrap())
    }

    pub(crate) fn standings(&self, side: usize) -> [Standing; 2] {
        self.sides[side].machines.each_ref().map(Machine::standing)
    }

    fn carry(&self, side: usize) -> [Carry; 2] {
        let sending = self.sides[side].sending;
        Slot::ALL.map(|slot| {
            verdict(self.modes[side], self.modes[1 - side], slot, sending, self.standings(side)).carry
        })
    }

    fn conditions(&self, side: usize, slot: Slot) -> Conditions {
        let idle = may_exchange(slot, self.sides[side].sending, self.carry(side));
        let agree = Effective::of(self.modes[0], self.modes[1]).agrees();
        Conditions { now: Duration::ZERO, agree, idle }
    }

    /// Something happens to a machine; the agent carries out what it says, or dies after `cut` effects.
    pub(crate) fn input(&mut self, side: usize, slot: Slot, input: Input<(), Ciphertext>, cut: Cut) -> usize {
        let conditions = self.conditions(side, slot);
        let machine = &mut self.sides[side].machines[slot.index()];
        let effects = machine.handle(input, conditions, &mut self.toy);
        let total = effects.len();
        let sends = effects.iter().filter(|effect| matches!(effect, Effect::Send(_))).count();
        assert!(sends <= 1, "more than one answer to one request");
        let changes =
            |effect: &Effect<_, _, _>| matches!(effect, Effect::Install { .. } | Effect::Remove { .. });
        self.touched |= self.sides[side].sending == slot && effects.iter().any(changes);
        for effect in effects.into_iter().take(cut.unwrap_or(total)) {
            self.carry_out(side, slot, effect);
        }
        if cut.is_some() {
            self.restart(side);
        }
        self.settle(side);
        total
    }

    fn carry_out(&mut self, side: usize, slot: Slot, effect: Effect<Key, (), Ciphertext>) {
        let node = &mut self.sides[side];
        match effect {
            Effect::Persist(record) => node.disk[slot.index()] = Some(record),
            Effect::Install { slot: of, psk, .. } => {
                assert_eq!(of, slot);
                node.device[slot.index()] = On::Key(self.toy.id(&psk));
            }
            Effect::Remove { .. } => {
                node.disk[slot.index()] = None;
                node.device[slot.index()] = On::Bare;
            }
            // A refusal changes no more than what is reported; Ask can come at any time (see [`Pair::ask`]).
            Effect::Send(Message::Refused { .. } | Message::Ask { .. }) => {}
            // True for ever once said, and said again when asked again: so it comes at once, or is as good as lost.
            Effect::Send(Message::Withdrawn { context, round }) => {
                let message = Message::Withdrawn { context, round };
                self.input(1 - side, slot, Input::Message(message), None);
            }
            Effect::Send(message) => drop(self.said[1 - side].insert(Said(message))),
            Effect::Problem(_) => {}
        }
    }

    /// The agent reconciles placeholders, and time passes, so that machines speak when they are asked to.
    fn settle(&mut self, side: usize) {
        let standings = self.standings(side);
        let sending = self.sides[side].sending;
        for slot in Slot::ALL {
            let wanted =
                verdict(self.modes[side], self.modes[1 - side], slot, sending, standings).placeholder;
            let device = &mut self.sides[side].device[slot.index()];
            match (&device, wanted) {
                (On::Bare, true) => *device = On::Placeholder,
                (On::Placeholder, false) => *device = On::Bare,
                (On::Bare, false) | (On::Placeholder, true) | (On::Key(_), _) => {}
            }
            self.sides[side].machines[slot.index()].hurry(Duration::ZERO);
        }
    }

    fn restart(&mut self, side: usize) {
        for slot in Slot::ALL {
            let record = self.sides[side].disk[slot.index()].clone();
            let context = self.context(side, slot);
            let (machine, effects) = Machine::start(context, &id(side), record, Duration::ZERO).unwrap();
            self.sides[side].machines[slot.index()] = machine;
            for effect in effects {
                self.carry_out(side, slot, effect);
            }
        }
        self.settle(side);
    }

    /// The agent dies and comes back; devices and routes stay.
    pub(crate) fn crash(&mut self, side: usize) {
        self.restart(side);
    }

    /// The node dies and comes back: devices are new, and routes are where they are at first.
    pub(crate) fn reboot(&mut self, side: usize) {
        self.sides[side].device = [On::Bare, On::Bare];
        self.sides[side].sending = PREFERRED;
        self.restart(side);
    }

    /// Can a handshake succeed?
    pub(crate) fn works(&self, slot: Slot) -> bool {
        let [a, b] = [0, 1].map(|side: usize| &self.sides[side].device[slot.index()]);
        self.agrees_on_context(slot) && a == b && *a != On::Placeholder
    }

    /// Both sides know both keys.
    pub(crate) fn agrees_on_context(&self, slot: Slot) -> bool {
        let [a, b] = [0, 1].map(|side: usize| self.sides[side].machines[slot.index()].context());
        a == b
    }

    /// A handshake succeeds and this side's agent sees it.
    pub(crate) fn handshake(&mut self, side: usize, slot: Slot, cut: Cut) -> usize {
        let on = match &self.sides[side].device[slot.index()] {
            On::Key(id) => Some(*id),
            On::Bare | On::Placeholder => None,
        };
        self.input(side, slot, Input::Handshake { on }, cut)
    }

    pub(crate) fn tick(&mut self, side: usize, slot: Slot, cut: Cut) -> usize {
        self.input(side, slot, Input::Tick, cut)
    }

    pub(crate) fn deliver(&mut self, side: usize, said: &Said, cut: Cut) -> usize {
        self.input(side, said.0.context().slot(), Input::Message(said.0.clone()), cut)
    }

    /// The initiator is asked, now or by a message that was long under way.
    pub(crate) fn ask(&mut self, slot: Slot, round: Option<u8>, cut: Cut) -> usize {
        let round = round.map(|round| {
            let mut bytes = [0; 16];
            bytes[0] = round;
            Round(bytes)
        });
        let context = Arc::clone(self.sides[0].machines[slot.index()].context());
        self.input(0, slot, Input::Message(Message::Ask { context, round }), cut)
    }

    /// The round about which the responder asks.
    pub(crate) fn asks_about(&self, slot: Slot) -> Option<u8> {
        let mut machine = self.sides[1].machines[slot.index()].clone();
        let effects = machine.handle(Input::Tick, self.conditions(1, slot), &mut self.toy.clone());
        effects.into_iter().find_map(|effect| match effect {
            Effect::Send(Message::Ask { round, .. }) => Some(round?.0[0]),
            Effect::Send(_) | Effect::Persist(_) | Effect::Install { .. } | Effect::Remove { .. } => None,
            Effect::Problem(_) => None,
        })
    }

    /// The slot to which this side would move its route now.
    pub(crate) fn wanted(&self, side: usize) -> Slot {
        sending_slot(PREFERRED, self.sides[side].sending, self.carry(side))
    }

    pub(crate) fn move_route(&mut self, side: usize) {
        self.sides[side].sending = self.wanted(side);
        self.settle(side);
    }

    /// The node replaces a key, whoever talks on it.
    pub(crate) fn replace(&mut self, side: usize, slot: Slot) {
        self.epochs[side][slot.index()] += 1;
        self.renew(side, slot);
    }

    /// Has the peer not seen yet that a key of `side` was replaced?
    pub(crate) fn lags(&self, side: usize, slot: Slot) -> bool {
        self.known[side][slot.index()] != self.epochs[side][slot.index()]
    }

    /// The peer sees the new key of `side`.
    pub(crate) fn learn(&mut self, side: usize, slot: Slot) {
        self.known[side][slot.index()] = self.epochs[side][slot.index()];
        self.renew(1 - side, slot);
    }

    fn renew(&mut self, side: usize, slot: Slot) {
        let context = self.context(side, slot);
        let (fresh, _) = Machine::start::<()>(context, &id(side), None, Duration::ZERO).unwrap();
        let old = std::mem::replace(&mut self.sides[side].machines[slot.index()], fresh);
        for effect in old.retire() {
            self.carry_out(side, slot, effect);
        }
        self.sides[side].device[slot.index()] = On::Bare;
        // Messages about keys that neither side knows any more are refused by both.
        let contexts =
            [0, 1].map(|side: usize| Arc::clone(self.sides[side].machines[slot.index()].context()));
        for said in &mut self.said {
            said.retain(|said| said.0.context().slot() != slot || contexts.contains(said.0.context()));
        }
        self.settle(side);
    }

    /// The disk loses a record while the agent is down.
    pub(crate) fn lose(&mut self, side: usize, slot: Slot) {
        self.sides[side].disk[slot.index()] = None;
        self.sides[side].device[slot.index()] = On::Bare;
        self.restart(side);
    }

    /// From here on nothing more goes wrong, and every message arrives: what agents do until nothing changes any more.
    pub(crate) fn calm(&mut self) {
        for said in &mut self.said {
            said.clear();
        }
        for _ in 0..CALM {
            for side in 0..2 {
                for slot in Slot::ALL {
                    if self.lags(side, slot) {
                        self.learn(side, slot);
                    }
                    if self.works(slot) {
                        self.handshake(side, slot, None);
                    }
                    let conditions = self.conditions(side, slot);
                    if side == 1 {
                        let mut machine = self.sides[1].machines[slot.index()].clone();
                        for effect in machine.handle(Input::Tick, conditions, &mut self.toy) {
                            if let Effect::Send(Message::Ask { round, .. }) = effect {
                                self.ask(slot, round.map(|round| round.0[0]), None);
                            }
                        }
                    }
                    self.tick(side, slot, None);
                }
                self.leave_dead_slot(side);
                self.move_route(side);
            }
            while let Some((side, said)) =
                (0..2).find_map(|side: usize| self.said[side].pop_first().map(|said| (side, said)))
            {
                self.deliver(side, &said, None);
            }
        }
    }

    /// What the agent does when there is no handshake where it sends.
    fn leave_dead_slot(&mut self, side: usize) {
        let sending = self.sides[side].sending;
        if !self.works(sending) && self.works(sending.other()) {
            self.sides[side].sending = sending.other();
            self.settle(side);
        }
    }

    /// Does a side report that a key is missing?
    pub(crate) fn reports(&self) -> bool {
        (0..2).any(|side| {
            Slot::ALL.iter().any(|slot| {
                let machine = &self.sides[side].machines[slot.index()];
                machine.overdue(self.conditions(side, *slot), Duration::ZERO).is_some()
            })
        })
    }

    // ---- what must always hold ----

    /// A pair whose sides know each other's keys can talk.
    pub(crate) fn has_channel(&self) -> bool {
        let settled = Slot::ALL.iter().all(|slot| self.agrees_on_context(*slot));
        !settled || Slot::ALL.iter().any(|slot| self.works(*slot))
    }

    /// Two sides that both hold the peer's confirmation of a key for one context hold the same.
    pub(crate) fn agreed_is_equal(&self) -> bool {
        Slot::ALL.iter().all(|slot| {
            let confirmed = |side: usize| {
                self.sides[side].machines[slot.index()].record().filter(|record| record.confirmed)
            };
            match (confirmed(0), confirmed(1)) {
                (Some(a), Some(b)) if a.context == b.context => a.id == b.id && a.psk == b.psk,
                (Some(_) | None, _) => true,
            }
        })
    }

    /// What a side takes for proved works, unless a key was replaced meanwhile.
    pub(crate) fn proved_works(&self) -> bool {
        (0..2).all(|side| {
            Slot::ALL.iter().all(|slot| {
                let proved = self.standings(side)[slot.index()].carry() == Carry::Psk;
                !proved || !self.agrees_on_context(*slot) || self.works(*slot)
            })
        })
    }

    /// What a running agent holds is on its disk and on its device.
    pub(crate) fn device_is_record(&self) -> bool {
        self.sides.iter().all(|side| {
            Slot::ALL.iter().all(|slot| {
                let record = side.machines[slot.index()].record();
                let key = match &side.device[slot.index()] {
                    On::Key(id) => Some(*id),
                    On::Bare | On::Placeholder => None,
                };
                record == side.disk[slot.index()].as_ref() && record.map(|record| record.id) == key
            })
        })
    }

    /// No running agent ever changed the key of the slot on which it sends.
    pub(crate) fn active_is_untouched(&self) -> bool {
        !self.touched
    }

    /// Both sides have opened both slots.
    pub(crate) fn done(&self) -> bool {
        (0..2).all(|side| self.standings(side) == [Standing::Open; 2])
    }
}
