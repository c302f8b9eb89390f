use proptest::prelude::*;

use super::*;
use crate::announcement::SlotAnnouncement;

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn key(epoch: u64, variant: u8) -> PublicKey {
    let mut bytes = [variant; 32];
    bytes[..8].copy_from_slice(&epoch.to_be_bytes());
    PublicKey::from_bytes(bytes)
}

/// Slots with these epochs, and keys that belong to them; `variant` 0 is the node's own, others are somebody's.
fn announcement(epochs: [u64; 2], variant: u8) -> Announcement {
    let slot = |index: usize| SlotAnnouncement {
        epoch: Epoch(epochs[index]),
        public_key: key(epochs[index], variant),
        port: 51880,
        draining: false,
    };
    Announcement { slots: [slot(0), slot(1)], endpoints: Vec::new(), kem: None, host_traffic: false }
}

fn nodes(created: i64, announced: &Announcement) -> BTreeMap<NodeName, NodeFacts> {
    let announcement = AnnouncementFact::Valid(announced.clone());
    BTreeMap::from([(name("b"), NodeFacts { created, announcement, ..NodeFacts::default() })])
}

/// What node `a` takes for the announcement of node `b`, and whether it refused what the API has.
fn taken(proven: &mut Proven, created: i64, announced: &Announcement) -> (AnnouncementFact, bool) {
    let mut nodes = nodes(created, announced);
    let problems = proven.review(&name("a"), &mut nodes, true);
    (nodes[&name("b")].announcement.clone(), !problems.is_empty())
}

#[test]
fn what_goes_back_behind_a_proved_key_is_refused_and_the_last_good_announcement_stays() {
    let present = announcement([7, 8], 0);
    // Announced, whose, refused?
    let cases = [
        ([7, 8], 0, false, "the same again"),
        ([9, 8], 0, false, "a new key in slot zero"),
        ([7, 9], 0, false, "a new key in slot one"),
        ([6, 8], 0, true, "an older key in slot zero"),
        ([7, 7], 0, true, "an older key in slot one"),
        ([9, 3], 0, true, "a newer and an older one"),
        ([7, 8], 1, true, "the same numbers with other keys"),
        ([9, 9], 1, false, "greater numbers: nothing is known of them"),
    ];
    for (epochs, variant, refused, what) in cases {
        let mut proven = Proven::default();
        taken(&mut proven, 5, &present);
        assert!(proven.prove(&name("b"), Slot::Zero) && proven.prove(&name("b"), Slot::One));
        assert!(!proven.prove(&name("b"), Slot::Zero), "no news");
        let next = announcement(epochs, variant);
        let wanted = if refused { &present } else { &next };
        assert_eq!(
            taken(&mut proven, 5, &next),
            (AnnouncementFact::Valid(wanted.clone()), refused),
            "{what}"
        );
        // A Node that was made anew begins anew.
        assert_eq!(taken(&mut proven, 6, &next), (AnnouncementFact::Valid(next), false), "{what}");
    }
}

#[test]
fn an_announcement_without_a_handshake_locks_nobody_out() {
    let mut proven = Proven::default();
    let (own, forged) = (announcement([1, 2], 0), announcement([u64::MAX, u64::MAX], 1));
    for announced in [&own, &forged, &own] {
        assert_eq!(taken(&mut proven, 5, announced), (AnnouncementFact::Valid(announced.clone()), false));
    }
}

#[test]
fn an_agent_that_starts_again_remembers_what_was_proved_and_takes_nothing_older() {
    let mut proven = Proven::default();
    taken(&mut proven, 5, &announcement([7, 8], 0));
    assert!(proven.prove(&name("b"), Slot::One));
    let text = serde_json::to_string(&proven).expect("serializes");
    let mut again: Proven = serde_json::from_str(&text).expect("its own text");
    let kept = AnnouncementFact::Valid(announcement([7, 8], 0));
    assert_eq!(taken(&mut again, 5, &announcement([7, 4], 0)), (kept, true));
    assert!(!taken(&mut again, 5, &announcement([7, 8], 0)).1, "the true one comes back");
}

#[test]
fn a_node_that_is_gone_from_the_complete_list_is_forgotten_and_from_another_one_not() {
    let mut proven = Proven::default();
    taken(&mut proven, 5, &announcement([7, 8], 0));
    assert!(proven.prove(&name("b"), Slot::Zero));
    proven.review(&name("a"), &mut BTreeMap::new(), false);
    assert!(taken(&mut proven, 5, &announcement([1, 8], 0)).1);
    proven.review(&name("a"), &mut BTreeMap::new(), true);
    assert!(!taken(&mut proven, 5, &announcement([1, 8], 0)).1);
}

#[derive(Clone, Debug)]
enum Event {
    Announced([u64; 2], u8),
    Handshake(bool),
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => ([1..6_u64, 1..6_u64], 0..2_u8).prop_map(|(epochs, variant)| Event::Announced(epochs, variant)),
        4 => any::<bool>().prop_map(Event::Handshake),
        1 => Just(Event::Restart),
    ]
}

proptest! {
    /// Against whatever is announced: no key in use is older than one that was at work on its slot, nor another of its number.
    #[test]
    fn no_slot_goes_back_behind_a_key_that_was_at_work(events in proptest::collection::vec(event(), 1..40)) {
        let mut proven = Proven::default();
        let mut used: Option<Announcement> = None;
        let mut at_work: [Option<(Epoch, PublicKey)>; 2] = [None, None];
        for event in events {
            match event {
                Event::Announced(epochs, variant) => {
                    let (fact, _) = taken(&mut proven, 5, &announcement(epochs, variant));
                    used = match fact {
                        AnnouncementFact::Valid(announcement) => Some(announcement),
                        AnnouncementFact::Malformed { .. } | AnnouncementFact::Missing => None,
                    };
                }
                Event::Handshake(first) => {
                    let slot = if first { Slot::Zero } else { Slot::One };
                    if let Some(used) = &used {
                        proven.prove(&name("b"), slot);
                        let used = used.slot(slot);
                        at_work[slot.index()] = Some((used.epoch, used.public_key));
                    }
                }
                Event::Restart => {
                    let text = serde_json::to_string(&proven).expect("serializes");
                    proven = serde_json::from_str(&text).expect("its own text");
                    used = None;
                }
            }
            for slot in Slot::ALL {
                if let (Some(used), Some((epoch, key))) = (&used, at_work[slot.index()]) {
                    let used = used.slot(slot);
                    prop_assert!(used.epoch >= epoch);
                    prop_assert!(used.epoch > epoch || used.public_key == key);
                }
            }
        }
    }

    /// A node that behaves is never refused.
    #[test]
    fn what_only_grows_is_never_refused(steps in proptest::collection::vec((0..2_usize, any::<[bool; 2]>()), 1..30)) {
        let mut proven = Proven::default();
        let mut epochs = [1, 2];
        for (slot, handshakes) in steps {
            epochs[slot] = epochs.into_iter().max().unwrap_or_default() + 1;
            let announced = announcement(epochs, 0);
            prop_assert_eq!(taken(&mut proven, 5, &announced), (AnnouncementFact::Valid(announced), false));
            for slot in Slot::ALL.into_iter().filter(|slot| handshakes[slot.index()]) {
                proven.prove(&name("b"), slot);
            }
        }
    }
}
