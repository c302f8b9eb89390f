use super::*;
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

struct World {
    name: &'static str,
    cidrs: &'static [&'static str],
    service: Value,
    node: &'static str,
    peers: Vec<Value>,
}

fn world(name: &'static str, cidrs: &'static [&'static str]) -> World {
    World {
        name,
        cidrs,
        service: json!({"spec": {"ports": [{"port": 51893, "nodePort": 30893}]}}),
        node: "192.0.2.1",
        peers: vec![],
    }
}

fn node(name: &str, ips: &[&str], ready: &str) -> Node {
    let addresses: Vec<Value> = ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    let status = json!({"addresses": addresses, "conditions": [{"type": "Ready", "status": ready}]});
    read(json!({"metadata": {"name": name}, "status": status}))
}

fn side(place: Place, world: &World, given: &[&str]) -> Side {
    let text = format!("clusterName: {}\npodCIDRs: {:?}\nmtu: null\n", world.name, world.cidrs);
    let config: ConfigMap = read(json!({"data": {"config.yaml": text}}));
    let trust: ConfigMap = read(json!({"data": {"ca.crt": "-----BEGIN CERTIFICATE-----\nx\n"}}));
    let node = node("n1", &[world.node], "True");
    let peers: Vec<DynamicObject> = world.peers.iter().cloned().map(read).collect();
    let given: Vec<ServerAddress> = given.iter().map(|text| text.parse().unwrap()).collect();
    let service: Service = read(world.service.clone());
    Side::read(place, Some(&config), Some(&trust), Some(&service), &[node], &peers, &given)
}

fn both(a: &World, b: &World) -> Result<[Value; 2], String> {
    let joined = peers(&side(Place::Here, a, &[]), &side(Place::Remote, b, &[]));
    joined.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn each_cluster_gets_the_others_prefixes_addresses_and_certificates() {
    let [in_west, in_east] =
        both(&world("west", &["10.1.0.0/16", "fd01::/48"]), &world("east", &["10.2.0.0/16"])).unwrap();
    assert_eq!(
        (&in_west["metadata"]["name"], &in_east["metadata"]["name"]),
        (&json!("east"), &json!("west"))
    );
    assert_eq!(
        in_west["spec"],
        json!({"podCIDRs": ["10.2.0.0/16"], "addresses": ["192.0.2.1:30893"], "trustBundle": "-----BEGIN CERTIFICATE-----\nx\n"})
    );
    assert_eq!(in_east["spec"]["podCIDRs"], json!(["10.1.0.0/16", "fd01::/48"]));
}

#[test]
fn a_load_balancer_goes_before_nodes_and_what_is_given_before_both() {
    let mut west = world("west", &["10.1.0.0/16"]);
    west.service = json!({"spec": {"ports": [{"port": 51893, "nodePort": 30893}]}, "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}, {"hostname": "lb.example"}]}}});
    let addresses = |side: &Side| side.spec()["addresses"].clone();
    assert_eq!(addresses(&side(Place::Here, &west, &[])), json!(["203.0.113.9:51893", "lb.example:51893"]));
    assert_eq!(addresses(&side(Place::Here, &west, &["[2001:db8::1]:1"])), json!(["[2001:db8::1]:1"]));
}

#[test]
fn of_a_node_port_only_what_answers_is_told_in_each_family() {
    let found = |families: &[&str], nodes: &[Node]| -> Vec<String> {
        let service: Service =
            read(json!({"spec": {"ipFamilies": families, "ports": [{"port": 51893, "nodePort": 30893}]}}));
        found(Some(&service), nodes).iter().map(ToString::to_string).collect()
    };
    let nodes = [
        node("dead", &["192.0.2.1", "2001:db8::1"], "Unknown"),
        node("both", &["192.0.2.2", "2001:db8::2", "192.0.2.102"], "True"),
        node("starts", &["192.0.2.3"], "False"),
        node("six", &["2001:db8::4"], "True"),
    ];
    let all = ["192.0.2.2:30893", "[2001:db8::2]:30893", "[2001:db8::4]:30893"];
    assert_eq!(found(&["IPv4", "IPv6"], &nodes), all);
    assert_eq!(found(&[], &nodes), all);
    assert_eq!(found(&["IPv4"], &nodes), all[..1]);
    assert_eq!(found(&["IPv6"], &nodes), all[1..]);
    let many: Vec<Node> = (0..40)
        .map(|at| node(&format!("n{at}"), &[&format!("192.0.2.{at}"), &format!("2001:db8::{at}")], "True"))
        .collect();
    let told = found(&["IPv4", "IPv6"], &many);
    assert_eq!((told.len(), told[15].as_str()), (MAX_ADDRESSES, "[2001:db8::7]:30893"));
    // Who has a port and nobody who answers there is told which of the two is missing.
    let mut west = world("west", &["10.1.0.0/16"]);
    west.service = json!({"spec": {"ipFamilies": ["IPv6"], "ports": [{"port": 51893, "nodePort": 30893}]}});
    let text = both(&west, &world("east", &["10.2.0.0/16"])).unwrap_err();
    assert!(text.contains("no node with an address of its families is Ready; give --address"), "{text}");
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written_with_a_remedy() {
    let refused = |a: &World, b: &World, words: &[&str]| {
        let text = both(a, b).unwrap_err();
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    };
    refused(
        &world("x", &["10.1.0.0/16"]),
        &world("x", &["10.2.0.0/16"]),
        &["both clusters are called \"x\"", "clusterName"],
    );
    refused(
        &world("west", &["10.1.0.0/16"]),
        &world("east", &["10.0.0.0/14"]),
        &[
            "this cluster: ClusterPeer east: spec.podCIDRs 10.0.0.0/14 overlaps pod CIDR 10.1.0.0/16",
            "the other cluster: ClusterPeer west",
        ],
    );
    let mut west = world("west", &["10.1.0.0/16"]);
    west.node = "10.2.0.7";
    refused(&west, &world("east", &["10.2.0.0/16"]), &["contains 10.2.0.7, an address of node n1"]);
    west.node = "192.0.2.1";
    west.peers = vec![
        json!({"apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer", "metadata": {"name": "north", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"podCIDRs": ["10.2.0.0/17"], "addresses": ["192.0.2.9:1"], "trustBundle": "-----BEGIN CERTIFICATE-----"}}),
    ];
    refused(&west, &world("east", &["10.2.0.0/16"]), &["overlaps 10.2.0.0/17 of ClusterPeer north"]);
    west.service = json!({"spec": {"ports": [{"port": 51893}]}});
    refused(
        &west,
        &world("east", &["10.2.0.0/16"]),
        &["this cluster: its clustermesh has no address for others", "--address HOST:PORT"],
    );
    let nothing = Side::read(Place::Remote, None, None, None, &[], &[], &[]);
    let problems = peers(&side(Place::Here, &world("west", &["10.1.0.0/16"]), &[]), &nothing).unwrap_err();
    assert_eq!(problems.len(), 3, "{problems:?}");
}

#[test]
fn who_is_joined_already_may_be_joined_again() {
    let mut west = world("west", &["10.1.0.0/16"]);
    west.peers = vec![
        json!({"apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer", "metadata": {"name": "east"},
        "spec": {"podCIDRs": ["10.2.0.0/17"], "addresses": ["192.0.2.9:1"], "trustBundle": "-----BEGIN CERTIFICATE-----"}}),
    ];
    assert!(both(&west, &world("east", &["10.2.0.0/16"])).is_ok());
}
