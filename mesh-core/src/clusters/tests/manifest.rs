use serde_json::Value;

use super::super::peer::{MAX_ADDRESSES, MAX_CIDRS, MAX_TRUST_BUNDLE};
use super::*;

/// The version in `deploy/crds/clusterpeers.yaml`.
fn version() -> Value {
    let text = include_str!("../../../../deploy/crds/clusterpeers.yaml");
    let definition: Value = serde_saphyr::from_str(text).unwrap();
    definition["spec"]["versions"][0].clone()
}

fn schema() -> Value {
    version()["schema"]["openAPIV3Schema"]["properties"].clone()
}

#[test]
fn whoever_lists_cluster_peers_sees_each_condition() {
    let version = version();
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    let condition = |column: &Value| {
        let path = column["jsonPath"].as_str()?.strip_prefix(".status.conditions[?(@.type==\"")?;
        path.strip_suffix("\")].status").map(str::to_owned)
    };
    let shown: Vec<String> = columns.iter().filter_map(condition).collect();
    // As `clustermesh` writes them.
    assert_eq!(shown, ["Accepted", "Connected", "Problems"]);
}

#[test]
fn the_schema_has_the_fields_and_the_bounds_of_the_parser() {
    let schema = schema();
    let spec = &schema["spec"]["properties"];
    let read = serde_json::to_value(ClusterPeerSpec::default()).unwrap();
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>();
    assert_eq!(fields(spec), fields(&read));
    assert_eq!(spec["podCIDRs"]["maxItems"], MAX_CIDRS);
    assert_eq!(spec["addresses"]["maxItems"], MAX_ADDRESSES);
    assert_eq!(spec["trustBundle"]["maxLength"], MAX_TRUST_BUNDLE);
    assert_eq!(schema["metadata"]["properties"]["name"]["maxLength"], 63);
}
