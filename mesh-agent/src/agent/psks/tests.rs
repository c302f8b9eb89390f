//! Two agents with real stores and machines over devices that are maps.

use super::*;
use keyring::Store;
use mesh_core::diff::{ObservedDevice, ObservedPeer};
use mesh_core::pair::Link;
use mesh_core::plan::{Target, plan};
use mesh_core::view::{AnnouncementFact, LocalFacts, PairFacts, Settings};
use tempfile::TempDir;
use tokio::sync::mpsc;

struct Side {
    name: NodeName,
    number: u8,
    keys: LoadedStore,
    psks: Psks,
    observed: Observed,
    current: Slot,
    mail: Vec<Delivery>,
    answers: Vec<oneshot::Receiver<Letter>>,
    /// Nothing can be put there.
    broken: Option<Slot>,
    /// Its loop looks again soon, without being told of anything.
    watches: bool,
    _directory: TempDir,
}

impl Side {
    fn new(name: &str, number: u8) -> Self {
        let directory = TempDir::new().unwrap();
        let name: NodeName = name.parse().unwrap();
        let us = NodeId { node: name.clone(), cluster: "test".parse().unwrap() };
        let keys = Store::open(&directory.path().join("keys")).unwrap().load_or_create_all().unwrap();
        let store = PskStore::open(&directory.path().join("psk"), us.clone()).unwrap();
        let courier = Courier::new(mpsc::channel(1).0);
        let psks = Psks::load(us, Mode::Prefer, store, courier).unwrap();
        let devices = Slot::ALL.map(|slot| (slot, ObservedDevice::default())).into();
        let observed = Observed { devices, ..Observed::default() };
        let (mail, answers, current, broken) = (Vec::new(), Vec::new(), Slot::Zero, None);
        let (watches, _directory) = (false, directory);
        Self { name, number, keys, psks, observed, current, mail, answers, broken, watches, _directory }
    }

    fn facts(&self) -> NodeFacts {
        let announcement = super::super::announcement(&self.keys, None, self.psks.kem());
        NodeFacts {
            pod_cidrs: vec![format!("10.1.{}.0/24", self.number).parse().unwrap()],
            internal_ips: vec![format!("192.0.2.{}", self.number).parse().unwrap()],
            announcement: AnnouncementFact::Valid(announcement),
            ..NodeFacts::default()
        }
    }

    fn entry(&mut self, slot: Slot, other: &PublicKey) -> Option<&mut ObservedPeer> {
        self.observed.devices.get_mut(&slot)?.peers.get_mut(other)
    }

    fn id(&self, slot: Slot, other: &Self) -> Option<PskId> {
        self.psks.machine(&(other.name.clone(), slot))?.record().map(|record| record.id)
    }

    fn is_open(&self, slot: Slot, other: &Self) -> bool {
        let machine = self.psks.machine(&(other.name.clone(), slot));
        machine.is_some_and(|machine| machine.standing() == Standing::Open)
    }
}

/// Evidence says what the machines know, and no secret.
fn told(psks: &Psks, view: &ClusterView, observed: &Observed, name: &NodeName) {
    use base64::Engine as _;
    use mesh_core::evidence::PskState;
    let evidence = psks.evidence(view, observed)[name];
    let text = serde_json::to_string(&evidence).unwrap();
    for slot in Slot::ALL {
        let (machine, said) = (psks.machine(&(name.clone(), slot)).unwrap(), evidence[slot.index()]);
        assert_eq!(said.id, machine.record().map(|record| record.id));
        assert_eq!(said.id.is_some(), said.recorded_at.is_some(), "the file of a key has a time");
        assert_eq!(said.state == PskState::Open, machine.standing() == Standing::Open);
        assert_eq!(
            said.id.is_none(),
            matches!(said.state, PskState::Off | PskState::Waiting | PskState::Overdue)
        );
        if let Some(record) = machine.record() {
            let secret = record.psk.expose();
            let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            let base64 = base64::engine::general_purpose::STANDARD.encode(secret.as_slice());
            assert!(!text.contains(&hex) && !text.contains(&base64), "a secret");
        }
    }
}

/// One turn of `us`, which believes that the other one announces `theirs`. What it says by itself.
fn turn(us: &mut Side, name: &NodeName, theirs: &NodeFacts) -> Vec<Message> {
    for mut answer in std::mem::take(&mut us.answers) {
        if let Ok(letter) = answer.try_recv() {
            us.mail.push(Delivery { from: name.clone(), letter, reply: None });
        }
    }
    let AnnouncementFact::Valid(announced) = &theirs.announcement else { panic!("a valid one") };
    let link = |slot: Slot| {
        let peer = us.observed.devices[&slot].peers.get(&announced.slot(slot).public_key);
        let handshake_age = peer.and_then(|peer| peer.handshake_age);
        Link { keys_for: peer.map(|_| Duration::MAX), handshake_age, unanswered_for: None, ready: true }
    };
    let facts = PairFacts { current: Some(us.current), links: Slot::ALL.map(link), ..PairFacts::default() };
    let own = us.facts();
    let AnnouncementFact::Valid(announcement) = own.announcement.clone() else { panic!("a valid one") };
    let mut view = ClusterView {
        settings: Settings { pod_cidrs: vec!["10.1.0.0/16".parse().unwrap()], ..Settings::default() },
        local: LocalFacts {
            name: us.name.clone(),
            cluster: "test".parse().unwrap(),
            announcement,
            uplink_mtu: Some(1500),
            host: Default::default(),
        },
        nodes: [(us.name.clone(), own), (name.clone(), theirs.clone())].into(),
        attachments: BTreeMap::new(),
        synced: true,
        pairs: [(name.clone(), facts)].into(),
    };
    let mail = std::mem::take(&mut us.mail);
    us.psks.turn(&mut view, &us.observed, &us.keys, mail);
    let (desired, _) = plan(&view);
    us.watches = us.psks.watches(&view, &us.observed);
    told(&us.psks, &view, &us.observed, name);
    let mut unput = BTreeSet::new();
    for (slot, device) in &desired.devices {
        let observed = us.observed.devices.get_mut(slot).unwrap();
        observed.peers.retain(|key, _| device.peers.contains_key(key));
        for (key, peer) in &device.peers {
            let there = observed.peers.get(key).is_some_and(|there| there.psk == peer.psk);
            if !there && us.broken == Some(*slot) {
                unput.insert((*slot, *key));
            } else if !there {
                observed.peers.insert(*key, ObservedPeer { psk: peer.psk, ..ObservedPeer::default() });
            }
        }
    }
    let way =
        |target: &Target| matches!(target, Target::Device { device, .. } if device == Slot::One.device());
    us.current = if desired.routes.iter().any(|route| way(&route.target)) { Slot::One } else { Slot::Zero };
    let mut said = Vec::new();
    for ((_, slot), message, reply) in us.psks.sayable(&view, &us.observed, &unput) {
        // The heart of it: nobody is told of a key that is not on its device.
        if let Message::Confirm { .. } | Message::Confirmed { .. } = message {
            let there = us.observed.devices[&slot].peers.get(&announced.slot(slot).public_key);
            let key = us.psks.machine(&(name.clone(), slot)).unwrap().record().map(|record| record.id);
            assert_eq!(there.and_then(|there| there.psk), key, "{} says {message:?}", us.name);
        }
        match reply {
            Some(reply) => drop(reply.send(Letter { mode: Mode::Prefer, message: Some(message) })),
            None => said.push(message),
        }
    }
    said
}

/// Both turn, and shake hands on each slot where they have the same key or none.
fn round(a: &mut Side, b: &mut Side, of_b: &NodeFacts) {
    let of_a = a.facts();
    let (name_a, name_b) = (a.name.clone(), b.name.clone());
    for from_a in [true, false] {
        let (us, other, name, theirs) =
            if from_a { (&mut *a, &mut *b, &name_b, of_b) } else { (&mut *b, &mut *a, &name_a, &of_a) };
        for message in turn(us, name, theirs) {
            let (reply, answer) = oneshot::channel();
            us.answers.push(answer);
            let letter = Letter { mode: Mode::Prefer, message: Some(message) };
            other.mail.push(Delivery { from: us.name.clone(), letter, reply: Some(reply) });
        }
    }
    for slot in Slot::ALL {
        let (key_a, key_b) = (a.keys.slot(slot).public(), b.keys.slot(slot).public());
        if let (Some(at_a), Some(at_b)) = (a.entry(slot, &key_b), b.entry(slot, &key_a))
            && at_a.psk == at_b.psk
        {
            (at_a.handshake_age, at_b.handshake_age) = (Some(Duration::ZERO), Some(Duration::ZERO));
        }
    }
}

/// Rounds until both have seen each slot's key at work. Repetitions come by the clock.
fn agree(a: &mut Side, b: &mut Side) {
    let begun = Instant::now();
    while !Slot::ALL.iter().all(|slot| a.is_open(*slot, b) && b.is_open(*slot, a)) {
        assert!(begun.elapsed() < Duration::from_secs(30), "no agreement");
        let of_b = b.facts();
        round(a, b, &of_b);
        std::thread::yield_now();
    }
    for slot in Slot::ALL {
        assert!(a.id(slot, b).is_some() && a.id(slot, b) == b.id(slot, a), "{slot}");
    }
}

#[test]
fn two_agents_agree_for_both_slots_and_end_where_they_began() {
    let (mut a, mut b) = (Side::new("a", 1), Side::new("b", 2));
    agree(&mut a, &mut b);
    let of_b = b.facts();
    for _ in 0..4 {
        round(&mut a, &mut b, &of_b);
    }
    assert_eq!((a.current, b.current), (Slot::Zero, Slot::Zero));
    assert_ne!(a.id(Slot::Zero, &b), a.id(Slot::One, &b));
}

#[test]
fn who_waits_for_a_handshake_looks_again_by_itself_until_all_is_agreed() {
    let (mut a, mut b) = (Side::new("a", 1), Side::new("b", 2));
    let (of_a, of_b) = (a.facts(), b.facts());
    let (name_a, name_b) = (a.name.clone(), b.name.clone());
    // Nobody has anything to say before the first handshake, and nobody is told of it.
    assert_eq!((turn(&mut a, &name_b, &of_b), a.psks.due()), (vec![], None));
    assert_eq!((turn(&mut b, &name_a, &of_a), b.psks.due()), (vec![], None));
    assert!(a.watches && b.watches);
    agree(&mut a, &mut b);
    round(&mut a, &mut b, &of_b);
    assert!(!a.watches && !b.watches);
}

#[test]
fn nobody_is_told_of_a_key_that_a_device_has_not_taken() {
    for who in [true, false] {
        let (mut a, mut b) = (Side::new("a", 1), Side::new("b", 2));
        let of_b = b.facts();
        round(&mut a, &mut b, &of_b);
        let broken = if who { &mut a } else { &mut b };
        broken.broken = Some(Slot::One);
        // Longer than the first repetitions take.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            round(&mut a, &mut b, &of_b);
            std::thread::yield_now();
        }
        assert!(!a.is_open(Slot::One, &b) && !b.is_open(Slot::One, &a), "agreed over a broken device");
        (a.broken, b.broken) = (None, None);
        agree(&mut a, &mut b);
    }
}

#[test]
fn what_both_had_agreed_outlives_a_false_announcement_and_an_absence() {
    let (mut a, mut b) = (Side::new("a", 1), Side::new("b", 2));
    agree(&mut a, &mut b);
    let before = Slot::ALL.map(|slot| a.id(slot, &b));
    let (of_a, of_b) = (a.facts(), b.facts());
    let mut false_b = of_b.clone();
    if let AnnouncementFact::Valid(announced) = &mut false_b.announcement {
        announced.slots.iter_mut().for_each(|slot| slot.epoch.0 += 10);
    }
    let absent = NodeFacts { announcement: AnnouncementFact::Missing, ..of_b.clone() };
    let (name_a, name_b) = (a.name.clone(), b.name.clone());
    turn(&mut a, &name_b, &false_b);
    turn(&mut b, &name_a, &of_a);
    assert_eq!(Slot::ALL.map(|slot| a.id(slot, &b)), [None, None], "a believes it");
    turn(&mut a, &name_b, &of_b);
    assert_eq!(Slot::ALL.map(|slot| a.id(slot, &b)), before);
    let peers = BTreeSet::new();
    let mut view_of_nobody = ClusterView {
        settings: Settings::default(),
        local: LocalFacts {
            name: name_a,
            cluster: "test".parse().unwrap(),
            announcement: super::super::announcement(&a.keys, None, (None, false)),
            uplink_mtu: None,
            host: Default::default(),
        },
        nodes: [(name_b.clone(), absent)].into(),
        attachments: BTreeMap::new(),
        synced: true,
        pairs: BTreeMap::new(),
    };
    a.psks.part(&view_of_nobody, &peers);
    view_of_nobody.nodes.clear();
    a.psks.part(&view_of_nobody, &peers);
    assert!(a.psks.machines().next().is_none());
    turn(&mut a, &name_b, &of_b);
    assert_eq!(Slot::ALL.map(|slot| a.id(slot, &b)), before);
}

#[test]
fn letters_go_the_way_that_looking_through_all_addresses_finds() {
    let read = |text: &str| -> Vec<IpAddr> {
        text.split_whitespace().map(|address| address.parse().unwrap()).collect()
    };
    let all = read("10.1.1.1 10.1.2.1 fd01:0:0:1::1 fd01:0:0:2::1");
    let names: [NodeName; 2] = ["b", "c"].map(|name| name.parse().unwrap());
    for ours in ["", "10.1.9.1", "fd01:0:0:9::1", "10.1.9.1 fd01:0:0:9::1"] {
        let mesh: BTreeSet<IpAddr> = read(ours).into_iter().collect();
        // Each of the four is that of one of the two, or nobody's.
        for number in 0_usize..81 {
            let owned = |(at, weight): (&IpAddr, usize)| {
                let owner = names.get(number / weight % 3)?;
                Some((*at, owner.clone()))
            };
            let peers: BTreeMap<IpAddr, NodeName> = all.iter().zip([1, 3, 9, 27]).filter_map(owned).collect();
            let found = ways(&mesh, &peers);
            for name in &names {
                let theirs = peers.iter().filter(|(_, of)| *of == name).map(|(at, _)| *at);
                let mut each = theirs.filter_map(|at| {
                    let from = mesh.iter().find(|from| mesh_core::prefix::same_family(**from, at))?;
                    Some((*from, at))
                });
                assert_eq!(found.get(name).copied(), each.next(), "{ours}: {peers:?}");
            }
        }
    }
}
