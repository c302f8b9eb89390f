//! The definitions in `deploy/crds`.

use clustermesh::mcs::wire::MAX_WORD;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use mesh_core::mcs::{MAX_MESSAGE, MAX_PORTS};
use serde_json::Value;

pub(crate) const DEFINITIONS: [&str; 2] = [
    include_str!("../../../deploy/crds/serviceexports.yaml"),
    include_str!("../../../deploy/crds/serviceimports.yaml"),
];

fn parsed() -> [Value; 2] {
    DEFINITIONS.map(|text| serde_saphyr::from_str(text).unwrap())
}

#[test]
fn both_versions_are_one_schema_and_the_newer_one_is_stored() {
    for definition in parsed() {
        let spec = &definition["spec"];
        assert_eq!((&spec["group"], &spec["scope"]), (&"multicluster.x-k8s.io".into(), &"Namespaced".into()));
        let versions = spec["versions"].as_array().unwrap();
        let said: Vec<(&Value, &Value, &Value)> =
            versions.iter().map(|one| (&one["name"], &one["served"], &one["storage"])).collect();
        let (yes, no) = (Value::from(true), Value::from(false));
        assert_eq!(said, [(&"v1beta1".into(), &yes, &yes), (&"v1alpha1".into(), &yes, &no)]);
        for field in ["schema", "subresources", "additionalPrinterColumns"] {
            assert_eq!(versions[0][field], versions[1][field], "{field}");
            assert!(!versions[0][field].is_null(), "{field}");
        }
        assert_eq!(versions[0]["subresources"]["status"], serde_json::json!({}));
    }
}

#[test]
fn every_field_is_one_that_kubernetes_knows() {
    for definition in parsed() {
        let mut read: CustomResourceDefinition = serde_json::from_value(definition.clone()).unwrap();
        read.status = None;
        assert_eq!(floats(serde_json::to_value(read).unwrap()), floats(definition));
    }
}

/// All numbers of one type: the API's `minimum` is a float, which YAML writes as it likes.
fn floats(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(all) => all.into_iter().map(floats).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, floats(value))).collect(),
        Value::Null | Value::Bool(_) | Value::String(_) => value,
    }
}

#[test]
fn bounds_are_those_of_who_writes() {
    let [_, import] = parsed();
    let root = &import["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let spec = &root["spec"]["properties"];
    assert!(spec["ports"]["maxItems"].as_u64().unwrap() >= u64::try_from(MAX_PORTS).unwrap());
    assert_eq!(spec["trafficDistribution"]["maxLength"], MAX_WORD);
    let condition = &root["status"]["properties"]["conditions"]["items"]["properties"];
    assert_eq!(condition["message"]["maxLength"], MAX_MESSAGE);
}
