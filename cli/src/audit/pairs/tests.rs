use super::super::fixture::{NOW, evidence};
use super::*;
use mesh_core::announcement::Epoch;
use mesh_core::evidence::Entry;
use mesh_core::key::PublicKey;
use mesh_core::psk::PskId;
use proptest::prelude::*;

type Break = fn(&mut NodeEvidence);

fn other(node: &NodeEvidence) -> NodeName {
    node.peers.keys().next().unwrap().clone()
}

/// What the node says of the other one.
fn said(node: &mut NodeEvidence) -> &mut PeerEvidence {
    let other = other(node);
    node.peers.get_mut(&other).unwrap()
}

fn entry(node: &mut NodeEvidence) -> &mut Entry {
    said(node).slots[0].entry.as_mut().unwrap()
}

/// Judges two nodes of which the first was broken; every case both ways round, since a pair has no first side.
fn check(what: &str, broken: Break, state: PairState, post_quantum: PostQuantum, codes: &[&str]) {
    for side in [0, 1] {
        let mut both = [evidence(1, 2), evidence(2, 2)];
        broken(&mut both[side]);
        let pair = judge(&both[0], &both[1]);
        let found: Vec<&str> = pair.faults.iter().map(|fault| fault.code.as_str()).collect();
        assert_eq!((pair.state, pair.post_quantum), (state, post_quantum), "{what}: {:?}", pair.faults);
        assert_eq!(found, codes, "{what}, side {side}");
    }
}

#[test]
fn each_way_in_which_one_side_can_disagree_has_its_verdict() {
    use PairState::{Fails, Holds, Idle};
    use PostQuantum as P;
    check("healthy", |_| {}, Holds, P::Holds, &[]);
    check("unknown peer", |n| n.peers.clear(), Fails, P::Fails, &["pair-not-a-peer"]);
    check("no route", |n| said(n).sends_by = None, Fails, P::Fails, &["pair-without-route"]);
    check("another slot", |n| said(n).sends_by = Some(Slot::One), Fails, P::Fails, &["pair-slots-differ"]);
    check("another epoch", |n| said(n).slots[0].epoch = Epoch(99), Fails, P::Holds, &["pair-keys-differ"]);
    check(
        "another epoch of the idle slot",
        |n| said(n).slots[1].epoch = Epoch(99),
        Fails,
        P::Holds,
        &["pair-keys-differ"],
    );
    check(
        "another key",
        |n| said(n).slots[0].key = PublicKey::from_bytes([77; 32]),
        Fails,
        P::Holds,
        &["pair-keys-differ"],
    );
    check("device without key", |n| n.slots[0].device_key = None, Fails, P::Holds, &["pair-device-key"]);
    check("no handshake", |n| entry(n).handshake_at = None, Fails, P::Holds, &["pair-without-handshake"]);
    check("old handshake", |n| entry(n).confirmed = false, Fails, P::Holds, &["pair-old-handshake"]);
    check("no answer", |n| entry(n).unanswered = Some(15), Fails, P::Holds, &["pair-unanswered"]);
    check("an answer is still due", |n| entry(n).unanswered = Some(14), Holds, P::Holds, &[]);
    check("idle", |n| entry(n).handshake_at = Some(NOW - 180), Idle, P::Holds, &[]);
    check("nearly idle", |n| entry(n).handshake_at = Some(NOW - 179), Holds, P::Holds, &[]);
    check(
        "idle slot without handshake",
        |n| said(n).slots[1].entry.as_mut().unwrap().handshake_at = None,
        Holds,
        P::Holds,
        &[],
    );
    check(
        "no entry",
        |n| said(n).slots[0].entry = None,
        Fails,
        P::Fails,
        &["pair-without-entry", "psk-differs"],
    );
    check("device without psk", |n| entry(n).psk = None, Holds, P::Fails, &["psk-differs"]);
    check(
        "device with another psk",
        |n| entry(n).psk = Some(PskId([3; 16])),
        Holds,
        P::Fails,
        &["psk-differs"],
    );
    check(
        "record of another psk",
        |n| said(n).slots[0].psk.id = Some(PskId([3; 16])),
        Holds,
        P::Fails,
        &["psk-differs"],
    );
    check("waiting", |n| said(n).slots[0].psk.state = PskState::Waiting, Holds, P::Fails, &["psk-missing"]);
    check(
        "one side has not seen it",
        |n| said(n).slots[0].psk.state = PskState::Proven,
        Holds,
        P::Fails,
        &["psk-missing"],
    );
    check("idle slot waits", |n| said(n).slots[1].psk.state = PskState::Waiting, Holds, P::Holds, &[]);
    check(
        "idle slot overdue",
        |n| said(n).slots[1].psk.state = PskState::Overdue,
        Holds,
        P::Fails,
        &["psk-overdue"],
    );
    check("lost", |n| said(n).slots[0].psk.state = PskState::Lost, Holds, P::Fails, &["psk-overdue"]);
}

/// Takes the pre-shared keys away.
fn bare(node: &mut NodeEvidence) {
    for slot in &mut said(node).slots {
        slot.psk = mesh_core::evidence::PskEvidence::default();
        slot.entry.as_mut().unwrap().psk = None;
    }
}

#[test]
fn where_one_side_takes_no_part_there_is_no_key_to_miss() {
    let judged = |modes: [Mode; 2]| {
        let mut both = [evidence(1, 2), evidence(2, 2)];
        for (node, mode) in both.iter_mut().zip(modes) {
            node.settings.post_quantum = mode;
            bare(node);
        }
        let pair = judge(&both[0], &both[1]);
        assert_eq!(pair.state, PairState::Holds);
        pair.post_quantum
    };
    assert_eq!(judged([Mode::Off, Mode::Off]), PostQuantum::Off);
    assert_eq!(judged([Mode::Off, Mode::Prefer]), PostQuantum::Off);
    assert_eq!(judged([Mode::Prefer, Mode::Prefer]), PostQuantum::Fails);
    assert_eq!(judged([Mode::Off, Mode::Require]), PostQuantum::Fails);
}

/// What the whole rests on, said once more without a step in common: both list the other, by one slot, with its own keys on
/// its device, a confirmed handshake and nothing unanswered.
fn both_say_so(a: &NodeEvidence, b: &NodeEvidence) -> bool {
    [(a, b), (b, a)].iter().all(|(us, them)| {
        us.peers.get(&them.node).zip(them.peers.get(&us.node)).is_some_and(|(ours, theirs)| {
            let keys = (0..2).all(|n| {
                ours.slots[n].key == them.slots[n].key
                    && ours.slots[n].epoch == them.slots[n].epoch
                    && us.slots[n].device_key.is_some_and(|key| key == us.slots[n].key)
            });
            let session = ours.sends_by.is_some_and(|slot| {
                ours.slots[slot.index()].entry.as_ref().is_some_and(|entry| {
                    entry.confirmed
                        && entry.unanswered.unwrap_or(0) < 15
                        && entry.handshake_at.is_some_and(|at| at + 180 > us.at)
                })
            });
            keys && session && ours.sends_by == theirs.sends_by
        })
    })
}

#[derive(Clone, Debug)]
struct Change {
    side: usize,
    slot: usize,
    what: u8,
    small: u64,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = (0..2_usize, 0..2_usize, 0..10_u8, 0..400_u64);
    let change = change.prop_map(|(side, slot, what, small)| Change { side, slot, what, small });
    prop::collection::vec(change, 0..4)
}

fn apply(node: &mut NodeEvidence, Change { slot, what, small, .. }: &Change) {
    if node.peers.is_empty() {
        return;
    }
    let (slot, small) = (*slot, *small);
    match what {
        0 => {
            said(node).sends_by = [None, Some(Slot::Zero), Some(Slot::One)]
                [usize::from(small % 3 > 0) + slot * usize::from(small % 3 > 1)]
        }
        1 => said(node).slots[slot].epoch = Epoch(small),
        2 => node.slots[slot].device_key = (small % 2 == 0).then_some(node.slots[slot].key),
        3 => said(node).slots[slot].entry = None,
        4 => node.peers.clear(),
        _ => {
            let Some(entry) = &mut said(node).slots[slot].entry else { return };
            match what {
                5 => entry.handshake_at = (small > 50).then_some(NOW - small),
                6 => entry.confirmed = small % 2 == 0,
                7 => entry.unanswered = Some(small % 30),
                8 => entry.psk = None,
                _ => said(node).slots[slot].psk.state = PskState::Waiting,
            }
        }
    }
}

proptest! {
    #[test]
    fn a_pair_holds_if_and_only_if_both_sides_say_so(changes in changes()) {
        let mut both = [evidence(1, 2), evidence(2, 2)];
        for change in &changes {
            apply(&mut both[change.side], change);
        }
        let pair = judge(&both[0], &both[1]);
        prop_assert_eq!(pair.state == PairState::Holds, both_say_so(&both[0], &both[1]), "{:?}", pair.faults);
        if pair.post_quantum == PostQuantum::Holds {
            let slot = pair.slot.unwrap().index();
            let keys = both.each_mut().map(|node| said(node).slots[slot].entry.as_ref().unwrap().psk);
            prop_assert!(keys[0].is_some() && keys[0] == keys[1]);
        }
    }
}

#[test]
fn a_pair_tells_the_age_of_both_keys_and_what_goes_between_them_in_clear() {
    use mesh_core::host::HostPath;
    let mut both = [evidence(1, 2), evidence(2, 2)];
    for (side, age) in both.iter_mut().zip([60, 7200]) {
        side.slots[0].made_at = Some(side.at - age);
        side.exemptions.host_tcp_ports = [6443].into();
    }
    both[1].exemptions.host_tcp_ports.insert(2379);
    for (paths, exempt) in [
        ([HostPath::Plain; 2], vec!["what the nodes send each other themselves"]),
        ([HostPath::Tunnel, HostPath::Waiting], vec!["what the nodes send each other themselves"]),
        ([HostPath::Tunnel, HostPath::Cut], vec!["TCP port 2379 of the nodes", "TCP port 6443 of the nodes"]),
    ] {
        for (side, path) in both.iter_mut().zip(paths) {
            said(side).host_path = path;
        }
        let pair = judge(&both[0], &both[1]);
        assert_eq!(
            pair.exempt.as_ref().map_or(vec![], |all| all.iter().map(String::as_str).collect()),
            exempt,
            "{paths:?}"
        );
        let ages: Vec<_> = pair.keys.iter().map(|key| (key.node.as_str(), key.age_seconds)).collect();
        assert_eq!(ages, [(both[0].node.as_str(), Some(60)), (both[1].node.as_str(), Some(7200))]);
    }
}

/// What follows for a node, and the other one as if it were of a joined cluster.
fn by_one_side(node: &NodeEvidence) -> Judged {
    weigh_alone(node, &NodeName::read("gw@east").unwrap(), &node.peers[&other(node)])
}

/// The same as [`check`] with one side alone.
fn alone(what: &str, broken: Break, state: PairState, post_quantum: PostQuantum, codes: &[&str]) {
    let mut node = evidence(1, 2);
    broken(&mut node);
    let judged = by_one_side(&node);
    let found: Vec<&str> = judged.faults.iter().map(Fault::code).collect();
    assert_eq!((judged.state, judged.post_quantum), (state, post_quantum), "{what}: {:?}", judged.faults);
    assert_eq!(found, codes, "{what}");
    assert!(judged.faults.iter().all(|fault| !fault.to_string().contains("node-2")), "{what}");
}

#[test]
fn of_a_pair_with_a_joined_cluster_each_thing_that_one_side_sees_has_its_verdict() {
    use PairState::{Fails, Holds, Idle};
    use PostQuantum as P;
    alone("healthy", |_| {}, Holds, P::Holds, &[]);
    alone("no route", |n| said(n).sends_by = None, Fails, P::Fails, &["pair-without-route"]);
    alone("device without key", |n| n.slots[0].device_key = None, Fails, P::Holds, &["pair-device-key"]);
    alone("no handshake", |n| entry(n).handshake_at = None, Fails, P::Holds, &["pair-without-handshake"]);
    alone("old handshake", |n| entry(n).confirmed = false, Fails, P::Holds, &["pair-old-handshake"]);
    alone("no answer", |n| entry(n).unanswered = Some(15), Fails, P::Holds, &["pair-unanswered"]);
    alone("idle", |n| entry(n).handshake_at = Some(NOW - 180), Idle, P::Holds, &[]);
    alone(
        "no entry",
        |n| said(n).slots[0].entry = None,
        Fails,
        P::Fails,
        &["pair-without-entry", "psk-differs"],
    );
    alone(
        "device with another psk",
        |n| entry(n).psk = Some(PskId([3; 16])),
        Holds,
        P::Fails,
        &["psk-differs"],
    );
    alone("waiting", |n| said(n).slots[0].psk.state = PskState::Waiting, Holds, P::Fails, &["psk-missing"]);
    alone("idle slot waits", |n| said(n).slots[1].psk.state = PskState::Waiting, Holds, P::Holds, &[]);
    alone("lost", |n| said(n).slots[1].psk.state = PskState::Lost, Holds, P::Fails, &["psk-overdue"]);
    // What the other side wants is what it said, and until it has said something what the agent goes by.
    let without = |ours: Mode, theirs: Option<Mode>| {
        let mut node = evidence(1, 2);
        bare(&mut node);
        node.settings.post_quantum = ours;
        said(&mut node).mode = theirs;
        by_one_side(&node).post_quantum
    };
    assert_eq!(without(Mode::Prefer, Some(Mode::Off)), P::Off);
    assert_eq!(without(Mode::Prefer, None), P::Off);
    assert_eq!(without(Mode::Prefer, Some(Mode::Prefer)), P::Fails);
    assert_eq!(without(Mode::Require, None), P::Fails);
    assert_eq!(without(Mode::Require, Some(Mode::Off)), P::Fails);
}
