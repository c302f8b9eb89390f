use super::*;
use crate::announcement::{Epoch, SlotAnnouncement};
use crate::key::PublicKey;
use crate::name::NodeName;
use proptest::prelude::*;

fn announcement(drains: (bool, bool)) -> Announcement {
    let slot = |n: u8, draining| SlotAnnouncement {
        epoch: Epoch(u64::from(n)),
        public_key: PublicKey::from_bytes([n; 32]),
        port: 51880,
        draining,
    };
    Announcement {
        slots: [slot(1, drains.0), slot(2, drains.1)],
        endpoints: vec![],
        kem: None,
        kem_required: false,
        host_traffic: false,
    }
}

#[test]
fn the_drain_of_the_greater_name_goes_first() {
    let (a, b): (NodeName, NodeName) = ("a".parse().unwrap(), "b".parse().unwrap());
    let pair = |x, y| pair_slot((&a, &announcement(x)), (&b, &announcement(y)));
    assert_eq!(pair((false, false), (false, false)), Slot::Zero);
    assert_eq!(pair((true, false), (false, false)), Slot::One);
    assert_eq!(pair((false, false), (true, false)), Slot::One);
    assert_eq!(pair((true, false), (false, true)), Slot::Zero, "b drains one; a waits");
    assert_eq!(pair((false, true), (true, false)), Slot::One, "b drains zero; a waits");
}

proptest! {
    #[test]
    fn both_sides_choose_the_same_slot(x: (bool, bool), y: (bool, bool), swap: bool) {
        let (mut a, mut b): (NodeName, NodeName) = ("a".parse().unwrap(), "b".parse().unwrap());
        if swap { std::mem::swap(&mut a, &mut b); }
        let (x, y) = (announcement(x), announcement(y));
        prop_assert_eq!(pair_slot((&a, &x), (&b, &y)), pair_slot((&b, &y), (&a, &x)));
    }
}
