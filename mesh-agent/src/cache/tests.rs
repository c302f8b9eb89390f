use super::*;
use proptest::prelude::*;

#[test]
fn a_list_without_a_known_object_is_doubted_not_believed() {
    let mut cache = Cache::default();
    assert_eq!(cache.tell(Told::Relisted(vec![("a", 1, ()), ("b", 2, ())])), Vec::<&str>::new());
    assert_eq!(cache.tell(Told::Relisted(vec![("a", 1, ())])), ["b"]);
    assert!(cache.get(&"b").is_some(), "kept until the doubt is settled");
    cache.settle("b", None);
    assert!(cache.get(&"b").is_none());
}

#[test]
fn the_same_object_in_a_newer_version_is_nothing_new() {
    let mut cache = Cache::default();
    assert!(cache.tell(Told::Applied("a", 3, "x")).is_empty());
    assert!(cache.is_known(&Told::Applied("a", 4, "x")));
    assert!(!cache.is_known(&Told::Applied("a", 4, "y")));
    assert!(!cache.is_known(&Told::Applied("a", 2, "x")), "older: to be doubted");
    assert!(!cache.is_known(&Told::Deleted("a", 5)));
}

#[test]
fn an_older_version_or_deletion_is_doubted() {
    let mut cache = Cache::default();
    assert!(cache.tell(Told::Applied("a", 9, "new")).is_empty());
    assert_eq!(cache.tell(Told::Applied("a", 3, "old")), ["a"]);
    assert_eq!(cache.tell(Told::Deleted("a", 3)), ["a"]);
    assert_eq!(cache.get(&"a"), Some(&"new"));
    cache.settle("a", Some((3, "restored")));
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
        let doubts = cache.tell(Told::Relisted(list(&now)));
        prop_assert!(doubts.is_empty());
        for (when, relist) in stale {
            let version = when.index(truth.len());
            let told = if relist {
                Told::Relisted(list(&at(version)))
            } else if truth[version].1 {
                Told::Applied(truth[version].0, version as u64, version as u64)
            } else {
                Told::Deleted(truth[version].0, version as u64)
            };
            for key in cache.tell(told) {
                cache.settle(key, now.get(&key).map(|v| (*v, *v)));
            }
            // An object unknown here and gone in truth may have been brought back by a stale event; a list ends that.
        }
        for key in cache.tell(Told::Relisted(list(&now))) {
            cache.settle(key, now.get(&key).map(|v| (*v, *v)));
        }
        let got: BTreeMap<u8, u64> = cache.iter().map(|(k, v)| (*k, *v)).collect();
        prop_assert_eq!(got, now);
    }
}
