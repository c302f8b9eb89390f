use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::managed::{Managed, Manager};
use crate::patch::apply::Applier;

#[test]
fn merge_patch_vectors_of_rfc_7386() {
    // Appendix A: original, patch, result.
    let vectors = [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a": "b"}), json!(["c"]), json!(["c"])),
        (json!({"a": "foo"}), json!(null), json!(null)),
        (json!({"a": "foo"}), json!("bar"), json!("bar")),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ];
    for (original, patch, result) in vectors {
        assert_eq!(merge(&original, &patch), result, "{original} + {patch}");
    }
}

#[test]
fn json_patch_examples_of_rfc_6902() {
    // Appendix A, by section; None where the patch must fail.
    let examples = [
        (
            "A.1",
            json!({"foo": "bar"}),
            json!([{"op": "add", "path": "/baz", "value": "qux"}]),
            Some(json!({"baz": "qux", "foo": "bar"})),
        ),
        (
            "A.2",
            json!({"foo": ["bar", "baz"]}),
            json!([{"op": "add", "path": "/foo/1", "value": "qux"}]),
            Some(json!({"foo": ["bar", "qux", "baz"]})),
        ),
        (
            "A.3",
            json!({"baz": "qux", "foo": "bar"}),
            json!([{"op": "remove", "path": "/baz"}]),
            Some(json!({"foo": "bar"})),
        ),
        (
            "A.4",
            json!({"foo": ["bar", "qux", "baz"]}),
            json!([{"op": "remove", "path": "/foo/1"}]),
            Some(json!({"foo": ["bar", "baz"]})),
        ),
        (
            "A.5",
            json!({"baz": "qux", "foo": "bar"}),
            json!([{"op": "replace", "path": "/baz", "value": "boo"}]),
            Some(json!({"baz": "boo", "foo": "bar"})),
        ),
        (
            "A.6",
            json!({"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}}),
            json!([{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]),
            Some(json!({"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}})),
        ),
        (
            "A.7",
            json!({"foo": ["all", "grass", "cows", "eat"]}),
            json!([{"op": "move", "from": "/foo/1", "path": "/foo/3"}]),
            Some(json!({"foo": ["all", "cows", "eat", "grass"]})),
        ),
        (
            "A.8",
            json!({"baz": "qux", "foo": ["a", 2, "c"]}),
            json!([{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}]),
            Some(json!({"baz": "qux", "foo": ["a", 2, "c"]})),
        ),
        ("A.9", json!({"baz": "qux"}), json!([{"op": "test", "path": "/baz", "value": "bar"}]), None),
        (
            "A.10",
            json!({"foo": "bar"}),
            json!([{"op": "add", "path": "/child", "value": {"grandchild": {}}}]),
            Some(json!({"foo": "bar", "child": {"grandchild": {}}})),
        ),
        (
            "A.11",
            json!({"foo": "bar"}),
            json!([{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}]),
            Some(json!({"foo": "bar", "baz": "qux"})),
        ),
        ("A.12", json!({"foo": "bar"}), json!([{"op": "add", "path": "/baz/bat", "value": "qux"}]), None),
        (
            "A.14",
            json!({"/": 9, "~1": 10}),
            json!([{"op": "test", "path": "/~01", "value": 10}]),
            Some(json!({"/": 9, "~1": 10})),
        ),
        ("A.15", json!({"/": 9, "~1": 10}), json!([{"op": "test", "path": "/~01", "value": "10"}]), None),
        (
            "A.16",
            json!({"foo": ["bar"]}),
            json!([{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}]),
            Some(json!({"foo": ["bar", ["abc", "def"]]})),
        ),
    ];
    for (section, original, patch, result) in examples {
        assert_eq!(json(&original, &patch).ok(), result, "{section}");
    }
}

#[test]
fn copies_that_double_an_object_again_and_again_are_refused() {
    let copies: Vec<_> =
        (0..40).map(|n| json!({"op": "copy", "from": "/a", "path": format!("/a/x{n}")})).collect();
    assert!(json(&json!({"a": {"b": "0123456789"}}), &Value::Array(copies)).is_err());
}

fn check_strategic(kind: &'static str, before: Value, patch: Value, after: Value) {
    let got = strategic(&before, &patch, Schema::Builtin(kind)).unwrap();
    assert_eq!(got, after, "{before} + {patch}");
}

#[test]
fn strategic_merge_merges_keyed_lists() {
    check_strategic(
        "Pod",
        json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}]}}),
        json!({"spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}, {"name": "c"}]}}),
        json!({"spec": {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]},
            {"name": "b"}, {"name": "c"}]}}),
    );
    check_strategic(
        "Node",
        json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "DiskPressure", "status": "False"}]}}),
        json!({"status": {"conditions": [{"type": "Ready", "status": "True"},
            {"type": "NetworkUnavailable", "status": "False"}]}}),
        json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"},
            {"type": "NetworkUnavailable", "status": "False"}]}}),
    );
    check_strategic(
        "Service",
        json!({"spec": {"ports": [{"port": 80, "name": "a"}]}}),
        json!({"spec": {"ports": [{"port": 80, "name": "b"}, {"port": 81}]}}),
        json!({"spec": {"ports": [{"port": 80, "name": "b"}, {"port": 81}]}}),
    );
    check_strategic(
        "Deployment",
        json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}]}]}}}}),
        json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 2}]}]}}}}),
        json!({"spec": {"template": {"spec": {"containers":
            [{"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 2}]}]}}}}),
    );
}

#[test]
fn strategic_merge_replaces_lists_without_a_key_as_tolerations_and_taints_are() {
    check_strategic(
        "Node",
        json!({"spec": {"taints": [{"key": "a"}]}}),
        json!({"spec": {"taints": [{"key": "b"}]}}),
        json!({"spec": {"taints": [{"key": "b"}]}}),
    );
    check_strategic(
        "Pod",
        json!({"spec": {"tolerations": [{"key": "a"}], "x": 1}}),
        json!({"spec": {"tolerations": [{"key": "b"}]}}),
        json!({"spec": {"tolerations": [{"key": "b"}], "x": 1}}),
    );
}

#[test]
fn strategic_merge_obeys_directives() {
    let pod = json!({"spec": {"containers": [{"name": "a", "effect": "NoSchedule"}, {"name": "b", "effect": "NoExecute"}]}});
    check_strategic(
        "Pod",
        pod.clone(),
        json!({"spec": {"containers": [{"$patch": "delete", "name": "a"}]}}),
        json!({"spec": {"containers": [{"name": "b", "effect": "NoExecute"}]}}),
    );
    check_strategic(
        "Pod",
        pod.clone(),
        json!({"spec": {"containers": [{"name": "c"}, {"$patch": "replace"}]}}),
        json!({"spec": {"containers": [{"name": "c"}]}}),
    );
    check_strategic(
        "Pod",
        pod.clone(),
        json!({"spec": {"$patch": "replace", "x": 1}}),
        json!({"spec": {"x": 1}}),
    );
    check_strategic("Pod", pod.clone(), json!({"spec": {"$patch": "delete"}}), json!({}));
    check_strategic(
        "Pod",
        pod.clone(),
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "v": 1}]}}),
        json!({"spec": {"containers": [{"name": "b", "effect": "NoExecute"}, {"name": "a", "effect": "NoSchedule", "v": 1}]}}),
    );
    check_strategic(
        "Pod",
        json!({"metadata": {"finalizers": ["a", "b"]}}),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
        json!({"metadata": {"finalizers": ["b", "c"]}}),
    );
    check_strategic(
        "Pod",
        json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
        json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}),
        json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
    );
    let error = strategic(&pod, &json!({"spec": {"containers": [{"effect": "x"}]}}), Schema::Builtin("Pod"));
    assert!(error.is_err(), "an item without its merge key");
    assert!(strategic(&pod, &json!({"spec": {"$patch": "explode"}}), Schema::Builtin("Pod")).is_err());
}

fn manager(name: &str) -> Manager {
    Manager { name: name.into(), apply: true, api_version: "v1".into(), subresource: String::new() }
}

fn applied(live: &Value, config: Value, name: &str, force: bool) -> Result<Value, ApiError> {
    let applier = Applier { manager: manager(name), force, now: "2026-01-01T00:00:00Z" };
    apply::apply(live, &config, Schema::Builtin("Node"), &applier)
}

#[test]
fn apply_removes_what_its_manager_no_longer_applies_and_nobody_else_owns() {
    let one = applied(
        &Value::Null,
        json!({"kind": "Node", "metadata": {"labels": {"a": "1", "b": "1"}}}),
        "x",
        false,
    )
    .unwrap();
    let two = applied(&one, json!({"metadata": {"labels": {"b": "1"}}}), "y", false).unwrap();
    let three = applied(&two, json!({"metadata": {"labels": {}}}), "x", false).unwrap();
    assert_eq!(three["metadata"]["labels"], json!({"b": "1"}), "a was x's alone, b is y's too");
}

#[test]
fn apply_conflicts_on_another_managers_value_unless_forced() {
    let one = applied(&Value::Null, json!({"metadata": {"annotations": {"k": "1"}}}), "x", false).unwrap();
    let config = json!({"metadata": {"annotations": {"k": "2"}}});
    let Err(ApiError::ApplyConflicts { conflicts }) = applied(&one, config.clone(), "y", false) else {
        panic!()
    };
    assert_eq!(
        (conflicts[0].manager.as_str(), conflicts[0].field.as_str()),
        ("x", ".metadata.annotations.k")
    );
    let taken = applied(&one, config, "y", true).unwrap();
    assert_eq!(taken["metadata"]["annotations"]["k"], "2");
    assert!(!Managed::of(&taken).0.contains_key(&manager("x")), "x lost its only field");
    assert!(
        applied(&one, json!({"metadata": {"annotations": {"k": "1"}}}), "y", false).is_ok(),
        "same value: shared"
    );
}

#[test]
fn apply_merges_conditions_by_type_and_keeps_those_of_others() {
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
    let one = applied(
        &Value::Null,
        json!({"metadata": {}, "status": {"conditions": [condition("A", "1")]}}),
        "x",
        false,
    )
    .unwrap();
    let two =
        applied(&one, json!({"metadata": {}, "status": {"conditions": [condition("B", "1")]}}), "y", false)
            .unwrap();
    assert_eq!(two["status"]["conditions"], json!([condition("A", "1"), condition("B", "1")]));
    let three = applied(&two, json!({"metadata": {}, "status": {}}), "x", false).unwrap();
    assert_eq!(three["status"]["conditions"], json!([condition("B", "1")]));
}

fn tree() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..3i64).prop_map(Value::from)];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::btree_map("[abc]", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[abc]", tree(), 0..4).prop_map(|m| Value::Object(m.into_iter().collect()))
}

/// RFC 7386, section 2, word by word.
fn merge_oracle(target: &Value, patch: &Value) -> Value {
    let Some(patch) = patch.as_object() else { return patch.clone() };
    let mut out = target.as_object().cloned().unwrap_or_default();
    for (name, value) in patch {
        if value.is_null() {
            out.remove(name);
        } else {
            let merged = merge_oracle(out.get(name).unwrap_or(&Value::Null), value);
            out.insert(name.clone(), merged);
        }
    }
    Value::Object(out)
}

proptest! {
    #[test]
    fn merge_is_that_of_the_rfc_and_idempotent(target in tree(), patch in tree()) {
        let once = merge(&target, &patch);
        prop_assert_eq!(&once, &merge_oracle(&target, &patch));
        prop_assert_eq!(&merge(&once, &patch), &once);
    }

    #[test]
    fn strategic_is_merge_where_nothing_is_known_of_the_type(target in object(), patch in object()) {
        let got = strategic(&target, &patch, Schema::Unknown).unwrap();
        prop_assert_eq!(got, merge(&target, &patch));
    }

    #[test]
    fn applying_twice_changes_nothing_and_applying_nothing_takes_all_back(
        live in object(), config in object(),
    ) {
        let live = json!({"metadata": {}, "spec": live});
        let config = json!({"metadata": {}, "spec": {"mine": config}});
        let once = applied(&live, config.clone(), "x", true).unwrap();
        let twice = applied(&once, config, "x", false).unwrap();
        prop_assert_eq!(&twice, &once);
        let mut back = applied(&twice, json!({"metadata": {}}), "x", false).unwrap();
        let gone = back["spec"]["mine"].is_null();
        prop_assert!(gone, "{back}");
        back["metadata"] = json!({});
    }
}
