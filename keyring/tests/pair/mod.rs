//! Two nodes, their disks, their devices and the network between their agents, around what the agent runs: `psk::Pact`, and
//! `pair::choose`, by which its plan chooses a slot.
//! The cryptography is a toy: keys are numbers, and whoever has not got one cannot make its proofs.
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keyring::psk::{
    Carry, Context, Effect, Effective, End, Exchange, Input, Message, Mode, NodeId, Pact, Proof, PskId,
    Record, Round, Sight, Standing, Suite, SuiteError, Tag, Wants,
};
use mesh_core::announcement::Epoch;
use mesh_core::key::PublicKey;
use mesh_core::pair::{Choice, Link, PATIENCE, choose};
use mesh_core::slot::Slot;
use mesh_core::view::PairFacts;

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

/// What a device has for the peer, and what was routed there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) psk: Option<PskId>,
    /// A handshake was made with this entry, as its device shows.
    made: bool,
    /// Agents alone are accepted; agents alone are routed there.
    confined: bool,
    withheld: bool,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Side {
    /// What the agent has in memory; it is made anew when the agent starts.
    pact: Pact<Key, Ciphertext>,
    disk: [Option<Record<Key>>; 2],
    pub(crate) device: [Entry; 2],
    pub(crate) route: Option<Slot>,
}

/// Where an agent dies: after so many things done in its turn.
pub(crate) type Cut = Option<usize>;

/// What an agent can still do before it dies, and what it did.
struct Fuel {
    left: Cut,
    burnt: usize,
}

impl Fuel {
    const fn endless() -> Self {
        Self { left: None, burnt: 0 }
    }

    fn burn(&mut self) -> Option<()> {
        if self.left == Some(self.burnt) {
            return None;
        }
        self.burnt += 1;
        Some(())
    }
}

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

/// What comes to an agent in one turn.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mail {
    Nothing,
    Letter(Told),
    /// The delay of a slot's exchange is over.
    Due(Slot),
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

/// A key that nobody else has.
fn nobodys(side: usize) -> PskId {
    let mut id = [255; 16];
    id[1] = u8::try_from(side).unwrap();
    PskId(id)
}

impl Pair {
    /// Both nodes at their first boot.
    pub(crate) fn new(mode: Mode) -> Self {
        Self::of([mode; 2])
    }

    /// With a mode of each.
    pub(crate) fn of(modes: [Mode; 2]) -> Self {
        let start = |side| Side {
            pact: Pact::new(id(side), modes[side]),
            disk: [None, None],
            device: Default::default(),
            route: None,
        };
        let mut pair = Self {
            sides: [start(0), start(1)],
            epochs: [[1; 2]; 2],
            known: [[1; 2]; 2],
            said: [BTreeSet::new(), BTreeSet::new()],
            toy: Toy::default(),
            modes,
            touched: false,
        };
        for side in 0..2 {
            pair.restart(side);
        }
        pair
    }

    /// An administrator sets a mode, and the agent starts with it. Letters tell of it.
    pub(crate) fn set_mode(&mut self, side: usize, mode: Mode) {
        self.modes[side] = mode;
        self.restart(side);
    }

    fn context(&self, side: usize, slot: Slot) -> Context {
        let (own, peer) = (self.epochs[side][slot.index()], self.known[1 - side][slot.index()]);
        Context::new(slot, end(side, slot, own), end(1 - side, slot, peer)).unwrap()
    }

    pub(crate) fn machine(&self, side: usize, slot: Slot) -> &Machine {
        self.sides[side].pact.machine(slot).unwrap()
    }

    pub(crate) fn standings(&self, side: usize) -> [Standing; 2] {
        Slot::ALL.map(|slot| self.machine(side, slot).standing())
    }

    /// What the agent sees. Where it sends to a slot on which nothing gets through it has noticed.
    fn sight(&self, side: usize) -> Sight {
        let node = &self.sides[side];
        let link = |slot: Slot| {
            let deaf = node.route == Some(slot) && !self.works(slot);
            Link {
                keys_for: Some(Duration::MAX),
                handshake_age: node.device[slot.index()].made.then_some(Duration::ZERO),
                unanswered_for: deaf.then_some(PATIENCE),
                ready: true,
            }
        };
        Sight {
            mode: self.modes[1 - side],
            announced: PREFERRED,
            drained: [None, None],
            current: node.route,
            links: Slot::ALL.map(link),
            entries: Slot::ALL.map(|slot| Some(node.device[slot.index()].psk)),
        }
    }

    /// What its plan says: as the agent's does.
    fn plan(&self, side: usize) -> (Wants, Choice) {
        let sight = self.sight(side);
        let wants = self.sides[side].pact.wants(&sight, nobodys(side));
        let mut facts = PairFacts { current: sight.current, links: sight.links, ..PairFacts::default() };
        wants.complete(&mut facts);
        let target = facts.instead.unwrap_or(sight.announced);
        (wants, choose(facts.current, target, &facts.links))
    }

    /// Would anybody begin a handshake there?
    pub(crate) fn calls(&self, side: usize, slot: Slot) -> bool {
        let (wants, Choice { send, provoke }) = self.plan(side);
        send == slot || provoke == Some(slot) || wants.psk[slot.index()].prove
    }

    /// One turn of an agent: what came, handshakes, the clock, the plan, devices and routes, and what is to be said then. It dies
    /// after so many things done. How many there were.
    pub(crate) fn turn(&mut self, side: usize, mail: &Mail, cut: Cut) -> usize {
        let mut fuel = Fuel { left: cut, burnt: 0 };
        let alive = self.live(side, mail, &mut fuel);
        if alive.is_none() {
            self.restart(side);
        }
        fuel.burnt
    }

    fn live(&mut self, side: usize, mail: &Mail, fuel: &mut Fuel) -> Option<()> {
        let mut outbox = Vec::new();
        match mail {
            Mail::Letter(told) => {
                let slot = told.context().slot();
                self.input(side, slot, Input::Message(told.clone()), fuel, &mut outbox)?;
            }
            Mail::Due(_) | Mail::Nothing => {}
        }
        for slot in Slot::ALL {
            let sight = self.sight(side);
            if let Some(handshake) = self.sides[side].pact.handshake(&sight, slot) {
                self.input(side, slot, handshake, fuel, &mut outbox)?;
            }
        }
        for slot in Slot::ALL {
            let due = if *mail == Mail::Due(slot) { Duration::ZERO } else { Duration::MAX };
            self.sides[side].pact.hurry(slot, due);
            self.input(side, slot, Input::Tick, fuel, &mut outbox)?;
            // Delays are abstract.
            self.sides[side].pact.hurry(slot, Duration::MAX);
        }
        self.program(side, fuel)?;
        for (slot, message) in outbox {
            fuel.burn()?;
            self.say(side, slot, message);
        }
        Some(())
    }

    fn input(
        &mut self,
        side: usize,
        slot: Slot,
        input: Input<(), Ciphertext>,
        fuel: &mut Fuel,
        outbox: &mut Vec<(Slot, Told)>,
    ) -> Option<()> {
        let sight = self.sight(side);
        let effects = self.sides[side].pact.handle(slot, input, &sight, Duration::ZERO, &mut self.toy);
        let sends = effects.iter().filter(|effect| matches!(effect, Effect::Send(_))).count();
        assert!(sends <= 1, "more than one answer to one request");
        for effect in effects {
            match effect {
                Effect::Persist(record) => {
                    fuel.burn()?;
                    self.sides[side].disk[slot.index()] = Some(record);
                }
                Effect::Remove { .. } => {
                    fuel.burn()?;
                    self.sides[side].disk[slot.index()] = None;
                }
                Effect::Send(message) => outbox.push((slot, message)),
                // The plan installs; a report changes nothing.
                Effect::Install { .. } | Effect::Problem(_) => {}
            }
        }
        Some(())
    }

    /// Devices, and then routes.
    fn program(&mut self, side: usize, fuel: &mut Fuel) -> Option<()> {
        let (wants, choice) = self.plan(side);
        for slot in Slot::ALL {
            let (at, wanted) = (slot.index(), wants.psk[slot.index()]);
            let node = &mut self.sides[side];
            let entry = &mut node.device[at];
            if entry.psk != wanted.id {
                fuel.burn()?;
                self.touched |= node.route == Some(slot);
                *entry = Entry { psk: wanted.id, ..Entry::default() };
            }
            (entry.confined, entry.withheld) = (wanted.confined, wanted.withheld);
        }
        if self.sides[side].route != Some(choice.send) {
            fuel.burn()?;
            self.sides[side].route = Some(choice.send);
        }
        Some(())
    }

    fn say(&mut self, side: usize, slot: Slot, message: Told) {
        match message {
            // A refusal changes no more than what is reported; Ask can come at any time (see [`Pair::ask`]).
            Message::Refused { .. } | Message::Ask { .. } => {}
            // True for ever once said, and said again when asked again: so it comes at once, or is as good as lost.
            Message::Withdrawn { .. } => {
                let mut unsaid = Vec::new();
                self.input(1 - side, slot, Input::Message(message), &mut Fuel::endless(), &mut unsaid);
            }
            Message::Offer { .. }
            | Message::Answer { .. }
            | Message::Confirm { .. }
            | Message::Confirmed { .. }
            | Message::Unknown { .. } => drop(self.said[1 - side].insert(Said(message))),
        }
    }

    /// The agent's machines for the keys that it knows.
    fn meet(&mut self, side: usize) {
        for slot in Slot::ALL {
            let context = self.context(side, slot);
            let kept = self.sides[side].disk[slot.index()].clone();
            let node = &mut self.sides[side];
            for effect in node.pact.meet::<()>(context, kept, Duration::ZERO).unwrap().into_iter().flatten() {
                if matches!(effect, Effect::Remove { .. }) {
                    node.disk[slot.index()] = None;
                }
            }
            node.pact.hurry(slot, Duration::MAX);
        }
    }

    fn restart(&mut self, side: usize) {
        self.sides[side].pact = Pact::new(id(side), self.modes[side]);
        self.meet(side);
    }

    /// The agent dies and comes back; devices and routes stay.
    pub(crate) fn crash(&mut self, side: usize) {
        self.restart(side);
    }

    /// The node dies and comes back: devices are new, and routes are gone.
    pub(crate) fn reboot(&mut self, side: usize) {
        self.sides[side].device = Default::default();
        self.sides[side].route = None;
        self.restart(side);
        // Before it has peers there is nobody to talk to.
        self.program(side, &mut Fuel::endless());
    }

    /// Can a handshake succeed?
    pub(crate) fn works(&self, slot: Slot) -> bool {
        let [a, b] = [0, 1].map(|side: usize| self.sides[side].device[slot.index()].psk);
        self.agrees_on_context(slot) && a == b
    }

    /// Both sides know both keys.
    pub(crate) fn agrees_on_context(&self, slot: Slot) -> bool {
        let [a, b] = [0, 1].map(|side: usize| self.machine(side, slot).context());
        a == b
    }

    /// A handshake that this side begins. Unless `both`, its first packet is lost, so that the responder does not know yet.
    pub(crate) fn shake(&mut self, side: usize, slot: Slot, both: bool) {
        self.sides[side].device[slot.index()].made = true;
        if both {
            self.sides[1 - side].device[slot.index()].made = true;
        }
    }

    /// Would a handshake there tell anybody anything?
    pub(crate) fn unshaken(&self, slot: Slot) -> bool {
        self.works(slot) && self.sides.iter().any(|side| !side.device[slot.index()].made)
    }

    /// The initiator is asked, now or by a message that was long under way.
    pub(crate) fn ask(&mut self, slot: Slot, round: Option<u8>, cut: Cut) -> usize {
        let round = round.map(|round| {
            let mut bytes = [0; 16];
            bytes[0] = round;
            Round(bytes)
        });
        let context = Arc::clone(self.machine(0, slot).context());
        self.turn(0, &Mail::Letter(Message::Ask { context, round }), cut)
    }

    /// The round about which the responder asks; outside none: it asks nothing.
    pub(crate) fn asks(&self, slot: Slot) -> Option<Option<u8>> {
        let (mut pact, sight) = (self.sides[1].pact.clone(), self.sight(1));
        pact.hurry(slot, Duration::ZERO);
        let effects = pact.handle(slot, Input::Tick, &sight, Duration::ZERO, &mut self.toy.clone());
        effects.into_iter().find_map(|effect| match effect {
            Effect::Send(Message::Ask { round, .. }) => Some(round.map(|round| round.0[0])),
            Effect::Send(_) | Effect::Persist(_) | Effect::Install { .. } | Effect::Remove { .. } => None,
            Effect::Problem(_) => None,
        })
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

    /// The device has the new key of one of the two, so it knows of no handshake.
    fn renew(&mut self, side: usize, slot: Slot) {
        self.meet(side);
        let entry = &mut self.sides[side].device[slot.index()];
        *entry = Entry { made: false, ..entry.clone() };
        // A plan for what the slot is now, in the same turn.
        let touched = self.touched;
        self.program(side, &mut Fuel::endless());
        self.touched = touched;
        // Messages about keys that neither side knows any more are refused by both.
        let contexts = [0, 1].map(|side: usize| Arc::clone(self.machine(side, slot).context()));
        for said in &mut self.said {
            said.retain(|said| said.0.context().slot() != slot || contexts.contains(said.0.context()));
        }
    }

    /// The disk loses a record while the agent is down.
    pub(crate) fn lose(&mut self, side: usize, slot: Slot) {
        self.sides[side].disk[slot.index()] = None;
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
                    if self.unshaken(slot) && self.calls(side, slot) {
                        self.shake(side, slot, true);
                    }
                    if let Some(round) = self.asks(slot).filter(|_| side == 1) {
                        self.ask(slot, round, None);
                    }
                    self.turn(side, &Mail::Due(slot), None);
                }
            }
            while let Some((side, said)) =
                (0..2).find_map(|side: usize| self.said[side].pop_first().map(|said| (side, said)))
            {
                self.turn(side, &Mail::Letter(said.0), None);
            }
        }
    }

    /// Does a side report that a key is missing?
    pub(crate) fn reports(&self) -> bool {
        (0..2).any(|side| {
            let sight = self.sight(side);
            let overdue = |slot| self.sides[side].pact.overdue(&sight, slot, Duration::ZERO, Duration::ZERO);
            Slot::ALL.into_iter().any(|slot| overdue(slot).is_some())
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
            let confirmed =
                |side: usize| self.machine(side, *slot).record().filter(|record| record.confirmed);
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

    /// What a running agent holds is on its disk.
    pub(crate) fn disk_is_record(&self) -> bool {
        (0..2).all(|side| {
            Slot::ALL.iter().all(|slot| {
                let kept = self.sides[side].disk[slot.index()].as_ref();
                let context = self.machine(side, *slot).context();
                // What belongs to another key of the peer is kept for its return.
                self.machine(side, *slot).record() == kept.filter(|kept| kept.context == *context)
            })
        })
    }

    /// Where pods' packets go they are taken, and where one insists, in sessions with an agreed key alone.
    pub(crate) fn pods_are_taken(&self) -> bool {
        let insists = Effective::of(self.modes[0], self.modes[1]) == Effective::Require;
        (0..2).all(|side| {
            let Some(slot) = self.sides[side].route else { return true };
            let entry = |side: usize| &self.sides[side].device[slot.index()];
            let (here, there) = (entry(side), entry(1 - side));
            let keyed =
                |entry: &Entry| entry.psk.is_some() && (0..2).all(|of| entry.psk != Some(nobodys(of)));
            // Keys that were replaced a moment ago are for the rotation to think of.
            here.withheld || !self.works(slot) || (!there.confined && (!insists || keyed(here)))
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
