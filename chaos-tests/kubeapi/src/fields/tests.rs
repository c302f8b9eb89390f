use serde_json::json;

use super::*;

#[test]
fn leaves_encode_to_fields_v1_and_back() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "1"},
        "finalizers": ["f/1"]}, "spec": {"containers": [{"name": "c", "image": "i"}], "tolerations": [{}]}});
    let set: FieldSet = leaves(&pod, Schema::Builtin("Pod")).into_keys().collect();
    let encoded = encode(&set);
    assert_eq!(
        encoded,
        json!({"f:metadata": {"f:labels": {"f:x": {}}, "f:finalizers": {"v:\"f/1\"": {}}},
            "f:spec": {"f:tolerations": {},
                "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}}}}})
    );
    assert_eq!(decode(&encoded), set);
}

#[test]
fn a_keyed_list_with_one_key_twice_is_one_leaf() {
    let node = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"},
        {"type": "InternalIP", "address": "2001:db8::1"}]}});
    let paths: Vec<String> = leaves(&node, Schema::Builtin("Node")).keys().map(|p| display(p)).collect();
    assert_eq!(paths, [".status.addresses"]);
}

#[test]
fn removing_the_last_leaf_removes_the_empty_map() {
    let mut object = json!({"metadata": {"labels": {"x": "1"}}, "spec": {"l": [{"name": "a", "b": 1}]}});
    remove(
        &mut object,
        &[Step::Field("metadata".into()), Step::Field("labels".into()), Step::Field("x".into())],
    );
    assert_eq!(object, json!({"spec": {"l": [{"name": "a", "b": 1}]}}));
    remove(
        &mut object,
        &[Step::Field("spec".into()), Step::Field("l".into()), Step::Key("{\"name\":\"a\"}".into())],
    );
    assert_eq!(object, json!({}));
}
