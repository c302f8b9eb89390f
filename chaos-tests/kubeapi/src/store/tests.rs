use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::patch::Patch;

fn store(window: usize) -> Store {
    Store::new(window, None, None, None, Vec::new()).unwrap()
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

fn rv(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_patch_that_changes_nothing_moves_no_version_and_makes_no_event() {
    let store = store(100);
    let made = store.create(&node("n1")).unwrap();
    let before = store.resource_version();
    let label = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    let once = store.patch("nodes", None, "n1", &label).unwrap();
    assert!(rv(&once) > rv(&made));
    let twice = store.patch("nodes", None, "n1", &label).unwrap();
    assert_eq!((rv(&twice), store.resource_version()), (rv(&once), before + 1));
}

#[test]
fn a_patch_body_with_another_uid_or_a_stale_version_is_a_conflict() {
    let store = store(100);
    let made = store.create(&node("n1")).unwrap();
    for metadata in [json!({"uid": "other"}), json!({"resourceVersion": "1"})] {
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let error = store.patch("nodes", None, "n1", &patch).unwrap_err();
        assert_eq!((error.code(), error.reason()), (409, "Conflict"), "{error}");
    }
    let own = Patch::Merge(json!({"metadata": {"uid": made["metadata"]["uid"], "labels": {"a": "b"}}}));
    assert!(store.patch("nodes", None, "n1", &own).is_ok());
}

#[test]
fn identity_of_an_object_cannot_be_changed() {
    let store = store(100);
    store.create(&node("n1")).unwrap();
    for patch in [json!({"metadata": {"name": "n2"}}), json!({"kind": "Pod"}), json!({"apiVersion": "v2"})] {
        let error = store.patch("nodes", None, "n1", &Patch::Merge(patch)).unwrap_err();
        assert_eq!(error.code(), 400);
    }
    let created = json!({"metadata": {"creationTimestamp": "2000-01-01T00:00:00Z", "labels": {"a": "b"}}});
    let after = store.patch("nodes", None, "n1", &Patch::Merge(created)).unwrap();
    assert_ne!(after["metadata"]["creationTimestamp"], "2000-01-01T00:00:00Z");
}

#[test]
fn pod_cidrs_are_immutable_once_set() {
    let store = store(100);
    store.create(&node("n1")).unwrap();
    let set = |cidr: &str| Patch::Merge(json!({"spec": {"podCIDRs": [cidr]}}));
    let after = store.patch("nodes", None, "n1", &set("10.0.0.0/24")).unwrap();
    assert_eq!(after["spec"]["podCIDR"], "10.0.0.0/24");
    assert_eq!(store.patch("nodes", None, "n1", &set("10.0.1.0/24")).unwrap_err().code(), 422);
}

#[test]
fn names_are_checked_and_generated() {
    let store = store(100);
    for name in ["A", "-a", "a-", "a..b", "a_b", &"a".repeat(254)] {
        assert_eq!(store.create(&node(name)).unwrap_err().code(), 422, "{name}");
    }
    let generated = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"generateName": "n-"}});
    let name = store.create(&generated).unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name.len() == 7 && name.starts_with("n-"), "{name}");
}

#[test]
fn a_watch_from_before_the_window_is_told_so_and_a_slow_one_too() {
    let store = store(3);
    let start = store.resource_version();
    for n in 0..5 {
        store.create(&node(&format!("n{n}"))).unwrap();
    }
    assert!(matches!(store.cursor("nodes", start), Err(ApiError::Expired { .. })));
    assert!(matches!(store.cursor("nodes", 999), Err(ApiError::FutureVersion { .. })));
    let mut cursor = store.cursor("nodes", start + 2).unwrap();
    let Next::Events(events) = store.next(&mut cursor, 100) else { panic!() };
    assert_eq!(events.len(), 3);
    for n in 0..=LIVE_WATCH_EVENTS {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"n": n.to_string()}}}));
        store.patch("nodes", None, "n0", &patch).unwrap();
    }
    assert!(matches!(store.next(&mut cursor, 1), Next::TooOld));
}

#[test]
fn a_restored_snapshot_ends_watches_and_goes_back_in_versions() {
    let store = store(100);
    store.create(&node("n1")).unwrap();
    let snapshot = store.snapshot();
    store.create(&node("n2")).unwrap();
    let mut cursor = store.cursor("nodes", store.resource_version()).unwrap();
    store.restore(&snapshot).unwrap();
    assert!(matches!(store.next(&mut cursor, 1), Next::Closed));
    assert_eq!(store.resource_version(), snapshot.resource_version());
    assert_eq!(store.list::<Value>("nodes", None).unwrap().len(), 1);
}

#[test]
fn events_of_one_group_are_seen_in_the_other_and_go_with_it() {
    let store = store(100);
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
        "note": "hello", "regarding": {"kind": "Node", "name": "n1"}, "reportingController": "c",
        "eventTime": "2026-01-01T00:00:00.000001Z"});
    store.create(&event).unwrap();
    let core = store.find("events", None, "e").unwrap();
    assert_eq!((&core["message"], &core["involvedObject"]["name"]), (&json!("hello"), &json!("n1")));
    assert_eq!(core["lastTimestamp"], "2026-01-01T00:00:00Z");
    store.delete("events", None, "e").unwrap();
    assert!(store.find("events.events.k8s.io", None, "e").is_none());
}

#[derive(Debug, Clone)]
enum Op {
    Create(u8),
    Label(u8, u8),
    Finalize(u8, bool),
    Delete(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let id = 0..4_u8;
    prop_oneof![
        id.clone().prop_map(Op::Create),
        (id.clone(), 0..3_u8).prop_map(|(n, v)| Op::Label(n, v)),
        (id.clone(), any::<bool>()).prop_map(|(n, f)| Op::Finalize(n, f)),
        id.prop_map(Op::Delete),
    ]
}

fn run(store: &Store, op: &Op) {
    let name = |n: u8| format!("n{n}");
    // What an operation answers does not matter here: refused ones must leave no trace.
    match op {
        Op::Create(n) => drop(store.create(&node(&name(*n)))),
        Op::Label(n, v) => {
            let patch = json!({"metadata": {"labels": {"v": v.to_string()}}});
            drop(store.patch("nodes", None, &name(*n), &Patch::Merge(patch)));
        }
        Op::Finalize(n, on) => {
            let finalizers = if *on { json!(["a/b"]) } else { Value::Null };
            let patch = json!({"metadata": {"finalizers": finalizers}});
            drop(store.patch("nodes", None, &name(*n), &Patch::Merge(patch)));
        }
        Op::Delete(n) => drop(store.delete("nodes", None, &name(*n))),
    }
}

fn present(store: &Store) -> BTreeMap<String, Value> {
    let all = store.list::<Value>("nodes", None).unwrap();
    all.into_iter().map(|o| (o["metadata"]["name"].as_str().unwrap().to_owned(), o)).collect()
}

proptest! {
    /// Whoever lists at any version and follows the watch from there ends with what the store holds.
    #[test]
    fn list_and_watch_from_any_version_fold_to_the_store(
        before in prop::collection::vec(op(), 0..20),
        after in prop::collection::vec(op(), 0..20),
        batch in 1..5_usize,
    ) {
        let store = store(1000);
        before.iter().for_each(|o| run(&store, o));
        let mut view = present(&store);
        let mut cursor = store.cursor("nodes", store.resource_version()).unwrap();
        after.iter().for_each(|o| run(&store, o));
        let mut last = cursor.rv;
        loop {
            let Next::Events(events) = store.next(&mut cursor, batch) else { panic!() };
            if events.is_empty() {
                break;
            }
            for event in events {
                prop_assert!(event.rv > last, "versions rise");
                last = event.rv;
                prop_assert_eq!(rv(&event.object.value), event.rv, "objects carry the version of their event");
                let name = event.object.value["metadata"]["name"].as_str().unwrap().to_owned();
                match event.kind {
                    EventKind::Added => prop_assert!(view.insert(name, event.object.value.clone()).is_none()),
                    EventKind::Modified => prop_assert!(view.insert(name, event.object.value.clone()).is_some()),
                    EventKind::Deleted => prop_assert!(view.remove(&name).is_some()),
                }
            }
        }
        prop_assert_eq!(view, present(&store));
    }

    /// The same from disk: a restart changes nothing that a client can see.
    #[test]
    fn a_state_directory_gives_back_objects_version_and_events(
        before in prop::collection::vec(op(), 0..12),
        after in prop::collection::vec(op(), 0..12),
        compact in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let (loaded, log) = crate::persist::open(dir.path()).unwrap();
            Store::new(1000, Some(loaded), Some(log), None, Vec::new()).unwrap()
        };
        let first = open();
        before.iter().for_each(|o| run(&first, o));
        if compact {
            first.lock().compact_log(true).unwrap();
        }
        let middle = first.resource_version();
        after.iter().for_each(|o| run(&first, o));
        let second = open();
        prop_assert_eq!(second.resource_version(), first.resource_version());
        prop_assert_eq!(present(&second), present(&first));
        let events = |store: &Store| {
            let mut cursor = store.cursor("nodes", middle).unwrap();
            let Next::Events(events) = store.next(&mut cursor, 1000) else { panic!() };
            events.iter().map(|e| e.frame().clone()).collect::<Vec<_>>()
        };
        prop_assert_eq!(events(&second), events(&first));
    }
}
