use super::*;
use AllowedScope::{All, MeshOnly};
use Mode::{Off, Prefer, Require};
use Standing::{Answered, Lost, Open, Plain, Proven, Unproven, Untried};

const MODES: [Mode; 3] = [Off, Prefer, Require];
const STANDINGS: [Standing; 7] = [Untried, Plain, Answered, Lost, Unproven, Proven, Open];

/// Every (us, them, this slot, other slot, sending here?) with its verdict on slot zero.
fn all() -> impl Iterator<Item = ((Mode, Mode), Standing, Standing, bool, Verdict)> {
    let modes = MODES.into_iter().flat_map(|us| MODES.map(|them| (us, them)));
    let standings = || STANDINGS.into_iter().flat_map(|this| STANDINGS.map(|other| (this, other)));
    modes.flat_map(move |modes| {
        standings().flat_map(move |(this, other)| {
            [Slot::Zero, Slot::One].map(|sending| {
                let found = verdict(modes.0, modes.1, Slot::Zero, sending, [this, other]);
                (modes, this, other, sending == Slot::Zero, found)
            })
        })
    })
}

#[test]
fn what_two_modes_amount_to_is_the_same_on_both_sides() {
    let table = [
        (Off, Off, Effective::Off),
        (Off, Prefer, Effective::Off),
        (Off, Require, Effective::Conflict),
        (Prefer, Prefer, Effective::Prefer),
        (Prefer, Require, Effective::Require),
        (Require, Require, Effective::Require),
    ];
    for (a, b, effective) in table {
        assert_eq!((Effective::of(a, b), Effective::of(b, a)), (effective, effective), "{a} {b}");
        assert_eq!(effective.agrees(), a != Off && b != Off, "{a} {b}");
    }
}

#[test]
fn who_requires_lets_pods_talk_only_after_both_saw_a_handshake_with_the_key() {
    for ((us, them), this, other, _, found) in all() {
        let insists = us == Require || them == Require;
        let expect = if insists && this != Open { MeshOnly } else { All };
        assert_eq!(found.scope, expect, "{us} {them} {this:?} {other:?}");
        assert!(!(found.usable() && insists && this != Open), "{us} {them} {this:?} {other:?}");
    }
}

#[test]
fn who_does_not_require_lets_pods_talk_on_what_is_known_to_work() {
    for ((us, them), this, _, _, found) in all() {
        if us != Require && them != Require {
            assert_eq!(found.usable(), matches!(this, Plain | Proven | Open), "{us} {them} {this:?}");
        }
    }
}

#[test]
fn a_slot_on_which_the_two_sides_may_hold_different_keys_carries_nothing() {
    use Carry::{No, Psk};
    let carries = [Carry::Untried, Carry::Plain, No, No, No, Psk, Psk];
    for (standing, carry) in STANDINGS.into_iter().zip(carries) {
        assert_eq!(standing.carry(), carry, "{standing:?}");
    }
}

#[test]
fn a_placeholder_is_only_where_the_other_slot_is_proved_and_nobody_sends() {
    for ((us, them), this, other, sending, found) in all() {
        let both = us != Off && them != Off && (us == Require || them == Require);
        let expect =
            both && matches!(this, Untried | Plain | Answered) && matches!(other, Proven | Open) && !sending;
        assert_eq!(found.placeholder, expect, "{us} {them} {this:?} {other:?} {sending}");
        assert!(!(found.placeholder && found.carry != Carry::No));
    }
}

#[test]
fn a_slot_never_has_a_placeholder_while_the_other_one_has() {
    for ((us, them), this, other, _, _) in all() {
        for sending in Slot::ALL {
            let both = Slot::ALL.map(|slot| verdict(us, them, slot, sending, [this, other]).placeholder);
            assert_ne!(both, [true; 2], "{us} {them} {this:?} {other:?}");
        }
    }
}

#[test]
fn a_conflict_names_both_nodes_and_what_to_set_the_same_on_both_sides() {
    let id = |node: &str| NodeId { node: node.parse().unwrap(), cluster: "east".parse().unwrap() };
    let (a, b) = (id("n1"), id("n2"));
    let conflict = ModeConflict::of((&a, Require), (&b, Off)).unwrap();
    assert_eq!(Some(&conflict), ModeConflict::of((&b, Off), (&a, Require)).as_ref());
    assert_eq!(
        conflict.to_string(),
        "node n1 of cluster east: post-quantum mode require, but node n2 of cluster east has off; no pod traffic between them but with the pre-shared keys that they still share. Set prefer or require on n2 of cluster east, or prefer on n1 of cluster east"
    );
    for us in MODES {
        for them in MODES {
            let expect = Effective::of(us, them) == Effective::Conflict;
            assert_eq!(ModeConflict::of((&a, us), (&b, them)).is_some(), expect, "{us} {them}");
        }
    }
}

#[test]
fn what_one_side_sends_with_the_key_the_other_takes() {
    // Who knows that both have seen the key at work sends; the other one has seen it, whether it knows of the first or not.
    for ((us, them), this, other, sending, found) in all() {
        let expect =
            if (us == Require || them == Require) && !matches!(this, Proven | Open) { MeshOnly } else { All };
        assert_eq!(found.accept, expect, "{us} {them} {this:?} {other:?} {sending}");
        assert!(found.scope == MeshOnly || found.accept == All, "sends what it would not take: {this:?}");
    }
}

#[test]
fn a_pair_goes_where_its_only_key_works_and_nowhere_else_by_itself() {
    use Carry::Psk;
    let both = STANDINGS.into_iter().flat_map(|zero| STANDINGS.map(|one| [zero, one]));
    for standing in both {
        for (us, them) in MODES.into_iter().flat_map(|us| MODES.map(|them| (us, them))) {
            for announced in Slot::ALL {
                let verdicts = Slot::ALL.map(|slot| verdict(us, them, slot, announced, standing));
                let effective = Effective::of(us, them);
                let found = instead(announced, effective, &verdicts);
                let [here, there] = [announced, announced.other()].map(|slot| verdicts[slot.index()]);
                let context = format!("{us} {them} {standing:?} {announced}");
                let Some(found) = found else {
                    let misses = there.carry == Psk && here.carry != Psk && effective != Effective::Off;
                    assert!(!misses, "{context}: stays without a key");
                    continue;
                };
                assert_eq!(found, announced.other(), "{context}");
                assert_eq!(there.carry, Psk, "{context}: no key works there");
                assert_ne!(effective, Effective::Off, "{context}: nobody agrees on keys");
                // Pods lose nothing by it.
                assert!(there.scope == All || here.scope == MeshOnly, "{context}");
                // Never both ways: a pair does not wander.
                assert_eq!(instead(found, effective, &verdicts), None, "{context}");
            }
        }
    }
}
