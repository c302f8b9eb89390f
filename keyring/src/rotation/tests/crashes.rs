//! One node with real key files and peers that hear of things late, while its agent crashes between any two effects.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::{LoadedStore, Store};

#[derive(Clone, Debug)]
enum Op {
    /// So many seconds pass, with a turn in each.
    Run(u8),
    /// A turn in which the agent crashes after so many things.
    Crash(u8),
    /// The API goes or comes.
    Api(bool),
    /// A peer's agent hears what the API has.
    Hear(usize),
    /// A peer answers, or not.
    Answer(usize, bool),
    /// A device is lost; the next turn programs it.
    Lose(bool),
    /// Somebody asks.
    Ask(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (1..20u8).prop_map(Op::Run),
        4 => (0..8u8).prop_map(Op::Crash),
        1 => any::<bool>().prop_map(Op::Api),
        2 => (0..PEERS).prop_map(Op::Hear),
        1 => (0..PEERS, any::<bool>()).prop_map(|(peer, answers)| Op::Answer(peer, answers)),
        1 => any::<bool>().prop_map(Op::Lose),
        1 => (0..5u8).prop_map(Op::Ask),
    ];
    proptest::collection::vec(op, 1..40)
}

const PEERS: usize = 3;

struct Peer {
    name: NodeName,
    /// Where it sends to us.
    route: Slot,
    answers: bool,
    answered: Option<(Slot, Duration)>,
}

struct Site {
    dir: TempDir,
    store: Option<LoadedStore>,
    machine: Machine,
    document: String,
    devices: [Option<PublicKey>; 2],
    api: Option<Announcement>,
    reachable: bool,
    peers: Vec<Peer>,
    request: Option<String>,
    /// The agent's clock, and since when each slot is silent by it.
    uptime: Duration,
    noise: [Duration; 2],
    accepted: Option<Duration>,
    /// Every key that was ever in use, and every one that was recorded as gone.
    keys: BTreeSet<String>,
    gone: BTreeSet<String>,
}

impl Site {
    fn new() -> Self {
        let peer = |index: usize| Peer {
            name: name(&format!("peer-{index}")),
            route: ZERO,
            answers: true,
            answered: None,
        };
        Self {
            dir: TempDir::with_prefix("hawser-rotation-").unwrap(),
            store: None,
            machine: Machine::default(),
            document: State::default().encode(),
            devices: [None; 2],
            api: None,
            reachable: true,
            peers: (0..PEERS).map(peer).collect(),
            request: None,
            uptime: Duration::ZERO,
            noise: [Duration::ZERO; 2],
            accepted: None,
            keys: BTreeSet::new(),
            gone: BTreeSet::new(),
        }
    }

    fn crash(&mut self) {
        self.store = None;
        (self.uptime, self.noise, self.accepted) = (Duration::ZERO, [Duration::ZERO; 2], None);
        self.peers.iter_mut().for_each(|peer| peer.answered = None);
    }

    fn announcement(&self, store: &LoadedStore) -> Announcement {
        let slot = |slot: Slot| SlotAnnouncement {
            epoch: store.slot(slot).epoch,
            public_key: store.slot(slot).public(),
            port: 1,
            draining: self.machine.draining() == Some(slot),
        };
        Announcement {
            slots: Slot::ALL.map(slot),
            endpoints: vec![],
            kem: None,
            kem_required: false,
            host_traffic: false,
        }
    }

    fn drained(&self) -> Option<Slot> {
        self.api.as_ref().and_then(mesh_core::slot::drained)
    }

    fn step(&self, store: &LoadedStore) -> Step {
        let slots = Slot::ALL.map(|slot| SlotFacts {
            epoch: store.slot(slot).epoch,
            public: store.slot(slot).public(),
            made: store.made(slot),
            staged: store.staged(slot).map(crate::SlotKey::public),
            device: self.devices[slot.index()],
            quiet_for: self.uptime - self.noise[slot.index()],
        });
        let target = self.drained().map_or(ZERO, Slot::other);
        let peers: Vec<PeerFacts<'_>> = self
            .peers
            .iter()
            .map(|peer| PeerFacts {
                name: &peer.name,
                smaller: peer.name < name("m"),
                drained: None,
                target,
                sending: Some(target),
                answered: peer.answered.map(|(slot, at)| (slot, self.uptime - at)),
                handshake_age: [None; 2],
                doubted_for: None,
                unheard_for: None,
            })
            .collect();
        let node = name("m");
        let observed = Observed {
            node: &node,
            slots,
            announced: self.api.as_ref(),
            synced: true,
            peers: &peers,
            request: self.request.as_deref(),
            successor: false,
        };
        self.machine.step(&SETTINGS, &observed, Now { uptime: self.uptime, unix: 0 })
    }

    /// A turn, a second long. Says whether the agent crashed.
    fn turn(&mut self, mut fuel: Option<u8>) -> bool {
        let mut burnt = move || match fuel.as_mut() {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        let mut store = match self.store.take() {
            Some(store) => store,
            None => {
                self.machine = Machine::resume(State::decode(&self.document).unwrap());
                Store::open(&self.dir.path().join("keys")).unwrap().load_or_create_all().unwrap()
            }
        };
        self.uptime += Duration::from_secs(1);
        for peer in &self.peers {
            self.noise[peer.route.index()] = self.uptime;
        }
        loop {
            self.keys.extend(store.slots().map(|key| Fingerprint::of(&key.public()).to_string()));
            if self.drained().is_none() || self.drained() != self.machine.draining() {
                self.accepted = None;
            } else if self.accepted.is_none() {
                self.accepted = Some(self.uptime);
            }
            let step = self.step(&store);
            let rests = step.effects.iter().all(|effect| matches!(effect, Effect::Ask { .. }));
            for effect in step.effects {
                if burnt() {
                    return true;
                }
                self.act(&mut store, effect, &step.next);
            }
            self.machine = step.next;
            if rests {
                break;
            }
        }
        for slot in Slot::ALL {
            if burnt() {
                return true;
            }
            self.devices[slot.index()] = Some(store.slot(slot).public());
        }
        let wanted = self.announcement(&store);
        if self.reachable && !burnt() {
            self.api = Some(wanted);
        }
        self.store = Some(store);
        false
    }

    fn act(&mut self, store: &mut LoadedStore, effect: Effect, next: &Machine) {
        match effect {
            Effect::Persist => self.document = next.state().encode(),
            Effect::Stage { slot } => drop(store.stage(slot).unwrap()),
            Effect::Install { slot } => {
                let late = self.accepted.is_some_and(|at| self.uptime - at >= DEADLINE);
                assert_eq!(self.drained(), Some(slot), "not before it was accepted");
                assert!(late || self.peers.iter().all(|peer| peer.route != slot), "a peer is still there");
                assert!(self.devices[slot.other().index()].is_some(), "nothing else to talk by");
                self.devices[slot.index()] = store.staged(slot).map(crate::SlotKey::public);
            }
            Effect::Commit { slot } => {
                let staged = store.staged(slot).map(crate::SlotKey::public);
                assert_eq!(self.devices[slot.index()], staged, "the device first");
                assert!(store.commit(slot).unwrap().is_some_and(|replaced| replaced.not_wiped.is_none()));
            }
            Effect::Ask { peers } => {
                for peer in self.peers.iter_mut().filter(|peer| peer.answers && peers.contains(&peer.name)) {
                    peer.answered = Some((peer.route, self.uptime));
                }
            }
            Effect::Destroyed(record) => {
                assert_ne!(
                    self.devices[record.slot.index()].map(|key| Fingerprint::of(&key)),
                    Some(record.old.fingerprint)
                );
                assert!(record.verdict.is_some(), "judged by this agent");
                self.gone.insert(record.old.fingerprint.to_string());
            }
            Effect::Overdue(_) => {}
        }
    }

    fn hear(&mut self, peer: usize) {
        self.peers[peer].route = self.drained().map_or(ZERO, Slot::other);
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Run(seconds) => {
                for _ in 0..seconds {
                    self.turn(None);
                }
            }
            Op::Crash(fuel) => {
                if self.turn(Some(fuel)) {
                    self.crash();
                }
            }
            Op::Api(reachable) => self.reachable = reachable,
            Op::Hear(peer) => self.hear(peer),
            Op::Answer(peer, answers) => self.peers[peer].answers = answers,
            Op::Lose(one) => self.devices[usize::from(one)] = None,
            Op::Ask(request) => self.request = Some(request.to_string()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn wherever_its_agent_crashes_a_rotation_ends_in_the_same_place(ops in ops()) {
        let mut site = Site::new();
        site.turn(None);
        site.request = Some("first".to_owned());
        for op in ops {
            site.run(op);
        }
        site.reachable = true;
        site.peers.iter_mut().for_each(|peer| peer.answers = true);
        for _ in 0..200 {
            site.turn(None);
            (0..PEERS).for_each(|peer| site.hear(peer));
        }
        let state = site.machine.state();
        prop_assert_eq!(&state.rotation, &None);
        prop_assert_eq!(state.done.as_ref().map(Request::as_str), site.request.as_deref());
        prop_assert_eq!(State::decode(&site.document).unwrap(), state.clone());
        let store = site.store.as_ref().unwrap();
        prop_assert!(store.slots().iter().all(|key| key.epoch > Epoch(2)), "both are new");
        prop_assert_eq!(site.api.as_ref(), Some(&site.announcement(store)));
        prop_assert_eq!(site.devices, store.slots().map(|key| Some(key.public())));
        let now: BTreeSet<String> = store.slots().map(|key| Fingerprint::of(&key.public()).to_string()).into();
        let gone: BTreeSet<String> = site.keys.difference(&now).cloned().collect();
        prop_assert_eq!(&site.gone, &gone, "every key that is gone is recorded, and no other");
    }
}
