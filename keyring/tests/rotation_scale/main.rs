//! A thousand nodes are asked to rotate at the same moment, in virtual time: how long it takes, and what it costs.
//!
//! Every decision is the agents' own code. Assumed: an agent has a turn every second, the API takes a write within a
//! second and tells each watch within three, every pair sends all the time, one handshake or echo in a hundred is lost. Once
//! without pre-shared keys, and once with them, among fewer nodes.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod agreement;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use keyring::rotation::{Effect, Machine, Now, Observed, PeerFacts, Settings, SlotFacts};
use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::pair::{Drains, Link, choose, target};
use mesh_core::slot::{Slot, drained};
use mesh_core::view::PairFacts;

use self::agreement::{Agreement, Kem, Letter};

/// Without pre-shared keys.
const NODES: usize = 1000;
/// With them, which takes longer to compute; another number in `HAWSER_SIMULATED_NODES`.
const FEWER: usize = 200;
/// Seconds after which it has failed.
const PATIENCE: u64 = 600;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Said {
    epochs: [u64; 2],
    drained: Option<Slot>,
    /// Number of its ML-KEM key.
    kem: u64,
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
    kem: Kem,
}

/// What one node has of another.
struct Peer {
    version: usize,
    route: Slot,
    target: Slot,
    /// Time and keys of the latest handshake.
    stamp: [Option<(u64, u64, u64)>; 2],
    answered: Option<(Slot, u64)>,
    /// Where handshakes are wanted.
    calls: [bool; 2],
    /// Something changed.
    look: bool,
    /// When its exchanges have to speak next, in seconds.
    due: u64,
    agreement: Option<Box<Agreement>>,
}

#[derive(Default)]
struct Costs {
    handshakes: u64,
    messages: u64,
    writes: u64,
    events: u64,
    moves: u64,
    letters: u64,
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
    Announcement {
        slots: Slot::ALL.map(slot),
        endpoints: vec![],
        kem: None,
        kem_required: false,
        host_traffic: false,
    }
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
    /// All were asked for new keys.
    asked: bool,
    /// They have pre-shared keys.
    psks: bool,
    /// Letters of this second.
    post: Vec<Letter>,
    /// The last number given to a secret.
    last: u64,
}

impl Cluster {
    fn new(count: usize) -> Self {
        let said = Said { epochs: [1, 2], drained: None, kem: 1 };
        let names = (0..count).map(|node| format!("node-{node:04}").parse().unwrap()).collect();
        let node = |me: usize| Node {
            machine: Machine::default(),
            keys: said.epochs,
            staged: [None; 2],
            history: vec![(said, announcement(me, said))],
            accepted: 0,
            incoming: [count - 1, 0],
            busy: [0; 2],
            done: None,
            kem: Kem { number: 1, worn: None },
        };
        let peer = || Peer {
            version: 0,
            route: Slot::Zero,
            target: Slot::Zero,
            stamp: [Some((0, 1, 1)), None],
            answered: None,
            calls: [false; 2],
            look: false,
            due: u64::MAX,
            agreement: None,
        };
        Self {
            names,
            nodes: (0..count).map(node).collect(),
            peers: (0..count).map(|_| (0..count).map(|_| peer()).collect()).collect(),
            under_way: BTreeMap::new(),
            costs: Costs::default(),
            dice: Dice(0x9e37_79b9_7f4a_7c15),
            // Their sessions are old by now.
            now: 100,
            asked: false,
            psks: false,
            post: Vec::new(),
            last: 1,
        }
    }

    fn count(&self) -> usize {
        self.names.len()
    }

    /// Both have the other's present keys, and one pre-shared key or none.
    fn fits(&self, a: usize, b: usize, slot: Slot) -> bool {
        let s = slot.index();
        let listed = |of: usize, by: usize| self.nodes[of].history[self.peers[by][of].version].0.epochs[s];
        let on = |a: usize, b: usize| self.peers[a][b].agreement.as_ref().and_then(|pact| pact.on[s]);
        let keys = listed(b, a) == self.nodes[b].keys[s] && listed(a, b) == self.nodes[a].keys[s];
        keys && on(a, b) == on(b, a)
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
        self.deliver();
        for me in 0..self.count() {
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
        if self.asked && self.nodes[me].done.is_none() {
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
        if self.renew(me) {
            self.publish(me);
        }
        for other in (0..self.count()).filter(|other| *other != me) {
            let peer = &self.peers[me][other];
            if peer.look || peer.due <= self.now {
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
            Effect::Destroyed(_) => node.kem.worn = node.kem.worn.or(self.psks.then_some(self.now)),
            Effect::Persist | Effect::Install { .. } => {}
        }
    }

    fn publish(&mut self, me: usize) {
        let node = &mut self.nodes[me];
        let said = Said { epochs: node.keys, drained: node.machine.draining(), kem: node.kem.number };
        if node.history.last().is_some_and(|last| last.0 == said) {
            return;
        }
        node.history.push((said, announcement(me, said)));
        let version = node.history.len() - 1;
        self.costs.writes += 1;
        for to in 0..self.names.len() {
            let late = if to == me { 1 } else { 1 + self.dice.below(3) };
            self.under_way.entry(self.now + late).or_default().push((to, me, version));
        }
    }

    fn drains(&self, me: usize) -> Drains {
        let node = &self.nodes[me];
        Drains { wanted: node.machine.draining(), accepted: node.history[node.accepted].0.drained }
    }

    /// The slot that announcements name, and what both slots can carry.
    fn links(&self, (me, other): (usize, usize)) -> (Slot, [Link; 2]) {
        let drains = self.drains(me);
        let peer = &self.peers[me][other];
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
        let announced = target((&self.names[me], drains), (&self.names[other], theirs), Some(peer.route));
        (announced, Slot::ALL.map(link))
    }

    fn route(&mut self, me: usize, other: usize) {
        let (announced, links) = self.links((me, other));
        self.peers[me][other].look = false;
        let facts = if self.peers[me][other].agreement.is_some() {
            self.agree((me, other), announced, links)
        } else {
            PairFacts { current: Some(self.peers[me][other].route), links, ..PairFacts::default() }
        };
        let target = facts.instead.unwrap_or(announced);
        let choice = choose(facts.current, target, &facts.links);
        let route = self.peers[me][other].route;
        if choice.send != route {
            self.costs.moves += 1;
            self.nodes[other].incoming[route.index()] -= 1;
            self.nodes[other].incoming[choice.send.index()] += 1;
        }
        let peer = &mut self.peers[me][other];
        let proves = peer.agreement.as_ref().map_or([false; 2], |agreement| agreement.proves);
        peer.calls = Slot::ALL.map(|slot| choice.provoke == Some(slot) || proves[slot.index()]);
        (peer.route, peer.target) = (choice.send, target);
        peer.look |= peer.calls.contains(&true);
    }

    /// The handshakes that are wanted now.
    fn shake(&mut self) {
        for a in 0..self.count() {
            for b in (0..self.count()).filter(|b| *b != a) {
                for slot in Slot::ALL {
                    if std::mem::take(&mut self.peers[a][b].calls[slot.index()]) {
                        self.shake_hands(a, b, slot);
                    }
                }
            }
        }
    }

    fn shake_hands(&mut self, a: usize, b: usize, slot: Slot) {
        let s = slot.index();
        if std::mem::take(&mut self.peers[b][a].calls[s]) {
            // Both began at once: one more initiation.
            self.costs.messages += 1;
        }
        if !self.fits(a, b, slot) || self.dice.below(100) == 0 {
            self.costs.messages += 1;
            return;
        }
        self.costs.handshakes += 1;
        self.costs.messages += 3;
        let keys = (self.nodes[a].keys[s], self.nodes[b].keys[s]);
        for (x, y, own, theirs) in [(a, b, keys.0, keys.1), (b, a, keys.1, keys.0)] {
            self.peers[x][y].stamp[s] = Some((self.now, own, theirs));
            self.peers[x][y].look = true;
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
        let peers: Vec<PeerFacts<'_>> = (0..self.count())
            .filter(|other| *other != me)
            .map(|other| {
                let peer = &self.peers[me][other];
                PeerFacts {
                    name: &self.names[other],
                    smaller: self.names[other] < self.names[me],
                    drained: drained(&self.nodes[other].history[peer.version].1),
                    target: peer.target,
                    sending: Some(peer.route),
                    answered: peer.answered.map(|(slot, at)| (slot, age(at))),
                    handshake_age: peer.stamp.map(|stamp| stamp.map(|(at, ..)| age(at))),
                    doubted_for: None,
                    unheard_for: None,
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
            successor: false,
        };
        node.machine.step(settings, &observed, Now { uptime: Duration::from_secs(self.now), unix: 0 })
    }
}

/// One pair's route is not where announcements name it, or its pre-shared keys are not all at work.
fn astray(cluster: &Cluster) -> bool {
    let off = |peer: &Peer| {
        peer.route == Slot::One || peer.agreement.as_ref().is_some_and(|agreement| !agreement.is_open())
    };
    let on_one = |(me, peers): (usize, &Vec<Peer>)| {
        peers.iter().enumerate().any(|(other, peer)| other != me && off(peer))
    };
    cluster.peers.iter().enumerate().any(on_one)
}

/// Until no pair is astray and nothing is under way.
fn settle(cluster: &mut Cluster) {
    let deadline = cluster.now + PATIENCE;
    while astray(cluster)
        || !cluster.under_way.is_empty()
        || cluster.nodes.iter().any(|n| n.kem.worn.is_some())
    {
        assert!(cluster.now < deadline, "a pair is left on slot one, or without its keys");
        cluster.second(&Settings::DEFAULT);
    }
}

/// All are asked for new keys at the same moment. The costs, and what there is to tell.
fn rotate(cluster: &mut Cluster) -> (Costs, String) {
    let (began, start) = (Instant::now(), cluster.now);
    (cluster.costs, cluster.asked) = (Costs::default(), true);
    while cluster.nodes.iter().any(|node| node.done.is_none()) {
        assert!(cluster.now < start + PATIENCE, "not done");
        cluster.second(&Settings::DEFAULT);
    }
    let mut done: Vec<u64> = cluster.nodes.iter().filter_map(|node| node.done).map(|at| at - start).collect();
    done.sort_unstable();
    // The pairs drift back afterwards.
    settle(cluster);
    let costs = std::mem::take(&mut cluster.costs);
    let Costs { handshakes, messages, writes, events, moves, letters } = costs;
    let count = cluster.count();
    let told = format!(
        "{count} nodes at once: the first done after {} s, half after {} s, all after {} s, all pairs back after {} s; \
         {writes} API writes, {events} watch events, {handshakes} handshakes, {messages} messages, {letters} letters, {moves} \
         moves of a route (computed in {:.1} s)",
        done[0],
        done[count / 2],
        done[count - 1],
        cluster.now - start,
        began.elapsed().as_secs_f64(),
    );
    for node in &cluster.nodes {
        assert!(node.keys.iter().all(|epoch| *epoch > 2), "{:?}", node.keys);
    }
    let nodes = u64::try_from(count).unwrap();
    assert_eq!(costs.events, costs.writes * nodes);
    assert!(costs.moves >= 2 * nodes * (nodes - 1), "away and back, both ways");
    (costs, told)
}

#[test]
fn a_thousand_nodes_rotate_within_minutes() {
    let mut cluster = Cluster::new(NODES);
    let (costs, told) = rotate(&mut cluster);
    println!("{told}");
    let nodes = u64::try_from(NODES).unwrap();
    // One drains; one is new; zero drains; zero is new. The two in the middle are one where nobody has to be waited for.
    assert!((3 * nodes..=4 * nodes).contains(&costs.writes), "{}", costs.writes);
    assert_eq!(costs.letters, 0);
}

#[test]
fn many_nodes_rotate_and_renew_their_pre_shared_keys_within_minutes() {
    let count = std::env::var("HAWSER_SIMULATED_NODES").map_or(FEWER, |text| text.parse().unwrap());
    let mut cluster = Cluster::new(count);
    cluster.with_psks();
    let (began, start) = (Instant::now(), cluster.now);
    settle(&mut cluster);
    println!(
        "{count} nodes agree on both slots after {} s: {} letters, {} handshakes (computed in {:.1} s)",
        cluster.now - start,
        cluster.costs.letters,
        cluster.costs.handshakes,
        began.elapsed().as_secs_f64(),
    );
    let first = cluster.costs.letters;
    let (costs, told) = rotate(&mut cluster);
    println!("{told}");
    let nodes = u64::try_from(count).unwrap();
    // Two words more: the ML-KEM key is another one after each.
    assert!((3 * nodes..=6 * nodes).contains(&costs.writes), "{}", costs.writes);
    let pairs = nodes * (nodes - 1) / 2;
    for letters in [first, costs.letters] {
        assert!(
            letters >= 2 * 4 * pairs,
            "an exchange of four letters for each slot of each pair: {letters}"
        );
    }
}
