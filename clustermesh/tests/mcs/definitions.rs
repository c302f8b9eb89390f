//! The definitions in `deploy/crds`.

use clustermesh::mcs::wire::MAX_WORD;
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
fn bounds_are_those_of_who_writes() {
    let [_, import] = parsed();
    let root = &import["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let spec = &root["spec"]["properties"];
    assert!(spec["ports"]["maxItems"].as_u64().unwrap() >= u64::try_from(MAX_PORTS).unwrap());
    assert_eq!(spec["trafficDistribution"]["maxLength"], MAX_WORD);
    let condition = &root["status"]["properties"]["conditions"]["items"]["properties"];
    assert_eq!(condition["message"]["maxLength"], MAX_MESSAGE);
}
