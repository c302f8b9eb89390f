use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::resource::Registry;

fn selects(selector: &str, labels: &Value) -> bool {
    let parsed = parse_labels(selector).unwrap_or_else(|e| panic!("{selector}: {e}"));
    parsed.iter().all(|r| r.matches(labels))
}

#[test]
fn label_selectors_select() {
    let labels = json!({"app": "web", "tier": "front", "hawser.dev/zone": "a", "n": "5", "empty": ""});
    let cases = [
        ("", true),
        ("app", true),
        ("!app", false),
        ("!gone", true),
        ("app=web", true),
        ("app==web", true),
        ("app = web , tier=front", true),
        ("app!=web", false),
        ("gone!=web", true),
        ("app in (api, web)", true),
        ("app in (api)", false),
        ("app notin (api,web)", false),
        ("gone notin (api)", true),
        ("gone in (api)", false),
        ("hawser.dev/zone=a,app in (web),!gone", true),
        ("empty=", true),
        ("n>4", true),
        ("n<5", false),
    ];
    for (selector, expected) in cases {
        assert_eq!(selects(selector, &labels), expected, "{selector}");
    }
}

#[test]
fn bad_label_selectors_are_refused() {
    for selector in
        ["a in b", "a in (b", "a )", "(a)", "a in (b))", "a b", "=x", "a=b=c", "a>x", "a,,b", "a=b c"]
    {
        assert!(parse_labels(selector).is_err(), "{selector}");
    }
}

fn select_pod(selector: &str) -> Result<bool, ApiError> {
    let registry = Registry::builtin();
    let pod = json!({"metadata": {"name": "p", "namespace": "d"}, "spec": {"nodeName": "n1"},
        "status": {"phase": "Running"}});
    let selector = Selector::parse(None, Some(selector), registry.named("pods")?)?;
    Ok(selector.matches(&pod))
}

#[test]
fn field_selectors_select() {
    let cases = [
        ("metadata.name=p", true),
        ("metadata.name==p,metadata.namespace=d", true),
        ("spec.nodeName=n1,status.phase!=Failed,status.phase!=Succeeded", true),
        ("spec.nodeName!=n1", false),
        ("spec.nodeName=", false),
        ("status.podIP=", true),
        ("spec.hostNetwork=false", true),
    ];
    for (selector, expected) in cases {
        assert_eq!(select_pod(selector).unwrap(), expected, "{selector}");
    }
    assert!(select_pod("spec.image=x").is_err());
    assert!(select_pod("metadata.name").is_err());
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let key = prop::sample::select(vec!["a", "b", "c.d/e"]).prop_map(str::to_owned);
    let values =
        prop::collection::vec(prop::sample::select(vec!["x", "y", ""]).prop_map(str::to_owned), 1..3);
    prop_oneof![
        key.clone().prop_map(Requirement::Exists),
        key.clone().prop_map(Requirement::Absent),
        (key.clone(), values.clone()).prop_map(|(k, v)| Requirement::In(k, v)),
        (key.clone(), values).prop_map(|(k, v)| Requirement::NotIn(k, v)),
        (key.clone(), any::<i64>()).prop_map(|(k, n)| Requirement::Greater(k, n)),
        (key, any::<i64>()).prop_map(|(k, n)| Requirement::Less(k, n)),
    ]
}

fn print(r: &Requirement) -> String {
    match r {
        Requirement::Exists(k) => k.clone(),
        Requirement::Absent(k) => format!("!{k}"),
        Requirement::In(k, v) => format!("{k} in ({})", v.join(",")),
        Requirement::NotIn(k, v) => format!("{k} notin ({})", v.join(",")),
        Requirement::Greater(k, n) => format!("{k}>{n}"),
        Requirement::Less(k, n) => format!("{k}<{n}"),
    }
}

proptest! {
    #[test]
    fn a_printed_selector_parses_to_itself(requirements in prop::collection::vec(requirement(), 1..5)) {
        let text = requirements.iter().map(print).collect::<Vec<_>>().join(",");
        prop_assert_eq!(parse_labels(&text).unwrap(), requirements);
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in "[a-c=!<>(), in\\\\é]{0,24}") {
        let _ = parse_labels(&text);
        let _ = select_pod(&text);
    }

    #[test]
    fn notin_is_the_opposite_of_in(labels in prop::collection::btree_map("[ab]", "[xy]", 0..2), r in requirement()) {
        if let Requirement::In(k, v) = r {
            let labels = json!(labels);
            let not = Requirement::NotIn(k.clone(), v.clone()).matches(&labels);
            prop_assert_eq!(Requirement::In(k, v).matches(&labels), !not);
        }
    }
}
