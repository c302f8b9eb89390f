use super::*;
use serde_json::json;

fn read(value: serde_json::Value) -> NodeFacts {
    let object: Node = serde_json::from_value(value).unwrap();
    node(&object).unwrap().1
}

#[test]
fn a_bad_field_costs_only_itself() {
    let facts = read(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n1", "annotations": {
            "hawser.dev/wireguard": "{", "hawser.dev/endpoint": "192.0.2.7, 2001:db8::7"}},
        "spec": {"podCIDRs": ["10.1.0.0/24", "tea"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "soup"},
            {"type": "Hostname", "address": "n1"}]}
    }));
    assert_eq!(facts.pod_cidrs.len(), 1);
    assert_eq!(facts.internal_ips, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(facts.malformed.len(), 2);
    assert!(matches!(facts.announcement, AnnouncementFact::Malformed { .. }));
    assert!(matches!(facts.endpoint, EndpointFact::Addresses(a) if a.len() == 2));
}

#[test]
fn a_node_is_unheard_when_its_kubelet_is_and_not_when_that_says_that_something_is_wrong() {
    let unheard = |conditions: serde_json::Value| {
        let node = json!({"metadata": {"name": "n1"}, "spec": {}, "status": {"conditions": conditions}});
        let mut object = json!({"apiVersion": "v1", "kind": "Node"});
        object.as_object_mut().unwrap().extend(node.as_object().unwrap().clone());
        read(object).unheard
    };
    let of = |kind: &str, status: &str| json!({"type": kind, "status": status});
    assert!(unheard(json!([of("MemoryPressure", "Unknown"), of("Ready", "Unknown")])));
    for other in [
        json!([]),
        json!([of("Ready", "True")]),
        json!([of("Ready", "False"), of("DiskPressure", "Unknown")]),
    ] {
        assert!(!unheard(other.clone()), "{other}");
    }
}

#[test]
fn an_endpoint_that_is_no_address_is_named() {
    let check = |text: &str| match endpoint(text) {
        EndpointFact::Malformed { reason, .. } => reason,
        EndpointFact::Absent | EndpointFact::Addresses(_) => panic!("{text:?} was taken"),
    };
    assert_eq!(check("example.com"), "\"example.com\" is not an address");
    assert_eq!(check("192.0.2.1,"), "\"\" is not an address");
    assert_eq!(check("127.0.0.1"), "127.0.0.1 is not a unicast address");
}

#[test]
fn external_addresses_are_policys_and_not_the_meshs() {
    let object: Node = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "ExternalIP", "address": "tea"}, {"type": "ExternalDNS", "address": "n1.example"}]}
    }))
    .unwrap();
    let (_, seen) = node_seen(&object).unwrap();
    assert_eq!(seen.facts.internal_ips, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(seen.external_ips, ["203.0.113.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(seen.facts.malformed.len(), 1, "{:?}", seen.facts.malformed);
}

#[test]
fn a_node_cannot_claim_addresses_without_end() {
    let address =
        |n: u16| json!({"type": "InternalIP", "address": format!("192.0.{}.{}", n / 250, n % 250 + 1)});
    let addresses: Vec<_> = (0..5000).map(address).collect();
    let facts = read(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {},
        "status": {"addresses": addresses}
    }));
    assert_eq!(facts.internal_ips.len(), 16);
    assert_eq!(facts.malformed.len(), 1, "{:?}", facts.malformed.first());
    assert!(facts.malformed[0].reason.contains("at most 16"), "{:?}", facts.malformed);
}
