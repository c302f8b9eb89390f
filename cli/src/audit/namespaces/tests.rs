use super::*;
use serde_json::json;

/// `denies`, `opens` or nothing for ingress and egress, by one policy with this specification.
fn check(spec: serde_json::Value, wanted: [&str; 2]) {
    let policy = policy("shop", "p", spec.clone());
    let found = judge(&namespaces(&[("shop", "")]), &[policy], &BTreeSet::new());
    let word = |rule: &DefaultRule| match (rule.denied_by.is_empty(), rule.opened_by.is_empty()) {
        (false, true) => "denies",
        (true, false) => "opens",
        (true, true) => "",
        (false, false) => "both",
    };
    assert_eq!([word(&found[0].ingress), word(&found[0].egress)], wanted, "{spec}");
}

fn policy(namespace: &str, name: &str, spec: serde_json::Value) -> NetworkPolicy {
    serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})).unwrap()
}

fn namespaces(all: &[(&str, &str)]) -> BTreeMap<String, BTreeMap<String, String>> {
    let annotations = |value: &str| match value {
        "" => BTreeMap::new(),
        value => BTreeMap::from([(ANNOTATION_POLICY.to_owned(), value.to_owned())]),
    };
    all.iter().map(|(name, value)| ((*name).to_owned(), annotations(value))).collect()
}

#[test]
fn a_policy_denies_by_default_when_it_selects_all_pods_and_has_no_rule() {
    let all = json!({});
    check(json!({"podSelector": all, "policyTypes": ["Ingress"]}), ["denies", ""]);
    check(json!({"podSelector": all, "policyTypes": ["Egress"]}), ["", "denies"]);
    check(json!({"podSelector": all, "policyTypes": ["Ingress", "Egress"]}), ["denies", "denies"]);
    check(json!({"podSelector": all, "policyTypes": ["Ingress"], "ingress": []}), ["denies", ""]);
    check(json!({"policyTypes": ["Ingress", "Egress"]}), ["denies", "denies"]);
    check(
        json!({"podSelector": {"matchLabels": {}, "matchExpressions": []}, "policyTypes": ["Ingress"]}),
        ["denies", ""],
    );
    // Without types: ingress always, egress where it has rules.
    check(json!({"podSelector": all}), ["denies", ""]);
    check(json!({"podSelector": all, "policyTypes": []}), ["denies", ""]);
    check(json!({"podSelector": all, "egress": [{"to": [{"podSelector": {}}]}]}), ["denies", ""]);
    check(json!({"podSelector": all, "egress": [{}]}), ["denies", "opens"]);
}

#[test]
fn a_policy_for_some_pods_or_with_rules_does_not() {
    let one = json!({"matchLabels": {"app": "web"}});
    let expression = json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]});
    check(json!({"podSelector": one, "policyTypes": ["Ingress", "Egress"]}), ["", ""]);
    check(json!({"podSelector": expression, "policyTypes": ["Ingress", "Egress"]}), ["", ""]);
    check(
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}),
        ["", ""],
    );
    check(
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80}]}]}),
        ["", ""],
    );
    check(json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]}), ["opens", ""]);
    check(
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [], "ports": []}]}),
        ["opens", ""],
    );
    check(
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}, {}]}),
        ["", "opens"],
    );
    // Rules of a direction that is not among the types mean nothing.
    check(json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]}), ["", "denies"]);
}

#[test]
fn what_another_policy_opens_for_all_pods_is_not_denied_and_policies_are_of_their_own_namespace() {
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    let open = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]});
    let policies =
        [policy("shop", "deny", deny.clone()), policy("shop", "open", open), policy("bank", "deny", deny)];
    let all = namespaces(&[("shop", ""), ("bank", "audit"), ("empty", "Audit"), ("kube-system", "")]);
    let found = judge(&all, &policies, &BTreeSet::from(["kube-system".to_owned()]));
    let words: Vec<(&str, bool, bool, bool, bool)> = found
        .iter()
        .map(|n| (n.name.as_str(), n.ingress.denies(), n.egress.denies(), n.audited, n.exempt))
        .collect();
    assert_eq!(
        words,
        [
            ("bank", true, true, true, false),
            ("empty", false, false, false, false),
            ("kube-system", false, false, false, true),
            ("shop", false, true, false, false),
        ]
    );
    assert_eq!(found[3].ingress.opened_by, ["open"]);
}
