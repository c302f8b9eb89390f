use super::*;
use proptest::prelude::*;

#[test]
fn a_list_without_a_known_object_is_doubted_not_believed() {
    let mut cache = Cache::default();
    let outcome = cache.tell(Told::Relisted(vec![("a", 1, ()), ("b", 2, ())]));
    assert_eq!(outcome, Outcome { changed: vec!["a", "b"], doubts: vec![] });
    assert_eq!(
        cache.tell(Told::Relisted(vec![("a", 1, ())])),
        Outcome { changed: vec![], doubts: vec!["b"] }
    );
    assert!(cache.get(&"b").is_some(), "kept until the doubt is settled");
    assert!(cache.settle("b", None));
    assert!(!cache.settle("b", None));
    assert!(cache.get(&"b").is_none());
}

#[test]
fn the_same_object_in_a_newer_version_is_nothing_new() {
    let mut cache = Cache::default();
    let changed = |outcome: Outcome<&'static str>| (outcome.changed.len(), outcome.doubts.len());
    assert_eq!(changed(cache.tell(Told::Applied("a", 3, "x"))), (1, 0));
    assert_eq!(changed(cache.tell(Told::Applied("a", 5, "x"))), (0, 0));
    assert_eq!(
        changed(cache.tell(Told::Applied("a", 4, "x"))),
        (0, 1),
        "older: doubted, though it says the same"
    );
    assert_eq!(changed(cache.tell(Told::Applied("a", 6, "y"))), (1, 0));
    assert_eq!(changed(cache.tell(Told::Relisted(vec![("a", 7, "y"), ("b", 2, "z")]))), (1, 0), "b alone");
    assert_eq!(changed(cache.tell(Told::Deleted("a", 8))), (1, 0));
    assert_eq!(changed(cache.tell(Told::Deleted("a", 8))), (0, 0), "gone already");
    assert_eq!(cache.clear(), ["b"]);
}

#[test]
fn a_list_of_fifty_thousand_is_taken_in_at_once() {
    // A scan of the list for each known object would be 2.5 billion comparisons: minutes in a build for tests.
    let list = || (0..50_000_u32).map(|n| (n, u64::from(n), ())).collect::<Vec<_>>();
    let mut cache = Cache::default();
    assert_eq!(cache.tell(Told::Relisted(list())).changed.len(), 50_000);
    assert_eq!(cache.tell(Told::Relisted(list())), Outcome::default());
}

#[test]
fn an_older_version_or_deletion_is_doubted() {
    let mut cache = Cache::default();
    assert!(cache.tell(Told::Applied("a", 9, "new")).doubts.is_empty());
    assert_eq!(cache.tell(Told::Applied("a", 3, "old")).doubts, ["a"]);
    assert_eq!(cache.tell(Told::Deleted("a", 3)).doubts, ["a"]);
    assert_eq!(cache.get(&"a"), Some(&"new"));
    assert!(cache.settle("a", Some((3, "restored"))));
    assert_eq!(cache.get(&"a"), Some(&"restored"), "a restore from backup wins once it is confirmed");
}

proptest! {
    /// The truth is a sequence of versions of few objects. Whatever stale pieces of it are told in whatever order, once
    /// doubts are settled against the truth and the newest list was told, the cache equals the truth.
    #[test]
    fn stale_news_never_win(
        truth in proptest::collection::vec((0_u8..4, any::<bool>()), 1..30),
        stale in proptest::collection::vec((any::<proptest::sample::Index>(), any::<bool>()), 0..40),
    ) {
        let at = |upto: usize| {
            let mut state: BTreeMap<u8, u64> = BTreeMap::new();
            for (version, (key, alive)) in truth.iter().enumerate().take(upto) {
                if *alive { state.insert(*key, version as u64); } else { state.remove(key); }
            }
            state
        };
        let now = at(truth.len());
        let list = |state: &BTreeMap<u8, u64>| state.iter().map(|(k, v)| (*k, *v, *v)).collect::<Vec<_>>();
        let mut cache = Cache::default();
        let outcome = cache.tell(Told::Relisted(list(&now)));
        prop_assert!(outcome.doubts.is_empty());
        for (when, relist) in stale {
            let version = when.index(truth.len());
            let told = if relist {
                Told::Relisted(list(&at(version)))
            } else if truth[version].1 {
                Told::Applied(truth[version].0, version as u64, version as u64)
            } else {
                Told::Deleted(truth[version].0, version as u64)
            };
            for key in cache.tell(told).doubts {
                cache.settle(key, now.get(&key).map(|v| (*v, *v)));
            }
            // An object unknown here and gone in truth may have been brought back by a stale event; a list ends that.
        }
        for key in cache.tell(Told::Relisted(list(&now))).doubts {
            cache.settle(key, now.get(&key).map(|v| (*v, *v)));
        }
        let got: BTreeMap<u8, u64> = cache.iter().map(|(k, v)| (*k, *v)).collect();
        prop_assert_eq!(got, now);
    }
}
