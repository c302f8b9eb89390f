//! The evaluator, by small policies; `deployed` holds the ones that are shipped against an oracle.

mod deployed;

use super::*;
use crate::resource::Registry;

fn resource(key: &str) -> Resource {
    Registry::builtin().named(key).unwrap().as_ref().clone()
}

/// A write of a Node by `alice`, with annotations before and after.
struct Change {
    resource: Resource,
    user: User,
    old: Value,
    new: Value,
    subresource: &'static str,
    operation: Operation,
}

impl Change {
    fn update(old: Value, new: Value) -> Self {
        Self {
            resource: resource("nodes"),
            user: User::new("alice", &["admins"]),
            old,
            new,
            subresource: "",
            operation: Operation::Update,
        }
    }

    fn request(&self) -> Request<'_> {
        Request {
            user: &self.user,
            operation: self.operation,
            resource: &self.resource,
            version: "v1",
            subresource: self.subresource,
            namespace: "",
            name: "n1",
            dry_run: false,
            old: &self.old,
            new: &self.new,
            namespace_object: &Value::Null,
        }
    }
}

fn nodes() -> Value {
    json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["nodes"]}]})
}

fn policy(spec: Value) -> Value {
    let mut object = json!({"kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"}, "spec": spec});
    if object["spec"]["matchConstraints"].is_null() {
        object["spec"]["matchConstraints"] = nodes();
    }
    object
}

fn binding(actions: &[&str]) -> Value {
    json!({"kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "b"},
        "spec": {"policyName": "p", "validationActions": actions}})
}

fn bound(spec: Value) -> Policies {
    let mut policies = Policies::default();
    policies.note(POLICIES, "p", Some(&policy(spec))).unwrap();
    policies.note(BINDINGS, "b", Some(&binding(&["Deny"]))).unwrap();
    policies
}

/// What the policy says to a change of label `a` from 1 to 2.
fn verdict(spec: Value) -> Result<(), String> {
    let object = |a: &str| json!({"metadata": {"name": "n1", "labels": {"a": a}}, "spec": {"n": 5}});
    let change = Change::update(object("1"), object("2"));
    bound(spec).judge(&change.request()).map_err(|denial| {
        let prefix = "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: ";
        denial.message.strip_prefix(prefix).expect("as the real server words it").to_owned()
    })
}

fn expression(text: &str) -> Value {
    json!({"validations": [{"expression": text}]})
}

#[test]
fn what_expressions_see_is_what_the_real_server_shows_them() {
    for holds in [
        "object.metadata.labels.a == '2' && oldObject.metadata.labels['a'] == '1'",
        // Whole numbers are int.
        "object.spec.n == 5 && object.spec.n + 1 == 6",
        "request.operation == 'UPDATE' && request.name == 'n1' && !request.dryRun",
        "request.userInfo.username == 'alice' && 'admins' in request.userInfo.groups",
        "!has(request.userInfo.extra) && !has(request.userInfo.uid)",
        "request.resource.resource == 'nodes' && request.resource.group == '' && request.kind.kind == 'Node'",
        "!has(request.subResource) && !has(request.namespace)",
        "params == null && namespaceObject == null",
        "!has(object.metadata.annotations) && !has(object.spec.taints)",
        "dyn(object.spec).all(k, k in dyn(oldObject.spec) && dyn(object.spec)[k] == dyn(oldObject.spec)[k])",
        "object.metadata.labels.filter(k, object.metadata.labels[k] == '2') == ['a']",
        "['b', 'a'].join(', ') == 'b, a' && {} == {} && [] == []",
        "(has(object.metadata.annotations) ? object.metadata.annotations : {}) == {}",
        // An error beside what decides does not count.
        "true || object.nothing.here == 1",
        "object.nothing.here == 1 || true",
    ] {
        assert_eq!(verdict(expression(holds)), Ok(()), "{holds}");
        assert!(verdict(expression(&format!("!({holds})"))).is_err(), "{holds}");
    }
}

#[test]
fn a_denial_says_the_expressions_message_else_the_fixed_one_else_the_expression() {
    let spec = |told: Value, fixed: Value| json!({"validations": [{"expression": " false ", "messageExpression": told, "message": fixed}]});
    for (told, fixed, expected) in [
        (json!("'label ' + object.metadata.labels.a"), json!("fixed"), "label 2"),
        (json!("'  trimmed '"), json!("fixed"), "trimmed"),
        // Unusable ones: empty, not a string, two lines, an error.
        (json!("''"), json!("fixed"), "fixed"),
        (json!("1"), json!("fixed"), "fixed"),
        (json!("'a\\nb'"), json!("fixed"), "fixed"),
        (json!("object.nothing"), json!("fixed"), "fixed"),
        (Value::Null, json!(" fixed "), "fixed"),
        (Value::Null, Value::Null, "failed expression: false"),
    ] {
        assert_eq!(verdict(spec(told.clone(), fixed.clone())), Err(expected.to_owned()), "{told} {fixed}");
    }
}

#[test]
fn the_first_validation_that_denies_answers() {
    let spec = json!({"validations": [
        {"expression": "true", "message": "a"}, {"expression": "false", "message": "b"},
        {"expression": "false", "message": "c"}]});
    assert_eq!(verdict(spec), Err("b".to_owned()));
}

#[test]
fn what_cannot_be_evaluated_is_denied_under_fail_and_passes_under_ignore() {
    for (text, why) in [
        ("object.nothing == 1", "No such key: nothing"),
        ("object.metadata.name > 1", ""),
        ("object.metadata.name", "must evaluate to bool, not to string"),
    ] {
        let error = verdict(expression(text)).unwrap_err();
        assert!(error.starts_with(&format!("expression '{text}' resulted in error: ")), "{error}");
        assert!(error.contains(why), "{error}");
        let ignored = json!({"failurePolicy": "Ignore", "validations": [{"expression": text}]});
        assert_eq!(verdict(ignored), Ok(()), "{text}");
    }
    // A false one denies all the same.
    let ignored = json!({"failurePolicy": "Ignore", "validations": [{"expression": "object.nothing"}, {"expression": "false"}]});
    assert!(verdict(ignored).is_err());
}

#[test]
fn conditions_all_have_to_hold_and_one_that_does_not_outweighs_one_that_fails() {
    for (conditions, failure, expected) in [
        (&["true", "true"][..], "Fail", Err("failed expression: false")),
        (&["true", "false"], "Fail", Ok(())),
        (&["object.nothing", "false"], "Fail", Ok(())),
        (&["false", "object.nothing"], "Fail", Ok(())),
        (
            &["object.nothing", "true"],
            "Fail",
            Err("expression 'object.nothing' resulted in error: No such key: nothing"),
        ),
        (&["object.nothing", "true"], "Ignore", Ok(())),
    ] {
        let list: Vec<Value> = conditions
            .iter()
            .enumerate()
            .map(|(at, text)| json!({"name": format!("c{at}"), "expression": text}))
            .collect();
        let spec = json!({"failurePolicy": failure, "matchConditions": list, "validations": [{"expression": "false"}]});
        assert_eq!(verdict(spec), expected.map_err(str::to_owned), "{conditions:?} {failure}");
    }
}

#[test]
fn variables_use_those_before_them_and_one_that_fails_harms_only_who_uses_it() {
    let spec = |text: &str| {
        json!({"variables": [
            {"name": "label", "expression": "object.metadata.labels.a"},
            {"name": "bad", "expression": "object.nothing"},
            {"name": "twice", "expression": "variables.label + variables.label"},
            {"name": "worse", "expression": "variables.bad == 1"}],
            "validations": [{"expression": text}]})
    };
    assert_eq!(verdict(spec("variables.twice == '22'")), Ok(()));
    assert_eq!(verdict(spec("variables.label == '2' || variables.bad")), Ok(()));
    let error = verdict(spec("variables.bad")).unwrap_err();
    assert!(error.contains("composited variable \"bad\" fails to evaluate: "), "{error}");
    let error = verdict(spec("variables.worse")).unwrap_err();
    assert!(error.contains("\"worse\"") && error.contains("\"bad\"") && error.contains("nothing"), "{error}");
}

#[test]
fn a_policy_judges_what_its_rules_match_and_nothing_else() {
    let rule = |groups: &[&str], versions: &[&str], operations: &[&str], resources: &[&str]| json!({"apiGroups": groups, "apiVersions": versions, "operations": operations, "resources": resources});
    let base = rule(&[""], &["v1"], &["UPDATE"], &["nodes"]);
    let with = |field: &str, value: Value| {
        let mut rule = base.clone();
        rule[field] = value;
        rule
    };
    // Rule, and whether it matches an update of Node n1 and of its status.
    for (rule, object, status) in [
        (base.clone(), true, false),
        (rule(&["*"], &["*"], &["*"], &["*"]), true, false),
        (rule(&["*"], &["*"], &["*"], &["*/*"]), true, true),
        (rule(&[""], &["v1"], &["CREATE", "UPDATE"], &["pods", "nodes/status"]), false, true),
        (rule(&[""], &["v1"], &["*"], &["nodes/*"]), true, true),
        (rule(&[""], &["v1"], &["*"], &["*/status"]), false, true),
        (rule(&["apps"], &["v1"], &["*"], &["nodes"]), false, false),
        (rule(&[""], &["v2"], &["*"], &["nodes"]), false, false),
        (rule(&[""], &["v1"], &["CREATE", "DELETE"], &["nodes"]), false, false),
        (with("scope", json!("Cluster")), true, false),
        (with("scope", json!("Namespaced")), false, false),
        (with("resourceNames", json!(["n1"])), true, false),
        (with("resourceNames", json!(["n2"])), false, false),
    ] {
        for (subresource, expected) in [("", object), ("status", status)] {
            let spec = json!({"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": "false"}]});
            let change = Change { subresource, ..Change::update(json!({}), json!({})) };
            assert_eq!(bound(spec).judge(&change.request()).is_err(), expected, "{rule} {subresource:?}");
        }
    }
    let mut excluded = nodes();
    excluded["excludeResourceRules"] = json!([base]);
    let spec = json!({"matchConstraints": excluded, "validations": [{"expression": "false"}]});
    let mut change = Change::update(json!({}), json!({}));
    assert!(bound(spec.clone()).judge(&change.request()).is_ok());
    change.operation = Operation::Delete;
    assert!(bound(spec).judge(&change.request()).is_err());
}

#[test]
fn only_a_binding_that_denies_gives_a_policy_force_and_it_ends_with_either() {
    let denies = policy(expression("false"));
    let change = Change::update(json!({}), json!({}));
    let mut policies = Policies::default();
    policies.note(POLICIES, "p", Some(&denies)).unwrap();
    assert!(policies.judge(&change.request()).is_ok(), "no binding");
    for (actions, denied) in
        [(&["Warn"][..], false), (&["Audit"], false), (&["Deny"], true), (&["Deny", "Audit"], true)]
    {
        policies.note(BINDINGS, "b", Some(&binding(actions))).unwrap();
        assert_eq!(policies.judge(&change.request()).is_err(), denied, "{actions:?}");
    }
    policies.note(BINDINGS, "b", None).unwrap();
    assert!(policies.judge(&change.request()).is_ok(), "the binding is gone");
    policies.note(BINDINGS, "b", Some(&binding(&["Deny"]))).unwrap();
    policies.note(POLICIES, "p", None).unwrap();
    assert!(policies.judge(&change.request()).is_ok(), "the policy is gone");
}

#[test]
fn policies_do_not_judge_policies() {
    let all = json!({"resourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}]});
    let policies = bound(json!({"matchConstraints": all, "validations": [{"expression": "false"}]}));
    for (key, denied) in [(POLICIES, false), (BINDINGS, false), ("clusterroles", true), ("nodes", true)] {
        let change = Change { resource: resource(key), ..Change::update(json!({}), json!({})) };
        assert_eq!(policies.judge(&change.request()).is_err(), denied, "{key}");
    }
}

#[test]
fn a_reason_decides_the_code() {
    for (reason, code) in
        [(None, 422), (Some("Invalid"), 422), (Some("Forbidden"), 403), (Some("Unauthorized"), 401)]
    {
        let spec = json!({"validations": [{"expression": "false", "reason": reason}]});
        let change = Change::update(json!({}), json!({}));
        let denial = bound(spec).judge(&change.request()).unwrap_err();
        assert_eq!(denial.reason.code(), code, "{reason:?}");
    }
}

/// What is wrong with a policy: field and the beginning of the message.
fn faults(object: &Value) -> Vec<(String, String)> {
    match check(if object["kind"] == "ValidatingAdmissionPolicy" { POLICIES } else { BINDINGS }, object) {
        Err(ApiError::Invalid { causes, .. }) => causes.into_iter().map(|c| (c.field, c.message)).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wrong_policy_is_refused_with_the_field_at_its_creation() {
    let at = |spec: Value, field: &str, words: &str| {
        let found = faults(&policy(spec.clone()));
        let fits = |(f, m): &(String, String)| f == field && m.contains(words);
        assert!(found.iter().any(fits) && found.len() == 1, "{field} {words:?}: {found:?} of {spec}");
    };
    let good = json!([{"expression": "true"}]);
    for (text, words) in [
        ("1 +", "compilation failed"),
        ("objekt.x == 1", "undeclared reference to 'objekt'"),
        ("variables.later", "undefined field 'later' in 'variables'"),
        ("object.x.exists(k, l == 1)", "undeclared reference to 'l'"),
        ("object.x.exists(k, k == 1) && k == 1", "undeclared reference to 'k'"),
        ("object.x.lowerAscci() == ''", "undeclared reference to 'lowerAscci'"),
        ("authorizer.path('/').check('get').allowed()", "undeclared reference to"),
        ("", "Required value"),
    ] {
        at(json!({"validations": [{"expression": text}]}), "spec.validations[0].expression", words);
    }
    at(
        json!({"validations": [{"expression": "true", "messageExpression": "x"}]}),
        "spec.validations[0].messageExpression",
        "undeclared",
    );
    at(
        json!({"variables": [{"name": "a", "expression": "variables.b"}, {"name": "b", "expression": "1"}], "validations": good}),
        "spec.variables[0].expression",
        "undefined field 'b'",
    );
    at(
        json!({"matchConditions": [{"name": "a", "expression": "variables.b"}], "validations": good}),
        "spec.matchConditions[0].expression",
        "undeclared reference to 'variables'",
    );
    at(
        json!({"variables": [{"name": "a", "expression": "1"}, {"name": "a", "expression": "1"}], "validations": good}),
        "spec.variables[1].name",
        "Duplicate",
    );
    at(json!({"validations": []}), "spec.validations", "Required value");
    at(json!({"failurePolicy": "Maybe", "validations": good}), "spec.failurePolicy", "Unsupported");
    at(
        json!({"validations": [{"expression": "true", "reason": "Gone"}]}),
        "spec.validations[0].reason",
        "Unsupported",
    );
    // What is not served is refused, not ignored.
    at(json!({"paramKind": {"kind": "ConfigMap"}, "validations": good}), "spec.paramKind", "does not serve");
    at(
        json!({"auditAnnotations": [{"key": "a"}], "validations": good}),
        "spec.auditAnnotations",
        "does not serve",
    );
    for field in ["namespaceSelector", "objectSelector"] {
        let mut constraints = nodes();
        constraints[field] = json!({"matchLabels": {"a": "b"}});
        at(
            json!({"matchConstraints": constraints, "validations": good}),
            &format!("spec.matchConstraints.{field}"),
            "does not serve",
        );
        let mut constraints = nodes();
        constraints[field] = json!({});
        check(POLICIES, &policy(json!({"matchConstraints": constraints, "validations": good}))).unwrap();
    }
    let mut constraints = nodes();
    constraints["resourceRules"][0]["operations"] = json!(["PATCH"]);
    at(
        json!({"matchConstraints": constraints, "validations": good}),
        "spec.matchConstraints.resourceRules[0].operations",
        "PATCH",
    );
    for (spec, field) in [
        (json!({"validationActions": ["Deny"]}), "spec.policyName"),
        (json!({"policyName": "p"}), "spec.validationActions"),
        (json!({"policyName": "p", "validationActions": ["Deny", "Warn"]}), "spec.validationActions"),
        (
            json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"name": "x"}}),
            "spec.paramRef",
        ),
        (
            json!({"policyName": "p", "validationActions": ["Deny"], "matchResources": {"resourceRules": [{}]}}),
            "spec.matchResources",
        ),
    ] {
        let found = faults(&json!({"kind": "ValidatingAdmissionPolicyBinding", "spec": spec}));
        assert!(found.len() == 1 && found[0].0 == field, "{field}: {found:?}");
    }
}
