//! A small cluster in which every decision is made by the code that agents run: `rotation::Machine`, `pair::target`,
//! `pair::choose`. What is modelled is the world around them.
//!
//! Time is abstract. The one thing that it has to say is the quiet time, which is long against an agent's turn (15 s
//! to 1 s): it has passed when every agent that lives has had a turn since the last thing that happened on the slot.
//! The API may be late by any time, an agent may be down for any time, a handshake may fail for any time.
//!
//! Keys are hard: a device that gets a new key, and a peer that is listed with a new one, know nothing of sessions made
//! with the old one (the kernel is kinder: it still opens what comes under the old session for 180 s).

use std::collections::VecDeque;
use std::time::Duration;

use keyring::rotation::{
    Effect, Machine, Now, Observed, PeerFacts, Proof, Settings, SlotFacts, Stage, State,
};
use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::pair::{Choice, Drains, Link, PATIENCE, choose, target};
use mesh_core::psk::Mode;
use mesh_core::slot::{Slot, drained};

use super::agreement::{Agreement, Letter};
use super::pair::Toy;

/// What the API says of a node: epochs of both keys, and the draining slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Said {
    pub(crate) epochs: [u8; 2],
    pub(crate) drained: Option<Slot>,
}

/// What a node knows of another, and what its kernel has of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// The API's word, as far as it has come.
    pub(crate) view: Option<Said>,
    /// Words under way.
    pub(crate) queue: VecDeque<Said>,
    /// Epochs of the keys that the devices list; 0: none.
    pub(crate) listed: [u8; 2],
    /// Own and peer's epoch of the latest handshake on each slot.
    pub(crate) stamp: [Option<(u8, u8)>; 2],
    /// Where the routes lead.
    pub(crate) route: Option<Slot>,
    /// The pair has talked: from here on it must not stop.
    pub(crate) met: bool,
    /// Where the agent provokes a handshake.
    pub(crate) call: Option<Slot>,
    /// Where nodes agree on pre-shared keys.
    pub(crate) agreement: Option<Box<Agreement>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    /// The agent runs.
    pub(crate) up: bool,
    /// Nothing passes between it and anybody, the API included: it has no power, or its cable is cut.
    pub(crate) away: bool,
    /// It was started at least once: before that it is no part of the cluster.
    pub(crate) joined: bool,
    pub(crate) machine: Machine,
    pub(crate) disk: State,
    /// Epochs in the key files.
    pub(crate) keys: [u8; 2],
    /// Epochs of staged keys; 0: none.
    pub(crate) staged: [u8; 2],
    /// Epochs in the devices.
    pub(crate) devices: [u8; 2],
    /// What its last turn wanted announced.
    pub(crate) wanted: Option<Said>,
    /// What the API has of it, as this node knows.
    pub(crate) own: Said,
    pub(crate) peers: Vec<Peer>,
    /// Agents that had a turn since something happened on the slot that this one drains.
    pub(crate) turned: u8,
    /// Rotations that it was asked for.
    pub(crate) asked: u8,
    /// It took a deadline.
    pub(crate) late: bool,
    /// Keys whose destruction was recorded, by epoch.
    pub(crate) records: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) api: Vec<Option<Said>>,
    pub(crate) crashes: u8,
    /// How often a node may still go away.
    pub(crate) leaves: u8,
    /// The API takes every Node for dead.
    pub(crate) doubts: bool,
    pub(crate) toy: Toy,
    /// No slot is silent for long enough, ever.
    pub(crate) held: bool,
}

/// What a cluster is like.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) names: Vec<NodeName>,
    /// How often each node is asked to rotate: again as soon as it is done.
    pub(crate) rotates: Vec<u8>,
    /// Are they asked at any time, or at once and again as soon as they are done?
    pub(crate) any_time: bool,
    /// Which are there from the beginning.
    pub(crate) joined: Vec<bool>,
    /// Every pair sends all the time.
    pub(crate) chatty: bool,
    pub(crate) proof: Proof,
    /// Crashes in a run.
    pub(crate) crashes: u8,
    /// Nodes that go away in a run, and may come back. If there are any, the API takes every Node for dead all the time: the
    /// worst word that it can give, since a kubelet may stop anywhere. What has to keep nodes that live from being counted
    /// as gone is that they answer.
    pub(crate) leaves: u8,
    /// May deadlines be reached?
    pub(crate) deadlines: bool,
    /// The mode of all where they agree on pre-shared keys.
    pub(crate) psk: Option<Mode>,
    /// Offers of keys, and keys made, in a run.
    pub(crate) offers: u8,
}

impl Rules {
    pub(crate) fn new(nodes: usize) -> Self {
        let names = ["a", "b", "c"].iter().take(nodes).map(|name| name.parse().unwrap()).collect();
        Self {
            names,
            rotates: vec![1; nodes],
            any_time: false,
            joined: vec![true; nodes],
            chatty: false,
            proof: Proof::Answers,
            crashes: 0,
            leaves: 0,
            deadlines: false,
            psk: None,
            offers: 4,
        }
    }

    /// [`Rules::new`], where nodes agree on pre-shared keys.
    pub(crate) fn agreeing(nodes: usize, mode: Mode) -> Self {
        Self { psk: Some(mode), ..Self::new(nodes) }
    }

    const fn settings(&self) -> Settings {
        Settings { proof: self.proof, ..Settings::DEFAULT }
    }
}

pub(crate) fn key(node: usize, slot: Slot, epoch: u8) -> PublicKey {
    let mut bytes = [0; 32];
    bytes[0] = u8::try_from(node).unwrap() + 1;
    bytes[1] = u8::try_from(slot.index()).unwrap();
    bytes[2] = epoch;
    PublicKey::from_bytes(bytes)
}

pub(crate) fn announcement(rules: &Rules, node: usize, said: Said) -> Announcement {
    let slot = |slot: Slot| SlotAnnouncement {
        epoch: Epoch(said.epochs[slot.index()].into()),
        public_key: key(node, slot, said.epochs[slot.index()]),
        port: 51880,
        draining: said.drained == Some(slot),
    };
    Announcement {
        slots: [slot(Slot::Zero), slot(Slot::One)],
        endpoints: vec![],
        kem: rules.psk.map(|_| [0; 32]),
        kem_required: false,
        host_traffic: false,
    }
}

impl World {
    pub(crate) fn new(rules: &Rules) -> Self {
        let count = rules.names.len();
        let said = Said { epochs: [1, 2], drained: None };
        let node = |me: usize| Node {
            up: rules.joined[me],
            away: false,
            joined: rules.joined[me],
            machine: Machine::default(),
            disk: State::default(),
            keys: [1, 2],
            staged: [0, 0],
            devices: [1, 2],
            wanted: rules.joined[me].then_some(said),
            own: said,
            peers: (0..count)
                .map(|other| {
                    let met = other != me && rules.joined[me] && rules.joined[other];
                    Peer {
                        view: met.then_some(said),
                        queue: VecDeque::new(),
                        listed: if met { [1, 2] } else { [0, 0] },
                        stamp: [met.then_some((1, 1)), None],
                        route: met.then_some(Slot::Zero),
                        met,
                        call: None,
                        agreement: (other != me)
                            .then(|| rules.psk.map(|mode| Box::new(Agreement::new(rules, me, mode))))
                            .flatten(),
                    }
                })
                .collect(),
            turned: 0,
            asked: if rules.any_time { 0 } else { rules.rotates[me].min(1) },
            late: false,
            records: 0,
        };
        Self {
            nodes: (0..count).map(node).collect(),
            api: rules.joined.iter().map(|joined| joined.then_some(said)).collect(),
            crashes: rules.crashes,
            leaves: rules.leaves,
            doubts: rules.leaves > 0,
            toy: Toy::default(),
            held: false,
        }
    }

    /// Pairs, both ways.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let count = self.nodes.len();
        (0..count).flat_map(move |a| (0..count).filter(move |b| *b != a).map(move |b| (a, b)))
    }

    /// Do the keys of two nodes fit on a slot? Then what one sends there is accepted by the other, after a handshake at
    /// the most.
    pub(crate) fn fits(&self, a: usize, b: usize, slot: Slot) -> bool {
        let s = slot.index();
        let (x, y) = (&self.nodes[a], &self.nodes[b]);
        let listed = |of: &Peer, device: u8| device != 0 && of.listed[s] == device;
        let keys = listed(&x.peers[b], y.devices[s]) && listed(&y.peers[a], x.devices[s]);
        let psk = |peer: &Peer| peer.agreement.as_ref().and_then(|agreement| agreement.on[s]);
        keys && psk(&x.peers[b]) == psk(&y.peers[a])
    }

    /// Does anything pass between two nodes?
    pub(crate) fn reaches(&self, a: usize, b: usize) -> bool {
        !self.nodes[a].away && !self.nodes[b].away
    }

    /// Whatever `a` sends to `b` now is accepted.
    pub(crate) fn accepted(&self, a: usize, b: usize) -> bool {
        self.reaches(a, b) && self.nodes[a].peers[b].route.is_some_and(|slot| self.fits(a, b, slot))
    }

    /// A node is cut off; `off`: it has no power, either, and what its kernel had is gone. Its pairs talk no more, and what they
    /// do afterwards they begin anew: it stays away for longer than sessions live (180 s), since a shorter absence makes nobody
    /// gone.
    pub(crate) fn leave(&mut self, me: usize, off: bool) {
        self.leaves -= 1;
        if off {
            self.crash(me);
            self.nodes[me].devices = [0, 0];
        }
        self.nodes[me].away = true;
        for (a, b) in self.pairs().filter(|(a, b)| *a == me || *b == me) {
            let peer = &mut self.nodes[a].peers[b];
            (peer.met, peer.stamp) = (false, [None, None]);
            if off && a == me {
                (peer.listed, peer.route) = ([0, 0], None);
            }
            if let Some(agreement) = &mut peer.agreement {
                agreement.parted(off && a == me);
            }
        }
    }

    /// Notes the pairs that talk.
    pub(crate) fn meet(&mut self) {
        for (a, b) in self.pairs() {
            if self.accepted(a, b) && self.accepted(b, a) {
                self.nodes[a].peers[b].met = true;
            }
        }
    }

    /// Something happened on a slot between two nodes.
    pub(crate) fn stir(&mut self, a: usize, b: usize, slot: Slot) {
        for node in [a, b] {
            if self.nodes[node].machine.draining() == Some(slot) {
                self.nodes[node].turned = 0;
            }
        }
    }

    pub(crate) fn publish(&mut self, me: usize) {
        let Some(said) = self.nodes[me].wanted else { return };
        self.api[me] = Some(said);
        self.nodes[me].own = said;
        self.nodes[me].turned = 0;
        for (other, node) in self.nodes.iter_mut().enumerate() {
            // An agent that is down reads the whole list when it starts.
            if other != me && node.up {
                node.peers[me].queue.push_back(said);
            }
        }
    }

    /// What this node drains.
    pub(crate) fn drained_by(&self, me: usize) -> Drains {
        Drains { wanted: self.nodes[me].machine.draining(), accepted: self.nodes[me].own.drained }
    }

    pub(crate) fn deliver(&mut self, to: usize, of: usize, all: bool) {
        let peer = &mut self.nodes[to].peers[of];
        while let Some(said) = peer.queue.pop_front() {
            peer.view = Some(said);
            if !all {
                break;
            }
        }
    }

    pub(crate) fn can_shake(&self, a: usize, b: usize, slot: Slot) -> bool {
        let (node, peer) = (&self.nodes[a], &self.nodes[a].peers[b]);
        let proves = peer.agreement.as_ref().is_some_and(|agreement| agreement.proves[slot.index()]);
        // Who seems to be gone is tried on both slots.
        let seeks = self.doubts && !self.accepted(a, b);
        let wants = peer.route == Some(slot) || (node.up && (proves || seeks || peer.call == Some(slot)));
        let fresh = |x: usize, y: usize| {
            let (x, s) = (&self.nodes[x], slot.index());
            x.peers[y].stamp[s] == Some((x.devices[s], x.peers[y].listed[s]))
        };
        wants && self.reaches(a, b) && self.fits(a, b, slot) && !(fresh(a, b) && fresh(b, a))
    }

    /// A handshake begun by `a`. Unless `both`, its first packet is lost, so that the responder does not know yet.
    pub(crate) fn shake(&mut self, a: usize, b: usize, slot: Slot, both: bool) {
        let s = slot.index();
        let keys = (self.nodes[a].devices[s], self.nodes[b].devices[s]);
        self.nodes[a].peers[b].stamp[s] = Some(keys);
        if both {
            self.nodes[b].peers[a].stamp[s] = Some((keys.1, keys.0));
        }
        self.stir(a, b, slot);
    }

    pub(crate) fn crash(&mut self, me: usize) {
        let node = &mut self.nodes[me];
        node.up = false;
        node.wanted = None;
        node.machine = Machine::default();
        node.turned = 0;
        for peer in &mut node.peers {
            peer.call = None;
            peer.queue.clear();
            // Not known any more, and not looked at before the next start.
            peer.view = None;
            if let Some(agreement) = &mut peer.agreement {
                agreement.forget();
            }
        }
    }

    /// The agent starts and reads the list of Nodes (a consistent read, as watches begin).
    pub(crate) fn start(&mut self, rules: &Rules, me: usize) {
        let node = &mut self.nodes[me];
        node.up = true;
        node.joined = true;
        node.machine = Machine::resume(node.disk.clone());
        if let Some(own) = self.api[me] {
            node.own = own;
        }
        for other in (0..rules.names.len()).filter(|other| *other != me) {
            node.peers[other].view = self.api[other];
        }
        self.meet_all(rules, me);
    }

    /// One turn of an agent. It crashes after `fuel` things that it did, if it does so many; says whether it did.
    pub(crate) fn turn(&mut self, rules: &Rules, me: usize, late: bool, fuel: Option<usize>) -> bool {
        self.turn_with(rules, me, late, fuel, Vec::new())
    }

    /// [`World::turn`], with what there is to be said already.
    pub(crate) fn turn_with(
        &mut self,
        rules: &Rules,
        me: usize,
        late: bool,
        mut fuel: Option<usize>,
        mut said: Vec<Letter>,
    ) -> bool {
        if let Some(slot) = self.nodes[me].machine.draining().filter(|_| self.quiet_passed(me)) {
            self.lose_old_letters(me, slot);
        }
        // Bounded, since a machine that never rests would be found by nothing else.
        for _ in 0..6 {
            let before = self.nodes[me].machine.clone();
            let step = self.look(rules, me, late);
            let busy = step.effects.iter().any(|effect| !matches!(effect, Effect::Ask { .. }));
            for effect in step.effects {
                if burnt(&mut fuel) {
                    self.crash(me);
                    return true;
                }
                self.act(me, &step.next, effect);
            }
            let drains = step.next.draining();
            self.nodes[me].machine = step.next;
            if drains != before.draining() || drains.is_none() {
                self.nodes[me].turned = 0;
            }
            if let Some(slot) = drains.filter(|_| drains != before.draining()) {
                self.age_letters(me, slot);
            }
            if self.apply(rules, me, &mut fuel, &mut said) {
                self.crash(me);
                return true;
            }
            if !busy {
                // What was put on devices may be told.
                for letter in said {
                    if burnt(&mut fuel) {
                        self.crash(me);
                        return true;
                    }
                    self.post(letter);
                }
                // Announced at the end of a turn: what is announced is in the devices.
                let node = &mut self.nodes[me];
                node.wanted = Some(Said { epochs: node.devices, drained: node.machine.draining() });
                for (other, node) in self.nodes.iter_mut().enumerate() {
                    if other == me || node.up {
                        node.turned |= if node.machine.draining().is_some() { 1 << me } else { 0 };
                    }
                }
                return false;
            }
        }
        panic!("the machine does not come to rest: {:?}", self.nodes[me].machine);
    }

    fn act(&mut self, me: usize, next: &Machine, effect: Effect) {
        let node = &mut self.nodes[me];
        match effect {
            Effect::Persist => {
                node.disk = next.state().clone();
            }
            Effect::Stage { slot } => {
                if node.staged[slot.index()] == 0 {
                    node.staged[slot.index()] = node.keys.iter().max().unwrap() + 1;
                }
            }
            Effect::Install { slot } => {
                node.devices[slot.index()] = node.staged[slot.index()];
                // Pre-shared keys belonged to the former one.
                for agreement in node.peers.iter_mut().filter_map(|peer| peer.agreement.as_mut()) {
                    agreement.on[slot.index()] = None;
                }
            }
            Effect::Commit { slot } => {
                node.keys[slot.index()] = std::mem::take(&mut node.staged[slot.index()]);
            }
            Effect::Destroyed(record) => {
                // A node without power has none in its devices.
                let device = node.devices[record.slot.index()];
                assert!(
                    device == 0 || record.new.epoch.0 == u64::from(device),
                    "still in the device: {device}"
                );
                node.records |= 1 << record.old.epoch.0;
            }
            Effect::Overdue(_) => node.late = true,
            Effect::Ask { .. } => {}
        }
    }

    /// Keys into devices, peers into devices, routes: as a plan orders them.
    fn apply(&mut self, rules: &Rules, me: usize, fuel: &mut Option<usize>, said: &mut Vec<Letter>) -> bool {
        for s in 0..2 {
            if self.nodes[me].devices[s] != self.nodes[me].keys[s] {
                if burnt(fuel) {
                    return true;
                }
                self.nodes[me].devices[s] = self.nodes[me].keys[s];
            }
        }
        for other in (0..rules.names.len()).filter(|other| *other != me) {
            let Some(view) = self.nodes[me].peers[other].view else { continue };
            if rules.psk.is_some() {
                if self.agree(rules, (me, other), fuel, said).is_none() {
                    return true;
                }
                continue;
            }
            let links = self.links(me, other);
            let node = &mut self.nodes[me];
            let drains = Drains { wanted: node.machine.draining(), accepted: node.own.drained };
            let peer = &mut node.peers[other];
            if peer.listed != view.epochs {
                peer.listed = view.epochs;
                return self.apply(rules, me, fuel, said);
            }
            let there = (&rules.names[other], &announcement(rules, other, view));
            let target = target((&rules.names[me], drains), there, peer.route);
            let Choice { send, provoke } = choose(peer.route, target, &links);
            peer.call = provoke;
            if peer.route != Some(send) {
                let moved = [peer.route, Some(send)];
                peer.route = Some(send);
                if rules.chatty {
                    for slot in moved.into_iter().flatten() {
                        self.stir(me, other, slot);
                    }
                }
            }
        }
        false
    }

    pub(crate) fn links(&self, me: usize, other: usize) -> [Link; 2] {
        let (node, peer) = (&self.nodes[me], &self.nodes[me].peers[other]);
        [Slot::Zero, Slot::One].map(|slot| {
            let s = slot.index();
            let made = peer.stamp[s] == Some((node.devices[s], peer.listed[s]));
            let works = self.reaches(me, other) && self.fits(me, other, slot);
            let deaf = peer.route == Some(slot) && !works;
            Link {
                // With the key that the API names at present.
                keys_for: peer
                    .view
                    .is_some_and(|view| peer.listed[s] == view.epochs[s] && peer.listed[s] != 0)
                    .then_some(Duration::MAX),
                handshake_age: made.then_some(Duration::ZERO),
                unanswered_for: deaf.then_some(PATIENCE),
                ready: true,
            }
        })
    }

    /// Has the quiet time passed since something happened on the slot that this node drains?
    fn quiet_passed(&self, me: usize) -> bool {
        let living = |other: &usize| *other == me || self.nodes[*other].up;
        let all = (0..self.nodes.len()).filter(living).fold(0, |mask, other| mask | 1 << other);
        // Whoever wants a handshake to be seen there makes one again and again.
        let knocks = |(other, node): (usize, &Node)| {
            let proves = |slot: Slot| {
                let sides = [&node.peers[me], &self.nodes[me].peers[other]];
                sides.into_iter().flat_map(|peer| &peer.agreement).any(|of| of.proves[slot.index()])
            };
            let there = other != me && node.up && self.reaches(me, other);
            there && self.nodes[me].machine.draining().is_some_and(proves)
        };
        !self.held && self.nodes[me].turned & all == all && !self.nodes.iter().enumerate().any(knocks)
    }

    fn look(&self, rules: &Rules, me: usize, late: bool) -> keyring::rotation::Step {
        let node = &self.nodes[me];
        let settings = rules.settings();
        let passed = self.quiet_passed(me);
        let uptime = match (late, passed) {
            (true, _) => settings.deadline + settings.quiet,
            (false, true) => settings.quiet,
            (false, false) => Duration::ZERO,
        };
        let sent_to = |slot: Slot| {
            self.nodes
                .iter()
                .enumerate()
                .any(|(other, node)| other != me && node.peers[me].route == Some(slot))
        };
        let slots = Slot::ALL.map(|slot| SlotFacts {
            epoch: Epoch(node.keys[slot.index()].into()),
            public: key(me, slot, node.keys[slot.index()]),
            made: None,
            staged: Some(node.staged[slot.index()])
                .filter(|epoch| *epoch != 0)
                .map(|epoch| key(me, slot, epoch)),
            device: Some(node.devices[slot.index()])
                .filter(|epoch| *epoch != 0)
                .map(|epoch| key(me, slot, epoch)),
            quiet_for: if passed && !(rules.chatty && sent_to(slot)) {
                settings.quiet
            } else {
                Duration::ZERO
            },
        });
        let drains = Drains { wanted: node.machine.draining(), accepted: node.own.drained };
        let peers: Vec<PeerFacts<'_>> = (0..self.nodes.len())
            .filter_map(|other| {
                let peer = &node.peers[other];
                let theirs = announcement(rules, other, peer.view.filter(|_| other != me)?);
                let name = &rules.names[other];
                let back = self.nodes[other].peers[me].route;
                let echo = |there: Slot, back: Slot| {
                    (self.fits(me, other, there) && self.fits(me, other, back))
                        .then_some((back, Duration::ZERO))
                };
                let shakes = |slot: Slot| self.reaches(me, other) && self.fits(me, other, slot);
                let ways = peer.route.zip(back).filter(|_| self.reaches(me, other));
                let answered = ways.and_then(|(there, back)| echo(there, back));
                Some(PeerFacts {
                    name,
                    smaller: *name < rules.names[me],
                    drained: drained(&theirs),
                    target: target((&rules.names[me], drains), (name, &theirs), peer.route),
                    sending: peer.route,
                    answered,
                    handshake_age: [None; 2],
                    doubted_for: self.doubts.then_some(Duration::MAX),
                    // A pair that has nothing to say: nothing else would tell that it lives.
                    unheard_for: (answered.is_none() && !Slot::ALL.into_iter().any(shakes))
                        .then_some(Duration::MAX),
                })
            })
            .collect();
        let own = announcement(rules, me, node.own);
        let request = (node.asked > 0).then(|| node.asked.to_string());
        let observed = Observed {
            node: &rules.names[me],
            slots,
            announced: Some(&own),
            synced: true,
            peers: &peers,
            request: request.as_deref(),
            successor: false,
        };
        node.machine.step(&settings, &observed, Now { uptime, unix: 0 })
    }

    /// Each node's keys and drain, and its side of each pair: view, route, handshakes, standings.
    pub(crate) fn summary(&self) -> String {
        let side = |(me, other): (usize, usize)| {
            let peer = &self.nodes[me].peers[other];
            let view = peer.view.map(|said| (said.epochs, said.drained));
            let standings =
                peer.agreement.as_ref().map(|agreement| (agreement.standings(), agreement.withheld));
            format!("  {me} of {other}: {view:?} by {:?}, {:?}, {standings:?}", peer.route, peer.stamp)
        };
        let node = |(me, node): (usize, &Node)| {
            let away = if node.away { "away, " } else { "" };
            format!("{me}: {away}{:?} drains {:?}", node.devices, node.machine.draining())
        };
        let nodes = self.nodes.iter().enumerate().map(node);
        nodes.chain(self.pairs().map(side)).collect::<Vec<_>>().join("\n")
    }

    /// May a node be asked for one more?
    pub(crate) fn can_ask(&self, rules: &Rules, me: usize) -> bool {
        self.nodes[me].asked < rules.rotates[me] && self.done(me) == self.nodes[me].asked
    }

    /// Rotations that a node has done, by its disk.
    pub(crate) fn done(&self, me: usize) -> u8 {
        self.nodes[me].disk.done.as_ref().map_or(0, |done| done.as_str().parse().unwrap())
    }

    /// Is a deadline running?
    pub(crate) fn drains(&self, me: usize) -> bool {
        let node = &self.nodes[me];
        let stage = node.machine.state().rotation.as_ref().map(|rotation| &rotation.stage);
        // It has seen the drain accepted: before, no deadline runs.
        let seen = node.turned & 1 << me != 0;
        matches!(stage, Some(Stage::Draining { .. })) && seen && Some(node.own) == node.wanted
    }
}

pub(crate) fn burnt(fuel: &mut Option<usize>) -> bool {
    match fuel {
        Some(0) => true,
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}
