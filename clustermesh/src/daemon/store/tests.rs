use std::net::IpAddr;

use mesh_core::clusters::{Object, RemoteEndpoint};
use mesh_core::name::NodeName;
use proptest::prelude::*;

use super::*;

fn at(incarnation: u64, sequence: u64) -> At {
    Version { incarnation, sequence }.into()
}

fn endpoint(which: u8, labels: u64) -> Object {
    let node: Arc<NodeName> = Arc::new("n1".parse().unwrap());
    Object::Endpoint(IpAddr::from([10, 2, 0, which]), RemoteEndpoint { node, labels: LabelSetId(labels) })
}

fn change() -> impl Strategy<Value = Change> {
    (0u8..6, 0u64..3, any::<bool>()).prop_map(|(which, labels, delete)| {
        let object = endpoint(which, labels);
        if delete { Change::Delete(object.key()) } else { Change::Put(object) }
    })
}

proptest! {
    /// Whoever has any state that its origin ever had gets to the present one, however much is remembered, whatever the
    /// store skipped of the origin's states, and over new leaders.
    #[test]
    fn who_was_away_gets_what_it_missed(
        steps in prop::collection::vec((prop::collection::vec(change(), 0..3), any::<bool>(), any::<bool>()), 1..20),
        remembered in 0usize..6,
    ) {
        let (mut version, mut state) = (at(1, 0), ClusterState::default());
        let mut history = vec![(version, state.clone())];
        let mut store = Store::remembering(version, state.clone(), remembered);
        for (changes, new_leader, seen) in steps {
            for change in changes {
                state.apply(change);
            }
            version = if new_leader { at(version.version.incarnation + 1, 0) } else { at(version.version.incarnation, version.version.sequence + 1) };
            history.push((version, state.clone()));
            if seen {
                let changes = store.state().changes_to(&state);
                prop_assert!(store.apply(version, changes));
            }
            prop_assert!(store.remembers() <= remembered);
            for (known, had) in &history {
                match store.since(Some(*known)) {
                    Since::Nothing => prop_assert!(known.version >= store.at().version),
                    Since::Snapshot(all) => {
                        prop_assert_eq!((all.at, &*all.state), (store.at(), store.state()));
                    }
                    Since::Changes { from, to, changes, .. } => {
                        prop_assert_eq!((from, to), (*known, store.at()));
                        let mut reached = had.clone();
                        for change in changes {
                            reached.apply(change);
                        }
                        prop_assert_eq!(&reached, store.state());
                    }
                }
            }
        }
    }
}

#[test]
fn a_key_that_changes_often_is_told_once_with_its_latest_state() {
    let mut store = Store::new(at(1, 0), ClusterState::default());
    for labels in 0..100 {
        assert!(store.advance(vec![Change::Put(endpoint(1, labels))]));
    }
    assert!(!store.advance(vec![Change::Put(endpoint(1, 99))]), "nothing is different");
    let Since::Changes { to, changes, .. } = store.since(Some(at(1, 3))) else { panic!("changes") };
    assert_eq!((to, changes), (at(1, 100), vec![Change::Put(endpoint(1, 99))]));
    assert_eq!(store.remembers(), 1);
}

#[test]
fn who_missed_more_than_is_remembered_gets_a_snapshot() {
    let mut store = Store::remembering(at(1, 0), ClusterState::default(), 2);
    for which in 1..=3 {
        store.advance(vec![Change::Put(endpoint(which, 0))]);
    }
    assert!(matches!(store.since(Some(at(1, 1))), Since::Changes { changes, .. } if changes.len() == 2));
    assert!(matches!(store.since(Some(at(1, 0))), Since::Snapshot(_)));
    assert!(matches!(store.since(None), Since::Snapshot(_)));
    assert!(matches!(store.since(Some(at(1, 9))), Since::Nothing), "we are behind");
}

#[test]
fn of_an_incarnation_that_was_not_seen_to_its_end_nobody_is_told_a_difference() {
    let mut store = Store::new(at(1, 5), ClusterState::default());
    store.apply(at(2, 0), vec![]);
    assert!(matches!(store.since(Some(at(1, 5))), Since::Changes { .. }));
    assert!(matches!(store.since(Some(at(1, 6))), Since::Snapshot(_)));
}

#[test]
fn another_view_of_the_same_version_is_told_as_a_whole() {
    let mut store = Store::new(at(1, 0), ClusterState::default());
    store.apply(at(1, 1), vec![Change::Put(endpoint(1, 0)), Change::Put(endpoint(2, 0))]);
    store.review(7, vec![Change::Delete(endpoint(2, 0).key())]);
    let seven = At { view: 7, ..at(1, 1) };
    let Since::Snapshot(all) = store.since(Some(at(1, 1))) else { panic!("a snapshot") };
    assert_eq!((all.at, all.state.len()), (seven, 1));
    assert!(matches!(store.since(Some(seven)), Since::Nothing));
    store.apply(At { view: 9, ..at(1, 2) }, vec![Change::Put(endpoint(3, 0))]);
    assert!(matches!(store.since(Some(seven)), Since::Changes { .. }));
}
