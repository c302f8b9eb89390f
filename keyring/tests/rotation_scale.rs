//! A thousand nodes are asked to rotate at the same moment, in virtual time: how long it takes, and what it costs.
//!
//! Every decision is the agents' own code. Assumed: an agent has a turn every second, the API takes a write within a
//! second and tells each watch within three, every pair sends all the time, one handshake or echo in a hundred is lost.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use keyring::rotation::{Effect, Machine, Now, Observed, PeerFacts, Settings, SlotFacts};
use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::pair::{Drains, Link, choose, target};
use mesh_core::slot::{Slot, drained};

const NODES: usize = 1000;
/// Seconds after which it has failed.
const PATIENCE: u64 = 600;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Said {
    epochs: [u64; 2],
    drained: Option<Slot>,
}

struct Node {
    machine: Machine,
    /// Keys in file and device, which is one thing here.
    keys: [u64; 2],
    staged: [Option<u64>; 2],
    /// What it announced, oldest first, and which of it the API has told it.
    history: Vec<(Said, Announcement)>,
    accepted: usize,
    /// Peers whose routes lead here, per slot, and when there last were any.
    incoming: [usize; 2],
    busy: [u64; 2],
    done: Option<u64>,
}

/// What one node has of another.
#[derive(Clone, Copy)]
struct Peer {
    version: usize,
    route: Slot,
    target: Slot,
    /// Time and keys of the latest handshake.
    stamp: [Option<(u64, u64, u64)>; 2],
    answered: Option<(Slot, u64)>,
    /// Where a handshake is wanted.
    call: Option<Slot>,
    /// Something changed.
    look: bool,
}

#[derive(Default)]
struct Costs {
    handshakes: u64,
    messages: u64,
    writes: u64,
    events: u64,
    moves: u64,
}

/// Random enough, and the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn key(node: usize, slot: Slot, epoch: u64) -> PublicKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&u64::try_from(node).unwrap().to_le_bytes());
    bytes[8] = u8::try_from(slot.index()).unwrap();
    bytes[16..24].copy_from_slice(&epoch.to_le_bytes());
    PublicKey::from_bytes(bytes)
}

fn announcement(node: usize, said: Said) -> Announcement {
    let slot = |slot: Slot| SlotAnnouncement {
        epoch: Epoch(said.epochs[slot.index()]),
        public_key: key(node, slot, said.epochs[slot.index()]),
        port: 51880,
        draining: said.drained == Some(slot),
    };
    Announcement { slots: Slot::ALL.map(slot), endpoints: vec![], kem: None, host_traffic: false }
}

struct Cluster {
    names: Vec<NodeName>,
    nodes: Vec<Node>,
    peers: Vec<Vec<Peer>>,
    /// What a watch tells, by the second: to whom, of whom, which.
    under_way: BTreeMap<u64, Vec<(usize, usize, usize)>>,
    costs: Costs,
    dice: Dice,
    now: u64,
}

impl Cluster {
    fn new() -> Self {
        let said = Said { epochs: [1, 2], drained: None };
        let names = (0..NODES).map(|node| format!("node-{node:04}").parse().unwrap()).collect();
        let node = |me: usize| Node {
            machine: Machine::default(),
            keys: said.epochs,
            staged: [None; 2],
            history: vec![(said, announcement(me, said))],
            accepted: 0,
            incoming: [NODES - 1, 0],
            busy: [0; 2],
            done: None,
        };
        let peer = Peer {
            version: 0,
            route: Slot::Zero,
            target: Slot::Zero,
            stamp: [Some((0, 1, 1)), None],
            answered: None,
            call: None,
            look: false,
        };
        Self {
            names,
            nodes: (0..NODES).map(node).collect(),
            peers: vec![vec![peer; NODES]; NODES],
            under_way: BTreeMap::new(),
            costs: Costs::default(),
            dice: Dice(0x9e37_79b9_7f4a_7c15),
            now: 0,
        }
    }

    fn fits(&self, a: usize, b: usize, slot: Slot) -> bool {
        let s = slot.index();
        let listed = |of: usize, by: usize| self.nodes[of].history[self.peers[by][of].version].0.epochs[s];
        listed(b, a) == self.nodes[b].keys[s] && listed(a, b) == self.nodes[a].keys[s]
    }

    fn second(&mut self, settings: &Settings) {
        self.now += 1;
        for (to, of, version) in self.under_way.remove(&self.now).unwrap_or_default() {
            self.costs.events += 1;
            if to == of {
                self.nodes[of].accepted = version;
                self.peers[of].iter_mut().for_each(|peer| peer.look = true);
            } else {
                let peer = &mut self.peers[to][of];
                // Later words may overtake here, earlier ones are not believed.
                peer.version = peer.version.max(version);
                peer.look = true;
            }
        }
        for me in 0..NODES {
            self.turn(settings, me);
        }
        self.shake();
        for node in &mut self.nodes {
            for slot in 0..2 {
                if node.incoming[slot] > 0 {
                    node.busy[slot] = self.now;
                }
            }
        }
    }

    fn turn(&mut self, settings: &Settings, me: usize) {
        if self.nodes[me].done.is_none() {
            let mut changed = false;
            loop {
                let step = self.look(settings, me);
                let asks = step.effects.iter().all(|effect| matches!(effect, Effect::Ask { .. }));
                for effect in step.effects {
                    self.act(me, effect);
                }
                self.nodes[me].machine = step.next;
                if asks {
                    break;
                }
                changed = true;
            }
            if changed {
                self.publish(me);
                self.peers[me].iter_mut().for_each(|peer| peer.look = true);
            }
            let state = self.nodes[me].machine.state();
            if state.rotation.is_none() && state.done.is_some() {
                self.nodes[me].done = Some(self.now);
            }
        }
        for other in (0..NODES).filter(|other| *other != me) {
            if self.peers[me][other].look {
                self.route(me, other);
            }
        }
    }

    fn act(&mut self, me: usize, effect: Effect) {
        let node = &mut self.nodes[me];
        match effect {
            Effect::Stage { slot } => {
                node.staged[slot.index()] = node.keys.iter().max().map(|epoch| epoch + 1)
            }
            Effect::Commit { slot } => {
                node.keys[slot.index()] = node.staged[slot.index()].take().unwrap();
            }
            Effect::Ask { peers } => {
                for peer in peers {
                    let other: usize = peer.as_str()[5..].parse().unwrap();
                    self.costs.messages += 2;
                    let (there, back) = (self.peers[me][other].route, self.peers[other][me].route);
                    if self.fits(me, other, there) && self.fits(me, other, back) && self.dice.below(100) > 0 {
                        self.peers[me][other].answered = Some((back, self.now));
                    }
                }
            }
            Effect::Overdue(overdue) => panic!("{overdue}"),
            Effect::Persist | Effect::Install { .. } | Effect::Destroyed(_) => {}
        }
    }

    fn publish(&mut self, me: usize) {
        let node = &mut self.nodes[me];
        let said = Said { epochs: node.keys, drained: node.machine.draining() };
        if node.history.last().is_some_and(|last| last.0 == said) {
            return;
        }
        node.history.push((said, announcement(me, said)));
        let version = node.history.len() - 1;
        self.costs.writes += 1;
        for to in 0..NODES {
            let late = if to == me { 1 } else { 1 + self.dice.below(3) };
            self.under_way.entry(self.now + late).or_default().push((to, me, version));
        }
    }

    fn drains(&self, me: usize) -> Drains {
        let node = &self.nodes[me];
        Drains { wanted: node.machine.draining(), accepted: node.history[node.accepted].0.drained }
    }

    fn route(&mut self, me: usize, other: usize) {
        let drains = self.drains(me);
        let peer = self.peers[me][other];
        let (said, theirs) = &self.nodes[other].history[peer.version];
        let link = |slot: Slot| {
            let s = slot.index();
            let (own, listed) = (self.nodes[me].keys[s], said.epochs[s]);
            let age = |(at, a, b): (u64, u64, u64)| ((a, b) == (own, listed)).then(|| self.now - at);
            Link {
                keys_for: Some(Duration::MAX),
                // Used all the time, so renewed in time.
                handshake_age: peer.stamp[s].and_then(age).map(|_| Duration::ZERO),
                unanswered_for: None,
                ready: true,
            }
        };
        let links = Slot::ALL.map(link);
        let target = target((&self.names[me], drains), (&self.names[other], theirs), Some(peer.route));
        let choice = choose(Some(peer.route), target, &links);
        if choice.send != peer.route {
            self.costs.moves += 1;
            self.nodes[other].incoming[peer.route.index()] -= 1;
            self.nodes[other].incoming[choice.send.index()] += 1;
        }
        let peer = &mut self.peers[me][other];
        (peer.route, peer.target, peer.call) = (choice.send, target, choice.provoke);
        peer.look = choice.provoke.is_some();
    }

    /// The handshakes that are wanted now.
    fn shake(&mut self) {
        for a in 0..NODES {
            for b in (0..NODES).filter(|b| *b != a) {
                let Some(slot) = self.peers[a][b].call.take() else { continue };
                let s = slot.index();
                if self.peers[b][a].call == Some(slot) {
                    // Both began at once: one more initiation.
                    self.peers[b][a].call = None;
                    self.costs.messages += 1;
                }
                if !self.fits(a, b, slot) || self.dice.below(100) == 0 {
                    self.costs.messages += 1;
                    continue;
                }
                self.costs.handshakes += 1;
                self.costs.messages += 3;
                let keys = (self.nodes[a].keys[s], self.nodes[b].keys[s]);
                for (x, y, own, theirs) in [(a, b, keys.0, keys.1), (b, a, keys.1, keys.0)] {
                    self.peers[x][y].stamp[s] = Some((self.now, own, theirs));
                    self.peers[x][y].look = true;
                }
            }
        }
    }

    fn look(&self, settings: &Settings, me: usize) -> keyring::rotation::Step {
        let node = &self.nodes[me];
        let age = |at: u64| Duration::from_secs(self.now - at);
        let slots = Slot::ALL.map(|slot| {
            let s = slot.index();
            SlotFacts {
                epoch: Epoch(node.keys[s]),
                public: key(me, slot, node.keys[s]),
                made: None,
                staged: None,
                device: Some(key(me, slot, node.keys[s])),
                quiet_for: age(node.busy[s]),
            }
        });
        let peers: Vec<PeerFacts<'_>> = (0..NODES)
            .filter(|other| *other != me)
            .map(|other| {
                let peer = &self.peers[me][other];
                PeerFacts {
                    name: &self.names[other],
                    drained: drained(&self.nodes[other].history[peer.version].1),
                    target: peer.target,
                    sending: Some(peer.route),
                    answered: peer.answered.map(|(slot, at)| (slot, age(at))),
                    handshake_age: peer.stamp.map(|stamp| stamp.map(|(at, ..)| age(at))),
                }
            })
            .collect();
        let observed = Observed {
            node: &self.names[me],
            slots,
            announced: Some(&node.history[node.accepted].1),
            synced: true,
            peers: &peers,
            request: Some("now"),
        };
        node.machine.step(settings, &observed, Now { uptime: Duration::from_secs(self.now), unix: 0 })
    }
}

#[test]
fn a_thousand_nodes_rotate_within_minutes() {
    let began = Instant::now();
    let mut cluster = Cluster::new();
    // Their sessions are old by now.
    cluster.now = 100;
    while cluster.nodes.iter().any(|node| node.done.is_none()) {
        assert!(cluster.now < PATIENCE, "not done");
        cluster.second(&Settings::DEFAULT);
    }
    let mut done: Vec<u64> = cluster.nodes.iter().filter_map(|node| node.done).map(|at| at - 100).collect();
    done.sort_unstable();
    // The pairs drift back afterwards.
    let astray = |cluster: &Cluster| {
        let on_one = |(me, peers): (usize, &Vec<Peer>)| {
            peers.iter().enumerate().any(|(other, peer)| other != me && peer.route == Slot::One)
        };
        cluster.peers.iter().enumerate().any(on_one)
    };
    while astray(&cluster) || !cluster.under_way.is_empty() {
        assert!(cluster.now < PATIENCE, "a pair is left on slot one");
        cluster.second(&Settings::DEFAULT);
    }
    let Costs { handshakes, messages, writes, events, moves } = cluster.costs;
    println!(
        "{NODES} nodes at once: the first done after {} s, half after {} s, all after {} s, all pairs back after {} s; \
         {writes} API writes, {events} watch events, {handshakes} handshakes, {messages} messages, {moves} moves of a route \
         (computed in {:.1} s)",
        done[0],
        done[NODES / 2],
        done[NODES - 1],
        cluster.now - 100,
        began.elapsed().as_secs_f64(),
    );
    let nodes = u64::try_from(NODES).unwrap();
    for node in &cluster.nodes {
        assert!(node.keys.iter().all(|epoch| *epoch > 2), "{:?}", node.keys);
    }
    // One drains; one is new; zero drains; zero is new. The two in the middle are one where nobody has to be waited for.
    assert!((3 * nodes..=4 * nodes).contains(&writes), "{writes}");
    assert_eq!(events, writes * nodes);
    assert!(moves >= 2 * nodes * (nodes - 1), "away and back, both ways");
}
