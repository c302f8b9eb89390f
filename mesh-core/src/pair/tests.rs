use super::*;
use crate::announcement::{Epoch, SlotAnnouncement};
use crate::key::PublicKey;
use crate::name::NodeName;
use proptest::prelude::*;

const ZERO: Slot = Slot::Zero;
const ONE: Slot = Slot::One;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// `gone`, `new` (listed, no handshake), `stale` (handshake before the keys), `live`, `old`, `deaf`, `unready`.
fn link(word: &str) -> Link {
    let new = Link { keys_for: Some(secs(1000)), ready: true, ..Link::default() };
    let since = |age| Link { handshake_age: Some(secs(age)), ..new };
    match word {
        "gone" => Link { ready: true, ..Link::default() },
        "new" => new,
        "stale" => Link { keys_for: Some(secs(20)), ..since(20) },
        "live" => since(179),
        "old" => since(180),
        "deaf" => Link { unanswered_for: Some(PATIENCE), ..since(30) },
        "unready" => Link { ready: false, ..since(30) },
        _ => panic!("{word}"),
    }
}

fn check(current: Option<Slot>, target: Slot, zero: &str, one: &str, send: Slot, provoke: Option<Slot>) {
    let choice = choose(current, target, &[link(zero), link(one)]);
    assert_eq!(choice, Choice { send, provoke }, "{current:?} to {target:?}, {zero} and {one}");
}

#[test]
fn a_pair_moves_after_a_confirmed_handshake_and_not_before() {
    check(Some(ZERO), ONE, "live", "live", ONE, None);
    for unconfirmed in ["new", "stale", "old", "deaf"] {
        check(Some(ZERO), ONE, "live", unconfirmed, ZERO, Some(ONE));
        check(Some(ONE), ZERO, unconfirmed, "live", ONE, Some(ZERO));
        check(Some(ZERO), ONE, "old", unconfirmed, ZERO, Some(ONE));
    }
    check(Some(ZERO), ONE, "live", "gone", ZERO, None);
    check(Some(ZERO), ONE, "live", "unready", ZERO, None);
}

#[test]
fn a_newcomer_goes_to_the_target_at_once() {
    check(None, ZERO, "new", "new", ZERO, Some(ZERO));
    check(None, ONE, "new", "new", ONE, Some(ONE));
    check(None, ONE, "live", "new", ZERO, Some(ONE));
    check(None, ZERO, "unready", "new", ONE, Some(ONE));
    check(None, ZERO, "unready", "unready", ZERO, None);
    check(None, ZERO, "gone", "gone", ZERO, None);
}

#[test]
fn what_does_not_work_is_left_for_what_works() {
    for dead in ["new", "stale", "deaf"] {
        check(Some(ZERO), ZERO, dead, "live", ONE, Some(ZERO));
    }
    check(Some(ZERO), ZERO, "gone", "live", ONE, None);
    check(Some(ZERO), ZERO, "unready", "old", ONE, None);
    check(Some(ZERO), ZERO, "unready", "new", ONE, Some(ONE));
    check(Some(ZERO), ZERO, "deaf", "old", ZERO, Some(ONE));
    check(Some(ZERO), ZERO, "new", "old", ZERO, Some(ZERO));
    check(Some(ONE), ZERO, "new", "gone", ZERO, Some(ZERO));
    check(Some(ONE), ZERO, "new", "deaf", ONE, Some(ZERO));
}

#[test]
fn without_any_session_a_pair_stays_until_one_is_confirmed() {
    check(Some(ONE), ZERO, "new", "stale", ONE, Some(ZERO));
    check(Some(ZERO), ONE, "new", "new", ZERO, Some(ONE));
}

#[test]
fn an_idle_pair_is_left_alone() {
    check(Some(ZERO), ZERO, "old", "live", ZERO, None);
    check(Some(ZERO), ZERO, "old", "old", ZERO, None);
}

#[test]
fn the_responder_moves_with_the_initiators_first_packet() {
    // Neither has a session on the target; both provoke, one wins: its latest handshake is there with the response.
    let [mut initiator, mut responder] = [[link("live"), link("new")]; 2];
    initiator[1].handshake_age = Some(Duration::ZERO);
    assert_eq!(choose(Some(ZERO), ONE, &initiator).send, ONE);
    assert_eq!(choose(Some(ZERO), ONE, &responder), Choice { send: ZERO, provoke: Some(ONE) });
    responder[1].handshake_age = Some(Duration::ZERO);
    assert_eq!(choose(Some(ZERO), ONE, &responder), Choice { send: ONE, provoke: None });
}

#[test]
fn an_intent_holds_a_pair_but_moves_none() {
    let name = |text: &str| text.parse::<NodeName>().unwrap();
    let peer = |drained: Option<Slot>| {
        let slot = |slot: Slot| SlotAnnouncement {
            epoch: Epoch(1),
            public_key: PublicKey::from_bytes([1; 32]),
            port: 1,
            draining: drained == Some(slot),
        };
        Announcement {
            slots: [slot(ZERO), slot(ONE)],
            endpoints: vec![],
            kem: None,
            kem_required: false,
            host_traffic: false,
        }
    };
    let at = |wanted, accepted, theirs, current| {
        target((&name("b"), Drains { wanted, accepted }), (&name("a"), &peer(theirs)), current)
    };
    assert_eq!(at(Some(ZERO), None, None, Some(ZERO)), ZERO, "not accepted yet: nothing moves");
    assert_eq!(at(Some(ZERO), None, None, Some(ONE)), ONE, "but nobody moves onto it any more");
    assert_eq!(at(Some(ZERO), Some(ZERO), None, Some(ZERO)), ONE);
    assert_eq!(at(None, Some(ZERO), None, Some(ONE)), ONE, "the end is not accepted yet either");
    assert_eq!(at(None, None, None, Some(ONE)), ZERO);
    assert_eq!(
        at(Some(ONE), None, Some(ZERO), Some(ZERO)),
        ZERO,
        "stays, since our greater name will say so"
    );
    assert_eq!(at(None, None, Some(ZERO), None), ONE);
}

#[test]
fn an_answer_is_anything_that_comes_back() {
    let ear = Ear::default().hear(0, 0, secs(0));
    let asked = ear.hear(96, 0, secs(1)).hear(148 + 96, 0, secs(6));
    assert_eq!(asked.unanswered_for(secs(16)), Some(secs(15)));
    assert_eq!(asked.hear(500, 92, secs(16)).unanswered_for(secs(40)), None);
    assert_eq!(ear.hear(32, 0, secs(1)).unanswered_for(secs(40)), None, "a keepalive asks nothing");
    assert_eq!(asked.hear(0, 0, secs(20)).unanswered_for(secs(40)), None, "a new peer entry");
}

fn links() -> impl Strategy<Value = [Link; 2]> {
    let time = || prop_oneof![Just(None), (0..400u64).prop_map(|s| Some(secs(s))), Just(Some(Duration::MAX))];
    let link = (time(), time(), time(), any::<bool>()).prop_map(
        |(keys_for, handshake_age, unanswered_for, ready)| Link {
            keys_for,
            handshake_age,
            unanswered_for,
            ready,
        },
    );
    [link.clone(), link]
}

fn slot() -> impl Strategy<Value = Slot> {
    prop_oneof![Just(ZERO), Just(ONE)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn every_choice_keeps_the_rules(links in links(), target in slot(), current in proptest::option::of(slot())) {
        let choice = choose(current, target, &links);
        let of = |slot: Slot| &links[slot.index()];
        let works = |slot: Slot| {
            let link = of(slot);
            link.ready
                && link.unanswered_for.is_none_or(|time| time < PATIENCE)
                && link.handshake_age.is_some_and(|age| age < SESSION && link.keys_for.is_some_and(|keys| age < keys))
        };
        prop_assert!(!works(target) || choice.send == target, "a confirmed target is used");
        if current.is_some_and(works) && current != Some(choice.send) {
            prop_assert!(choice.send == target && works(target), "what works is left for the confirmed target alone");
        }
        if Slot::ALL.into_iter().any(works) && current != Some(choice.send) {
            prop_assert!(works(choice.send), "nobody moves onto what does not work while something does");
        }
        if let Some(slot) = choice.provoke {
            prop_assert!(!works(slot) && of(slot).ready && of(slot).keys_for.is_some(), "no call in vain");
        }
        if choice.send != target && of(target).ready && of(target).keys_for.is_some() {
            prop_assert_eq!(choice.provoke, Some(target), "whoever is not on the target keeps calling there");
        }
        let again = choose(Some(choice.send), target, &links);
        prop_assert_eq!(again.send, choice.send, "equal facts, no flapping");
    }
}
