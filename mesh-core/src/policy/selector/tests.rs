use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn labels() -> impl Strategy<Value = Labels> {
    let word = |all: &'static [&'static str]| select(all).prop_map(str::to_owned);
    btree_map(word(&["a", "b", "c"]), word(&["1", "2"]), 0..4)
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let operators = select(&["In", "NotIn", "Exists", "DoesNotExist", "in", ""][..]);
    let values = vec(select(&["1", "2"][..]).prop_map(str::to_owned), 0..3);
    (select(&["a", "b", "c"][..]), operators, values).prop_map(|(key, operator, values)| Requirement {
        key: key.into(),
        operator: operator.into(),
        values,
    })
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    (labels(), vec(requirement(), 0..3))
        .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions })
}

#[test]
fn requirements_mean_what_the_api_says_and_wrong_ones_are_named() {
    let cases = [
        ("In", &["1"][..], "a=1", Ok(true)),
        ("In", &["1", "2"], "a=2", Ok(true)),
        ("In", &["1"], "a=2", Ok(false)),
        ("In", &["1"], "", Ok(false)),
        ("In", &[], "a=1", Err("matchExpressions[0].values")),
        ("NotIn", &["1"], "a=1", Ok(false)),
        ("NotIn", &["1"], "a=2", Ok(true)),
        ("NotIn", &["1"], "", Ok(true)),
        ("NotIn", &[], "", Err("matchExpressions[0].values")),
        ("Exists", &[], "a=1", Ok(true)),
        ("Exists", &[], "b=1", Ok(false)),
        ("Exists", &["1"], "a=1", Err("matchExpressions[0].values")),
        ("DoesNotExist", &[], "a=1", Ok(false)),
        ("DoesNotExist", &[], "b=1", Ok(true)),
        ("DoesNotExist", &["1"], "b=1", Err("matchExpressions[0].values")),
        ("Near", &[], "a=1", Err("matchExpressions[0].operator")),
    ];
    for (operator, values, labels, wanted) in cases {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let requirement = Requirement { key: "a".into(), operator: operator.into(), values };
        let selector = LabelSelector { match_labels: Labels::new(), match_expressions: vec![requirement] };
        let labels = labels.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect();
        let found = Selector::read(&selector).map(|selector| selector.matches(&labels));
        assert_eq!(
            found.as_ref().map_err(|fault| fault.field.as_str()),
            wanted.as_ref().map_err(|f| *f),
            "{operator}"
        );
    }
}

proptest! {
    #[test]
    fn an_index_forgets_nobody_and_finds_nobody_twice(
        selectors in vec((selector(), selector(), any::<bool>(), any::<bool>()), 1..12),
        namespace in labels(),
        pod in labels(),
    ) {
        let mut index = PodMatchIndex::default();
        let mut by_label = LabelIndex::default();
        by_label.insert(&pod, 7);
        let mut wanted = BTreeSet::new();
        for (id, (namespaces, pods, named, stays)) in selectors.iter().enumerate() {
            let (Ok(namespaces), Ok(pods)) = (Selector::read(namespaces), Selector::read(pods)) else { continue };
            if let Some(found) = by_label.candidates(&pods) {
                prop_assert!(!pods.matches(&pod) || found == [7]);
            }
            let named = if *named { NamespaceMatch::Named("n".into()) } else { NamespaceMatch::Selected(namespaces) };
            let pods = PodMatch { namespace: named, pods };
            index.insert(&pods, id);
            if !*stays {
                index.remove(&pods, id);
            } else if pods.matches("n", &namespace, &pod) {
                wanted.insert(id);
            }
        }
        let found = index.candidates("n", &namespace, &pod);
        let once: BTreeSet<_> = found.iter().copied().collect();
        prop_assert_eq!(found.len(), once.len());
        prop_assert!(once.is_superset(&wanted));
    }
}
