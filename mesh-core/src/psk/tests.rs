use super::*;

fn end(cluster: &str, node: &str, key: u8, epoch: u64) -> End {
    let id = NodeId { node: node.parse().unwrap(), cluster: cluster.parse().unwrap() };
    End { id, key: PublicKey::from_bytes([key; 32]), epoch: Epoch(epoch) }
}

#[test]
fn both_sides_compute_the_same_context_and_differ_in_role() {
    let (a, b) = (end("east", "n1", 1, 7), end("east", "n2", 2, 9));
    let ab = Context::new(Slot::One, a.clone(), b.clone()).unwrap();
    let ba = Context::new(Slot::One, b.clone(), a.clone()).unwrap();
    assert_eq!((ab.encode(), &ab), (ba.encode(), &ba));
    assert_eq!(ab.role(&a.id), Some(Role::Initiator));
    assert_eq!(ab.role(&b.id), Some(Role::Responder));
    assert_eq!(ab.role(&end("west", "n1", 1, 7).id), None);
}

#[test]
fn nodes_of_one_name_in_two_clusters_are_a_pair_and_a_node_with_itself_is_not() {
    let (east, west) = (end("east", "n1", 1, 7), end("west", "n1", 2, 7));
    let context = Context::new(Slot::Zero, west.clone(), east.clone()).unwrap();
    assert_eq!(context.role(&east.id), Some(Role::Initiator));
    let same = Context::new(Slot::Zero, east.clone(), end("east", "n1", 3, 8));
    assert_eq!(same, Err(PairError::SameNode(east.id)));
    let key = Context::new(Slot::Zero, west.clone(), end("east", "n2", 2, 8));
    assert_eq!(key, Err(PairError::SameKey(west.key)));
}

#[test]
fn every_field_changes_the_bytes() {
    let base = || (Slot::Zero, end("east", "n1", 1, 7), end("east", "n2", 2, 9));
    let mut all = std::collections::BTreeSet::new();
    let mut add = |(slot, a, b)| assert!(all.insert(Context::new(slot, a, b).unwrap().encode()));
    add(base());
    add((Slot::One, base().1, base().2));
    for (a, b) in [
        (end("eas", "n1", 1, 7), base().2),
        (base().1, end("west", "n2", 2, 9)),
        (end("east", "n", 1, 7), base().2),
        (base().1, end("east", "n3", 2, 9)),
        (end("east", "n1", 3, 7), base().2),
        (base().1, end("east", "n2", 3, 9)),
        (end("east", "n1", 1, 8), base().2),
        (base().1, end("east", "n2", 2, 8)),
        // Fields that only their lengths keep apart.
        (end("east", "1n1", 1, 7), end("east", "2n2", 2, 9)),
        (end("east1", "n1", 1, 7), end("east2", "n2", 2, 9)),
    ] {
        add((Slot::Zero, a, b));
    }
}

#[test]
fn names_of_clusters_are_labels() {
    for good in ["a", "east-1", &"x".repeat(63)] {
        assert_eq!(good.parse::<ClusterName>().unwrap().as_str(), good);
    }
    for bad in ["", "-a", "a-", "A", "a.b", "a b", &"x".repeat(64)] {
        assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
    }
}
