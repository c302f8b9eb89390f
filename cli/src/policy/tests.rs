use expect_test::expect;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn objects<T: DeserializeOwned>(values: Vec<Value>) -> Vec<T> {
    values.into_iter().map(|value| serde_json::from_value(value).unwrap()).collect()
}

fn node(number: u8) -> Value {
    json!({"metadata": {"name": format!("node-{number}"), "creationTimestamp": "2026-11-28T10:00:00Z"},
        "spec": {"podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")},
            {"type": "InternalIP", "address": format!("2001:db8::{number}")}]}})
}

fn pod(namespace: &str, name: &str, node: u8, last: u8) -> Value {
    let ips = format!("10.244.{node}.{last},fd00:10:244:{node}::{last}");
    json!({"metadata": {"namespace": namespace, "name": name, "labels": {"app": name}, "annotations": {"hawser.dev/ips": ips}},
        "spec": {"nodeName": format!("node-{node}"), "containers": [{"name": "c", "ports": [{"name": "sql", "containerPort": 5432}]}]}})
}

fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// Two nodes, a shop with a database that only the web may reach, and an audited namespace.
fn shop() -> Objects {
    let from_web = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    let ports = json!([{"port": "sql"}]);
    let only_web = json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": from_web, "ports": ports}]});
    let to_v4 = json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}]);
    let v4_only = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": to_v4}]});
    let mut host = pod("shop", "monitor", 1, 0);
    host["spec"]["hostNetwork"] = json!(true);
    let mut waiting = pod("shop", "waiting", 1, 0);
    waiting["metadata"]["annotations"] = json!({});
    Objects {
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        nodes: objects(vec![node(1), node(2)]),
        pods: objects(vec![
            pod("shop", "web", 1, 2),
            pod("shop", "db", 2, 3),
            pod("shop", "cron", 1, 4),
            pod("tryout", "new", 2, 5),
            host,
            waiting,
        ]),
        namespaces: objects(vec![
            json!({"metadata": {"name": "shop"}}),
            json!({"metadata": {"name": "tryout", "annotations": {"hawser.dev/policy": "audit"}}}),
        ]),
        services: objects(vec![
            json!({"metadata": {"namespace": "shop", "name": "db"}, "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}}),
        ]),
        policies: objects(vec![policy("shop", "db", only_web), policy("tryout", "v4-only", v4_only)]),
        cluster_policies: objects(vec![
            json!({"metadata": {"name": "no-ssh"}, "spec": {"tier": "Admin", "priority": 1,
            "subject": {"namespaces": {}}, "ingress": [{"action": "Deny", "from": [{"namespaces": {}}],
            "protocols": [{"tcp": {"destinationPort": {"number": 22}}}]}]}}),
        ]),
    }
}

fn ask(objects: &Objects, from: &str, to: &str, port: Option<u16>) -> Result<Explained, ExplainError> {
    let protocol = if port.is_some() { Transport::Ports(Protocol::Tcp) } else { Transport::Icmp };
    explained(&facts::world(objects), (&from.parse().unwrap(), &to.parse().unwrap()), protocol, port)
}

fn text(from: &str, to: &str, port: Option<u16>) -> String {
    render(&ask(&shop(), from, to, port).unwrap())
}

#[test]
fn both_sides_are_explained_with_the_rule_that_decides() {
    let all = [
        text("shop/web", "shop/db", Some(5432)),
        text("shop/cron", "shop/db", Some(5432)),
        text("shop/web", "shop/cron", Some(22)),
        text("tryout/new", "shop/cron", None),
        text("node:node-2", "shop/db", Some(5432)),
        text("shop/monitor", "shop/db", Some(80)),
        text("198.51.100.7", "shop/db", Some(5432)),
        text("shop/web", "10.244.2.77", Some(80)),
    ];
    expect![[r#"
        shop/web to shop/db: it may pass

        10.244.1.2 to 10.244.2.3
          egress of shop/web to 10.244.2.3 (pod shop/db), TCP port 5432: allowed: no policy says anything of it
          ingress of shop/db from 10.244.1.2 (pod shop/web), TCP port 5432: allowed: NetworkPolicy shop/db ingress[0]

        fd00:10:244:1::2 to fd00:10:244:2::3
          egress of shop/web to fd00:10:244:2::3 (pod shop/db), TCP port 5432: allowed: no policy says anything of it
          ingress of shop/db from fd00:10:244:1::2 (pod shop/web), TCP port 5432: allowed: NetworkPolicy shop/db ingress[0]

        shop/cron to shop/db: it is denied

        10.244.1.4 to 10.244.2.3
          egress of shop/cron to 10.244.2.3 (pod shop/db), TCP port 5432: allowed: no policy says anything of it
          ingress of shop/db from 10.244.1.4 (pod shop/cron), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        fd00:10:244:1::4 to fd00:10:244:2::3
          egress of shop/cron to fd00:10:244:2::3 (pod shop/db), TCP port 5432: allowed: no policy says anything of it
          ingress of shop/db from fd00:10:244:1::4 (pod shop/cron), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        shop/web to shop/cron: it is denied

        10.244.1.2 to 10.244.1.4
          egress of shop/web to 10.244.1.4 (pod shop/cron), TCP port 22: allowed: no policy says anything of it
          ingress of shop/cron from 10.244.1.2 (pod shop/web), TCP port 22: denied: ClusterNetworkPolicy no-ssh ingress[0]

        fd00:10:244:1::2 to fd00:10:244:1::4
          egress of shop/web to fd00:10:244:1::4 (pod shop/cron), TCP port 22: allowed: no policy says anything of it
          ingress of shop/cron from fd00:10:244:1::2 (pod shop/web), TCP port 22: denied: ClusterNetworkPolicy no-ssh ingress[0]

        tryout/new to shop/cron: it may pass

        10.244.2.5 to 10.244.1.4
          egress of tryout/new to 10.244.1.4 (pod shop/cron), protocol 1: allowed: NetworkPolicy tryout/v4-only egress[0]
          ingress of shop/cron from 10.244.2.5 (pod tryout/new), protocol 1: allowed: no policy says anything of it

        fd00:10:244:2::5 to fd00:10:244:1::4
          egress of tryout/new to fd00:10:244:1::4 (pod shop/cron), protocol 58: passes, audited: NetworkPolicy tryout/v4-only isolates the pod, and no rule allows
          ingress of shop/cron from fd00:10:244:2::5 (pod tryout/new), protocol 58: allowed: no policy says anything of it

        node:node-2 to shop/db: it may pass

        192.0.2.2 to 10.244.2.3
          source: no pod of this cluster, so no policy of its own
          ingress of shop/db from 192.0.2.2 (node node-2), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows; it passes all the same, since it comes from the pod's own node

        2001:db8::2 to fd00:10:244:2::3
          source: no pod of this cluster, so no policy of its own
          ingress of shop/db from 2001:db8::2 (node node-2), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows; it passes all the same, since it comes from the pod's own node

        shop/monitor to shop/db: it is denied

        10.244.1.1 to 10.244.2.3
          source: no pod of this cluster, so no policy of its own
          ingress of shop/db from 10.244.1.1 (node node-1), TCP port 80: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        fd00:10:244:1::1 to fd00:10:244:2::3
          source: no pod of this cluster, so no policy of its own
          ingress of shop/db from fd00:10:244:1::1 (node node-1), TCP port 80: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        198.51.100.7 to shop/db: it is denied

        198.51.100.7 to 10.244.2.3
          source: no pod of this cluster, so no policy of its own
          ingress of shop/db from 198.51.100.7 (outside the cluster), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        shop/web to 10.244.2.77: it may pass

        10.244.1.2 to 10.244.2.77
          egress of shop/web to 10.244.2.77 (unknown), TCP port 80: allowed: no policy says anything of it
          destination: no pod of this cluster, so no policy of its own
    "#]].assert_eq(&all.join("\n"));
}

#[test]
fn exit_codes_tell_what_may_pass_from_what_is_denied_and_what_is_not_known() {
    let code = |objects: &Objects, from, to| ask(objects, from, to, Some(5432)).unwrap().verdict.exit_code();
    let mut objects = shop();
    assert_eq!(code(&objects, "shop/web", "shop/db"), 0);
    assert_eq!(code(&objects, "shop/cron", "shop/db"), 3);
    objects
        .policies
        .push(serde_json::from_value(policy("shop", "broken", json!({"ingress": "all"}))).unwrap());
    assert_eq!(code(&objects, "shop/web", "shop/db"), 4);
    assert_eq!(code(&objects, "shop/cron", "shop/db"), 3);
}

#[test]
fn what_cannot_be_asked_for_is_named_with_its_remedy() {
    let why = |from: &str, to: &str| ask(&shop(), from, to, Some(80)).unwrap_err().to_string();
    assert!(why("shop/web", "shop/nobody").contains("no pod shop/nobody; `kubectl get pods -n shop`"));
    assert!(why("shop/web", "shop/waiting").contains("hawser.dev/ips"));
    assert!(why("shop/web", "10.96.0.9").contains("an address of Service shop/db"));
    assert!(why("node:nobody", "shop/web").contains("no node nobody"));
    assert!(why("192.0.2.77", "2001:db8::77").contains("no address of one family"));
    for wrong in ["web", "a/b/c", "/web", "shop/", "node:", "10.0.0.0/8"] {
        let error = wrong.parse::<Party>().expect_err(wrong).to_string();
        assert!(error.contains("NAMESPACE/POD"), "{error}");
    }
    assert_eq!("TCP".parse(), Ok(Transport::Ports(Protocol::Tcp)));
    assert_eq!("6".parse(), Ok(Transport::Ports(Protocol::Tcp)));
    assert_eq!("47".parse(), Ok(Transport::Number(47)));
    assert!("gre".parse::<Transport>().is_err() && "256".parse::<Transport>().is_err());
}

#[test]
fn a_node_speaks_to_pods_of_others_by_its_mesh_address_and_to_all_else_by_its_internal_ips() {
    let mut objects = shop();
    let nodes_only = json!([{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"ipBlock": {"cidr": "2001:db8::/64"}}]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "cron"}}, "ingress": [{"from": nodes_only}]});
    objects.policies.push(serde_json::from_value(policy("shop", "nodes-only", spec)).unwrap());
    let sources = |from: &str, to: &str| -> Vec<String> {
        let explained = ask(&objects, from, to, Some(80)).unwrap();
        explained.flows.iter().map(|flow| format!("{} {}", flow.flow.source, flow.passes)).collect()
    };
    // What is on the wire bears the mesh address, which is not in the nodes' network.
    assert_eq!(sources("node:node-2", "shop/cron"), ["10.244.2.1 false", "fd00:10:244:2::1 false"]);
    // Pods of its own node it reaches whatever policy says.
    assert_eq!(sources("shop/monitor", "shop/cron"), ["192.0.2.1 true", "2001:db8::1 true"]);
    assert_eq!(sources("node:node-2", "node:node-1"), ["192.0.2.2 true", "2001:db8::2 true"]);
    assert_eq!(sources("node:node-2", "10.244.1.77"), ["10.244.2.1 true"]);
}

#[test]
fn every_address_and_node_port_of_a_service_is_asked_for_by_its_backends() {
    let mut objects = shop();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.10", "externalIPs": ["203.0.113.8"],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
    objects.services.push(
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}}))
        .unwrap(),
    );
    let why = |to: &str, port| {
        ask(&objects, "shop/cron", to, Some(port)).map(drop).map_err(|error| error.to_string())
    };
    for address in ["10.96.0.10", "203.0.113.7", "203.0.113.8"] {
        assert!(why(address, 80).unwrap_err().contains("an address of Service shop/web"), "{address}");
    }
    for node in ["node:node-1", "192.0.2.2", "10.244.2.1"] {
        assert!(why(node, 30080).unwrap_err().contains("node port of Service shop/web"), "{node}");
    }
    assert_eq!(why("node:node-1", 80), Ok(()));
    assert_eq!(why("198.51.100.7", 30080), Ok(()));
}

#[test]
fn of_two_nodes_that_claim_one_address_the_older_has_it() {
    let mut objects = shop();
    let mut thief = node(2);
    thief["metadata"] = json!({"name": "a-thief", "creationTimestamp": "2026-11-29T10:00:00Z"});
    objects.nodes.push(serde_json::from_value(thief).unwrap());
    let world = facts::world(&objects);
    assert_eq!(world.addresses(&Party::Node("node-2".to_owned())).unwrap().len(), 2);
    assert!(world.addresses(&Party::Node("a-thief".to_owned())).is_err());
}
