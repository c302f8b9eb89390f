//! Every state with every class of observation, against the table written once more as rules.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Idle,
    Waiting(Slot),
    Draining(Slot),
    /// Judged already, before a step that failed or a crash.
    Judged(Slot),
}

/// Whose key the slot at hand has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Old,
    Installed,
    Replaced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Nobody,
    Left,
    Unconfirmed,
    Yielded,
    Present,
    Silent,
    Stale,
    Knocking,
    /// Dead by the API's word, and nothing was heard of it.
    Gone,
    GoneUnconfirmed,
    GoneYielded,
    /// The one without the other.
    Doubted,
    Unheard,
}

#[derive(Clone, Copy, Debug)]
struct Class {
    stands: Stands,
    key: Key,
    peer: Peer,
    asked: bool,
    shown: bool,
    quiet: bool,
    late: bool,
    /// The other slot's device has its key.
    usable: bool,
    /// A smaller name drains the other slot.
    overtaken: bool,
    synced: bool,
}

fn classes() -> Vec<Class> {
    use Stands::{Draining, Idle, Judged, Waiting};
    let mut all = Vec::new();
    for stands in
        [Idle, Waiting(ONE), Draining(ONE), Judged(ONE), Waiting(ZERO), Draining(ZERO), Judged(ZERO)]
    {
        for key in [Key::Old, Key::Installed, Key::Replaced] {
            use Peer::{
                Doubted, Gone, GoneUnconfirmed, GoneYielded, Knocking, Left, Nobody, Present, Silent, Stale,
                Unconfirmed, Unheard, Yielded,
            };
            for peer in [
                Nobody,
                Left,
                Unconfirmed,
                Yielded,
                Present,
                Silent,
                Stale,
                Knocking,
                Gone,
                GoneUnconfirmed,
                GoneYielded,
                Doubted,
                Unheard,
            ] {
                for bits in 0..128 {
                    let bit = |index: u32| bits >> index & 1 == 1;
                    all.push(Class {
                        stands,
                        key,
                        peer,
                        asked: bit(0),
                        shown: bit(1),
                        quiet: bit(2),
                        late: bit(3),
                        usable: bit(4),
                        overtaken: bit(5),
                        synced: bit(6),
                    });
                }
            }
        }
    }
    all
}

/// Where it stands afterwards, and what it does.
fn expected(class: &Class) -> (Stands, Vec<&'static str>) {
    use Stands::{Draining, Idle, Judged, Waiting};
    let Class { stands, key, peer, asked, shown, quiet, late, usable, overtaken, synced } = *class;
    let begin = |slot| if synced && usable && !overtaken { Draining(slot) } else { Waiting(slot) };
    let persist = |next: Stands| if next == stands { vec![] } else { vec!["persist"] };
    if key == Key::Installed {
        return (stands, vec!["commit"]);
    }
    let slot = match stands {
        Idle if asked && shown && synced => return (begin(ONE), vec!["persist"]),
        Idle => return (Idle, vec![]),
        Waiting(slot) => return (begin(slot), persist(begin(slot))),
        Draining(slot) | Judged(slot) => slot,
    };
    if key == Key::Replaced {
        // Now the slot that was just replaced is the other one.
        let next = match slot {
            ONE if synced && !overtaken => Draining(ZERO),
            ONE => Waiting(ZERO),
            ZERO => Idle,
        };
        return (next, vec!["destroyed", "persist"]);
    }
    if !shown {
        return (stands, vec![]);
    }
    let gone = matches!(peer, Peer::Gone | Peer::GoneUnconfirmed | Peer::GoneYielded);
    let left = gone || matches!(peer, Peer::Nobody | Peer::Left);
    if synced && usable && (quiet && left || late && peer != Peer::Yielded) {
        // Whom it did not wait for is written down.
        let known = matches!(stands, Judged(_)) && quiet && left && !gone;
        let mut does = if known { vec![] } else { vec!["persist"] };
        if !(quiet && left) {
            does.push("overdue");
        }
        does.extend(["stage", "install", "commit"]);
        return (Judged(slot), does);
    }
    let unanswered = gone || matches!(peer, Peer::Silent | Peer::Stale | Peer::Doubted | Peer::Unheard);
    (stands, if unanswered { vec!["ask"] } else { vec![] })
}

fn machine(stands: Stands, facts: &Facts) -> Machine {
    let old = |slot: Slot| {
        let key = &facts.slots[slot.index()];
        KeyId { epoch: key.epoch, fingerprint: Fingerprint::of(&key.public) }
    };
    let (slot, stage) = match stands {
        Stands::Idle => return Machine::default(),
        Stands::Waiting(slot) => (slot, Stage::Waiting),
        Stands::Draining(slot) => (slot, Stage::Draining { old: old(slot), verdict: None }),
        Stands::Judged(slot) => (slot, Stage::Draining { old: old(slot), verdict: Some(Verdict::default()) }),
    };
    let cause = Cause::Request(Request::of(Some("first")).unwrap());
    Machine::resume(State { rotation: Some(Rotation { cause, slot, stage }), ..State::default() })
}

fn stands(machine: &Machine) -> Stands {
    let Some(rotation) = &machine.state().rotation else { return Stands::Idle };
    match &rotation.stage {
        Stage::Waiting => Stands::Waiting(rotation.slot),
        Stage::Draining { verdict: None, .. } => Stands::Draining(rotation.slot),
        Stage::Draining { verdict: Some(_), .. } => Stands::Judged(rotation.slot),
    }
}

#[test]
fn the_transition_table_is_exhaustive_and_correct() {
    let (peer, smaller) = (name("p"), name("a"));
    let all = classes();
    for class in &all {
        let mut facts = Facts::new();
        facts.request = class.asked.then_some("first");
        let before = machine(class.stands, &facts);
        let slot = before.state().rotation.as_ref().map_or(ONE, |rotation| rotation.slot);
        let other = slot.other();
        facts.accept(before.draining());
        // The drain was accepted at time zero, and nothing else was known.
        facts.slots[slot.index()].quiet_for = Duration::ZERO;
        facts.synced = false;
        let mut before = facts.go(&before, &[], Duration::ZERO);
        if !matches!(class.stands, Stands::Draining(_) | Stands::Judged(_)) {
            before = machine(class.stands, &facts);
        }
        facts.synced = class.synced;
        if !class.shown {
            facts.announced = None;
        }
        if class.quiet {
            facts.slots[slot.index()].quiet_for = QUIET;
        }
        match class.key {
            Key::Old => {}
            Key::Installed => {
                facts.slots[slot.index()].staged = Some(public(slot, 9));
                facts.slots[slot.index()].device = Some(public(slot, 9));
            }
            Key::Replaced => {
                facts.replace(slot);
                if class.shown {
                    facts.accept(before.draining());
                }
            }
        }
        if !class.usable {
            facts.slots[other.index()].device = None;
        }
        let left = on(&peer, other);
        let dead = PeerFacts {
            answered: None,
            doubted_for: Some(SETTINGS.gone + UNHEARD),
            unheard_for: Some(UNHEARD),
            ..left
        };
        let mut peers = match class.peer {
            Peer::Nobody => vec![],
            Peer::Left => vec![left],
            Peer::Unconfirmed => vec![PeerFacts { sending: Some(slot), ..left }],
            Peer::Yielded => vec![PeerFacts { target: slot, sending: Some(slot), ..left }],
            Peer::Present => vec![PeerFacts { answered: Some((slot, Duration::ZERO)), ..left }],
            Peer::Silent => vec![PeerFacts { answered: None, ..left }],
            Peer::Stale => {
                vec![PeerFacts { answered: Some((other, ASK_EVERY * 3)), ..left }]
            }
            Peer::Knocking => {
                let mut handshake_age = [None; 2];
                handshake_age[slot.index()] = Some(QUIET / 2);
                vec![PeerFacts { handshake_age, ..left }]
            }
            Peer::Gone => vec![dead],
            Peer::GoneUnconfirmed => vec![PeerFacts { sending: Some(slot), ..dead }],
            Peer::GoneYielded => vec![PeerFacts { target: slot, sending: Some(slot), ..dead }],
            Peer::Doubted => vec![PeerFacts { sending: Some(slot), unheard_for: None, ..dead }],
            Peer::Unheard => vec![PeerFacts { doubted_for: None, ..dead }],
        };
        if class.overtaken {
            // It drains the other slot of the one that is at hand, or will be.
            let next = if class.key == Key::Replaced && slot == ONE && before.draining().is_some() {
                other
            } else {
                slot
            };
            peers.push(PeerFacts { drained: Some(next.other()), ..on(&smaller, other) });
        }
        let step = facts.step(&before, &peers, if class.late { DEADLINE } else { QUIET });
        assert_eq!((stands(&step.next), words(&step.effects)), expected(class), "{class:?}");
    }
    println!("{} classes", all.len());
}
